use std::path::Path;

use super::super::super::{BanRule, Config, ConfigErrors, LimitAction};
use super::*;

fn parse(limits: &str) -> Result<Config, ConfigErrors> {
    let text = format!(
        "listen = \":443\"\n[[listener]]\nname = \"alt\"\nbind = \":444\"\n\
         [[route]]\nname = \"a\"\nsni = \"a.test\"\nto = \"10.0.0.1:443\"\n\
         [[route]]\nname = \"no\"\nsni = \"no.test\"\nreject = \"close\"\n{limits}"
    );
    Config::parse(Path::new("test.toml"), &text)
}

/// The one table, resolved.
fn one(table: &str) -> LimitConfig {
    let config =
        parse(&format!("[[limit]]\nname = \"x\"\n{table}\n")).unwrap_or_else(|e| panic!("{table}: {e}"));
    config.limits.by_source.into_iter().find(|limit| &*limit.name == "x").unwrap()
}

/// The messages of all errors, each with its hint.
fn errors(table: &str) -> Vec<(&'static str, String)> {
    let errors = parse(table).expect_err(table);
    let told = |error: &ConfigError| {
        let hint = error.help().map_or(String::new(), |hint| format!("; {hint}"));
        (error.kind().as_str(), format!("{}{hint}", error.message()))
    };
    errors.iter().map(told).collect()
}

#[test]
fn a_limit_is_what_it_says() {
    let rate = |text: &str| Some(super::super::super::decode::Text::parse(text).ok().unwrap());
    let full = one("per = \"site\"\nrate = \"200/s\"\nburst = 300\nconnections = 1000\nbefore_hello = 200\n\
                    bandwidth = \"10MiB/s\"\nlistener = [\"alt\"]\naction = \"close\"");
    let expected = LimitConfig {
        per: Per::SITE,
        rate: rate("200/s").map(|rate| RateLimit { rate, burst: 300 }),
        connections: Some(1000),
        before_hello: Some(200),
        bandwidth: Some(10 << 20),
        listeners: Some(vec![Arc::from("alt")]),
        action: LimitAction::Close,
        ..LimitConfig::named("x")
    };
    assert_eq!(full, expected);
    let short = one("rate = \"5/s\"\nroute = \"a\"");
    assert_eq!(short.rate, rate("5/s").map(|rate| RateLimit { rate, burst: 5 }));
    assert_eq!((short.per, short.action), (Per::IP, LimitAction::Reset));
    assert_eq!(short.routes, Some(vec![Arc::from("a")]));
}

#[test]
fn every_form_of_per_and_action() {
    for (text, per) in [
        ("\"ip\"", Per::Prefix { ipv4: 32, ipv6: 64 }),
        ("\"network\"", Per::Prefix { ipv4: 24, ipv6: 56 }),
        ("\"site\"", Per::Prefix { ipv4: 24, ipv6: 48 }),
        ("\"all\"", Per::All),
        ("{ ipv4 = 16, ipv6 = 128 }", Per::Prefix { ipv4: 16, ipv6: 128 }),
        ("{ ipv6 = 32 }", Per::Prefix { ipv4: 32, ipv6: 32 }),
    ] {
        assert_eq!(one(&format!("connections = 1\nper = {text}")).per, per, "{text}");
    }
    let seconds = Duration::from_secs;
    for (text, action) in [
        ("\"reset\"", LimitAction::Reset),
        ("\"drop\"", LimitAction::Drop),
        ("\"delay\"", LimitAction::Delay { max: seconds(10) }),
        ("\"delay\"\ndelay_max = \"3s\"", LimitAction::Delay { max: seconds(3) }),
        ("\"tarpit\"", LimitAction::Tarpit { hold: seconds(30) }),
        ("\"tarpit\"\ntarpit_for = \"1m\"", LimitAction::Tarpit { hold: seconds(60) }),
    ] {
        assert_eq!(one(&format!("connections = 1\naction = {text}")).action, action, "{text}");
    }
}

