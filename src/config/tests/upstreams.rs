//! `[[upstream]]`, and what a route says of backends of its own.

use super::*;

/// Two backends and a route to them.
const DB: &str = "to = ['10.0.0.1:1', '10.0.0.2:1']";

/// An `[[upstream]]` of these keys, with a route to it.
fn file(keys: &str) -> String {
    format!(
        "listen = ':443'\nzone = 'a'\n[[upstream]]\nname = 'db'\n{keys}\n[[route]]\nsni = 'a.test'\nupstream = 'db'\n"
    )
}

fn upstream(keys: &str) -> UpstreamConfig {
    let config = parse(&file(keys)).unwrap_or_else(|error| panic!("{keys}\n{error}"));
    let [db] = config.upstreams.as_slice() else { panic!("one upstream") };
    let ActionConfig::Passthrough(to) = &config.routes[0].action else { panic!("passed through") };
    assert!(Arc::ptr_eq(db, &to.upstream), "the route leads there");
    UpstreamConfig::clone(db)
}

/// The same where a route says all of it.
fn own(keys: &str) -> UpstreamConfig {
    let text = format!("listen = ':443'\n[[route]]\nname = 'db'\nsni = 'a.test'\n{keys}\n");
    let config = parse(&text).unwrap_or_else(|error| panic!("{keys}\n{error}"));
    assert!(config.upstreams.is_empty());
    let ActionConfig::Passthrough(to) = &config.routes[0].action else { panic!("passed through") };
    UpstreamConfig::clone(&to.upstream)
}

/// The kind of the first error, its message and its hint.
fn error(text: &str) -> (&'static str, String) {
    let errors = parse(text).expect_err(text);
    let error = errors.iter().next().unwrap();
    let hint = error.help().map_or(String::new(), |hint| format!("; {hint}"));
    (error.kind().as_str(), format!("{}{hint}", error.message()))
}

fn plain() -> UpstreamConfig {
    upstream(DB)
}

#[test]
fn an_upstream_that_says_nothing_has_defaults() {
    let db = plain();
    assert_eq!(&*db.name, "db");
    let backend = |address: &str| BackendConfig {
        weight: 1,
        tier: 1,
        zone: None,
        max_connections: None,
        ..BackendConfig::at(address.parse().unwrap())
    };
    assert_eq!(db.backends, [backend("10.0.0.1:1"), backend("10.0.0.2:1")]);
    assert_eq!((db.balance, db.sticky, db.slow_start), (Balance::RoundRobin, None, Duration::ZERO));
    assert_eq!((db.max_connections, db.queue), (None, None));
    let eject = EjectConfig { failures: 5, length: secs(10), at_most: 50, slow: Some(secs(1)) };
    assert_eq!((db.eject, db.on_down, db.retry_budget), (Some(eject), OnDown::Leave, Some(20)));
    assert_eq!(own(DB), db, "a route's own backends are the same");
}

#[test]
fn a_backend_is_an_address_or_a_table() {
    let keys = "max_connections = 7\nto = ['unix:/run/db.sock', 'db.internal:5432', { address = '10.0.0.3:1', weight = 0, \
                tier = 2, zone = 'b', max_connections = 'off' }, { address = '10.0.0.4:1' }]";
    for found in [upstream(keys), own(keys)] {
        let told = found.backends.iter().map(|one| {
            (one.address.to_string(), one.weight, one.tier, one.zone.as_deref(), one.max_connections)
        });
        let expected = [
            ("unix:/run/db.sock".to_owned(), 1, 1, None, Some(7)),
            ("db.internal:5432".to_owned(), 1, 1, None, Some(7)),
            ("10.0.0.3:1".to_owned(), 0, 2, Some("b"), None),
            ("10.0.0.4:1".to_owned(), 1, 1, None, Some(7)),
        ];
        assert!(told.eq(expected), "{:?}", found.backends);
        assert_eq!(found.max_connections, Some(7));
    }
    let one = upstream("to = { address = '10.0.0.1:1', weight = 256, tier = 16 }");
    assert_eq!((one.backends[0].weight, one.backends[0].tier), (MAX_WEIGHT, MAX_TIER));
}

