use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use super::*;
use crate::config::{Rate, RateLimit};

fn limits() -> Limits {
    Limits { allow: vec![], deny: vec![], rate: None, per_ip: None, before_hello: None, total: None }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn connections_without_a_hello_have_a_limit_of_their_own() {
    let guard = Arc::new(Guard::new(&Limits { per_ip: Some(3), before_hello: Some(2), ..limits() }, 100));
    let now = Instant::now();
    let mut first = guard.admit(ip("192.0.2.1"), now).unwrap();
    let second = guard.admit(ip("192.0.2.1"), now).unwrap();
    assert_eq!(guard.admit(ip("192.0.2.1"), now).unwrap_err(), Rejection::BeforeHello);
    first.hello_done();
    first.hello_done();
    let third = guard.admit(ip("::ffff:192.0.2.1"), now).unwrap();
    assert_eq!(guard.admit(ip("192.0.2.1"), now).unwrap_err(), Rejection::ConnLimit);
    assert!(guard.admit(ip("192.0.2.2"), now).is_ok());
    drop((first, second, third));
    assert!(guard.admit(ip("192.0.2.1"), now).is_ok());
}

#[test]
fn a_denied_address_costs_no_entry() {
    let deny = vec!["192.0.2.0/24".parse().unwrap()];
    let rate = RateLimit { rate: Rate { count: 1, period: Duration::from_secs(1) }, burst: 1 };
    let guard = Arc::new(Guard::new(&Limits { deny, rate: Some(rate), ..limits() }, 100));
    assert_eq!(guard.admit(ip("192.0.2.9"), Instant::now()).unwrap_err(), Rejection::Acl);
    assert_eq!(guard.known_sources(), 0);
}

#[test]
fn a_connection_that_is_named_later_counts_from_then_on() {
    let deny = vec!["192.0.2.9/32".parse().unwrap()];
    let guard = Arc::new(Guard::new(&Limits { deny, before_hello: Some(1), ..limits() }, 100));
    let now = Instant::now();
    let mut unnamed: Vec<_> = (0..4).map(|_| guard.admit_unnamed()).collect();
    assert_eq!(guard.known_sources(), 0);
    assert_eq!(unnamed[0].count_for(ip("192.0.2.1"), now), Ok(()));
    assert_eq!(unnamed[1].count_for(ip("192.0.2.1"), now), Err(Rejection::BeforeHello));
    assert_eq!(unnamed[1].count_for(ip("192.0.2.2"), now), Ok(()));
    assert_eq!(unnamed[2].count_for(ip("192.0.2.9"), now), Err(Rejection::Acl));
    assert_eq!(guard.admit(ip("192.0.2.1"), now).unwrap_err(), Rejection::BeforeHello);
    unnamed[0].hello_done();
    assert!(guard.admit(ip("192.0.2.1"), now).is_ok());
    assert_eq!((guard.allows(ip("192.0.2.9")), guard.allows(ip("192.0.2.1"))), (Err(Rejection::Acl), Ok(())));
    drop(unnamed);
    assert_eq!(guard.known_sources(), 0, "nothing is left behind");
}

/// Two that wait are both woken by two releases, whatever happens in between.
#[tokio::test]
async fn the_cap_makes_the_next_ones_wait_until_some_are_gone() {
    let guard = Arc::new(Guard::new(&limits(), 2));
    let admit = |host: u8| guard.admit(IpAddr::from([192, 0, 2, host]), Instant::now()).unwrap();
    let mut open = [admit(1), admit(2)];
    for permit in &mut open {
        permit.wait_for_room().await;
    }
    let mut waiting = [admit(3), admit(4)];
    let [third, fourth] = &mut waiting;
    let (mut third, mut fourth) = (Box::pin(third.wait_for_room()), Box::pin(fourth.wait_for_room()));
    assert!(poll_once(third.as_mut()).await.is_pending());
    assert!(poll_once(fourth.as_mut()).await.is_pending());
    drop(open);
    third.await;
    fourth.await;
    assert_eq!(guard.open(), 2);
    drop(waiting);
    assert_eq!(guard.open(), 0);
}

async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}
