//! Routes: what each matches, under which conditions, and where it leads.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::decode::{At, Setting, quote, similar};
use super::super::error::{ConfigError, ErrorKind};
use super::super::file::Route;
use super::super::overlap::{self, Placed};
use super::super::protocols::ProtocolWord;
use super::super::source::Place;
use super::super::values::{AlpnName, ListenerName, SniWord, checked_name};
use super::super::{
    ActionConfig, Conditions, HttpConfig, ListenerConfig, NamePattern, Origin, RejectWith, RouteConfig,
    RouteKey, TerminateConfig, Timeouts,
};
use super::inside::Inside;
use super::upstreams::{self, Upstreams, Written};
use super::{Input, Output, acme, backend_tls, dynamic, http, inside, passthrough, string, strings, tls};
use crate::net::UpstreamAddr;
use crate::peek::{Patterns, Protocol};

/// What [`resolve`] gives.
pub(super) struct Routes {
    pub(super) found: Vec<RouteConfig>,
    /// Whether every route that was written is in `found`.
    pub(super) complete: bool,
}

/// What a route is resolved against.
pub(super) struct Context<'a> {
    pub(super) listeners: &'a [ListenerConfig],
    /// Whether `listeners` holds all that were written.
    pub(super) complete: bool,
    pub(super) timeouts: &'a Timeouts,
    pub(super) upstreams: &'a Upstreams,
    tls: &'a tls::Shared,
    /// Where the global timeouts come from: connect, idle, half-closed, answer.
    pub(super) origins: [Option<Origin>; 4],
}

/// All routes in file order.
pub(super) fn resolve(
    input: &Input,
    listeners: &[ListenerConfig],
    timeouts: &Timeouts,
    (upstreams, tls): (&Upstreams, &tls::Shared),
    out: &mut Output,
) -> Routes {
    let origins = ["connect", "idle", "half_closed", "answer"];
    let origins = origins.map(|key| out.origin_of(&format!("timeouts.{key}")));
    let complete = input.listeners_complete(listeners.len());
    let context = Context { listeners, complete, timeouts, upstreams, tls, origins };
    let mut names = Names::given(input, out);
    let placed: Vec<_> = input.routes().filter_map(|table| route(table, &context, &mut names, out)).collect();
    for error in overlap::check(&placed) {
        out.report(error);
    }
    inside::check_reachable(&placed, listeners, out);
    check_patterns(&placed, out);
    let written = input.files.iter().any(|file| file.route.place().is_some());
    if !written && !input.incomplete {
        let error = ConfigError::new(ErrorKind::MissingKey, "there is no route").at(&input.top);
        out.report(
            error.hint("write a `[[route]]` with `sni = \"app.example.com\"` and `to = \"10.0.0.1:443\"`"),
        );
    }
    let bad = input.incomplete || input.files.iter().any(|file| file.route.is_bad());
    let complete = !bad && placed.len() == input.routes().count();
    Routes { found: placed.into_iter().map(|placed| placed.route).collect(), complete }
}

/// Reports the first pattern too many.
fn check_patterns(placed: &[Placed], out: &mut Output) {
    let keys = placed.iter().flat_map(|placed| placed.route.keys.iter().zip(&placed.keys));
    let mut patterns = keys.filter(|(key, _)| matches!(key, RouteKey::Begins(_)));
    if let Some((_, place)) = patterns.nth(Patterns::MAX) {
        let message = format!("there are more than {} patterns of first bytes", Patterns::MAX);
        let error = ConfigError::new(ErrorKind::OutOfRange, message).at(place);
        out.report(error.hint("join those that lead to the same backends by `|`"));
    }
}

