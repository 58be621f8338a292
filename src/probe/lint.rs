//! What is wrong with what was seen.
//!
//! The gravest is coalescing (RFC 9113 §9.1.1): a browser that has a connection of HTTP/2 sends requests for another name
//! over it, when that has the same address and the connection's certificate covers it. Behind one address of this proxy all
//! names have the same; when the certificate of one route's backend covers a name that another route leads elsewhere,
//! requests for that name come to the wrong backend, now and then. What the other backend speaks does not matter: it is not
//! asked.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::plan::{Scope, WEB, below};
use super::round::{Facts, Failure, Seen};
use crate::config::{ActionConfig, Origin};
use crate::peek::ServerName;
use crate::route::RouteId;
use crate::tls::inspect::{Certificate, CertifiedName};

/// A certificate that ends in less is told, in seconds: enough for a person to do something.
const EXPIRY: i64 = 14 * DAY;
/// Seconds.
pub(super) const DAY: i64 = 86_400;
/// Pairs of routes that are told of: with one certificate for hundreds of them each has the finding with each other.
const PAIRS: usize = 200;
/// Names that are told for a pair.
const NAMES: usize = 8;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The route that leads to the backend.
    pub route: RouteRef,
    /// The backend, as it is written; with coalescing all of which it is true.
    pub backends: Vec<Arc<str>>,
    /// What it is.
    pub what: What,
}

/// A route and where it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRef {
    /// Its name.
    pub name: Arc<str>,
    /// Where it is written.
    pub origin: Origin,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Requests for names of another route may come to this one's backend.
    Coalescing {
        /// The other route.
        other: RouteRef,
        /// Where that leads.
        other_backends: Vec<Arc<str>>,
        /// The names; never empty.
        names: Vec<Covered>,
    },
    /// The certificate has ended.
    Expired {
        /// When, in seconds of Unix time.
        not_after: i64,
    },
    /// The certificate ends soon.
    Expires {
        /// When, in seconds of Unix time.
        not_after: i64,
        /// Whole days until then.
        days: i64,
    },
    /// The certificate is not for the name that the route takes.
    OtherName {
        /// The name, or the wildcard of which it is for none.
        asked: CertifiedName,
        /// The names that it is for.
        names: Vec<CertifiedName>,
    },
    /// The backend speaks no version of TLS from 1.2 on.
    OldTls,
    /// No handshake came about.
    NoHandshake {
        /// Why.
        why: Box<str>,
    },
}

/// Names that a certificate covers and another route takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Covered {
    /// The name in the certificate.
    pub certified: CertifiedName,
    /// Those of the configuration that it covers; none when the other route takes all of what it covers, or when it is one.
    pub takes: Vec<ServerName>,
}

/// All that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// In the order of the routes.
    pub all: Vec<Finding>,
    /// Pairs of routes with coalescing beside those.
    pub more: usize,
}

/// What a finding is told apart by from others.
pub(super) type Key = (&'static str, Arc<str>, Arc<str>);

impl Finding {
    /// What it is told apart by: its kind, its route, and the backend or the other route.
    pub(super) fn key(&self) -> Key {
        let second = match &self.what {
            What::Coalescing { other, .. } => Some(&other.name),
            _ => self.backends.first(),
        };
        (self.what.kind(), Arc::clone(&self.route.name), second.cloned().unwrap_or_default())
    }
}

impl What {
    /// The word for it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Coalescing { .. } => "coalescing",
            Self::Expired { .. } => "expired",
            Self::Expires { .. } => "expires",
            Self::OtherName { .. } => "other_name",
            Self::OldTls => "old_tls",
            Self::NoHandshake { .. } => "no_handshake",
        }
    }

    /// What can be done about it.
    pub fn ways_out(&self) -> &'static str {
        match self {
            Self::Coalescing { .. } => {
                "give each backend a certificate for its own names only; or lead both routes to one backend that \
                 serves both; or terminate both here; or take `h2` from the ALPN of this backend; or put the routes \
                 on listeners with addresses of their own; or let the backend answer 421 (Misdirected Request) for \
                 names that are not its own"
            }
            Self::Expired { .. } | Self::Expires { .. } => "renew it on the backend",
            Self::OtherName { .. } => {
                "clients that check it go away: add the name there, or correct `sni` or `to`"
            }
            Self::OldTls => "clients of today refuse it: switch TLS 1.2 and 1.3 on there",
            Self::NoHandshake { .. } => {
                "see whether TLS is spoken there, and whether a PROXY header is expected"
            }
        }
    }
}

