//! Names with addresses of both families (RFC 8305): where the way for one of them is broken, the other one serves.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::support::backend::{Backend, Recorder};
use crate::support::client::{Outcome, free_port, held, probe, served, timed};
use crate::support::dns::{assert_served, await_outcome, proxy_asking};
use crate::support::hello::to;
use crate::support::named::Named;
use crate::support::netns::{Host, with_hosts};
use crate::support::proxy::Proxy;
use crate::support::{SOON, until};

const SETTINGS: &str = "timeout = '500ms'";

/// A host with a nameserver and a name that is both loopback addresses.
fn named(host: &Host) -> Named {
    host.run(|| Named::with_zone("dual IN A 127.0.0.1\ndual IN AAAA ::1\n"))
}

fn proxy_to(host: &Host, named: &Named, port: u16, keys: &str) -> Proxy {
    host.run(|| proxy_asking(named.addr(), SETTINGS, &format!("dual.backend.test:{port}'\n{keys}\n#'")))
}

fn backends(host: &Host) -> (u16, Backend, Backend) {
    host.run(|| {
        let port = free_port();
        let v4 = Backend::tagged_at(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "v4");
        (port, Backend::tagged_at(SocketAddr::from((Ipv6Addr::LOCALHOST, port)), "v6"), v4)
    })
}

/// From now on nothing answers connections to `port` by IPv6.
fn break_v6(host: &Host, port: u16) {
    host.filter(&format!(
        "table inet broken {{ chain in {{ type filter hook input priority 0;\n\
         ip6 nexthdr tcp tcp dport {port} tcp flags & (syn | ack) == syn drop; }}\n}}\n"
    ));
}

#[test]
fn ipv6_serves_while_it_works() {
    with_hosts(|| {
        let host = Host::new();
        let (named, (port, v6, v4)) = (named(&host), backends(&host));
        let proxy = proxy_to(&host, &named, port, "");
        host.run(|| {
            await_outcome(&proxy, &served("v6"));
            for _ in 0..20 {
                assert_eq!(probe(proxy.addr(), &to("a.test")), served("v6"));
            }
        });
        assert_eq!((v6.hits() > 20, v4.hits()), (true, 0));
    });
}

#[test]
fn behind_a_broken_family_the_other_one_is_connected_to_after_a_quarter_of_a_second() {
    with_hosts(|| {
        let host = Host::new();
        let (named, (port, v6, _v4)) = (named(&host), backends(&host));
        // Never passed over: each connection finds out for itself.
        let proxy = proxy_to(&host, &named, port, "eject = 'off'");
        host.run(|| await_outcome(&proxy, &served("v6")));
        break_v6(&host, port);
        let before = v6.hits();
        let times: Vec<_> = (0..6)
            .map(|_| {
                let (took, outcome) = host.run(|| timed(|| probe(proxy.addr(), &to("a.test"))));
                assert_eq!(outcome, served("v4"));
                assert!(took >= Duration::from_millis(250) && took < Duration::from_secs(2), "{took:?}");
                took
            })
            .collect();
        // The clock of deadlines turns every 50 ms.
        assert!(times.iter().min().unwrap() < &Duration::from_millis(400), "{times:?}");
        assert_eq!(v6.hits(), before);
        // The attempts that lost have gone, and the backend's room with them.
        let active = || proxy.metrics().sum("portcullis_upstream_connections_active", &[]);
        until("no attempt under way", SOON, || host.run(|| active() < 0.5).then_some(()));
    });
}

#[test]
fn a_family_that_leads_nowhere_is_passed_over_after_a_few_connections() {
    with_hosts(|| {
        let host = Host::new();
        let (named, (port, _v6, _v4)) = (named(&host), backends(&host));
        let proxy = proxy_to(&host, &named, port, "eject = { failures = 3, for = '1m' }");
        host.run(|| await_outcome(&proxy, &served("v6")));
        break_v6(&host, port);
        host.run(|| {
            for _ in 0..4 {
                assert_eq!(probe(proxy.addr(), &to("a.test")), served("v4"));
            }
            until("connections without a head start", SOON, || {
                let (took, outcome) = timed(|| probe(proxy.addr(), &to("a.test")));
                assert_eq!(outcome, served("v4"));
                (took < Duration::from_millis(200)).then_some(())
            });
        });
    });
}

#[test]
fn a_family_that_refuses_costs_no_time_and_no_retry() {
    with_hosts(|| {
        let host = Host::new();
        let named = named(&host);
        let (port, v4) = host.run(|| {
            let port = free_port();
            (port, Backend::tagged_at(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "v4"))
        });
        let proxy = proxy_to(&host, &named, port, "eject = 'off'");
        host.run(|| {
            await_outcome(&proxy, &served("v4"));
            let times: Vec<_> = (0..10)
                .map(|_| {
                    let (took, outcome) = timed(|| probe(proxy.addr(), &to("a.test")));
                    assert_eq!(outcome, served("v4"));
                    took
                })
                .collect();
            assert!(times.iter().min().unwrap() < &Duration::from_millis(200), "{times:?}");
            assert!(proxy.metrics().sum("portcullis_upstream_retries_total", &[]).abs() < 0.5);
        });
        assert!(v4.hits() > 10);
    });
}

/// What a client has said goes to the one that was connected first, whole and once.
#[test]
fn a_race_sends_the_first_bytes_once() {
    with_hosts(|| {
        let host = Host::new();
        let named = named(&host);
        let (recorder, port) = host.run(|| {
            let recorder = Recorder::new("v4");
            let port = recorder.backend.addr().port();
            (recorder, port)
        });
        // Of the other family somebody listens, and answers no handshake.
        break_v6(&host, port);
        let _v6 = host.run(|| Backend::tagged_at(SocketAddr::from((Ipv6Addr::LOCALHOST, port)), "v6"));
        let proxy = proxy_to(&host, &named, port, "eject = 'off'");
        host.run(|| {
            await_outcome(&proxy, &served("v4"));
            let hello = to("a.test");
            let mut stream = held(Ipv4Addr::LOCALHOST, proxy.addr(), &hello);
            assert_served(&mut stream);
            drop(stream);
            until("what came of it", SOON, || {
                let received = recorder.received();
                let whole = |bytes: &Vec<u8>| bytes.starts_with(&hello) && bytes.ends_with(b"there?");
                received.iter().any(whole).then_some(())
            });
            // Each of them began with a hello, and none with nothing.
            assert!(recorder.received().iter().all(|bytes| bytes.len() >= hello.len()));
            assert!(matches!(probe(proxy.addr(), &hello), Outcome::Served(_)));
        });
    });
}