/// `None` when an error was reported; all errors of the route are.
fn route(table: &At<Route>, context: &Context<'_>, names: &mut Names, out: &mut Output) -> Option<Placed> {
    let route = &table.value;
    let keys = keys(table, out);
    let listeners = listener_names(route, context, out);
    out.check_repeated(route.alpn.values(), alpn_text);
    out.check_repeated(route.ja4.values(), ToString::to_string);
    out.check_repeated(route.from.values(), ToString::to_string);
    let inside = keys.as_deref().and_then(|keys| inside::resolve(route, keys, out));
    let http = http::cause(route, context.upstreams);
    let targets = match (http, keys.as_deref()) {
        (Some(cause), keys) => http::check(route, cause, keys?, out).map(|()| Target::Http),
        (None, keys) => targets(table, keys, context, out),
    };
    let (keys, listeners, inside, target) = (keys?, listeners?, inside?, targets?);
    if any_bad(route) {
        return None;
    }
    let name = names.name(route, &keys);
    note_match(&name, route, out);
    let known = tls::Known { keys: &keys, inside: inside.protocols.as_deref(), http: http.is_some() };
    let policy = tls::resolve(&name, route, &known, context.tls, out);
    let action = match (action(&name, target, table, context, out)?, policy?) {
        (ActionConfig::Http(http), policy) => ActionConfig::Http(Arc::new(HttpConfig {
            tls: policy.map(Arc::new),
            ..Arc::unwrap_or_clone(http)
        })),
        (ActionConfig::Passthrough(to), Some(policy)) => {
            ActionConfig::Terminate(TerminateConfig { tls: Arc::new(policy), to })
        }
        (action, _) => action,
    };
    backend_tls::check_route(&action, &keys, route, out)?;
    let conditions = conditions(route, &action, listeners, inside);
    let (keys, places) = keys.into_iter().unzip();
    let origin = table.place.origin();
    Some(Placed {
        route: RouteConfig { name: Arc::from(name), keys, conditions, action, origin },
        place: table.place.clone(),
        keys: places,
    })
}

/// Whether a value that is not looked at before cannot be used.
fn any_bad(route: &Route) -> bool {
    route.name.is_bad()
        || route.alpn.is_bad()
        || route.ja4.is_bad()
        || route.from.is_bad()
        || route.proxy_protocol.is_bad()
        || route.transparent.is_bad()
        || route.internal.is_bad()
        || route.tls.is_bad()
        || route.action_keys().any_bad()
}

/// What must hold beside what the route matches.
fn conditions(
    route: &Route,
    action: &ActionConfig,
    listeners: Option<Vec<Arc<str>>>,
    inside: Inside,
) -> Conditions {
    let alpn = route.alpn.given().map(|at| at.value.0.iter().map(|alpn| alpn.value.0.clone()).collect());
    Conditions {
        listeners,
        alpn: acme::with_challenges(alpn, action),
        ja4: route.ja4.given().map(|at| at.value.0.iter().map(|ja4| ja4.value.clone()).collect()),
        from: route.from.given().map(|at| at.value.0.iter().map(|net| net.value).collect()),
        inside: inside.protocols,
        starttls: inside.starttls,
        databases: inside.databases,
        users: inside.users,
    }
}

/// What becomes of connections that the route takes.
fn action(
    name: &str,
    target: Target<'_>,
    table: &At<Route>,
    context: &Context<'_>,
    out: &mut Output,
) -> Option<ActionConfig> {
    let route = &table.value;
    Some(match target {
        Target::Http => ActionConfig::Http(Arc::new(http::resolve(name, table, context, out)?)),
        Target::Redirect(place) => {
            out.note(format!("route[{name}].redirect"), string("https"), Some(place));
            ActionConfig::Redirect
        }
        Target::Reject(with, place) => {
            out.note(format!("route[{name}].reject"), string(with), Some(place));
            ActionConfig::Reject(with)
        }
        Target::To(addrs) => {
            if !has_own_name(name, &table.place, context, out) {
                return None;
            }
            let prefix = format!("route[{name}]");
            let upstream = upstreams::keys_to_config(name, &prefix, &route.pool_keys(), out)?;
            ActionConfig::Passthrough(passthrough::of_route(
                name,
                Arc::new(upstream),
                &addrs,
                route,
                context,
                out,
            ))
        }
        Target::Named(Written { config, to, .. }, place) => {
            out.note(format!("route[{name}].upstream"), string(&config.name), Some(place));
            ActionConfig::Passthrough(passthrough::of_route(name, config, &to, route, context, out))
        }
    })
}

