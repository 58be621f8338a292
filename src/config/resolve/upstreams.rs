//! Groups of backends: those that are named, and what the keys of one mean.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::backend_keys::{BackendAddr, Scheme};
use super::super::decode::{At, Either, OneOrMany, Setting, list, quote, similar};
use super::super::error::{ConfigError, ErrorKind};
use super::super::file::{Backend, Upstream};
use super::super::pool_keys::PoolKeys;
use super::super::source::Place;
use super::super::units::duration_text;
use super::super::upstream::{BalanceWord, Percent, UpstreamName};
use super::super::{
    BackendConfig, Balance, ClientKey, EjectConfig, ListenerConfig, OnDown, QueueConfig, UpstreamConfig,
};
use super::{Input, Output, backend_tls, dynamic, health, inner, listeners, settings, string, strings};
use crate::net::UpstreamAddr;

/// How long a connection waits for room when nothing is said.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// When backends that fail are passed over, when nothing is said.
const EJECT: EjectConfig = EjectConfig {
    failures: 5,
    length: Duration::from_secs(10),
    at_most: 50,
    slow: Some(Duration::from_secs(1)),
};
/// Attempts beyond the first when nothing is said, in percent of connections.
const RETRY_BUDGET: u32 = 20;
/// Room for bounded loads that are still bounded, in percent of the fair share.
const LOAD: (u32, u32) = (101, 1000);

/// The groups that are named.
pub(super) struct Upstreams {
    found: HashMap<String, Written>,
    /// Whether every one that was written is in `found`.
    complete: bool,
}

/// A group that is named.
#[derive(Clone)]
pub(super) struct Written {
    pub(super) config: Arc<UpstreamConfig>,
    /// Its backends, and where they stand.
    pub(super) to: Vec<(UpstreamAddr, Place)>,
    /// What they speak.
    pub(super) scheme: Scheme,
}

/// All `[[upstream]]`s.
pub(super) fn resolve(
    input: &Input,
    listeners: &[ListenerConfig],
    out: &mut Output,
) -> (Upstreams, Option<Arc<str>>) {
    let at = input.once("zone", |file| &file.zone, out);
    if let Some(at) = at {
        out.note("zone", string(&at.value.0), Some(&at.place));
    }
    let zone = at.map(|at| Arc::from(at.value.0.as_str()));
    let mut taken: HashMap<&str, &Place> = HashMap::new();
    let mut found = HashMap::new();
    let mut written = 0;
    for table in input.upstreams() {
        written += 1;
        let Some(name) = table.value.name.given() else { continue };
        if let Some(first) = taken.insert(&name.value.0, &name.place) {
            let message = format!("two upstreams are named {}", quote(&name.value.0));
            let error = ConfigError::new(ErrorKind::DuplicateName, message).at(&name.place);
            out.report(error.also(first, "first defined here"));
        }
        if let Some(upstream) = one(table, &name.value, listeners, out) {
            found.insert(name.value.0.clone(), upstream);
        }
    }
    let bad = input.incomplete || input.files.iter().any(|file| file.upstream.is_bad());
    let complete = !bad && found.len() == written;
    (Upstreams { found, complete }, zone)
}

fn one(
    table: &At<Upstream>,
    name: &UpstreamName,
    listeners: &[ListenerConfig],
    out: &mut Output,
) -> Option<Written> {
    let keys = table.value.pool_keys();
    let to = check_backends(keys.to, listeners, out);
    dynamic::refuse(to.as_deref().unwrap_or_default(), out);
    let config = keys_to_config(&name.0, &format!("upstream[{}]", name.0), &keys, out);
    if keys.any_bad() {
        return None;
    }
    Some(Written { config: Arc::new(config?), to: to?, scheme: scheme(keys.to) })
}

impl Upstreams {
    /// The one of that name, with the places of its backends.
    pub(super) fn find(&self, name: &At<UpstreamName>, out: &mut Output) -> Option<Written> {
        let text = name.value.0.as_str();
        let found = self.found.get(text);
        if found.is_none() && self.complete {
            let message = format!("there is no upstream {}", quote(text));
            let error = ConfigError::new(ErrorKind::UnknownUpstream, message).at(&name.place);
            let mut names: Vec<_> = self.found.keys().map(String::as_str).collect();
            names.sort_unstable();
            out.report(match similar(text, names.iter().copied()) {
                Some(name) => error.hint(format!("did you mean `{name}`?")),
                None if names.is_empty() => {
                    error.hint("write an `[[upstream]]` with this `name` and its `to`")
                }
                None => error.hint(format!("the upstreams are {}", list(names.into_iter().take(12)))),
            });
        }
        found.cloned()
    }

