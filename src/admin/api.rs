//! `/api/v1`: what the process does, and what it can be asked to do. Described in `openapi.json`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, ORIGIN, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::info;

use super::{Access, State, only, text};
use crate::config::{parse_duration, parse_network};
use crate::control::{self, Kept, Outcome};

mod upstreams;

/// The description of all that is answered here (OpenAPI 3.1).
const DESCRIPTION: &str = include_str!("api/openapi.json");
/// Connections told of when nobody says how many.
const CONNECTIONS: usize = 100;
/// Connections told of at most.
const MOST_CONNECTIONS: usize = 10_000;
/// Largest body read, in bytes.
const BODY: usize = 16 * 1024;
/// Longest reason of a ban, in bytes.
const REASON: usize = 256;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resource {
    Description,
    Config,
    Routes,
    Upstreams,
    Operate(upstreams::Verb),
    Connections,
    Connection(u64),
    Limits,
    Bans,
    Ban,
    Unban,
    Reload,
    Drain,
}

impl Resource {
    fn of(path: &str) -> Option<Self> {
        Some(match path.strip_prefix("/api/v1/")? {
            "openapi.json" => Self::Description,
            "config" => Self::Config,
            "routes" => Self::Routes,
            "upstreams" => Self::Upstreams,
            "connections" => Self::Connections,
            "limits" => Self::Limits,
            "bans" => Self::Bans,
            "ban" => Self::Ban,
            "unban" => Self::Unban,
            "reload" => Self::Reload,
            "drain" => Self::Drain,
            path => match path.strip_prefix("upstreams/") {
                Some(verb) => Self::Operate(upstreams::Verb::of(verb)?),
                None => Self::Connection(u64::from_str_radix(path.strip_prefix("connections/")?, 16).ok()?),
            },
        })
    }

    fn methods(self) -> &'static str {
        match self {
            Self::Description
            | Self::Config
            | Self::Routes
            | Self::Upstreams
            | Self::Connections
            | Self::Limits
            | Self::Bans => "GET, HEAD",
            Self::Connection(_) => "DELETE",
            Self::Ban | Self::Unban | Self::Reload | Self::Drain | Self::Operate(_) => "POST",
        }
    }

    fn takes(self, method: &Method) -> bool {
        self.methods().split(", ").any(|allowed| allowed == method.as_str())
    }
}

pub(super) async fn answer(
    request: Request<Incoming>,
    state: &State,
    access: &Access,
    by: &Arc<str>,
) -> Response<Full<Bytes>> {
    if let Some(refused) = refused(&request, access) {
        return refused;
    }
    let Some(resource) = Resource::of(request.uri().path()) else {
        return problem(StatusCode::NOT_FOUND, "there is no such thing; see /api/v1/openapi.json");
    };
    if !resource.takes(request.method()) {
        return only(resource.methods());
    }
    match resource {
        Resource::Description => {
            let mut response = text(StatusCode::OK, DESCRIPTION.to_owned());
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Resource::Config => ok(&state.serving.load().to_json()),
        Resource::Routes => ok(&json!({ "routes": state.shared.snapshot.load().table.to_json() })),
        Resource::Upstreams => ok(&json!({ "upstreams": state.shared.snapshot.load().pools.to_json() })),
        Resource::Operate(verb) => upstreams::operate(verb, request, state, by).await,
        Resource::Connections => connections(request.uri().query(), state).await,
        Resource::Connection(number) => match state.shared.workers.close(number).await {
            Some(connection) => ok(&json!({ "closed": connection })),
            None => problem(StatusCode::NOT_FOUND, "no open connection has this id"),
        },
        Resource::Limits => ok(&json!({ "limits": state.shared.guard.load().limits() })),
        Resource::Bans => ok(&json!({ "bans": state.shared.guard.load().bans(Instant::now()) })),
        Resource::Ban => with_body(request, |body| ban(body, state)).await,
        Resource::Unban => with_body(request, |body| unban(body, state)).await,
        Resource::Reload => reload(state).await,
        Resource::Drain => match state.requests.try_send(control::Request::Drain) {
            Ok(()) => json_response(StatusCode::ACCEPTED, &json!({ "draining": true })),
            Err(_) => problem(StatusCode::SERVICE_UNAVAILABLE, "busy, or about to end"),
        },
    }
}

async fn connections(query: Option<&str>, state: &State) -> Response<Full<Bytes>> {
    let most = match query {
        None => Some(CONNECTIONS),
        Some(query) => query.strip_prefix("limit=").and_then(|most| most.parse().ok()),
    };
    let Some(most) = most.filter(|most| (1..=MOST_CONNECTIONS).contains(most)) else {
        let known = format!("the only parameter is `limit`, from 1 to {MOST_CONNECTIONS}");
        return problem(StatusCode::BAD_REQUEST, &known);
    };
    let open: usize = state.shared.workers.live().sum();
    ok(&json!({ "open": open, "connections": state.shared.workers.connections(most).await }))
}

/// What `POST /ban` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ban {
    network: String,
    r#for: String,
    #[serde(default)]
    reason: String,
}

