//! The configurations that come with the package load, and the broken ones fail as they should.

use std::path::{Path, PathBuf};

use crate::support::proxy::on_file;

/// The `*.toml` files of a folder of the package; it must have some.
fn samples(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    assert!(!files.is_empty(), "no *.toml in {}", folder.display());
    files.sort();
    files
}

#[test]
fn every_configuration_that_users_start_from_passes_the_check() {
    for file in samples("config") {
        let checked = on_file("check", &file, &[]);
        assert_eq!(checked.code, Some(0), "{}: {}{}", file.display(), checked.stdout, checked.stderr);
    }
}

/// The errors that a sample's head announces: `# error: kind, kind @ line:column`, the place being the first one's.
fn announced(file: &Path) -> String {
    let bytes = std::fs::read(file).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().find_map(|line| line.strip_prefix("# error: "));
    line.unwrap_or_else(|| panic!("{} announces no error", file.display())).to_owned()
}

#[test]
fn every_broken_sample_is_refused_with_the_errors_that_it_announces() {
    for file in samples("tests/data/config/invalid") {
        let place = file.display();
        let checked = on_file("check", &file, &[]);
        assert_eq!(checked.code, Some(78), "{place}: {}", checked.stdout);
        let text = checked.stderr;
        assert!(text.contains(".toml") && !text.contains("panicked"), "{place}: {text}");
        let json = on_file("check", &file, &["--json"]);
        assert_eq!(json.code, Some(78), "{place}: {json:?}");
        let report: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
        let errors = report["errors"].as_array().unwrap();
        let kinds: Vec<&str> = errors.iter().map(|error| error["kind"].as_str().unwrap()).collect();
        let told = format!("{} @ {}:{}", kinds.join(", "), errors[0]["line"], errors[0]["column"]);
        assert_eq!(told, announced(&file), "{place}");
    }
}
