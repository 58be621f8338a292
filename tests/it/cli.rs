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