/// Whether no upstream is named so; reported if one is.
pub(super) fn has_own_name(name: &str, place: &Place, context: &Context<'_>, out: &mut Output) -> bool {
    if !context.upstreams.has(name) {
        return true;
    }
    let message = format!("the route {} has backends of its own, and an upstream has its name", quote(name));
    let error = ConfigError::new(ErrorKind::DuplicateName, message).at(place);
    out.report(error.hint("give the route another `name`, or write `upstream` in place of `to`"));
    false
}

/// What the route matches, and where that is written.
fn keys(table: &At<Route>, out: &mut Output) -> Option<Vec<(RouteKey, Place)>> {
    let route = &table.value;
    if route.sni.is_bad() || route.protocol.is_bad() || route.begins.is_bad() {
        return None;
    }
    out.check_repeated(route.sni.values(), ToString::to_string);
    out.check_repeated(route.protocol.values(), ToString::to_string);
    out.check_repeated(route.begins.values(), ToString::to_string);
    if let Some(begins) = route.begins.given() {
        return begins_keys(route, &begins.place, out);
    }
    if let Some(sni) = route.sni.given() {
        return sni_keys(route, &sni.place, out);
    }
    if !route.protocol.is_absent() {
        return protocol_keys(route, out);
    }
    match route.alpn.place().or(route.ja4.place()) {
        Some(place) => Some(any_hello(place).into()),
        None => {
            let message = "the route says nothing about what it matches";
            let error = ConfigError::new(ErrorKind::MissingKey, message).at(&table.place);
            let of_postgres = route.database.place().or(route.user.place()).is_some();
            out.report(error.hint(match route.redirect.place() {
                Some(_) => "add `protocol = \"http\"`",
                None if of_postgres => "add `protocol = \"postgres\"`",
                None => "add `sni = \"app.example.com\"`, or `protocol = \"any\"` to match everything",
            }));
            None
        }
    }
}

/// Every ClientHello: with a name and without.
fn any_hello(place: &Place) -> [(RouteKey, Place); 2] {
    [(RouteKey::Sni(NamePattern::Any), place.clone()), (RouteKey::NoSni, place.clone())]
}

fn begins_keys(route: &Route, begins: &Place, out: &mut Output) -> Option<Vec<(RouteKey, Place)>> {
    let of_tls = [("sni", route.sni.place()), ("alpn", route.alpn.place()), ("ja4", route.ja4.place())];
    let of_tls = of_tls.into_iter().find_map(|(key, place)| Some((key, place?)));
    let other = route.protocol.values().iter().find(|at| at.value != ProtocolWord::Is(Protocol::Unknown));
    let error = if let Some((key, place)) = of_tls {
        let message = format!("`{key}` is part of TLS, and `begins` is said of what is no known protocol");
        let error = ConfigError::new(ErrorKind::Conflict, message).at(place);
        error.hint(format!("write a second `[[route]]` with `{key}`"))
    } else if let Some(other) = other {
        let message =
            format!("`begins` is said of what is no known protocol, and never of `{}`", other.value);
        let error = ConfigError::new(ErrorKind::Conflict, message).at(&other.place);
        error.hint("leave `protocol` out, and write a second `[[route]]` for the other one")
    } else {
        let keys = route.begins.values().iter();
        return Some(keys.map(|at| (RouteKey::Begins(at.value.clone()), at.place.clone())).collect());
    };
    out.report(error.also(begins, "`begins` is here"));
    None
}

