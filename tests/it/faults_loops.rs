//! Routes that lead back (L21): refused at load where that can be seen, not connected to where names or networks say so
//! later, ended where headers tell, and bounded by the limits where nobody can know.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::backend::Backend;
use crate::support::client::{Outcome, free_port, loopback, probe, probe_from, served, timed};
use crate::support::headers::{TRUSTED, proxy_with, tlv, v2};
use crate::support::hello::to;
use crate::support::named::Named;
use crate::support::netns::{Host, with_hosts};
use crate::support::proxy::{Proxy, on_config};
use crate::support::{SOON, until, wait_for};

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

/// That a client's connection came to nothing because its backend would have been the proxy itself.
fn assert_ends_in_a_loop(proxy: &Proxy, name: &str) {
    let addr = SocketAddr::from((loopback(1), proxy.addr().port()));
    assert_eq!(probe(addr, &to(name)), Outcome::Alert(80), "{name}");
    let line = proxy.access_line(name, |line| line["sni"] == name && line["reason"] == "loop");
    assert_eq!((&line["stage"], &line["cause"]), (&"connect".into(), &"policy".into()), "{line}");
}

#[test]
fn a_name_that_leads_to_its_own_listener_is_not_connected_to() {
    let backend = Backend::tagged("a");
    let named = Named::start(&[("self", loopback(1)), ("wide", loopback(7)), ("other", loopback(9))]);
    let [narrow, wide, later] = [free_port(), free_port(), free_port()];
    let config = |listen: &str| {
        format!(
            "listen = ['127.0.0.1:{narrow}', ':{wide}'{listen}]\nadmin = '127.0.0.1:0'\n\
             dns = {{ servers = ['{}'] }}\n\
             [[route]]\nsni = 'hosts.test'\nto = 'localhost:{narrow}'\n\
             [[route]]\nsni = 'self.test'\nto = 'self.backend.test:{narrow}'\n\
             [[route]]\nsni = 'wide.test'\nto = 'wide.backend.test:{wide}'\n\
             [[route]]\nsni = 'later.test'\nto = 'other.backend.test:{later}'\n\
             [[route]]\nname = 'both'\nsni = 'both.test'\nto = ['self.backend.test:{narrow}', '{backend}']\n",
            named.addr()
        )
    };
    let mut proxy = Proxy::start(&config(""));
    let before = proxy.process.sockets();
    for name in ["hosts.test", "self.test", "wide.test"] {
        assert_ends_in_a_loop(&proxy, name);
    }
    // Another backend serves, and this one counts as failed.
    for _ in 0..4 {
        assert_eq!(probe(proxy.addr(), &to("both.test")), served("a"));
    }
    let labels = [("upstream", "both"), ("reason", "loop")];
    assert!(proxy.metrics().sum("portcullis_upstream_connect_failures_total", &labels) >= 1.0);
    // Whoever listens there now: a stranger first, and then the proxy.
    let stranger = Backend::tagged_at((loopback(9), later).into(), "stranger");
    assert_eq!(probe(proxy.addr(), &to("later.test")), served("stranger"));
    drop(stranger);
    until("the port to be free", SOON, || std::net::TcpListener::bind((loopback(9), later)).ok());
    proxy.reconfigure(&config(&format!(", '127.0.0.9:{later}'")));
    assert_ends_in_a_loop(&proxy, "later.test");
    assert_eq!(probe((loopback(9), later).into(), &to("both.test")), served("a"), "it listens there");
    proxy.reconfigure(&config(""));
    let refused = probe(proxy.addr(), &to("later.test"));
    assert_eq!(refused, Outcome::Alert(80));
    proxy.access_line("nobody there", |line| line["sni"] == "later.test" && line["reason"] == "refused");
    wait_for("sockets to be given back", || proxy.process.sockets() <= before);
    proxy.assert_sound();
}

/// On a wildcard the kernel tells which addresses are this host's: also the second of a network, and one that comes later.
#[test]
fn a_wildcard_listener_is_known_by_any_address_of_the_host() {
    with_hosts(|| {
        let [host, other] = [Host::new(), Host::new()];
        Host::join((&host, Ipv4Addr::new(10, 0, 7, 1)), (&other, Ipv4Addr::new(10, 0, 7, 2)));
        for addr in ["10.0.7.3/24 dev net7", "fd00:7::1/128 dev lo"] {
            host.execute(&format!("ip address add {addr}"), "");
        }
        let config = ["10.0.7.1", "10.0.7.3", "[fd00:7::1]", "10.0.7.9"]
            .iter()
            .enumerate()
            .map(|(n, addr)| format!("[[route]]\nsni = 'r{n}.test'\nto = '{addr}:8443'\n"));
        let config: String = config.collect();
        let mut proxy = host.run(|| {
            Proxy::start(&format!(
                "listen = ':8443'\nadmin = '127.0.0.1:0'\ntimeouts = {{ connect = '300ms' }}\n{config}"
            ))
        });
        let at = SocketAddr::from((loopback(1), 8443));
        let looped = || {
            let lines = proxy.access_log();
            lines.iter().any(|line| line["sni"] == "r3.test" && line["reason"] == "loop")
        };
        host.run(|| {
            for name in ["r0.test", "r1.test", "r2.test"] {
                assert_ends_in_a_loop(&proxy, name);
            }
            assert_eq!(probe(at, &to("r3.test")), Outcome::Alert(80), "nobody has it");
        });
        assert!(!looped());
        // An address that moves to this host.
        host.execute("ip address add 10.0.7.9/24 dev net7", "");
        until("it to be noticed", SOON, || {
            host.run(|| probe(at, &to("r3.test")));
            looped().then_some(())
        });
        host.run(|| proxy.assert_sound());
    });
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

/// Between two proxies that tell each other nothing nobody can see it: each round is one connection more from this host's
/// address, until its limit refuses one, which ends all of them.
#[test]
fn a_loop_ends_at_the_limit_by_address_and_costs_nobody_else() {
    let backend = Backend::tagged("a");
    let [one, two] = [free_port(), free_port()];
    let start = |own: u16, other: u16| {
        Proxy::start(&format!(
            "listen = '127.0.0.1:{own}'\nadmin = '127.0.0.1:0'\n\
             [[route]]\nsni = 'loop.test'\nto = '127.0.0.1:{other}'\n\
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
        for round in 0..12 {
            let outcome = probe_from(loopback(2 + round), proxies[0].addr(), &to("loop.test"));
            let refused = matches!(outcome, Outcome::Reset | Outcome::Closed | Outcome::Alert(80));
            assert!(refused, "{outcome:?}");
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