#[test]
fn every_key_is_what_it_says() {
    let hash = |on, load| Balance::Hash { on, load };
    let queue = |size, timeout| Some(QueueConfig { size, timeout: secs(timeout) });
    let eject = EjectConfig { failures: 5, length: secs(10), at_most: 50, slow: Some(secs(1)) };
    let by = |balance| UpstreamConfig { balance, ..plain() };
    let table = [
        ("balance = 'round_robin'", by(Balance::RoundRobin)),
        ("balance = 'least_connections'", by(Balance::LeastConnections)),
        ("balance = 'p2c'", by(Balance::P2c)),
        ("balance = { by = 'random' }", by(Balance::Random)),
        ("balance = 'first'", by(Balance::First)),
        ("balance = 'hash'", by(hash(ClientKey::Source, None))),
        ("balance = { by = 'hash', on = 'sni', load = '125%' }", by(hash(ClientKey::Sni, Some(125)))),
        ("sticky = '1h'", UpstreamConfig { sticky: Some((ClientKey::Source, secs(3600))), ..plain() }),
        (
            "sticky = { on = 'sni', for = '5m' }",
            UpstreamConfig { sticky: Some((ClientKey::Sni, secs(300))), ..plain() },
        ),
        ("sticky = 'off'", plain()),
        ("slow_start = '30s'", UpstreamConfig { slow_start: secs(30), ..plain() }),
        ("slow_start = 'off'", plain()),
        ("max_connections = 'off'", plain()),
        ("queue = 100", UpstreamConfig { queue: queue(100, 5), ..plain() }),
        ("queue = { size = 7, timeout = '2s' }", UpstreamConfig { queue: queue(7, 2), ..plain() }),
        ("queue = 'off'", plain()),
        ("eject = 'off'", UpstreamConfig { eject: None, ..plain() }),
        ("eject = 9", UpstreamConfig { eject: Some(EjectConfig { failures: 9, ..eject }), ..plain() }),
        (
            "eject = { failures = 2, for = '1m', at_most = '100%', slow = 'off' }",
            UpstreamConfig {
                eject: Some(EjectConfig { failures: 2, length: secs(60), at_most: 100, slow: None }),
                ..plain()
            },
        ),
        ("on_down = 'close'", UpstreamConfig { on_down: OnDown::Close, ..plain() }),
        ("retry_budget = '50%'", UpstreamConfig { retry_budget: Some(50), ..plain() }),
        ("retry_budget = 'off'", UpstreamConfig { retry_budget: None, ..plain() }),
    ];
    for (keys, expected) in table {
        let keys = format!("{DB}\n{keys}");
        assert_eq!(upstream(&keys), expected, "{keys}");
        assert_eq!(own(&keys), expected, "{keys}");
    }
}

