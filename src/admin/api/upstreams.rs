//! `/api/v1/upstreams/…`: backends that are added, removed, weighed and drained while the process runs.

use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::oneshot;

use super::{State, ok, problem, read};
use crate::config::{MAX_TIER, MAX_WEIGHT, parse_zone};
use crate::control;
use crate::net::{AddrError, UpstreamAddr};
use crate::upstream::{Change, OperatorError, Said};

/// What can be done to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Remove,
    Weigh,
    Drain,
    Undrain,
}

impl Verb {
    pub(super) fn of(word: &str) -> Option<Self> {
        Some(match word {
            "add" => Self::Add,
            "remove" => Self::Remove,
            "weight" => Self::Weigh,
            "drain" => Self::Drain,
            "undrain" => Self::Undrain,
            _ => return None,
        })
    }
}

/// What `POST /upstreams/add` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Add {
    upstream: String,
    backend: String,
    weight: Option<u32>,
    tier: Option<u32>,
    zone: Option<String>,
    max_connections: Option<u32>,
}

/// What `POST /upstreams/weight` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Weigh {
    upstream: String,
    backend: String,
    weight: u32,
}

/// What the others take.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    upstream: String,
    backend: String,
}

/// What is wrong with a value.
#[derive(Debug, thiserror::Error)]
enum BadValue {
    #[error("`backend`: {0}")]
    Backend(#[from] AddrError),
    #[error("`weight` is a number from 0 to {MAX_WEIGHT}")]
    Weight,
    #[error("`tier` is a number from 1 to {MAX_TIER}")]
    Tier,
    #[error("`zone` is a name of letters, digits, `-`, `_` and `.`")]
    Zone,
    #[error("`max_connections` is a number from 1 on; leave it out for what the upstream says")]
    MaxConnections,
}

/// Does to a backend what the body says.
pub(super) async fn operate(
    verb: Verb,
    request: Request<Incoming>,
    state: &State,
    by: &Arc<str>,
) -> Response<Full<Bytes>> {
    let asked = match verb {
        Verb::Add => read(request).await.map(Add::into_change),
        Verb::Weigh => read(request).await.map(Weigh::into_change),
        Verb::Remove => read(request).await.map(|which: Which| which.into_change(Change::Remove)),
        Verb::Drain => read(request).await.map(|which: Which| which.into_change(Change::Drain)),
        Verb::Undrain => read(request).await.map(|which: Which| which.into_change(Change::Undrain)),
    };
    match asked {
        Ok(Ok((upstream, change))) => ask(upstream, change, state, by).await,
        Ok(Err(error)) => problem(StatusCode::BAD_REQUEST, &error.to_string()),
        Err(refused) => refused,
    }
}

async fn ask(upstream: String, change: Change, state: &State, by: &Arc<str>) -> Response<Full<Bytes>> {
    let (reply, answered) = oneshot::channel();
    let (name, backend) = (upstream.clone(), change.backend().to_string());
    let request = control::Request::Operate { upstream, change, by: Arc::clone(by), reply };
    if state.requests.try_send(request).is_err() {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "busy, or about to end");
    }
    match answered.await {
        Ok(Ok(changed)) => ok(&json!({
            "upstream": name,
            "backend": backend,
            "connections": changed.connections,
            "warning": changed.warning.map(|warning| warning.to_string()),
        })),
        Ok(Err(error)) => problem(status(&error), &error.to_string()),
        Err(_) => problem(StatusCode::SERVICE_UNAVAILABLE, "about to end"),
    }
}

fn status(error: &OperatorError) -> StatusCode {
    match error {
        OperatorError::UnknownUpstream { .. } | OperatorError::UnknownBackend { .. } => StatusCode::NOT_FOUND,
        OperatorError::OneOfSeveral { .. } | OperatorError::Own { .. } => StatusCode::BAD_REQUEST,
        OperatorError::Exists(_) | OperatorError::Full => StatusCode::CONFLICT,
        OperatorError::Resolve(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

impl Add {
    fn into_change(self) -> Result<(String, Change), BadValue> {
        let backend: UpstreamAddr = self.backend.parse()?;
        let said = Said {
            weight: self.weight.map(checked_weight).transpose()?,
            tier: within(self.tier, 1..=MAX_TIER, BadValue::Tier)?,
            zone: match self.zone {
                Some(zone) => Some(parse_zone(&zone).ok_or(BadValue::Zone)?),
                None => None,
            },
            max_connections: within(self.max_connections, 1..=u32::MAX, BadValue::MaxConnections)?,
        };
        Ok((self.upstream, Change::Add(backend, said)))
    }
}

impl Weigh {
    fn into_change(self) -> Result<(String, Change), BadValue> {
        let weight = checked_weight(self.weight)?;
        Ok((self.upstream, Change::Weigh(self.backend.parse()?, weight)))
    }
}

impl Which {
    fn into_change(self, change: impl FnOnce(UpstreamAddr) -> Change) -> Result<(String, Change), BadValue> {
        Ok((self.upstream, change(self.backend.parse()?)))
    }
}

fn checked_weight(weight: u32) -> Result<u32, BadValue> {
    if weight <= MAX_WEIGHT { Ok(weight) } else { Err(BadValue::Weight) }
}

fn within(
    value: Option<u32>,
    range: std::ops::RangeInclusive<u32>,
    error: BadValue,
) -> Result<Option<u32>, BadValue> {
    match value {
        Some(value) if !range.contains(&value) => Err(error),
        value => Ok(value),
    }
}
