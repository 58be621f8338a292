//! Large, damaged and meaningless configurations.

use std::time::Instant;

use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};

use super::*;

#[test]
fn a_hundred_thousand_routes_resolve_quickly() {
    let mut text = "listen = \":443\"\n".to_owned();
    for n in 0..100_000 {
        let key = match n % 2 {
            0 => format!("sni = \"host{n}.example.com\""),
            _ => format!("sni = \"*\"\nfrom = \"10.{}.{}.{}\"", n >> 16, n >> 8 & 255, n & 255),
        };
        text.push_str(&format!("[[route]]\n{key}\nto = \"10.0.0.1:443\"\n"));
    }
    // Time of this thread on a processor, which other work on the machine does not add to.
    let cpu = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let start = cpu();
    assert_eq!(parse(&text).unwrap().routes.len(), 100_000);
    let took = cpu() - start;
    assert!(took < secs(5), "{took:?}");
    let again = "[[route]]\nsni = \"host99998.example.com\"\nreject = \"close\"\n";
    assert_eq!(kinds(&parse(&format!("{text}{again}")).unwrap_err()), ["duplicate-route"]);
}

#[test]
fn large_nonsense_ends_quickly_and_without_panic() {
    let start = Instant::now();
    for unit in
        ["[", "a.", "[[a]]\n", "x = 1\n", "\0", "x", "\"", "{a=", "[a.b.c]\n", "é\n", "\r", "'''", "=\n"]
    {
        let text = unit.repeat(1024 * 1024 / unit.len());
        let errors = parse(&text).unwrap_err();
        assert!(errors.render(true).len() < 1024 * 1024, "{unit:?}");
        errors.to_json();
    }
    assert!(start.elapsed() < secs(60), "{:?}", start.elapsed());
}

/// Resolves `text` and draws what is wrong with it.
fn survive(text: &str) {
    if let Err(errors) = parse(text) {
        assert!(errors.iter().len() > 0);
        errors.render(true);
        errors.to_json();
    }
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in any::<String>()) {
        survive(&text);
    }

    #[test]
    fn scraps_of_toml_never_panic(scraps in prop::collection::vec(prop::sample::select(vec![
        "[[", "]]", "[", "]", "{", "}", "=", ",", ".", "\n", "\r\n", "\"", "'", "\"\"\"", "#", " ", "\t", "é", "\0",
        "route", "test", "listen", "listener", "sni", "to", "from", "hello", "expect", "timeouts", "idle", "name",
        "\"a.test\"", "\":443\"", "\"5s\"", "\"10.0.0.0/8\"", "443", "1.5", "true", "1979-05-27", "\"*\"", "\"~(\"",
        "[[route]]\nsni = \"a.test\"\nto = \"b:1\"\n", "[[test]]\n", "include", "rate_limit", "{ }",
    ]), 0..60)) {
        survive(&scraps.concat());
    }

    #[test]
    fn damaged_configurations_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..40, any::<char>()), 1..8),
    ) {
        let mut text: Vec<char> = EXAMPLE.chars().collect();
        for (index, cut, new) in edits {
            let at = index.index(text.len().max(1)).min(text.len());
            let end = (at + cut).min(text.len());
            text.splice(at..end, [new]);
        }
        survive(&text.into_iter().collect::<String>());
    }

    #[test]
    fn bytes_of_any_kind_in_a_file_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("main.toml");
        fs::write(&path, [EXAMPLE.as_bytes(), &bytes].concat()).unwrap();
        if let Err(errors) = Config::load(&path) {
            errors.render(false);
        }
    }
}
