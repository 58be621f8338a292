//! Routes that speak HTTP with their clients: what makes them so, and what becomes of requests.

use std::collections::HashMap;
use std::sync::Arc;

use http::StatusCode;

use super::super::decode::{At, Either, quote};
use super::super::error::{ConfigError, ErrorKind};
use super::super::file::Route;
use super::super::http_keys::Rule;
use super::super::http_values::RedirectTo;
use super::super::protocols::ProtocolWord;
use super::super::source::Place;
use super::super::{
    AnswerConfig, HeaderChanges, HttpConfig, RequestAction, RequestConditions, RouteKey, RuleConfig,
};
use super::routes::Context;
use super::upstreams::{self, Upstreams};
use super::{Output, settings};
use crate::peek::Protocol;
use action::Spot;
use conditions::Found;

mod action;
mod conditions;
mod headers;
mod limits;
mod policies;
mod proxy;

/// What an answer's body is when nothing is said.
const TEXT: &str = "text/plain; charset=utf-8";

/// The key that makes a route one of HTTP, and where it is; `None` for routes that pass streams on.
pub(super) fn cause<'r>(route: &'r Route, upstreams: &Upstreams) -> Option<(&'static str, &'r Place)> {
    let redirect = route.redirect.given().filter(|at| match &at.value {
        Either::Short(to) => *to != RedirectTo::Https,
        Either::Table(table) => {
            !table.status.is_absent() || table.to.given().is_some_and(|to| to.value != RedirectTo::Https)
        }
    });
    let group = |at: &&At<_>| upstreams.scheme(name_of(at)).is_some_and(|scheme| scheme.http().is_some());
    let all = [
        ("rule", route.rule.place()),
        ("split", route.split.place()),
        ("files", route.files.place()),
        ("answer", route.answer.place()),
        ("redirect", redirect.map(|at| &at.place)),
        ("to", route.to.place().filter(|_| upstreams::speaks_http(&route.to))),
        ("upstream", route.upstream.given().filter(group).map(|at| &at.place)),
    ];
    all.into_iter().find_map(|(key, place)| Some((key, place?)))
}

fn name_of(at: &At<super::super::upstream::UpstreamName>) -> &str {
    &at.value.0
}

/// Reports what is said of HTTP in a route that passes streams on.
pub(super) fn refuse_keys(route: &Route, upstreams: &Upstreams, out: &mut Output) {
    // Of a group that is not known nothing is concluded, nor of backends that are wrong.
    let unknown = route.upstream.given().is_some_and(|at| upstreams.scheme(name_of(at)).is_none());
    if unknown || route.to.is_bad() || route.upstream.is_bad() || route.redirect.is_bad() {
        return;
    }
    let keys = route.action_keys();
    let response = route.timeouts.given().and_then(|at| at.value.response.place());
    let others = [
        ("response_headers", keys.response_headers.place()),
        ("trusted_proxies", route.trusted_proxies.place()),
        ("http", route.http.place()),
        ("timeouts.response", response),
    ];
    let others = others.into_iter().filter_map(|(key, place)| Some((key, place?)));
    let in_tls = route.sni.place().is_some() && route.tls.place().is_none();
    let policies = route.policy_keys();
    for (key, place) in keys.of_backends().chain(policies.written()).chain(others) {
        let (seen, hint) = if in_tls {
            (
                "which are not seen within TLS that is passed through",
                "TLS must end here: add `tls = \"files\"`, and write `http://` before the address in `to`",
            )
        } else {
            (
                "which this route does not look at",
                "write `http://` before the address in `to`, as in `\"http://10.0.0.1:80\"`",
            )
        };
        let error =
            ConfigError::new(ErrorKind::Conflict, format!("`{key}` is said of requests, {seen}")).hint(hint);
        out.report(error.at(place));
    }
}

