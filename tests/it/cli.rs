//! The verbs that answer and end: their output and exit codes.

use crate::support::hello::{Keys, in_records, real};
use crate::support::proxy::{on_config, on_file, portcullis};

const GOOD: &str = "listen = '127.0.0.1:0'\n\
    [[route]]\nname = 'app'\nsni = 'app.test'\nto = '127.0.0.1:9001'\n\
    [[route]]\nname = 'wild'\nsni = '*.app.test'\nalpn = 'h2'\nto = ['127.0.0.1:9002', '127.0.0.1:9003']\n\
    [[route]]\nname = 'no'\nsni = 'no.test'\nreject = 'reset'\n\
    [[route]]\nname = 'shell'\nprotocol = 'ssh'\nfrom = '10.0.0.0/8'\nto = '127.0.0.1:22'\n";

#[test]
fn a_good_configuration_passes_the_check() {
    let checked = on_config("check", GOOD, &[]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    for part in ["app.test", "*.app.test", "127.0.0.1:9002", "reset"] {
        assert!(checked.stdout.contains(part), "{part} in {}", checked.stdout);
    }
}

#[test]
fn a_bad_configuration_is_told_with_place_and_hint() {
    let table = [
        ("listn = ':443'\n", ["portcullis.toml:1:1", "listn", "listen"]),
        (
            "listen = '127.0.0.1:0'\n[[route]]\nsnl = 'a.test'\nto = '127.0.0.1:1'\n",
            ["portcullis.toml:3:1", "snl", "sni"],
        ),
        ("listen = '127.0.0.1:0'\ntimeouts = { idle = 5 }\n", ["portcullis.toml:2", "idle", "s"]),
        (
            "listen = '127.0.0.1:0'\n[[route]]\nsni = 'a..test'\nto = '127.0.0.1:1'\n",
            ["portcullis.toml:3", "a..test", ""],
        ),
        ("listen = \n", ["portcullis.toml:1", "", ""]),
    ];
    for (config, parts) in table {
        let checked = on_config("check", config, &[]);
        assert_eq!(checked.code, Some(78), "{config}{checked:?}");
        for part in parts {
            assert!(checked.stderr.contains(part), "{part} in {}", checked.stderr);
        }
        assert!(checked.stderr.contains('^'), "the place is pointed at: {}", checked.stderr);
        assert_eq!(on_config("run", config, &[]).code, Some(78), "{config}");
        assert_eq!(on_config("explain", config, &["--sni", "a.test"]).code, Some(78), "{config}");
    }
}

#[test]
fn all_errors_are_told_at_once() {
    let config = "listen = '127.0.0.1:99999'\nworkrs = 2\n[[route]]\nsni = 'a.test'\n[[route]]\nsni = 'b..test'\nto = 'x'\n";
    let checked = on_config("check", config, &["--json"]);
    assert_eq!(checked.code, Some(78), "{checked:?}");
    let report: serde_json::Value = serde_json::from_str(&checked.stdout).unwrap();
    assert_eq!(report["ok"], false);
    assert!(report["errors"].as_array().unwrap().len() >= 4, "{report:#}");
}

#[test]
fn two_routes_for_the_same_thing_are_an_error_that_points_at_both() {
    let config = "listen = '127.0.0.1:0'\n[[route]]\nsni = 'a.test'\nto = '127.0.0.1:1'\n\
                  [[route]]\nsni = ['b.test', 'A.test']\nto = '127.0.0.1:2'\n";
    let checked = on_config("check", config, &[]);
    assert_eq!(checked.code, Some(78), "{checked:?}");
    // Both places: the second route's name and the first one's.
    assert!(
        checked.stderr.contains("sni = 'a.test'") && checked.stderr.contains("'A.test'"),
        "{}",
        checked.stderr
    );
}

#[test]
fn check_shows_every_setting_and_speaks_json() {
    let effective = on_config("check", GOOD, &["--effective"]);
    assert_eq!(effective.code, Some(0), "{effective:?}");
    for key in ["timeouts.hello", "timeouts.idle", "max_hello_size", "unknown_sni", "default"] {
        assert!(effective.stdout.contains(key), "{key} in {}", effective.stdout);
    }
    assert!(effective.stdout.contains("portcullis.toml:"), "{}", effective.stdout);
    let json = on_config("check", GOOD, &["--json", "--effective"]);
    let report: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&report["ok"], json.code), (&true.into(), Some(0)));
    assert!(report["effective"].as_array().is_some_and(|list| list.len() > 10), "{report:#}");
}