fn sni_keys(route: &Route, sni: &Place, out: &mut Output) -> Option<Vec<(RouteKey, Place)>> {
    let words = route.protocol.values();
    if !words.iter().all(|at| inside::check_word(at, words.len(), sni, out)) {
        return None;
    }
    let key = |word: &SniWord| match word {
        SniWord::Name(pattern) => RouteKey::Sni(pattern.clone()),
        SniWord::None => RouteKey::NoSni,
    };
    Some(route.sni.values().iter().map(|at| (key(&at.value), at.place.clone())).collect())
}

fn protocol_keys(route: &Route, out: &mut Output) -> Option<Vec<(RouteKey, Place)>> {
    let words = route.protocol.values();
    if let Some(any) = words.iter().find(|at| at.value == ProtocolWord::Any)
        && words.len() > 1
    {
        let error = ConfigError::new(ErrorKind::Conflict, "`any` is every protocol already").at(&any.place);
        out.report(error.hint("write `protocol = \"any\"` alone"));
        return None;
    }
    let not_tls = words.iter().find(|at| at.value != ProtocolWord::Is(Protocol::Tls));
    let of_tls = [("alpn", route.alpn.place()), ("ja4", route.ja4.place())];
    let of_tls = of_tls.into_iter().find_map(|(key, place)| Some((key, place?)));
    if let (Some(other), Some((key, place))) = (not_tls, of_tls) {
        let message = format!("`{key}` is part of TLS, and `protocol` is `{}`", other.value);
        let error = ConfigError::new(ErrorKind::Conflict, message).at(place);
        out.report(
            error.also(&other.place, "`protocol` is here").hint("write `protocol = \"tls\"` or leave it out"),
        );
        return None;
    }
    let keys = words.iter().flat_map(|at| match at.value {
        ProtocolWord::Any => vec![(RouteKey::Anything, at.place.clone())],
        ProtocolWord::Is(Protocol::Tls) => any_hello(&at.place).into(),
        ProtocolWord::Is(protocol) => vec![(RouteKey::Protocol(protocol), at.place.clone())],
    });
    Some(keys.collect())
}

/// `Some(None)` when the route is for all listeners.
fn listener_names(route: &Route, context: &Context<'_>, out: &mut Output) -> Option<Option<Vec<Arc<str>>>> {
    let at = match &route.listener {
        Setting::Absent => return Some(None),
        Setting::Bad(_) => return None,
        Setting::Given(at) => at,
    };
    out.check_repeated(&at.value.0, |name| name.0.clone());
    let names: Vec<_> =
        at.value.0.iter().map(|name| find_listener(name, context.listeners, context.complete, out)).collect();
    names.into_iter().collect::<Option<Vec<_>>>().map(Some)
}

/// The listener of that name.
pub(super) fn find_listener(
    name: &At<ListenerName>,
    listeners: &[ListenerConfig],
    complete: bool,
    out: &mut Output,
) -> Option<Arc<str>> {
    let text = name.value.0.as_str();
    let found = listeners.iter().find(|listener| &*listener.name == text);
    if found.is_none() && complete {
        let message = format!("there is no listener {}", quote(text));
        let error = ConfigError::new(ErrorKind::UnknownListener, message).at(&name.place);
        out.report(match similar(text, listeners.iter().map(|listener| &*listener.name)) {
            Some(name) => error.hint(format!("did you mean `{name}`?")),
            None => error.hint(format!(
                "the listeners are {}",
                super::super::decode::list(listeners.iter().take(12).map(|listener| &*listener.name))
            )),
        });
    }
    found.map(|listener| Arc::clone(&listener.name))
}