/// Reports what a route of HTTP cannot be or have; `None` when it does.
pub(super) fn check(
    route: &Route,
    (cause, at): (&str, &Place),
    keys: &[(RouteKey, Place)],
    out: &mut Output,
) -> Option<()> {
    let mut good = ends_or_is_clear(route, (cause, at), keys, out);
    let streams = [
        ("reject", route.reject.place(), "write `answer = 403` to refuse requests"),
        (
            "internal",
            route.internal.place(),
            "remove `internal`: requests are only sent to backends that are named",
        ),
        ("starttls", route.starttls.place(), "remove `starttls`: TLS does not begin within HTTP"),
    ];
    for (key, place, hint) in streams {
        let Some(place) = place else { continue };
        let error = ConfigError::new(ErrorKind::Conflict, format!("a route that speaks HTTP has no `{key}`"));
        out.report(error.at(place).also(at, format!("`{cause}` makes it one")).hint(hint));
        good = false;
    }
    good.then_some(())
}

/// Whether what the route matches is HTTP, in clear or within TLS that ends here.
fn ends_or_is_clear(
    route: &Route,
    (cause, at): (&str, &Place),
    keys: &[(RouteKey, Place)],
    out: &mut Output,
) -> bool {
    let is_http = |word: &ProtocolWord| match word {
        ProtocolWord::Is(protocol) => matches!(protocol, Protocol::Http | Protocol::H2c | Protocol::Tls),
        ProtocolWord::Any => true,
    };
    let (message, place, hint) =
        if let Some(word) = route.protocol.values().iter().find(|at| !is_http(&at.value)) {
            let message =
                format!("`{cause}` is said of HTTP, and the clients of this route speak {}", word.value);
            (message, &word.place, "write `protocol = \"http\"`, and a second `[[route]]` for others")
        } else if route.tls.place().is_some() {
            return true;
        } else if let Some((_, place)) =
            keys.iter().find(|(key, _)| matches!(key, RouteKey::Sni(_) | RouteKey::NoSni))
        {
            let message =
                format!("`{cause}` is said of HTTP, which is not seen within TLS that is passed through");
            (message, place, "TLS must end here: add `tls = \"files\"`, `\"acme\"` or `\"self-signed\"`")
        } else if let Some((key, place)) = keys.iter().find(|(key, _)| matches!(key, RouteKey::Begins(_))) {
            let message = format!("`{cause}` is said of HTTP, and the route matches `{key}`");
            (message, place, "write `protocol = \"http\"` in place of `begins`")
        } else {
            return true;
        };
    let error = ConfigError::new(ErrorKind::Conflict, message).at(at).also(place, "matched here");
    out.report(error.hint(hint));
    false
}

/// What becomes of the requests of the route `name`; how TLS is ended is not known here.
pub(super) fn resolve(
    name: &str,
    table: &At<Route>,
    context: &Context<'_>,
    out: &mut Output,
) -> Option<HttpConfig> {
    let route = &table.value;
    let prefix = format!("route[{name}]");
    let mut taken: HashMap<String, &Place> = HashMap::new();
    let tables = route.rule.tables();
    let found: Vec<_> = tables
        .iter()
        .enumerate()
        .map(|(index, rule)| one(name, index, rule, (route, &mut taken), context, out))
        .collect();
    let alone = tables.is_empty() && !route.rule.is_bad();
    let own = own(name, table, (&taken, alone), context, out);
    let last = route.action_keys().actions().next().map(|(_, place)| place.clone());
    conditions::check_reached(&found, last.as_ref(), out);
    let limits = limits::resolve(&prefix, route.http.given(), out);
    let trusted =
        settings::networks(&format!("{prefix}.trusted_proxies"), route.trusted_proxies.given(), out);
    let bad = route.rule.is_bad() || route.http.is_bad() || route.trusted_proxies.is_bad();
    let rules: Option<Vec<_>> = found.into_iter().map(|found| Some(found?.rule)).collect();
    let mut rules = rules?;
    rules.push(own?);
    if bad {
        return None;
    }
    Some(HttpConfig { tls: None, rules, limits: limits?, trusted_proxies: trusted.into() })
}

