//! The `[[limit]]` tables.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::decode::{At, Either, Setting, quote, similar};
use super::super::error::{ConfigError, ErrorKind};
use super::super::file::Limit;
use super::super::source::Place;
use super::super::units::{Bandwidth, duration_text};
use super::super::values::{LimitWord, PerWord, RouteName};
use super::super::{ActionConfig, LimitAction, LimitConfig, ListenerConfig, Per, RateLimit, RouteConfig};
use super::routes::{Routes, find_listener};
use super::{Input, Output, settings, string, strings};

/// Limits, at most: each has a table of sources, of 17 MB when full.
const MAX_LIMITS: usize = 64;

/// How long a connection is held until it conforms: as long as people wait for a page.
const DELAY_MAX: Duration = Duration::from_secs(10);
/// How long a connection is held that is only to waste its client's time.
const TARPIT_FOR: Duration = Duration::from_secs(30);
/// Longest time to hold a connection.
const HOLD_MAX: Duration = Duration::from_secs(3600);

/// Less would not let a hello pass within its time; more is no limit for any machine.
const BANDWIDTH_MIN: Bandwidth = Bandwidth(1024);
const BANDWIDTH_MAX: Bandwidth = Bandwidth(1 << 40);

/// What a limit is resolved against.
struct Context<'a> {
    listeners: &'a [ListenerConfig],
    listeners_complete: bool,
    routes: HashMap<&'a str, &'a RouteConfig>,
    routes_complete: bool,
}

/// All tables in file order; the names of `short`, the limits with a key of their own, are taken.
pub(super) fn resolve(
    input: &Input,
    listeners: &[ListenerConfig],
    routes: &Routes,
    out: &mut Output,
) -> Vec<LimitConfig> {
    let context = Context {
        listeners,
        listeners_complete: input.listeners_complete(listeners.len()),
        routes: routes.found.iter().map(|route| (&*route.name, route)).collect(),
        routes_complete: routes.complete,
    };
    let mut names: HashMap<&str, &Place> = HashMap::new();
    let mut found = Vec::new();
    for (number, table) in input.limits().enumerate() {
        if number == MAX_LIMITS {
            let message = format!("there are more than {MAX_LIMITS} limits");
            out.report(ConfigError::new(ErrorKind::OutOfRange, message).at(&table.place));
            break;
        }
        check_name(table, &mut names, out);
        found.extend(limit(table, &context, out));
    }
    found
}

fn check_name<'i>(table: &'i At<Limit>, names: &mut HashMap<&'i str, &'i Place>, out: &mut Output) {
    let Some(name) = table.value.name.given() else { return };
    let text = name.value.0.as_str();
    let error = |message| ConfigError::new(ErrorKind::DuplicateName, message).at(&name.place);
    if settings::LIMIT_NAMES.contains(&text) {
        out.report(error(format!("`{text}` is the name of the limit that the key `{text}` sets")));
    } else if let Some(first) = names.get(text) {
        out.report(error(format!("two limits are named `{text}`")).also(first, "first defined here"));
    } else {
        names.insert(text, &name.place);
    }
}

/// `None` when an error was reported; all errors of the limit are.
fn limit(table: &At<Limit>, context: &Context<'_>, out: &mut Output) -> Option<LimitConfig> {
    let limit = &table.value;
    let per = per(limit);
    let rate = rate(limit, out);
    let bandwidth = limit.bandwidth.given().map(|at| bandwidth(at, out));
    let action = action(limit, out);
    let listeners = listeners(limit, context, out);
    let routes = routes(limit, context, out);
    let figures =
        [limit.rate.place(), limit.connections.place(), limit.before_hello.place(), limit.bandwidth.place()];
    if figures.iter().all(Option::is_none) {
        let error = ConfigError::new(ErrorKind::MissingKey, "the limit limits nothing").at(&table.place);
        out.report(error.hint("add `rate`, `connections`, `before_hello` or `bandwidth`"));
    }
    if let (Some(before_hello), Some(route)) = (limit.before_hello.place(), limit.route.place()) {
        let message = "`before_hello` cannot be a limit of a route, which only the hello tells";
        let error = ConfigError::new(ErrorKind::Conflict, message).at(before_hello);
        out.report(error.also(route, "`route` is here").hint("write a second `[[limit]]` without `route`"));
    }
    let name = limit.name.given()?.value.0.as_str();
    let found = LimitConfig {
        name: Arc::from(name),
        per,
        rate,
        connections: limit.connections.given().map(|at| at.value.0),
        before_hello: limit.before_hello.given().map(|at| at.value.0),
        bandwidth: bandwidth.map(|bandwidth| bandwidth.0),
        listeners: listeners?,
        routes: routes?,
        action,
    };
    note(&found, limit, out);
    Some(found)
}

fn per(limit: &Limit) -> Per {
    match limit.per.given().map(|at| &at.value) {
        None | Some(Either::Short(PerWord(Per::IP))) => Per::IP,
        Some(Either::Short(PerWord(per))) => *per,
        Some(Either::Table(table)) => {
            let length =
                |value: Option<u32>, default| value.and_then(|n| u8::try_from(n).ok()).unwrap_or(default);
            Per::Prefix {
                ipv4: length(table.ipv4.given().map(|at| at.value.0), 32),
                ipv6: length(table.ipv6.given().map(|at| at.value.0), 64),
            }
        }
    }
}

fn rate(limit: &Limit, out: &mut Output) -> Option<RateLimit> {
    let burst = limit.burst.given();
    if let Some(burst) = burst
        && limit.rate.is_absent()
    {
        let error = ConfigError::new(ErrorKind::Conflict, "`burst` belongs to `rate`, which is not given");
        out.report(error.at(&burst.place).hint("add `rate = \"50/s\"`"));
    }
    let rate = limit.rate.given()?.value;
    Some(RateLimit { rate, burst: burst.map_or(rate.count, |burst| burst.value.0) })
}

