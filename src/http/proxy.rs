//! A request as its backend gets it, and the answer as its client does.

use std::future::poll_fn;
use std::task::Poll;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, SET_COOKIE, UPGRADE, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};

use super::connection::Connection;
use super::failure::Failure;
use super::fields::{self, Message, Peer};
use super::forward::{Outgoing, Passing};
use super::handle::{Incoming, Taken};
use super::limits::{BodyDeadline, Deadlines};
use super::policies;
use super::record::Exchange;
use super::reply::Reply;
use super::rewrite::{self, Back};
use super::site::Destination;
use super::source::{Source, Spooled};
use super::split;
use super::spool::Room;
use super::target::Scheme;
use super::template::{Changes, Vars, expand};
use crate::config::{HostHeader, HttpLimits, ProxyConfig};
use crate::net::Timer;

/// The field by which a backend is told the variant of a split.
const VARIANT: HeaderName = HeaderName::from_static("x-portcullis-variant");

/// The certificate of a client (RFC 9440 §2).
const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
const CLIENT_CERT_CHAIN: HeaderName = HeaderName::from_static("client-cert-chain");

/// Bytes of a request's body that are taken before a backend is asked: in memory and on the disk.
const REQUEST_MEMORY: usize = 256 * 1024;
const REQUEST_DISK: u64 = 1 << 30;

/// Passes a request on to a backend, and its answer back.
pub(super) async fn pass(
    (incoming, source): (&Incoming, &mut Source),
    taken: &Taken<'_>,
    proxy: &ProxyConfig,
    reply: &mut Reply,
    exchange: &mut Exchange<'_>,
    cx: &Connection,
    timer: &mut Timer<'_>,
) -> Result<(), Failure> {
    let variants = taken.site.targets(taken.index);
    let chosen = split::choose(variants, &proxy.sticky, &incoming.headers, taken.vars.client, cx.tls);
    let unknown = Failure::refused(StatusCode::SERVICE_UNAVAILABLE, "no_backend");
    let (destination, cookie) = chosen.ok_or(unknown)?;
    let split = variants.len() > 1;
    let vars = Vars { variant: if split { &destination.name } else { "" }, ..taken.vars };
    if split {
        exchange.variant = Some(std::sync::Arc::clone(&destination.name));
    }
    if proxy.buffer_requests && !source.is_done() {
        take(source, &taken.site.config.limits, exchange, cx, timer).await?;
    }
    let rewritten = rewrite::rewrite(&proxy.rewrite, &taken.target.path, &vars)
        .map_err(|error| Failure::refused(error.status(), error.reason()))?;
    let mut outgoing = outgoing(incoming, source.is_done(), taken, rewritten.path, cx)?;
    ask(&mut outgoing, proxy, destination, &vars)?;
    let changes = Changes::new(&taken.rule.request_headers, &vars).ok_or(Failure::UNFIT)?;
    changes.apply(&mut outgoing.headers);
    let changes = Changes::new(&taken.rule.response_headers, &vars).ok_or(Failure::UNFIT)?;
    let scheme = if destination.upstream.speaks_tls() { Scheme::Https } else { Scheme::Http };
    let client = rewrite::Site { scheme: vars.scheme, authority: vars.authority };
    let change = |status, (backend, asked): (&str, &str), headers: &mut HeaderMap| {
        answered(status, headers)?;
        let backend = rewrite::Site { scheme, authority: backend };
        let done = rewritten.done;
        Back { rewrite: &proxy.rewrite, done, client, backend, asked }.apply(headers);
        policies::after(taken, headers);
        changes.clone().apply(headers);
        if let Some(cookie) = &cookie {
            headers.append(SET_COOKIE, cookie.clone());
        }
        Ok(())
    };
    let limits = &taken.site.config.limits;
    let deadlines = Deadlines::new(limits, proxy.response_timeout, destination.idle.open, timer.now());
    let passing = Passing { site: taken.site, destination, outgoing, deadlines, change: &change };
    Box::pin(passing.run(source, reply, exchange, cx, timer)).await
}

/// Names the host that the backend is asked for, and the variant where there are several.
fn ask(
    outgoing: &mut Outgoing,
    proxy: &ProxyConfig,
    destination: &Destination,
    vars: &Vars<'_>,
) -> Result<(), Failure> {
    match &proxy.host {
        HostHeader::Keep => {}
        HostHeader::Backend => outgoing.host_of_backend = true,
        HostHeader::Set(host) => {
            let host = expand(host, vars).and_then(|host| HeaderValue::try_from(host).ok());
            outgoing.headers.insert(HOST, host.ok_or(Failure::UNFIT)?);
        }
    }
    if !vars.variant.is_empty() {
        let name = HeaderValue::try_from(vars.variant).map_err(|_| Failure::UNFIT)?;
        outgoing.headers.insert(VARIANT, name);
    }
    if destination.upstream.speaks_tls() {
        outgoing.scheme = "https";
    }
    Ok(())
}

