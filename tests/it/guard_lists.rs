//! Lists from files: they follow the files, and keep what was good when those go bad.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tempfile::TempDir;

use crate::support::backend::Backend;
use crate::support::client::{Outcome, held, loopback, probe_from, served};
use crate::support::hello::to;
use crate::support::proxy::{Proxy, on_config};
use crate::support::{SOON, UNLIMITED, until, wait_for};

const ME: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A file of networks in a folder of its own.
struct List {
    folder: TempDir,
}

impl List {
    fn new(text: &str) -> Self {
        let list = Self { folder: tempfile::tempdir().unwrap() };
        list.write(text);
        list
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("list.txt")
    }

    fn write(&self, text: &str) {
        let new = self.folder.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.path()).unwrap();
    }
}

fn proxy_with(settings: &str, backend: &Backend) -> Proxy {
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{settings}\n[[route]]\nname = 'a'\nsni = 'a.test'\nto = '{backend}'\n"
    ))
}

fn probe(source: Ipv4Addr, proxy: &Proxy) -> Outcome {
    probe_from(source, proxy.addr(), &to("a.test"))
}

#[test]
fn a_list_follows_its_file_and_survives_a_bad_one() {
    let backend = Backend::tagged("a");
    let list = List::new("# who may not\n127.0.1.0/24\n");
    let proxy = proxy_with(&format!("deny_files = '{}'", list.path().display()), &backend);
    let (one, two) = (Ipv4Addr::new(127, 0, 1, 1), Ipv4Addr::new(127, 0, 2, 1));
    assert_eq!((probe(one, &proxy), probe(two, &proxy)), (Outcome::Reset, served("a")));

    list.write("127.0.2.0/24\n");
    until("the new list to count", SOON, || (probe(two, &proxy) == Outcome::Reset).then_some(()));
    assert_eq!(probe(one, &proxy), served("a"));
    proxy.wait_metric("portcullis_list_reloads_total", &[("result", "ok")], 1.0);

    list.write("127.0.1.0/24\n127.0.0.0/33\n");
    let failed = |count| proxy.wait_metric("portcullis_list_reloads_total", &[("result", "failed")], count);
    failed(1.0);
    assert_eq!((probe(one, &proxy), probe(two, &proxy)), (served("a"), Outcome::Reset), "as before");
    std::fs::remove_file(list.path()).unwrap();
    failed(2.0);
    assert_eq!((probe(one, &proxy), probe(two, &proxy)), (served("a"), Outcome::Reset), "as before");
    let told = proxy.logged("list not read again; the networks known before stay");
    let errors: Vec<_> = told.iter().map(|line| line["error"].as_str().unwrap()).collect();
    let [bad, gone] = errors.as_slice() else { panic!("each is told once: {told:#?}") };
    assert!(bad.contains("list.txt:2:1: error[bad-network]: `127.0.0.0/33` is not a network"), "{bad}");
    assert!(gone.contains("cannot read"), "{gone}");

    list.write("127.0.1.0/24\n");
    until("the list to be good again", SOON, || (probe(one, &proxy) == Outcome::Reset).then_some(()));
    assert_eq!(probe(two, &proxy), served("a"));
}

#[test]
fn a_list_that_could_not_be_read_for_a_moment_is_read_when_it_can_be() {
    let backend = Backend::tagged("a");
    let list = List::new("127.0.1.0/24\n");
    let mut proxy = proxy_with(&format!("deny_files = '{}'", list.path().display()), &backend);
    let (one, two) = (Ipv4Addr::new(127, 0, 1, 1), Ipv4Addr::new(127, 0, 2, 1));
    assert_eq!((probe(one, &proxy), probe(two, &proxy)), (Outcome::Reset, served("a")));

    // No descriptor is left to read it with.
    let process = Pid::from_raw(proxy.process.id() as i32);
    let limited = |limit| prlimit(process, Resource::Nofile, limit).unwrap();
    let before = limited(Rlimit { current: Some(3), maximum: getrlimit(Resource::Nofile).maximum });
    list.write("127.0.2.0/24\n");
    let told = || proxy.logged("list not read again; the networks known before stay");
    wait_for("the list not to be read", || !told().is_empty());
    assert!(told()[0]["error"].as_str().unwrap().contains("Too many open files"), "{:?}", told());
    limited(before);
    until("the list to be read", SOON, || (probe(two, &proxy) == Outcome::Reset).then_some(()));
    assert_eq!(probe(one, &proxy), served("a"));
    assert_eq!(told().len(), 1, "once, however often it was tried");
    proxy.wait_metric("portcullis_list_reloads_total", &[("result", "failed")], 1.0);
    proxy.wait_metric("portcullis_list_reloads_total", &[("result", "ok")], 1.0);
    proxy.assert_sound();
}

