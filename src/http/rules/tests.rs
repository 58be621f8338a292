use std::path::Path;
use std::sync::Arc;

use http::{HeaderValue, StatusCode};
use proptest::prelude::*;

use super::*;
use crate::config::{AnswerConfig, HeaderChanges, Origin, PoliciesOfRequests, RequestAction};
use crate::http::target::{Spoken, Target};
use crate::peek::ServerName;

fn rule(when: RequestConditions) -> RuleConfig {
    let answer = AnswerConfig { status: StatusCode::OK, body: None, content_type: "text/plain".into() };
    RuleConfig {
        policies: PoliciesOfRequests::default(),
        name: "rule".into(),
        when,
        action: RequestAction::Answer(answer),
        request_headers: HeaderChanges::default(),
        response_headers: HeaderChanges::default(),
        origin: Origin { file: Arc::from(Path::new("test.toml")), line: 1, column: 1 },
    }
}

fn whole(text: &str) -> Regex {
    Regex::new(&format!("^(?:{text})$")).unwrap()
}

fn host(text: &str) -> NamePattern {
    let name = |text: &str| ServerName::parse(text.as_bytes()).unwrap();
    match (text, text.strip_prefix("*."), text.strip_prefix('~')) {
        ("*", ..) => NamePattern::Any,
        (_, Some(suffix), _) => NamePattern::Suffix(name(suffix)),
        (_, _, Some(regex)) => NamePattern::Regex(NameRegex::new(regex).unwrap()),
        _ => NamePattern::Exact(name(text)),
    }
}

fn path(text: &str) -> PathPattern {
    if let Some(regex) = text.strip_prefix('~') {
        return PathPattern::Regex(whole(regex), regex.into());
    }
    match text.strip_suffix("/*") {
        Some(prefix) if !prefix.contains('*') => PathPattern::Prefix(prefix.into()),
        _ if text.contains('*') => {
            let regex = regex::escape(text).replace(r"\*\*", ".*").replace(r"\*", "[^/]*");
            PathPattern::Glob(whole(&regex), text.into())
        }
        _ => PathPattern::Exact(text.into()),
    }
}

fn value(text: &str) -> ValuePattern {
    match (text, text.strip_prefix('~')) {
        ("*", _) => ValuePattern::Present,
        (_, Some(regex)) => ValuePattern::Regex(whole(regex)),
        (exact, None) => ValuePattern::Exact(exact.into()),
    }
}

/// `hosts paths`, each separated by commas, and `-` for none.
fn when(text: &str) -> RequestConditions {
    let (hosts, paths) = text.split_once(' ').unwrap();
    let list = |text: &'static str| text.split(',').filter(|text| *text != "-");
    let leak = |text: &str| -> &'static str { Box::leak(text.to_owned().into_boxed_str()) };
    RequestConditions {
        hosts: list(leak(hosts)).map(host).collect(),
        paths: list(leak(paths)).map(path).collect(),
        ..RequestConditions::default()
    }
}

fn rules(texts: &[&str]) -> Rules {
    Rules::new(&texts.iter().map(|text| rule(when(text))).collect::<Vec<_>>())
}

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

fn found(rules: &Rules, host: &str, path: &str) -> Option<usize> {
    let headers = HeaderMap::new();
    let asked = Asked { host, path, method: &Method::GET, headers: &headers, query: None, client: CLIENT };
    rules.find(&asked).map(|found| found.rule)
}

#[test]
fn the_most_specific_host_decides_first() {
    let rules = rules(&[
        "* -",
        "~.*[.]example[.]com /x",
        "*.example.com /x",
        "*.sub.example.com -",
        "a.sub.example.com /x",
        "example.com,b.test -",
    ]);
    for (host, path, expected) in [
        ("a.sub.example.com", "/x", 4),
        ("a.sub.example.com", "/y", 3),
        ("b.c.sub.example.com", "/x", 3),
        ("sub.example.com", "/x", 2),
        ("sub.example.com", "/y", 0),
        ("www.example.com", "/x", 2),
        ("example.com", "/x", 5),
        ("b.test", "/", 5),
        ("xexample.com", "/x", 0),
        ("com", "/x", 0),
        ("", "/x", 0),
        ("[::1]", "/x", 0),
        ("192.0.2.1", "/x", 0),
    ] {
        assert_eq!(found(&rules, host, path), Some(expected), "{host}{path}");
    }
}

