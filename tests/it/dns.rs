//! Backends by name: a real nameserver whose answers change, stop and come late.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::support::backend::Backend;
use crate::support::client::{Outcome, held, loopback, probe, served, timed};
use crate::support::dns::{FOLLOW, assert_served, await_outcome, proxy_asking};
use crate::support::hello::to;
use crate::support::named::Named;
use crate::support::netns::{Host, with_hosts};
use crate::support::proxy::Proxy;
use crate::support::{UNLIMITED, until};

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
    let at = named.addr();
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
    let _back = Named::at(at, "svc IN A 127.0.0.11\n");
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

#[test]
fn a_name_that_is_said_not_to_exist_keeps_its_addresses_which_is_told() {
    let (one, two) = two_backends();
    let mut named = Named::start(&[("svc", loopback(11))]);
    let proxy = proxy_to("svc", one.addr().port(), &named);
    await_outcome(&proxy, &served("one"));
    // No such name, and then a name without an address.
    for zone in ["", "svc IN TXT \"moved\"\n"] {
        named.replace_zone(zone);
        let negative = || proxy.metrics().sum("portcullis_dns_lookups_total", &[("result", "negative")]);
        let before = negative();
        until("answers that there is nothing", FOLLOW, || (negative() >= before + 2.0).then_some(()));
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("one"));
        proxy.wait_metric("portcullis_dns_stale_names", &[], 1.0);
        named.replace(&[("svc", loopback(12))]);
        await_outcome(&proxy, &served("two"));
        proxy.wait_metric("portcullis_dns_stale_names", &[], 0.0);
        named.replace(&[("svc", loopback(11))]);
        await_outcome(&proxy, &served("one"));
    }
    assert!(proxy.metrics().sum("portcullis_dns_lookup_duration_seconds_count", &[]) >= 6.0);
    drop(two);
}

#[test]
fn the_last_addresses_are_given_up_when_their_time_is_over() {
    let one = Backend::tagged_at(SocketAddr::from((loopback(14), 0)), "one");
    let named = Named::start(&[("svc", loopback(14))]);
    // A look-up takes longer than the last addresses may be used.
    let settings = "timeout = '2s', min_ttl = '1s', stale_max = '1s'";
    let proxy = proxy_asking(named.addr(), settings, &format!("svc.backend.test:{}", one.addr().port()));
    await_outcome(&proxy, &served("one"));
    let mut first = held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test"));
    named.stand_still();
    let (took, ()) = timed(|| await_outcome(&proxy, &Outcome::Alert(80)));
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert_served(&mut first);
    proxy.wait_metric("portcullis_dns_stale_names", &[], 0.0);
    named.go_on();
    await_outcome(&proxy, &served("one"));
}

#[test]
fn one_family_is_asked_for_on_request() {
    let v4 = Backend::tagged_at(SocketAddr::from((loopback(15), 0)), "v4");
    let v6 = Backend::tagged_at(SocketAddr::new("::1".parse().unwrap(), v4.addr().port()), "v6");
    let named = Named::with_zone("svc IN A 127.0.0.15\nsvc IN AAAA ::1\n");
    let settings = |family| {
        format!(
            "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}\
             dns = {{ servers = ['{}'], family = '{family}', max_ttl = '1s' }}\n\
             [[route]]\nsni = 'a.test'\nto = 'svc.backend.test:{}'\n",
            named.addr(),
            v4.addr().port()
        )
    };
    let proxy = Proxy::start(&settings("ipv6"));
    let only = |tag: &str| (0..10).all(|_| probe(proxy.addr(), &to("a.test")) == served(tag));
    until("IPv6", FOLLOW, || only("v6").then_some(()));
    proxy.reconfigure(&settings("ipv4"));
    until("IPv4", FOLLOW, || only("v4").then_some(()));
    proxy.reconfigure(&settings("both"));
    await_outcome(&proxy, &served("v6"));
    drop(v6);
    await_outcome(&proxy, &served("v4"));
}

/// In a network where nameservers can be on port 53, and with files of the system that are the test's own.
#[test]
fn the_files_of_the_system_are_read_again_when_they_change() {
    with_hosts(|| {
        let host = Host::new();
        // BIND listens on addresses that an interface has.
        host.execute("ip address add 127.0.0.2/8 dev lo", "");
        host.run(|| {
            let port = 8443;
            let backend = |last, tag| Backend::tagged_at(SocketAddr::from((loopback(last), port)), tag);
            let backends = [backend(11, "one"), backend(12, "two"), backend(13, "three")];
            let dir = tempfile::tempdir().unwrap();
            let (resolv, hosts) = (dir.path().join("resolv.conf"), dir.path().join("hosts"));
            std::fs::write(&resolv, "nameserver 127.0.0.1\n").unwrap();
            std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
            let _one = Named::at(SocketAddr::from((loopback(1), 53)), "svc IN A 127.0.0.11\n");
            let mut two = Named::at(SocketAddr::from((loopback(2), 53)), "svc IN A 127.0.0.12\n");
            let mount = format!(
                "mount --bind {} /etc/resolv.conf && mount --bind {} /etc/hosts && exec \"$@\"",
                resolv.display(),
                hosts.display()
            );
            let proxy = Proxy::start_under(
                &["unshare", "--mount", "sh", "-c", &mount, "sh"],
                &format!(
                    "listen = '127.0.0.1:0'\n{UNLIMITED}dns = {{ max_ttl = '1s', timeout = '500ms' }}\n\
                     [[route]]\nsni = 'a.test'\nto = 'svc.backend.test:{port}'\n"
                ),
            );
            await_outcome(&proxy, &served("one"));
            std::fs::write(&resolv, "nameserver 127.0.0.2\n").unwrap();
            await_outcome(&proxy, &served("two"));
            // One that says nothing of use changes nothing, and is told once.
            std::fs::write(&resolv, "# to be written\n").unwrap();
            let told = || proxy.logged("the system's DNS configuration cannot be used; the one before stays");
            until("a line about the bad file", FOLLOW, || (told().len() == 1).then_some(()));
            two.replace(&[("svc", loopback(11))]);
            await_outcome(&proxy, &served("one"));
            std::fs::write(&hosts, "127.0.0.13 svc.backend.test\n").unwrap();
            std::fs::write(&resolv, "nameserver 127.0.0.2\n").unwrap();
            await_outcome(&proxy, &served("three"));
            assert_eq!(told().len(), 1);
            drop(backends);
        });
    });
}
