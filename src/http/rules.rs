//! Which rule takes a request.
//!
//! The order is total, the most specific first:
//!
//! 1. the host: exact, the longest `*.suffix`, regular expressions, any;
//! 2. the path: exact, the longest `/prefix/*`, globs by what they begin with before their first `*`, the longest first,
//!    regular expressions, any;
//! 3. the number of further conditions: the methods are one, each header field is, each parameter of the query, and the
//!    networks are one;
//! 4. the order in the file.
//!
//! A rule with several hosts or paths stands in each of their places. Where a condition does not hold, the next place is
//! tried, down to rules for any host. Hosts that are written out are looked up, not searched.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::iter;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, Method};
use ipnet::IpNet;
use percent_encoding::percent_decode;
use regex::{Captures, Regex};

use crate::config::{NamePattern, NameRegex, PathPattern, RequestConditions, RuleConfig, ValuePattern};

/// The rules of one route, arranged for lookup.
#[derive(Debug)]
pub struct Rules {
    conditions: Vec<Further>,
    exact: HashMap<Box<str>, Vec<Place>>,
    suffix: HashMap<Box<str>, Vec<Place>>,
    regex: Vec<(NameRegex, Place)>,
    any: Vec<Place>,
}

/// What is asked of the rules.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The host, as [`super::target::Target`] has it.
    pub host: &'a str,
    /// The path, from [`super::target::Target::match_path`].
    pub path: &'a str,
    /// The method.
    pub method: &'a Method,
    /// The fields.
    pub headers: &'a HeaderMap,
    /// The query, as it is sent.
    pub query: Option<&'a str>,
    /// The client's address.
    pub client: IpAddr,
}

/// The rule that takes a request.
#[derive(Debug)]
pub struct Found<'a> {
    /// Its place in the file.
    pub rule: usize,
    /// What the groups of its path's regular expression matched, where there is one.
    pub groups: Option<Captures<'a>>,
}

/// One step of a lookup, for `explain`.
#[derive(Clone, Copy, Debug)]
pub struct Step<'r> {
    /// The rule that was tried, by its place in the file.
    pub rule: usize,
    /// By which of its hosts.
    pub host: Host<'r>,
    /// By which of its paths; `None` where it takes any.
    pub path: Option<&'r PathPattern>,
    /// Whether it takes the request.
    pub verdict: Verdict<'r>,
}

