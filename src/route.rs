//! Which route takes a connection.
//!
//! The order is total and does not depend on the order in the file (regular expressions over names, and over first bytes,
//! among themselves excepted). What the first bytes match decides first, from the most to the least specific:
//!
//! 1. the exact name, 2. the longest wildcard, 3. regular expressions in file order, 4. `*`;
//!    a hello without SNI only matches `none`, other protocols only their own name, what is no known protocol
//!    the first pattern (`begins`) in file order that matches and whose route can take it, then `unknown`;
//!    5. `protocol = "any"`.
//!
//! Among routes for the same thing, those whose further conditions hold, from the most to the least
//! specific: with `listener` before without, the longest matching `ja4` before shorter ones and none, with `alpn`
//! before without, the longest matching `from` before shorter ones and none, with a `protocol` inside TLS before without, with
//! `database` before without, with `user` before without, and last the ALPN that the client names first. Where no condition holds, the next
//! less specific match is tried. Two routes that would tie are refused when the configuration is read.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;

use crate::config::{
    ActionConfig, Conditions, Config, Ja4Pattern, NamePattern, NameRegex, Policies, RejectWith, RouteConfig,
    RouteKey,
};
use crate::peek::{ClientHello, Pattern, PatternId, Patterns, Preface, Protocol, ServerName, Startup};

mod assertion;
mod host;
mod inside;
mod possible;

pub use assertion::{Mismatch, check_assertion};

/// The routes of one configuration, arranged for lookup.
#[derive(Debug)]
pub struct RouteTable {
    routes: Vec<Route>,
    exact: HashMap<ServerName, Candidates>,
    suffix: HashMap<ServerName, Candidates>,
    regex: Vec<(NameRegex, RouteId)>,
    any: Candidates,
    no_sni: Candidates,
    /// By protocol, at its discriminant.
    protocol: Box<[Candidates]>,
    /// In file order, and the route that each belongs to.
    patterns: Vec<Pattern>,
    by_pattern: Vec<RouteId>,
    anything: Candidates,
    policies: Policies,
}

/// A route and its place in the table.
#[derive(Debug)]
pub struct Route {
    /// The index of what belongs to this route elsewhere.
    pub id: RouteId,
    /// What the configuration says.
    pub config: RouteConfig,
}

/// The index of a route, in file order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteId(usize);

#[derive(Debug, Default)]
struct Candidates(Vec<RouteId>);

/// What a connection is to the route table.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Its first bytes.
    pub preface: &'a Preface,
    /// The client's address.
    pub client: IpAddr,
    /// The name of the listener that it came in on.
    pub listener: &'a str,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug)]
pub enum Decision<'a> {
    /// A route takes it.
    Route(&'a Route),
    /// No route does; the policy says how it is refused.
    NoRoute(NoRoute, RejectWith),
}

/// Why no route took a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// Its server name is none that a route knows.
    UnknownSni,
    /// It has no server name, and no route has `sni = "none"`.
    NoSni,
    /// Routes know its server name, and what is spoken there is none of what the client offers.
    NoAlpn,
    /// It is not TLS, and no route is for its protocol.
    UnknownProtocol,
}

/// One step of a lookup, for `explain`.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// What was looked for.
    pub probe: Probe<'a>,
    /// What was there; `None` means nothing.
    pub outcome: Option<(&'a Route, Verdict)>,
}

/// What a step of a lookup looked for.
#[derive(Clone, Copy, Debug)]
pub enum Probe<'a> {
    /// The exact name.
    Exact(&'a str),
    /// The wildcard over this suffix.
    Suffix(&'a str),
    /// A regular expression.
    Regex,
    /// `sni = "*"`.
    Any,
    /// `sni = "none"`.
    NoSni,
    /// A pattern of first bytes.
    Begins(&'a Pattern),
    /// A protocol.
    Protocol(Protocol),
    /// `protocol = "any"`.
    Anything,
}

/// Whether a route's conditions hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All hold, and no more specific route was found: it takes the connection unless a later one of the
    /// same probe is more specific.
    Holds,
    /// The regular expression does not match the name, or the first bytes.
    NoMatch,
    /// It is for other listeners.
    Listener,
    /// The client's fingerprint is none of its.
    Ja4,
    /// The client offers none of its ALPN names.
    Alpn,
    /// The client's address is in none of its networks.
    From,
    /// TLS does not begin as the route has it: within its protocol, or from the first byte.
    Begin,
    /// The client offers other protocols than what is spoken there.
    Inside,
    /// The client asks for another database, or is another user.
    Startup,
}

/// How specific the conditions of a route are that hold; greater is more specific.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Specificity {
    listener: bool,
    ja4: Option<usize>,
    alpn: bool,
    from: Option<u8>,
    inside: bool,
    database: bool,
    user: bool,
    alpn_place: Reverse<usize>,
}

