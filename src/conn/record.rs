//! What is told of a connection: its counters, and one line in the access log when it has ended.

use std::cell::Cell;
use std::fmt::Write;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::{Timestamp, Unit};
use serde::Serialize;

use super::Accepted;
use super::context::{Context, ListenerContext};
use super::metrics::Action;
use super::termination::{Stage, Termination};
use crate::config::LogFormat;
use crate::guard::Rejection;
use crate::net::{Direction, Meter};
use crate::peek::{Alpn, Detector, Preface, Protocol, ServerName};
use crate::snapshot::{LiveRoute, Traffic};

/// The story of a connection. Dropped without an end, it was forced.
#[derive(Debug)]
pub(super) struct ConnRecord {
    cx: Rc<Context>,
    listener: Rc<ListenerContext>,
    id: u64,
    client: SocketAddr,
    started: Instant,
    stage: Stage,
    action: Action,
    protocol: Option<Protocol>,
    sni: Option<ServerName>,
    alpn: Alpn,
    route: Option<Arc<str>>,
    traffic: Option<Arc<Traffic>>,
    reached: Reached,
    counts: Counts,
    end: Option<Termination>,
}

/// How far it came on its way to a backend.
#[derive(Debug)]
enum Reached {
    /// None was looked for.
    Nothing,
    /// This limit of its route kept it from one.
    Limit(Arc<str>),
    /// None could be connected to; this one was tried last.
    Tried(Arc<str>),
    /// It was connected, after so long.
    Backend(Arc<str>, Duration),
}

/// Bytes from and to the client.
#[derive(Debug, Default)]
struct Counts {
    received: Cell<u64>,
    sent: Cell<u64>,
    spliced: Cell<u64>,
}

/// Counts bytes as they pass, for the connection and for its route.
pub(super) struct TrafficMeter<'a> {
    counts: &'a Counts,
    traffic: Option<&'a Traffic>,
}

impl ConnRecord {
    pub(super) fn open(Accepted { admitted, listener }: &Accepted, cx: Rc<Context>) -> Self {
        listener.metrics.active.increment(1.0);
        Self {
            id: cx.next_id(),
            listener: Rc::clone(listener),
            client: admitted.client,
            started: admitted.at,
            cx,
            stage: Stage::Peek,
            action: Action::None,
            protocol: None,
            sni: None,
            alpn: Alpn::default(),
            route: None,
            traffic: None,
            reached: Reached::Nothing,
            counts: Counts::default(),
            end: None,
        }
    }

    pub(super) fn client(&self) -> SocketAddr {
        self.client
    }

    /// These bytes were read to find out what the connection is.
    pub(super) fn received(&mut self, bytes: &[u8]) {
        self.counts.received.set(bytes.len() as u64);
        if Detector::begins_tls(bytes) {
            self.protocol = Some(Protocol::Tls);
        }
    }

    /// It is known what the connection is.
    pub(super) fn peeked(&mut self, preface: &Preface) {
        self.stage = Stage::Route;
        self.protocol = Some(preface.protocol());
        if let Some(hello) = preface.hello() {
            self.sni.clone_from(&hello.server_name);
            self.alpn = hello.alpn.clone();
        }
    }

    /// A route takes it.
    pub(super) fn routed(&mut self, action: Action, route: &Arc<str>, live: Option<&LiveRoute>) {
        self.action = action;
        self.route = Some(Arc::clone(route));
        self.traffic = live.map(|live| Arc::clone(&live.traffic));
        if let Some(traffic) = &self.traffic {
            traffic.received.increment(self.counts.received.get());
        }
    }

    /// It is refused without a route.
    pub(super) fn refused(&mut self) {
        self.action = Action::Reject;
    }

    pub(super) fn connecting(&mut self) {
        self.stage = Stage::Connect;
    }

    pub(super) fn connected(&mut self, backend: Arc<str>, took: Duration) {
        self.stage = Stage::Relay;
        self.reached = Reached::Backend(backend, took);
    }

    /// No backend could be connected to; this one was tried last.
    pub(super) fn tried(&mut self, backend: Option<Arc<str>>) {
        self.reached = backend.map_or(Reached::Nothing, Reached::Tried);
    }

    /// A limit of its route refuses it.
    pub(super) fn limited(&mut self, limit: Option<Arc<str>>) {
        self.action = Action::Reject;
        self.reached = limit.map_or(Reached::Nothing, Reached::Limit);
    }

    pub(super) fn meter(&self) -> TrafficMeter<'_> {
        TrafficMeter { counts: &self.counts, traffic: self.traffic.as_deref() }
    }

    /// The end.
    pub(super) fn finish(mut self, termination: Termination) {
        self.end = Some(termination);
    }

    fn line(&self, end: Termination, duration: Duration) -> Line<'_> {
        let (limit, backend, took) = match &self.reached {
            Reached::Nothing => (None, None, None),
            Reached::Limit(limit) => (Some(&**limit), None, None),
            Reached::Tried(backend) => (None, Some(&**backend), None),
            Reached::Backend(backend, took) => (None, Some(&**backend), Some(*took)),
        };
        Line {
            time: format_time(duration),
            id: format!("{:016x}", self.id),
            listener: &self.listener.name,
            client: self.client,
            sni: self.sni.as_ref().map(ServerName::as_str),
            alpn: self.alpn.iter().map(|name| name.escape_ascii().to_string()).collect(),
            protocol: self.protocol.map(Protocol::as_str),
            route: self.route.as_deref(),
            action: self.action.as_str(),
            reason: end.reason,
            limit,
            backend,
            connect_ms: took.map(milliseconds),
            duration_ms: milliseconds(duration),
            bytes_in: self.counts.received.get(),
            bytes_out: self.counts.sent.get(),
            bytes_spliced: self.counts.spliced.get(),
            cause: end.cause.as_str(),
            stage: end.stage.as_str(),
        }
    }
}