#[test]
fn explain_names_the_route_its_place_and_every_rule_tried() {
    let explain = |args: &[&str]| {
        let got = on_config("explain", GOOD, args);
        assert_eq!(got.code, Some(0), "{got:?}");
        got.stdout
    };
    let app = explain(&["--sni", "App.test."]);
    for part in ["app.test", "`app`", "portcullis.toml:", "127.0.0.1:9001"] {
        assert!(app.contains(part), "{part} in {app}");
    }
    let wild = explain(&["--sni", "x.app.test", "--alpn", "h2"]);
    assert!(wild.contains("`wild`") && wild.contains("127.0.0.1:9003"), "{wild}");
    let tried = wild.lines().filter(|line| line.starts_with("tried")).count();
    assert!(tried >= 2, "the exact name was tried before the wildcard: {wild}");
    let without = explain(&["--sni", "x.app.test"]);
    assert!(without.contains("unknown_sni") || without.contains("unknown SNI"), "{without}");
    assert!(without.to_lowercase().contains("alpn"), "why `wild` did not match: {without}");
    assert!(explain(&["--sni", "no.test"]).contains("reset"));
    assert!(explain(&["--protocol", "ssh", "--from", "10.1.2.3"]).contains("127.0.0.1:22"));
    assert!(!explain(&["--protocol", "ssh", "--from", "11.1.2.3"]).contains("127.0.0.1:22"));
    assert!(explain(&[]).contains("112"), "a hello without SNI gets an alert");
}

const OF_HTTP: &str = "[[listener]]\nname = 'open'\nbind = '127.0.0.1:443'\n\
    [[listener]]\nname = 'clear'\nbind = '127.0.0.1:80'\n\
    [[route]]\nname = 'web'\nsni = ['www.test', 'm.test']\ntls = 'self-signed'\nto = 'http://127.0.0.1:9001'\n\
    host_header = 'app.{host}'\ntrusted_proxies = '10.0.0.0/8'\n\
    [[route.rule]]\nname = 'beta'\npath = '/api/*'\nheader = { x-beta = '1' }\nquery = { debug = '*' }\nstrip = '/api'\n\
    split = [{ name = 'old', weight = 3, to = 'h2c://127.0.0.1:9003' }, { name = 'new', to = 'h2c://127.0.0.1:9004' }]\n\
    [[route.rule]]\nname = 'api'\npath = '/api/*'\nmethod = 'GET'\nstrip = '/api'\nadd = '/v1'\nto = 'http://127.0.0.1:9002'\n\
    [[route.rule]]\nname = 'moved'\npath = '~/blog/([0-9]+)'\nredirect = { to = 'https://blog.test/{1}{query}', status = 301 }\n\
    [[route.rule]]\nname = 'static'\npath = '/static/*'\nfiles = { root = '/srv/www', strip = '/static' }\n\
    [[route.rule]]\nname = 'inside'\npath = '/health'\nfrom = '192.0.2.0/24'\nanswer = { status = 200, body = 'ok {client}' }\n\
    [[route]]\nname = 'other'\nsni = 'other.test'\ntls = 'self-signed'\nanswer = 403\n\
    [[route]]\nname = 'plain'\nprotocol = 'http'\nlistener = 'clear'\n[[route.rule]]\nhost = '*.test'\npath = '/a'\nanswer = 204\n";

