//! One request, from its head to the end of its answer.

use std::sync::Arc;

use http::header::{ACCEPT, ALLOW, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};

use super::answer::{self, Content};
use super::connection::Connection;
use super::failure::Failure;
use super::fields;
use super::local;
use super::policies;
use super::proxy;
use super::record::Exchange;
use super::reply::Reply;
use super::rules::{Asked, Found};
use super::site::Site;
use super::source::Source;
use super::target::{Scheme, Spoken, Target};
use super::template::Vars;
use crate::config::{HttpLimits, RequestAction, RuleConfig};
use crate::net::Timer;

/// A request of which the head was read.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) method: Method,
    pub(super) version: Version,
    /// What is asked for, as it is written.
    pub(super) uri: String,
    pub(super) headers: HeaderMap,
    /// Whether the length of its body is announced.
    pub(super) had_length: bool,
}

/// A request that is understood, and the rule that takes it.
pub(super) struct Taken<'a> {
    pub(super) site: &'a Arc<Site>,
    pub(super) rule: &'a RuleConfig,
    /// Its index.
    pub(super) index: usize,
    pub(super) target: &'a Target,
    pub(super) vars: Vars<'a>,
    /// Whether the word of the proxy before is kept.
    pub(super) trusted: bool,
}

/// Answers a request.
///
/// # Errors
/// When the answer broke off, or there is nobody to have one.
pub(super) async fn handle(
    (incoming, source): (&Incoming, &mut Source),
    spoken: Spoken<'_>,
    reply: &mut Reply,
    cx: &Connection,
    timer: &mut Timer<'_>,
) -> Result<(), Failure> {
    let site = (cx.site)();
    let target = Target::read(&incoming.method, &incoming.uri, &incoming.headers, spoken);
    let host = target.as_ref().map_or("", |target| &target.host);
    let asked = (&incoming.method, incoming.version);
    let agent = incoming.headers.get(USER_AGENT);
    let mut exchange = Exchange::new(cx, site.clone(), asked, (host, &incoming.uri), agent);
    let result = match (&site, &target) {
        (None, _) => Err(Failure::refused(StatusCode::NOT_FOUND, "no_route")),
        (_, Err(error)) => Err(Failure::refused(error.status(), error.reason())),
        (Some(site), Ok(target)) => {
            Box::pin(respond((incoming, source), target, site, reply, &mut exchange, cx, timer)).await
        }
    };
    let Err(failure) = result else { return Ok(()) };
    exchange.failed(failure);
    if source.is_broken() {
        reply.close();
    }
    match failure.status {
        Some(status) if exchange.status.is_none() => {
            let accept = incoming.headers.get(ACCEPT);
            let write = write_timeout(&site);
            let is_head = incoming.method == Method::HEAD;
            answer::error(reply, (status, is_head), accept, &mut exchange, write, timer).await
        }
        _ => Err(failure),
    }
}

fn write_timeout(site: &Option<Arc<Site>>) -> std::time::Duration {
    site.as_ref().map_or(HttpLimits::DEFAULT.write_timeout, |site| site.config.limits.write_timeout)
}

async fn respond(
    (incoming, source): (&Incoming, &mut Source),
    target: &Target,
    site: &Arc<Site>,
    reply: &mut Reply,
    exchange: &mut Exchange<'_>,
    cx: &Connection,
    timer: &mut Timer<'_>,
) -> Result<(), Failure> {
    check(incoming, source, (target, site), cx)?;
    let trusted = site.trusts(cx.ip());
    let client = fields::client_of(&incoming.headers, cx.ip(), &site.config.trusted_proxies);
    exchange.client = client;
    if let Some(authorization) = cx.challenges.http(&target.path) {
        let content = Content::text(StatusCode::OK, authorization.as_bytes());
        return content
            .send(reply, incoming.method == Method::HEAD, exchange, site.config.limits.write_timeout, timer)
            .await;
    }
    let (headers, method) = (&incoming.headers, &incoming.method);
    let asked = Asked {
        host: &target.host,
        path: target.match_path(),
        method,
        headers,
        query: target.query.as_deref(),
        client,
    };
    let none = Failure::refused(StatusCode::NOT_FOUND, "no_rule");
    let Found { rule: index, groups } = site.rules.find(&asked).ok_or(none)?;
    let rule = site.rule(index).ok_or(none)?;
    exchange.rule = Some(Arc::clone(&rule.name));
    let id = exchange.id.clone();
    let authority = target.authority();
    let vars = Vars {
        scheme: if cx.tls { Scheme::Https } else { Scheme::Http },
        host: &target.host,
        authority: &authority,
        method,
        path: &target.path,
        query: target.query.as_deref(),
        client,
        route: &cx.route,
        variant: "",
        id: &id,
        headers,
        groups: groups.as_ref(),
    };
    let taken = Taken { site, rule, index, target, vars, trusted };
    act((incoming, source), &taken, reply, exchange, cx, timer).await
}