/// By which host a rule was come to.
#[derive(Clone, Copy, Debug)]
pub enum Host<'r> {
    /// The exact name.
    Exact(&'r str),
    /// The wildcard over this suffix.
    Suffix(&'r str),
    /// A regular expression.
    Regex(&'r NameRegex),
    /// Any.
    Any,
}

/// Whether a rule takes a request, and else what is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'r> {
    /// All holds: it takes the request.
    Holds,
    /// The regular expression does not match the host.
    Host,
    /// The path is another one.
    Path,
    /// The method is none of its.
    Method,
    /// There is no such field, or with other values only.
    Header(&'r HeaderName),
    /// There is no such parameter, or with other values only.
    Query(&'r str),
    /// The client's address is in none of its networks.
    From,
}

/// A rule under one of its hosts, by one of its paths.
#[derive(Clone, Debug)]
struct Place {
    rule: usize,
    path: Option<PathPattern>,
}

/// What a rule asks for beside host and path.
#[derive(Debug)]
struct Further {
    methods: Vec<Method>,
    headers: Vec<(HeaderName, ValuePattern)>,
    query: Vec<(Box<str>, ValuePattern)>,
    from: Vec<IpNet>,
}

/// What comes first is tried first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Order {
    path: PathKind,
    length: Reverse<usize>,
    further: Reverse<usize>,
    rule: usize,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PathKind {
    Exact,
    Prefix,
    Glob,
    Regex,
    Any,
}

impl Rules {
    /// Arranges `rules`.
    pub fn new(rules: &[RuleConfig]) -> Self {
        let conditions = rules.iter().map(|rule| Further::of(&rule.when)).collect();
        let (exact, suffix) = (HashMap::new(), HashMap::new());
        let mut all = Self { conditions, exact, suffix, regex: Vec::new(), any: Vec::new() };
        for (index, rule) in rules.iter().enumerate() {
            for place in Place::all(index, &rule.when.paths) {
                all.insert(&rule.when.hosts, &place);
            }
        }
        all.sort();
        all
    }

    fn insert(&mut self, hosts: &[NamePattern], place: &Place) {
        if hosts.is_empty() {
            self.any.push(place.clone());
        }
        for host in hosts {
            let places = match host {
                NamePattern::Exact(name) => self.exact.entry(name.as_str().into()).or_default(),
                NamePattern::Suffix(name) => self.suffix.entry(name.as_str().into()).or_default(),
                NamePattern::Regex(regex) => {
                    self.regex.push((regex.clone(), place.clone()));
                    continue;
                }
                NamePattern::Any => &mut self.any,
            };
            places.push(place.clone());
        }
    }

    fn sort(&mut self) {
        let conditions = &self.conditions;
        let further = |place: &Place| conditions.get(place.rule).map_or(0, Further::number);
        for places in self.exact.values_mut().chain(self.suffix.values_mut()).chain(iter::once(&mut self.any))
        {
            places.sort_by_cached_key(|place| place.order(further(place)));
        }
        self.regex.sort_by_cached_key(|(_, place)| place.order(further(place)));
    }

    /// The rule that takes the request; `None` when none does.
    pub fn find<'a>(&self, asked: &Asked<'a>) -> Option<Found<'a>> {
        self.find_traced(asked, &mut |_| ())
    }

    /// The same, telling `trace` each step. This is the one lookup there is. Rules for other hosts are not tried.
    pub fn find_traced<'a>(&self, asked: &Asked<'a>, trace: &mut dyn FnMut(Step<'_>)) -> Option<Found<'a>> {
        if let Some((name, places)) = self.exact.get_key_value(asked.host) {
            let found = self.first(places, Host::Exact(name), asked, trace);
            if found.is_some() {
                return found;
            }
        }
        let mut rest = if self.suffix.is_empty() { "" } else { asked.host };
        while let Some((_, suffix)) = rest.split_once('.') {
            rest = suffix;
            let Some((suffix, places)) = self.suffix.get_key_value(suffix) else { continue };
            let found = self.first(places, Host::Suffix(suffix), asked, trace);
            if found.is_some() {
                return found;
            }
        }
        let by_regex = self.regex.iter().find_map(|(regex, place)| {
            let host = Host::Regex(regex);
            self.attempt(place, host, asked, trace)
        });
        by_regex.or_else(|| self.first(&self.any, Host::Any, asked, trace))
    }

    fn first<'a>(
        &self,
        places: &[Place],
        host: Host<'_>,
        asked: &Asked<'a>,
        trace: &mut dyn FnMut(Step<'_>),
    ) -> Option<Found<'a>> {
        places.iter().find_map(|place| self.attempt(place, host, asked, trace))
    }

    fn attempt<'a>(
        &self,
        place: &Place,
        host: Host<'_>,
        asked: &Asked<'a>,
        trace: &mut dyn FnMut(Step<'_>),
    ) -> Option<Found<'a>> {
        let verdict = if !place.path.as_ref().is_none_or(|path| path_matches(path, asked.path)) {
            Verdict::Path
        } else if !host.matches(asked.host) {
            Verdict::Host
        } else {
            self.conditions.get(place.rule).map_or(Verdict::Holds, |further| further.verdict(asked))
        };
        trace(Step { rule: place.rule, host, path: place.path.as_ref(), verdict });
        (verdict == Verdict::Holds).then(|| Found { rule: place.rule, groups: place.groups(asked.path) })
    }
}

impl Host<'_> {
    /// Regular expressions are left to be looked at; for the others it was.
    fn matches(self, host: &str) -> bool {
        match self {
            Self::Regex(regex) => regex.is_match(host),
            Self::Exact(_) | Self::Suffix(_) | Self::Any => true,
        }
    }
}

impl Place {
    fn all(rule: usize, paths: &[PathPattern]) -> impl Iterator<Item = Self> {
        let any = paths.is_empty().then_some(Self { rule, path: None });
        any.into_iter().chain(paths.iter().map(move |path| Self { rule, path: Some(path.clone()) }))
    }

    fn order(&self, further: usize) -> Order {
        let (path, length) = match &self.path {
            Some(PathPattern::Exact(path)) => (PathKind::Exact, path.len()),
            Some(PathPattern::Prefix(path)) => (PathKind::Prefix, path.len()),
            Some(PathPattern::Glob(_, text)) => (PathKind::Glob, text.find('*').unwrap_or(text.len())),
            Some(PathPattern::Regex(..)) => (PathKind::Regex, 0),
            None => (PathKind::Any, 0),
        };
        Order { path, length: Reverse(length), further: Reverse(further), rule: self.rule }
    }