#[test]
fn the_most_specific_path_decides_next() {
    let rules = rules(&[
        "a.test -",
        "a.test ~/api/v[0-9]+/.*",
        "a.test /img/**.png",
        "a.test /img/big/*.png",
        "a.test /*",
        "a.test /api/*",
        "a.test /api/v1/*",
        "a.test /api/v1/users",
        "b.test ~/x/(a|ab)",
        "b.test /**.gif",
        "b.test -",
    ]);
    for (host, path, expected) in [
        ("a.test", "/api/v1/users", 7),
        ("a.test", "/api/v1/users/", 6),
        ("a.test", "/api/v1", 6),
        ("a.test", "/api/v12/x", 5),
        ("a.test", "/api", 5),
        ("a.test", "/apix", 4),
        ("a.test", "/", 4),
        ("a.test", "*", 0),
        ("b.test", "/x/ab", 8),
        ("b.test", "/x/abc", 10),
        ("b.test", "/y/x/ab", 10),
        ("b.test", "/y/x/ab.gif", 9),
        ("b.test", "/x/abgif", 10),
    ] {
        assert_eq!(found(&rules, host, path), Some(expected), "{host}{path}");
    }
    // Where the prefix of everything is not: globs by what they begin with.
    let rules = self::rules(&["- ~/.*", "- /img/**.png", "- /img/big/*.png"]);
    assert_eq!(found(&rules, "", "/img/big/a.png"), Some(2));
    assert_eq!(found(&rules, "", "/img/big/b/a.png"), Some(1));
    assert_eq!(found(&rules, "", "/img/a.jpg"), Some(0));
    assert_eq!(found(&self::rules(&[]), "a.test", "/"), None);
}

#[test]
fn then_the_number_of_conditions_and_the_order_in_the_file() {
    let methods = |methods: &[Method]| RequestConditions { methods: methods.to_vec(), ..when("- /x/*") };
    let rules = Rules::new(&[
        rule(when("- /x/*")),
        rule(when("- /x/*")),
        rule(methods(&[Method::POST, Method::PUT])),
        rule(RequestConditions {
            headers: vec![("x-a".parse().unwrap(), value("~b+")), ("x-b".parse().unwrap(), value("*"))],
            ..methods(&[Method::POST])
        }),
        rule(RequestConditions {
            query: vec![("q r".into(), value("a b")), ("z".into(), value("~[0-9 ]+"))],
            ..when("- /x/*")
        }),
        rule(RequestConditions { from: vec!["10.0.0.0/8".parse().unwrap()], ..when("- /x/*") }),
    ]);
    let fields = |fields: &[(&'static str, &'static str)]| -> HeaderMap {
        let field = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        fields.iter().copied().map(field).collect()
    };
    let ask = |method: &Method, headers: &HeaderMap, query, client: &str| {
        let asked = Asked { host: "", path: "/x/y", method, headers, query, client: client.parse().unwrap() };
        rules.find(&asked).unwrap().rule
    };
    let none = fields(&[]);
    assert_eq!(ask(&Method::GET, &none, None, "192.0.2.1"), 0);
    assert_eq!(ask(&Method::PUT, &none, None, "192.0.2.1"), 2);
    assert_eq!(ask(&Method::POST, &fields(&[("x-a", "bb"), ("x-b", "")]), None, "192.0.2.1"), 3);
    assert_eq!(ask(&Method::POST, &fields(&[("x-a", "c"), ("x-b", "")]), None, "192.0.2.1"), 2);
    assert_eq!(ask(&Method::POST, &fields(&[("x-a", "bb")]), None, "192.0.2.1"), 2);
    for (query, expected) in [
        ("q%20r=a+b&z=1", 4),
        ("z=1+%32&x&q+r=a%20b", 4),
        ("q+r=x&q+r=a+b&z=1", 4),
        ("q+r=a%2Bb&z=1", 0),
        ("q%2Br=a+b&z=1", 0),
        ("q+r=a+b&z=x", 0),
        ("q+r=a+b", 0),
        ("", 0),
    ] {
        assert_eq!(ask(&Method::GET, &none, Some(query), "192.0.2.1"), expected, "{query}");
    }
    assert_eq!(ask(&Method::GET, &none, None, "::ffff:10.1.1.1"), 5);
}

#[test]
fn groups_are_those_of_the_path() {
    let rules = rules(&["- ~/v([0-9]+)/(.*)", "- /y"]);
    let headers = HeaderMap::new();
    let asked = Asked {
        host: "",
        path: "/v2/x",
        method: &Method::GET,
        headers: &headers,
        query: None,
        client: CLIENT,
    };
    let groups = rules.find(&asked).unwrap().groups.unwrap();
    assert_eq!((&groups[1], &groups[2]), ("2", "x"));
    assert!(rules.find(&Asked { path: "/y", ..asked }).unwrap().groups.is_none());
}

