//! Which handshakes are made.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use crate::config::{
    ActionConfig, Conditions, Config, NamePattern, PassthroughConfig, RouteConfig, RouteKey, TestInput,
};
use crate::net::ProxyVersion;
use crate::peek::{Protocol, ServerName};
use crate::route::{RouteId, RouteTable};
use crate::upstream::{Pools, Target};

/// Handshakes of a round; what is more is left out and told.
const MOST: usize = 1_000;
/// Addresses of one backend that are asked: those of one name are usually alike.
const ADDRESSES: usize = 4;
/// Names of one route that are asked for: servers choose their certificate by the name.
const NAMES: usize = 4;
/// Labels that are put before the suffix of a wildcard, the first one that no other route takes. The names need not exist:
/// the backend is connected to by its address, and a certificate is for the wildcard or for none of them.
const LABELS: [&str; 2] = ["probe", "portcullis-probe"];
/// What web clients offer.
pub(super) const WEB: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// The offer of who wants proof that a name is the server's (RFC 8737): its certificate is no one's else.
const ACME: &[u8] = b"acme-tls/1";

/// A handshake that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aim {
    /// The route that leads there.
    pub route: RouteId,
    /// The name that is asked for.
    pub name: ServerName,
    /// Whether the configuration does not have that name, but a wildcard over it.
    pub made_up: bool,
    /// The backend as it is written.
    pub backend: Arc<str>,
    /// Where it is.
    pub target: Target,
    /// The protocols that are offered; none for none.
    pub alpn: Arc<[Box<[u8]>]>,
    /// The PROXY header that it is sent first.
    pub header: Option<ProxyVersion>,
}

/// The handshakes of a round.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// They, those first that tell the most.
    pub aims: Vec<Aim>,
    /// How many there would be beside them.
    pub left_out: usize,
    /// Routes that lead to backends by names of which none is known: by a regular expression, or by all.
    pub unnamed: Vec<RouteId>,
    /// Routes of whose backends no address is known.
    pub unknown: Vec<RouteId>,
}

/// What a round is about.
#[derive(Debug)]
pub struct Scope {
    /// The routes.
    pub table: RouteTable,
    /// The names of the listeners.
    pub listeners: Vec<Arc<str>>,
    /// The handshakes.
    pub plan: Plan,
    /// By route, in file order, all addresses that it leads to.
    pub(super) leads: Vec<HashSet<Target>>,
    /// Names that the configuration has.
    pub(super) names: BTreeSet<ServerName>,
}

impl Scope {
    /// That of `config`, with the addresses that `pools` know of its backends.
    pub fn new(config: &Config, pools: &Pools) -> Self {
        Self::with(config, |passthrough| {
            let pool = pools.find(&passthrough.upstream.name);
            let endpoints = pool.map(|pool| pool.endpoints()).unwrap_or_default();
            endpoints.iter().map(|endpoint| (Arc::clone(&endpoint.name), endpoint.target.clone())).collect()
        })
    }

    /// The same with the backends and addresses that `endpoints` gives for a route.
    pub(super) fn with(
        config: &Config,
        endpoints: impl Fn(&PassthroughConfig) -> Vec<(Arc<str>, Target)>,
    ) -> Self {
        let table = RouteTable::new(config);
        let listeners: Vec<_> = config.listeners.iter().map(|listener| Arc::clone(&listener.name)).collect();
        let endpoints: Vec<_> = config
            .routes
            .iter()
            .map(|route| match &route.action {
                ActionConfig::Passthrough(passthrough) => endpoints(passthrough),
                // Where TLS ends here, backends are not asked for theirs.
                ActionConfig::Terminate(_)
                | ActionConfig::Http(_)
                | ActionConfig::Redirect
                | ActionConfig::Reject(_) => Vec::new(),
            })
            .collect();
        let tested = config.tests.iter().filter_map(|test| match &test.input {
            TestInput::Hello { sni, .. } => sni.clone(),
            TestInput::Startup(_) | TestInput::Protocol(_) | TestInput::First(_) => None,
        });
        let tested: BTreeSet<_> = tested.collect();
        let plan = plan(&table, &listeners, &endpoints, &tested);
        let exact = config.routes.iter().flat_map(|route| &route.keys).filter_map(|key| match key {
            RouteKey::Sni(NamePattern::Exact(name)) => Some(name.clone()),
            _ => None,
        });
        let names = exact.chain(tested).collect();
        let leads = endpoints.into_iter().map(|all| all.into_iter().map(|(_, target)| target).collect());
        Self { leads: leads.collect(), table, listeners, plan, names }
    }

    /// The route of this index.
    pub fn route(&self, id: RouteId) -> Option<&RouteConfig> {
        self.table.routes().get(id.index()).map(|route| &route.config)
    }
}