fn bandwidth(at: &At<Bandwidth>, out: &mut Output) -> Bandwidth {
    if !(BANDWIDTH_MIN..=BANDWIDTH_MAX).contains(&at.value) {
        let message = format!("`bandwidth` is not between {BANDWIDTH_MIN} and {BANDWIDTH_MAX}");
        out.report(ConfigError::new(ErrorKind::OutOfRange, message).at(&at.place));
    }
    at.value
}

/// The action with its time; a time of another action is an error.
fn action(limit: &Limit, out: &mut Output) -> LimitAction {
    let word = limit.action.given().map_or(LimitWord::Reset, |at| at.value);
    let mut time = |key: &str, at: &Setting<Duration>, wanted: LimitWord, default| {
        let at = at.given();
        if let Some(at) = at
            && word != wanted
            && !limit.action.is_bad()
        {
            let message = format!("`{key}` belongs to `action = \"{wanted}\"`");
            let error = ConfigError::new(ErrorKind::Conflict, message).at(&at.place);
            out.report(match limit.action.place() {
                Some(action) => error.also(action, "`action` is here"),
                None => error.hint(format!("add `action = \"{wanted}\"`")),
            });
        }
        at.map_or(default, |at| settings::checked_duration(key, at, HOLD_MAX, out))
    };
    let max = time("delay_max", &limit.delay_max, LimitWord::Delay, DELAY_MAX);
    let hold = time("tarpit_for", &limit.tarpit_for, LimitWord::Tarpit, TARPIT_FOR);
    match word {
        LimitWord::Reset => LimitAction::Reset,
        LimitWord::Close => LimitAction::Close,
        LimitWord::Drop => LimitAction::Drop,
        LimitWord::Delay => LimitAction::Delay { max },
        LimitWord::Tarpit => LimitAction::Tarpit { hold },
    }
}

/// `Some(None)` when the limit is for all listeners.
fn listeners(limit: &Limit, context: &Context<'_>, out: &mut Output) -> Option<Option<Vec<Arc<str>>>> {
    let at = match &limit.listener {
        Setting::Absent => return Some(None),
        Setting::Bad(_) => return None,
        Setting::Given(at) => at,
    };
    out.check_repeated(&at.value.0, |name| name.0.clone());
    let names: Vec<_> = at
        .value
        .0
        .iter()
        .map(|name| find_listener(name, context.listeners, context.listeners_complete, out))
        .collect();
    names.into_iter().collect::<Option<Vec<_>>>().map(Some)
}

/// `Some(None)` when the limit acts before a route is known.
fn routes(limit: &Limit, context: &Context<'_>, out: &mut Output) -> Option<Option<Vec<Arc<str>>>> {
    let at = match &limit.route {
        Setting::Absent => return Some(None),
        Setting::Bad(_) => return None,
        Setting::Given(at) => at,
    };
    out.check_repeated(&at.value.0, |name| name.0.clone());
    let names: Vec<_> = at.value.0.iter().map(|name| find_route(name, context, out)).collect();
    names.into_iter().collect::<Option<Vec<_>>>().map(Some)
}

fn find_route(name: &At<RouteName>, context: &Context<'_>, out: &mut Output) -> Option<Arc<str>> {
    let text = name.value.0.as_str();
    let Some(route) = context.routes.get(text) else {
        if context.routes_complete {
            let message = format!("there is no route {}", quote(text));
            let error = ConfigError::new(ErrorKind::UnknownRoute, message).at(&name.place);
            out.report(match similar(text, context.routes.keys().copied()) {
                Some(name) => error.hint(format!("did you mean `{name}`?")),
                None => error.hint("routes are called by their `name`"),
            });
        }
        return None;
    };
    if matches!(route.action, ActionConfig::Reject(_)) {
        let message = format!("the route {} lets nobody through, so there is nothing to limit", quote(text));
        out.report(ConfigError::new(ErrorKind::Conflict, message).at(&name.place));
    }
    Some(Arc::clone(&route.name))
}

/// Notes the limit as it was resolved.
fn note(found: &LimitConfig, limit: &Limit, out: &mut Output) {
    let mut note = |key: &str, value: Option<String>, place: Option<&Place>| {
        if let Some(value) = value {
            out.note(format!("limit[{}].{key}", found.name), value, place);
        }
    };
    note("per", Some(found.per.to_string()), limit.per.place());
    note("rate", found.rate.map(|limit| string(limit.rate)), limit.rate.place());
    note("burst", found.rate.map(|limit| limit.burst.to_string()), limit.burst.place());
    note("connections", found.connections.map(|n| n.to_string()), limit.connections.place());
    note("before_hello", found.before_hello.map(|n| n.to_string()), limit.before_hello.place());
    note("bandwidth", found.bandwidth.map(|n| string(Bandwidth(n))), limit.bandwidth.place());
    note("listener", found.listeners.as_ref().map(|names| strings(names.iter())), limit.listener.place());
    note("route", found.routes.as_ref().map(|names| strings(names.iter())), limit.route.place());
    note("action", Some(string(found.action)), limit.action.place());
    match found.action {
        LimitAction::Delay { max } => {
            note("delay_max", Some(string(duration_text(max))), limit.delay_max.place());
        }
        LimitAction::Tarpit { hold } => {
            note("tarpit_for", Some(string(duration_text(hold))), limit.tarpit_for.place());
        }
        LimitAction::Reset | LimitAction::Close | LimitAction::Drop => {}
    }
}

#[cfg(test)]
mod tests;
