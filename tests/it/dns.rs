//! Backends by name: a real nameserver whose answers change, stop and come late.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::support::backend::Backend;
use crate::support::client::{Outcome, held, loopback, probe, served, timed};
use crate::support::dns::{FOLLOW, assert_served, await_outcome, proxy_asking};
use crate::support::hello::to;
use crate::support::named::Named;
use crate::support::proxy::Proxy;
use crate::support::until;

/// Two backends on one port of two addresses.
fn two_backends() -> (Backend, Backend) {
    let one = Backend::tagged_at(SocketAddr::from((loopback(11), 0)), "one");
    let two = Backend::tagged_at(SocketAddr::from((loopback(12), one.addr().port())), "two");
    (one, two)
}

fn proxy_to(name: &str, port: u16, named: &Named) -> Proxy {
    let settings = "timeout = '500ms', min_ttl = '1s'";
    proxy_asking(named.addr(), settings, &format!("{name}.backend.test:{port}"))
}

#[test]
fn changed_addresses_are_followed_and_the_last_ones_outlive_the_nameserver() {
    let (one, two) = two_backends();
    let mut named = Named::start(&[("svc", loopback(11))]);
    let proxy = proxy_to("svc", one.addr().port(), &named);
    await_outcome(&proxy, &served("one"));
    let mut first = held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test"));
    named.replace(&[("svc", loopback(12))]);
    await_outcome(&proxy, &served("two"));
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("two"), "and not back again");
    assert_served(&mut first);
    let port = named.addr().port();
    drop(named);
    // Several times the life of the last answer, in which refreshing it fails.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        let (took, outcome) = timed(|| probe(proxy.addr(), &to("a.test")));
        assert_eq!(outcome, served("two"), "{:?} after the nameserver went away", start.elapsed());
        assert!(took < Duration::from_secs(1), "{took:?}");
        // The pace of a client; what is tested is that four seconds go by.
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(proxy.metrics().sum("portcullis_dns_lookups_total", &[("result", "failed")]) >= 1.0);
    let _back = Named::at(port, "svc IN A 127.0.0.11\n");
    await_outcome(&proxy, &served("one"));
    assert_served(&mut first);
    drop((one, two));
}

#[test]
fn all_addresses_of_a_name_take_turns() {
    let (one, two) = two_backends();
    let named = Named::start(&[("svc", loopback(11)), ("svc", loopback(12))]);
    let proxy = proxy_to("svc", one.addr().port(), &named);
    until("an answer", FOLLOW, || {
        matches!(probe(proxy.addr(), &to("a.test")), Outcome::Served(_)).then_some(())
    });
    for _ in 0..20 {
        assert!(matches!(probe(proxy.addr(), &to("a.test")), Outcome::Served(_)));
    }
    assert!(one.hits() >= 5 && two.hits() >= 5, "{} and {}", one.hits(), two.hits());
    drop(two);
}

#[test]
fn a_name_without_an_address_is_refused_at_once_and_served_once_it_has_one() {
    let one = Backend::tagged_at(SocketAddr::from((loopback(13), 0)), "late");
    let mut named = Named::start(&[("other", Ipv4Addr::LOCALHOST)]);
    let proxy = proxy_to("late", one.addr().port(), &named);
    let (took, outcome) = timed(|| probe(proxy.addr(), &to("a.test")));
    assert_eq!(outcome, Outcome::Alert(80));
    assert!(took < Duration::from_secs(2), "{took:?}");
    named.replace(&[("late", loopback(13))]);
    await_outcome(&proxy, &served("late"));
}

#[test]
fn a_nameserver_that_says_nothing_keeps_nobody_from_starting() {
    // Bound and never read: queries vanish.
    let silent = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let backend = Backend::tagged("by-address");
    let (took, proxy) = timed(|| {
        Proxy::start(&format!(
            "listen = '127.0.0.1:0'\ndns = {{ servers = ['{}'], timeout = '300ms' }}\n\
             [[route]]\nsni = 'a.test'\nto = 'svc.backend.test:443'\n[[route]]\nsni = 'b.test'\nto = '{backend}'\n",
            silent.local_addr().unwrap()
        ))
    });
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(probe(proxy.addr(), &to("b.test")), served("by-address"));
    let (took, outcome) = timed(|| probe(proxy.addr(), &to("a.test")));
    assert_eq!(outcome, Outcome::Alert(80));
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_nameserver_that_stands_still_costs_nothing_and_is_believed_when_it_answers_late() {
    let (one, two) = two_backends();
    let mut named = Named::start(&[("svc", loopback(11))]);
    let proxy = proxy_to("svc", one.addr().port(), &named);
    await_outcome(&proxy, &served("one"));
    named.replace(&[("svc", loopback(12))]);
    named.stand_still();
    let failed = || proxy.metrics().sum("portcullis_dns_lookups_total", &[("result", "failed")]);
    let before = failed();
    // Three tries of half a second each.
    until("a look-up that nobody answered", FOLLOW, || {
        let (took, outcome) = timed(|| probe(proxy.addr(), &to("a.test")));
        assert!(matches!(outcome, Outcome::Served(_)), "{outcome:?}");
        assert!(took < Duration::from_secs(1), "{took:?}");
        (failed() > before).then_some(())
    });
    // What it was asked long ago it answers now, too late, and then what it is asked again.
    named.go_on();
    await_outcome(&proxy, &served("two"));
    for _ in 0..10 {
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("two"));
    }
    drop(two);
}