#[test]
fn every_step_says_what_does_not_hold() {
    let rules = Rules::new(&[
        rule(RequestConditions { methods: vec![Method::POST], ..when("a.test /x") }),
        rule(RequestConditions { headers: vec![("x-a".parse().unwrap(), value("*"))], ..when("*.test /x") }),
        rule(RequestConditions { query: vec![("q".into(), value("*"))], ..when("- /x") }),
        rule(RequestConditions { from: vec!["10.0.0.0/8".parse().unwrap()], ..when("- /x/*") }),
        rule(when("~b.* -")),
        rule(when("- /y,/x/*")),
        rule(when("- -")),
        rule(when("other.test /x")),
    ]);
    let headers = HeaderMap::new();
    let asked = Asked {
        host: "a.test",
        path: "/x",
        method: &Method::GET,
        headers: &headers,
        query: None,
        client: CLIENT,
    };
    let mut steps = Vec::new();
    let found =
        rules.find_traced(&asked, &mut |step| steps.push(format!("{} {:?}", step.rule, step.verdict)));
    assert_eq!(found.unwrap().rule, 5);
    let expected =
        ["0 Method", "1 Header(\"x-a\")", "4 Host", "2 Query(\"q\")", "5 Path", "3 From", "5 Holds"];
    assert_eq!(steps, expected);
}

/// However `/admin` is written, no rule but its own takes it, or it is refused.
#[test]
fn no_spelling_goes_around_a_rule() {
    let rules = rules(&["- /admin/*", "- /static/**.css", "- /public/*", "- ~/.*[.](js|css)", "- -"]);
    let spellings = [
        "/admin",
        "/admin/",
        "//admin",
        "///admin//",
        "/./admin",
        "/%2e/admin",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/x/.%2E/admin",
        "/%61dmin",
        "/%61%64%6d%69%6E",
        "/admin;x",
        "/admin;/",
        "/admin%3bx",
        "/;x/admin",
        "/;/;/admin",
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public//../admin",
        "/public/..;/admin",
        "/public;/../admin",
        "/public/..%2fadmin",
        "/public%2f..%2fadmin",
        "/public\\..\\admin",
        "/public/..%5cadmin",
        "/public/%2e%2e;/admin",
        "/admin%2f",
        "/admin%00",
        "/admin%00.css",
        "/admin%0a.css",
        "/admin?x",
        "/admin/?x=/public/",
        "/admin#/public",
        "/admin/x;.css",
        "/admin/x.css",
        "/static/../admin/a.css",
        "/static/..;/admin/a.css",
        "/admin/.",
        "/admin/..;/x",
        "http://a.test/admin",
        "http://a.test//admin",
        "HTTP://A.test/%61dmin",
        "/a/b/../../admin",
        "/%c0%ae%c0%ae/admin",
        "/public/%c0%ae%c0%ae/admin",
        "/admin%",
        "/admin%2",
        "/../admin",
        "/%2e%2e/admin",
        "/public/../../admin",
        "/admin/%2e",
        "/admin/x/..",
        "/admin//x",
        "/x;y/../admin",
        "/x%3by/../admin",
        "/public/%2e%2e%3b/admin",
    ];
    let headers: HeaderMap = [(http::header::HOST, HeaderValue::from_static("a.test"))].into_iter().collect();
    let mut taken = 0;
    for spelling in spellings {
        let Ok(target) = Target::read(&Method::GET, spelling, &headers, Spoken::Http11) else { continue };
        assert_eq!(found(&rules, &target.host, target.match_path()), Some(0), "{spelling}");
        taken += 1;
    }
    assert!(taken > 30, "{taken}");
    // And what is not there is not taken for it.
    for other in
        ["/adminx", "/Admin", "/x/admin", "/public/admin", "/admin/../x", "/%2561dmin", "/admin%2561"]
    {
        let target = Target::read(&Method::GET, other, &headers, Spoken::Http11).unwrap();
        assert_ne!(found(&rules, &target.host, target.match_path()), Some(0), "{other}");
    }
}

#[test]
fn ten_thousand_sites_are_looked_up() {
    let sites: Vec<_> = (0..10_000).map(|site| rule(when(&format!("site{site}.test -")))).collect();
    let rules = Rules::new(&sites);
    let headers = HeaderMap::new();
    let mut steps = 0;
    let asked = Asked {
        host: "site9999.test",
        path: "/",
        method: &Method::GET,
        headers: &headers,
        query: None,
        client: CLIENT,
    };
    assert_eq!(rules.find_traced(&asked, &mut |_| steps += 1).unwrap().rule, 9_999);
    assert_eq!(steps, 1);
}