impl Candidates {
    const NONE: &Self = &Self(Vec::new());
}

impl RouteId {
    /// The index in file order.
    pub fn index(self) -> usize {
        self.0
    }
}

impl RouteTable {
    /// Arranges the routes of `config`.
    pub fn new(config: &Config) -> Self {
        let mut table = Self {
            routes: Vec::with_capacity(config.routes.len()),
            exact: HashMap::new(),
            suffix: HashMap::new(),
            regex: Vec::new(),
            any: Candidates::default(),
            no_sni: Candidates::default(),
            protocol: Protocol::ALL.map(|_| Candidates::default()).into(),
            patterns: Vec::new(),
            by_pattern: Vec::new(),
            anything: Candidates::default(),
            policies: config.policies,
        };
        for (index, route) in config.routes.iter().enumerate() {
            for key in &route.keys {
                table.insert(key, RouteId(index));
            }
            table.routes.push(Route { id: RouteId(index), config: route.clone() });
        }
        table
    }

    fn insert(&mut self, key: &RouteKey, id: RouteId) {
        let candidates = match key {
            RouteKey::Sni(NamePattern::Exact(name)) => self.exact.entry(name.clone()).or_default(),
            RouteKey::Sni(NamePattern::Suffix(name)) => self.suffix.entry(name.clone()).or_default(),
            RouteKey::Sni(NamePattern::Regex(regex)) => return self.regex.push((regex.clone(), id)),
            RouteKey::Sni(NamePattern::Any) => &mut self.any,
            RouteKey::NoSni => &mut self.no_sni,
            RouteKey::Protocol(protocol) => match self.protocol.get_mut(*protocol as usize) {
                Some(candidates) => candidates,
                None => return,
            },
            RouteKey::Begins(pattern) => {
                self.patterns.push(pattern.clone());
                return self.by_pattern.push(id);
            }
            RouteKey::Anything => &mut self.anything,
        };
        candidates.0.push(id);
    }

    /// The routes in file order.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Whether a client of this listener that stays silent can be taken by a route.
    pub fn wants_silence(&self, listener: &str) -> bool {
        let silent = self.protocol(Protocol::Silent).0.iter().filter_map(|id| self.routes.get(id.0));
        let mut conditions = silent.map(|route| &route.config.conditions.listeners);
        conditions
            .any(|names| names.as_ref().is_none_or(|names| names.iter().any(|name| **name == *listener)))
    }

    /// Whether clients of HTTP that ask for this server by TLS may come to a backend, under whatever further conditions.
    pub fn serves(&self, name: &ServerName) -> bool {
        let preface =
            Preface::Tls(Box::new(ClientHello { server_name: Some(name.clone()), ..ClientHello::default() }));
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let mut serves = false;
        let query = Query { preface: &preface, client: nobody, listener: "" };
        self.find_traced(&query, |step| {
            let Some((route, verdict)) = step.outcome else { return };
            let conditions = &route.config.conditions;
            let http = conditions.inside.as_ref().is_none_or(|inside| inside.contains(&Protocol::Http));
            let named = verdict != Verdict::NoMatch && !matches!(step.probe, Probe::Anything);
            let action = route.action();
            serves |=
                http && named && (action.stream_to().is_some() || matches!(action, ActionConfig::Http(_)));
        });
        serves
    }