#[test]
fn a_bad_value_is_told_with_what_to_write() {
    let table = [
        ("balance = 'p3c'", "bad-value", "did you mean `p2c`?"),
        ("balance = { on = 'sni' }", "missing-key", "by"),
        ("balance = { by = 'first', on = 'sni' }", "conflict", "write `by = \"hash\"`, or remove `on`"),
        ("balance = { by = 'hash', load = '100%' }", "out-of-range", "`load` is not between 101% and 1000%"),
        ("balance = { by = 'hash', load = 1.25 }", "missing-unit", "write `\"125%\"`"),
        ("sticky = 5", "missing-unit", "\"5s\""),
        ("sticky = '0s'", "out-of-range", "`sticky` cannot be zero"),
        ("sticky = { on = 'ip', for = '1h' }", "bad-value", "`source`"),
        ("sticky = { on = 'sni' }", "missing-key", "for"),
        ("slow_start = '25h'", "out-of-range", "`slow_start` is above"),
        ("max_connections = 0", "out-of-range", "`0` is not between 1 and"),
        ("queue = 65537", "out-of-range", "between 1 and 65536"),
        ("queue = { timeout = '1s' }", "missing-key", "size"),
        ("queue = { size = 1, timeout = 5 }", "missing-unit", "\"5s\""),
        ("eject = 0", "out-of-range", "between 1 and 1000"),
        ("eject = { at_most = '0%' }", "out-of-range", "`at_most` is not between 1% and 100%"),
        ("eject = { at_most = 50 }", "missing-unit", "write `\"50%\"`"),
        ("eject = { slwo = '1s' }", "unknown-key", "did you mean `slow`?"),
        ("on_down = 'drop'", "bad-value", "`leave` and `close`"),
        ("retry_budget = '-1%'", "bad-value", "write a whole number and `%`"),
        ("retry_budget = 'much'", "bad-value", "`\"50%\"`"),
        ("weight = 3", "unknown-key", "weight"),
    ];
    for (keys, kind, part) in table {
        for text in [
            file(&format!("{DB}\n{keys}")),
            format!("listen = ':443'\n[[route]]\nsni = 'a.test'\n{DB}\n{keys}\n"),
        ] {
            let (found, told) = error(&text);
            assert_eq!(found, kind, "{keys}: {told}");
            assert!(told.contains(part), "{keys}: {told}");
        }
    }
}

#[test]
fn a_bad_backend_is_told_with_what_to_write() {
    let table = [
        ("{ weight = 2 }", "missing-key", "address"),
        ("{ address = '10.0.0.1' }", "bad-address", "write `10.0.0.1:443`"),
        ("{ address = '10.0.0.1:1', weight = 257 }", "out-of-range", "between 0 and 256"),
        ("{ address = '10.0.0.1:1', tier = 0 }", "out-of-range", "between 1 and 16"),
        (
            "{ address = '10.0.0.1:1', zone = 'a b' }",
            "bad-name",
            "a name is 1 to 255 letters, digits, `-`, `_`, `.`",
        ),
        ("{ address = '10.0.0.1:1', max_connections = 0 }", "out-of-range", "between 1 and"),
        ("{ address = '10.0.0.1:1', wieght = 2 }", "unknown-key", "did you mean `weight`?"),
        ("'10.0.0.1:1', { address = '10.0.0.1:1', weight = 2 }", "duplicate-value", "10.0.0.1:1"),
        ("'127.0.0.1:443'", "self-loop", "let the backend listen on another port or address"),
        ("", "out-of-range", ""),
    ];
    for (to, kind, part) in table {
        for text in [
            file(&format!("to = [{to}]")),
            format!("listen = ':443'\n[[route]]\nsni = 'a.test'\nto = [{to}]\n"),
        ] {
            let (found, told) = error(&text);
            assert_eq!(found, kind, "{to}: {told}");
            assert!(told.contains(part), "{to}: {told}");
        }
    }
}

