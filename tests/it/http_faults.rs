//! Requests that two servers would read differently, behind a good one and with another behind them: what one end takes for a
//! body must never be a request to the other.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use crate::http::proxy_to;
use crate::support::SOON;
use crate::support::client::{End, Reply, connect, read_to_end};
use crate::support::proxy::Proxy;
use crate::support::web::{Asking, Received, Web, ok};

/// Closes the connection, for rows that are fine.
const LAST: &str = "GET /last HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
/// A request that nobody may ever be asked.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n";

/// Fields that leave it open how long the body is, or could be read in two ways.
const HEADS: [&str; 78] = [
    // Two lengths, in both orders.
    "Content-Length: 4\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: 4",
    "Content-Length: 0\r\nTransfer-Encoding: chunked",
    "Content-Length: 4\r\nTransfer-Encoding: xchunked",
    "Content-Length: 4\r\nTransfer-Encoding: identity",
    "Content-Length: 4\r\nTransfer-Encoding:",
    "Content-Length: 4\r\nX: y\r\nTransfer-Encoding: chunked",
    // RFC 9112 §6.3 lets equal lengths be taken for one; no client sends them.
    "Content-Length: 4\r\nContent-Length: 4",
    "Content-Length: 4\r\nContent-Length: 0",
    "Content-Length: 0\r\ncontent-length: 4",
    "Content-Length: 4, 4",
    "Content-Length: 0, 4",
    "Content-Length: 4,",
    "Content-Length: ,4",
    // Lengths that are none.
    "Content-Length:",
    "Content-Length: ",
    "Content-Length: +4",
    "Content-Length: -4",
    "Content-Length: 4 4",
    "Content-Length: 4\t4",
    "Content-Length: 0x4",
    "Content-Length: 4h",
    "Content-Length: 4;",
    "Content-Length: 4.0",
    "Content-Length: 4e0",
    "Content-Length: 1_0",
    "Content-Length: \"4\"",
    "Content-Length: '4'",
    "Content-Length: \u{ff14}",
    "Content-Length: \u{b}4",
    "Content-Length: 4\u{c}",
    "Content-Length: 18446744073709551616",
    "Content-Length: 99999999999999999999999999",
    // Encodings that are not chunked alone. RFC 9112 §6.1 has 501 for what is not known; some of these are known to others,
    // and what becomes of the connection is the same.
    "Transfer-Encoding:",
    "Transfer-Encoding: ",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: gzip",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: chunkedx",
    "Transfer-Encoding: chunk",
    "Transfer-Encoding: \"chunked\"",
    "Transfer-Encoding: 'chunked'",
    "Transfer-Encoding: chunked;q=1",
    "Transfer-Encoding: chunked,",
    "Transfer-Encoding: ,chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: identity, chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: chunked chunked",
    "Transfer-Encoding: chu\tnked",
    "Transfer-Encoding: \u{b}chunked",
    "Transfer-Encoding: chunked\u{b}",
    "Transfer-Encoding: \u{c}chunked",
    "Transfer-Encoding: \0chunked",
    "Transfer-Encoding: chunked\0",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
    // Names that are none to some and lengths to others.
    "Content-Length : 4",
    "Content-Length\t: 4",
    "Content-Length\0: 4",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding\t: chunked",
    "Transfer-Encoding\u{b}: chunked",
    "Transfer-Encoding",
    "Transfer-Encoding= chunked",
    ": chunked",
    "\u{e4}: x",
    "X(: y",
    // Lines that go on, or end otherwise.
    " Content-Length: 4",
    "X: y\r\n Transfer-Encoding: chunked",
    "X: y\r\n\tTransfer-Encoding: chunked",
    "Transfer-Encoding:\r\n chunked",
    "X: y\nTransfer-Encoding: chunked",
    "X: y\rTransfer-Encoding: chunked",
    "X: y\0Transfer-Encoding: chunked",
    "X: y\n\nGET /smuggled HTTP/1.1\r\nHost: a.test",
];