    fn groups<'a>(&self, path: &'a str) -> Option<Captures<'a>> {
        match &self.path {
            Some(PathPattern::Glob(regex, _) | PathPattern::Regex(regex, _)) => regex.captures(path),
            Some(PathPattern::Exact(_) | PathPattern::Prefix(_)) | None => None,
        }
    }
}

impl Further {
    fn of(when: &RequestConditions) -> Self {
        let RequestConditions { hosts: _, paths: _, methods, headers, query, from } = when.clone();
        Self { methods, headers, query, from }
    }

    fn number(&self) -> usize {
        let lists = [!self.methods.is_empty(), !self.from.is_empty()];
        lists.into_iter().filter(|has| *has).count() + self.headers.len() + self.query.len()
    }

    fn verdict(&self, asked: &Asked<'_>) -> Verdict<'_> {
        if !self.methods.is_empty() && !self.methods.contains(asked.method) {
            return Verdict::Method;
        }
        let holds = |(name, pattern): &&(HeaderName, ValuePattern)| {
            asked.headers.get_all(name).iter().any(|value| value_matches(pattern, value.as_bytes()))
        };
        if let Some((name, _)) = self.headers.iter().find(|wanted| !holds(wanted)) {
            return Verdict::Header(name);
        }
        let holds =
            |(name, pattern): &&(Box<str>, ValuePattern)| parameter_matches(asked.query, name, pattern);
        if let Some((name, _)) = self.query.iter().find(|wanted| !holds(wanted)) {
            return Verdict::Query(name);
        }
        // An IPv4 address in IPv6 form is that IPv4 address.
        let client = asked.client.to_canonical();
        if !self.from.is_empty() && !self.from.iter().any(|net| net.contains(&client)) {
            return Verdict::From;
        }
        Verdict::Holds
    }
}

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exact(name) => write!(f, "host {name}"),
            Self::Suffix(suffix) => write!(f, "host *.{suffix}"),
            Self::Regex(regex) => write!(f, "host {}", NamePattern::Regex(regex.clone())),
            Self::Any => f.write_str("any host"),
        }
    }
}

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Holds => f.write_str("matches"),
            Self::Host => f.write_str("the expression does not match the host"),
            Self::Path => f.write_str("the path is another one"),
            Self::Method => f.write_str("the method is none of its"),
            Self::Header(name) => write!(f, "the field `{name}` is not there, or has another value"),
            Self::Query(name) => write!(f, "the parameter `{name}` is not there, or has another value"),
            Self::From => f.write_str("the client is in none of its networks"),
        }
    }
}

/// Whether `path`, as rules see it, is as `pattern` has it.
fn path_matches(pattern: &PathPattern, path: &str) -> bool {
    match pattern {
        PathPattern::Exact(exact) => **exact == *path,
        PathPattern::Prefix(prefix) => {
            path.strip_prefix(&**prefix).is_some_and(|below| below.is_empty() || below.starts_with('/'))
        }
        PathPattern::Glob(regex, _) | PathPattern::Regex(regex, _) => matches_whole(regex, path),
    }
}

fn matches_whole(regex: &Regex, text: &str) -> bool {
    regex.find(text).is_some_and(|found| found.len() == text.len())
}

fn value_matches(pattern: &ValuePattern, value: &[u8]) -> bool {
    match pattern {
        ValuePattern::Present => true,
        ValuePattern::Exact(exact) => exact.as_bytes() == value,
        ValuePattern::Regex(regex) => std::str::from_utf8(value).is_ok_and(|text| matches_whole(regex, text)),
    }
}

/// Whether a parameter called `name` is in the query, with such a value; both are decoded as forms are.
fn parameter_matches(query: Option<&str>, name: &str, pattern: &ValuePattern) -> bool {
    query.unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty()).any(|parameter| {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        form_decoded(key).eq(name.bytes())
            && match pattern {
                ValuePattern::Present => true,
                ValuePattern::Exact(exact) => form_decoded(value).eq(exact.bytes()),
                // Only what is escaped is copied.
                ValuePattern::Regex(_) if !value.contains(['%', '+']) => {
                    value_matches(pattern, value.as_bytes())
                }
                ValuePattern::Regex(_) => value_matches(pattern, &form_decoded(value).collect::<Vec<_>>()),
            }
    })
}

/// The bytes that stand for `text` in a form: `+` is a space, and what is escaped is not.
fn form_decoded(text: &str) -> impl Iterator<Item = u8> {
    let pieces = text.split('+').enumerate();
    pieces.flat_map(|(index, piece)| {
        let space = (index > 0).then_some(b' ');
        space.into_iter().chain(percent_decode(piece.as_bytes()))
    })
}

#[cfg(test)]
mod tests;
