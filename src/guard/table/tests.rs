use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::config::Rate;

const NO_CAPS: Caps = Caps { connections: u32::MAX, before_hello: Some(u32::MAX) };

fn limit(rate: Option<(u32, u32)>) -> LimitConfig {
    let rate =
        rate.map(|(count, burst)| RateLimit { rate: Rate { count, period: Duration::from_secs(1) }, burst });
    LimitConfig { rate, ..LimitConfig::named("test") }
}

fn source(n: u32) -> IpAddr {
    Ipv4Addr::from_bits(n).into()
}

/// Takes and releases at once: only the rate remembers it.
fn visit(table: &Table, client: IpAddr, now: Instant) -> Result<(), Reason> {
    let mut slot = table.take(client, 0, NO_CAPS, now).map_err(|breach| breach.reason)?;
    table.release(&mut slot, now);
    Ok(())
}

#[test]
fn a_burst_then_the_rate() {
    let table = Table::new(&limit(Some((10, 3))));
    let start = table.start;
    let at = |ms: u64| visit(&table, source(1), start + Duration::from_millis(ms));
    assert_eq!([at(0), at(0), at(0)], [Ok(()); 3]);
    assert_eq!(at(0), Err(Reason::RateLimit));
    assert_eq!(at(99), Err(Reason::RateLimit), "refusals do not push the next arrival out");
    assert_eq!(at(100), Ok(()));
    assert_eq!(at(100), Err(Reason::RateLimit));
    let breach = table.take(source(1), 0, NO_CAPS, start + Duration::from_millis(130)).unwrap_err();
    assert_eq!(breach.retry_after, Duration::from_millis(70));
    assert_eq!([at(1000), at(1000), at(1000)], [Ok(()); 3]);
    assert_eq!(at(1000), Err(Reason::RateLimit), "no more than a burst is saved up");
    assert_eq!(visit(&table, source(2), start), Ok(()), "another source has its own rate");
}

#[test]
fn what_is_given_back_was_never_taken() {
    let table = Table::new(&limit(Some((1, 2))));
    let now = table.start;
    for _ in 0..100 {
        let slot = table.take(source(1), 0, NO_CAPS, now).unwrap();
        table.give_back(slot, now);
    }
    assert_eq!(table.len(), 0);
    assert_eq!([(); 2].map(|()| visit(&table, source(1), now)), [Ok(()); 2]);
    assert_eq!(visit(&table, source(1), now), Err(Reason::RateLimit));
}

#[test]
fn a_full_table_neither_forgets_nor_waves_through() {
    let table = Table::with_capacity(&limit(Some((1, 2))), 4);
    let now = table.start;
    let offender = source(0);
    while visit(&table, offender, now).is_ok() {}
    for n in 1..10_000 {
        let _ = visit(&table, source(n), now);
    }
    assert!(table.len() <= 4 * SHARDS);
    assert_eq!(visit(&table, offender, now), Err(Reason::RateLimit), "the offender is still known");
    let fresh = (10_000..20_000).filter(|n| visit(&table, source(*n), now).is_ok()).count();
    assert_eq!(fresh, 0, "all newcomers share one spent entry a shard");
    let later = now + Duration::from_secs(60);
    assert_eq!(visit(&table, source(20_000), later), Ok(()), "spent entries make room once they are old");
}

/// A million sources, ten thousand a second: memory stays what it was, and who was limited before still is.
#[test]
fn a_million_sources_take_no_more_memory_and_hide_no_offender() {
    let rate = RateLimit { rate: Rate { count: 5, period: Duration::from_secs(300) }, burst: 5 };
    let table = Table::new(&LimitConfig { rate: Some(rate), ..LimitConfig::named("test") });
    let bytes = || -> usize {
        let entry = size_of::<Key>() + size_of::<Entry>() + 1;
        // The table of a hash map has an eighth more slots than it takes entries.
        table.shards.iter().map(|shard| lock(shard).entries.capacity() * 8 / 7 * entry).sum()
    };
    let offender = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
    let at = |n: u32| table.start + Duration::from_micros(100) * n;
    while visit(&table, offender, at(0)).is_ok() {}
    for n in 0..1_000_000 {
        let _ = visit(&table, source(n), at(n));
        if n % 50_000 == 0 {
            assert!(bytes() < 18_000_000, "{} bytes after {n} sources", bytes());
        }
    }
    assert!(table.len() <= SHARDS * SHARD_CAPACITY, "{} sources", table.len());
    // 100 s have passed: one more than at the start, and no second one.
    let late = at(1_000_000);
    assert_eq!([(); 2].map(|()| visit(&table, offender, late).is_ok()), [true, false]);
    let fresh = (1_000_000..1_100_000).filter(|n| visit(&table, source(*n), late).is_ok()).count();
    assert!(fresh < 1000, "{fresh} newcomers of 100,000 got through a full table");
}

#[test]
fn released_slots_leave_nothing_behind() {
    let table = Table::new(&limit(None));
    let caps = Caps { connections: 2, before_hello: Some(u32::MAX) };
    let mut slots: Vec<_> = (0..2).map(|_| table.take(source(1), 0, caps, table.start).unwrap()).collect();
    assert_eq!(table.take(source(1), 0, caps, table.start).unwrap_err().reason, Reason::ConnLimit);
    slots.iter_mut().for_each(|slot| table.release(slot, table.start));
    assert_eq!(table.len(), 0);
    assert!(table.take(source(1), 0, caps, table.start).is_ok());
}