/// Request lines that are none, or of no version that is known.
const LINES: [(&str, u16); 34] = [
    ("GET  /row HTTP/1.1", 400),
    ("GET /row  HTTP/1.1", 400),
    ("GET /row HTTP/1.1 ", 400),
    (" GET /row HTTP/1.1", 400),
    ("\tGET /row HTTP/1.1", 400),
    ("GET\t/row\tHTTP/1.1", 400),
    ("GET /row\tHTTP/1.1", 400),
    ("GET\u{b}/row HTTP/1.1", 400),
    ("GET /row\u{c}HTTP/1.1", 400),
    ("GET /row", 400),
    ("GET HTTP/1.1", 400),
    ("GET /a b HTTP/1.1", 400),
    ("GET /row HTTP/1.1 HTTP/1.1", 400),
    ("GET /row HTTP/ 1.1", 400),
    ("GE T /row HTTP/1.1", 400),
    ("G(T /row HTTP/1.1", 400),
    ("G\0T /row HTTP/1.1", 400),
    ("\0GET /row HTTP/1.1", 400),
    ("\u{feff}GET /row HTTP/1.1", 400),
    ("GET /\0 HTTP/1.1", 400),
    ("GET /\u{1} HTTP/1.1", 400),
    ("GET /\u{7f} HTTP/1.1", 400),
    ("GET /row HTTP/1.1\rX: y", 400),
    ("GET /row HTTP/1.1\nX: y", 400),
    ("\nGET /row HTTP/1.1", 400),
    ("\rGET /row HTTP/1.1", 400),
    ("GET /row HTTP/0.9", 505),
    ("GET /row HTTP/1.2", 505),
    ("GET /row HTTP/2.0", 505),
    ("GET /row HTTP/1.01", 505),
    ("GET /row HTTP/1", 505),
    ("GET /row http/1.1", 505),
    ("GET /row HTTP/1.1a", 505),
    ("GET /row XTTP/1.1", 505),
];

/// Bodies that are not in chunks.
const CHUNKS: [&str; 36] = [
    "5\nhello\r\n0\r\n\r\n",
    "5\r\nhello\n0\r\n\r\n",
    "5\rhello\r\n0\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\n",
    "\t5\r\nhello\r\n0\r\n\r\n",
    "+5\r\nhello\r\n0\r\n\r\n",
    "-5\r\nhello\r\n0\r\n\r\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "5_\r\nhello\r\n0\r\n\r\n",
    "5.\r\nhello\r\n0\r\n\r\n",
    "5,\r\nhello\r\n0\r\n\r\n",
    "5h\r\nhello\r\n0\r\n\r\n",
    "g\r\nhello\r\n0\r\n\r\n",
    "\r\n5\r\nhello\r\n0\r\n\r\n",
    ";x\r\n0\r\n\r\n",
    "\x00005\r\nhello\r\n0\r\n\r\n",
    "5\u{b}\r\nhello\r\n0\r\n\r\n",
    "5\r\r\nhello\r\n0\r\n\r\n",
    "10000000000000005\r\nhello\r\n0\r\n\r\n",
    "00000000000000005\r\nhello\r\n0\r\n\r\n",
    "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    // The data is longer, or shorter, than its size.
    "4\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello0\r\n\r\n",
    "6\r\nhello\r\n0\r\n\r\n",
    "5\r\nhelloX\r\n0\r\n\r\n",
    // Extensions that end, or go on, in some parsers.
    "5;a\nhello\r\n0\r\n\r\n",
    "5;a\rb\r\nhello\r\n0\r\n\r\n",
    "5;\0\r\nhello\r\n0\r\n\r\n",
    "5;a=\"\n\"\r\nhello\r\n0\r\n\r\n",
    // Trailers that are none.
    "5\r\nhello\r\n0\r\nX\r\n\r\n",
    "5\r\nhello\r\n0\r\nX : y\r\n\r\n",
    "5\r\nhello\r\n0\r\n X: y\r\n\r\n",
    "5\r\nhello\r\n0\r\nX: y\n\r\n",
    "5\r\nhello\r\n0\r\nX: a\0b\r\n\r\n",
    "5\r\nhello\r\n0\r\n\n",
];

