use std::pin::Pin;
use std::task::Poll;

use super::*;
use crate::config::{BanRule, LimitConfig, Per, Rate, RateLimit};

fn limits(by_source: Vec<LimitConfig>) -> Limits {
    Limits {
        allow: vec![],
        deny: vec![],
        allow_files: vec![],
        deny_files: vec![],
        exempt: vec![],
        by_source,
        ban: None,
        total: None,
    }
}

fn named(name: &str) -> LimitConfig {
    LimitConfig::named(name)
}

fn per_second(count: u32) -> Option<RateLimit> {
    Some(RateLimit { rate: Rate { count, period: Duration::from_secs(1) }, burst: count })
}

fn guard(limits: &Limits, total: usize) -> Guard {
    Guard::new(limits, total, &Registry::new().unwrap())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Why a connection from there would be refused now.
fn refused(guard: &Guard, client: &str, now: Instant) -> Option<(Reason, Option<String>)> {
    let rejection = guard.admit(ip(client), "default", now).err()?;
    Some((rejection.reason(), rejection.limit().map(ToString::to_string)))
}

#[test]
fn connections_without_a_hello_have_a_limit_of_their_own() {
    let limit = LimitConfig { connections: Some(3), before_hello: Some(2), ..named("few") };
    let guard = guard(&limits(vec![limit]), 100);
    let now = Instant::now();
    let admit = |client: &str| guard.admit(ip(client), "default", now).unwrap();
    let (mut first, second) = (admit("192.0.2.1"), admit("192.0.2.1"));
    let few = Some("few".to_owned());
    assert_eq!(refused(&guard, "192.0.2.1", now), Some((Reason::BeforeHello, few.clone())));
    first.hello_done();
    first.hello_done();
    let third = admit("::ffff:192.0.2.1");
    assert_eq!(refused(&guard, "64:ff9b::192.0.2.1", now), Some((Reason::ConnLimit, few)));
    assert_eq!(refused(&guard, "192.0.2.2", now), None);
    drop((first, second, third));
    assert_eq!(refused(&guard, "192.0.2.1", now), None);
}

#[test]
fn a_denied_address_costs_no_entry() {
    let deny = vec!["192.0.2.0/24".parse().unwrap()];
    let guard =
        guard(&Limits { deny, ..limits(vec![LimitConfig { rate: per_second(1), ..named("a") }]) }, 100);
    assert_eq!(refused(&guard, "192.0.2.9", Instant::now()), Some((Reason::Acl, None)));
    assert_eq!(guard.limits()[0].sources, 0);
}

#[test]
fn no_limit_concerns_the_exempt_and_a_denial_does() {
    let net = |text: &str| vec![text.parse().unwrap()];
    let limits = limits(vec![
        LimitConfig { connections: Some(1), ..named("at-accept") },
        LimitConfig { connections: Some(1), routes: Some(vec![Arc::from("a")]), ..named("of-route") },
    ]);
    let guard = guard(&Limits { exempt: net("192.0.2.0/24"), deny: net("192.0.2.66/32"), ..limits }, 100);
    let now = Instant::now();
    let mut open = [(); 3].map(|()| guard.admit(ip("192.0.2.1"), "default", now).unwrap());
    assert!(open.iter_mut().all(|permit| permit.enter_route(ip("192.0.2.1"), "default", "a", now).is_ok()));
    assert_eq!(guard.limits().iter().map(|limit| limit.sources).sum::<usize>(), 0);
    assert_eq!(refused(&guard, "192.0.2.66", now), Some((Reason::Acl, None)));
    let _one = guard.admit(ip("192.0.3.1"), "default", now).unwrap();
    assert!(refused(&guard, "192.0.3.1", now).is_some());
}

#[test]
fn a_refusal_by_one_limit_takes_nothing_from_the_others() {
    let guard = guard(
        &limits(vec![
            LimitConfig { rate: per_second(5), ..named("rate") },
            LimitConfig { connections: Some(10), ..named("open") },
            LimitConfig { rate: per_second(1), per: Per::All, ..named("all") },
        ]),
        100,
    );
    let now = Instant::now();
    let first = guard.admit(ip("192.0.2.1"), "default", now).unwrap();
    for _ in 0..100 {
        assert_eq!(refused(&guard, "192.0.2.2", now), Some((Reason::RateLimit, Some("all".to_owned()))));
    }
    let sources = |guard: &Guard| guard.limits().iter().map(|limit| limit.sources).collect::<Vec<_>>();
    assert_eq!(sources(&guard), [1, 1, 1], "the refused one is known nowhere");
    // One a second for all: had the refusals counted, this one's own rate would be spent.
    for second in 1..5 {
        assert_eq!(refused(&guard, "192.0.2.2", now + Duration::from_secs(second)), None);
    }
    drop(first);
}

#[test]
fn limits_are_for_their_listeners_and_routes() {
    let names = |name: &str| Some(vec![Arc::from(name)]);
    let guard = guard(
        &limits(vec![
            LimitConfig { connections: Some(1), listeners: names("alt"), ..named("alt") },
            LimitConfig { connections: Some(2), routes: names("a"), ..named("a") },
        ]),
        100,
    );
    let now = Instant::now();
    let client = ip("192.0.2.1");
    let first = guard.admit(client, "alt", now).unwrap();
    assert!(guard.admit(client, "alt", now).is_err());
    let mut permits = [(); 3].map(|()| guard.admit(client, "default", now).unwrap());
    let mut enter = |index: usize, route: &str| {
        let entered = permits[index].enter_route(client, "default", route, now);
        entered.map_err(|rejection| rejection.limit().unwrap().to_string())
    };
    assert_eq!([enter(0, "a"), enter(1, "b"), enter(1, "a")], [Ok(()), Ok(()), Ok(())]);
    assert_eq!(enter(2, "a"), Err("a".to_owned()));
    let rejection = permits[2].enter_route(client, "default", "a", now).unwrap_err();
    guard.refused(&rejection, client, now);
    let told: Vec<_> = guard.limits().iter().map(|limit| (limit.sources, limit.rejections)).collect();
    assert_eq!(told, [(1, 0), (1, 1)]);
    drop((first, permits));
    assert_eq!(guard.limits().iter().map(|limit| limit.sources).sum::<usize>(), 0);
}

#[test]
fn a_new_generation_knows_what_the_one_before_knew() {
    let registry = Registry::new().unwrap();
    let rate = LimitConfig { rate: per_second(1), ..named("rate") };
    let open = LimitConfig { connections: Some(1), ..named("open") };
    let old = Guard::new(&limits(vec![rate.clone(), open.clone()]), 100, &registry);
    let now = Instant::now();
    let client = "192.0.2.1";
    let permit = old.admit(ip(client), "default", now).unwrap();

    // In another order, with more room, and another action.
    let action = LimitAction::Close;
    let new = old.renewed(
        &limits(vec![LimitConfig { connections: Some(2), action, ..open }, rate.clone()]),
        50,
        &registry,
    );
    assert_eq!(new.cap(), 50);
    assert_eq!(refused(&new, client, now), Some((Reason::RateLimit, Some("rate".to_owned()))));
    let later = now + Duration::from_secs(1);
    let second = new.admit(ip(client), "default", later).unwrap();
    let later = now + Duration::from_secs(2);
    assert_eq!(refused(&new, client, later), Some((Reason::ConnLimit, Some("open".to_owned()))));
    drop(permit);
    assert_eq!(refused(&new, client, later), None, "the old permit released in the table that both share");

    // Another rate is another limit: what was owed under the old one says nothing.
    let faster = old.renewed(&limits(vec![LimitConfig { rate: per_second(5), ..rate }]), 50, &registry);
    assert_eq!((refused(&faster, client, later), faster.limits()[0].sources), (None, 1));
    drop(second);
    assert_eq!(new.limits()[0].sources, 0, "permits release what they took where they took it");
    assert!(registry.render().contains("portcullis_ratelimit_keys{limit=\"open\"} 0"));
}

#[test]
fn what_a_limit_of_a_route_took_has_a_hello_in_the_next_generation() {
    let registry = Registry::new().unwrap();
    let of_route = LimitConfig { connections: Some(3), routes: Some(vec![Arc::from("a")]), ..named("few") };
    let old = Guard::new(&limits(vec![of_route]), 100, &registry);
    let (now, client) = (Instant::now(), ip("192.0.2.1"));
    let mut served = old.admit(client, "default", now).unwrap();
    served.hello_done();
    served.enter_route(client, "default", "a", now).unwrap();

    // The table is the same one: what it is counted by has not changed.
    let at_accept = LimitConfig { connections: Some(3), before_hello: Some(1), ..named("few") };
    let new = old.renewed(&limits(vec![at_accept.clone()]), 100, &registry);
    let mut second = new.admit(client, "default", now).expect("none is without a hello");
    assert_eq!(refused(&new, "192.0.2.1", now), Some((Reason::BeforeHello, Some("few".to_owned()))));
    second.hello_done();
    let _third = new.admit(client, "default", now).unwrap();
    let few = LimitConfig { before_hello: None, ..at_accept };
    let last = new.renewed(&limits(vec![few]), 100, &registry);
    assert_eq!(refused(&last, "192.0.2.1", now), Some((Reason::ConnLimit, Some("few".to_owned()))));
    drop(served);
    assert_eq!(refused(&last, "192.0.2.1", now), None);
}

#[test]
fn one_rate_for_all_connections_of_a_source_and_none_for_others() {
    let guard = guard(&limits(vec![LimitConfig { bandwidth: Some(1 << 20), ..named("slow") }]), 100);
    let now = Instant::now();
    assert!(guard.admit(ip("192.0.2.1"), "default", now).unwrap().throttle(now).is_some());
    let free = self::guard(&limits(vec![LimitConfig { connections: Some(5), ..named("open") }]), 100);
    assert!(free.admit(ip("192.0.2.1"), "default", now).unwrap().throttle(now).is_none());
}

#[test]
fn who_is_refused_again_and_again_is_banned_for_a_time() {
    let minute = Duration::from_secs(60);
    let limits = Limits {
        ban: Some(BanRule { after: 3, within: minute, length: 10 * minute }),
        exempt: vec!["198.51.100.0/24".parse().unwrap()],
        ..limits(vec![LimitConfig { rate: per_second(1), ..named("rate") }])
    };
    let registry = Registry::new().unwrap();
    let guard = Guard::new(&limits, 100, &registry);
    let (now, client) = (Instant::now(), "192.0.2.1");
    assert_eq!(refused(&guard, client, now), None);
    for _ in 0..3 {
        let rejection = guard.admit(ip(client), "default", now).unwrap_err();
        assert_eq!(rejection.reason(), Reason::RateLimit);
        guard.refused(&rejection, ip(client), now);
    }
    let later = now + minute;
    assert_eq!(refused(&guard, client, later), Some((Reason::Banned, None)));
    assert_eq!(refused(&guard, "192.0.2.2", later), None);
    let [ban] = &guard.bans(later)[..] else { panic!("one ban") };
    assert_eq!((&*ban.network, ban.seconds_left, &*ban.reason), ("192.0.2.1/32", 540, "rule"));
    assert_eq!(refused(&guard, client, now + 10 * minute), None, "it has ended");

    // Malformed hellos count as well, those of exempt clients never.
    for _ in 0..3 {
        guard.strike(ip("2001:db8::1"), now);
        guard.strike(ip("198.51.100.1"), now);
    }
    assert_eq!(refused(&guard, "2001:db8::2", later), Some((Reason::Banned, None)), "the same /64");
    guard.ban("198.51.100.0/24".parse().unwrap(), minute, "by hand", now).unwrap();
    assert_eq!(refused(&guard, "198.51.100.1", now), None, "exempt");

    // Bans outlive a generation.
    let renewed = guard.renewed(&Limits { ban: None, ..limits }, 100, &registry);
    assert_eq!(refused(&renewed, client, later), Some((Reason::Banned, None)));
    assert!(renewed.unban("192.0.2.1/32".parse().unwrap(), later));
    assert_eq!(guard.bans(later).len(), 1, "the two generations share them");
    renewed.upkeep(now + 2 * minute);
    let text = registry.render();
    assert!(text.contains("portcullis_bans_total{by=\"rule\"} 2"), "{text}");
    assert!(text.contains("portcullis_bans_active 1"), "{text}");
}

/// It is in every connection for as long as that lasts.
#[test]
fn a_permit_is_small() {
    assert!(size_of::<ConnPermit>() <= 32, "{} bytes", size_of::<ConnPermit>());
}

#[test]
fn a_connection_that_is_named_later_counts_from_then_on() {
    let deny = vec!["192.0.2.9/32".parse().unwrap()];
    let limit = LimitConfig { before_hello: Some(1), ..named("one") };
    let guard = guard(&Limits { deny, ..limits(vec![limit]) }, 100);
    let now = Instant::now();
    let mut unnamed: Vec<_> = (0..4).map(|_| guard.admit_unnamed()).collect();
    let sources = || guard.limits().iter().map(|limit| limit.sources).sum::<usize>();
    assert_eq!(sources(), 0);
    let mut count = |nth: usize, client: &str| {
        let counted = unnamed[nth].count_for(&guard, ip(client), "default", now);
        counted.map_err(|rejection| rejection.reason())
    };
    assert_eq!(count(0, "192.0.2.1"), Ok(()));
    assert_eq!(count(1, "192.0.2.1"), Err(Reason::BeforeHello));
    assert_eq!(count(1, "192.0.2.2"), Ok(()));
    assert_eq!(count(2, "192.0.2.9"), Err(Reason::Acl));
    let why = |client: &str| refused(&guard, client, now).map(|(reason, _)| reason);
    assert_eq!(why("192.0.2.1"), Some(Reason::BeforeHello));
    unnamed[0].hello_done();
    assert_eq!(why("192.0.2.1"), None);
    let allowed = |client: &str| guard.allows(ip(client), now).map_err(|rejection| rejection.reason());
    assert_eq!((allowed("192.0.2.9"), allowed("192.0.2.1")), (Err(Reason::Acl), Ok(())));
    drop(unnamed);
    assert_eq!(sources(), 0, "nothing is left behind");
}

#[test]
fn what_a_proxy_does_for_itself_counts_on_no_limit_and_earns_no_ban() {
    let route = |name: &str| LimitConfig { routes: Some(vec![Arc::from("a")]), ..named(name) };
    let limits = Limits {
        deny: vec!["192.0.2.9/32".parse().unwrap()],
        ban: Some(BanRule { after: 1, within: Duration::from_secs(60), length: Duration::from_secs(60) }),
        ..limits(vec![
            LimitConfig { connections: Some(1), ..named("at-accept") },
            LimitConfig { connections: Some(1), ..route("of-route") },
            LimitConfig { connections: Some(1), per: Per::All, ..route("of-all") },
        ])
    };
    let guard = guard(&limits, 100);
    let (now, proxy) = (Instant::now(), ip("192.0.2.1"));
    let mut own = [(); 3].map(|()| guard.admit_unnamed());
    for permit in &mut own {
        permit.count_for_nobody(&guard, proxy, now).unwrap();
        permit.enter_route(proxy, "default", "a", now).unwrap();
        permit.strike(&guard, proxy, now);
    }
    assert_eq!(guard.limits().iter().map(|limit| limit.sources).sum::<usize>(), 0);
    assert_eq!(refused(&guard, "192.0.2.1", now), None);
    let denied = guard.admit_unnamed().count_for_nobody(&guard, ip("192.0.2.9"), now);
    assert_eq!(denied.unwrap_err().reason(), Reason::Acl);

    // The client that it names has both.
    let mut named = guard.admit_unnamed();
    named.count_for(&guard, ip("192.0.2.2"), "default", now).unwrap();
    assert_eq!(refused(&guard, "192.0.2.2", now), Some((Reason::ConnLimit, Some("at-accept".to_owned()))));
    named.strike(&guard, ip("192.0.2.2"), now);
    assert_eq!(refused(&guard, "192.0.2.2", now), Some((Reason::Banned, None)));
}

/// Two that wait are both woken by two releases, whatever happens in between.
#[tokio::test]
async fn the_cap_makes_the_next_ones_wait_until_some_are_gone() {
    let guard = guard(&limits(vec![]), 2);
    let admit = |host: u8| guard.admit(IpAddr::from([192, 0, 2, host]), "default", Instant::now()).unwrap();
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

#[tokio::test]
async fn a_higher_cap_is_felt_by_those_that_wait() {
    let registry = Registry::new().unwrap();
    let guard = Guard::new(&limits(vec![]), 1, &registry);
    let admit = || guard.admit(ip("192.0.2.1"), "default", Instant::now()).unwrap();
    let (mut open, mut waiting) = (admit(), admit());
    open.wait_for_room().await;
    let mut waits = Box::pin(waiting.wait_for_room());
    assert!(poll_once(waits.as_mut()).await.is_pending());
    let renewed = guard.renewed(&limits(vec![]), 2, &registry);
    waits.await;
    assert_eq!((renewed.open(), renewed.cap()), (2, 2));
}

async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}
