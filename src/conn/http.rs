//! Connections whose requests are answered here: what the HTTP layer is told of them, and what it tells.

use std::rc::Rc;
use std::sync::Arc;

use ::http::HeaderValue;
use base64::prelude::{BASE64_STANDARD as STANDARD, Engine};
use serde::Serialize;

use super::context::{Context, ListenerContext};
use super::passthrough::{Client, Counted};
use super::record::{ConnRecord, Requests};
use super::termination::{Cause, Stage, Termination};
use crate::config::LogFormat;
use crate::http::{self, Ended, Line};
use crate::peek::{ClientHello, Preface};
use crate::tls::End;

/// A connection of HTTP that is about to begin.
pub(super) struct Session {
    end: End,
    said: Vec<u8>,
    connection: http::Connection,
    /// What it counts for, until dropped.
    _counted: Counted,
}

/// A line of the access log.
#[derive(Serialize)]
struct Told<'a> {
    time: String,
    kind: &'static str,
    #[serde(flatten)]
    request: &'a Line<'a>,
}

impl Session {
    /// The connection of `client`, which began with `preface`, for requests of the route of this name.
    pub(super) fn new(
        client: Client<End>,
        preface: Preface,
        route: &Arc<str>,
        listener: &Arc<ListenerContext>,
        record: &mut ConnRecord,
        cx: &Rc<Context>,
    ) -> Self {
        let Client { stream: end, said, told, counted } = client;
        let (client, shared) = (record.client(), Arc::clone(&cx.shared));
        let requests = record.speaks_http();
        let hello = match preface {
            Preface::Tls(hello) => Some(*hello),
            _ => None,
        };
        let connection = http::Connection {
            thread: Rc::clone(&cx.http),
            id: record.number(),
            listener: Arc::clone(&listener.name),
            client,
            local: told.destination.or_else(|| end.socket().local_addr().ok()),
            tls: matches!(end, End::Tls(_)),
            server_name: record.server_name(),
            client_certificate: client_certificate(&end),
            announcement: {
                let destination = told.destination.or_else(|| end.socket().local_addr().ok());
                record.announcing(destination.unwrap_or(client), told.hops)
            },
            route: Arc::clone(route),
            site: {
                let (shared, route) = (Arc::clone(&shared), Arc::clone(route));
                Box::new(move || shared.snapshot.load().site(&route).cloned())
            },
            takes: takes(hello, route, listener, client.ip(), cx),
            tell: tell(&requests, cx),
            count: Rc::new(move |direction, n| requests.passed(direction, n)),
            challenges: Arc::clone(&shared.challenges),
            draining: shared.draining.clone(),
            requests: std::cell::Cell::new(0),
        };
        Self { end, said, connection, _counted: counted }
    }

    /// Answers requests until the end.
    pub(super) async fn run(self) -> Termination {
        let Self { end, said, connection, _counted } = self;
        let ended = http::serve(end, &said, connection).await;
        Termination::from(&ended)
    }
}

/// The certificate that a client has shown, as a header field has it (RFC 9440 §2.1).
fn client_certificate(end: &End) -> Option<HeaderValue> {
    let End::Tls(stream) = end else { return None };
    let certificate = stream.negotiated().certificates.first()?;
    HeaderValue::try_from(format!(":{}:", STANDARD.encode(certificate))).ok()
}

/// Whether requests for a host may come by this connection, see [`RouteTable::takes_host`].
///
/// [`RouteTable::takes_host`]: crate::route::RouteTable::takes_host
fn takes(
    hello: Option<ClientHello>,
    route: &Arc<str>,
    listener: &Arc<ListenerContext>,
    client: std::net::IpAddr,
    cx: &Rc<Context>,
) -> Box<dyn Fn(&str) -> bool> {
    let Some(hello) = hello else { return Box::new(|_| true) };
    let (shared, route) = (Arc::clone(&cx.shared), Arc::clone(route));
    let listener = Arc::clone(&listener.name);
    Box::new(move |host| shared.snapshot.load().table.takes_host(host, &hello, (client, &listener), &route))
}

/// Tells of requests in the access log.
fn tell(requests: &Requests, cx: &Rc<Context>) -> Box<dyn Fn(&Line<'_>)> {
    let (shared, requests) = (Arc::clone(&cx.shared), requests.clone());
    Box::new(move |line| {
        requests.done();
        let access_log = shared.access_log.load();
        let Some(format) = access_log.format() else { return };
        let told = Told { time: super::record::format_time(line.took), kind: "request", request: line };
        // No value can fail to serialise.
        access_log.write(match format {
            LogFormat::Json => serde_json::to_string(&told).unwrap_or_default(),
            LogFormat::Logfmt => super::record::logfmt(&serde_json::to_value(&told).unwrap_or_default()),
        });
    })
}

impl From<&Ended> for Termination {
    fn from(ended: &Ended) -> Self {
        let cause = match ended {
            Ended::Done => Cause::Done,
            Ended::Idle => Cause::ClientTimeout,
            Ended::Gone | Ended::Refused(_) => Cause::Client,
            Ended::Drained => Cause::Drained,
            Ended::Broken { by_backend: true, .. } => Cause::Upstream,
            Ended::Broken { by_backend: false, .. } => Cause::Client,
        };
        Self { cause, stage: Stage::Http, reason: ended.reason() }
    }
}
