//! Who a request is from, by what proxies say.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::header::{FORWARDED, HeaderMap};
use ipnet::IpNet;

use super::{X_FORWARDED_FOR, is_trusted};

/// The address of the client, as far as it is known.
///
/// Unless the peer is one of `trusted`, it is the client. Else what it says of who it had the request from is true, and so on:
/// `X-Forwarded-For` is read from its end to the first that is not trusted, or says nothing that is an address.
/// `Forwarded` is read in the same way where there is no `X-Forwarded-For`; a trusted proxy sets one of them, and must not
/// pass on the other.
pub fn client_of(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer.to_canonical();
    if !is_trusted(client, trusted) {
        return client;
    }
    let mut hops = Vec::new();
    if headers.contains_key(X_FORWARDED_FOR) {
        for value in headers.get_all(X_FORWARDED_FOR) {
            hops.extend(value.as_bytes().split(|byte| *byte == b',').map(address));
        }
    } else {
        for value in headers.get_all(FORWARDED) {
            hops.extend(split_unquoted(value.as_bytes(), b',').into_iter().map(forwarded_for));
        }
    }
    for hop in hops.into_iter().rev() {
        let Some(ip) = hop else { break };
        client = ip;
        if !is_trusted(client, trusted) {
            break;
        }
    }
    client
}

/// The address of a hop, which may have a port behind it.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim_matches([' ', '\t']);
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let ip = text.parse().ok().or_else(with_port).or_else(in_brackets)?;
    Some(ip.to_canonical())
}

/// The address in an element of `Forwarded` (RFC 7239 §4); one with two is none.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut nodes = split_unquoted(element, b';').into_iter().filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let (name, value) = pair.split_at_checked(at)?;
        name.trim_ascii()
            .eq_ignore_ascii_case(b"for")
            .then(|| value.get(1..).unwrap_or_default().trim_ascii())
    });
    let (Some(node), None) = (nodes.next(), nodes.next()) else { return None };
    match node.strip_prefix(b"\"") {
        Some(quoted) => address(quoted.strip_suffix(b"\"")?),
        None => address(node),
    }
}

/// What is between the separators that are not in quotes.
fn split_unquoted(text: &[u8], separator: u8) -> Vec<&[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(|byte| {
        let ends = !quoted && *byte == separator;
        quoted ^= !escaped && *byte == b'"';
        escaped = quoted && !escaped && *byte == b'\\';
        ends
    })
    .collect()
}