/// What is explained of a request, which ends well.
fn explained(args: &[&str]) -> String {
    let got = on_config("explain", OF_HTTP, args);
    assert_eq!(got.code, Some(0), "{got:?}");
    got.stdout
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn explain_follows_a_request_to_its_rule_and_beyond() {
    let api = explained(&["GET", "https://www.test/x/..//api/%75ser?debug=1#top"]);
    says(
        &api,
        &[
            "on listener `open`, TLS, SNI www.test, ALPN h2,http/1.1",
            "request   GET /api/user?debug=1 of www.test",
            "rule `beta` (",
            "the field `x-beta` is not there, or has another value",
            "any host, /api/*: rule `api` (",
            "portcullis.toml:",
            "result    rule `api` (",
            "backends  http://127.0.0.1:9002",
            "asked for /v1/user?debug=1, host www.test",
        ],
    );
    let (beta, result) = (api.find("rule `beta`").unwrap(), api.find("result    rule").unwrap());
    assert!(beta < result && !api.contains("rule `moved`: "), "{api}");
    let beta = explained(&["GET", "https://www.test:443/api/x?debug", "--header", "X-Beta: 1"]);
    says(
        &beta,
        &[
            "result    rule `beta` (",
            "variant   `old`, 3 of 4",
            "h2c://127.0.0.1:9003",
            "variant   `new`, 1 of 4",
            "asked for /x?debug, host www.test:443",
        ],
    );
    let post = explained(&["POST", "https://www.test/api"]);
    says(
        &post,
        &[
            "the method is none of its",
            "result    the route itself (",
            "9001",
            "asked for /api, host app.www.test",
        ],
    );
    says(
        &explained(&["GET", "https://m.test/blog/7?a=b"]),
        &["rule `moved`", "sees 301 to https://blog.test/7?a=b"],
    );
    says(
        &explained(&["GET", "https://m.test/static/a.css"]),
        &["files     in /srv/www, by the path behind /static"],
    );
    let health = ["GET", "https://m.test/health", "--ip"];
    says(&explained(&[&health[..], &["192.0.2.7"]].concat()), &["sees 200, and \"ok 192.0.2.7\""]);
    says(
        &explained(&[&health[..], &["198.51.100.1"]].concat()),
        &["in none of its networks", "the route itself"],
    );
    let named = [&health[..], &["10.0.0.1", "--header", "X-Forwarded-For: 192.0.2.9"]].concat();
    says(&explained(&named), &["client    192.0.2.9, by the word of 10.0.0.1", "ok 192.0.2.9"]);
}

#[test]
fn explain_tells_of_requests_in_clear_and_of_those_that_are_refused() {
    let clear = explained(&["GET", "http://a.test/a;v=1"]);
    says(
        &clear,
        &[
            "on listener `clear`, protocol http",
            "rules look at /a",
            "host *.test, /a: rule",
            "sees 204, and nothing",
        ],
    );
    says(
        &explained(&["GET", "http://127.0.0.1/a"]),
        &["result    the route itself", "sees 404, and the page of an error"],
    );
    for (args, status) in [
        (&["GET", "https://www.test/a%2fb"][..], "400 Bad Request (path_slash)"),
        (&["GET", "https://www.test/../a"], "400 Bad Request (path_climb)"),
        (&["TRACE", "https://www.test/"], "405 Method Not Allowed (method)"),
        (&["GET", "https://other.test/", "--sni", "www.test"], "421 Misdirected Request (misdirected)"),
        (
            &["GET", "https://www.test/", "--alpn", "http/1.1", "--header", "Host: a b"],
            "400 Bad Request (host_bad)",
        ),
        (&["GET", "https://www.test/", "--header", "Host: m.test"], "400 Bad Request (host_differs)"),
    ] {
        says(&explained(args), &[&format!("result    refused with {status}")]);
    }
    // Two names of one route.
    says(&explained(&["GET", "https://m.test/", "--sni", "www.test"]), &["result    the route itself"]);
    let redirect = format!("{GOOD}[[route]]\nprotocol = 'http'\nredirect = 'https'\n");
    for (url, seen) in [
        ("http://app.test:80/a?b", "sees 308 to https://app.test/a?b"),
        ("http://b.test/", "sees 421: no route takes the host"),
        ("http://192.0.2.1/", "sees 400"),
    ] {
        says(&on_config("explain", &redirect, &["GET", url]).stdout, &[seen]);
    }
    let streams = on_config("explain", GOOD, &["GET", "https://app.test/"]);
    says(&streams.stdout, &["127.0.0.1:9001", "request   not looked at"]);
    for bad in [
        &["GET"][..],
        &["GET", "www.test"],
        &["GET", "ftp://www.test/"],
        &["GET", "https:///a"],
        &["--header", "X-Beta: 1"],
        &["GET", "https://a.test/", "--header", "X-Beta"],
        &["GET", "https://a.test/", "--hello", "f"],
    ] {
        assert_eq!(on_config("explain", OF_HTTP, bad).code, Some(2), "{bad:?}");
    }
}

#[test]
fn explain_reads_a_hello_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("hello.bin");
    let config = dir.path().join("portcullis.toml");
    std::fs::write(&config, GOOD).unwrap();
    std::fs::write(&file, in_records(&real(Some("x.app.test"), &["h2"], Keys::PostQuantum), 100)).unwrap();
    let got = on_file("explain", &config, &["--hello", file.to_str().unwrap()]);
    assert!(got.stdout.contains("`wild`"), "{got:?}");
    std::fs::write(&file, [22, 3, 1, 0, 0]).unwrap();
    let bad = on_file("explain", &config, &["--hello", file.to_str().unwrap()]);
    assert!(bad.stdout.contains("refused"), "{bad:?}");
    assert_ne!(on_file("explain", &config, &["--listener", "nobody"]).code, Some(0));
}