/// Where a route leads.
enum Target<'r> {
    /// To where its rules, and the route itself, say of each request.
    Http,
    /// To backends of its own, which stand at these places.
    To(Vec<(UpstreamAddr, Place)>),
    /// To those of a group that is named.
    Named(Written, &'r Place),
    Redirect(&'r Place),
    Reject(RejectWith, &'r Place),
}

/// Exactly one of `to`, `upstream`, `redirect` and `reject`, and nothing that is said of HTTP.
fn targets<'r>(
    table: &'r At<Route>,
    keys: Option<&[(RouteKey, Place)]>,
    context: &Context<'_>,
    out: &mut Output,
) -> Option<Target<'r>> {
    let route = &table.value;
    http::refuse_keys(route, context.upstreams, out);
    let all = [
        ("to", route.to.place()),
        ("upstream", route.upstream.place()),
        ("redirect", route.redirect.place()),
        ("reject", route.reject.place()),
    ];
    let mut given = all.into_iter().filter_map(|(key, place)| Some((key, place?)));
    let Some((first, place)) = given.next() else {
        let error = ConfigError::new(ErrorKind::MissingKey, "the route leads nowhere").at(&table.place);
        out.report(
            error.hint("add `to = \"10.0.0.1:443\"`, or `reject = \"close\"` to refuse the connection"),
        );
        return None;
    };
    if let Some((second, other)) = given.next() {
        let message = format!("a route has either `{first}` or `{second}`, not both");
        let error = ConfigError::new(ErrorKind::Conflict, message).at(other);
        out.report(error.also(place, format!("`{first}` is here")));
        return None;
    }
    if let Some(reject) = route.reject.given() {
        return reject_target(route, reject, keys, out);
    }
    if let Some(redirect) = route.redirect.given() {
        return redirect_target(route, &redirect.place, keys, out);
    }
    if let Some(name) = route.upstream.given() {
        for (key, place) in route.pool_keys().written() {
            let message = format!("`{key}` is said of backends, which stand in the `[[upstream]]`");
            let error = ConfigError::new(ErrorKind::Conflict, message).at(place);
            out.report(error.also(&name.place, "`upstream` is here").hint(format!("move `{key}` there")));
        }
        return Some(Target::Named(context.upstreams.find(name, out)?, &name.place));
    }
    let to = upstreams::check_backends(&route.to, context.listeners, out)?;
    dynamic::check(route, &to, keys, out);
    Some(Target::To(to))
}

fn reject_target<'r>(
    route: &Route,
    reject: &'r At<RejectWith>,
    keys: Option<&[(RouteKey, Place)]>,
    out: &mut Output,
) -> Option<Target<'r>> {
    without_backends(route, ("rejects", &reject.place), out);
    let without_tls = |keys: &[(RouteKey, Place)]| {
        keys.iter().all(|(key, _)| match key {
            RouteKey::Begins(_) => true,
            RouteKey::Protocol(protocol) => *protocol != Protocol::Tls,
            RouteKey::Sni(_) | RouteKey::NoSni | RouteKey::Anything => false,
        })
    };
    if reject.value == RejectWith::Alert && keys.is_some_and(without_tls) {
        let message = "an alert is a message of TLS, and the route matches what is not TLS";
        let error = ConfigError::new(ErrorKind::Conflict, message).at(&reject.place);
        out.report(error.hint("write `reject = \"close\"`"));
    }
    Some(Target::Reject(reject.value, &reject.place))
}

fn redirect_target<'r>(
    route: &'r Route,
    redirect: &'r Place,
    keys: Option<&[(RouteKey, Place)]>,
    out: &mut Output,
) -> Option<Target<'r>> {
    without_backends(route, ("redirects", redirect), out);
    let other = keys?.iter().find(|(key, _)| *key != RouteKey::Protocol(Protocol::Http));
    if let Some((key, place)) = other {
        let message = format!("only clients of HTTP can be redirected, and the route matches `{key}`");
        let error = ConfigError::new(ErrorKind::Conflict, message).at(redirect).also(place, "matched here");
        out.report(error.hint("write `protocol = \"http\"`"));
        return None;
    }
    Some(Target::Redirect(redirect))
}