    /// The patterns by which a route can take what comes from this client on this listener. No others are looked for: they
    /// would keep it waiting, or stand before those that can.
    pub fn patterns(&self, listener: &str, client: IpAddr) -> Patterns<'_> {
        // What the hello says is no condition of such routes.
        let preface = Preface::Other(Protocol::Unknown);
        let query = Query { preface: &preface, client, listener };
        Patterns::of(&self.patterns, |id| {
            let route = self.by_pattern.get(id.index()).and_then(|id| self.routes.get(id.0));
            route.is_some_and(|route| specificity(&route.config.conditions, &query).is_ok())
        })
    }

    /// Whether a route looks at fingerprints, which are only computed for that.
    pub fn wants_ja4(&self) -> bool {
        self.routes.iter().any(|route| route.config.conditions.ja4.is_some())
    }

    /// The decision for a connection.
    pub fn find<'a>(&'a self, query: &Query<'a>) -> Decision<'a> {
        self.find_traced(query, |_| ())
    }

    /// The same, telling `trace` each step. This is the one lookup there is: the data plane, `explain` and
    /// the assertions of a configuration all come through here.
    pub fn find_traced<'a>(&'a self, query: &Query<'a>, mut trace: impl FnMut(Step<'a>)) -> Decision<'a> {
        let mut offers_others = false;
        let mut trace = |step: Step<'a>| {
            offers_others |= matches!(step.outcome, Some((_, Verdict::Inside)));
            trace(step);
        };
        let route = match query.preface {
            Preface::Tls(hello) => match &hello.server_name {
                Some(name) => self.find_name(name, query, &mut trace),
                None => self.pick(&self.no_sni, Probe::NoSni, query, &mut trace),
            },
            Preface::Pattern(id) => self.find_unknown(Some(*id), query, &mut trace),
            Preface::Other(Protocol::Unknown) => self.find_unknown(None, query, &mut trace),
            Preface::Startup(_) | Preface::Other(_) => {
                let protocol = query.preface.protocol();
                self.pick(self.protocol(protocol), Probe::Protocol(protocol), query, &mut trace)
            }
        };
        let anything = || match query.preface {
            // Silence must be asked for by name: whoever waits long enough would else get past every rule
            // about names.
            Preface::Other(Protocol::Silent) => None,
            Preface::Tls(_) | Preface::Startup(_) | Preface::Pattern(_) | Preface::Other(_) => {
                self.pick(&self.anything, Probe::Anything, query, &mut trace)
            }
        };
        match route.or_else(anything) {
            Some(route) => Decision::Route(route),
            None if offers_others => {
                let named = query.preface.hello().is_some_and(|hello| hello.server_name.is_some());
                let with = if named { self.policies.unknown_sni } else { self.policies.no_sni };
                Decision::NoRoute(NoRoute::NoAlpn, with)
            }
            None => self.refuse(query.preface),
        }
    }

    fn find_name<'a>(
        &'a self,
        name: &'a ServerName,
        query: &Query<'a>,
        trace: &mut impl FnMut(Step<'a>),
    ) -> Option<&'a Route> {
        let exact = self.exact.get(name.as_str()).unwrap_or(Candidates::NONE);
        if let Some(route) = self.pick(exact, Probe::Exact(name.as_str()), query, trace) {
            return Some(route);
        }
        let mut rest = if self.suffix.is_empty() { "" } else { name.as_str() };
        while let Some((_, suffix)) = rest.split_once('.') {
            rest = suffix;
            let candidates = self.suffix.get(suffix).unwrap_or(Candidates::NONE);
            if let Some(route) = self.pick(candidates, Probe::Suffix(suffix), query, trace) {
                return Some(route);
            }
        }
        for (regex, id) in &self.regex {
            let Some(route) = self.routes.get(id.0) else { continue };
            let verdict = if regex.is_match(name.as_str()) {
                specificity(&route.config.conditions, query).err().unwrap_or(Verdict::Holds)
            } else {
                Verdict::NoMatch
            };
            trace(Step { probe: Probe::Regex, outcome: Some((route, verdict)) });
            if verdict == Verdict::Holds {
                return Some(route);
            }
        }
        self.pick(&self.any, Probe::Any, query, trace)
    }

    /// The route for what is no known protocol, of which this is the first pattern that matches.
    fn find_unknown<'a>(
        &'a self,
        found: Option<PatternId>,
        query: &Query<'a>,
        trace: &mut impl FnMut(Step<'a>),
    ) -> Option<&'a Route> {
        for (place, (pattern, id)) in self.patterns.iter().zip(&self.by_pattern).enumerate() {
            let Some(route) = self.routes.get(id.0) else { continue };
            let matches = found.is_some_and(|id| id.index() == place);
            let verdict = match specificity(&route.config.conditions, query) {
                Err(verdict) => verdict,
                Ok(_) if matches => Verdict::Holds,
                Ok(_) => Verdict::NoMatch,
            };
            trace(Step { probe: Probe::Begins(pattern), outcome: Some((route, verdict)) });
            if verdict == Verdict::Holds {
                return Some(route);
            }
        }
        self.pick(self.protocol(Protocol::Unknown), Probe::Protocol(Protocol::Unknown), query, trace)
    }

    /// The most specific of `candidates` whose conditions hold.
    fn pick<'a>(
        &'a self,
        candidates: &Candidates,
        probe: Probe<'a>,
        query: &Query<'a>,
        trace: &mut impl FnMut(Step<'a>),
    ) -> Option<&'a Route> {
        if candidates.0.is_empty() {
            trace(Step { probe, outcome: None });
        }
        let mut best: Option<(Specificity, &Route)> = None;
        for route in candidates.0.iter().filter_map(|id| self.routes.get(id.0)) {
            let result = specificity(&route.config.conditions, query);
            trace(Step { probe, outcome: Some((route, result.err().unwrap_or(Verdict::Holds))) });
            if let Ok(specificity) = result
                && best.is_none_or(|(best, _)| specificity > best)
            {
                best = Some((specificity, route));
            }
        }
        best.map(|(_, route)| route)
    }

    fn refuse(&self, preface: &Preface) -> Decision<'_> {
        match preface {
            Preface::Tls(hello) if hello.server_name.is_some() => {
                Decision::NoRoute(NoRoute::UnknownSni, self.policies.unknown_sni)
            }
            Preface::Tls(_) => Decision::NoRoute(NoRoute::NoSni, self.policies.no_sni),
            Preface::Startup(_) | Preface::Pattern(_) | Preface::Other(_) => {
                Decision::NoRoute(NoRoute::UnknownProtocol, self.policies.unknown_protocol)
            }
        }
    }

    /// Every match with its route, in the order in which they are tried.
    pub fn precedence(&self) -> Vec<(String, &Route)> {
        let mut rows: Vec<(_, String, &Route)> = Vec::new();
        for route in &self.routes {
            for key in &route.config.keys {
                rows.push((key_rank(key, route.id), key.to_string(), route));
            }
        }
        rows.sort_by(|(rank, key, route), (other_rank, other_key, other)| {
            let shape = |route: &Route| condition_shape(&route.config.conditions);
            (rank, key, shape(route), route.id.0).cmp(&(other_rank, other_key, shape(other), other.id.0))
        });
        rows.into_iter().map(|(_, key, route)| (key, route)).collect()
    }

    /// The same as objects.
    pub fn to_json(&self) -> Vec<Value> {
        let row = |(key, route): (String, &Route)| {
            serde_json::json!({
                "match": key,
                "conditions": route.config.conditions.to_string(),
                "route": &*route.config.name,
                "action": route.config.action.to_string(),
                "origin": route.config.origin.to_string(),
            })
        };
        self.precedence().into_iter().map(row).collect()
    }

    fn protocol(&self, protocol: Protocol) -> &Candidates {
        // There is one for each.
        self.protocol.get(protocol as usize).unwrap_or(Candidates::NONE)
    }
}

