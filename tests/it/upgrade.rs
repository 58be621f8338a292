//! A new binary for a process that serves: it takes over when it is ready, and nobody notices; one that never is
//! changes nothing.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::backend::Backend;
use crate::support::client::{free_port, held, probe, served};
use crate::support::hello::to;
use crate::support::load::Load;
use crate::support::process::Process;
use crate::support::proxy::Proxy;
use crate::support::{SOON, UNLIMITED, until, wait_for};

fn config(backend: &Backend) -> String {
    format!(
        "listen = ['127.0.0.1:0', '127.0.0.1:0']\nadmin = '127.0.0.1:0'\n{UNLIMITED}\
         timeouts = {{ drain = '1m' }}\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n"
    )
}

/// A link to the binary, which something else can be put in the place of.
fn binary(dir: &Path) -> PathBuf {
    let path = dir.join("portcullis");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_portcullis"), &path).unwrap();
    path
}

/// Puts a script in the place of the binary.
fn replace(binary: &Path, script: &str) {
    let new = binary.with_extension("new");
    std::fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(new, binary).unwrap();
}

/// One process after the other takes over.
#[test]
fn ten_upgrades_under_load_are_noticed_by_nobody() {
    const UPGRADES: usize = 10;
    let (load, tagged) = (Load::new(), Backend::tagged("a"));
    let mut proxy = Proxy::start(&(config(&tagged) + &load.routes()));
    let count = load.during(proxy.addr(), || (0..UPGRADES).for_each(|_| proxy.upgrade()));
    println!("{count} new connections during {UPGRADES} upgrades");
    assert!(count >= UPGRADES, "{count}");
    assert_eq!(proxy.process.wait(SOON).code(), Some(0), "the first process drained");
    let failed = |line: &Value| line["cause"] != "done" && line["cause"] != "client";
    assert_eq!(proxy.access_log().into_iter().filter(failed).count(), 0);
    assert!(!proxy.process.stderr.contains("panicked"));
}

#[test]
fn the_new_process_has_the_new_configuration_and_the_admin_address() {
    let (a, b) = (Backend::tagged("a"), Backend::tagged("b"));
    let mut proxy = Proxy::start(&config(&a));
    let addr = proxy.addr();
    let old = held(Ipv4Addr::LOCALHOST, addr, &to("a.test"));
    proxy.write(&config(&b));
    proxy.upgrade();
    let second = proxy.listener("default");
    assert_eq!(second, addr);
    // Until the old one has heard of it, both accept.
    wait_for("the new process to be alone", || probe(addr, &to("a.test")) == served("b"));
    wait_for("the new process to answer on the admin address", || {
        proxy.try_ask("/readyz").is_ok_and(|answer| answer.status == 200)
    });
    drop(old);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    assert_eq!(probe(addr, &to("a.test")), served("b"));
    assert_eq!(proxy.ask("/readyz").status, 200);
    // What the reload sees is the address that was handed on.
    proxy.reconfigure(&config(&a));
    assert_eq!(probe(addr, &to("a.test")), served("a"));
}

#[test]
fn the_file_of_an_admin_socket_stays() {
    let backend = Backend::tagged("a");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let text =
        config(&backend).replace("admin = '127.0.0.1:0'", &format!("admin = 'unix:{}'", path.display()));
    let mut proxy = Proxy::start(&text);
    proxy.upgrade();
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    std::os::unix::net::UnixStream::connect(&path).expect("the new process answers");
}

