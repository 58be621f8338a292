//! Clients that take more than their share of memory or time, and protocols that are switched to too early.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::http::proxy_to;
use crate::http_faults::{behind_a_good_one, statuses};
use crate::support::backend::Backend;
use crate::support::client::{End, connect, read_to_end};
use crate::support::proxy::Proxy;
use crate::support::web::{Asking, Web, ok};
use crate::support::{SOON, UNLIMITED, until, wait_for};

const LAST: &str = "GET /last HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";

/// How long somebody else may wait for an answer meanwhile, on a busy machine.
const CANARY: Duration = Duration::from_secs(5);

/// A proxy that lets many connect from one address.
fn open_proxy_to(backend: &dyn std::fmt::Display, keys: &str) -> Proxy {
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}[[route]]\nname = 'web'\nprotocol = 'http'\n\
         to = 'http://{backend}'\n{keys}"
    ))
}

/// The first status that is answered to `bytes`.
fn first_status(proxy: &Proxy, bytes: &str) -> u16 {
    let (statuses, reply) = behind_a_good_one(proxy, bytes);
    *statuses.first().unwrap_or_else(|| panic!("no answer: {reply:?}"))
}

/// Fails unless somebody else is served at once.
fn assert_others_are_served(proxy: &Proxy) {
    let start = Instant::now();
    let answer = Asking::of(proxy.addr()).ask("GET /good HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert_eq!(answer.status, 200);
    assert!(start.elapsed() < CANARY, "took {:?}", start.elapsed());
}

#[test]
fn heads_have_bounds() {
    let web = Web::saying("ok");
    let proxy = proxy_to(&web, "");
    let fields = |count: usize| (0..count).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
    let of_fields =
        |count| format!("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n{}\r\n", fields(count));
    assert_eq!(first_status(&proxy, &of_fields(98)), 200);
    assert_eq!(first_status(&proxy, &of_fields(99)), 431);
    assert_eq!(first_status(&proxy, &of_fields(5000)), 431);
    // The same field again is one more.
    let again = format!("GET / HTTP/1.1\r\nHost: a.test\r\n{}\r\n", "X: y\r\n".repeat(100));
    assert_eq!(first_status(&proxy, &again), 431);
    let of_size = |size: usize| {
        let head = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nX: ";
        format!("{head}{}\r\n\r\n", "y".repeat(size - head.len() - 4))
    };
    assert_eq!(first_status(&proxy, &of_size(32 * 1024)), 200);
    assert_eq!(first_status(&proxy, &of_size(32 * 1024 + 1)), 431);
    assert_eq!(first_status(&proxy, &of_size(1024 * 1024)), 431);
    let of_uri = |length: usize| {
        format!("GET /{} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n", "y".repeat(length - 1))
    };
    assert_eq!(first_status(&proxy, &of_uri(16 * 1024)), 200);
    assert_eq!(first_status(&proxy, &of_uri(16 * 1024 + 1)), 414);
    assert_eq!(first_status(&proxy, &of_uri(40 * 1024)), 414);
    assert_eq!(first_status(&proxy, &of_uri(1024 * 1024)), 414);
    let passed = web.received().iter().filter(|request| !request.head.starts_with("GET /good ")).count();
    assert_eq!(passed, 3);
}

#[test]
fn bodies_have_bounds() {
    let web = Web::saying("ok");
    let proxy = proxy_to(&web, "http = { max_body = '1KiB' }");
    let of_length = |length: usize| {
        let head = "POST / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n";
        format!("{head}Content-Length: {length}\r\n\r\n{}", "y".repeat(length))
    };
    let of_chunks = |length: usize| {
        let head = "POST / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n";
        let chunks = "1\r\ny\r\n".repeat(length);
        format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
    };
    assert_eq!(first_status(&proxy, &of_length(1024)), 200);
    assert_eq!(first_status(&proxy, &of_length(1025)), 413);
    assert_eq!(first_status(&proxy, &of_length(1024 * 1024)), 413);
    assert_eq!(first_status(&proxy, &of_chunks(1024)), 200);
    assert_eq!(first_status(&proxy, &of_chunks(1025)), 413);
    assert_eq!(first_status(&proxy, &of_chunks(100_000)), 413);
    // One that never comes is refused before.
    let huge = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 18446744073709551615\r\n\r\n";
    assert_eq!(first_status(&proxy, huge), 413);
    let whole: Vec<_> =
        web.received().into_iter().filter(|request| request.body.ends_with(b"0\r\n\r\n")).collect();
    assert_eq!(whole.len(), 1, "a body that is too long has no end");
}

/// Connections, each of which has sent `begin`.
fn begun(proxy: &Proxy, count: usize, begin: &str) -> Vec<TcpStream> {
    let begun = (0..count).map(|_| {
        let mut stream = connect(proxy.addr());
        stream.write_all(begin.as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    });
    begun.collect()
}

/// Sends `byte` on each again and again until it is closed; gives what each has seen.
fn drip(proxy: &Proxy, mut streams: Vec<TcpStream>, byte: &[u8], limit: Duration) -> Vec<Vec<u8>> {
    let mut seen = vec![Vec::new(); streams.len()];
    let mut open = vec![true; streams.len()];
    let mut looks = 0;
    until("all to be closed", limit, || {
        for ((stream, seen), open) in
            streams.iter_mut().zip(&mut seen).zip(&mut open).filter(|(_, open)| **open)
        {
            let mut chunk = [0; 4096];
            match stream.read(&mut chunk) {
                Ok(n @ 1..) => seen.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // Where it is closed already the next read tells.
                    let _ = stream.write(byte);
                }
                Ok(0) | Err(_) => *open = false,
            }
        }
        looks += 1;
        if looks % 20 == 0 {
            assert_others_are_served(proxy);
        }
        open.iter().all(|open| !open).then_some(())
    });
    seen
}

const SHORT: &str = "http = { header_timeout = '500ms', body_timeout = '500ms', write_timeout = '500ms', \
     keep_alive = '500ms', min_body_rate = '1KiB/s' }\n\
     [[route.rule]]\npath = '/fixed'\nanswer = { status = 200, body = 'fixed' }";

#[test]
fn slow_heads_end_in_their_time() {
    let web = Web::saying("ok");
    let mut proxy = open_proxy_to(&web, SHORT);
    let begins =
        ["GET ", "GET /", "GET / HTTP/1.1\r\nHost: a.test\r\nX: ", "GET / HTTP/1.1\r\nHost: a.test\r\n"];
    for (begin, byte) in begins.into_iter().zip([&b""[..], b"x", b"x", b""]) {
        let start = Instant::now();
        let streams = begun(&proxy, 100, begin);
        let seen = drip(&proxy, streams, byte, SOON);
        assert!(start.elapsed() < Duration::from_secs(5), "{begin:?}: {:?}", start.elapsed());
        for seen in seen {
            assert_eq!(statuses(&seen), [408], "{begin:?}: {:?}", String::from_utf8_lossy(&seen));
        }
    }
    // Behind a request that was answered, and empty lines without an end.
    for (begin, byte) in [("GET /x", &b"x"[..]), ("\r", b"\n\r"), ("\r\n", b"\r\n"), ("", b"")] {
        let start = Instant::now();
        let begin = format!("GET /good HTTP/1.1\r\nHost: a.test\r\n\r\n{begin}");
        let seen = drip(&proxy, begun(&proxy, 100, &begin), byte, SOON);
        assert!(start.elapsed() < Duration::from_secs(5), "{begin:?}: {:?}", start.elapsed());
        for seen in seen {
            assert_eq!(statuses(&seen)[0], 200);
            assert!([&[200][..], &[200, 408]].contains(&&*statuses(&seen)), "{begin:?}: {seen:?}");
        }
    }
    assert!(web.received().iter().all(|request| request.head.starts_with("GET /good ")));
    proxy.assert_sound();
}

#[test]
fn bodies_that_pause_end_in_their_time() {
    let web = Web::saying("ok");
    let mut proxy = open_proxy_to(&web, SHORT);
    for (path, length) in [
        ("/row", "Content-Length: 1000"),
        ("/row", "Transfer-Encoding: chunked"),
        ("/fixed", "Content-Length: 1000"),
        ("/fixed", "Transfer-Encoding: chunked"),
    ] {
        let start = Instant::now();
        let begin = format!("POST {path} HTTP/1.1\r\nHost: a.test\r\n{length}\r\n\r\n5\r\n");
        let seen = drip(&proxy, begun(&proxy, 100, &begin), b"", SOON);
        assert!(start.elapsed() < Duration::from_secs(6), "{path} {length}: {:?}", start.elapsed());
        let expected = if path == "/row" { 408 } else { 200 };
        for seen in seen {
            assert_eq!(statuses(&seen), [expected], "{path} {length}");
        }
    }
    proxy.assert_sound();
}

#[test]
fn bodies_that_trickle_end_in_their_time() {
    let web = Web::saying("ok");
    let mut proxy = open_proxy_to(&web, SHORT);
    let length = "POST /row HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000\r\n\r\n";
    let chunks = "POST /row HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n";
    let mut streams = begun(&proxy, 50, length);
    streams.extend(begun(&proxy, 50, chunks));
    // Ten seconds are given before the rate counts.
    let seen = drip(&proxy, streams, b"x", Duration::from_secs(18));
    for seen in seen {
        assert_eq!(statuses(&seen), [408], "{:?}", String::from_utf8_lossy(&seen));
    }
    proxy.assert_sound();
}

#[test]
fn readers_that_stop_end_in_their_time() {
    const SIZE: usize = 16 * 1024 * 1024;
    const READERS: usize = 20;
    let text = "x".repeat(SIZE);
    let web = Web::new(move |request| if request.head.contains("/good") { ok("ok") } else { ok(&text) });
    let mut proxy = open_proxy_to(&web, SHORT);
    let before = proxy.process.rss();
    let request = "GET /large HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let streams = begun(&proxy, READERS, request);
    let late = |line: &serde_json::Value| line["reason"] == "write_timeout";
    until("all to be late", SOON, || {
        assert_others_are_served(&proxy);
        let count = proxy.access_log().iter().filter(|line| late(line) && line["kind"] == "request").count();
        (count == READERS).then_some(())
    });
    let grown = proxy.process.rss().saturating_sub(before);
    assert!(grown < READERS * 3 * 1024 * 1024, "grew by {grown} bytes");
    for mut stream in streams {
        stream.set_nonblocking(false).unwrap();
        let reply = read_to_end(&mut stream, SOON);
        assert_eq!(reply.end, End::Reset);
        assert!(reply.bytes.len() < SIZE, "a part");
    }
    proxy.assert_sound();
}

/// A request to switch to a protocol.
fn upgrade(connection: &str, upgrade: &str) -> String {
    format!("GET /switch HTTP/1.1\r\nHost: a.test\r\nConnection: {connection}\r\nUpgrade: {upgrade}\r\n\r\n")
}

#[test]
fn what_follows_a_switch_that_was_refused_is_another_request() {
    let web = Web::saying("ok");
    let proxy = proxy_to(&web, "\n[[route.rule]]\npath = '/admin/*'\nanswer = 403");
    let bytes =
        format!("{}GET /admin HTTP/1.1\r\nHost: a.test\r\n\r\n{LAST}", upgrade("Upgrade", "websocket"));
    let (statuses, _) = behind_a_good_one(&proxy, &bytes);
    assert_eq!(statuses, [200, 403, 200]);
    let received = web.received();
    assert_eq!(received.len(), 3, "{received:?}");
    assert_eq!(received[1].field("upgrade"), Some("websocket"));
    assert!(received.iter().all(|request| request.field("x-forwarded-for").is_some()), "each went its way");
}

#[test]
fn http_2_is_not_switched_to() {
    let web = Web::saying("ok");
    let proxy = proxy_to(&web, "");
    for (connection, protocol) in [
        ("Upgrade, HTTP2-Settings", "h2c"),
        ("upgrade,http2-settings", "H2C"),
        ("Upgrade", "h2c, h2c"),
        ("Upgrade, HTTP2-Settings", "h2c/1"),
        // RFC 9110 §7.8: only with both fields.
        ("close", "websocket"),
        ("keep-alive", "websocket"),
    ] {
        let bytes = upgrade(connection, protocol).replace("\r\n\r\n", "\r\nHTTP2-Settings: AAMAAABk\r\n\r\n");
        let (statuses, _) = behind_a_good_one(&proxy, &format!("{bytes}{LAST}"));
        assert_eq!(statuses[0], 200, "{connection} {protocol}");
        let received = web.received();
        let request = received.iter().rfind(|request| request.head.contains("/switch")).unwrap();
        for name in ["upgrade", "http2-settings", "connection"] {
            assert_eq!(request.field(name), None, "{connection} {protocol}: {}", request.head);
        }
    }
    // Of several protocols the others stay.
    behind_a_good_one(&proxy, &format!("{}{LAST}", upgrade("Upgrade", "h2c, websocket")));
    let received = web.received();
    let request = received.iter().rfind(|request| request.head.contains("/switch")).unwrap();
    assert_eq!(request.field("upgrade"), Some("websocket"));
    // Nor with a body, of which the protocol would be the rest.
    let with_body = upgrade("Upgrade", "websocket").replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello");
    behind_a_good_one(&proxy, &format!("{with_body}{LAST}"));
    let received = web.received();
    let request = received.iter().rfind(|request| request.head.contains("/switch")).unwrap();
    assert_eq!((request.field("upgrade"), &*request.body), (None, &b"hello"[..]));
}

#[test]
fn nothing_is_switched_to_that_was_not_asked_for() {
    let backend = Backend::new(|stream| {
        let mut asking = Asking::over(stream);
        while let Some(head) = asking.request() {
            let answer = head.lines().find_map(|line| line.strip_prefix("x-answer: ")).unwrap_or("");
            let answer = if head.contains("/good") {
                ok("ok")
            } else {
                format!("HTTP/1.1 101 Switching Protocols\r\n{}\r\n", answer.replace('|', "\r\n")).into()
            };
            if asking.stream.write_all(&answer).is_err() {
                return;
            }
        }
    });
    let proxy = proxy_to(&backend, "");
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    for (asked, answer, expected) in [
        ("", "connection: upgrade|upgrade: websocket|", 502),
        ("Connection: Upgrade\r\nUpgrade: h2c\r\n", "connection: upgrade|upgrade: h2c|", 502),
        ("Upgrade: websocket\r\n", "connection: upgrade|upgrade: websocket|", 502),
        ("Connection: Upgrade\r\nUpgrade: websocket\r\n", "connection: upgrade|upgrade: other|", 502),
        ("Connection: Upgrade\r\nUpgrade: websocket\r\n", "connection: upgrade|upgrade: h2c|", 502),
        ("Connection: Upgrade\r\nUpgrade: websocket\r\n", "connection: upgrade|", 502),
        ("Connection: Upgrade\r\nUpgrade: websocket\r\n", "connection: upgrade|upgrade: WebSocket|", 101),
        ("Connection: Upgrade\r\nUpgrade: a, b/2\r\n", "connection: upgrade|upgrade: b/2|", 101),
    ] {
        let request = format!("GET /switch HTTP/1.1\r\nHost: a.test\r\n{asked}X-Answer: {answer}\r\n\r\n");
        let mut client = Asking::of(proxy.addr());
        client
            .stream
            .write_all(format!("{request}{}", if expected == 502 { smuggled } else { "" }).as_bytes())
            .unwrap();
        let found = client.answer(false).unwrap();
        assert_eq!(found.status, expected, "{asked:?} {answer:?}");
        if expected == 502 {
            // Behind it is HTTP, as before.
            assert_eq!(client.answer(false).map(|answer| answer.status), Some(502), "{asked:?} {answer:?}");
        }
    }
}

#[test]
fn what_comes_before_a_switch_waits_with_the_client() {
    let (asked, asks) = channel::<TcpStream>();
    let asked = Mutex::new(asked);
    let heads = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&heads);
    let backend = Backend::new(move |stream| {
        let copy = stream.try_clone().unwrap();
        if Asking::over(stream).request().is_some() {
            count.fetch_add(1, Ordering::SeqCst);
            asked.lock().unwrap().send(copy).unwrap();
        }
    });
    let mut proxy = proxy_to(&backend, "");
    let before = proxy.process.rss();
    let mut client = connect(proxy.addr());
    client.write_all(upgrade("Upgrade", "echo").as_bytes()).unwrap();
    wait_for("the request", || heads.load(Ordering::SeqCst) == 1);
    client.set_nonblocking(true).unwrap();
    let block = vec![b'x'; 64 * 1024];
    let (mut sent, mut full) = (0, Instant::now());
    // Until nothing was taken for a while.
    until("the client to be held up", SOON, || {
        while let Ok(n) = client.write(&block) {
            (sent, full) = (sent + n, Instant::now());
            assert!(sent < 256 * 1024 * 1024, "nothing holds it up");
        }
        (full.elapsed() > Duration::from_millis(200)).then_some(())
    });
    let grown = proxy.process.rss().saturating_sub(before);
    assert!(grown < 4 * 1024 * 1024, "grew by {grown} bytes of {sent}");
    let mut backend = asks.recv_timeout(SOON).unwrap();
    backend
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .unwrap();
    let mut rest = vec![0; sent];
    backend.set_read_timeout(Some(SOON)).unwrap();
    backend.read_exact(&mut rest).unwrap();
    assert!(rest.iter().all(|byte| *byte == b'x'), "every byte, once");
    proxy.assert_sound();
}