/// What `POST /unban` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unban {
    network: String,
}

fn ban(Ban { network, r#for, reason }: Ban, state: &State) -> Response<Full<Bytes>> {
    let (Some(network), Some(length)) = (parse_network(&network), parse_duration(&r#for)) else {
        let text = "`network` is an address or a network such as 192.0.2.0/24, `for` a duration such as 1h";
        return problem(StatusCode::BAD_REQUEST, text);
    };
    let reason = if reason.is_empty() { "by hand" } else { &reason };
    if reason.len() > REASON {
        return problem(StatusCode::BAD_REQUEST, &format!("`reason` has more than {REASON} bytes"));
    }
    match state.shared.guard.load().ban(network, length, reason, Instant::now()) {
        Ok(()) => {
            info!(%network, for_s = length.as_secs(), reason, "banned");
            ok(&json!({ "banned": network.to_string() }))
        }
        Err(error) => problem(StatusCode::CONFLICT, &error.to_string()),
    }
}

fn unban(Unban { network }: Unban, state: &State) -> Response<Full<Bytes>> {
    let Some(network) = parse_network(&network) else {
        let text = "`network` is an address or a network such as 192.0.2.0/24";
        return problem(StatusCode::BAD_REQUEST, text);
    };
    if !state.shared.guard.load().unban(network, Instant::now()) {
        return problem(StatusCode::NOT_FOUND, "exactly this network is not banned");
    }
    info!(%network, "no longer banned");
    ok(&json!({ "unbanned": network.to_string() }))
}

/// Reads the body and does with it what `act` says.
async fn with_body<T: DeserializeOwned>(
    request: Request<Incoming>,
    act: impl FnOnce(T) -> Response<Full<Bytes>>,
) -> Response<Full<Bytes>> {
    read(request).await.map_or_else(|refused| refused, act)
}

/// Reads the body, or answers why not.
async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Response<Full<Bytes>>> {
    let Ok(body) = Limited::new(request.into_body(), BODY).collect().await else {
        let text = format!("the body has more than {BODY} bytes");
        return Err(problem(StatusCode::PAYLOAD_TOO_LARGE, &text));
    };
    serde_json::from_slice(&body.to_bytes()).map_err(|error| {
        problem(StatusCode::BAD_REQUEST, &format!("the body is not what this takes: {error}"))
    })
}

async fn reload(state: &State) -> Response<Full<Bytes>> {
    let (reply, answered) = oneshot::channel();
    if state.requests.try_send(control::Request::Reload(reply)).is_err() {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "busy, or about to end");
    }
    match answered.await {
        Ok(outcome) => {
            let status = match &outcome {
                Outcome::Reloaded { .. } => StatusCode::OK,
                Outcome::Kept { why: Kept::BadConfig, .. } => StatusCode::UNPROCESSABLE_ENTITY,
                Outcome::Kept { .. } => StatusCode::SERVICE_UNAVAILABLE,
            };
            json_response(status, &outcome.to_json())
        }
        Err(_) => problem(StatusCode::SERVICE_UNAVAILABLE, "about to end"),
    }
}

/// The answer to who may not ask.
fn refused(request: &Request<Incoming>, access: &Access) -> Option<Response<Full<Bytes>>> {
    if is_foreign(request) {
        return Some(problem(StatusCode::FORBIDDEN, "not for pages of other origins"));
    }
    match access {
        Access::All => None,
        Access::Nobody => {
            let text =
                "over this address only with a token, and the configuration gives none (`admin.token`)";
            Some(problem(StatusCode::FORBIDDEN, text))
        }
        Access::Token(token) if bears(request, token) => None,
        Access::Token(_) => {
            let mut response = problem(StatusCode::UNAUTHORIZED, "a token is needed");
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            Some(response)
        }
    }
}

/// Whether the request has this token (RFC 6750 §2.1), compared in a time that tells nothing about it.
fn bears(request: &Request<Incoming>, token: &[u8]) -> bool {
    let given = request.headers().get(AUTHORIZATION).map_or(&[][..], HeaderValue::as_bytes);
    let (scheme, given) = given.split_at_checked(b"Bearer ".len()).unwrap_or((&[], &[]));
    scheme.eq_ignore_ascii_case(b"Bearer ") && verify_slices_are_equal(given, token).is_ok()
}

/// Whether a browser sends this for a page that is not ours: whoever has one open would be asking unawares
/// (Fetch Standard, `Origin` header; DNS rebinding shows in `Host`).
fn is_foreign(request: &Request<Incoming>) -> bool {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    // A token is nothing that a browser has; and its bearer may ask by any name.
    if request.headers().contains_key(AUTHORIZATION) {
        return request.headers().contains_key(ORIGIN);
    }
    let own = name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    request.headers().contains_key(ORIGIN) || !own
}

fn ok(value: &Value) -> Response<Full<Bytes>> {
    json_response(StatusCode::OK, value)
}

/// What is wrong, as the text that `portcullis` prints.
fn problem(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    json_response(status, &json!({ "ok": false, "text": text }))
}

fn json_response(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = text(status, format!("{value:#}\n"));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