/// Whether all conditions hold and how specific they are, or else the first that does not.
fn specificity(conditions: &Conditions, query: &Query<'_>) -> Result<Specificity, Verdict> {
    if !conditions.listens_on(query.listener) {
        return Err(Verdict::Listener);
    }
    if let Some(hello) = query.preface.hello() {
        inside::check(conditions, hello).map_err(|mismatch| match mismatch {
            inside::Mismatch::Begin => Verdict::Begin,
            inside::Mismatch::Alpn => Verdict::Inside,
        })?;
    }
    if !asks_for(conditions, query.preface) {
        return Err(Verdict::Startup);
    }
    let ja4 = match &conditions.ja4 {
        None => None,
        Some(patterns) => {
            let client = query.preface.hello().and_then(|hello| hello.ja4.as_ref()).ok_or(Verdict::Ja4)?;
            let longest =
                patterns.iter().filter(|pattern| pattern.matches(client)).map(Ja4Pattern::specificity).max();
            Some(longest.ok_or(Verdict::Ja4)?)
        }
    };
    let alpn_place = match (&conditions.alpn, query.preface.hello()) {
        (None, _) => None,
        (Some(_), None) => return Err(Verdict::Alpn),
        (Some(wanted), Some(hello)) => {
            let place = hello.alpn.iter().position(|offer| wanted.iter().any(|name| **name == *offer));
            Some(place.ok_or(Verdict::Alpn)?)
        }
    };
    let from = match &conditions.from {
        None => None,
        Some(networks) => {
            let client = query.client.to_canonical();
            let longest =
                networks.iter().filter(|net| net.contains(&client)).map(ipnet::IpNet::prefix_len).max();
            Some(longest.ok_or(Verdict::From)?)
        }
    };
    Ok(Specificity {
        listener: conditions.listeners.is_some(),
        ja4,
        alpn: conditions.alpn.is_some(),
        from,
        inside: conditions.inside.is_some(),
        database: conditions.databases.is_some(),
        user: conditions.users.is_some(),
        alpn_place: Reverse(alpn_place.unwrap_or(0)),
    })
}