    /// What those of that name speak, if it is known.
    pub(super) fn scheme(&self, name: &str) -> Option<Scheme> {
        self.found.get(name).map(|written| written.scheme)
    }

    /// Whether there is one of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.found.contains_key(name)
    }

    /// All of them, by name.
    pub(super) fn into_sorted(self) -> Vec<Arc<UpstreamConfig>> {
        let mut all: Vec<_> = self.found.into_values().map(|written| written.config).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }
}

fn address(backend: &Either<BackendAddr, Backend>) -> Option<&UpstreamAddr> {
    backend_tls::written(backend).map(|backend| &backend.address)
}

/// What the first backend speaks, and all others where they can be used.
pub(super) fn scheme(to: &Setting<OneOrMany<Either<BackendAddr, Backend>>>) -> Scheme {
    let first = to.values().first().and_then(|at| backend_tls::written(&at.value));
    first.map_or(Scheme::Tcp, |backend| backend.scheme)
}

/// Whether one of them speaks HTTP, as all do where they can be used.
pub(super) fn speaks_http(to: &Setting<OneOrMany<Either<BackendAddr, Backend>>>) -> bool {
    to.values()
        .iter()
        .filter_map(|at| backend_tls::written(&at.value))
        .any(|backend| backend.scheme.http().is_some())
}

/// Reports addresses that stand twice, and those of own listeners. Gives them with their places.
pub(super) fn check_backends(
    to: &Setting<OneOrMany<Either<BackendAddr, Backend>>>,
    listeners: &[ListenerConfig],
    out: &mut Output,
) -> Option<Vec<(UpstreamAddr, Place)>> {
    let mut addresses = Vec::new();
    for at in &to.given()?.value.0 {
        let value = address(&at.value)?.clone();
        addresses.push(At { value, place: at.place.clone() });
    }
    out.check_repeated(&addresses, ToString::to_string);
    for at in &addresses {
        if let UpstreamAddr::Ip(socket) = at.value
            && let Some(listener) = listeners::own(listeners, socket)
        {
            let message = format!("`{socket}` would connect to itself: the listener `{}`", listener.name);
            let error = ConfigError::new(ErrorKind::SelfLoop, message).at(&at.place);
            out.report(error.hint("let the backend listen on another port or address"));
        }
    }
    Some(addresses.into_iter().map(|at| (at.value, at.place)).collect())
}

/// The group that `keys` describe, noted below `prefix`.
pub(super) fn keys_to_config(
    name: &str,
    prefix: &str,
    keys: &PoolKeys<'_>,
    out: &mut Output,
) -> Option<UpstreamConfig> {
    let to = keys.to.given()?;
    let addresses: Vec<_> = to.value.0.iter().filter_map(|at| backend_tls::written(&at.value)).collect();
    let place = to.value.0.first().map(|at| &at.place);
    out.note(format!("{prefix}.to"), strings(addresses.iter()), place);
    let limit = keys.max_connections.given().and_then(|at| at.value.0).map(|limit| limit.0);
    let mut backends = Vec::new();
    for at in &to.value.0 {
        backends.push(backend(prefix, &at.value, limit, out)?);
    }
    let at = keys.max_connections.given();
    let text = limit.map_or_else(|| string("off"), |limit| limit.to_string());
    out.note(format!("{prefix}.max_connections"), text, at.map(|at| &at.place));
    let tls = backend_tls::resolve(prefix, keys, out)?;
    let health = health::resolve(prefix, keys.health.given(), tls.as_ref(), out);
    backend_tls::check_health(health.as_ref(), tls.as_ref(), keys.health.place(), out);
    Some(UpstreamConfig {
        name: Arc::from(name),
        backends,
        tls,
        max_connections: limit,
        balance: balance(prefix, keys, out),
        sticky: sticky(prefix, keys, out),
        slow_start: slow_start(prefix, keys, out),
        queue: queue(prefix, keys, out),
        eject: eject(prefix, keys, out),
        on_down: on_down(prefix, keys, out),
        retry_budget: retry_budget(prefix, keys, out),
        health,
    })
}

