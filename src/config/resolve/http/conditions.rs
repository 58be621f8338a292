//! Which requests a rule takes.

use std::collections::HashMap;
use std::fmt::Display;

use http::HeaderName;

use super::super::super::decode::{At, OneOrMany, Setting};
use super::super::super::error::{ConfigError, ErrorKind};
use super::super::super::http_keys::Rule;
use super::super::super::http_values::{FieldName, Named, QueryName};
use super::super::super::source::Place;
use super::super::super::values::SniWord;
use super::super::super::{NamePattern, PathPattern, RequestConditions, RuleConfig, ValuePattern};
use super::super::{Output, string, strings};

/// A rule, and where it is.
pub(super) struct Found {
    pub(super) rule: RuleConfig,
    pub(super) place: Place,
}

/// `None` when an error was reported.
pub(super) fn resolve(prefix: &str, rule: &Rule, out: &mut Output) -> Option<RequestConditions> {
    let bad = rule.host.is_bad()
        || rule.path.is_bad()
        || rule.method.is_bad()
        || rule.header.is_bad()
        || rule.query.is_bad()
        || rule.from.is_bad();
    let hosts = hosts(prefix, &rule.host, out);
    let paths = values(prefix, "path", &rule.path, ToString::to_string, out);
    let methods = values(prefix, "method", &rule.method, |method| method.0.to_string(), out);
    let from = values(prefix, "from", &rule.from, ToString::to_string, out);
    let headers = fields(prefix, &rule.header, out);
    let query = parameters(prefix, &rule.query, out);
    if bad {
        return None;
    }
    Some(RequestConditions {
        hosts: hosts?,
        paths,
        methods: methods.into_iter().map(|method| method.0).collect(),
        headers: headers?,
        query,
        from,
    })
}

/// The values of a list, each once, noted.
fn values<T: Clone>(
    prefix: &str,
    key: &str,
    setting: &Setting<OneOrMany<T>>,
    text: impl Fn(&T) -> String,
    out: &mut Output,
) -> Vec<T> {
    let Some(at) = setting.given() else { return Vec::new() };
    out.check_repeated(&at.value.0, &text);
    out.note(
        format!("{prefix}.{key}"),
        strings(at.value.0.iter().map(|at| text(&at.value))),
        Some(&at.place),
    );
    at.value.0.iter().map(|at| at.value.clone()).collect()
}

fn hosts(prefix: &str, setting: &Setting<OneOrMany<SniWord>>, out: &mut Output) -> Option<Vec<NamePattern>> {
    let none = setting.values().iter().find(|at| at.value == SniWord::None);
    if let Some(at) = none {
        let error = ConfigError::new(ErrorKind::BadName, "every request asks for a host").at(&at.place);
        out.report(error.hint("write a name, `*.suffix`, `~regex`, or `*` for any"));
        return None;
    }
    let words = values(prefix, "host", setting, ToString::to_string, out);
    let names = words.into_iter().filter_map(|word| match word {
        SniWord::Name(pattern) => Some(pattern),
        SniWord::None => None,
    });
    Some(names.collect())
}

fn fields(
    prefix: &str,
    setting: &Setting<Named<FieldName, ValuePattern>>,
    out: &mut Output,
) -> Option<Vec<(HeaderName, ValuePattern)>> {
    let Some(at) = setting.given() else { return Some(Vec::new()) };
    let names = at.value.0.iter().map(|(name, _)| (&name.value.0, &name.place));
    once_each(names, out)?;
    note(format!("{prefix}.header"), at, |name| name.0.to_string(), out);
    Some(at.value.0.iter().map(|(name, value)| (name.value.0.clone(), value.value.clone())).collect())
}

fn parameters(
    prefix: &str,
    setting: &Setting<Named<QueryName, ValuePattern>>,
    out: &mut Output,
) -> Vec<(Box<str>, ValuePattern)> {
    let Some(at) = setting.given() else { return Vec::new() };
    note(format!("{prefix}.query"), at, |name| name.0.to_string(), out);
    at.value.0.iter().map(|(name, value)| (name.value.0.clone(), value.value.clone())).collect()
}

