//! Nameservers that say nothing, too much, too late, or what is not so: clients notice none of it (fault L22).

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::support::backend::Backend;
use crate::support::client::{held, loopback, probe, served, timed};
use crate::support::dns::{FOLLOW, assert_served, await_outcome, proxy_asking};
use crate::support::hello::to;
use crate::support::nameserver::{Answer, Nameserver};
use crate::support::proxy::Proxy;
use crate::support::{UNLIMITED, until};

const AT_ONCE: Duration = Duration::ZERO;

/// Backends at one port of three addresses: one that is right, one that must never be connected to, one for afterwards.
struct Backends {
    good: Backend,
    wrong: Backend,
    other: Backend,
}

impl Backends {
    fn at(last: u8) -> Self {
        let good = Backend::tagged_at(SocketAddr::from((loopback(last), 0)), "good");
        let beside =
            |last, tag| Backend::tagged_at(SocketAddr::from((loopback(last), good.addr().port())), tag);
        let (wrong, other) = (beside(last + 1, "wrong"), beside(last + 2, "other"));
        Self { good, wrong, other }
    }

    fn proxy(&self, nameserver: &Nameserver) -> Proxy {
        let backend = format!("svc.fault.test:{}", self.good.addr().port());
        proxy_asking(nameserver.addr(), "timeout = '300ms', min_ttl = '1s'", &backend)
    }
}

/// Look-ups so far, whatever came of them.
fn lookups(proxy: &Proxy) -> f64 {
    proxy.metrics().sum("portcullis_dns_lookups_total", &[])
}

/// While the nameserver answers by `fault`, all are served by the backend known before, at once; afterwards answers are
/// followed again.
fn survived(last: u8, fault: impl FnOnce(Ipv4Addr, Ipv4Addr) -> Answer) {
    let backends = Backends::at(last);
    let [good, wrong, other] = [0, 1, 2].map(|beside| loopback(last + beside));
    let nameserver = Nameserver::start(Answer::Address(good, AT_ONCE));
    let mut proxy = backends.proxy(&nameserver);
    await_outcome(&proxy, &served("good"));
    let mut first = held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test"));
    nameserver.set(fault(good, wrong));
    let (begun, asked) = (lookups(&proxy), nameserver.queries().0);
    until("two look-ups under the fault", FOLLOW, || {
        let (took, outcome) = timed(|| probe(proxy.addr(), &to("a.test")));
        assert_eq!(outcome, served("good"));
        assert!(took < Duration::from_secs(1), "{took:?}");
        // The first may have been under way before.
        (lookups(&proxy) >= begun + 3.0 && nameserver.queries().0 >= asked + 2).then_some(())
    });
    nameserver.set(Answer::Address(other, AT_ONCE));
    await_outcome(&proxy, &served("other"));
    for _ in 0..10 {
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("other"));
    }
    assert_served(&mut first);
    assert_eq!(backends.wrong.hits(), 0);
    assert!(backends.other.hits() > 10);
    proxy.assert_sound();
}

#[test]
fn no_answer() {
    survived(31, |_, _| Answer::Silence);
}

#[test]
fn an_answer_five_seconds_late_is_none() {
    survived(34, |_, wrong| Answer::Address(wrong, Duration::from_secs(5)));
}

#[test]
fn an_answer_to_another_id_is_none() {
    survived(37, |good, wrong| Answer::WrongId(wrong, good));
}

#[test]
fn an_answer_from_elsewhere_is_none() {
    survived(40, |good, wrong| Answer::WrongPort(wrong, good));
}

#[test]
fn an_answer_for_another_name_is_none() {
    survived(43, |good, wrong| Answer::WrongName(wrong, good));
}

#[test]
fn a_name_that_leads_to_itself() {
    survived(46, |_, _| Answer::PointerLoop);
}

#[test]
fn an_answer_that_is_cut_off() {
    survived(49, |_, wrong| Answer::CutOff(wrong));
}

#[test]
fn zeros() {
    survived(52, |_, _| Answer::Zeros);
}

#[test]
fn a_failure_of_the_nameserver() {
    survived(55, |_, _| Answer::Failure);
}

#[test]
fn more_by_tcp_which_says_nothing() {
    survived(58, |_, _| Answer::TruncatedForGood);
}

#[test]
fn what_does_not_fit_is_asked_for_by_tcp() {
    let backends = Backends::at(61);
    let nameserver = Nameserver::start(Answer::Truncated(vec![loopback(61)]));
    let mut proxy = backends.proxy(&nameserver);
    await_outcome(&proxy, &served("good"));
    nameserver.set(Answer::Truncated(vec![loopback(63)]));
    await_outcome(&proxy, &served("other"));
    assert!(nameserver.queries().1 >= 2, "{:?}", nameserver.queries());
    proxy.assert_sound();
}

#[test]
fn of_sixty_four_kilobytes_of_addresses_some_are_used() {
    let backends = Backends::at(64);
    // Nobody listens at the others; the one that serves is the last in the message and the first in order.
    let mut addresses: Vec<Ipv4Addr> =
        (0..4090_u32).map(|n| Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 0).to_bits() + n)).collect();
    addresses.push(loopback(64));
    let nameserver = Nameserver::start(Answer::Truncated(addresses));
    let mut proxy = backends.proxy(&nameserver);
    let told = until("the addresses", FOLLOW, || {
        let (_, body) = proxy.api("GET", "upstreams", "");
        let told = body["upstreams"][0]["backends"][0]["addresses"].as_array().unwrap().clone();
        told.iter().any(|address| address.as_str().unwrap().starts_with("127.1.0.")).then_some(told)
    });
    assert_eq!(told.len(), 256, "{told:?}");
    assert!(told.contains(&backends.good.addr().to_string().into()), "{told:?}");
    until("three look-ups", FOLLOW, || (lookups(&proxy) >= 3.0).then_some(()));
    assert_eq!(proxy.logged("too many addresses; the last ones in order are not used").len(), 1);
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("good"));
    proxy.assert_sound();
}

#[test]
fn many_names_are_asked_for_some_at_a_time() {
    const NAMES: usize = 120;
    let delay = Duration::from_millis(100);
    let nameserver = Nameserver::start(Answer::Address(loopback(67), delay));
    let mut config = format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}dns = {{ servers = ['{}'], min_ttl = '1m' }}\n",
        nameserver.addr()
    );
    for index in 0..NAMES {
        writeln!(config, "[[route]]\nsni = 'n{index}.test'\nto = 'n{index}.fault.test:443'").unwrap();
    }
    let mut proxy = Proxy::start(&config);
    until("all answers", FOLLOW, || {
        let (_, body) = proxy.api("GET", "upstreams", "");
        (body.to_string().matches(r#""addresses":["127.0.0.67:443"]"#).count() == NAMES).then_some(())
    });
    let most = nameserver.most_at_once();
    assert!((2..=32).contains(&most), "{most} at once");
    let asked = nameserver.queries().0;
    assert!((NAMES..2 * NAMES).contains(&asked), "{asked} queries");
    proxy.assert_sound();
}