fn backend(
    prefix: &str,
    backend: &Either<BackendAddr, Backend>,
    limit: Option<u32>,
    out: &mut Output,
) -> Option<BackendConfig> {
    let mut config = BackendConfig::at(address(backend)?.clone());
    config.max_connections = limit;
    let Either::Table(table) = backend else { return Some(config) };
    if table.weight.is_bad() || table.tier.is_bad() || table.zone.is_bad() || table.max_connections.is_bad() {
        return None;
    }
    let prefix = format!("{prefix}.to[{}]", config.address);
    let mut note = |key: &str, value: String, place| out.note(format!("{prefix}.{key}"), value, Some(place));
    if let Some(at) = table.weight.given() {
        config.weight = at.value.0;
        note("weight", config.weight.to_string(), &at.place);
    }
    if let Some(at) = table.tier.given() {
        config.tier = at.value.0;
        note("tier", config.tier.to_string(), &at.place);
    }
    if let Some(at) = table.zone.given() {
        config.zone = Some(Arc::from(at.value.0.as_str()));
        note("zone", string(&at.value.0), &at.place);
    }
    if let Some(at) = table.max_connections.given() {
        config.max_connections = at.value.0.map(|limit| limit.0);
        let text = config.max_connections.map_or_else(|| string("off"), |limit| limit.to_string());
        note("max_connections", text, &at.place);
    }
    Some(config)
}

fn balance(prefix: &str, keys: &PoolKeys<'_>, out: &mut Output) -> Balance {
    let at = keys.balance.given();
    let (word, on, load) = match at.map(|at| &at.value) {
        None => (BalanceWord::RoundRobin, None, None),
        Some(Either::Short(word)) => (*word, None, None),
        Some(Either::Table(table)) => {
            let by = table.by.given().map_or(BalanceWord::RoundRobin, |at| at.value);
            (by, table.on.given(), table.load.given())
        }
    };
    out.note(format!("{prefix}.balance"), string(word), at.map(|at| &at.place));
    if word != BalanceWord::Hash {
        let of_hash = [("on", on.map(|at| &at.place)), ("load", load.map(|at| &at.place))];
        for (key, place) in of_hash {
            let Some(place) = place else { continue };
            let message = format!("`{key}` belongs to `hash`, and `by` is `{word}`");
            let error = ConfigError::new(ErrorKind::Conflict, message).at(place);
            out.report(error.hint(format!("write `by = \"hash\"`, or remove `{key}`")));
        }
    }
    match word {
        BalanceWord::RoundRobin => Balance::RoundRobin,
        BalanceWord::LeastConnections => Balance::LeastConnections,
        BalanceWord::P2c => Balance::P2c,
        BalanceWord::Random => Balance::Random,
        BalanceWord::First => Balance::First,
        BalanceWord::Hash => {
            let key = on.map_or(ClientKey::Source, |at| at.value);
            out.note(format!("{prefix}.balance.on"), string(key), on.map(|at| &at.place));
            let text = load.map_or_else(|| string("off"), |at| string(at.value));
            out.note(format!("{prefix}.balance.load"), text, load.map(|at| &at.place));
            Balance::Hash { on: key, load: load.map(|at| percent("load", at, LOAD, out)) }
        }
    }
}

/// A part within bounds; others are reported.
fn percent(key: &str, at: &At<Percent>, (least, most): (u32, u32), out: &mut Output) -> u32 {
    if !(least..=most).contains(&at.value.0) {
        let message = format!("`{key}` is not between {least}% and {most}%");
        out.report(ConfigError::new(ErrorKind::OutOfRange, message).at(&at.place));
    }
    at.value.0
}

fn sticky(prefix: &str, keys: &PoolKeys<'_>, out: &mut Output) -> Option<(ClientKey, Duration)> {
    let at = keys.sticky.given();
    let on = inner(at, |table| &table.on);
    let length = match at.map(|at| &at.value) {
        Some(Either::Short(length)) => {
            at.and_then(|at| Some(At { value: length.0?, place: at.place.clone() }))
        }
        Some(Either::Table(table)) => table.r#for.given().cloned(),
        None => None,
    };
    let Some(length) = length else {
        out.note(format!("{prefix}.sticky"), string("off"), at.map(|at| &at.place));
        return None;
    };
    let key = on.map_or(ClientKey::Source, |at| at.value);
    out.note(format!("{prefix}.sticky.on"), string(key), on.map(|at| &at.place));
    let text = string(duration_text(length.value));
    out.note(format!("{prefix}.sticky.for"), text, Some(&length.place));
    Some((key, settings::checked_duration("sticky", &length, settings::IDLE_MAX, out)))
}

