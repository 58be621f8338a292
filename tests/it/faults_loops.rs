//! Routes that lead back (L21): refused at load where that can be seen, and bounded by the limits where it cannot.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::backend::Backend;
use crate::support::client::{Outcome, free_port, loopback, probe, probe_from, served, timed};
use crate::support::headers::{TRUSTED, proxy_with, tlv, v2};
use crate::support::hello::to;
use crate::support::proxy::{Proxy, on_config};
use crate::support::wait_for;

/// Connections of one address by default.
const PER_IP: usize = 256;

#[test]
fn a_route_to_its_own_address_is_refused_at_load() {
    for (listen, to) in [("127.0.0.1:4430", "127.0.0.1:4430"), (":4430", "127.9.9.9:4430")] {
        let config = format!("listen = '{listen}'\n[[route]]\nsni = 'a.test'\nto = '{to}'\n");
        for verb in ["check", "run"] {
            let got = on_config(verb, &config, &[]);
            assert_eq!(got.code, Some(78), "{verb}: {got:?}");
            assert!(got.stderr.contains("would connect to itself"), "{verb}: {}", got.stderr);
        }
    }
}

/// Two proxies that trust each other and lead to each other: the first one knows its own connections again.
#[test]
fn a_loop_of_headers_ends_at_the_second_hop() {
    let backend = Backend::tagged("a");
    let [one, two] = [free_port(), free_port()];
    let start = |own: u16, other: u16| {
        Proxy::start(&format!(
            "listen = '127.0.0.1:{own}'\nadmin = '127.0.0.1:0'\nproxy_protocol = '127.0.0.1'\n\
             [[route]]\nsni = 'loop.test'\nto = '127.0.0.1:{other}'\nproxy_protocol = 'v2'\n\
             [[route]]\nsni = 'a.test'\nto = '{backend}'\n"
        ))
    };
    let mut proxies = [start(one, two), start(two, one)];
    let before = proxies.each_ref().map(|proxy| proxy.process.sockets());
    for round in 2..12 {
        let outcome = probe_from(loopback(round), proxies[0].addr(), &to("loop.test"));
        assert!(matches!(outcome, Outcome::Closed | Outcome::Reset), "{outcome:?}");
    }
    let logged = |proxy: &Proxy| proxy.access_log().len();
    wait_for("all to be told of", || logged(&proxies[0]) == 20 && logged(&proxies[1]) == 10);
    let ends = |proxy: &Proxy, reason: &str| {
        let lines = proxy.access_log();
        lines.iter().filter(|line| line["reason"] == reason && line["stage"] == "proxy").count()
    };
    assert_eq!((ends(&proxies[0], "loop"), ends(&proxies[1], "loop")), (10, 0));
    let line = proxies[0].access_line("a loop", |line| line["reason"] == "loop");
    assert_eq!((&line["cause"], &line["action"]), (&"policy".into(), &"reject".into()), "{line}");
    // It is told of as the client's, through every hop.
    let client = line["client"].as_str().unwrap();
    assert!(
        client.starts_with("127.0.0.") && line["via"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{line}"
    );
    proxies[0].wait_metric("portcullis_connections_rejected_total", &[("reason", "loop")], 10.0);
    for (proxy, before) in proxies.iter_mut().zip(before) {
        wait_for("sockets to be given back", || proxy.process.sockets() <= before);
        assert_eq!(probe_from(loopback(99), proxy.addr(), &to("a.test")), served("a"));
        proxy.assert_sound();
    }
}

/// However many they are, and whatever they lose on the way: so far goes no connection.
#[test]
fn a_connection_that_came_through_eight_is_one_of_a_loop() {
    let backend = Backend::tagged("a");
    let proxy = proxy_with("", "proxy_protocol = 'v2'", &backend);
    for (hops, expected) in [(0, served("a")), (7, served("a")), (8, Outcome::Closed), (900, Outcome::Closed)]
    {
        let value = [b"portcullis".as_slice(), &vec![7; hops * 8]].concat();
        let header = v2([192, 0, 2, 1], &tlv(0xe7, &value));
        let outcome = probe_from(TRUSTED, proxy.addr(), &[header, to("a.test")].concat());
        assert_eq!(outcome, expected, "{hops} hops");
    }
    assert_eq!(backend.hits(), 2);
    let torn = v2([192, 0, 2, 1], &tlv(0xe7, b"portcullis?"));
    assert_eq!(probe_from(TRUSTED, proxy.addr(), &[torn, to("a.test")].concat()), Outcome::Closed);
    proxy.access_line("the torn one", |line| line["reason"] == "proxy_header");
}

/// Others, who are served all the while.
fn canary(addr: SocketAddr, over: &AtomicBool) {
    while !over.load(Ordering::SeqCst) {
        let (took, outcome) = timed(|| probe_from(loopback(99), addr, &to("a.test")));
        assert_eq!(outcome, served("a"));
        assert!(took < Duration::from_secs(1), "the canary waited {took:?}");
    }
}

/// Between two proxies, and through a name of its own, nobody can see it: each round is one connection more from this
/// host's address, until its limit refuses one, which ends all of them.
#[test]
fn a_loop_ends_at_the_limit_by_address_and_costs_nobody_else() {
    let backend = Backend::tagged("a");
    let [one, two] = [free_port(), free_port()];
    let start = |own: u16, other: u16| {
        Proxy::start(&format!(
            "listen = '127.0.0.1:{own}'\nadmin = '127.0.0.1:0'\n\
             [[route]]\nsni = 'loop.test'\nto = '127.0.0.1:{other}'\n\
             [[route]]\nsni = 'self.test'\nto = 'localhost:{own}'\n\
             [[route]]\nsni = 'a.test'\nto = '{backend}'\n"
        ))
    };
    let mut proxies = [start(one, two), start(two, one)];
    let before = proxies.each_ref().map(|proxy| proxy.process.sockets());
    let over = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Ordering::SeqCst) {
                most = proxies.iter().map(|proxy| proxy.process.sockets()).fold(most, usize::max);
            }
            most
        });
        let canary = scope.spawn(|| canary(proxies[0].addr(), &over));
        for round in 0..6 {
            for name in ["loop.test", "self.test"] {
                let outcome = probe_from(loopback(2 + round), proxies[0].addr(), &to(name));
                let refused = matches!(outcome, Outcome::Reset | Outcome::Closed | Outcome::Alert(80));
                assert!(refused, "{name}: {outcome:?}");
            }
        }
        over.store(true, Ordering::SeqCst);
        canary.join().unwrap();
        watch.join().unwrap()
    });
    println!("{most} sockets of one proxy at most");
    // Each connection has two; beside them, the clients' own and their backends'.
    assert!(most <= before[0].max(before[1]) + 2 * PER_IP + 64, "{most} sockets");
    for (proxy, before) in proxies.iter_mut().zip(before) {
        wait_for("all of them to end", || proxy.process.sockets() <= before + 2);
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
        proxy.assert_sound();
    }
    let refused = |proxy: &Proxy| {
        proxy.metrics().sum("portcullis_connections_rejected_total", &[("reason", "connection_limit")])
    };
    assert!(proxies.iter().map(refused).sum::<f64>() >= 12.0, "a loop ended otherwise");
}