/// Fields and bodies that are fine, and the body as it is passed on.
const FINE: [(&str, &str, &str); 15] = [
    ("", "", ""),
    ("Content-Length: 5", "hello", "hello"),
    ("Content-Length:5", "hello", "hello"),
    ("Content-Length: \t 5 \t", "hello", "hello"),
    ("CONTENT-LENGTH: 005", "hello", "hello"),
    ("Content-Length: 0", "", ""),
    // These are no lengths here, and are not passed on to somebody to whom they would be.
    ("Content_Length: 5", "", ""),
    ("Transfer_Encoding: chunked", "", ""),
    ("Content-Length: 50", FIFTY, FIFTY),
    ("transfer-encoding: CHUNKED", "5\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
    ("Transfer-Encoding: chunked", "005;a=\"b;c\"\r\nhello\r\n0;z\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
    ("Transfer-Encoding: chunked", "0\r\n\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: chunked", "2\r\nGE\r\n1\r\nT\r\n0\r\n\r\n", "2\r\nGE\r\n1\r\nT\r\n0\r\n\r\n"),
    ("Transfer-Encoding: chunked", "0\r\nX-Sum: 1\r\n\r\n", "0\r\nx-sum: 1\r\n\r\n"),
    (
        "Transfer-Encoding: chunked",
        "0\r\nContent-Length: 9\r\nTransfer-Encoding: x\r\nHost: b.test\r\nX-Forwarded-For: 1.1.1.1\r\nCookie: a=b\r\n\
         Authorization: x\r\nX_Sum: 1\r\n\r\n",
        "0\r\n\r\n",
    ),
];
/// A request of 50 bytes.
const FIFTY: &str = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\nX: 12345\r\n\r\n";

/// What a client sees that sends `bytes` behind a good request, until the end.
pub(crate) fn behind_a_good_one(proxy: &Proxy, bytes: &str) -> (Vec<u16>, Reply) {
    let mut client = Asking::of(proxy.addr());
    assert_eq!(client.ask("GET /good HTTP/1.1\r\nHost: a.test\r\n\r\n").status, 200);
    // Fails where the connection is closed within it.
    let _ = client.stream.write_all(bytes.as_bytes());
    let reply = read_to_end(&mut client.stream, SOON);
    (statuses(&reply.bytes), reply)
}

/// The statuses of the answers in `bytes`, of which no body looks like one.
pub(crate) fn statuses(bytes: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(bytes);
    let answers = text.split("HTTP/1.1 ").skip(1);
    answers.map(|answer| answer.get(..3).and_then(|code| code.parse().ok()).unwrap_or(0)).collect()
}

/// The first lines of what a backend received, but for the good ones.
fn lines(received: &[Received]) -> Vec<&str> {
    let lines = received.iter().filter_map(|request| request.head.lines().next());
    lines.filter(|line| !line.starts_with("GET /good ")).collect()
}

/// `bytes` are answered with this, and the connection ends behind that.
fn assert_refused(proxy: &Proxy, bytes: &str, status: u16) {
    let (statuses, reply) = behind_a_good_one(proxy, bytes);
    assert_eq!(statuses, [status], "{bytes:?}: {:?}", String::from_utf8_lossy(&reply.bytes));
    assert_eq!(reply.end, End::Eof, "{bytes:?}");
}

#[test]
fn heads_with_two_readings_are_refused() {
    let web = Web::saying("ok");
    let mut proxy = proxy_to(&web, "");
    for fields in HEADS {
        for body in ["4\r\nabcd\r\n0\r\n\r\n", "0\r\n\r\n", ""] {
            let bytes = format!("POST /row HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n\r\n{body}{SMUGGLED}");
            assert_refused(&proxy, &bytes, 400);
        }
        let bytes = format!("GET /row HTTP/1.1\r\n{fields}\r\nHost: a.test\r\n\r\n{SMUGGLED}");
        assert_refused(&proxy, &bytes, 400);
    }
    for (line, status) in LINES {
        assert_refused(&proxy, &format!("{line}\r\nHost: a.test\r\n\r\n{SMUGGLED}"), status);
    }
    assert_eq!(lines(&web.received()), [""; 0], "of all these");
    proxy.assert_sound();
}

#[test]
fn what_1_0_does_not_know_is_refused_there() {
    let web = Web::saying("ok");
    let proxy = proxy_to(&web, "");
    for more in ["", "Connection: keep-alive\r\n", "Content-Length: 4\r\n", "Host: a.test\r\n"] {
        let bytes = format!(
            "POST /row HTTP/1.0\r\n{more}Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n{SMUGGLED}"
        );
        assert_refused(&proxy, &bytes, 400);
    }
    assert_eq!(lines(&web.received()), [""; 0]);
    // Without a length there is no body (RFC 9112 §6.3), and none that lasts until the end; what follows is not read as long as
    // nobody asks for another request.
    let (statuses, _) = behind_a_good_one(&proxy, &format!("POST /row HTTP/1.0\r\n\r\n{SMUGGLED}"));
    assert_eq!((statuses, lines(&web.received())), (vec![200], vec!["POST /row HTTP/1.1"]));
}

#[test]
fn bodies_that_are_not_in_chunks_end_the_connection() {
    let web = Web::saying("ok");
    let proxy =
        proxy_to(&web, "\n[[route.rule]]\npath = '/fixed'\nanswer = { status = 200, body = 'fixed' }");
    let extensions = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(5000));
    let trailers = format!("0\r\n{}\r\n", "X: y\r\n".repeat(33));
    let trailer = format!("0\r\nX: {}\r\n\r\n", "y".repeat(9000));
    let more = [&*extensions, &*trailers, &*trailer];
    for body in CHUNKS.iter().chain(&more) {
        let head = "POST /row HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n";
        let (statuses, _) = behind_a_good_one(&proxy, &format!("{head}{body}{SMUGGLED}"));
        // It may have been answered before its body was come to.
        assert!(statuses == [400] || statuses.is_empty(), "{statuses:?}: {body:?}");
        // Nor where nobody wants the body.
        let head = head.replace("/row", "/fixed");
        let (statuses, _) = behind_a_good_one(&proxy, &format!("{head}{body}{SMUGGLED}"));
        assert_eq!(statuses, [200], "{body:?}");
    }
    for request in web.received() {
        let line = request.head.lines().next().unwrap();
        assert!(["POST /row HTTP/1.1", "GET /good HTTP/1.1"].contains(&line), "{line}");
        let body = String::from_utf8_lossy(&request.body);
        assert!(!body.ends_with("0\r\n\r\n"), "a body that was refused has an end: {body:?}");
    }
}

#[test]
fn what_is_clear_is_passed_on_and_so_is_what_follows() {
    let web = Web::new(|_| ok("ok"));
    let proxy = proxy_to(&web, "");
    for (fields, body, passed) in FINE {
        let before = web.received().len();
        let fields = if fields.is_empty() { String::new() } else { format!("{fields}\r\n") };
        let bytes = format!("POST /row HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n{body}{LAST}");
        let (statuses, reply) = behind_a_good_one(&proxy, &bytes);
        assert_eq!((statuses, reply.end), (vec![200, 200], End::Eof), "{fields:?} {body:?}");
        let received = web.received();
        let received = &received[before..];
        assert_eq!(lines(received), ["POST /row HTTP/1.1", "GET /last HTTP/1.1"], "{fields:?} {body:?}");
        let row = &received[1];
        assert_eq!(String::from_utf8_lossy(&row.body), passed, "{fields:?}");
        assert!(!row.head.contains('_'), "{}", row.head);
    }
    // Empty lines before a request are none (RFC 9112 §2.2), however they arrive.
    let mut client = connect(proxy.addr());
    client.write_all(b"GET /good HTTP/1.1\r\nHost: a.test\r\n\r\n\r\n\r\n").unwrap();
    client.write_all(LAST.as_bytes()).unwrap();
    assert_eq!(statuses(&read_to_end(&mut client, SOON).bytes), [200, 200]);
}

#[test]
fn an_empty_line_may_come_in_two_parts() {
    let web = Web::saying("ok");
    let proxy = proxy_to(&web, "");
    let mut client = Asking::of(proxy.addr());
    assert_eq!(client.ask("GET /good HTTP/1.1\r\nHost: a.test\r\n\r\n").status, 200);
    client.stream.write_all(b"\r").unwrap();
    // Nothing tells a client that its peer has read: the pause makes two reads of two segments.
    std::thread::sleep(Duration::from_millis(20));
    client.stream.write_all(format!("\n{LAST}").as_bytes()).unwrap();
    assert_eq!(client.answer(false).unwrap().status, 200);
}

/// Rules that answer without a look at the body, of which `most` may come.
fn unread(most: &str, folder: &Path) -> String {
    format!(
        "http = {{ max_body = '{most}' }}\n\
         [[route.rule]]\npath = '/fixed'\nanswer = {{ status = 200, body = 'fixed' }}\n\
         [[route.rule]]\npath = '/error'\nanswer = 403\n\
         [[route.rule]]\npath = '/away'\nredirect = 'https://b.test{{uri}}'\n\
         [[route.rule]]\npath = '/file'\nfiles = '{}'\n",
        folder.display()
    )
}

#[test]
fn bodies_that_nobody_reads_are_no_requests() {
    let web = Web::saying("ok");
    let folder = tempfile::tempdir().unwrap();
    let proxy = proxy_to(&web, &unread("300B", folder.path()));
    for (path, status, most) in [
        ("/fixed", 200, 300),
        ("/error", 403, 300),
        ("/away", 308, 300),
        ("/file", 405, 300),
        ("/row", 413, 40_000),
    ] {
        let least = if status == 413 { 301 } else { 1 };
        let body = SMUGGLED.repeat(most / SMUGGLED.len());
        assert!(body.len() >= least, "{path}");
        let before = web.received().len();
        let head = format!("POST {path} HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n", body.len());
        let (found, _) = behind_a_good_one(&proxy, &format!("{head}{body}{LAST}"));
        assert!(found == [status, 200] || found == [status], "{path}: {found:?}");
        let received = web.received();
        assert!(lines(&received[before..]).iter().all(|line| line.contains("/last")), "{path}");
        // In one chunk, of which the rest follows.
        let chunk = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        let head = head.replace(&format!("Content-Length: {}", body.len()), "Transfer-Encoding: chunked");
        let (found, _) = behind_a_good_one(&proxy, &format!("{head}{chunk}{LAST}"));
        assert!(found == [status, 200] || found == [status], "{path}: {found:?}");
    }
    let smuggled = web.received().into_iter().filter(|request| request.head.contains("/smuggled")).count();
    assert_eq!(smuggled, 0);
}

#[test]
fn a_long_body_that_nobody_reads_ends_the_connection() {
    let web = Web::saying("ok");
    let folder = tempfile::tempdir().unwrap();
    let proxy = proxy_to(&web, &unread("1MiB", folder.path()));
    let body = SMUGGLED.repeat(4000);
    for path in ["/fixed", "/error", "/away", "/file"] {
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n\r\n");
        let (found, _) = behind_a_good_one(&proxy, &format!("{head}{body}{LAST}"));
        assert_eq!(found.len(), 1, "{path}: {found:?}");
        // Who waits to be told to go on may send its body or another request: nobody knows.
        let head = head.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
        let (found, reply) = behind_a_good_one(&proxy, &format!("{head}{SMUGGLED}"));
        assert_eq!((found.len(), reply.end), (1, End::Eof), "{path}: {found:?}");
    }
    assert_eq!(lines(&web.received()), [""; 0]);
}
