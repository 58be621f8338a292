//! Protocols inside TLS, and what else routes say of those that TLS begins in.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::decode::{At, OneOrMany, Setting};
use super::super::error::{ConfigError, ErrorKind};
use super::super::file::Route;
use super::super::overlap::Placed;
use super::super::protocols::ProtocolWord;
use super::super::source::Place;
use super::super::{ListenerConfig, RouteKey};
use super::Output;
use crate::peek::Protocol;

/// What a route says of what is spoken inside TLS, or in PostgreSQL without it.
pub(super) struct Inside {
    pub(super) protocols: Option<Vec<Protocol>>,
    pub(super) starttls: Option<bool>,
    pub(super) databases: Option<Vec<Box<str>>>,
    pub(super) users: Option<Vec<Box<str>>>,
}

/// `None` when an error was reported.
pub(super) fn resolve(route: &Route, keys: &[(RouteKey, Place)], out: &mut Output) -> Option<Inside> {
    let tls = keys.iter().any(|(key, _)| matches!(key, RouteKey::Sni(_) | RouteKey::NoSni));
    let protocols = (tls && route.sni.place().is_some()).then(|| {
        let named = route.protocol.values().iter().filter_map(|at| match at.value {
            ProtocolWord::Is(Protocol::Tls) | ProtocolWord::Any => None,
            ProtocolWord::Is(protocol) => Some(protocol),
        });
        named.collect::<Vec<_>>()
    });
    let protocols = protocols.filter(|protocols| !protocols.is_empty());
    let starttls = starttls(route, protocols.as_deref(), out);
    out.check_repeated(route.database.values(), Clone::clone);
    out.check_repeated(route.user.values(), Clone::clone);
    let clear = keys.iter().all(|(key, _)| *key == RouteKey::Protocol(Protocol::Postgres));
    for (key, place) in [("database", route.database.place()), ("user", route.user.place())] {
        if let Some(place) = place
            && !clear
        {
            let message =
                format!("`{key}` is told in clear by clients of PostgreSQL without TLS, and by no others");
            let error = ConfigError::new(ErrorKind::Conflict, message).at(place);
            out.report(error.hint("write `protocol = \"postgres\"` and no `sni`"));
            return None;
        }
    }
    if route.starttls.is_bad() || route.database.is_bad() || route.user.is_bad() {
        return None;
    }
    let (databases, users) = (texts(&route.database), texts(&route.user));
    Some(Inside { protocols, starttls: starttls?, databases, users })
}

fn texts(setting: &Setting<OneOrMany<String>>) -> Option<Vec<Box<str>>> {
    setting.given().map(|at| at.value.0.iter().map(|at| at.value.as_str().into()).collect())
}

/// `Some(None)` when nothing is said.
fn starttls(route: &Route, protocols: Option<&[Protocol]>, out: &mut Output) -> Option<Option<bool>> {
    let Some(at) = route.starttls.given() else { return Some(None) };
    let protocols = protocols.unwrap_or_default();
    let suits = |protocol: &Protocol| {
        if at.value { protocol.has_starttls() } else { protocol.is_spoken_in_tls() }
    };
    if protocols.iter().any(|protocol| protocol.has_starttls()) && protocols.iter().any(suits) {
        return Some(Some(at.value));
    }
    let message = match protocols {
        [] => {
            "`starttls` is said of a route with `sni` and a `protocol` within which TLS can begin".to_owned()
        }
        [protocol, ..] if at.value => format!("TLS does not begin within {protocol}"),
        [protocol, ..] => format!("TLS does not come before {protocol}, or never begins within it"),
    };
    let error = ConfigError::new(ErrorKind::Conflict, message).at(&at.place);
    let both = route.sni.place().is_some();
    out.report(error.hint(if both { "remove `starttls`" } else { "add `sni`, or remove `starttls`" }));
    None
}

/// Whether this may stand beside `sni`: what is spoken inside TLS.
pub(super) fn check_word(at: &At<ProtocolWord>, words: usize, sni: &Place, out: &mut Output) -> bool {
    let hint = match at.value {
        ProtocolWord::Is(Protocol::Tls) if words == 1 => return true,
        ProtocolWord::Is(Protocol::Tls) => {
            "leave out `tls`: with `sni`, `protocol` is what is spoken inside TLS"
        }
        ProtocolWord::Is(Protocol::H2c) => "write `http`, which is HTTP/2 as well inside TLS",
        ProtocolWord::Is(
            Protocol::Ssh
            | Protocol::Openvpn
            | Protocol::Rdp
            | Protocol::Socks
            | Protocol::Unknown
            | Protocol::Silent,
        )
        | ProtocolWord::Any => "write a second `[[route]]` for the other protocol",
        ProtocolWord::Is(_) => return true,
    };
    let message = format!("a route with `sni` matches TLS, and never `{}`", at.value);
    let error = ConfigError::new(ErrorKind::Conflict, message).at(&at.place).also(sni, "`sni` is here");
    out.report(error.hint(hint));
    false
}

