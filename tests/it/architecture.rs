//! The shape of the source: which room may know which, how long files are, what names say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use regex::Regex;

/// The rooms of the crate by height: imports go downwards only. Those on one floor may import `telemetry`
/// and no other neighbour.
const FLOORS: [&[&str]; 13] = [
    &["net"],
    &["peek"],
    &["prelude"],
    &["config"],
    &["tls", "telemetry"],
    &["guard", "route", "upstream", "service"],
    &["http"],
    &["snapshot", "probe"],
    &["conn"],
    &["drain"],
    &["control", "handover"],
    &["admin", "worker"],
    &["server"],
];
/// Above all floors.
const TOP: [&str; 2] = ["cli", "main"];
const MAX_LINES: usize = 600;

/// The source files that are not tests, with their text up to their own tests.
fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let mut files = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    files.retain(|file| {
        !file.components().any(|part| ["tests.rs", "tests"].iter().any(|name| part.as_os_str() == *name))
    });
    let read = |file: PathBuf| {
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned();
        (file, code)
    };
    let sources: Vec<_> = files.into_iter().map(read).collect();
    assert!(sources.len() > 20, "only {} files found", sources.len());
    sources
}

/// The top-level module that a file belongs to.
fn room(file: &Path) -> String {
    let inside = file.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// Which rooms each room names in its code, comments aside.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let path = Regex::new(r"\b(?:crate|portcullis)::(?:\{([^;]*)\}|([a-z_]+))").unwrap();
    let in_group = Regex::new(r"(?:^|,)\s*([a-z_]+)").unwrap();
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (file, text) in sources() {
        let room = room(&file);
        let code: String = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .map(|line| format!("{line}\n"))
            .collect();
        let known = graph.entry(room.clone()).or_default();
        for found in path.captures_iter(&code) {
            if let Some(group) = found.get(1) {
                known.extend(in_group.captures_iter(group.as_str()).map(|name| name[1].to_owned()));
            } else {
                known.insert(found[2].to_owned());
            }
        }
        known.remove(&room);
    }
    graph
}

fn floor(room: &str) -> usize {
    if TOP.contains(&room) {
        return FLOORS.len() + TOP.iter().position(|name| *name == room).unwrap();
    }
    let found = FLOORS.iter().position(|floor| floor.contains(&room));
    found.unwrap_or_else(|| panic!("`{room}` has no place among the floors"))
}

#[test]
fn imports_go_downwards_only() {
    let graph = imports();
    assert!(graph.values().map(BTreeSet::len).sum::<usize>() > 15, "too few imports found: {graph:?}");
    let mut wrong = Vec::new();
    for (room, known) in graph.iter().filter(|(room, _)| *room != "lib") {
        for other in known {
            let (from, to) = (floor(room), floor(other));
            if from < to || (from == to && (other != "telemetry")) {
                wrong.push(format!("{room} imports {other}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_two_rooms_know_each_other_by_any_way() {
    let graph = imports();
    for start in graph.keys() {
        let mut reached = BTreeSet::new();
        let mut open: Vec<&String> = graph[start].iter().collect();
        while let Some(room) = open.pop() {
            if reached.insert(room) {
                open.extend(graph.get(room).into_iter().flatten());
            }
        }
        assert!(!reached.contains(start), "a circle through `{start}`: it reaches {reached:?}");
    }
}

#[test]
fn files_are_short() {
    for (file, code) in sources() {
        let lines = code.lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines without tests", file.display());
    }
}

#[test]
fn names_follow_the_rules() {
    let getter = Regex::new(r"\bfn get_|\b(?:struct|enum|trait) \w*(?:Manager|Helper|Util)\b").unwrap();
    for (file, code) in sources() {
        let found = getter.find(&code).map(|found| found.as_str());
        assert_eq!(found, None, "in {}", file.display());
    }
}

#[test]
fn only_the_command_line_uses_anyhow() {
    for (file, code) in sources() {
        let allowed = TOP.contains(&room(&file).as_str());
        assert!(allowed || !code.contains("anyhow::"), "{}", file.display());
    }
}
