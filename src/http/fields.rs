//! What a proxy takes out of heads, and what it puts in.
//!
//! Fields for one connection go (RFC 9110 §7.6.1), and what is said of the client is ours, or that of proxies that are
//! trusted.

use std::fmt::Write;
use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use ipnet::IpNet;

use super::target::Scheme;

mod client;

pub use client::client_of;

/// `X-Forwarded-For`: the client, and the proxies between it and us.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// Fields that are for one connection, whether `Connection` names them or not.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// Fields that `Connection` cannot take out: without them a message means something else, or says less of its client.
/// RFC 9110 §7.6.1 has no sender name those that are for all recipients.
const LASTING: [&str; 44] = [
    "age",
    "allow",
    "alt-svc",
    "authentication-info",
    "authorization",
    "baggage",
    "cache-control",
    "cdn-loop",
    "clear-site-data",
    "cookie",
    "date",
    "etag",
    "expect",
    "expires",
    "forwarded",
    "from",
    "host",
    "last-modified",
    "location",
    "max-forwards",
    "origin",
    "pragma",
    "priority",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "range",
    "referer",
    "refresh",
    "retry-after",
    "server",
    "set-cookie",
    "strict-transport-security",
    "traceparent",
    "tracestate",
    "trailer",
    "true-client-ip",
    "user-agent",
    "vary",
    "via",
    "www-authenticate",
    "x-correlation-id",
    "x-real-ip",
    "x-request-id",
];

/// What such fields begin with.
const LASTING_BEGINNINGS: [&str; 9] = [
    "accept",
    "access-control-",
    "cf-",
    "content-",
    "cross-origin-",
    "if-",
    "sec-",
    "x-forwarded-",
    "x-frame-",
];

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// To a backend.
    Request,
    /// To a client.
    Response,
}

/// What was said for one connection, and is not passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HopByHop {
    /// The protocols that are offered or chosen, in lower case; none unless `Connection` says so too (RFC 9110 §7.8), and
    /// never `h2c`, which is not passed on (RFC 9113 §3.1).
    pub upgrade: Vec<Box<str>>,
    /// Whether trailers are welcome: `TE: trailers`, which is kept in requests.
    pub trailers: bool,
    /// Whether the connection is to be closed behind the message.
    pub close: bool,
    /// Whether it is to be kept, where that has to be said.
    pub keep_alive: bool,
    /// Fields with a `_` in their names, which were dropped.
    pub dropped: usize,
}

/// Why a head is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// `Connection` or `Upgrade` is no list of names.
    #[error("Connection or Upgrade is no list of names")]
    Connection,
    /// The request came through here before, more than once.
    #[error("the request goes in a circle")]
    Loop,
}

/// What is known of the client and the connection that a request came by.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// Who the connection is from.
    pub ip: IpAddr,
    /// Who the request is from, by [`client_of`].
    pub client: IpAddr,
    /// Whether `ip` is that of a proxy whose word is kept.
    pub trusted: bool,
    /// Whether the connection is in TLS.
    pub scheme: Scheme,
    /// Host and port that are asked for, as they are written.
    pub authority: &'a str,
    /// The port that the connection is to, unless `authority` has one.
    pub port: u16,
    /// The version that is spoken there.
    pub version: Version,
    /// What this process calls itself in `Via`, see [`check_loop`].
    pub pseudonym: &'a str,
}

impl FieldError {
    /// All that [`FieldError::reason`] says.
    pub const REASONS: [&'static str; 2] = ["connection_field", "loop"];

    /// What the client is answered; an answer of a backend that is so is a bad one (502) instead.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Connection => StatusCode::BAD_REQUEST,
            Self::Loop => StatusCode::LOOP_DETECTED,
        }
    }

    /// A word for logs and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Connection => "connection_field",
            Self::Loop => "loop",
        }
    }
}

/// Whether requests of this method are taken at all. `TRACE` and `TRACK` answer with the request, and what was put into it
/// on the way; `CONNECT` is for forward proxies. Others are refused with 405.
pub fn is_allowed(method: &Method) -> bool {
    let refused = ["TRACE", "TRACK", "CONNECT"];
    // Methods have a case, which not all backends know.
    !refused.iter().any(|refused| method.as_str().eq_ignore_ascii_case(refused))
}