/// Reports routes for a protocol in clear on a listener where its clients are led to TLS, so that they are never reached.
pub(super) fn check_reachable(placed: &[Placed], listeners: &[ListenerConfig], out: &mut Output) {
    for listener in listeners {
        let mut led: HashMap<Protocol, &Place> = HashMap::new();
        for placed in placed {
            for protocol in Protocol::ALL {
                if placed.route.begins_tls_within(protocol, &listener.name) {
                    led.entry(protocol).or_insert(&placed.place);
                }
            }
        }
        // Who asks PostgreSQL for TLS says so in the first message.
        led.remove(&Protocol::Postgres);
        for placed in placed.iter().filter(|placed| placed.route.conditions.listens_on(&listener.name)) {
            for (key, place) in placed.route.keys.iter().zip(&placed.keys) {
                let RouteKey::Protocol(protocol) = key else { continue };
                let Some(tls) = led.get(protocol) else { continue };
                report_unreachable(*protocol, &listener.name, place, tls, out);
            }
        }
        silence(placed, listener, out);
    }
    for placed in placed {
        greeted(placed, listeners, out);
        spoken_over(placed, listeners, out);
    }
}

/// Clients that wait for their server must be greeted somewhere.
fn greeted(placed: &Placed, listeners: &[ListenerConfig], out: &mut Output) {
    let conditions = &placed.route.conditions;
    // Where TLS may be there from the first byte, the route has its use.
    let waits = |protocol: &&Protocol| {
        protocol.is_server_first() && (conditions.starttls == Some(true) || !protocol.is_spoken_in_tls())
    };
    for protocol in conditions.inside.iter().flatten().filter(waits) {
        let mut of_route = listeners.iter().filter(|listener| conditions.listens_on(&listener.name));
        let none =
            !of_route.any(|listener| listener.server_first.is_some_and(|(first, _)| first == *protocol));
        if none && !listeners.is_empty() {
            let message = format!(
                "clients of {protocol} wait for their server, and no listener of this route greets them"
            );
            let error = ConfigError::new(ErrorKind::Conflict, message).at(&placed.place);
            out.report(
                error.hint(format!("write `server_first = \"{protocol}\"` on a `[[listener]]` for them")),
            );
        }
    }
}

/// Where clients are greeted at once as those of one protocol, no others are served.
fn spoken_over(placed: &Placed, listeners: &[ListenerConfig], out: &mut Output) {
    let route = &placed.route;
    let fits = |protocol: Protocol| {
        let within = route.conditions.inside.as_ref().is_some_and(|inside| inside.contains(&protocol));
        let clear =
            route.keys.iter().any(|key| *key == RouteKey::Protocol(protocol) || *key == RouteKey::Anything);
        (within && route.conditions.starttls != Some(false)) || clear
    };
    let mut of_route =
        listeners.iter().filter(|listener| route.conditions.listens_on(&listener.name)).peekable();
    if of_route.peek().is_none() {
        return;
    }
    let reached = |listener: &ListenerConfig| match listener.server_first {
        Some((protocol, after)) if after.is_zero() => fits(protocol),
        _ => true,
    };
    let over = of_route.next().filter(|first| !reached(first));
    if let Some(listener) = over
        && !of_route.any(reached)
    {
        let protocol = listener.server_first.map_or(Protocol::Unknown, |(protocol, _)| protocol);
        let message = format!(
            "listener `{}` greets every client as one of {protocol} at once, so this is never reached",
            listener.name
        );
        let error = ConfigError::new(ErrorKind::Conflict, message).at(&placed.place);
        out.report(error.hint(format!(
            "write `server_first = {{ protocol = \"{protocol}\", after = \"1s\" }}` there, or give the route another listener"
        )));
    }
}

fn report_unreachable(protocol: Protocol, listener: &Arc<str>, place: &Place, tls: &Place, out: &mut Output) {
    let message =
        format!("clients of {protocol} on listener `{listener}` must begin TLS, so this is never reached");
    let error = ConfigError::new(ErrorKind::Conflict, message).at(place).also(tls, "this route is for them");
    out.report(error.hint("give the servers without TLS a `[[listener]]` of their own"));
}

/// Silent clients of a listener that takes them for those of a protocol are none of a route for silence.
fn silence(placed: &[Placed], listener: &ListenerConfig, out: &mut Output) {
    let Some((protocol, _)) = listener.server_first else { return };
    for placed in placed {
        let named =
            placed.route.conditions.listeners.is_some() && placed.route.conditions.listens_on(&listener.name);
        let silent = placed.route.keys.iter().zip(&placed.keys);
        let silent = silent.into_iter().find(|(key, _)| **key == RouteKey::Protocol(Protocol::Silent));
        if let (true, Some((_, place))) = (named, silent) {
            let message =
                format!("silent clients of listener `{}` are taken for those of {protocol}", listener.name);
            let error = ConfigError::new(ErrorKind::Conflict, message).at(place);
            out.report(
                error.hint(format!("write `protocol = \"{protocol}\"`, or remove `server_first` there")),
            );
        }
    }
}
