//! Limits by address act before a byte is read; those of one address never hurt another.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::support::backend::Backend;
use crate::support::client::{Outcome, connect_from, held, loopback, outcome, probe_from, reset, served};
use crate::support::hello::to;
use crate::support::proxy::Proxy;
use crate::support::{SOON, until, wait_for};

const ME: Ipv4Addr = Ipv4Addr::LOCALHOST;
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

fn proxy_with(limits: &str, backend: &Backend) -> Proxy {
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{limits}\n[[route]]\nname = 'a'\nsni = 'a.test'\nto = '{backend}'\n"
    ))
}

fn probe(source: Ipv4Addr, proxy: &Proxy) -> Outcome {
    probe_from(source, proxy.addr(), &to("a.test"))
}

#[test]
fn the_longest_prefix_of_allow_and_deny_decides() {
    let backend = Backend::tagged("a");
    let (yes, no) = (served("a"), Outcome::Reset);
    let at = |c: u8, d: u8| Ipv4Addr::new(127, 0, c, d);
    let table: [(&str, &[(Ipv4Addr, &Outcome)]); 4] = [
        ("deny = ['127.0.1.0/24']", &[(ME, &yes), (at(1, 1), &no), (at(2, 1), &yes)]),
        ("allow = ['127.0.1.0/24']", &[(ME, &no), (at(1, 1), &yes), (at(2, 1), &no)]),
        (
            "allow = ['127.0.0.0/16', '127.0.1.7/32']\ndeny = ['127.0.1.0/24']",
            &[(ME, &yes), (at(1, 1), &no), (at(1, 7), &yes), (Ipv4Addr::new(127, 9, 0, 1), &no)],
        ),
        (
            "allow = ['127.0.1.0/24']\ndeny = ['127.0.0.0/8', '127.0.1.9']",
            &[(ME, &no), (at(1, 1), &yes), (at(1, 9), &no)],
        ),
    ];
    for (lists, cases) in table {
        let proxy = proxy_with(lists, &backend);
        for (source, expected) in cases {
            assert_eq!(probe(*source, &proxy), **expected, "{source} with {lists}");
        }
        let refused = cases.iter().filter(|(_, expected)| **expected == no).count() as f64;
        proxy.wait_metric("portcullis_connections_rejected_total", &[("reason", "acl")], refused);
        let line = proxy.access_line("refused by a list", |line| line["reason"] == "acl");
        assert_eq!(
            (&line["action"], &line["cause"], &line["stage"]),
            (&"reject".into(), &"policy".into(), &"accept".into())
        );
    }
}

