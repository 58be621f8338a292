//! One request, from its head to the end of its answer.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use http::header::{ACCEPT, ALLOW, LOCATION, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use tracing::warn;

use super::answer::{self, Content};
use super::connection::Connection;
use super::failure::Failure;
use super::fields;
use super::files::{self, FileAnswer, FilesError};
use super::flow::{Flow, FlowError};
use super::proxy;
use super::record::Exchange;
use super::reply::{Length, Reply};
use super::rules::{Asked, Found};
use super::site::Site;
use super::source::Source;
use super::target::{Scheme, Spoken, Target};
use super::template::{Changes, Vars, expand};
use crate::config::{AnswerConfig, HttpLimits, RedirectConfig, RequestAction, RuleConfig};
use crate::net::Timer;

/// A request of which the head was read.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) method: Method,
    pub(super) version: Version,
    /// What is asked for, as it is written.
    pub(super) uri: String,
    pub(super) headers: HeaderMap,
    pub(super) source: Source,
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
    incoming: &mut Incoming,
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
            Box::pin(respond(incoming, target, site, reply, &mut exchange, cx, timer)).await
        }
    };
    let Err(failure) = result else { return Ok(()) };
    exchange.failed(failure);
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
    incoming: &mut Incoming,
    target: &Target,
    site: &Arc<Site>,
    reply: &mut Reply,
    exchange: &mut Exchange<'_>,
    cx: &Connection,
    timer: &mut Timer<'_>,
) -> Result<(), Failure> {
    check(incoming, target, site, cx)?;
    let trusted = site.trusts(cx.ip());
    let client = fields::client_of(&incoming.headers, cx.ip(), &site.config.trusted_proxies);
    exchange.client = client;
    if let Some(authorization) = cx.challenges.http(&target.path) {
        let content = Content::text(StatusCode::OK, authorization.as_bytes());
        return content.send(reply, incoming.method == Method::HEAD, exchange, write(site), timer).await;
    }
    let headers = incoming.headers.clone();
    let method = incoming.method.clone();
    let asked = Asked {
        host: &target.host,
        path: target.match_path(),
        method: &method,
        headers: &headers,
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
        method: &method,
        path: &target.path,
        query: target.query.as_deref(),
        client,
        route: &cx.route,
        variant: "",
        id: &id,
        headers: &headers,
        groups: groups.as_ref(),
    };
    let taken = Taken { site, rule, index, target, vars, trusted };
    match &rule.action {
        RequestAction::Proxy(proxy) => {
            Box::pin(proxy::pass(incoming, &taken, proxy, reply, exchange, cx, timer)).await
        }
        RequestAction::Redirect(redirect) => {
            let content = redirected(redirect, &taken)?;
            content.send(reply, method == Method::HEAD, exchange, write(site), timer).await
        }
        RequestAction::Answer(config) => {
            let content = fixed(config, &taken, headers.get(ACCEPT))?;
            content.send(reply, method == Method::HEAD, exchange, write(site), timer).await
        }
        RequestAction::Files(_) => {
            let files = site.files(index).ok_or(none)?;
            let asked = files::Asked {
                method: &method,
                path: &target.path,
                query: target.query.as_deref(),
                headers: &headers,
            };
            let answer = files.answer(&cx.thread.disk, &asked).await.map_err(|error| unread(&error))?;
            Box::pin(serve_file(answer, &taken, reply, exchange, timer)).await
        }
    }
}

/// Why no file answers.
fn unread(error: &FilesError) -> Failure {
    if let FilesError::Root(_) | FilesError::Read(_) | FilesError::Disk(_) = error {
        warn!(%error, source = std::error::Error::source(error).map(ToString::to_string), "no file");
    }
    Failure::refused(error.status(), "file")
}