/// A rule; `None` when an error was reported, all errors of the rule are.
fn one<'r>(
    route: &str,
    index: usize,
    table: &'r At<Rule>,
    (of, taken): (&Route, &mut HashMap<String, &'r Place>),
    context: &Context<'_>,
    out: &mut Output,
) -> Option<Found> {
    let rule = &table.value;
    let given = rule.name.given();
    let label = given.map_or_else(|| (index + 1).to_string(), |at| at.value.0.clone());
    let place = given.map_or(&table.place, |at| &at.place);
    if let Some(first) = taken.insert(label.clone(), place) {
        let message = format!("two rules of a route are named {}", quote(&label));
        let error = ConfigError::new(ErrorKind::DuplicateName, message).at(place);
        out.report(error.also(first, "first defined here"));
        return None;
    }
    let prefix = format!("route[{route}].rule[{label}]");
    let when = conditions::resolve(&prefix, rule, out);
    let group = format!("{route}/{label}");
    let name = if given.is_some() { label } else { group.clone() };
    let spot = Spot {
        prefix,
        group,
        name: Arc::from(name),
        place: &table.place,
        route: of,
        groups: when.as_ref().and_then(|when| conditions::groups(&when.paths)),
    };
    let done = action::resolve(&spot, &rule.action_keys(), context, out);
    let policies = policies::resolve(&spot.prefix, &rule.policy_keys(), out);
    if rule.name.is_bad() {
        return None;
    }
    let (when, done) = (when?, done?);
    let rule = RuleConfig {
        name: spot.name,
        when,
        action: done.action,
        policies: policies?,
        request_headers: done.request_headers,
        response_headers: done.response_headers,
        origin: table.place.origin(),
    };
    Some(Found { rule, place: table.place.clone() })
}

/// What the route says itself, of requests that no rule takes; 404 where it says nothing.
fn own(
    name: &str,
    table: &At<Route>,
    (taken, alone): (&HashMap<String, &Place>, bool),
    context: &Context<'_>,
    out: &mut Output,
) -> Option<RuleConfig> {
    let route = &table.value;
    let keys = route.action_keys();
    let prefix = format!("route[{name}]");
    let policies = policies::resolve(&prefix, &route.policy_keys(), out)?;
    let rule = |action, request_headers, response_headers| RuleConfig {
        name: Arc::from(name),
        when: RequestConditions::default(),
        action,
        policies,
        request_headers,
        response_headers,
        origin: table.place.origin(),
    };
    if keys.actions().next().is_none() && !alone {
        action::refuse_without_action(&keys, out)?;
        out.note(format!("{prefix}.answer.status"), StatusCode::NOT_FOUND.as_str(), None);
        let response =
            headers::resolve(&prefix, "response_headers", keys.response_headers.given(), None, out)?;
        let answer = AnswerConfig { status: StatusCode::NOT_FOUND, body: None, content_type: TEXT.into() };
        return Some(rule(RequestAction::Answer(answer), HeaderChanges::default(), response));
    }
    let variants = route.split.values().iter().filter_map(|at| at.value.name.given());
    if let Some((at, first)) = variants.into_iter().find_map(|at| Some((at, *taken.get(&at.value.0)?))) {
        let message = format!("a rule and a variant of this route are named {}", quote(&at.value.0));
        let error = ConfigError::new(ErrorKind::DuplicateName, message).at(&at.place);
        out.report(error.also(first, "the rule is here"));
        return None;
    }
    let spot = Spot {
        prefix,
        group: name.to_owned(),
        name: Arc::from(name),
        place: &table.place,
        route,
        groups: None,
    };
    let done = action::resolve(&spot, &keys, context, out)?;
    Some(rule(done.action, done.request_headers, done.response_headers))
}
