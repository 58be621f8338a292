//! Backends by the name of a service (SRV, RFC 2782), whose records a real nameserver has.

use std::net::{Ipv4Addr, SocketAddr};

use crate::support::backend::Backend;
use crate::support::client::{Outcome, held, loopback, probe, served};
use crate::support::dns::{FOLLOW, assert_served, await_outcome, proxy_asking};
use crate::support::hello::to;
use crate::support::named::Named;
use crate::support::proxy::Proxy;
use crate::support::until;

const SETTINGS: &str = "timeout = '500ms', min_ttl = '1s'";

fn backend(last: u8, tag: &str) -> Backend {
    Backend::tagged_at(SocketAddr::from((loopback(last), 0)), tag)
}

/// A line of a zone for the service, with the backend's port.
fn srv(priority: u16, weight: u16, backend: &Backend, target: &str) -> String {
    format!("_db._tcp IN SRV {priority} {weight} {} {target}\n", backend.addr().port())
}

fn proxy_to_service(named: &Named) -> Proxy {
    proxy_asking(named.addr(), SETTINGS, "srv+_db._tcp.backend.test")
}

#[test]
fn hosts_and_ports_are_taken_from_the_records_and_followed_when_they_change() {
    let (one, two) = (backend(21, "one"), backend(22, "two"));
    let hosts = "one IN A 127.0.0.21\ntwo IN A 127.0.0.22\n";
    let mut named = Named::with_zone(&format!("{hosts}{}", srv(0, 0, &one, "one")));
    let proxy = proxy_to_service(&named);
    await_outcome(&proxy, &served("one"));
    let mut first = held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test"));
    named.replace_zone(&format!("{hosts}{}", srv(0, 0, &two, "two")));
    await_outcome(&proxy, &served("two"));
    for _ in 0..10 {
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("two"), "and not back again");
    }
    assert_served(&mut first);
    // The same host at another port.
    let three = backend(22, "three");
    named.replace_zone(&format!("{hosts}{}", srv(0, 0, &three, "two")));
    await_outcome(&proxy, &served("three"));
    // The same record, whose host has moved.
    let moved = Backend::tagged_at(SocketAddr::from((loopback(23), three.addr().port())), "moved");
    named.replace_zone(&format!("two IN A 127.0.0.23\n{}", srv(0, 0, &moved, "two")));
    await_outcome(&proxy, &served("moved"));
    assert_served(&mut first);
}

#[test]
fn the_first_priority_is_used_as_long_as_it_can_be_reached() {
    let (main, spare) = (backend(24, "main"), backend(25, "spare"));
    let records = [srv(10, 1, &main, "main"), srv(20, 9, &spare, "spare")].concat();
    let named = Named::with_zone(&format!("main IN A 127.0.0.24\nspare IN A 127.0.0.25\n{records}"));
    let proxy = proxy_to_service(&named);
    await_outcome(&proxy, &served("main"));
    for _ in 0..20 {
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("main"));
    }
    drop(main);
    await_outcome(&proxy, &served("spare"));
}

#[test]
fn a_target_outside_the_answer_is_asked_for_and_one_that_does_not_exist_left_out() {
    let (one, v6) = (backend(26, "one"), Backend::tagged_at("[::1]:0".parse().unwrap(), "v6"));
    let records = [srv(0, 1, &one, "alias"), srv(0, 1, &v6, "six"), srv(0, 1, &one, "nowhere")].concat();
    // Nameservers add no addresses of an alias to an answer.
    let hosts = "host IN A 127.0.0.26\nalias IN CNAME host\nsix IN AAAA ::1\n";
    let named = Named::with_zone(&format!("{hosts}{records}"));
    let proxy = proxy_to_service(&named);
    await_outcome(&proxy, &served("one"));
    await_outcome(&proxy, &served("v6"));
    for _ in 0..10 {
        assert!(matches!(probe(proxy.addr(), &to("a.test")), Outcome::Served(_)));
    }
    let failures = proxy.metrics().sum("portcullis_upstream_connect_failures_total", &[]);
    assert!(failures.abs() < 0.5, "{failures}");
}

#[test]
fn a_service_that_says_it_is_not_there_has_no_backends() {
    let one = backend(27, "one");
    let mut named = Named::with_zone(&format!("one IN A 127.0.0.27\n{}", srv(0, 0, &one, "one")));
    let proxy = proxy_to_service(&named);
    await_outcome(&proxy, &served("one"));
    let mut first = held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test"));
    named.replace_zone("_db._tcp IN SRV 0 0 0 .\n");
    await_outcome(&proxy, &Outcome::Alert(80));
    assert_served(&mut first);
    named.replace_zone(&format!("one IN A 127.0.0.27\n{}", srv(0, 0, &one, "one")));
    await_outcome(&proxy, &served("one"));
}

#[test]
fn the_api_tells_the_addresses_of_a_service() {
    let one = backend(28, "one");
    let named = Named::with_zone(&format!("one IN A 127.0.0.28\n{}", srv(0, 0, &one, "one")));
    let proxy = proxy_to_service(&named);
    let told = until("an address", FOLLOW, || {
        let (status, body) = proxy.api("GET", "upstreams", "");
        assert_eq!(status, 200, "{body}");
        body.to_string().contains(&one.addr().to_string()).then_some(body.to_string())
    });
    assert!(told.contains("srv+_db._tcp.backend.test"), "{told}");
}
