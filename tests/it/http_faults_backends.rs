//! Backends that answer wrongly: what they say is for the request that they were asked, or for nobody.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use crate::http::proxy_to;
use crate::http_faults::statuses;
use crate::support::SOON;
use crate::support::backend::Backend;
use crate::support::client::{Reply, connect, read_to_end, reset};
use crate::support::proxy::Proxy;
use crate::support::web::{Asking, ok};

/// What a backend does behind its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// It waits for another request.
    Stays,
    /// It ends its stream.
    Ends,
    /// It resets the connection.
    Resets,
}

/// What becomes of it for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// A bad gateway.
    Bad,
    /// An answer that breaks off.
    Broken,
    /// A whole answer of this status and body.
    Whole(u16, &'static str),
}

use Seen::{Bad, Broken, Whole};
use Then::{Ends, Resets, Stays};

/// Answers that are none, or more than one.
const ROWS: [(&str, Then, Seen); 62] = [
    // More than was asked for.
    (
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\noneHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecond",
        Stays,
        Whole(200, "one"),
    ),
    ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\noneX", Stays, Whole(200, "one")),
    ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none\r\n", Stays, Whole(200, "one")),
    ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nsecond", Stays, Whole(200, "")),
    (
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\nsecond",
        Stays,
        Whole(200, "one"),
    ),
    ("HTTP/1.1 204 No Content\r\n\r\nsecond", Stays, Whole(204, "")),
    ("HTTP/1.1 204 No Content\r\ncontent-length: 6\r\n\r\nsecond", Stays, Whole(204, "")),
    (
        "HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n6\r\nsecond\r\n0\r\n\r\n",
        Stays,
        Whole(204, ""),
    ),
    ("HTTP/1.1 304 Not Modified\r\ncontent-length: 6\r\n\r\nsecond", Stays, Whole(304, "")),
    (
        "HTTP/1.1 103 Early Hints\r\ncontent-length: 6\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none",
        Ends,
        Whole(200, "one"),
    ),
    // Less.
    ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", Ends, Broken),
    ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", Resets, Broken),
    ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", Ends, Broken),
    ("HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551615\r\n\r\nshort", Ends, Broken),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", Ends, Broken),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nshort", Ends, Broken),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n", Ends, Broken),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n0\r\n", Ends, Broken),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n0\r\nX: y", Resets, Broken),
    ("HTTP/1.1 200 OK\r\n\r\nshort", Resets, Broken),
    // Chunks that are none.
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshortX", Stays, Broken),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n", Stays, Broken),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\nshort\n0\n\n", Stays, Broken),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-1\r\nshort\r\n0\r\n\r\n", Stays, Broken),
    (
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nshort\r\n0\r\n\r\n",
        Stays,
        Broken,
    ),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n0\r\nX : y\r\n\r\n", Stays, Broken),
    // Until the end, which is then that of the body.
    ("HTTP/1.1 200 OK\r\n\r\nwhole", Ends, Whole(200, "whole")),
    ("HTTP/1.0 200 OK\r\n\r\nwhole", Ends, Whole(200, "whole")),
    ("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n\r\nwhole", Ends, Whole(200, "whole")),
    ("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nwhole", Stays, Whole(200, "whole")),
    ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nwhole", Stays, Whole(200, "whole")),
    // Two lengths, or one that is none.
    (
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n",
        Stays,
        Bad,
    ),
    ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\none", Stays, Bad),
    ("HTTP/1.1 200 OK\r\ncontent-length: 3, 4\r\n\r\none", Stays, Bad),
    ("HTTP/1.1 200 OK\r\ncontent-length: -3\r\n\r\none", Stays, Bad),
    ("HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\none", Stays, Bad),
    ("HTTP/1.1 200 OK\r\ncontent-length: 0x3\r\n\r\none", Stays, Bad),
    ("HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\none", Stays, Bad),
    ("HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551616\r\n\r\none", Stays, Bad),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n3\r\none\r\n0\r\n\r\n", Stays, Bad),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n\r\n3\r\none\r\n0\r\n\r\n", Stays, Bad),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\none", Ends, Bad),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked\r\n\r\none", Ends, Bad),
    ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n", Stays, Bad),
    // Heads that are none.
    ("220 mail.test ESMTP\r\n\r\n", Stays, Bad),
    ("SSH-2.0-x\r\n\r\n", Stays, Bad),
    ("HTTP/1.1 20 OK\r\n\r\n", Stays, Bad),
    ("HTTP/1.1 2000 OK\r\n\r\n", Stays, Bad),
    ("HTTP/1.1 abc OK\r\n\r\n", Stays, Bad),
    ("HTTP/1.1 099 OK\r\ncontent-length: 0\r\n\r\n", Stays, Bad),
    ("HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n", Stays, Bad),
    ("HTTP/3 200 OK\r\ncontent-length: 0\r\n\r\n", Stays, Bad),
    ("HTTP/1.1 200 OK\r\ncontent-length : 3\r\n\r\none", Stays, Bad),
    ("HTTP/1.1 200 OK\r\nX: a\r\n folded\r\ncontent-length: 3\r\n\r\none", Stays, Bad),
    ("HTTP/1.1 200 OK\r\nX: a\0b\r\ncontent-length: 3\r\n\r\none", Stays, Bad),
    ("HTTP/1.1 200 OK\r\nX: a\rb\r\ncontent-length: 3\r\n\r\none", Stays, Bad),
    ("HTTP/1.1 200 OK\r\nX y\r\ncontent-length: 3\r\n\r\none", Stays, Bad),
    ("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", Stays, Bad),
    ("HTTP/1.1 200 OK\r\ncontent-le", Ends, Bad),
    ("HTTP/1.1 200 OK\r\ncontent-le", Resets, Bad),
    ("", Ends, Bad),
    ("", Resets, Bad),
];