/// Takes out what is for one connection: what every `Connection` field names, and what is always so. `TE: trailers` is kept
/// in requests, as nothing but that.
///
/// Names in `Connection` that a message cannot do without are passed over. Fields of requests with a `_` in their names are
/// dropped: `X_Real_IP` and `X-Real-IP` are the same to programs that have them as variables (RFC 3875 §4.1.18).
///
/// # Errors
/// When `Connection` or `Upgrade` is no list of names.
pub fn forwardable(headers: &mut HeaderMap, message: Message) -> Result<HopByHop, FieldError> {
    let options = Options::read(headers)?;
    let mut found = HopByHop { close: options.close, keep_alive: options.keep_alive, ..HopByHop::default() };
    if options.upgrade {
        found.upgrade = upgrades(headers)?;
    }
    found.trailers =
        message == Message::Request && headers.get_all(header::TE).iter().any(|te| has_trailers(te));
    for name in HOP_BY_HOP.iter().chain(&options.named) {
        headers.remove(name);
    }
    if found.trailers {
        headers.insert(header::TE, TRAILERS);
    }
    if message == Message::Request {
        found.dropped = drop_underscores(headers);
    }
    Ok(found)
}

/// What `Connection` says.
#[derive(Default)]
struct Options {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    named: Vec<HeaderName>,
}

impl Options {
    fn read(headers: &HeaderMap) -> Result<Self, FieldError> {
        let mut options = Self::default();
        for name in items(headers, header::CONNECTION) {
            let name = HeaderName::from_bytes(name?.as_bytes()).map_err(|_| FieldError::Connection)?;
            match name.as_str() {
                "close" => options.close = true,
                "keep-alive" => options.keep_alive = true,
                "upgrade" => options.upgrade = true,
                name if is_lasting(name) => {}
                _ => options.named.push(name),
            }
        }
        Ok(options)
    }
}