#[test]
fn a_new_process_that_fails_changes_nothing() {
    let backend = Backend::tagged("a");
    let dir = tempfile::tempdir().unwrap();
    let binary = binary(dir.path());
    let mut proxy = Proxy::start_binary(&binary, &config(&backend));
    let mut failures = 0;
    let mut fails = |proxy: &Proxy| {
        proxy.process.signal(Signal::USR2);
        failures += 1;
        wait_for("the failure", || proxy.logged("this process goes on").len() == failures);
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
    };
    // A configuration that the old one has no need of.
    proxy.write("listen = 5\n");
    fails(&proxy);
    proxy.write(&config(&backend));
    replace(&binary, "exit 3");
    fails(&proxy);
    std::fs::remove_file(&binary).unwrap();
    fails(&proxy);
    let fds = proxy.process.fds();
    // Killed in the middle of it.
    let pid_file = dir.path().join("pid");
    replace(&binary, &format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 30", pid_file.display()));
    proxy.process.signal(Signal::USR2);
    let pid = until("the new process", SOON, || {
        std::fs::read_to_string(&pid_file).ok().and_then(|pid| pid.trim().parse().ok())
    });
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    wait_for("the failure", || proxy.logged("this process goes on").len() == 4);
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
    wait_for("descriptors to be as before", || proxy.process.fds() <= fds);
    // And a good one takes over after all of them.
    std::fs::remove_file(&binary).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_portcullis"), &binary).unwrap();
    proxy.upgrade();
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
}

/// It fails late, with the admin socket in its hands: that and its file stay the old one's. And with more workers it
/// shares the sockets that there are: a new one would get clients before it serves.
#[test]
fn a_new_process_that_fails_late_takes_nothing_with_it() {
    let backend = Backend::tagged("a");
    let dir = tempfile::tempdir().unwrap();
    let (path, binary) = (dir.path().join("admin.sock"), binary(dir.path()));
    let text =
        config(&backend).replace("admin = '127.0.0.1:0'", &format!("admin = 'unix:{}'", path.display()));
    let mut proxy = Proxy::start_binary(&binary, &text);
    // The real one with four workers instead of two, and a log that it cannot open.
    replace(
        &binary,
        &format!(
            "exec {} run --workers 4 --config {}",
            env!("CARGO_BIN_EXE_portcullis"),
            proxy.file().display()
        ),
    );
    proxy.write(&format!("access_log = '/nowhere/access.log'\n{text}"));
    proxy.process.signal(Signal::USR2);
    wait_for("the failure", || proxy.logged("this process goes on").len() == 1);
    std::os::unix::net::UnixStream::connect(&path).expect("the old process still answers");
    for _ in 0..50 {
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
    }
    proxy.write(&text);
    proxy.upgrade();
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    for _ in 0..50 {
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
    }
    std::os::unix::net::UnixStream::connect(&path).expect("the new process answers");
}

/// Told to stop while a new process starts: both end.
#[test]
fn a_stop_in_the_middle_of_an_upgrade_ends_the_new_process_too() {
    let backend = Backend::tagged("a");
    let dir = tempfile::tempdir().unwrap();
    let (binary, pid_file) = (binary(dir.path()), dir.path().join("pid"));
    let mut proxy = Proxy::start_binary(&binary, &config(&backend));
    replace(&binary, &format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 30", pid_file.display()));
    proxy.process.signal(Signal::USR2);
    let pid = until("the new process", SOON, || {
        std::fs::read_to_string(&pid_file).ok().and_then(|pid| pid.trim().parse::<i32>().ok())
    });
    proxy.process.signal(Signal::TERM);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    wait_for("the new process to be gone", || !Path::new(&format!("/proc/{pid}")).exists());
    TcpStream::connect(proxy.addr()).expect_err("nobody listens any more");
}

/// The first client's connection starts the process; what it has said waits.
#[test]
fn systemd_opens_the_sockets() {
    let backend = Backend::tagged("a");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("portcullis.toml");
    let [addr, other] = [(); 2].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
    let text = format!("listen = ['{addr}', '127.0.0.1:0']\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new("systemd-socket-activate");
    // The second is none of the configuration's.
    command.args(["--listen", &addr.to_string(), "--listen", &other.to_string()]);
    command.args([env!("CARGO_BIN_EXE_portcullis"), "run", "--workers", "2", "--config"]).arg(&file);
    let mut process = Process::start(&mut command, "systemd");
    wait_for("systemd to listen", || process.stderr.contains("Listening on"));
    for _ in 0..20 {
        assert_eq!(probe(addr, &to("a.test")), served("a"));
    }
    let all = process.stderr.all().join("\n");
    assert!(all.contains("a socket was handed over that no listener has"), "{all}");
    assert!(all.contains(&other.to_string()), "{all}");
    assert_eq!(
        all.matches("\"listening\"").count(),
        2,
        "the other address is one that it bound itself: {all}"
    );
    process.signal(Signal::TERM);
    assert!(process.wait(SOON).success());
}