/// Sends a file, or what a client is told of one.
async fn serve_file(
    answer: FileAnswer,
    taken: &Taken<'_>,
    reply: &mut Reply,
    exchange: &mut Exchange<'_>,
    timer: &mut Timer<'_>,
) -> Result<(), Failure> {
    let FileAnswer { status, headers, body } = answer;
    let mut content = changed(Content { headers, ..Content::new(status) }, taken)?;
    content.date();
    exchange.status = Some(status);
    let mut source = Source::from(body);
    let length = match source.length() {
        Some(length) if *taken.vars.method != Method::HEAD && status != StatusCode::NOT_MODIFIED => {
            content.headers.remove(http::header::CONTENT_LENGTH);
            Length::Known(length)
        }
        _ => Length::Nothing,
    };
    let mut sink = reply.begin(status, content.headers, length).map_err(|_| Failure::GONE)?;
    let mut flow = Flow::new(2 * 64 * 1024, timer.now());
    let write = write(taken.site);
    let sent = poll_fn(|cx| match flow.poll(cx, (&mut source, &mut sink), None, timer.now()) {
        Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
        Poll::Ready(Err(FlowError::Sink(_))) => Poll::Ready(Err(Failure::GONE)),
        Poll::Ready(Err(FlowError::Source(_) | FlowError::TooLarge)) => Poll::Ready(Err(Failure::FILE)),
        Poll::Pending => timer.poll(cx, flow.gave + write).map(|()| Err(Failure::WRITE_TIMEOUT)),
    })
    .await;
    exchange.bytes_out = flow.taken;
    if sent.is_err() {
        sink.break_off();
    }
    sent
}

fn write(site: &Site) -> std::time::Duration {
    site.config.limits.write_timeout
}

/// Refuses what is for no backend.
fn check(incoming: &Incoming, target: &Target, site: &Site, cx: &Connection) -> Result<(), Failure> {
    if !fields::is_allowed(&incoming.method) {
        return Err(Failure::refused(StatusCode::METHOD_NOT_ALLOWED, "method"));
    }
    let connection = if cx.tls { Scheme::Https } else { Scheme::Http };
    if target.check_scheme(connection).is_err() || !(cx.takes)(&target.host) {
        return Err(Failure::refused(StatusCode::MISDIRECTED_REQUEST, "misdirected"));
    }
    if site
        .config
        .limits
        .max_body
        .is_some_and(|most| incoming.source.length().is_some_and(|body| body > most))
    {
        return Err(Failure::TOO_LARGE);
    }
    Ok(())
}

/// Where a client is sent.
fn redirected(redirect: &RedirectConfig, taken: &Taken<'_>) -> Result<Content, Failure> {
    let location = expand(&redirect.to, &taken.vars).ok_or(Failure::UNFIT)?;
    let location = HeaderValue::try_from(location).map_err(|_| Failure::UNFIT)?;
    let mut content = Content::new(redirect.status);
    content.headers.insert(LOCATION, location);
    changed(content, taken)
}

/// An answer that is always the same.
fn fixed(config: &AnswerConfig, taken: &Taken<'_>, accept: Option<&HeaderValue>) -> Result<Content, Failure> {
    let content = match &config.body {
        Some(body) => {
            let body = expand(body, &taken.vars).ok_or(Failure::UNFIT)?;
            let mut content = Content::new(config.status);
            let content_type = HeaderValue::try_from(&*config.content_type).map_err(|_| Failure::UNFIT)?;
            content.headers.insert(http::header::CONTENT_TYPE, content_type);
            content.body = body.into();
            content
        }
        None if config.status.is_client_error() || config.status.is_server_error() => {
            Content::page(config.status, accept, taken.vars.id)
        }
        None => Content::new(config.status),
    };
    changed(content, taken)
}

/// With what the rule changes in the heads of answers.
fn changed(mut content: Content, taken: &Taken<'_>) -> Result<Content, Failure> {
    let changes = Changes::new(&taken.rule.response_headers, &taken.vars).ok_or(Failure::UNFIT)?;
    changes.apply(&mut content.headers);
    Ok(content)
}

/// What a client may ask for that asked by a method that is refused.
pub(super) fn allow(headers: &mut HeaderMap) {
    headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
}