/// The items of a list that may be in several fields; empty ones are none (RFC 9110 §5.6.1).
fn items(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = Result<&str, FieldError>> {
    headers.get_all(name).iter().flat_map(|value| {
        let (text, error) = match value.to_str() {
            Ok(text) => (text, None),
            Err(_) => ("", Some(Err(FieldError::Connection))),
        };
        let items =
            text.split(',').map(|item| item.trim_matches([' ', '\t'])).filter(|item| !item.is_empty());
        error.into_iter().chain(items.map(Ok))
    })
}

fn upgrades(headers: &HeaderMap) -> Result<Vec<Box<str>>, FieldError> {
    let mut protocols = Vec::new();
    for protocol in items(headers, header::UPGRADE) {
        let protocol = protocol?;
        let (name, version) = protocol.split_once('/').unwrap_or((protocol, "1"));
        if [name, version].iter().any(|part| HeaderName::from_bytes(part.as_bytes()).is_err()) {
            return Err(FieldError::Connection);
        }
        if !name.eq_ignore_ascii_case("h2c") {
            protocols.push(protocol.to_ascii_lowercase().into());
        }
    }
    Ok(protocols)
}

fn has_trailers(te: &HeaderValue) -> bool {
    te.as_bytes()
        .split(|byte| *byte == b',')
        .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

fn is_lasting(name: &str) -> bool {
    LASTING.binary_search(&name).is_ok()
        || LASTING_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

fn drop_underscores(headers: &mut HeaderMap) -> usize {
    let names: Vec<_> = headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
    for name in &names {
        headers.remove(name);
    }
    names.len()
}

/// Says who a request is from, and that it came through here.
///
/// - What an untrusted peer says of its client is dropped. A trusted one's `X-Forwarded-For` and `Forwarded` (RFC 7239) are
///   added to, and its `X-Forwarded-Proto`, `-Host` and `-Port` kept where each is one that can be.
/// - `X-Real-IP` is the client by [`client_of`].
/// - `Via` is added to, whoever it is from: nobody may take it out (RFC 9110 §7.6.3), and circles are found by it.
pub fn announce(headers: &mut HeaderMap, peer: &Peer<'_>) {
    let mut element = String::new();
    let ip = peer.ip.to_canonical();
    write_forwarded(&mut element, ip, peer);
    let keep = peer.trusted;
    append(headers, &header::FORWARDED, keep, &element);
    append(headers, &X_FORWARDED_FOR, keep, &ip.to_string());
    let protocols = |value: &str| Scheme::parse(value).is_some();
    keep_or_set(
        headers,
        &X_FORWARDED_PROTO,
        keep && one(headers, &X_FORWARDED_PROTO, protocols),
        peer.scheme.as_str(),
    );
    let hosts = |value: &str| !value.is_empty() && value.bytes().all(is_host_byte);
    keep_or_set(headers, &X_FORWARDED_HOST, keep && one(headers, &X_FORWARDED_HOST, hosts), peer.authority);
    let ports = |value: &str| value.parse::<u16>().is_ok();
    let port = written_port(peer.authority).unwrap_or(peer.port).to_string();
    keep_or_set(headers, &X_FORWARDED_PORT, keep && one(headers, &X_FORWARDED_PORT, ports), &port);
    set(headers, &X_REAL_IP, &peer.client.to_canonical().to_string());
    append(headers, &header::VIA, true, &format!("{} {}", via_version(peer.version), peer.pseudonym));
}

/// Whether a request came through this process before, more than once. Once may be meant: from one route to another. The
/// pseudonym is `portcullis-` and some letters that are this process's own, so that several can be in a row.
///
/// # Errors
/// [`FieldError::Loop`] when it did.
pub fn check_loop(headers: &HeaderMap, pseudonym: &str) -> Result<(), FieldError> {
    let entries =
        headers.get_all(header::VIA).iter().flat_map(|via| via.as_bytes().split(|byte| *byte == b','));
    let ours = entries.filter(|entry| received_by(entry).eq_ignore_ascii_case(pseudonym.as_bytes()));
    if ours.count() > 1 { Err(FieldError::Loop) } else { Ok(()) }
}

/// Who an entry of `Via` is from: what stands behind the protocol.
fn received_by(entry: &[u8]) -> &[u8] {
    entry.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).nth(1).unwrap_or_default()
}

fn write_forwarded(element: &mut String, ip: IpAddr, peer: &Peer<'_>) {
    let token = peer.authority.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    let written = match ip {
        IpAddr::V4(ip) => write!(element, "for={ip}"),
        IpAddr::V6(ip) => write!(element, "for=\"[{ip}]\""),
    };
    let host = match (peer.authority, token) {
        ("", _) => Ok(()),
        (host, true) => write!(element, ";host={host}"),
        (host, false) => write!(element, ";host=\"{host}\""),
    };
    let proto = write!(element, ";proto={}", peer.scheme);
    debug_assert!(written.and(host).and(proto).is_ok(), "writing to a string cannot fail");
}

/// Whether there is one such field, and `valid`.
fn one(headers: &HeaderMap, name: &HeaderName, valid: impl Fn(&str) -> bool) -> bool {
    let mut values = headers.get_all(name).iter();
    matches!((values.next(), values.next()), (Some(value), None) if value.to_str().is_ok_and(valid))
}

fn keep_or_set(headers: &mut HeaderMap, name: &HeaderName, keep: bool, value: &str) {
    if !keep {
        set(headers, name, value);
    }
}

/// Sets the one field of this name; to nothing where `value` cannot be one, or is empty.
fn set(headers: &mut HeaderMap, name: &HeaderName, value: &str) {
    match HeaderValue::from_str(value) {
        Ok(value) if !value.is_empty() => headers.insert(name, value),
        _ => headers.remove(name),
    };
}

/// Makes one field of what is there, if that is to be kept, and `value`.
fn append(headers: &mut HeaderMap, name: &HeaderName, keep: bool, value: &str) {
    let mut list = String::new();
    let old = headers.get_all(name).iter().filter(|_| keep).filter_map(|old| old.to_str().ok());
    for item in old.filter(|item| !item.is_empty()).chain([value]) {
        if !list.is_empty() {
            list.push_str(", ");
        }
        list.push_str(item);
    }
    set(headers, name, &list);
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte)
}

fn written_port(authority: &str) -> Option<u16> {
    let (_, port) = authority.rsplit_once(':')?;
    port.parse().ok()
}

/// The version in `Via` (RFC 9110 §7.6.3).
fn via_version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2.0",
        Version::HTTP_3 => "3.0",
        _ => "1.1",
    }
}

/// Whether `ip` is in one of `networks`.
fn is_in(networks: &[IpNet], ip: IpAddr) -> bool {
    networks.iter().any(|net| net.contains(&ip))
}

#[cfg(test)]
mod tests;