/// A backend that answers `/N` with the row of this number and `/good` well; gives the paths that were asked for on connections
/// that nothing should have been asked on any more.
fn evil(rows: Vec<(Vec<u8>, Then)>) -> (Backend, Arc<Mutex<Vec<String>>>) {
    let reused = Arc::new(Mutex::new(Vec::new()));
    let misled = Arc::clone(&reused);
    let backend = Backend::new(move |stream| {
        let mut asking = Asking::over(stream);
        let mut spoilt = false;
        while let Some(head) = asking.request() {
            let path = head.split(' ').nth(1).unwrap().trim_start_matches('/').to_owned();
            if spoilt {
                misled.lock().unwrap().push(path.clone());
            }
            let Some((bytes, then)) = path.parse().ok().and_then(|row: usize| rows.get(row)) else {
                asking.stream.write_all(&ok("good")).unwrap();
                continue;
            };
            spoilt = true;
            // It may be cut off within a long one.
            let _ = asking.stream.write_all(bytes);
            match then {
                Stays => {}
                Ends => _ = asking.stream.shutdown(Shutdown::Write),
                Resets => return reset(asking.stream),
            }
        }
    });
    (backend, reused)
}

/// What a client sees that asks for `path` and no more.
fn seen(proxy: &Proxy, path: &str) -> Reply {
    let mut client = connect(proxy.addr());
    client
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").as_bytes())
        .unwrap();
    read_to_end(&mut client, SOON)
}

/// The answer that `bytes` are, without those on the way to it; `None` where it is not whole.
fn whole(bytes: &[u8]) -> Option<(u16, String)> {
    let mut text = std::str::from_utf8(bytes).unwrap();
    loop {
        let (head, rest) = text.split_once("\r\n\r\n")?;
        let head = head.to_ascii_lowercase();
        let status = statuses(head.to_ascii_uppercase().as_bytes())[0];
        if (100..200).contains(&status) {
            assert!(!head.contains("content-length"), "RFC 9110 §8.6: {head}");
            text = rest;
            continue;
        }
        let length = head.split("content-length: ").nth(1).map(|rest| rest.lines().next().unwrap());
        assert!(status != 204 || length.is_none(), "RFC 9110 §8.6: {head}");
        if [204, 304].contains(&status) {
            return Some((status, rest.to_owned()));
        }
        if let Some(length) = length {
            return (rest.len() as u64 == length.parse::<u64>().unwrap()).then(|| (status, rest.to_owned()));
        }
        assert!(
            head.contains("transfer-encoding: chunked"),
            "an answer to 1.1 that ends with its connection: {head}"
        );
        let chunks = rest.strip_suffix("0\r\n\r\n")?;
        let data: Vec<_> = chunks.split("\r\n").skip(1).step_by(2).collect();
        return Some((status, data.concat()));
    }
}

fn assert_seen(proxy: &Proxy, row: usize, expected: Seen, what: &str) {
    let reply = seen(proxy, &format!("/{row}"));
    let text = String::from_utf8_lossy(&reply.bytes);
    match (expected, whole(&reply.bytes)) {
        (Bad, Some((502, page))) => {
            assert!(!page.contains("127.0.0.1") && !text.contains("one"), "{what}: {text}");
        }
        (Broken, None) => assert!(!text.contains("second"), "{what}: {text}"),
        (Whole(status, body), Some((found, text))) => assert_eq!((found, &*text), (status, body), "{what}"),
        (expected, found) => panic!("{what}: expected {expected:?}, saw {found:?}: {text}"),
    }
}

