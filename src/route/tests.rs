use std::path::Path;

use super::*;
use crate::config::Config;
use crate::peek::{Alpn, ClientHello, Detector, Ja4};

fn table(routes: &str) -> RouteTable {
    let text = format!(
        "[[listener]]\nname = \"a\"\nbind = \":1\"\n[[listener]]\nname = \"b\"\nbind = \":2\"\n{routes}"
    );
    match Config::parse(Path::new("test.toml"), &text) {
        Ok(config) => RouteTable::new(&config),
        Err(errors) => panic!("{}", errors.render(false)),
    }
}

/// A route named by what it is for: `key` is TOML, the name is its last word.
fn route(name: &str, keys: &str) -> String {
    format!("[[route]]\nname = \"{name}\"\nto = \"10.0.0.1:443\"\n{keys}\n")
}

fn tls(sni: &str, alpn: &[&str]) -> Preface {
    let server_name = (!sni.is_empty()).then(|| ServerName::parse(sni.as_bytes()).unwrap());
    let alpn = Alpn::from_names(alpn.iter().map(|name| name.as_bytes()));
    Preface::Tls(Box::new(ClientHello { server_name, alpn, ..ClientHello::default() }))
}

/// The same with this fingerprint.
fn with_ja4(preface: Preface, ja4: &str) -> Preface {
    let Preface::Tls(mut hello) = preface else { panic!("no hello") };
    hello.ja4 = Some(Box::new(Ja4::parse(ja4).unwrap()));
    Preface::Tls(hello)
}

fn find(table: &RouteTable, preface: &Preface, client: &str, listener: &str) -> String {
    match table.find(&Query { preface, client: client.parse().unwrap(), listener }) {
        Decision::Route(route) => route.config.name.to_string(),
        Decision::NoRoute(why, _) => why.as_str().to_owned(),
    }
}

fn by_name(table: &RouteTable, sni: &str) -> String {
    find(table, &tls(sni, &[]), "192.0.2.1", "a")
}

#[test]
fn the_most_specific_name_wins_whatever_the_order() {
    let routes = [
        route("any", "sni = \"*\""),
        route("regex", "sni = \"~[a-z]+\\\\.x\\\\.example\\\\.com\""),
        route("short", "sni = \"*.example.com\""),
        route("long", "sni = \"*.x.example.com\""),
        route("exact", "sni = \"a.x.example.com\""),
        route("none", "sni = \"none\""),
    ];
    let mut reversed = routes.clone();
    reversed.reverse();
    for table in [table(&routes.concat()), table(&reversed.concat())] {
        for (sni, name) in [
            ("a.x.example.com", "exact"),
            ("A.X.Example.com.", "exact"),
            ("b.x.example.com", "long"),
            ("c.b.x.example.com", "long"),
            ("x.example.com", "short"),
            ("example.com", "any"),
            ("xexample.com", "any"),
            ("", "none"),
        ] {
            assert_eq!(by_name(&table, sni), name, "{sni}");
        }
    }
}

#[test]
fn regular_expressions_stand_between_wildcards_and_the_rest_in_file_order() {
    let table = table(
        &[
            route("first", "sni = \"~app[0-9]+\\\\.test\""),
            route("second", "sni = \"~app.*\""),
            route("any", "sni = \"*\""),
        ]
        .concat(),
    );
    assert_eq!(by_name(&table, "app1.test"), "first");
    assert_eq!(by_name(&table, "appx.test"), "second");
    assert_eq!(by_name(&table, "my-app1.test"), "any");
}

#[test]
fn unknown_absent_and_other_protocols_are_told_apart() {
    let table = table(&route("app", "sni = \"app.test\""));
    assert_eq!(by_name(&table, "other.test"), "unknown_sni");
    assert_eq!(by_name(&table, ""), "no_sni");
    for protocol in [Protocol::Http, Protocol::Ssh, Protocol::Unknown, Protocol::Silent] {
        assert_eq!(find(&table, &Preface::Other(protocol), "192.0.2.1", "a"), "unknown_protocol");
    }
    assert!(!table.wants_silence("a"));
}

#[test]
fn a_star_is_not_for_hellos_without_a_name() {
    let table = table(&route("any", "sni = \"*\""));
    assert_eq!(by_name(&table, ""), "no_sni");
}

#[test]
fn protocols_and_anything() {
    let table = table(&[route("shell", "protocol = \"ssh\""), route("rest", "protocol = \"any\"")].concat());
    assert_eq!(find(&table, &Preface::Other(Protocol::Ssh), "192.0.2.1", "a"), "shell");
    assert_eq!(find(&table, &Preface::Other(Protocol::Unknown), "192.0.2.1", "a"), "rest");
    assert_eq!(find(&table, &Preface::Other(Protocol::Silent), "192.0.2.1", "a"), "unknown_protocol");
    assert_eq!(by_name(&table, "x.test"), "rest");
    assert_eq!(by_name(&table, ""), "rest");
    assert!(!table.wants_silence("a"));
}