/// Does with a request what its rule says.
async fn act(
    request: (&Incoming, &mut Source),
    taken: &Taken<'_>,
    reply: &mut Reply,
    exchange: &mut Exchange<'_>,
    cx: &Connection,
    timer: &mut Timer<'_>,
) -> Result<(), Failure> {
    let (is_head, write) = (*taken.vars.method == Method::HEAD, taken.site.config.limits.write_timeout);
    if let Some(content) = policies::before(taken) {
        if content.status == StatusCode::TOO_MANY_REQUESTS {
            exchange.failed(Failure::refused(content.status, "request_rate"));
        }
        return local::changed(content, taken)?.send(reply, is_head, exchange, write, timer).await;
    }
    let content = match &taken.rule.action {
        RequestAction::Proxy(proxy) => {
            return Box::pin(proxy::pass(request, taken, proxy, reply, exchange, cx, timer)).await;
        }
        RequestAction::Files(_) => {
            return Box::pin(local::file(taken, reply, exchange, cx, timer)).await;
        }
        RequestAction::Redirect(redirect) => local::redirect(redirect, taken)?,
        RequestAction::Answer(config) => local::fixed(config, taken)?,
    };
    content.send(reply, is_head, exchange, write, timer).await
}

/// Refuses what is for no backend.
fn check(
    incoming: &Incoming,
    source: &Source,
    (target, site): (&Target, &Site),
    cx: &Connection,
) -> Result<(), Failure> {
    let limits = &site.config.limits;
    if incoming.headers.len() > limits.max_headers {
        return Err(Failure::refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too_many_fields"));
    }
    if incoming.uri.len() > limits.max_uri {
        return Err(Failure::refused(StatusCode::URI_TOO_LONG, "uri_too_long"));
    }
    // By HTTP/1.1 they are taken off (RFC 9110 §5.5), by HTTP/2 there must be none (RFC 9113 §8.2.1).
    if incoming.headers.values().any(|value| value.as_bytes().trim_ascii() != value.as_bytes()) {
        return Err(Failure::MALFORMED);
    }
    let connection = if cx.tls { Scheme::Https } else { Scheme::Http };
    admit(&incoming.method, target, connection, &cx.takes)
        .map_err(|(status, reason)| Failure::refused(status, reason))?;
    if limits.max_body.is_some_and(|most| source.length().is_some_and(|body| body > most)) {
        return Err(Failure::TOO_LARGE);
    }
    Ok(())
}

/// Whether a request is one that is answered by a connection of `connection` that takes requests for such hosts.
///
/// # Errors
/// The status that it is refused with, and why in a word.
pub fn admit(
    method: &Method,
    target: &Target,
    connection: Scheme,
    takes: impl Fn(&str) -> bool,
) -> Result<(), (StatusCode, &'static str)> {
    if !fields::is_allowed(method) {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "method"));
    }
    if target.check_scheme(connection).is_err() || !takes(&target.host) {
        return Err((StatusCode::MISDIRECTED_REQUEST, "misdirected"));
    }
    Ok(())
}

/// What a client may ask for that asked by a method that is refused.
pub(super) fn allow(headers: &mut HeaderMap) {
    headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
}
