//! `[[limit]]`: what counts as one source, where a limit acts, and what its client gets to see.

use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::support::backend::Backend;
use crate::support::client::{Outcome, connect_from, held, loopback, outcome, probe_from, served, timed};
use crate::support::hello::to;
use crate::support::netns::{Host, with_hosts};
use crate::support::proxy::Proxy;
use crate::support::{Random, SOON, UNLIMITED, until, wait_for};

const ME: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Long enough to see that nothing comes.
const QUIET: Duration = Duration::from_millis(300);

fn proxy_with(limits: &str, backend: &Backend) -> Proxy {
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}\
         [[route]]\nname = 'a'\nsni = 'a.test'\nto = '{backend}'\n\
         [[route]]\nname = 'b'\nsni = 'b.test'\nto = '{backend}'\n{limits}"
    ))
}

fn probe(source: Ipv4Addr, proxy: &Proxy, name: &str) -> Outcome {
    probe_from(source, proxy.addr(), &to(name))
}

/// What a client sees that says nothing.
fn mute(source: Ipv4Addr, addr: SocketAddr) -> Outcome {
    probe_from(source, addr, b"")
}

#[test]
fn networks_are_limited_as_one_source() {
    let backend = Backend::tagged("a");
    let proxy = proxy_with("[[limit]]\nname = 'net'\nper = 'network'\nconnections = 2\n", &backend);
    let at = |c: u8, d: u8| Ipv4Addr::new(127, 0, c, d);
    let hello = to("a.test");
    let open = [held(at(1, 1), proxy.addr(), &hello), held(at(1, 2), proxy.addr(), &hello)];
    assert_eq!(probe(at(1, 3), &proxy, "a.test"), Outcome::Reset, "the third of the /24");
    assert_eq!(probe(at(2, 3), &proxy, "a.test"), served("a"));
    let line = proxy.access_line("refused by the limit", |line| line["limit"] == "net");
    assert_eq!(
        (&line["reason"], &line["cause"], &line["stage"], &line["action"]),
        (&"connection_limit".into(), &"limit".into(), &"accept".into(), &"reject".into())
    );
    proxy.wait_metric("portcullis_limit_rejections_total", &[("limit", "net")], 1.0);
    proxy.wait_metric("portcullis_connections_rejected_total", &[("reason", "connection_limit")], 1.0);
    proxy.wait_metric("portcullis_ratelimit_keys", &[("limit", "net")], 1.0);
    drop(open);
    until("the place to be free", SOON, || (probe(at(1, 3), &proxy, "a.test") == served("a")).then_some(()));
}

#[test]
fn all_is_one_source_and_every_limit_keeps_its_own_count() {
    let backend = Backend::tagged("a");
    let limits = "[[limit]]\nname = 'all'\nper = 'all'\nrate = '3/h'\n\
                  [[limit]]\nname = 'each'\nrate = '2/h'\n";
    let proxy = proxy_with(limits, &backend);
    let from = |last| probe(loopback(last), &proxy, "a.test");
    assert_eq!([from(1), from(1)], [served("a"), served("a")]);
    for _ in 0..5 {
        assert_eq!(from(1), Outcome::Reset, "two an hour");
    }
    // What the refused ones had taken of the other limit was given back.
    assert_eq!(from(2), served("a"));
    assert_eq!(from(3), Outcome::Reset, "three an hour for all");
    proxy.wait_metric("portcullis_limit_rejections_total", &[("limit", "each")], 5.0);
    proxy.wait_metric("portcullis_limit_rejections_total", &[("limit", "all")], 1.0);
}

/// A client with the IPv6 address `source`.
fn probe_v6(source: &str, addr: SocketAddr, hello: &[u8]) -> Outcome {
    let source: Ipv6Addr = source.parse().unwrap();
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap_or_else(|e| panic!("{source}: {e}"));
    match socket.connect_timeout(&addr.into(), SOON) {
        Ok(()) => outcome(&mut TcpStream::from(socket), hello, SOON),
        // Refused as soon as it was there.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Outcome::Reset,
        Err(error) => panic!("{source} to {addr}: {error}"),
    }
}

