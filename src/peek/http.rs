//! HTTP in clear: the request line of HTTP/1, and the preface of HTTP/2.

use super::detect::{Step, begins_with};

/// Request methods that begin an HTTP/1 request: RFC 9110 §9, RFC 5789, and the WebDAV family. A closed list, because
/// other line protocols begin with capital letters too.
const METHODS: [&[u8]; 17] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"CONNECT ",
    b"OPTIONS ",
    b"TRACE ",
    b"PATCH ",
    b"PROPFIND ",
    b"PROPPATCH ",
    b"MKCOL ",
    b"COPY ",
    b"MOVE ",
    b"LOCK ",
    b"UNLOCK ",
    b"REPORT ",
];

/// RFC 9113 §3.4. All of it is asked for: it was chosen so that no server of HTTP/1 goes on behind it, clients send it
/// whole, and a request of HTTP/1 with the method `PRI` is none of either.
const PREFACE: [&[u8]; 1] = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"];

/// HTTP/1.
pub(super) fn step(bytes: &[u8]) -> Step {
    begins_with(bytes, &METHODS)
}

/// HTTP/2 by prior knowledge.
pub(super) fn h2c(bytes: &[u8]) -> Step {
    begins_with(bytes, &PREFACE)
}