impl Drop for ConnRecord {
    fn drop(&mut self) {
        let end = self.end.unwrap_or_else(|| {
            Termination::dropped(self.stage, self.cx.shared.drained.load(Ordering::Acquire))
        });
        let duration = self.started.elapsed();
        self.listener.metrics.active.decrement(1.0);
        self.listener.metrics.ended(self.action);
        match &self.traffic {
            Some(traffic) => traffic.duration.record(duration),
            None => {
                let snapshot = self.cx.shared.snapshot.load();
                snapshot.unrouted().received.increment(self.counts.received.get());
                snapshot.unrouted().sent.increment(self.counts.sent.get());
                snapshot.unrouted().duration.record(duration);
            }
        }
        if let Some(format) = self.cx.shared.access_log.format() {
            self.cx.shared.access_log.write(self.line(end, duration).render(format));
        }
    }
}

impl Meter for TrafficMeter<'_> {
    fn read(&self, direction: Direction, n: usize) {
        if direction == Direction::Up {
            self.counts.received.set(self.counts.received.get() + n as u64);
            if let Some(traffic) = self.traffic {
                traffic.received.increment(n as u64);
            }
        }
    }

    fn written(&self, direction: Direction, n: usize, spliced: bool) {
        if spliced {
            self.counts.spliced.set(self.counts.spliced.get() + n as u64);
            if let Some(traffic) = self.traffic {
                traffic.spliced.increment(n as u64);
            }
        }
        if direction == Direction::Down {
            self.counts.sent.set(self.counts.sent.get() + n as u64);
            if let Some(traffic) = self.traffic {
                traffic.sent.increment(n as u64);
            }
        }
    }
}

/// Tells of a connection that was refused at accept; of some, when there are many.
pub(super) fn tell_rejection(
    rejection: &Rejection,
    client: SocketAddr,
    listener: &ListenerContext,
    cx: &Context,
) {
    let Some(format) = cx.shared.access_log.format() else { return };
    let now = Timestamp::now();
    if !cx.tells_rejection(now.as_second().unsigned_abs()) {
        return;
    }
    let end = Termination::limited(rejection, Stage::Accept);
    let line = Line {
        time: format_time(Duration::ZERO),
        id: format!("{:016x}", cx.next_id()),
        listener: &listener.name,
        client,
        sni: None,
        alpn: Vec::new(),
        protocol: None,
        route: None,
        action: Action::Reject.as_str(),
        reason: end.reason,
        limit: rejection.limit().map(|name| &**name),
        backend: None,
        connect_ms: None,
        duration_ms: 0.0,
        bytes_in: 0,
        bytes_out: 0,
        bytes_spliced: 0,
        cause: end.cause.as_str(),
        stage: end.stage.as_str(),
    };
    cx.shared.access_log.write(line.render(format));
}

/// A line of the access log.
#[derive(Debug, Serialize)]
struct Line<'a> {
    /// When the connection was accepted, RFC 3339 in UTC.
    time: String,
    id: String,
    listener: &'a str,
    client: SocketAddr,
    sni: Option<&'a str>,
    alpn: Vec<String>,
    protocol: Option<&'static str>,
    route: Option<&'a str>,
    action: &'static str,
    reason: Option<&'static str>,
    limit: Option<&'a str>,
    backend: Option<&'a str>,
    connect_ms: Option<f64>,
    duration_ms: f64,
    bytes_in: u64,
    bytes_out: u64,
    bytes_spliced: u64,
    cause: &'static str,
    stage: &'static str,
}

impl Line<'_> {
    fn render(&self, format: LogFormat) -> String {
        // No value can fail to serialise: strings, numbers, options and a list of strings.
        let value = serde_json::to_value(self).unwrap_or_default();
        match format {
            LogFormat::Json => serde_json::to_string(self).unwrap_or_default(),
            LogFormat::Logfmt => logfmt(&value),
        }
    }
}

/// `key=value` pairs; values with spaces or quotes are quoted as in JSON, absent ones left out.
fn logfmt(value: &serde_json::Value) -> String {
    let mut line = String::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        let text = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::Array(items) if items.is_empty() => continue,
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Array(items) => {
                items.iter().filter_map(serde_json::Value::as_str).collect::<Vec<_>>().join(",")
            }
            other => other.to_string(),
        };
        let bare =
            !text.is_empty() && !text.contains([' ', '"', '=', '\\']) && !text.chars().any(char::is_control);
        let text = if bare { text } else { serde_json::Value::String(text).to_string() };
        let space = if line.is_empty() { "" } else { " " };
        // Writing to a string cannot fail.
        let _ = write!(line, "{space}{key}={text}");
    }
    line
}

/// The time `ago`, to the millisecond.
fn format_time(ago: Duration) -> String {
    let now = Timestamp::now();
    let time = now.checked_sub(ago).unwrap_or(now);
    format!("{:.3}", time.round(Unit::Millisecond).unwrap_or(time))
}

/// To a thousandth of a millisecond.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logfmt_quotes_what_would_be_ambiguous() {
        let value = serde_json::json!({
            "a": "plain", "b": "two words", "c": null, "d": ["h2", "http/1.1"], "e": 1.5, "f": "", "g": "x\ny"
        });
        assert_eq!(logfmt(&value), r#"a=plain b="two words" d=h2,http/1.1 e=1.5 f="" g="x\ny""#);
    }
}