/// What is written in a table, and the kind and message of the one error that it makes.
const MISTAKES: [(&str, &str, &str); 20] = [
    ("name = \"x\"", "missing-key", "the limit limits nothing; add `rate`, `connections`, `before_hello`"),
    ("connections = 1", "missing-key", "`name` is missing"),
    ("name = \"a b\"\nconnections = 1", "bad-name", "`a b` cannot be the name of a limit; a name is 1 to"),
    ("name = \"rate_limit\"\nconnections = 1", "duplicate-name", "`rate_limit` is the name of the limit"),
    ("name = \"x\"\nconnections = 0", "out-of-range", "`0` is not between 1 and 4294967295"),
    ("name = \"x\"\nconnections = 1\nper = \"ipv4\"", "bad-value", "`ipv4` is not one of `ip`, `network`"),
    ("name = \"x\"\nconnections = 1\nper = { ipv4 = 7 }", "out-of-range", "`7` is not between 8 and 32"),
    ("name = \"x\"\nconnections = 1\nper = { ipv6 = 129 }", "out-of-range", "not between 32 and 128"),
    ("name = \"x\"\nconnections = 1\nburst = 3", "conflict", "`burst` belongs to `rate`, which is not given"),
    ("name = \"x\"\nbandwidth = \"10MiB\"", "bad-value", "`10MiB` is not a bandwidth; write a size and `/s`"),
    ("name = \"x\"\nbandwidth = 10", "missing-unit", "a bandwidth needs a unit; write `\"10B/s\"`"),
    ("name = \"x\"\nbandwidth = \"1B/s\"", "out-of-range", "`bandwidth` is not between 1KiB/s and 1024GiB/s"),
    ("name = \"x\"\nconnections = 1\nlistener = \"atl\"", "unknown-listener", "did you mean `alt`?"),
    (
        "name = \"x\"\nconnections = 1\nroute = \"q\"",
        "unknown-route",
        "there is no route `q`; did you mean `a`",
    ),
    ("name = \"x\"\nconnections = 1\nroute = \"no\"", "conflict", "the route `no` lets nobody through"),
    (
        "name = \"x\"\nbefore_hello = 1\nroute = \"a\"",
        "conflict",
        "`before_hello` cannot be a limit of a route",
    ),
    ("name = \"x\"\nrate = \"1/s\"\naction = \"ban\"", "bad-value", "`ban` is not one of `reset`, `close`"),
    ("name = \"x\"\nrate = \"1/s\"\ndelay_max = \"1s\"", "conflict", "belongs to `action = \"delay\"`; add"),
    (
        "name = \"x\"\nrate = \"1/s\"\naction = \"delay\"\ntarpit_for = \"1s\"",
        "conflict",
        "`action = \"tarpit\"`",
    ),
    ("name = \"x\"\nrate = \"1/s\"\naction = \"delay\"\ndelay_max = \"2h\"", "out-of-range", "is above 1h"),
];

#[test]
fn every_mistake_is_told_with_what_to_write_instead() {
    for (table, kind, message) in MISTAKES {
        let told = errors(&format!("[[limit]]\n{table}\n"));
        let found = told.iter().any(|(of, text)| *of == kind && text.contains(message));
        assert!(found && told.len() == 1, "{table}: {told:?}");
    }
}

#[test]
fn lists_of_clients_may_come_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let load = |settings: &str, list: &str| {
        std::fs::write(folder.path().join("list.txt"), list).unwrap();
        let main = folder.path().join("main.toml");
        let route = "[[route]]\nsni = \"a.test\"\nto = \"10.0.0.1:443\"\n";
        std::fs::write(&main, format!("listen = \":443\"\n{settings}\n{route}")).unwrap();
        Config::load(&main)
    };
    let both = "deny_files = \"list.txt\"\nallow_files = [\"list.txt\"]\nexempt = \"10.0.0.0/8\"";
    let config = load(both, "192.0.2.0/24\n").unwrap();
    let limits = &config.limits;
    assert_eq!(limits.deny_files[0].networks[..], ["192.0.2.0/24".parse().unwrap()]);
    assert_eq!(limits.allow_files[0].path, folder.path().join("list.txt"), "relative to the file");
    assert_eq!(limits.exempt, ["10.0.0.0/8".parse().unwrap()]);
    let effective: Vec<_> = ["allow_files", "deny_files", "exempt"]
        .iter()
        .map(|key| config.effective.iter().find(|setting| setting.key == *key).unwrap().value.clone())
        .collect();
    assert_eq!(effective, ["\"list.txt\"", "\"list.txt\"", "\"10.0.0.0/8\""]);

    let told = |settings: &str, list: &str| {
        let errors = load(settings, list).unwrap_err();
        let error = errors.iter().next().unwrap();
        let origin = error.origin().unwrap();
        let file = origin.file.file_name().unwrap().to_string_lossy().into_owned();
        (format!("{file}:{}", origin.line), error.kind().as_str())
    };
    let deny = "deny_files = \"list.txt\"";
    assert_eq!(told(deny, "10.0.0.0/8\nx\n"), ("list.txt:2".to_owned(), "bad-network"));
    assert_eq!(told("deny_files = \"no.txt\"", ""), ("main.toml:2".to_owned(), "io"));
    let twice = "deny_files = [\"list.txt\", \"list.txt\"]";
    assert_eq!(told(twice, ""), ("main.toml:2".to_owned(), "duplicate-value"));
    let nat64 = ("main.toml:2".to_owned(), "bad-network");
    assert_eq!(told("exempt = \"64:ff9b::a00:0/104\"", ""), nat64);
    assert_eq!(told("deny = \"64:ff9b::a00:0/104\"", ""), nat64);
}