#[test]
fn a_route_leads_to_one_group_of_backends() {
    let db = "listen = ':443'\n[[upstream]]\nname = 'db'\nto = '10.0.0.1:1'\n[[route]]\nsni = 'z.test'\nreject = 'close'\n";
    let table = [
        ("[[route]]\nsni = 'a.test'\nupstream = 'bd'\n", "unknown-upstream", "did you mean `db`?"),
        ("[[route]]\nsni = 'a.test'\nupstream = 'elsewhere'\n", "unknown-upstream", "the upstreams are `db`"),
        ("[[route]]\nsni = 'a.test'\nupstream = 'd b'\n", "bad-name", "letters, digits"),
        ("[[route]]\nsni = 'a.test'\nupstream = 'db'\nto = '10.0.0.2:1'\n", "conflict", ""),
        ("[[route]]\nsni = 'a.test'\nupstream = 'db'\nreject = 'close'\n", "conflict", ""),
        ("[[route]]\nsni = 'a.test'\nupstream = 'db'\nbalance = 'p2c'\n", "conflict", "balance"),
        (
            "[[route]]\nname = 'db'\nsni = 'a.test'\nto = '10.0.0.2:1'\n",
            "duplicate-name",
            "give the route another `name`",
        ),
        ("[[upstream]]\nname = 'db'\nto = '10.0.0.2:1'\n", "duplicate-name", "two upstreams are named `db`"),
        ("[[upstream]]\nto = '10.0.0.2:1'\n", "missing-key", "name"),
        ("[[upstream]]\nname = 'other'\n", "missing-key", "to"),
    ];
    for (more, kind, part) in table {
        let (found, told) = error(&format!("{db}{more}"));
        assert_eq!(found, kind, "{more}: {told}");
        assert!(told.contains(part), "{more}: {told}");
    }
    let (found, told) = error(&format!("zone = 'a b'\n{db}"));
    assert_eq!(found, "bad-name", "{told}");
    // Several routes may lead to one; one that nobody leads to is there, too.
    let routes = "[[route]]\nsni = 'a.test'\nupstream = 'db'\n[[route]]\nsni = 'b.test'\nupstream = 'db'\n\
                  [[upstream]]\nname = 'spare'\nto = '10.0.0.9:1'\n";
    let config = parse(&format!("{db}{routes}")).unwrap();
    let names: Vec<_> = config.upstreams.iter().map(|upstream| &*upstream.name).collect();
    assert_eq!(names, ["db", "spare"]);
}

#[test]
fn the_effective_settings_tell_every_key() {
    let told = |text: &str, key: &str| {
        let config = parse(text).unwrap_or_else(|error| panic!("{error}"));
        let found = config.effective.iter().find(|setting| setting.key == key);
        let found = found.unwrap_or_else(|| panic!("{key} is not told"));
        (found.value.clone(), found.origin.is_some())
    };
    let keys = "to = [{ address = '10.0.0.1:1', weight = 3, tier = 2, zone = 'b', max_connections = 9 }, '10.0.0.2:1']\n\
                balance = { by = 'hash', on = 'sni', load = '125%' }\nsticky = '1h'\nslow_start = '30s'\n\
                max_connections = 7\nqueue = 100\neject = 3\non_down = 'close'\nretry_budget = '50%'";
    let written = [
        ("to", "[\"10.0.0.1:1\", \"10.0.0.2:1\"]"),
        ("to[10.0.0.1:1].weight", "3"),
        ("to[10.0.0.1:1].tier", "2"),
        ("to[10.0.0.1:1].zone", "\"b\""),
        ("to[10.0.0.1:1].max_connections", "9"),
        ("balance", "\"hash\""),
        ("balance.on", "\"sni\""),
        ("balance.load", "\"125%\""),
        ("sticky.for", "\"1h\""),
        ("slow_start", "\"30s\""),
        ("max_connections", "7"),
        ("queue.size", "100"),
        ("eject.failures", "3"),
        ("on_down", "\"close\""),
        ("retry_budget", "\"50%\""),
    ];
    for (key, value) in written {
        assert_eq!(told(&file(keys), &format!("upstream[db].{key}")), (value.to_owned(), true), "{key}");
        let route = format!("listen = ':443'\n[[route]]\nname = 'db'\nsni = 'a.test'\n{keys}\n");
        assert_eq!(told(&route, &format!("route[db].{key}")), (value.to_owned(), true), "{key}");
    }
    for (key, value) in [("sticky.on", "\"source\""), ("queue.timeout", "\"5s\""), ("eject.for", "\"10s\"")] {
        assert_eq!(told(&file(keys), &format!("upstream[db].{key}")), (value.to_owned(), false), "{key}");
    }
    let defaults = [("balance", "\"round_robin\""), ("queue", "\"off\""), ("retry_budget", "\"20%\"")];
    for (key, value) in defaults {
        assert_eq!(told(&file(DB), &format!("upstream[db].{key}")), (value.to_owned(), false), "{key}");
    }
    assert_eq!(told(&file(DB), "zone"), ("\"a\"".to_owned(), true));
    assert_eq!(told(&file(DB), "route[a.test].upstream"), ("\"db\"".to_owned(), true));
}
