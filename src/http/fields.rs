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
mod hops;

pub use client::client_of;
pub use hops::{HopByHop, Message, forwardable, is_offered};

/// `X-Forwarded-For`: the client, and the proxies between it and us.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

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
    /// Whether `ip` is that of a proxy whose word is kept, by [`is_trusted`].
    pub trusted: bool,
    /// Whether the connection is in TLS.
    pub scheme: Scheme,
    /// Host and port that are asked for, from [`super::target::Target::authority`].
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
    if !keep {
        drop_forwarded(headers);
    }
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

/// Takes out all that proxies say of clients in `X-Forwarded-*`: programs believe `-Scheme` and `-Ssl` as they do `-Proto`,
/// and `-User` and `-Prefix` as well.
fn drop_forwarded(headers: &mut HeaderMap) {
    let said: Vec<_> =
        headers.keys().filter(|name| name.as_str().starts_with("x-forwarded-")).cloned().collect();
    for name in said {
        headers.remove(name);
    }
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

/// Whether `ip` is that of a proxy whose word is kept: in one of `trusted`. An IPv4 address in IPv6 form is that IPv4 address.
pub fn is_trusted(ip: IpAddr, trusted: &[IpNet]) -> bool {
    let ip = ip.to_canonical();
    trusted.iter().any(|net| net.contains(&ip))
}

#[cfg(test)]
mod tests;
