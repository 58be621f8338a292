//! Bans by rule: who is refused again and again is refused at once, for a time.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::support::backend::Backend;
use crate::support::client::{Outcome, connect_from, held, loopback, outcome, probe_from, served};
use crate::support::hello::to;
use crate::support::proxy::Proxy;
use crate::support::{SOON, UNLIMITED, until};

const ME: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// A record of type handshake with a message that no client begins with.
const MALFORMED: [u8; 9] = [22, 3, 1, 0, 4, 2, 0, 0, 0];

fn proxy_with(settings: &str, backend: &Backend) -> Proxy {
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{settings}\n[[route]]\nname = 'a'\nsni = 'a.test'\nto = '{backend}'\n"
    ))
}

fn probe(source: Ipv4Addr, proxy: &Proxy) -> Outcome {
    probe_from(source, proxy.addr(), &to("a.test"))
}

#[test]
fn malformed_hellos_earn_a_ban_that_ends() {
    let backend = Backend::tagged("a");
    let settings =
        format!("{UNLIMITED}exempt = '127.0.1.0/24'\nban = {{ after = 3, within = '1m', for = '2s' }}");
    let mut proxy = proxy_with(&settings, &backend);
    let guest = Ipv4Addr::new(127, 0, 1, 1);
    let start = Instant::now();
    for _ in 0..3 {
        assert_eq!(probe_from(ME, proxy.addr(), &MALFORMED), Outcome::Alert(10));
        assert_eq!(probe_from(guest, proxy.addr(), &MALFORMED), Outcome::Alert(10));
    }
    if start.elapsed() < Duration::from_secs(1) {
        assert_eq!(probe(ME, &proxy), Outcome::Reset, "banned");
        let line = proxy.access_line("refused for its ban", |line| line["reason"] == "banned");
        assert_eq!(
            (&line["cause"], &line["stage"], &line["bytes_in"]),
            (&"limit".into(), &"accept".into(), &0.into())
        );
    }
    assert_eq!(probe(loopback(2), &proxy), served("a"), "another address");
    assert_eq!(probe(guest, &proxy), served("a"), "the exempt are never banned");
    proxy.wait_metric("portcullis_bans_total", &[("by", "rule")], 1.0);
    until("the ban to end", SOON, || (probe(ME, &proxy) == served("a")).then_some(()));
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    proxy.assert_sound();
}

#[test]
fn refusals_by_a_limit_earn_a_ban_and_those_that_are_banned_no_longer_count() {
    let backend = Backend::tagged("a");
    let settings = "connection_limit = 1\nban = { after = 5, for = '1h' }";
    let proxy = proxy_with(settings, &backend);
    let open = held(ME, proxy.addr(), &to("a.test"));
    for _ in 0..10 {
        assert_eq!(probe(ME, &proxy), Outcome::Reset);
    }
    let rejected =
        |reason| proxy.metrics().sum("portcullis_connections_rejected_total", &[("reason", reason)]);
    assert_eq!((rejected("connection_limit") as u32, rejected("banned") as u32), (5, 5));
    // What is open stays, and the ban outlasts what earned it.
    drop(open);
    proxy.wait_metric("portcullis_connections_active", &[], 0.0);
    assert_eq!(probe(ME, &proxy), Outcome::Reset);
    assert_eq!(probe(loopback(2), &proxy), served("a"));
    assert_eq!(backend.hits(), 2);
}

#[test]
fn a_ban_ends_the_wait_of_what_is_put_off() {
    let backend = Backend::tagged("a");
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}ban = 1\n\
         [[route]]\nname = 'a'\nsni = 'a.test'\nto = '{backend}'\n\
         [[limit]]\nname = 'one'\nconnections = 1\naction = 'delay'\ndelay_max = '1m'\n"
    ));
    let mut first = connect_from(ME, proxy.addr());
    proxy.wait_metric("portcullis_connections_active", &[], 1.0);
    let mut late = connect_from(ME, proxy.addr());
    assert_eq!(outcome(&mut late, &to("a.test"), Duration::from_millis(300)), Outcome::Open, "put off");
    assert_eq!(outcome(&mut first, &MALFORMED, SOON), Outcome::Alert(10));
    assert_eq!(outcome(&mut late, b"", SOON), Outcome::Reset, "long before a minute has passed");
    proxy.access_line("refused for its ban", |line| line["reason"] == "banned");
    assert_eq!(backend.hits(), 0);
}