#[test]
fn silence_is_waited_for_where_a_route_is_for_it() {
    let table = table(&route("mail", "protocol = \"silent\"\nlistener = \"b\""));
    assert!(table.wants_silence("b"));
    assert!(!table.wants_silence("a"));
    assert_eq!(find(&table, &Preface::Other(Protocol::Silent), "192.0.2.1", "b"), "mail");
}

#[test]
fn conditions_rank_listener_then_alpn_then_the_longest_network() {
    let table = table(
        &[
            route("plain", "sni = \"app.test\""),
            route("wide", "sni = \"app.test\"\nfrom = \"10.0.0.0/8\""),
            route("narrow", "sni = \"app.test\"\nfrom = \"10.1.0.0/16\""),
            route("h2", "sni = \"app.test\"\nalpn = \"h2\""),
            route("b", "sni = \"app.test\"\nlistener = \"b\""),
        ]
        .concat(),
    );
    let find =
        |alpn: &[&str], client: &str, listener: &str| find(&table, &tls("app.test", alpn), client, listener);
    assert_eq!(find(&[], "192.0.2.1", "a"), "plain");
    assert_eq!(find(&[], "10.9.0.1", "a"), "wide");
    assert_eq!(find(&[], "10.1.0.1", "a"), "narrow");
    assert_eq!(find(&[], "::ffff:10.1.0.1", "a"), "narrow");
    assert_eq!(find(&["http/1.1", "h2"], "10.1.0.1", "a"), "h2");
    assert_eq!(find(&["h2"], "10.1.0.1", "b"), "b");
}

#[test]
fn fingerprints_rank_behind_listeners_and_the_longest_pattern_wins() {
    const CHROME: &str = "t13d1516h2_8daaf6152771_e5627efa2ab1";
    let table = table(
        &[
            route("plain", "sni = \"app.test\""),
            route("narrow", "sni = \"app.test\"\nfrom = \"10.1.0.0/16\""),
            route("h2", "sni = \"app.test\"\nalpn = \"h2\""),
            route("t13", "sni = \"app.test\"\nja4 = [\"t13*\", \"t12i*\"]"),
            route("t13d", "sni = \"app.test\"\nja4 = \"t13d1516*\""),
            route("chrome", &format!("sni = \"app.test\"\nja4 = \"{CHROME}\"")),
            route("b", "sni = \"app.test\"\nlistener = \"b\""),
            route("any", "ja4 = \"t*\""),
        ]
        .concat(),
    );
    assert!(table.wants_ja4());
    let find = |ja4: &str, listener: &str| {
        find(&table, &with_ja4(tls("app.test", &["h2"]), ja4), "10.1.0.1", listener)
    };
    assert_eq!(find(CHROME, "a"), "chrome");
    assert_eq!(find(CHROME, "b"), "b");
    assert_eq!(find("t13d1516h2_8daaf6152771_e5627efa2ab2", "a"), "t13d");
    assert_eq!(find("t13d1517h2_8daaf6152771_e5627efa2ab1", "a"), "t13");
    assert_eq!(find("t12d1516h2_8daaf6152771_e5627efa2ab1", "a"), "h2");
    let by_name = |preface: Preface| self::find(&table, &preface, "192.0.2.1", "a");
    assert_eq!(by_name(tls("app.test", &[])), "plain", "a hello whose fingerprint is not known matches none");
    assert_eq!(by_name(with_ja4(tls("other.test", &[]), CHROME)), "any");
    assert_eq!(by_name(tls("other.test", &[])), "unknown_sni");
    let shown: Vec<_> =
        table.precedence().into_iter().map(|(_, route)| route.config.name.to_string()).collect();
    assert_eq!(shown[..7], ["b", "chrome", "t13d", "t13", "h2", "narrow", "plain"]);
}

#[test]
fn no_fingerprint_is_wanted_that_no_route_looks_at() {
    assert!(!table(&route("app", "sni = \"app.test\"")).wants_ja4());
}

#[test]
fn of_two_alpn_routes_the_clients_first_choice_wins() {
    let table = table(
        &[
            route("one", "sni = \"app.test\"\nalpn = \"http/1.1\""),
            route("two", "sni = \"app.test\"\nalpn = \"h2\""),
        ]
        .concat(),
    );
    assert_eq!(find(&table, &tls("app.test", &["h2", "http/1.1"]), "192.0.2.1", "a"), "two");
    assert_eq!(find(&table, &tls("app.test", &["http/1.1", "h2"]), "192.0.2.1", "a"), "one");
    assert_eq!(find(&table, &tls("app.test", &["smtp"]), "192.0.2.1", "a"), "unknown_sni");
}

#[test]
fn a_route_whose_conditions_fail_gives_way_to_a_less_specific_one() {
    let table = table(
        &[route("inside", "sni = \"app.test\"\nfrom = \"10.0.0.0/8\""), route("others", "sni = \"*.test\"")]
            .concat(),
    );
    assert_eq!(find(&table, &tls("app.test", &[]), "10.0.0.1", "a"), "inside");
    assert_eq!(find(&table, &tls("app.test", &[]), "192.0.2.1", "a"), "others");
}