fn plan(
    table: &RouteTable,
    listeners: &[Arc<str>],
    endpoints: &[Vec<(Arc<str>, Target)>],
    tested: &BTreeSet<ServerName>,
) -> Plan {
    let mut plan = Plan::default();
    let mut ranked = Vec::new();
    for (route, endpoints) in table.routes().iter().zip(endpoints) {
        let config = &route.config;
        let ActionConfig::Passthrough(passthrough) = &config.action else { continue };
        let by_name = config.keys.iter().any(|key| matches!(key, RouteKey::Sni(_)));
        // Where clients name the server there is nobody to ask.
        let is_led = by_name && passthrough.upstream.server_name().is_none();
        let Some(alpn) = offers(&config.conditions).filter(|_| is_led) else { continue };
        if endpoints.is_empty() {
            plan.unknown.push(route.id);
            continue;
        }
        let takes = |name: &ServerName| {
            let offers: Vec<&[u8]> = alpn.iter().map(AsRef::as_ref).collect();
            let takes = |listener: &Arc<str>| table.may_take(name, &offers, listener).contains(&route.id);
            listeners.iter().any(takes)
        };
        let names = names(config, takes, tested);
        if names.is_empty() {
            plan.unnamed.push(route.id);
        }
        let mut rank = 0;
        for (name, made_up) in &names {
            for (backend, target) in some_of_each(endpoints) {
                let aim = Aim {
                    route: route.id,
                    name: name.clone(),
                    made_up: *made_up,
                    backend: Arc::clone(backend),
                    target: target.clone(),
                    alpn: Arc::clone(&alpn),
                    header: passthrough.proxy_protocol,
                };
                ranked.push((rank, aim));
                rank += 1;
            }
        }
    }
    // One of each route before a second one of any.
    ranked.sort_by_key(|(rank, _)| *rank);
    plan.left_out = ranked.len().saturating_sub(MOST);
    plan.aims = ranked.into_iter().take(MOST).map(|(_, aim)| aim).collect();
    plan
}

/// What is offered on behalf of clients that a route with these conditions takes; `None` when TLS does not begin at once
/// there, or nobody but an authority is meant.
fn offers(conditions: &Conditions) -> Option<Arc<[Box<[u8]>]>> {
    if !conditions.may_be_tls_at_once() || conditions.starttls == Some(true) {
        return None;
    }
    let web = || WEB.iter().map(|name| Box::from(*name));
    let Some(wanted) = &conditions.alpn else {
        let is_web = conditions.inside.as_ref().is_none_or(|inside| inside.contains(&Protocol::Http));
        return Some(if is_web { web().collect() } else { Arc::default() });
    };
    let of_web: Arc<[_]> = web().filter(|name| wanted.contains(name)).collect();
    if !of_web.is_empty() {
        return Some(of_web);
    }
    let others: Arc<[_]> = wanted.iter().filter(|name| ***name != *ACME).cloned().collect();
    (!others.is_empty()).then_some(others)
}

/// Names that the route takes, and whether they are made up; of those that are written the first ones.
fn names(
    route: &RouteConfig,
    takes: impl Fn(&ServerName) -> bool,
    tested: &BTreeSet<ServerName>,
) -> Vec<(ServerName, bool)> {
    let mut names = Vec::new();
    let mut patterns = false;
    for key in &route.keys {
        match key {
            RouteKey::Sni(NamePattern::Exact(name)) => names.push((name.clone(), false)),
            RouteKey::Sni(NamePattern::Suffix(suffix)) => {
                names.extend(below(suffix).find(&takes).map(|name| (name, true)));
            }
            RouteKey::Sni(NamePattern::Regex(_) | NamePattern::Any) => patterns = true,
            RouteKey::NoSni | RouteKey::Begins(_) | RouteKey::Protocol(_) | RouteKey::Anything => {}
        }
    }
    if patterns {
        // Whoever wrote the expression has written what it is for as well.
        names.extend(tested.iter().filter(|name| takes(name)).map(|name| (name.clone(), false)));
    }
    names.truncate(NAMES);
    names
}

/// Names of one label below `suffix`.
pub(super) fn below(suffix: &ServerName) -> impl Iterator<Item = ServerName> {
    LABELS.iter().filter_map(move |label| ServerName::parse(format!("{label}.{suffix}").as_bytes()).ok())
}

/// The first addresses of each backend, those that come first of all before others.
fn some_of_each(endpoints: &[(Arc<str>, Target)]) -> Vec<&(Arc<str>, Target)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut chosen: Vec<_> = endpoints
        .iter()
        .filter_map(|endpoint| {
            let count = counts.entry(&endpoint.0).or_default();
            *count += 1;
            (*count <= ADDRESSES).then_some((*count, endpoint))
        })
        .collect();
    chosen.sort_by_key(|(count, _)| *count);
    chosen.into_iter().map(|(_, endpoint)| endpoint).collect()
}
