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

#[test]
fn every_broken_sample_is_refused_with_its_place() {
    for file in samples("tests/data/config/invalid") {
        let checked = on_file("check", &file, &[]);
        assert_eq!(checked.code, Some(78), "{}: {}", file.display(), checked.stdout);
        assert!(!checked.stderr.contains("panicked"), "{}: {}", file.display(), checked.stderr);
        let name = file.file_name().unwrap().to_str().unwrap();
        // The place may be in a file that the sample includes.
        assert!(checked.stderr.contains(".toml:"), "{name}: {}", checked.stderr);
        let json = on_file("check", &file, &["--json"]);
        let report: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
        assert!(report["errors"].as_array().is_some_and(|errors| !errors.is_empty()), "{name}: {report:#}");
    }
}
