//! Clients of HTTP in clear that are sent to https.

use std::borrow::Cow;

use http::StatusCode;

use super::context::Context;
use super::peek::{Limits, PeekError, read_more};
use super::record::ConnRecord;
use super::refuse::Refusal;
use crate::net::{Direction, Meter, Socket, Timer};
use crate::peek::ServerName;
use crate::route::RouteTable;

/// What is read of a request at most, in bytes: those of browsers with their cookies fit.
const MAX_HEAD: usize = 8 * 1024;
/// Header fields of a request at most.
const MAX_FIELDS: usize = 100;

/// Why a request is not sent elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bad {
    /// It is none, or says not clearly which host it is for (400).
    Request,
    /// No route takes the host (421).
    Host,
}

const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 12\r\n\
    Connection: close\r\n\r\nbad request\n";
const MISDIRECTED: &[u8] = b"HTTP/1.1 421 Misdirected Request\r\nContent-Type: text/plain\r\n\
    Content-Length: 21\r\nConnection: close\r\n\r\nthis host is unknown\n";

/// Reads the request that begins with `bytes`, and says how it is answered.
pub(super) async fn answer(
    stream: &mut Socket,
    (bytes, limits): (&mut Vec<u8>, Limits),
    table: &RouteTable,
    record: &ConnRecord,
    cx: &Context,
    timer: &mut Timer<'_>,
) -> Result<Refusal, PeekError> {
    loop {
        if let Some(authorization) = challenged(bytes, |path| cx.shared.challenges.http(path)) {
            return Ok(Refusal::Answer(Cow::Owned(authorized(&authorization).into_bytes())));
        }
        match location(bytes, |name| table.serves(name)) {
            Ok(Some(location)) => {
                let head = format!(
                    "HTTP/1.1 308 Permanent Redirect\r\nLocation: {location}\r\nContent-Length: 0\r\n\
                     Connection: close\r\n\r\n"
                );
                return Ok(Refusal::Answer(Cow::Owned(head.into_bytes())));
            }
            Ok(None) if bytes.len() < MAX_HEAD => {}
            Ok(None) | Err(Bad::Request) => return Ok(Refusal::Answer(Cow::Borrowed(BAD_REQUEST))),
            Err(Bad::Host) => return Ok(Refusal::Answer(Cow::Borrowed(MISDIRECTED))),
        }
        let room = MAX_HEAD - bytes.len();
        let before = bytes.len();
        let read = timer.timeout_at(limits.hello_by, read_more(stream, bytes, &cx.scratch, room)).await;
        read.unwrap_or(Err(PeekError::Timeout))?;
        record.meter().read(Direction::Up, bytes.len() - before);
    }
}

/// What an authority is answered that asks, in the request that is `bytes` so far, whether the host is ours (RFC 8555 §8.3).
fn challenged<T>(bytes: &[u8], answer: impl Fn(&str) -> Option<T>) -> Option<T> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let whole = request.parse(bytes).is_ok_and(|status| status.is_complete());
    let asked = request.path.filter(|_| whole && request.method == Some("GET"));
    asked.and_then(answer)
}

fn authorized(authorization: &str) -> String {
    let length = authorization.len();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{authorization}"
    )
}

/// Where the request that is `bytes` so far is to be sent; `Ok(None)` when it is not whole.
fn location(bytes: &[u8], serves: impl Fn(&ServerName) -> bool) -> Result<Option<String>, Bad> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Bad::Request),
    }
    let target = request.path.ok_or(Bad::Request)?;
    let mut hosts = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
    let host = hosts.next().and_then(|field| std::str::from_utf8(field.value).ok());
    // RFC 9112 §3.2: a request with another number of them is refused, whatever its target says.
    let (Some(host), None) = (host, hosts.next()) else { return Err(Bad::Request) };
    // §3.2.2: what the target says goes.
    let (authority, path) = match target.strip_prefix("http://") {
        Some(absolute) => {
            let (authority, path) = absolute.split_at(absolute.find(['/', '?']).unwrap_or(absolute.len()));
            (authority, path)
        }
        None if target.starts_with('/') => (host.trim(), target),
        None => return Err(Bad::Request),
    };
    let name = host_name(authority).ok_or(Bad::Request)?;
    if !serves(&name) {
        return Err(Bad::Host);
    }
    let slash = if path.starts_with('/') { "" } else { "/" };
    Ok(Some(format!("https://{}{slash}{path}", name.as_str())))
}