fn slow_start(prefix: &str, keys: &PoolKeys<'_>, out: &mut Output) -> Duration {
    let at = keys.slow_start.given();
    let given = at.and_then(|at| Some(At { value: at.value.0?, place: at.place.clone() }));
    let length = given
        .as_ref()
        .map_or(Duration::ZERO, |at| settings::checked_duration("slow_start", at, settings::DAY, out));
    let text = if length.is_zero() { string("off") } else { string(duration_text(length)) };
    out.note(format!("{prefix}.slow_start"), text, at.map(|at| &at.place));
    length
}

fn queue(prefix: &str, keys: &PoolKeys<'_>, out: &mut Output) -> Option<QueueConfig> {
    let at = keys.queue.given();
    let size = match at.map(|at| &at.value) {
        Some(Either::Short(size)) => size.0.map(|size| size.0),
        Some(Either::Table(table)) => table.size.given().map(|at| at.value.0),
        None => None,
    };
    let Some(size) = size else {
        out.note(format!("{prefix}.queue"), string("off"), at.map(|at| &at.place));
        return None;
    };
    out.note(format!("{prefix}.queue.size"), size.to_string(), at.map(|at| &at.place));
    let timeout = inner(at, |table| &table.timeout);
    let timeout =
        settings::duration(&format!("{prefix}.queue.timeout"), timeout, QUEUE_TIMEOUT, settings::DAY, out);
    Some(QueueConfig { size, timeout })
}

fn eject(prefix: &str, keys: &PoolKeys<'_>, out: &mut Output) -> Option<EjectConfig> {
    let at = keys.eject.given();
    if keys.to.values().iter().any(|at| address(&at.value).is_some_and(dynamic::is_dynamic)) {
        // Clients that name what cannot be reached would take it from all others.
        out.note(format!("{prefix}.eject"), string("off"), None);
        return None;
    }
    let (failures, place) = match at.map(|at| (&at.value, &at.place)) {
        Some((Either::Short(failures), place)) => match failures.0 {
            Some(failures) => (failures.0, Some(place)),
            None => {
                out.note(format!("{prefix}.eject"), string("off"), Some(place));
                return None;
            }
        },
        Some((Either::Table(table), _)) => {
            let at = table.failures.given();
            (at.map_or(EJECT.failures, |at| at.value.0), at.map(|at| &at.place))
        }
        None => (EJECT.failures, None),
    };
    out.note(format!("{prefix}.eject.failures"), failures.to_string(), place);
    let length = inner(at, |table| &table.r#for);
    let length = settings::duration(&format!("{prefix}.eject.for"), length, EJECT.length, settings::DAY, out);
    let part = inner(at, |table| &table.at_most);
    let at_most = part.map_or(EJECT.at_most, |at| percent("at_most", at, (1, 100), out));
    out.note(format!("{prefix}.eject.at_most"), string(Percent(at_most)), part.map(|at| &at.place));
    let slow = inner(at, |table| &table.slow);
    let value = match slow.map(|at| at.value.0) {
        Some(value) => value,
        None => EJECT.slow,
    };
    let text = value.map_or_else(|| string("off"), |value| string(duration_text(value)));
    out.note(format!("{prefix}.eject.slow"), text, slow.map(|at| &at.place));
    Some(EjectConfig { failures, length, at_most, slow: value })
}

fn on_down(prefix: &str, keys: &PoolKeys<'_>, out: &mut Output) -> OnDown {
    let at = keys.on_down.given();
    let value = at.map_or(OnDown::Leave, |at| at.value);
    out.note(format!("{prefix}.on_down"), string(value), at.map(|at| &at.place));
    value
}

fn retry_budget(prefix: &str, keys: &PoolKeys<'_>, out: &mut Output) -> Option<u32> {
    let at = keys.retry_budget.given();
    let value = match at.map(|at| at.value.0) {
        Some(value) => value.map(|part| part.0),
        None => Some(RETRY_BUDGET),
    };
    let text = value.map_or_else(|| string("off"), |part| string(Percent(part)));
    out.note(format!("{prefix}.retry_budget"), text, at.map(|at| &at.place));
    value
}