/// What is wrong with what was `seen` in a round about `scope`, at `now` in seconds of Unix time.
pub fn lint(scope: &Scope, seen: &[Seen], now: i64) -> Findings {
    let (coalescing, more) = Coalescing::new(scope).find(seen);
    let mut found: BTreeMap<(usize, Key), Finding> = BTreeMap::new();
    let of_one = seen.iter().flat_map(|seen| {
        let route = seen.aim.route;
        of_one(scope, seen, now).into_iter().map(move |what| (route, Arc::clone(&seen.aim.backend), what))
    });
    let of_one = of_one.filter_map(|(id, backend, what)| {
        Some((id, Finding { route: named(scope, id)?, backends: vec![backend], what }))
    });
    for (id, finding) in coalescing.into_iter().chain(of_one) {
        // Several addresses of a backend, and several names, have the same.
        found.entry((id.index(), finding.key())).or_insert(finding);
    }
    Findings { all: found.into_values().collect(), more }
}

fn named(scope: &Scope, id: RouteId) -> Option<RouteRef> {
    let config = scope.route(id)?;
    Some(RouteRef { name: Arc::clone(&config.name), origin: config.origin.clone() })
}

/// What is wrong with one backend by itself.
fn of_one(scope: &Scope, seen: &Seen, now: i64) -> Vec<What> {
    let facts = match &seen.outcome {
        Ok(facts) => facts,
        Err(Failure::Ours(_)) => return Vec::new(),
        Err(Failure::OldTls) => return vec![What::OldTls],
        Err(Failure::Other(why)) => return vec![What::NoHandshake { why: why.clone() }],
    };
    let Some(certificate) = &facts.certificate else { return Vec::new() };
    let mut all = Vec::new();
    let not_after = certificate.not_after;
    let left = not_after.saturating_sub(now);
    if left <= 0 {
        all.push(What::Expired { not_after });
    } else if left < EXPIRY {
        all.push(What::Expires { not_after, days: left / DAY });
    }
    if !is_covered(scope, seen, certificate) {
        let names = certificate.names.iter().take(NAMES).cloned().collect();
        all.push(What::OtherName { asked: meant(seen), names });
    }
    all
}

/// Whether the certificate is for the name that was asked for, or, where that was made up, for any that the route takes:
/// a server may have one for each of those.
fn is_covered(scope: &Scope, seen: &Seen, certificate: &Certificate) -> bool {
    if certificate.covers(&seen.aim.name).is_some() {
        return true;
    }
    let takes = |name: &ServerName| {
        let offers: Vec<&[u8]> = seen.aim.alpn.iter().map(AsRef::as_ref).collect();
        let mut listeners = scope.listeners.iter();
        listeners.any(|listener| scope.table.may_take(name, &offers, listener).contains(&seen.aim.route))
    };
    seen.aim.made_up && certificate.names.iter().flat_map(of_all).any(|name| takes(&name))
}

/// The name that was asked for, or that for which one was made up.
fn meant(seen: &Seen) -> CertifiedName {
    let name = &seen.aim.name;
    let suffix = name.as_str().split_once('.').filter(|_| seen.aim.made_up).map(|(_, suffix)| suffix);
    let wildcard = suffix.and_then(|suffix| ServerName::parse(suffix.as_bytes()).ok());
    wildcard.map_or_else(|| CertifiedName::Exact(name.clone()), CertifiedName::Wildcard)
}