#[test]
fn a_failing_test_stops_run_and_check_and_says_what_came_out() {
    let config = format!(
        "{GOOD}[[test]]\nname = 'right'\nhello = {{ sni = 'app.test' }}\nexpect = 'passthrough'\n\
         [[test]]\nname = 'wrong'\nhello = {{ sni = 'x.app.test' }}\nexpect = {{ action = 'passthrough', route = 'wild' }}\n"
    );
    for verb in ["check", "run"] {
        let got = on_config(verb, &config, &[]);
        assert_eq!(got.code, Some(78), "{got:?}");
        let text = format!("{}{}", got.stdout, got.stderr);
        assert!(text.contains("wrong") && text.contains("wild"), "{text}");
        assert!(
            text.contains("unknown_sni") || text.contains("unknown SNI"),
            "what came out instead: {text}"
        );
        assert!(!text.contains("`right`"), "{text}");
    }
    let report = on_config("check", &config, &["--json"]);
    let report: serde_json::Value = serde_json::from_str(&report.stdout).unwrap();
    assert_eq!(report["failed"].as_array().map(Vec::len), Some(1), "{report:#}");
    assert_eq!(report["tests"], 2);
}

#[test]
fn tests_that_hold_are_counted() {
    let config = format!(
        "{GOOD}[[test]]\nhello = {{ sni = 'x.app.test', alpn = ['h2'] }}\nexpect = {{ route = 'wild', to = '127.0.0.1:9002' }}\n\
         [[test]]\nhello = {{ sni = 'no.test' }}\nexpect = {{ action = 'reject', reject = 'reset' }}\n\
         [[test]]\nprotocol = 'ssh'\nfrom = '10.0.0.1'\nexpect = {{ route = 'shell' }}\n\
         [[test]]\nhello = {{ }}\nexpect = 'reject'\n"
    );
    let got = on_config("check", &config, &[]);
    assert_eq!(got.code, Some(0), "{got:?}");
    assert!(got.stdout.contains("4 of 4 tests"), "{}", got.stdout);
}

#[test]
fn bad_usage_and_absent_files_have_their_codes() {
    assert_eq!(portcullis(&["fly"]).code, Some(2));
    assert_eq!(portcullis(&["run", "--workers", "0"]).code, Some(2));
    assert_eq!(portcullis(&[]).code, Some(2));
    assert_eq!(portcullis(&["--version"]).code, Some(0));
    let absent = portcullis(&["check", "--config", "/nonexistent/portcullis.toml"]);
    assert_eq!(absent.code, Some(78), "{absent:?}");
    assert!(absent.stderr.contains("/nonexistent/portcullis.toml"), "{}", absent.stderr);
}

#[test]
fn schema_completions_and_manual_are_there() {
    let schema: serde_json::Value = serde_json::from_str(&portcullis(&["schema"]).stdout).unwrap();
    for key in ["listen", "route", "timeouts", "rate_limit", "connection_limit", "access_log", "admin"] {
        assert!(schema["properties"][key].is_object(), "{key} in {schema:#}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = portcullis(&["completions", shell]);
        assert!(script.code == Some(0) && script.stdout.contains("quickstart"), "{shell}");
    }
    let man = portcullis(&["man"]);
    assert!(
        man.code == Some(0) && man.stdout.contains(".TH") && man.stdout.contains("portcullis"),
        "{man:?}"
    );
    // Verbs of verbs have pages, too.
    assert!(man.stdout.contains(".TH portcullis-upstream-drain"), "{}", man.stdout);
}