#[test]
fn wrong_answers_are_for_nobody_else() {
    let rows = ROWS.iter().map(|(bytes, then, _)| (bytes.as_bytes().to_vec(), *then)).collect();
    let (backend, reused) = evil(rows);
    let mut proxy = proxy_to(&backend, "");
    let mut others: Vec<_> = (0..6).map(|_| Asking::of(proxy.addr())).collect();
    for (row, (what, then, expected)) in ROWS.iter().enumerate() {
        assert_seen(&proxy, row, *expected, &format!("{what:?} {then:?}"));
        for other in &mut others {
            let answer = other.ask("GET /good HTTP/1.1\r\nHost: a.test\r\n\r\n");
            assert_eq!((answer.status, &*answer.text()), (200, "good"), "behind {what:?}");
        }
    }
    assert_eq!(*reused.lock().unwrap(), [""; 0], "connections that were used again");
    proxy.assert_sound();
}

#[test]
fn answers_without_bounds_are_none() {
    let hints = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(100_000);
    let progress = b"HTTP/1.1 102 Processing\r\n\r\n".repeat(40);
    let fields = (0..300).map(|n| format!("x-{n}: y\r\n")).collect::<String>();
    let rows: Vec<(Vec<u8>, Then)> = vec![
        (hints, Stays),
        ([&progress[..], &ok("late")].concat(), Stays),
        (format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 0\r\n\r\n", "y".repeat(300_000)).into(), Stays),
        (format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(3_000_000)).into(), Stays),
        (format!("HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n").into(), Stays),
        (vec![b'x'; 3_000_000], Stays),
        (b"\r\n".repeat(1_000_000), Stays),
    ];
    let count = rows.len();
    let (backend, reused) = evil(rows);
    let mut proxy = proxy_to(&backend, "timeouts = { response = '3s' }\n");
    for row in 0..count {
        assert_seen(&proxy, row, Bad, &format!("row {row}"));
        let answer = Asking::of(proxy.addr()).ask("GET /good HTTP/1.1\r\nHost: a.test\r\n\r\n");
        assert_eq!(answer.text(), "good");
    }
    assert_eq!(*reused.lock().unwrap(), [""; 0]);
    proxy.assert_sound();
}

#[test]
fn what_is_said_between_two_requests_is_no_answer() {
    let (streams, asked) = channel::<TcpStream>();
    let streams = Mutex::new(streams);
    let backend = Backend::new(move |stream| {
        let mut asking = Asking::over(stream);
        while asking.request().is_some() {
            asking.stream.write_all(&ok("own")).unwrap();
            streams.lock().unwrap().send(asking.stream.try_clone().unwrap()).unwrap();
        }
    });
    let proxy = proxy_to(&backend, "");
    let mut client = Asking::of(proxy.addr());
    for evil in [&ok("evil")[..], b"HTTP/1.1 408 Request Timeout\r\n\r\n", b"x", b"\r\n"] {
        let before = backend.hits();
        assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").text(), "own");
        // Its answer was heard, and the connection waits for another request.
        let mut stream = asked.recv_timeout(SOON).unwrap();
        stream.write_all(evil).unwrap();
        assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").text(), "own");
        asked.recv_timeout(SOON).unwrap();
        assert!(backend.hits() > before, "by another connection");
    }
}

#[test]
fn heads_without_bodies_stay_so() {
    let backend = Backend::new(|stream| {
        let mut asking = Asking::over(stream);
        while let Some(head) = asking.request() {
            let answer: &[u8] = match head.split(' ').nth(1) {
                Some("/length") => b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
                Some("/chunked") => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
                Some("/twice") => b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n",
                Some("/body") => b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
                _ => b"HTTP/1.1 200 OK\r\n\r\n",
            };
            if asking.stream.write_all(answer).is_err() {
                return;
            }
        }
    });
    let proxy = proxy_to(&backend, "");
    let mut client = Asking::of(proxy.addr());
    for path in ["/length", "/chunked", "/twice", "/body", "/plain", "/length"] {
        let answer = client.ask(&format!("HEAD {path} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.head.matches("content-length").count() < 2, "{}", answer.head);
    }
    assert_eq!(client.rest(), b"");
}

#[test]
fn who_answers_instead_of_asking_for_a_body_is_asked_nothing_more() {
    // Bodies that it did not ask for are requests to it.
    let backend = Backend::new(|stream| {
        let mut asking = Asking::over(stream);
        while let Some(head) = asking.head() {
            let answer = if head.starts_with("GET /evil ") { ok("evil") } else { ok("good") };
            if asking.stream.write_all(&answer).is_err() {
                return;
            }
        }
    });
    let proxy = proxy_to(&backend, "");
    let mut others: Vec<_> = (0..6).map(|_| Asking::of(proxy.addr())).collect();
    for _ in 0..10 {
        let body = "GET /evil HTTP/1.1\r\nX: ";
        let length = body.len();
        let head =
            format!("POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: {length}");
        assert_eq!(Asking::of(proxy.addr()).ask(&format!("{head}\r\n\r\n{body}")).text(), "good");
        for other in &mut others {
            assert_eq!(other.ask("GET /good HTTP/1.1\r\nHost: a.test\r\n\r\n").text(), "good");
        }
    }
}