#[test]
fn on_a_dual_stack_listener_ipv4_clients_are_ipv4_clients() {
    let backend = Backend::tagged("a");
    let proxy = Proxy::start(&format!(
        "listen = ':0'\ndeny = ['127.0.0.2', '::1']\nconnection_limit = {{ per_ip = 1 }}\n\
         [[route]]\nsni = 'a.test'\nfrom = '127.0.0.0/8'\nto = '{backend}'\n"
    ));
    let (port, hello) = (proxy.addr().port(), to("a.test"));
    let v4 = SocketAddr::from((ME, port));
    assert_eq!(probe_from(OTHER, v4, &hello), Outcome::Reset, "denied, mapped or not");
    let open = held(ME, v4, &hello);
    assert_eq!(probe_from(ME, v4, &hello), Outcome::Reset, "one at a time");
    drop(open);
    let line = proxy.access_line("ours", |line| line["action"] == "passthrough");
    assert!(line["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    let v6 = TcpStream::connect(SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port)));
    let refused = v6.map(|mut stream| outcome(&mut stream, &hello, SOON));
    assert!(matches!(refused, Ok(Outcome::Reset) | Err(_)), "{refused:?}");
}

#[test]
fn open_connections_of_an_address_are_limited() {
    let backend = Backend::tagged("a");
    let mut proxy = proxy_with("connection_limit = { per_ip = 3 }", &backend);
    let hello = to("a.test");
    let mut open: Vec<TcpStream> = (0..3).map(|_| held(ME, proxy.addr(), &hello)).collect();
    assert_eq!(probe(ME, &proxy), Outcome::Reset);
    assert_eq!(probe(OTHER, &proxy), served("a"));
    open.pop();
    until("a place to be free again", SOON, || (probe(ME, &proxy) == served("a")).then_some(()));
    let metrics = proxy.metrics();
    assert!(metrics.sum("portcullis_connections_rejected_total", &[("reason", "connection_limit")]) >= 1.0);
    // However a connection ends, its place is given back.
    for stream in open {
        reset(stream);
    }
    wait_for("all places to be free", || {
        proxy.metrics().sum("portcullis_connections_active", &[]).abs() < 0.5
    });
    let again: Vec<TcpStream> = (0..3).map(|_| held(ME, proxy.addr(), &hello)).collect();
    drop(again);
    proxy.assert_sound();
}

#[test]
fn connections_before_their_hello_have_a_limit_of_their_own() {
    let backend = Backend::tagged("a");
    let proxy = proxy_with("connection_limit = { per_ip = 100, before_hello = 4 }", &backend);
    let hello = to("a.test");
    let mut silent: Vec<TcpStream> = (0..4).map(|_| connect_from(ME, proxy.addr())).collect();
    wait_for("the silent ones to be counted", || {
        proxy.metrics().sum("portcullis_connections_active", &[]) >= 4.0
    });
    assert_eq!(probe(ME, &proxy), Outcome::Reset);
    assert_eq!(probe(OTHER, &proxy), served("a"));
    // A hello frees the place though its connection goes on.
    assert_eq!(outcome(&mut silent[0], &hello, SOON), served("a"));
    assert_eq!(probe(ME, &proxy), served("a"));
    // So does a client that gives up.
    drop(silent.pop());
    wait_for("its place to be free", || probe(ME, &proxy) == served("a"));
    proxy.access_line("refused before its hello", |line| line["reason"] == "before_hello");
}

#[test]
fn the_defaults_limit_too() {
    let backend = Backend::tagged("a");
    let proxy = proxy_with("", &backend);
    let silent: Vec<TcpStream> = (0..32).map(|_| connect_from(ME, proxy.addr())).collect();
    wait_for("32 silent ones", || proxy.metrics().sum("portcullis_connections_active", &[]) >= 32.0);
    assert_eq!(probe(ME, &proxy), Outcome::Reset, "the 33rd before its hello");
    drop(silent);
    until("the places to be free", SOON, || (probe(ME, &proxy) == served("a")).then_some(()));
    let hello = to("a.test");
    let open: Vec<TcpStream> = (0..256).map(|_| held(OTHER, proxy.addr(), &hello)).collect();
    assert_eq!(probe(OTHER, &proxy), Outcome::Reset, "the 257th");
    assert_eq!(probe(ME, &proxy), served("a"));
    drop(open);
}

#[test]
fn a_burst_passes_and_then_the_rate() {
    let backend = Backend::tagged("a");
    let proxy = proxy_with("rate_limit = { per_ip = '2/s', burst = 3 }", &backend);
    let start = Instant::now();
    for _ in 0..3 {
        assert_eq!(probe(ME, &proxy), served("a"));
    }
    if start.elapsed() < Duration::from_millis(400) {
        assert_eq!(probe(ME, &proxy), Outcome::Reset);
    }
    assert_eq!(probe(OTHER, &proxy), served("a"));
    until("the next place in the rate", SOON, || (probe(ME, &proxy) == served("a")).then_some(()));
    let allowed = 3.0 + start.elapsed().as_secs_f64() * 2.0 + 1.0;
    let passed = backend.hits() as f64 - 1.0;
    assert!(passed <= allowed, "{passed} connections passed where {allowed} may");
    let line = proxy.access_line("refused by rate", |line| line["reason"] == "rate_limit");
    assert_eq!((&line["cause"], &line["stage"]), (&"limit".into(), &"accept".into()));
    assert_eq!(line["bytes_in"].as_u64().unwrap_or(0), 0);
}

#[test]
fn a_rate_alone_is_its_own_burst() {
    let backend = Backend::tagged("a");
    let proxy = proxy_with("rate_limit = '20/m'", &backend);
    let passed = (0..40).filter(|_| probe(ME, &proxy) == served("a")).count();
    assert!((20..=22).contains(&passed), "{passed} of 40 passed");
}

#[test]
fn above_the_total_cap_connections_wait_and_are_served_in_the_end() {
    let backend = Backend::tagged("a");
    let mut proxy = proxy_with("connection_limit = { total = 2 }", &backend);
    let hello = to("a.test");
    let mut open: Vec<TcpStream> = (1..3).map(|n| held(loopback(n), proxy.addr(), &hello)).collect();
    let mut waiting = connect_from(loopback(3), proxy.addr());
    assert_eq!(
        outcome(&mut waiting, &hello, Duration::from_millis(500)),
        Outcome::Open,
        "it is neither served nor refused"
    );
    assert_eq!(backend.hits(), 2);
    drop(open.pop());
    assert_eq!(outcome(&mut waiting, b"", SOON), served("a"));
    drop(open);
    assert_eq!(probe(loopback(4), &proxy), served("a"));
    proxy.assert_sound();
}

#[test]
fn the_time_to_send_a_hello_begins_when_there_is_room() {
    let backend = Backend::tagged("a");
    let proxy = proxy_with("connection_limit = { total = 1 }\ntimeouts = { hello = '500ms' }", &backend);
    let hello = to("a.test");
    let open = held(loopback(1), proxy.addr(), &hello);
    let mut waiting = connect_from(loopback(2), proxy.addr());
    assert_eq!(outcome(&mut waiting, &hello, Duration::from_secs(1)), Outcome::Open);
    drop(open);
    assert_eq!(outcome(&mut waiting, b"", SOON), served("a"), "it had said its hello long before");
}