/// Where the request of which `head` is the whole head is sent.
///
/// # Errors
/// The status that it is answered with when it is sent nowhere.
pub fn redirected(head: &[u8], serves: impl Fn(&ServerName) -> bool) -> Result<String, StatusCode> {
    match location(head, serves) {
        Ok(Some(location)) => Ok(location),
        Ok(None) | Err(Bad::Request) => Err(StatusCode::BAD_REQUEST),
        Err(Bad::Host) => Err(StatusCode::MISDIRECTED_REQUEST),
    }
}

/// The name of an authority, without its port. Addresses are no names.
fn host_name(authority: &str) -> Option<ServerName> {
    let name = match authority.split_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) => return None,
        None => authority,
    };
    ServerName::parse(name.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent_to(request: &str) -> Result<Option<String>, Bad> {
        let serves = |name: &ServerName| name.as_str() == "a.test";
        for len in 0..request.len() {
            let early = location(&request.as_bytes()[..len], serves);
            assert!(matches!(early, Ok(None) | Err(Bad::Request)), "{early:?} after {len} bytes");
        }
        location(request.as_bytes(), serves)
    }

    #[test]
    fn the_host_and_the_path_of_a_request_are_kept() {
        let table = [
            ("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", "https://a.test/"),
            ("GET /x?y=1 HTTP/1.1\r\nhOsT:  A.Test:80 \r\n\r\n", "https://a.test/x?y=1"),
            ("POST http://a.test/x HTTP/1.1\r\nHost: other.test\r\n\r\n", "https://a.test/x"),
            ("GET http://a.test?q HTTP/1.1\r\nHost: a.test\r\n\r\n", "https://a.test/?q"),
            ("GET // HTTP/1.0\r\nHost: a.test\r\n\r\n", "https://a.test//"),
        ];
        for (request, expected) in table {
            assert_eq!(sent_to(request), Ok(Some(expected.to_owned())), "{request}");
        }
    }

    #[test]
    fn authorities_are_answered_what_they_ask_for() {
        let answer = |path: &str| (path == "/.well-known/acme-challenge/abc").then_some(());
        let asked = |request: &str| challenged(request.as_bytes(), answer);
        let request = "GET /.well-known/acme-challenge/abc HTTP/1.1\r\nHost: a.test\r\n\r\n";
        for len in 0..request.len() {
            assert_eq!(asked(&request[..len]), None, "after {len} bytes");
        }
        assert_eq!(asked(request), Some(()));
        assert_eq!(asked("GET /.well-known/acme-challenge/other HTTP/1.1\r\nHost: a.test\r\n\r\n"), None);
        assert_eq!(asked("POST /.well-known/acme-challenge/abc HTTP/1.1\r\nHost: a.test\r\n\r\n"), None);
        assert!(authorized("abc.def").ends_with("Content-Length: 7\r\nConnection: close\r\n\r\nabc.def"));
    }

    #[test]
    fn what_is_not_clear_is_sent_nowhere() {
        for request in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.test\r\nHost: a.test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.test/x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: user@a.test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.test:x\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n",
            "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n",
            "GET https://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
            "GET /\x01 HTTP/1.1\r\nHost: a.test\r\n\r\n",
        ] {
            assert_eq!(sent_to(request), Err(Bad::Request), "{request}");
        }
        assert_eq!(sent_to("GET / HTTP/1.1\r\nHost: b.test\r\n\r\n"), Err(Bad::Host));
    }

    #[test]
    fn the_lengths_told_are_those_of_the_bodies() {
        for answer in [BAD_REQUEST, MISDIRECTED] {
            let text = String::from_utf8_lossy(answer);
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
        }
    }
}
