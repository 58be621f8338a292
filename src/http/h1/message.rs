//! Heads of messages of HTTP/1.1 (RFC 9112): read, and written.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};

use super::head::{HeadError, check_request_head};

/// The head of a request.
#[derive(Debug)]
pub(in super::super) struct RequestHead {
    pub(in super::super) method: Method,
    /// What is asked for, as it is written.
    pub(in super::super) target: Bytes,
    pub(in super::super) version: Version,
    pub(in super::super) headers: HeaderMap,
}

/// The head of an answer.
#[derive(Debug)]
pub(in super::super) struct ResponseHead {
    pub(in super::super) status: StatusCode,
    pub(in super::super) version: Version,
    pub(in super::super) headers: HeaderMap,
}

/// Why a head cannot be read.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum MessageError {
    /// Somebody could read it differently.
    #[error(transparent)]
    Ambiguous(#[from] HeadError),
    /// It is no head.
    #[error("malformed: {0}")]
    Malformed(#[from] httparse::Error),
    /// Something in it is no method, name, value or status.
    #[error("malformed: {0}")]
    Part(#[from] http::Error),
    /// It is not whole, although it has ended.
    #[error("malformed")]
    Partial,
    /// More fields than there may be.
    #[error("too many fields")]
    TooManyFields,
}

/// Room for a usual head, in bytes.
const HEAD: usize = 1024;

/// Where the head ends that `bytes` begin with, looked for from `from` on. Lines may end as they like here.
pub(in super::super) fn end_of_head(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(found) = bytes.get(at..)?.iter().position(|byte| *byte == b'\n') {
        let line = at + found + 1;
        match bytes.get(line..) {
            Some([b'\n', ..]) => return Some(line + 1),
            Some([b'\r', b'\n', ..]) => return Some(line + 2),
            _ => at = line,
        }
    }
    None
}

impl RequestHead {
    /// Reads a whole head, with `most` fields.
    pub(in super::super) fn parse(head: &Bytes, most: usize) -> Result<Self, MessageError> {
        check_request_head(head)?;
        let mut fields = vec![httparse::EMPTY_HEADER; lines(head).min(most)];
        let mut request = httparse::Request::new(&mut fields);
        check(request.parse(head))?;
        let method = request.method.ok_or(MessageError::Partial)?;
        let target = request.path.ok_or(MessageError::Partial)?;
        Ok(Self {
            method: Method::from_bytes(method.as_bytes()).map_err(http::Error::from)?,
            target: head.slice_ref(target.as_bytes()),
            version: version(request.version),
            headers: headers(head, request.headers)?,
        })
    }

    /// Whether the connection may be used for another one.
    pub(in super::super) fn keeps_alive(&self) -> bool {
        keeps_alive(self.version, &self.headers)
    }
}

impl ResponseHead {
    /// Reads a whole head, with `most` fields.
    pub(in super::super) fn parse(head: &Bytes, most: usize) -> Result<Self, MessageError> {
        let mut fields = vec![httparse::EMPTY_HEADER; lines(head).min(most)];
        let mut response = httparse::Response::new(&mut fields);
        check(response.parse(head))?;
        let status = response.code.ok_or(MessageError::Partial)?;
        Ok(Self {
            status: StatusCode::from_u16(status).map_err(http::Error::from)?,
            version: version(response.version),
            headers: headers(head, response.headers)?,
        })
    }

    /// Whether the connection may be used for another one.
    pub(in super::super) fn keeps_alive(&self) -> bool {
        keeps_alive(self.version, &self.headers)
    }
}

/// How many lines a head has: more than fields.
fn lines(head: &[u8]) -> usize {
    head.iter().filter(|byte| **byte == b'\n').count()
}

fn check(parsed: httparse::Result<usize>) -> Result<(), MessageError> {
    match parsed {
        Ok(httparse::Status::Complete(_)) => Ok(()),
        Ok(httparse::Status::Partial) => Err(MessageError::Partial),
        Err(httparse::Error::TooManyHeaders) => Err(MessageError::TooManyFields),
        Err(error) => Err(error.into()),
    }
}

fn version(minor: Option<u8>) -> Version {
    if minor == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 }
}

fn headers(head: &Bytes, fields: &[httparse::Header<'_>]) -> Result<HeaderMap, MessageError> {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(http::Error::from)?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value)).map_err(http::Error::from)?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// RFC 9112 §9.3.
fn keeps_alive(version: Version, headers: &HeaderMap) -> bool {
    let mut options = headers
        .get_all(http::header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii));
    if version == Version::HTTP_10 {
        return options.any(|option| option.eq_ignore_ascii_case(b"keep-alive"));
    }
    !options.any(|option| option.eq_ignore_ascii_case(b"close"))
}

/// Writes the head of a request: what is asked for is a path with its query.
pub(in super::super) fn write_request(
    out: &mut BytesMut,
    (method, target): (&Method, &str),
    headers: &HeaderMap,
    framing: Option<Announced>,
) {
    out.reserve(HEAD);
    put(out, &[method.as_str().as_bytes(), b" ", target.as_bytes(), b" HTTP/1.1\r\n"]);
    // First, where servers look for it.
    if let Some(host) = headers.get(http::header::HOST) {
        put(out, &[b"host: ", host.as_bytes(), b"\r\n"]);
    }
    fields(out, headers, |name| name != http::header::HOST);
    announce(out, framing);
    out.extend_from_slice(b"\r\n");
}

/// Writes the head of an answer. `connection` is what it says of the connection.
pub(in super::super) fn write_response(
    out: &mut BytesMut,
    status: StatusCode,
    headers: &HeaderMap,
    framing: Option<Announced>,
    connection: Option<&str>,
) {
    out.reserve(HEAD);
    let reason = status.canonical_reason().unwrap_or_default();
    put(out, &[b"HTTP/1.1 ", status.as_str().as_bytes(), b" ", reason.as_bytes(), b"\r\n"]);
    fields(out, headers, |_| true);
    announce(out, framing);
    if let Some(connection) = connection {
        put(out, &[b"connection: ", connection.as_bytes(), b"\r\n"]);
    }
    out.extend_from_slice(b"\r\n");
}

/// How the end of a body is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Announced {
    Length(u64),
    Chunked,
}

fn announce(out: &mut BytesMut, framing: Option<Announced>) {
    match framing {
        None => {}
        Some(Announced::Length(length)) => {
            put(out, &[b"content-length: ", length.to_string().as_bytes(), b"\r\n"]);
        }
        Some(Announced::Chunked) => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
}

fn fields(out: &mut BytesMut, headers: &HeaderMap, wanted: impl Fn(&HeaderName) -> bool) {
    for (name, value) in headers.iter().filter(|(name, _)| wanted(name)) {
        put(out, &[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
    }
}

fn put(out: &mut BytesMut, parts: &[&[u8]]) {
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_with_the_first_empty_line() {
        assert_eq!(end_of_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest", 0), Some(27));
        assert_eq!(end_of_head(b"GET / HTTP/1.1\nHost: a\n\nrest", 0), Some(24));
        assert_eq!(end_of_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r", 0), None);
        assert_eq!(end_of_head(b"", 0), None);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut headers = HeaderMap::new();
        headers.append("x-a", HeaderValue::from_static("1"));
        headers.append("host", HeaderValue::from_static("a.test"));
        headers.append("x-a", HeaderValue::from_static("2"));
        let mut out = BytesMut::new();
        write_request(&mut out, (&Method::POST, "/x?y"), &headers, Some(Announced::Length(3)));
        let text = String::from_utf8(out.to_vec()).unwrap();
        assert_eq!(
            text,
            "POST /x?y HTTP/1.1\r\nhost: a.test\r\nx-a: 1\r\nx-a: 2\r\ncontent-length: 3\r\n\r\n"
        );
        let head = RequestHead::parse(&out.freeze(), 10).unwrap();
        assert_eq!((&head.method, &*head.target), (&Method::POST, &b"/x?y"[..]));
        assert_eq!(head.headers.get_all("x-a").iter().count(), 2);
        assert!(head.keeps_alive());
    }

    #[test]
    fn more_fields_than_there_may_be_are_refused() {
        let head = Bytes::from_static(b"GET / HTTP/1.1\r\na: 1\r\nb: 2\r\n\r\n");
        assert!(RequestHead::parse(&head, 2).is_ok());
        assert!(matches!(RequestHead::parse(&head, 1), Err(MessageError::TooManyFields)));
    }
}