/// A name that the certified one covers.
fn of_all(certified: &CertifiedName) -> Option<ServerName> {
    match certified {
        CertifiedName::Exact(name) => Some(name.clone()),
        CertifiedName::Wildcard(suffix) => below(suffix).next(),
    }
}

/// Looks for coalescing.
struct Coalescing<'s> {
    scope: &'s Scope,
    /// Which routes may take a name on a listener, as far as that was asked.
    asked: HashMap<(usize, ServerName), Vec<RouteId>>,
}

/// A pair of routes: the one whose certificate it is, and the one whose names it covers.
#[derive(Default)]
struct Pair {
    backends: BTreeSet<Arc<str>>,
    names: BTreeMap<CertifiedName, BTreeSet<ServerName>>,
}

impl<'s> Coalescing<'s> {
    fn new(scope: &'s Scope) -> Self {
        Self { scope, asked: HashMap::new() }
    }

    /// The findings by the first route, and how many pairs there are beside them.
    fn find(mut self, seen: &[Seen]) -> (Vec<(RouteId, Finding)>, usize) {
        let mut pairs: BTreeMap<(usize, usize), (RouteId, RouteId, Pair)> = BTreeMap::new();
        let mut beyond: HashSet<(usize, usize)> = HashSet::new();
        for one in seen {
            let Ok(Facts { certificate: Some(certificate), agreed, .. }) = &one.outcome else { continue };
            if !agreed.is_h2() {
                continue;
            }
            for (name, certified, other) in self.strangers(one, certificate) {
                let key = (one.aim.route.index(), other.index());
                if pairs.len() >= PAIRS && !pairs.contains_key(&key) {
                    beyond.insert(key);
                    continue;
                }
                let (.., pair) = pairs.entry(key).or_insert_with(|| (one.aim.route, other, Pair::default()));
                pair.backends.insert(Arc::clone(&one.aim.backend));
                let takes = pair.names.entry(certified.clone()).or_default();
                takes.extend(name.filter(|_| takes.len() < NAMES));
            }
        }
        let findings = pairs.into_values().filter_map(|(route, other, pair)| {
            Some((
                route,
                pair.finding(named(self.scope, route)?, named(self.scope, other)?, self.scope, other),
            ))
        });
        (findings.collect(), beyond.len())
    }

    /// Names that the certificate covers and that other routes lead elsewhere, each with the name in the certificate and
    /// the other route. A name that stands for all that a wildcard covers is not told.
    fn strangers<'c>(
        &mut self,
        seen: &Seen,
        certificate: &'c Certificate,
    ) -> Vec<(Option<ServerName>, &'c CertifiedName, RouteId)> {
        let scope = self.scope;
        let Some(route) = scope.route(seen.aim.route) else { return Vec::new() };
        let covered = covered(scope, certificate);
        let mut all = Vec::new();
        for (place, listener) in scope.listeners.iter().enumerate() {
            if !route.conditions.listens_on(listener) {
                continue;
            }
            for (name, certified, is_written) in &covered {
                let others = self.may_take(place, name);
                // Of some clients it is this one's name.
                if others.contains(&seen.aim.route) {
                    continue;
                }
                for other in others {
                    let leads = scope.leads.get(other.index());
                    let here = leads.is_none_or(|leads| leads.contains(&seen.aim.target));
                    if !here && is_led(scope, *other) {
                        all.push((is_written.then(|| name.clone()), *certified, *other));
                    }
                }
            }
        }
        all
    }

    fn may_take(&mut self, place: usize, name: &ServerName) -> &[RouteId] {
        let scope = self.scope;
        self.asked.entry((place, name.clone())).or_insert_with(|| {
            let listener = scope.listeners.get(place).map_or("", |listener| listener);
            scope.table.may_take(name, &WEB, listener)
        })
    }
}