#[test]
fn a_source_is_what_per_says() {
    let same = |per: Per, a: &str, b: &str| {
        let table = Table::new(&LimitConfig { per, ..limit(None) });
        table.key(a.parse().unwrap()) == table.key(b.parse().unwrap())
    };
    let own = Per::Prefix { ipv4: 8, ipv6: 128 };
    for (per, a, b, expected) in [
        (Per::IP, "192.0.2.1", "192.0.2.1", true),
        (Per::IP, "192.0.2.1", "192.0.2.2", false),
        (Per::IP, "192.0.2.1", "::ffff:192.0.2.1", true),
        (Per::IP, "192.0.2.1", "64:ff9b::192.0.2.1", true),
        (Per::IP, "64:ff9b::192.0.2.1", "64:ff9b::192.0.2.2", false),
        (Per::IP, "2001:db8::1", "2001:db8::ffff:0:0:1", true),
        (Per::IP, "2001:db8::1", "2001:db8:0:1::1", false),
        (Per::NETWORK, "192.0.2.1", "192.0.2.200", true),
        (Per::NETWORK, "192.0.2.1", "192.0.3.1", false),
        (Per::NETWORK, "2001:db8::1", "2001:db8:0:ff::1", true),
        (Per::NETWORK, "2001:db8::1", "2001:db8:0:100::1", false),
        (Per::SITE, "2001:db8::1", "2001:db8:0:ffff::1", true),
        (Per::SITE, "2001:db8::1", "2001:db8:1::1", false),
        (Per::All, "192.0.2.1", "2001:db8::1", true),
        (own, "10.1.2.3", "10.9.9.9", true),
        (own, "10.1.2.3", "11.1.2.3", false),
        (own, "2001:db8::1", "2001:db8::2", false),
    ] {
        assert_eq!(same(per, a, b), expected, "{a} and {b} per {per}");
    }
}

/// L9: an attacker with a /64 has one source, however many addresses.
#[test]
fn ten_thousand_addresses_of_one_network_are_one_source() {
    let table = Table::new(&limit(Some((10, 10))));
    let passed = (0..10_000u128)
        .map(|n| IpAddr::from(Ipv6Addr::from_bits((0x2001_0db8 << 96) | (n * 0x1_0001))))
        .filter(|ip| visit(&table, *ip, table.start).is_ok())
        .count();
    assert_eq!((passed, table.len()), (10, 1));
}

#[test]
fn connections_of_a_source_share_one_bucket_which_outlives_them_while_it_owes() {
    let table = Table::new(&LimitConfig { bandwidth: Some(1000), ..limit(None) });
    let now = table.start;
    let take = |n| table.take(source(n), 0, NO_CAPS, now).unwrap();
    let (mut first, mut second, other) = (take(1), take(1), take(2));
    let bucket = table.bucket(&first, now).unwrap();
    assert!(Arc::ptr_eq(&bucket, &table.bucket(&second, now).unwrap()));
    assert!(!Arc::ptr_eq(&bucket, &table.bucket(&other, now).unwrap()));
    bucket.charge(5000, now);
    table.release(&mut first, now);
    table.release(&mut second, now);
    let again = take(1);
    assert!(Arc::ptr_eq(&bucket, &table.bucket(&again, now).unwrap()), "a new connection starts afresh");
    let mut again = again;
    table.release(&mut again, now + Duration::from_secs(5));
    assert_eq!(table.len(), 1, "only the other source is left");
    assert!(Table::new(&limit(None)).bucket(&other, now).is_none());
}

proptest! {
    /// Whatever comes and goes in whatever order, nothing is left in the end and no count is ever exceeded.
    #[test]
    fn counts_are_exact(steps in prop::collection::vec((0u32..6, 0usize..4, any::<prop::sample::Index>()), 1..300)) {
        let table = Table::with_capacity(&limit(None), 1);
        let caps = Caps { connections: 3, before_hello: Some(2) };
        let mut open: Vec<(u32, Slot)> = Vec::new();
        for (client, action, index) in steps {
            match action {
                0 | 1 => {
                    if let Ok(slot) = table.take(source(client), 0, caps, table.start) {
                        open.push((client, slot));
                    }
                }
                _ if open.is_empty() => {}
                2 => {
                    let at = index.index(open.len());
                    table.hello_done(&mut open[at].1);
                }
                _ => {
                    let (_, mut slot) = open.swap_remove(index.index(open.len()));
                    table.release(&mut slot, table.start);
                }
            }
            for client in 0..6 {
                let of = |(other, slot): &&(u32, Slot)| *other == client && !slot.overflow;
                prop_assert!(open.iter().filter(of).count() <= 3);
                prop_assert!(open.iter().filter(of).filter(|(_, slot)| slot.before_hello).count() <= 2);
            }
        }
        for (_, mut slot) in open {
            table.release(&mut slot, table.start);
        }
        prop_assert_eq!(table.len(), 0);
        for shard in &table.shards {
            let overflow = &lock(shard).overflow;
            prop_assert_eq!((overflow.open, overflow.before_hello), (0, 0));
        }
    }
}