/// Takes the body of a request before a backend is asked, as far as there is room.
async fn take(
    source: &mut Source,
    limits: &HttpLimits,
    exchange: &mut Exchange<'_>,
    cx: &Connection,
    timer: &mut Timer<'_>,
) -> Result<(), Failure> {
    let room = Room { memory: REQUEST_MEMORY, disk: Some((cx.thread.disk.clone(), REQUEST_DISK)) };
    let mut spooled = Box::new(Spooled::new(std::mem::replace(source, Source::Broken), room));
    let mut deadline = BodyDeadline::new(limits, timer.now());
    let taken = poll_fn(|task| {
        let before = spooled.taken();
        match spooled.poll_take(task, limits.max_body) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(Failure::client(error))),
            Poll::Pending => {
                if spooled.taken() > before {
                    deadline.came(spooled.taken(), timer.now());
                }
                timer.poll(task, deadline.until()).map(|()| Err(Failure::BODY_TIMEOUT))
            }
        }
    });
    taken.await?;
    exchange.bytes_in = spooled.taken();
    if limits.max_body.is_some_and(|most| spooled.taken() > most) {
        return Err(Failure::TOO_LARGE);
    }
    *source = Source::Spooled(spooled);
    Ok(())
}

/// The head of a request as a backend gets it.
fn outgoing(
    incoming: &Incoming,
    has_no_body: bool,
    taken: &Taken<'_>,
    path: Box<str>,
    cx: &Connection,
) -> Result<Outgoing, Failure> {
    let mut headers = incoming.headers.clone();
    fields::check_loop(&headers, &cx.thread.pseudonym)
        .map_err(|error| Failure::refused(error.status(), error.reason()))?;
    let hop = fields::forwardable(&mut headers, Message::Request)
        .map_err(|error| Failure::refused(error.status(), error.reason()))?;
    let authority = taken.target.authority();
    announce(&mut headers, incoming.version, &authority, taken, cx);
    let length = headers.remove(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    match HeaderValue::try_from(&*authority) {
        Ok(host) if !authority.is_empty() => drop(headers.insert(HOST, host)),
        _ => drop(headers.remove(HOST)),
    }
    let may_switch = incoming.version == Version::HTTP_11
        && incoming.method == Method::GET
        && has_no_body
        && !hop.upgrade.is_empty();
    if may_switch {
        let tokens = HeaderValue::try_from(hop.upgrade.join(", ")).map_err(|_| Failure::MALFORMED)?;
        headers.insert(UPGRADE, tokens);
        headers.append(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if hop.trailers {
        headers.append(CONNECTION, HeaderValue::from_static("te"));
    }
    identify(&mut headers, cx);
    let target = match &taken.target.query {
        Some(query) => format!("{path}?{query}"),
        None => path.into(),
    };
    Ok(Outgoing {
        method: incoming.method.clone(),
        scheme: "http",
        host: authority.into(),
        host_of_backend: false,
        target,
        headers,
        length,
        had_length: incoming.had_length,
        upgrade: may_switch,
    })
}

/// Tells a backend who asks, and by which way.
fn announce(headers: &mut HeaderMap, version: Version, authority: &str, taken: &Taken<'_>, cx: &Connection) {
    let scheme = taken.vars.scheme;
    let peer = Peer {
        ip: cx.ip(),
        client: taken.vars.client,
        trusted: taken.trusted,
        scheme,
        authority,
        port: cx.local.map_or(scheme.port(), |local| local.port()),
        version,
        pseudonym: &cx.thread.pseudonym,
    };
    fields::announce(headers, &peer);
}

/// Tells a backend whose certificate the client has shown (RFC 9440); nobody else may say so.
fn identify(headers: &mut HeaderMap, cx: &Connection) {
    headers.remove(CLIENT_CERT);
    headers.remove(CLIENT_CERT_CHAIN);
    if let Some(certificate) = &cx.client_certificate {
        headers.insert(CLIENT_CERT, certificate.clone());
    }
}

/// The head of an answer without what is for the connection to its backend, and what that tells of itself.
fn answered(status: StatusCode, headers: &mut HeaderMap) -> Result<(), Failure> {
    let upgrade = headers.get(UPGRADE).filter(|_| status == StatusCode::SWITCHING_PROTOCOLS).cloned();
    let malformed = |_| Failure::backend(super::failure::Fault::Malformed, false);
    fields::forwardable(headers, Message::Response).map_err(malformed)?;
    if let Some(upgrade) = upgrade {
        headers.insert(UPGRADE, upgrade);
    }
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        // RFC 9110 §8.6: who believes it would wait for a body, or take the next answer for one.
        headers.remove(CONTENT_LENGTH);
    }
    rewrite::hide(headers);
    headers.remove(VIA);
    Ok(())
}