/// Whether a client of PostgreSQL asks in clear for what the route is for.
fn asks_for(conditions: &Conditions, preface: &Preface) -> bool {
    let has = |wanted: &Option<Vec<Box<str>>>, of: fn(&Startup) -> &str| match (wanted, preface) {
        (None, _) => true,
        (Some(wanted), Preface::Startup(startup)) => wanted.iter().any(|name| **name == *of(startup)),
        (Some(_), Preface::Tls(_) | Preface::Pattern(_) | Preface::Other(_)) => false,
    };
    has(&conditions.databases, |startup| &startup.database) && has(&conditions.users, |startup| &startup.user)
}

/// The place of a key in the order, for printing it.
fn key_rank(key: &RouteKey, id: RouteId) -> (u8, Reverse<usize>, usize) {
    match key {
        RouteKey::Sni(NamePattern::Exact(_)) => (0, Reverse(0), 0),
        RouteKey::Sni(NamePattern::Suffix(name)) => (1, Reverse(name.as_str().len()), 0),
        RouteKey::Sni(NamePattern::Regex(_)) => (2, Reverse(0), id.0),
        RouteKey::Sni(NamePattern::Any) => (3, Reverse(0), 0),
        RouteKey::NoSni => (4, Reverse(0), 0),
        RouteKey::Begins(_) => (5, Reverse(0), id.0),
        RouteKey::Protocol(_) => (6, Reverse(0), 0),
        RouteKey::Anything => (7, Reverse(0), 0),
    }
}

fn condition_shape(conditions: &Conditions) -> Reverse<impl Ord + use<>> {
    let ja4 = conditions.ja4.iter().flatten().map(Ja4Pattern::specificity).max();
    let longest =
        conditions.from.as_ref().map(|nets| nets.iter().map(ipnet::IpNet::prefix_len).max().unwrap_or(0));
    let inside = (conditions.inside.is_some(), conditions.databases.is_some(), conditions.users.is_some());
    Reverse((conditions.listeners.is_some(), ja4, conditions.alpn.is_some(), longest, inside))
}

impl Route {
    /// What the route does.
    pub fn action(&self) -> &ActionConfig {
        &self.config.action
    }
}

impl NoRoute {
    /// The word for it in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownSni => "unknown_sni",
            Self::NoSni => "no_sni",
            Self::NoAlpn => "no_alpn",
            Self::UnknownProtocol => "unknown_protocol",
        }
    }
}

impl fmt::Display for Probe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "exact name {name}"),
            Self::Suffix(suffix) => write!(f, "wildcard *.{suffix}"),
            Self::Regex => f.write_str("regular expression"),
            Self::Any => f.write_str("any name (*)"),
            Self::NoSni => f.write_str("no server name (none)"),
            Self::Begins(pattern) => write!(f, "first bytes {pattern}"),
            Self::Protocol(protocol) => write!(f, "protocol {protocol}"),
            Self::Anything => f.write_str("any protocol"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Holds => "matches",
            Self::NoMatch => "the expression does not match",
            Self::Listener => "it is for another listener",
            Self::Ja4 => "the client's fingerprint (JA4) is none of its",
            Self::Alpn => "the client offers none of its ALPN names",
            Self::From => "the client is in none of its networks",
            Self::Begin => "TLS does not begin as it does there",
            Self::Inside => "the client offers (ALPN) none of what is spoken there",
            Self::Startup => "it is for other databases or users",
        })
    }
}

#[cfg(test)]
mod tests;