#[test]
fn ipv6_clients_count_by_their_prefix() {
    with_hosts(|| {
        let host = Host::new();
        host.execute("ip -6 route add local 2001:db8::/32 dev lo", "");
        // NAT64's prefix: its clients are IPv4 clients.
        host.execute("ip -6 route add local 64:ff9b::/96 dev lo", "");
        host.run(|| {
            // A client may have any address of these networks, though the host has none of them.
            std::fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1").expect("a writable /proc/sys/net");
            let backend = Backend::tagged("a");
            let limit = |name: &str, per: &str, count: u32| {
                format!("[[limit]]\nname = '{name}'\nper = {per}\nrate = '{count}/h'\nlistener = '{name}'\n")
            };
            let listener = |name: &str| format!("[[listener]]\nname = '{name}'\nbind = '[::]:0'\n");
            let names = ["ip", "network", "site", "host"];
            let listeners: String = names.map(listener).concat();
            let limits = [
                limit("ip", "'ip'", 1),
                limit("network", "'network'", 1),
                limit("site", "'site'", 1),
                limit("host", "{ ipv4 = 32, ipv6 = 128 }", 1),
            ];
            let proxy = Proxy::start(&format!(
                "{UNLIMITED}{listeners}{}[[route]]\nsni = 'a.test'\nto = '{backend}'\n",
                limits.concat()
            ));
            let hello = to("a.test");
            for (listener, first, same, other) in [
                ("host", "2001:db8::1", "2001:db8::1", "2001:db8::2"),
                ("ip", "2001:db8:1::1", "2001:db8:1::ffff:2", "2001:db8:1:1::1"),
                ("network", "2001:db8:2::1", "2001:db8:2:ff::1", "2001:db8:2:100::1"),
                ("site", "2001:db8:3::1", "2001:db8:3:ffff::1", "2001:db8:4::1"),
                ("ip", "64:ff9b::192.0.2.1", "64:ff9b::192.0.2.1", "64:ff9b::192.0.2.2"),
            ] {
                let port = proxy.listener(listener).port();
                let addr = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
                let got = [first, same, other].map(|source| probe_v6(source, addr, &hello));
                assert_eq!(got, [served("a"), Outcome::Reset, served("a")], "per {listener}: {first}");
            }
        });
    });
}

/// Who has a /64 has one source, however many addresses of it he uses (L9).
#[test]
fn ten_thousand_addresses_of_one_network_are_one_source() {
    with_hosts(|| {
        const SOURCES: usize = 10_000;
        const RATE: usize = 20;
        let host = Host::new();
        host.execute("ip -6 route add local 2001:db8::/32 dev lo", "");
        host.run(|| {
            std::fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1").expect("a writable /proc/sys/net");
            let backend = Backend::tagged("a");
            let mut proxy = Proxy::start(&format!(
                "listen = '[::]:0'\nadmin = '127.0.0.1:0'\nrate_limit = {{ per_ip = '{RATE}/h' }}\n{UNLIMITED}\
                 [[route]]\nsni = 'a.test'\nto = '{backend}'\n"
            ));
            let (addr, hello) =
                (SocketAddr::from((Ipv6Addr::LOCALHOST, proxy.addr().port())), to("a.test"));
            let mut random = Random::new(9);
            let addresses: Vec<u64> = (0..SOURCES).map(|_| random.next()).collect();
            let before = proxy.process.rss();
            for address in addresses {
                let [a, b, c, d] = [48, 32, 16, 0].map(|shift| (address >> shift) & 0xffff);
                let got = probe_v6(&format!("2001:db8:0:1:{a:x}:{b:x}:{c:x}:{d:x}"), addr, &hello);
                assert!(got == served("a") || got == Outcome::Reset, "{got:?}");
            }
            assert_eq!(backend.hits(), RATE);
            assert_eq!(probe_v6("2001:db8:0:2::1", addr, &hello), served("a"), "the network beside it");
            let grown = proxy.process.rss().saturating_sub(before);
            assert!(grown < 4 << 20, "{grown} bytes");
            proxy.assert_sound();
        });
    });
}

#[test]
fn each_action_as_its_client_sees_it() {
    let backend = Backend::tagged("a");
    let listener = |name: &str| format!("[[listener]]\nname = '{name}'\nbind = '127.0.0.1:0'\n");
    let limit = |name: &str| {
        format!("[[limit]]\nname = '{name}'\nrate = '1/h'\nlistener = '{name}'\naction = '{name}'\n")
    };
    let names = ["reset", "close", "drop", "tarpit"];
    let proxy = Proxy::start(&format!(
        "admin = '127.0.0.1:0'\n{UNLIMITED}{}{}tarpit_for = '1s'\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n",
        names.map(listener).concat(),
        names.map(limit).concat(),
    ));
    for (name, seen) in [
        ("reset", Outcome::Reset),
        ("close", Outcome::Closed),
        // On loopback its one hop brings the reset that hides the end from farther clients.
        ("drop", Outcome::Reset),
    ] {
        let addr = proxy.listener(name);
        assert_eq!(probe_from(ME, addr, &to("a.test")), served("a"), "{name}");
        assert_eq!(mute(ME, addr), seen, "{name}");
        assert_eq!(probe_from(loopback(2), addr, &to("a.test")), served("a"), "another one at {name}");
    }
    let addr = proxy.listener("tarpit");
    assert_eq!(probe_from(ME, addr, &to("a.test")), served("a"));
    let mut stuck = connect_from(ME, addr);
    stuck.write_all(&to("a.test")).unwrap();
    let (took, end) = timed(|| outcome(&mut stuck, b"", SOON));
    assert_eq!(end, Outcome::Reset, "in the end");
    assert!(took >= Duration::from_millis(800) && took < Duration::from_secs(4), "{took:?}");
    for name in names {
        proxy.wait_metric("portcullis_limit_rejections_total", &[("limit", name)], 1.0);
        proxy.access_line(name, |line| line["limit"] == name && line["reason"] == "rate_limit");
    }
    assert_eq!(backend.hits(), 7);
}