#[test]
fn tls_routes_without_a_name_take_hellos_with_and_without() {
    let table = table(&route("acme", "alpn = \"acme-tls/1\""));
    assert_eq!(find(&table, &tls("x.test", &["acme-tls/1"]), "192.0.2.1", "a"), "acme");
    assert_eq!(find(&table, &tls("", &["acme-tls/1"]), "192.0.2.1", "a"), "acme");
    assert_eq!(find(&table, &tls("x.test", &["h2"]), "192.0.2.1", "a"), "unknown_sni");
}

#[test]
fn the_printed_order_is_the_order_of_lookups() {
    let table = table(
        &[
            route("any", "sni = \"*\""),
            route("short", "sni = \"*.test\""),
            route("plain", "sni = \"a.test\""),
            route("h2", "sni = \"a.test\"\nalpn = \"h2\""),
            route("long", "sni = \"*.a.test\""),
        ]
        .concat(),
    );
    let names: Vec<_> =
        table.precedence().into_iter().map(|(_, route)| route.config.name.to_string()).collect();
    assert_eq!(names, ["h2", "plain", "long", "short", "any"]);
}

#[test]
fn each_step_of_a_lookup_is_told() {
    let table = table(&[route("wild", "sni = \"*.test\""), route("any", "sni = \"*\"")].concat());
    let preface = tls("a.b.test", &[]);
    let query = Query { preface: &preface, client: "192.0.2.1".parse().unwrap(), listener: "a" };
    let mut steps = Vec::new();
    table.find_traced(&query, |step| {
        steps.push((step.probe.to_string(), step.outcome.map(|(_, verdict)| verdict)))
    });
    let expected = [
        ("exact name a.b.test".to_owned(), None),
        ("wildcard *.b.test".to_owned(), None),
        ("wildcard *.test".to_owned(), Some(Verdict::Holds)),
    ];
    assert_eq!(steps, expected);
}

/// What the table makes of these bytes, followed by a pause.
fn by_first(table: &RouteTable, bytes: &[u8], client: &str, listener: &str) -> String {
    let patterns = table.patterns(listener, client.parse().unwrap());
    let mut detector = Detector::new(16384).with_patterns(patterns);
    let preface = detector.advance(bytes).unwrap().or_else(|| detector.settle(bytes)).unwrap();
    find(table, &preface, client, listener)
}

#[test]
fn patterns_take_what_no_detector_knows_in_file_order_before_unknown() {
    let table = table(
        &[
            route("rest", "protocol = \"unknown\""),
            route("long", "begins = '^GIT\\x00\\d'"),
            route("short", "begins = ['^GIT', '^HG']"),
            route("requests", "begins = '^GET'"),
        ]
        .concat(),
    );
    for (bytes, name) in [
        (b"GIT\x007".as_slice(), "long"),
        (b"GIT\0x", "short"),
        (b"GIT", "short"),
        (b"HG!", "short"),
        (b"GIX ", "rest"),
        // What is a known protocol is not looked at.
        (b"GET / HTTP/1.1\r\n", "unknown_protocol"),
        (b"GETTING", "requests"),
    ] {
        assert_eq!(by_first(&table, bytes, "192.0.2.1", "a"), name, "{}", bytes.escape_ascii());
    }
    let shown: Vec<_> = table.precedence().into_iter().map(|(key, _)| key).collect();
    assert_eq!(
        shown,
        ["begins:^GIT\\x00\\d", "begins:^GIT", "begins:^HG", "begins:^GET", "protocol:unknown"]
    );
}

#[test]
fn patterns_whose_routes_cannot_take_a_connection_are_not_looked_for() {
    let table = table(
        &[
            route("desk", "begins = '^ab'\nfrom = '10.1.0.0/16'"),
            route("office", "begins = '^ab'\nfrom = '10.0.0.0/8'"),
            route("inside", "begins = '^abc'\nlistener = 'b'"),
            route("others", "begins = '^a'"),
        ]
        .concat(),
    );
    assert_eq!(by_first(&table, b"ab-", "10.1.2.3", "a"), "desk");
    assert_eq!(by_first(&table, b"ab-", "10.9.2.3", "a"), "office");
    assert_eq!(by_first(&table, b"ab-", "192.0.2.1", "a"), "others");
    assert_eq!(by_first(&table, b"abc", "192.0.2.1", "b"), "inside");
    let preface = Preface::Other(Protocol::Unknown);
    let query = Query { preface: &preface, client: "192.0.2.1".parse().unwrap(), listener: "a" };
    let mut steps = Vec::new();
    table.find_traced(&query, |step| {
        steps.push((step.probe.to_string(), step.outcome.map(|(_, verdict)| verdict)))
    });
    let expected = [
        ("first bytes ^ab".to_owned(), Some(Verdict::From)),
        ("first bytes ^ab".to_owned(), Some(Verdict::From)),
        ("first bytes ^abc".to_owned(), Some(Verdict::Listener)),
        ("first bytes ^a".to_owned(), Some(Verdict::NoMatch)),
        ("protocol unknown".to_owned(), None),
        ("any protocol".to_owned(), None),
    ];
    assert_eq!(steps, expected);
}