#[test]
fn a_file_of_those_who_may_lets_nobody_else_in() {
    let backend = Backend::tagged("a");
    let list = List::new("127.0.1.0/24\n");
    let path = list.path();
    let proxy = proxy_with(&format!("allow_files = ['{0}']\ndeny = '127.0.1.9'", path.display()), &backend);
    let at = |d: u8| probe(Ipv4Addr::new(127, 0, 1, d), &proxy);
    assert_eq!((at(1), at(9), probe(ME, &proxy)), (served("a"), Outcome::Reset, Outcome::Reset));
    list.write("# nobody\n");
    until("the empty list to count", SOON, || (at(1) == Outcome::Reset).then_some(()));
}

#[test]
fn the_exempt_are_not_limited_but_may_be_denied() {
    let backend = Backend::tagged("a");
    let settings = "exempt = '127.0.1.0/24'\ndeny = '127.0.1.9'\nconnection_limit = 1";
    let proxy = proxy_with(settings, &backend);
    let hello = to("a.test");
    let guest = Ipv4Addr::new(127, 0, 1, 1);
    let _open: Vec<_> = (0..5).map(|_| held(guest, proxy.addr(), &hello)).collect();
    assert_eq!(probe(Ipv4Addr::new(127, 0, 1, 9), &proxy), Outcome::Reset, "denied");
    let _one = held(ME, proxy.addr(), &hello);
    assert_eq!(probe(ME, &proxy), Outcome::Reset, "one at a time");
    assert_eq!(probe(loopback(2), &proxy), served("a"));
}

#[test]
fn a_bad_line_is_an_error_at_load() {
    let list = List::new("10.0.0.0/8\n\n10.0.0.0/8 or so\n");
    let config = format!(
        "listen = '127.0.0.1:0'\ndeny_files = ['{}', 'absent.txt']\n[[route]]\nsni = 'a.test'\nto = '10.0.0.1:1'\n",
        list.path().display()
    );
    let checked = on_config("check", &config, &[]);
    assert_eq!(checked.code, Some(78), "{checked:?}");
    assert!(checked.stderr.contains("list.txt:3:1"), "{}", checked.stderr);
    assert!(checked.stderr.contains("portcullis.toml:2:"), "{}", checked.stderr);
    assert!(checked.stderr.contains("absent.txt`: No such file"), "{}", checked.stderr);
}

#[test]
fn a_hundred_thousand_networks_take_less_than_fifty_megabytes() {
    let backend = Backend::tagged("a");
    let mut text = String::new();
    for n in 0..50_000u32 {
        let v4 = Ipv4Addr::from_bits(0x0a00_0000 + (n << 8));
        let v6 = std::net::Ipv6Addr::from_bits((0x2001_0db8 << 96) | (u128::from(n) << 72));
        writeln!(text, "{v4}/24\n{v6}/56").unwrap();
    }
    let list = List::new(&text);
    let rss = |settings: &str| {
        let proxy = proxy_with(&format!("{UNLIMITED}{settings}"), &backend);
        assert_eq!(probe(ME, &proxy), served("a"));
        proxy.process.rss()
    };
    let with = rss(&format!("deny_files = '{}'", list.path().display()));
    let taken = with.saturating_sub(rss(""));
    println!("{taken} bytes for 100,000 networks");
    assert!(taken < 50_000_000, "{taken} bytes");
}