#[test]
fn bans_by_rule() {
    let config = |text: &str| Config::parse(Path::new("test.toml"), text);
    let with = |ban: &str| {
        config(&format!("listen = \":443\"\n{ban}\n[[route]]\nsni = \"a.test\"\nto = \"10.0.0.1:443\"\n"))
    };
    let rule = |ban: &str| with(ban).unwrap().limits.ban;
    let seconds = Duration::from_secs;
    assert_eq!(rule(""), None);
    let short = BanRule { after: 20, within: seconds(60), length: seconds(600) };
    assert_eq!(rule("ban = { after = 20 }"), Some(short));
    assert_eq!((rule("ban = 20"), rule("ban = \"off\"")), (Some(short), None));
    let full = BanRule { after: 3, within: seconds(10), length: seconds(3600) };
    assert_eq!(rule("ban = { after = 3, within = \"10s\", for = \"1h\" }"), Some(full));
    for (ban, message) in [
        ("ban = { within = \"1m\" }", "`after` is missing"),
        ("ban = { after = 0 }", "`0` is not between 1 and 1000000"),
        ("ban = { after = 1, within = \"0s\" }", "`ban.within` cannot be zero"),
        ("ban = { after = 1, for = \"31d\" }", "`ban.for` is above 30d"),
        ("ban = { after = 1, forr = \"1m\" }", "unknown key `forr`"),
        ("ban = \"on\"", "expected a whole number or \"off\", found a string"),
    ] {
        let errors = with(ban).expect_err(ban);
        let told: Vec<_> = errors.iter().map(ConfigError::message).collect();
        assert_eq!(told, [message], "{ban}");
    }
    let effective = with("ban = { after = 20 }").unwrap().effective;
    let told = effective.iter().filter(|setting| setting.key.starts_with("ban"));
    let told: Vec<_> = told.map(|setting| format!("{} = {}", setting.key, setting.value)).collect();
    assert_eq!(told, ["ban.after = 20", "ban.within = \"1m\"", "ban.for = \"10m\""]);
}

#[test]
fn names_are_unique_and_limits_not_without_number() {
    let limit = |name: &str| format!("[[limit]]\nname = \"{name}\"\nconnections = 1\n");
    let told = errors(&format!("{}{}", limit("x"), limit("x")));
    assert_eq!(told, [("duplicate-name", "two limits are named `x`".to_owned())]);
    let many: String = (0..65).map(|n| limit(&format!("n{n}"))).collect();
    assert_eq!(errors(&many), [("out-of-range", "there are more than 64 limits".to_owned())]);
}

#[test]
fn effective_settings_hold_every_figure() {
    let config = parse(
        "[[limit]]\nname = \"x\"\nrate = \"5/s\"\nbandwidth = \"1MiB/s\"\nroute = \"a\"\naction = \"delay\"\n",
    )
    .unwrap();
    let told: Vec<_> = config
        .effective
        .iter()
        .filter(|setting| setting.key.starts_with("limit["))
        .map(|setting| {
            format!("{} = {}{}", setting.key, setting.value, if setting.origin.is_some() { "" } else { "?" })
        })
        .collect();
    let expected = [
        "limit[x].per = \"ip\"?",
        "limit[x].rate = \"5/s\"",
        "limit[x].burst = 5?",
        "limit[x].bandwidth = \"1MiB/s\"",
        "limit[x].route = \"a\"",
        "limit[x].action = \"delay\"",
        "limit[x].delay_max = \"10s\"?",
    ];
    assert_eq!(told, expected);
}
