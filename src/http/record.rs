//! What is told of a request: its counters, and one line in the access log when it is over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode, Version};
use serde::Serialize;

use super::connection::Connection;
use super::failure::Failure;
use super::site::Site;
use crate::upstream::Endpoint;

/// The longest text of a client's that a line has, in bytes.
const MAX_TEXT: usize = 1024;

/// The story of a request. Told when it is dropped.
pub(super) struct Exchange<'a> {
    cx: &'a Connection,
    site: Option<Arc<Site>>,
    started: Instant,
    pub(super) id: String,
    method: Method,
    version: Version,
    host: Box<str>,
    uri: Box<str>,
    user_agent: Option<Box<str>>,
    pub(super) client: std::net::IpAddr,
    pub(super) rule: Option<Arc<str>>,
    pub(super) variant: Option<Arc<str>>,
    pub(super) backend: Option<Arc<Endpoint>>,
    pub(super) reused: bool,
    pub(super) attempts: u32,
    pub(super) status: Option<StatusCode>,
    pub(super) failure: Option<Failure>,
    pub(super) upgraded: bool,
    /// From the start until the head of the answer.
    pub(super) answered: Option<Duration>,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
}

/// A line of the access log, of a request.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// How long ago it began; the time of the line is made of it.
    #[serde(skip)]
    pub took: Duration,
    id: &'a str,
    listener: &'a str,
    client: SocketAddr,
    /// The client that a trusted proxy tells of.
    #[serde(skip_serializing_if = "Option::is_none")]
    forwarded_for: Option<std::net::IpAddr>,
    route: &'a str,
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
    http: &'static str,
    method: &'a str,
    host: &'a str,
    uri: &'a str,
    user_agent: Option<&'a str>,
    status: Option<u16>,
    reason: Option<&'static str>,
    backend: Option<&'a str>,
    reused: Option<bool>,
    attempts: u32,
    answer_ms: Option<f64>,
    duration_ms: f64,
    bytes_in: u64,
    bytes_out: u64,
    #[serde(skip_serializing_if = "is_false")]
    upgraded: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_false(value: &bool) -> bool {
    !value
}

impl<'a> Exchange<'a> {
    /// A request of which the head was read, for what it `asked`: its host and URI.
    pub(super) fn new(
        cx: &'a Connection,
        site: Option<Arc<Site>>,
        (method, version): (&Method, Version),
        (host, uri): (&str, &str),
        user_agent: Option<&http::HeaderValue>,
    ) -> Self {
        if let Some(site) = &site {
            site.metrics.active.increment(1.0);
        }
        Self {
            cx,
            site,
            started: Instant::now(),
            id: cx.next_id(),
            method: method.clone(),
            version,
            host: cut(host).into(),
            uri: cut(uri).into(),
            user_agent: user_agent.map(|value| cut(&String::from_utf8_lossy(value.as_bytes())).into()),
            client: cx.ip(),
            rule: None,
            variant: None,
            backend: None,
            reused: false,
            attempts: 0,
            status: None,
            failure: None,
            upgraded: false,
            answered: None,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    /// How long ago it began.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// What its body was allowed to be is known now.
    pub(super) fn failed(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }
}

fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or(text)
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        if let Some(site) = &self.site {
            site.metrics.active.decrement(1.0);
            site.metrics.done(self.status, took);
        }
        let forwarded_for = (self.client != self.cx.ip()).then_some(self.client);
        (self.cx.tell)(&Line {
            took,
            id: &self.id,
            listener: &self.cx.listener,
            client: self.cx.client,
            forwarded_for,
            route: &self.cx.route,
            rule: self.rule.as_deref(),
            variant: self.variant.as_deref(),
            http: match self.version {
                Version::HTTP_10 => "1.0",
                Version::HTTP_2 => "2",
                _ => "1.1",
            },
            method: self.method.as_str(),
            host: &self.host,
            uri: &self.uri,
            user_agent: self.user_agent.as_deref(),
            status: self.status.map(|status| status.as_u16()),
            reason: self.failure.map(|failure| failure.reason),
            backend: self.backend.as_ref().map(|endpoint| &*endpoint.name),
            reused: self.backend.is_some().then_some(self.reused),
            attempts: self.attempts,
            answer_ms: self.answered.map(milliseconds),
            duration_ms: milliseconds(took),
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            upgraded: self.upgraded,
        });
    }
}