const HOSTS: [&str; 7] = ["a.x.test", "x.test", "*.test", "*.x.test", "~a[.].*", "~.*[.]test", "*"];
const PATHS: [&str; 8] = ["/a", "/a/b", "/a/*", "/a/b/*", "/a/**", "/**/b", "~/a.*", "~/.*"];

/// How specific a host is, by the words of the documentation; smaller is more.
fn host_order(pattern: Option<&NamePattern>, host: &str) -> Option<(u8, usize)> {
    match pattern {
        Some(NamePattern::Exact(name)) => (name.as_str() == host).then_some((0, 0)),
        Some(NamePattern::Suffix(name)) => {
            let before = host.strip_suffix(name.as_str())?.strip_suffix('.')?;
            (!before.is_empty()).then_some((1, 1000 - name.as_str().len()))
        }
        Some(NamePattern::Regex(regex)) => regex.is_match(host).then_some((2, 0)),
        Some(NamePattern::Any) | None => Some((3, 0)),
    }
}

fn path_order(pattern: Option<&PathPattern>, path: &str) -> Option<(u8, usize)> {
    match pattern {
        Some(PathPattern::Exact(exact)) => (**exact == *path).then_some((0, 1000 - exact.len())),
        Some(PathPattern::Prefix(prefix)) => {
            let below = format!("{prefix}/");
            (**prefix == *path || path.starts_with(&below)).then_some((1, 1000 - prefix.len()))
        }
        Some(PathPattern::Glob(regex, text)) => {
            regex.is_match(path).then(|| (2, 1000 - text.split('*').next().unwrap_or_default().len()))
        }
        Some(PathPattern::Regex(regex, _)) => regex.is_match(path).then_some((3, 0)),
        None => Some((4, 0)),
    }
}

/// The patterns, or the one that takes anything where there are none.
fn or_any<T>(patterns: &[T]) -> impl Iterator<Item = Option<&T>> {
    patterns.iter().map(Some).chain(patterns.is_empty().then_some(None))
}

/// Every rule looked at in turn.
fn by_search(rules: &[RuleConfig], host: &str, path: &str, method: &Method) -> Option<usize> {
    let orders = rules.iter().enumerate().filter_map(|(index, rule)| {
        let when = &rule.when;
        let host = or_any(&when.hosts).filter_map(|pattern| host_order(pattern, host)).min()?;
        let path = or_any(&when.paths).filter_map(|pattern| path_order(pattern, path)).min()?;
        let holds = when.methods.is_empty() || when.methods.contains(method);
        holds.then_some((host, path, when.methods.is_empty(), index))
    });
    orders.min().map(|(.., index)| index)
}

fn any_rule() -> impl Strategy<Value = RuleConfig> {
    let hosts = prop::collection::vec(prop::sample::select(&HOSTS[..]), 0..3);
    let paths = prop::collection::vec(prop::sample::select(&PATHS[..]), 0..3);
    let methods = prop::sample::subsequence(vec![Method::GET, Method::POST], 0..=1);
    (hosts, paths, methods).prop_map(|(hosts, paths, methods)| {
        let hosts = hosts.into_iter().map(host).collect();
        let paths = paths.into_iter().map(path).collect();
        rule(RequestConditions { hosts, paths, methods, ..RequestConditions::default() })
    })
}

proptest! {
    /// The same as by looking at every rule.
    #[test]
    fn the_order_is_the_one_that_is_documented(rules in prop::collection::vec(any_rule(), 0..12)) {
        let arranged = Rules::new(&rules);
        for host in ["a.x.test", "b.x.test", "x.test", "test", "a.other", ""] {
            for path in ["/", "/a", "/a/", "/a/b", "/a/b/c", "/c/b", "*"] {
                for method in [Method::GET, Method::POST, Method::PUT] {
                    let headers = HeaderMap::new();
                    let asked = Asked { host, path, method: &method, headers: &headers, query: None, client: CLIENT };
                    let found = arranged.find(&asked).map(|found| found.rule);
                    prop_assert_eq!(found, by_search(&rules, host, path, &method), "{} {}{}", method, host, path);
                }
            }
        }
    }

    #[test]
    fn nothing_panics(query in "\\PC*", name in "[a+% ]{0,3}") {
        for pattern in [ValuePattern::Present, value("a b"), value("~.*")] {
            let _ = parameter_matches(Some(&query), &name, &pattern);
        }
    }
}