/// A route that refuses or redirects, and what only one with backends can have.
fn without_backends(route: &Route, (does, at): (&str, &Place), out: &mut Output) {
    let of_backends = [
        ("tls", route.tls.place()),
        ("timeouts", route.timeouts.place()),
        ("proxy_protocol", route.proxy_protocol.place()),
        ("transparent", route.transparent.place()),
        ("internal", route.internal.place()),
    ];
    let of_backends = of_backends.into_iter().filter_map(|(key, place)| Some((key, place?)));
    for (key, place) in of_backends.chain(route.pool_keys().written()) {
        let message = format!("a route that {does} has no `{key}`");
        let error = ConfigError::new(ErrorKind::Conflict, message).at(place);
        out.report(error.also(at, format!("it {does} here")).hint(format!("remove `{key}`")));
    }
}

/// Notes what the route matches.
fn note_match(name: &str, route: &Route, out: &mut Output) {
    let mut note = |key: &str, value: String, place: Option<&Place>| {
        if place.is_some() {
            out.note(format!("route[{name}].{key}"), value, place);
        }
    };
    note("sni", strings(route.sni.values().iter().map(|at| &at.value)), route.sni.place());
    note("protocol", strings(route.protocol.values().iter().map(|at| at.value)), route.protocol.place());
    note("begins", strings(route.begins.values().iter().map(|at| &at.value)), route.begins.place());
    note("alpn", strings(route.alpn.values().iter().map(|at| alpn_text(&at.value))), route.alpn.place());
    note("ja4", strings(route.ja4.values().iter().map(|at| &at.value)), route.ja4.place());
    note("from", strings(route.from.values().iter().map(|at| at.value)), route.from.place());
    note("database", strings(route.database.values().iter().map(|at| &at.value)), route.database.place());
    note("user", strings(route.user.values().iter().map(|at| &at.value)), route.user.place());
    if let Some(at) = route.starttls.given() {
        note("starttls", at.value.to_string(), Some(&at.place));
    }
    let listeners = route.listener.values().iter().map(|at| &at.value.0);
    note("listener", strings(listeners), route.listener.place());
}

fn alpn_text(alpn: &AlpnName) -> String {
    String::from_utf8_lossy(&alpn.0).into_owned()
}

/// Names of routes, each given once.
struct Names {
    taken: HashMap<String, Place>,
    /// The next number to try for a name that is taken.
    next: HashMap<String, u32>,
}

impl Names {
    /// Takes those that are written, so that made ones give way to them.
    fn given(input: &Input, out: &mut Output) -> Self {
        let mut taken: HashMap<String, Place> = HashMap::new();
        for at in input.routes().filter_map(|table| table.value.name.given()) {
            if let Err(problem) = checked_name(&at.value.0, "route", "-_.*:") {
                out.report(problem.at(&at.place));
            }
            if let Some(first) = taken.get(&at.value.0) {
                let message = format!("two routes are named {}", quote(&at.value.0));
                let error = ConfigError::new(ErrorKind::DuplicateName, message).at(&at.place);
                out.report(error.also(first, "first defined here"));
            } else {
                taken.insert(at.value.0.clone(), at.place.clone());
            }
        }
        Self { taken, next: HashMap::new() }
    }

    /// The name of `route`: the one given, or one from what it matches.
    fn name(&mut self, route: &Route, keys: &[(RouteKey, Place)]) -> String {
        if let Some(name) = route.name.given() {
            return name.value.0.clone();
        }
        let place = keys.first().map(|(_, place)| place);
        let base = match keys.first() {
            Some((RouteKey::NoSni, _)) => "no-sni".to_owned(),
            Some((RouteKey::Sni(_), _)) if route.sni.is_absent() => "protocol:tls".to_owned(),
            Some((key, _)) => key.to_string(),
            None => "route".to_owned(),
        };
        let mut name = base.clone();
        while self.taken.contains_key(&name) {
            let next = self.next.entry(base.clone()).or_insert(2);
            name = format!("{base}#{next}");
            *next += 1;
        }
        self.taken.extend(place.map(|place| (name.clone(), place.clone())));
        name
    }
}