#[test]
fn what_is_delayed_is_served_in_time_or_reset() {
    let backend = Backend::tagged("a");
    let limits = "[[limit]]\nname = 'slow'\nrate = '4/s'\nburst = 1\naction = 'delay'\ndelay_max = '2s'\n";
    let proxy = proxy_with(limits, &backend);
    let start = Instant::now();
    let got = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(|| probe(ME, &proxy, "a.test"))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(got, vec![served("a"); 4], "all of them, late");
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(700), "four in {took:?}, at four a second and one at once");
    assert_eq!(backend.hits(), 4);
    let refused = || proxy.metrics().sum("portcullis_limit_rejections_total", &[]);
    assert!(refused().abs() < 0.5, "what is only put off is not refused");

    let never = proxy_with(
        "[[limit]]\nname = 'never'\nrate = '1/h'\naction = 'delay'\ndelay_max = '500ms'\n",
        &backend,
    );
    assert_eq!(probe(ME, &never, "a.test"), served("a"));
    let (took, end) = timed(|| probe(ME, &never, "a.test"));
    assert_eq!(end, Outcome::Reset);
    assert!(took >= Duration::from_millis(400), "{took:?}");
    never.access_line("refused in the end", |line| line["limit"] == "never");
}

#[test]
fn few_are_held_at_once_and_the_next_one_is_reset() {
    let backend = Backend::tagged("a");
    // An eighth of sixteen.
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n\
         connection_limit = {{ per_ip = 'off', before_hello = 'off', total = 16 }}\n\
         [[route]]\nsni = 'a.test'\nto = '{backend}'\n\
         [[limit]]\nname = 'pit'\nrate = '1/h'\naction = 'tarpit'\ntarpit_for = '1m'\n"
    ));
    assert_eq!(probe(ME, &proxy, "a.test"), served("a"));
    let mut held = [connect_from(ME, proxy.addr()), connect_from(ME, proxy.addr())];
    proxy.wait_metric("portcullis_limit_rejections_total", &[("limit", "pit")], 2.0);
    assert_eq!(mute(ME, proxy.addr()), Outcome::Reset, "there is no third place");
    for stream in &mut held {
        assert_eq!(outcome(stream, &to("a.test"), QUIET), Outcome::Open, "held and unread");
    }
    assert_eq!(probe(loopback(2), &proxy, "a.test"), served("a"), "others are served");
    proxy.process.signal(rustix::process::Signal::TERM);
    let (took, end) = timed(|| outcome(&mut held[0], b"", SOON));
    assert!(end != Outcome::Open && took < SOON, "{end:?} after {took:?}: draining waits for none of them");
}

#[test]
fn a_limit_is_for_its_listener_or_its_route() {
    let backend = Backend::tagged("a");
    let proxy = Proxy::start(&format!(
        "admin = '127.0.0.1:0'\n{UNLIMITED}\
         [[listener]]\nname = 'one'\nbind = '127.0.0.1:0'\n[[listener]]\nname = 'two'\nbind = '127.0.0.1:0'\n\
         [[route]]\nname = 'a'\nsni = 'a.test'\nto = '{backend}'\n\
         [[route]]\nname = 'b'\nsni = 'b.test'\nto = '{backend}'\n\
         [[limit]]\nname = 'of-one'\nconnections = 1\nlistener = 'one'\n\
         [[limit]]\nname = 'of-a'\nconnections = 1\nroute = 'a'\naction = 'close'\n\
         [[limit]]\nname = 'of-b'\nconnections = 1\nroute = 'b'\naction = 'delay'\ndelay_max = '5s'\n"
    ));
    let (one, two) = (proxy.listener("one"), proxy.listener("two"));
    let open = held(ME, one, &to("a.test"));
    assert_eq!(mute(ME, one), Outcome::Reset, "before a byte is read");
    assert_eq!(probe_from(ME, two, &to("a.test")), Outcome::Closed, "the route's limit is for both");
    let line = proxy.access_line("refused by its route's limit", |line| line["limit"] == "of-a");
    assert_eq!(
        (&line["stage"], &line["route"], &line["reason"], &line["action"], &line["sni"]),
        (&"route".into(), &"a".into(), &"connection_limit".into(), &"reject".into(), &"a.test".into())
    );
    let other = held(ME, two, &to("b.test"));
    std::thread::scope(|scope| {
        let late = scope.spawn(|| probe_from(ME, two, &to("b.test")));
        assert_eq!(probe_from(loopback(2), two, &to("b.test")), served("a"), "another address does not wait");
        assert!(!late.is_finished(), "it waits for the first to end");
        drop(other);
        assert_eq!(late.join().unwrap(), served("a"));
    });
    drop(open);
    wait_for("both places to be free", || probe_from(ME, one, &to("a.test")) == served("a"));
    assert_eq!(backend.hits(), 5);
}