/// Whether connections of the route come to a backend at all.
fn is_led(scope: &Scope, id: RouteId) -> bool {
    scope.route(id).is_some_and(|route| match &route.action {
        ActionConfig::Passthrough(_) | ActionConfig::Terminate(_) | ActionConfig::Http(_) => true,
        ActionConfig::Redirect | ActionConfig::Reject(_) => false,
    })
}

/// The names to ask the routes about: those of the configuration that the certificate covers, its own, and one for each of
/// its wildcards; and whether the configuration has the name, other than the certificate.
fn covered<'c>(scope: &Scope, certificate: &'c Certificate) -> Vec<(ServerName, &'c CertifiedName, bool)> {
    let names: HashSet<&CertifiedName> = certificate.names.iter().collect();
    let find = |certified: CertifiedName| names.get(&certified).copied();
    let mut all: Vec<_> = certificate
        .names
        .iter()
        .filter_map(|certified| Some((of_all(certified)?, certified, false)))
        .collect();
    for name in &scope.names {
        let suffix = name.as_str().split_once('.').map(|(_, suffix)| suffix);
        let suffix = suffix.and_then(|suffix| ServerName::parse(suffix.as_bytes()).ok());
        // An exact one is among the certificate's own.
        if find(CertifiedName::Exact(name.clone())).is_none()
            && let Some(certified) = suffix.and_then(|suffix| find(CertifiedName::Wildcard(suffix)))
        {
            all.push((name.clone(), certified, true));
        }
    }
    all
}

impl Pair {
    fn finding(self, route: RouteRef, other: RouteRef, scope: &Scope, id: RouteId) -> Finding {
        let other_backends = match scope.route(id).map(|route| &route.action) {
            Some(ActionConfig::Passthrough(passthrough)) => {
                passthrough.upstream.addresses().map(|address| address.to_string().into()).collect()
            }
            _ => Vec::new(),
        };
        let covered = |(certified, takes): (CertifiedName, BTreeSet<ServerName>)| Covered {
            certified,
            takes: takes.into_iter().collect(),
        };
        let names = self.names.into_iter().take(NAMES).map(covered).collect();
        let what = What::Coalescing { other, other_backends, names };
        Finding { route, backends: self.backends.into_iter().collect(), what }
    }
}

impl fmt::Display for RouteRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ({})", self.name, self.origin)
    }
}

impl fmt::Display for Covered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.takes.is_empty() {
            return self.certified.fmt(f);
        }
        write!(f, "{} (by {})", list(&self.takes), self.certified)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (route, backends) = (&self.route, list(&self.backends));
        match &self.what {
            What::Coalescing { other, other_backends, names } => write!(
                f,
                "the certificate of {backends}, where route {route} leads, covers names that route {other} leads to \
                 {}: {}. It speaks h2, so that browsers that are connected to it send requests for these names there",
                list(other_backends),
                list(names)
            ),
            What::Expired { not_after } => {
                write!(
                    f,
                    "the certificate of {backends}, where route {route} leads, has ended on {}",
                    date(*not_after)
                )
            }
            What::Expires { not_after, days } => write!(
                f,
                "the certificate of {backends}, where route {route} leads, ends in {days} days, on {}",
                date(*not_after)
            ),
            What::OtherName { asked, names } => {
                write!(f, "the certificate of {backends}, where route {route} leads, is not for {asked}")?;
                if names.is_empty() { Ok(()) } else { write!(f, " but for {}", list(names)) }
            }
            What::OldTls => {
                write!(f, "{backends}, where route {route} leads, speaks no version of TLS from 1.2 on")
            }
            What::NoHandshake { why } => {
                write!(f, "no TLS handshake with {backends}, where route {route} leads: {why}")
            }
        }
    }
}

/// With commas.
pub(super) fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The day of a moment.
pub(super) fn date(seconds: i64) -> String {
    match jiff::Timestamp::from_second(seconds) {
        Ok(moment) => moment.strftime("%Y-%m-%d").to_string(),
        // Beyond the year 9999 (RFC 5280 §4.1.2.5: "no well-defined expiration date").
        Err(_) => "no day".to_owned(),
    }
}