/// Reports a field whose name is written in two ways; `None` when it does.
pub(super) fn once_each<'n>(
    names: impl Iterator<Item = (&'n HeaderName, &'n Place)>,
    out: &mut Output,
) -> Option<()> {
    let mut seen: HashMap<&HeaderName, &Place> = HashMap::new();
    for (name, place) in names {
        if let Some(first) = seen.insert(name, place) {
            let error =
                ConfigError::new(ErrorKind::DuplicateValue, format!("`{name}` is given twice")).at(place);
            out.report(error.also(first, "first given here"));
            return None;
        }
    }
    Some(())
}

/// Notes a table of names and values.
pub(super) fn note<K, V: Display>(
    key: String,
    at: &At<Named<K, V>>,
    name: impl Fn(&K) -> String,
    out: &mut Output,
) {
    let entries = at
        .value
        .0
        .iter()
        .map(|(key, value)| format!("{} = {}", bare(&name(&key.value)), string(&value.value)));
    let text = format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "));
    out.note(key, text, Some(&at.place));
}

/// A key of TOML.
pub(super) fn bare(name: &str) -> String {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if plain { name.to_owned() } else { string(name) }
}

/// How many groups the expressions of paths have, if there are any.
pub(super) fn groups(paths: &[PathPattern]) -> Option<usize> {
    let of_path = |path: &PathPattern| match path {
        PathPattern::Regex(regex, _) => Some(regex.captures_len().saturating_sub(1)),
        PathPattern::Exact(_) | PathPattern::Prefix(_) | PathPattern::Glob(..) => None,
    };
    paths.iter().filter_map(of_path).max()
}

/// Reports rules that take what another one takes; `own` is where the route says what becomes of the rest. Their order does not matter
/// otherwise: the most specific one takes a request.
pub(super) fn check_reached(found: &[Option<Found>], own: Option<&Place>, out: &mut Output) {
    let mut seen: HashMap<String, &Place> = HashMap::new();
    let mut all: Option<&Place> = None;
    for found in found.iter().flatten() {
        let text = text(&found.rule.when);
        if let Some(first) = seen.get(&text) {
            let message = "two rules of a route take the same requests";
            let error = ConfigError::new(ErrorKind::DuplicateRoute, message).at(&found.place);
            let error = error.label("taken again here").also(first, "first taken here");
            out.report(error.hint(
                "remove one, or tell them apart by `host`, `path`, `method`, `header`, `query` or `from`",
            ));
        }
        if text.is_empty() {
            all.get_or_insert(&found.place);
        }
        seen.entry(text).or_insert(&found.place);
    }
    if let (Some(all), Some(own)) = (all, own) {
        never(own, all, out);
    }
}

fn never(place: &Place, all: &Place, out: &mut Output) {
    let message = "a rule without conditions takes every request, so this is never reached";
    let error = ConfigError::new(ErrorKind::Conflict, message).at(place).also(all, "the rule is here");
    out.report(error.hint("give the rule a condition such as `path = \"/api/*\"`, or remove one of the two"));
}

/// The same text for the same conditions, in whatever order they are written; empty when there are none.
fn text(when: &RequestConditions) -> String {
    let one = |name: &str, mut values: Vec<String>| {
        values.sort_unstable();
        if values.is_empty() { String::new() } else { format!("{name} {values:?};") }
    };
    let pair = |name: &str, value: &ValuePattern| format!("{name} = {value}");
    [
        one("host", when.hosts.iter().map(ToString::to_string).collect()),
        one("path", when.paths.iter().map(ToString::to_string).collect()),
        one("method", when.methods.iter().map(ToString::to_string).collect()),
        one("header", when.headers.iter().map(|(name, value)| pair(name.as_str(), value)).collect()),
        one("query", when.query.iter().map(|(name, value)| pair(name, value)).collect()),
        one("from", when.from.iter().map(ToString::to_string).collect()),
    ]
    .concat()
}
