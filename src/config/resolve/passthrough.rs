//! How backends are connected to, and how long connections may stay idle.

use std::sync::Arc;
use std::time::Duration;

use super::super::decode::Setting;
use super::super::file::{Route, RouteTimeouts};
use super::super::http_keys::ActionKeys;
use super::super::source::Place;
use super::super::units::duration_text;
use super::super::{AnswerTimeout, PassthroughConfig, UpstreamConfig};
use super::routes::Context;
use super::{Output, dynamic, settings, string, transparent};
use crate::net::UpstreamAddr;

/// The backends of the route `name` that streams are passed on to.
pub(super) fn of_route(
    name: &str,
    upstream: Arc<UpstreamConfig>,
    to: &[(UpstreamAddr, Place)],
    route: &Route,
    context: &Context<'_>,
    out: &mut Output,
) -> PassthroughConfig {
    let internal = dynamic::internal(name, to, route, out);
    let prefix = format!("route[{name}]");
    let plain = of_keys(&prefix, upstream, to, (&route.action_keys(), route), context, out);
    PassthroughConfig { internal, ..plain }
}

/// Backends as `keys` of `route`, or of a rule of it, say; noted below `prefix`.
pub(super) fn of_keys(
    prefix: &str,
    upstream: Arc<UpstreamConfig>,
    to: &[(UpstreamAddr, Place)],
    (keys, route): (&ActionKeys<'_>, &Route),
    context: &Context<'_>,
    out: &mut Output,
) -> PassthroughConfig {
    let proxy_protocol = keys.proxy_protocol.given();
    let version = proxy_protocol.and_then(|at| at.value.0);
    let text = version.map_or_else(|| string("off"), string);
    out.note(format!("{prefix}.proxy_protocol"), text, proxy_protocol.map(|at| &at.place));
    // Of listeners that are not all known nothing may be concluded.
    let listeners = if context.complete { context.listeners } else { &[] };
    let transparent = transparent::resolve(prefix, to, (keys.transparent.given(), route), listeners, out);
    let table = keys.timeouts.given().map(|at| &at.value);
    let plain = within(prefix, upstream, table, context, out);
    PassthroughConfig { proxy_protocol: version, transparent, ..plain }
}

/// Backends with the timeouts of `table`, and with the global ones where that says nothing; noted below `prefix`.
fn within(
    prefix: &str,
    upstream: Arc<UpstreamConfig>,
    table: Option<&RouteTimeouts>,
    context: &Context<'_>,
    out: &mut Output,
) -> PassthroughConfig {
    let [connect, idle, half_closed, _] = &context.origins;
    let mut one =
        |key: &str, of: fn(&RouteTimeouts) -> &Setting<Duration>, global, origin: &Option<_>, max| {
            let at = table.and_then(|table| of(table).given());
            let value = at.map_or(global, |at| settings::checked_duration(key, at, max, out));
            let origin = at.map_or_else(|| origin.clone(), |at| Some(at.place.origin()));
            out.note_from(format!("{prefix}.timeouts.{key}"), string(duration_text(value)), origin);
            value
        };
    let global = context.timeouts;
    let connect_timeout = one("connect", |table| &table.connect, global.connect, connect, settings::DAY);
    let idle_timeout = one("idle", |table| &table.idle, global.idle, idle, settings::IDLE_MAX);
    let half_closed_timeout =
        one("half_closed", |table| &table.half_closed, global.half_closed, half_closed, settings::DAY);
    let answer_timeout = answer_timeout(prefix, table, connect_timeout, context, out);
    PassthroughConfig {
        internal: Vec::new(),
        upstream,
        proxy_protocol: None,
        transparent: None,
        connect_timeout,
        answer_timeout,
        idle_timeout,
        half_closed_timeout,
    }
}

/// How long a backend has for its first byte: what the table says, or all do, or as long as for its connection.
fn answer_timeout(
    prefix: &str,
    table: Option<&RouteTimeouts>,
    connect: Duration,
    context: &Context<'_>,
    out: &mut Output,
) -> Option<Duration> {
    let [of_connect, .., of_answer] = &context.origins;
    let global = context.timeouts.answer;
    let (answer, origin) = match (table.and_then(|table| table.answer.given()), global) {
        (Some(at), _) => (AnswerTimeout::Of(settings::answer(at, out)), Some(at.place.origin())),
        (None, AnswerTimeout::Of(_)) => (global, of_answer.clone()),
        (None, AnswerTimeout::LikeConnect) => {
            let at = table.and_then(|table| table.connect.given());
            (global, at.map_or_else(|| of_connect.clone(), |at| Some(at.place.origin())))
        }
    };
    let answer = answer.of(connect);
    out.note_from(format!("{prefix}.timeouts.answer"), settings::answer_text(answer), origin);
    answer
}
