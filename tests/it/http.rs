//! Requests that are passed on: what backends receive, byte for byte, and what clients get back.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::backend::Backend;
use crate::support::proxy::Proxy;
use crate::support::wait_for;
use crate::support::web::{Asking, Web, ok};

/// A proxy for requests in clear, which `keys` says more of.
pub(crate) fn proxy_to(backend: &dyn std::fmt::Display, keys: &str) -> Proxy {
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n[[route]]\nname = 'web'\nprotocol = 'http'\n\
         to = 'http://{backend}'\n{keys}"
    ))
}

#[test]
fn a_request_reaches_its_backend_and_the_answer_its_client() {
    let web = Web::new(|_| {
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-of-backend: 1\r\nserver: secret/1.0\r\n\r\nhello".into()
    });
    let proxy = proxy_to(&web, "");
    let mut client = Asking::of(proxy.addr());
    let answer = client.ask("GET /a/b?c=d HTTP/1.1\r\nHost: a.test\r\nUser-Agent: me\r\nX-Mine: 1\r\n\r\n");
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
    assert_eq!(answer.field("x-of-backend"), Some("1"));
    assert_eq!(answer.field("server"), None, "what a backend is made of is hidden: {}", answer.head);
    let received = web.received();
    assert_eq!(received.len(), 1);
    let expected = ["GET /a/b?c=d HTTP/1.1", "host: a.test", "user-agent: me", "x-mine: 1"];
    assert_eq!(received[0].lines(), expected);
    assert_eq!(received[0].field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(received[0].field("x-forwarded-proto"), Some("http"));
    assert_eq!(received[0].field("x-forwarded-host"), Some("a.test"));
    let line = proxy.access_line("the request", |line| line["kind"] == "request");
    assert_eq!(line["status"], 200, "{line}");
    assert_eq!((line["method"].as_str(), line["uri"].as_str()), (Some("GET"), Some("/a/b?c=d")), "{line}");
    assert_eq!((line["host"].as_str(), line["bytes_out"].as_u64()), (Some("a.test"), Some(5)), "{line}");
    drop(client);
    let line = proxy.access_line("the connection", |line| line["action"] == "http");
    assert_eq!((&line["requests"], &line["cause"]), (&1.into(), &"done".into()), "{line}");
}

#[test]
fn connections_of_both_sides_serve_many_requests() {
    let web = Web::saying("hello");
    let proxy = proxy_to(&web, "");
    let mut client = Asking::of(proxy.addr());
    for n in 0..20 {
        let answer = client.ask(&format!("GET /{n} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
        assert_eq!(answer.text(), "hello");
    }
    // Pipelined, two at once.
    client.stream.write_all(&b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n".repeat(2)).unwrap();
    assert_eq!(client.answer(false).unwrap().text(), "hello");
    assert_eq!(client.answer(false).unwrap().text(), "hello");
    assert_eq!(web.received().len(), 22);
    assert!(web.backend.hits() <= 2, "{} connections", web.backend.hits());
}

#[test]
fn bodies_pass_with_a_length_and_in_chunks() {
    let web = Web::new(|request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        if request.head.starts_with("POST /chunked") {
            return format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}").into_bytes();
        }
        ok(&body)
    });
    let proxy = proxy_to(&web, "");
    let mut client = Asking::of(proxy.addr());
    let answer = client.ask("POST /plain HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nabcde");
    assert_eq!(answer.text(), "abcde");
    let answer = client.ask(
        "POST /chunked HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n\
         3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 7\r\n\r\n",
    );
    assert_eq!((answer.text().as_str(), answer.trailers.as_str()), ("abcde", "x-sum: 7\n"));
    let received = web.received();
    assert_eq!(received[0].field("content-length"), Some("5"));
    assert_eq!(received[1].field("transfer-encoding"), Some("chunked"));
    assert_eq!(String::from_utf8_lossy(&received[1].body), "3\r\nabc\r\n2\r\nde\r\n0\r\nx-sum: 7\r\n\r\n");
}

#[test]
fn large_bodies_pass_both_ways_whole() {
    let text = "0123456789abcdef".repeat(256 * 1024);
    let web = Web::new(|request| ok(&String::from_utf8_lossy(&request.body)));
    let proxy = proxy_to(&web, "");
    let mut client = Asking::of(proxy.addr());
    let mut writer = client.stream.try_clone().unwrap();
    let answer = std::thread::scope(|scope| {
        scope.spawn(|| {
            let head = format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n", text.len());
            writer.write_all(head.as_bytes()).unwrap();
            writer.write_all(text.as_bytes()).unwrap();
        });
        client.answer(false).unwrap()
    });
    assert!(answer.body == text.as_bytes(), "{} of {} bytes came back", answer.body.len(), text.len());
}

#[test]
fn answers_without_a_body_have_none() {
    let web = Web::new(|request| {
        if request.head.starts_with("HEAD") {
            return b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n".into();
        }
        let status = if request.head.contains("/304") { "304 Not Modified" } else { "204 No Content" };
        format!("HTTP/1.1 {status}\r\netag: \"1\"\r\n\r\n").into_bytes()
    });
    let proxy = proxy_to(&web, "");
    let mut client = Asking::of(proxy.addr());
    let answer = client.ask("HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert_eq!((answer.status, answer.field("content-length")), (200, Some("1000")));
    for status in [304, 204, 304] {
        let answer = client.ask(&format!("GET /{status} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
        assert_eq!((answer.status, answer.field("etag")), (status, Some("\"1\"")));
        assert_eq!(answer.field("transfer-encoding"), None);
    }
    assert_eq!(web.backend.hits(), 1);
}

#[test]
fn answers_on_the_way_are_passed_on() {
    let web = Web::new(|_| {
        b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
            .into()
    });
    let proxy = proxy_to(&web, "");
    let answer = Asking::of(proxy.addr()).ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert_eq!(answer.text(), "ok");
    assert!(
        answer.head.starts_with("HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n"),
        "{}",
        answer.head
    );
}

#[test]
fn a_connection_that_was_closed_meanwhile_is_noticed() {
    // Each connection answers once and is closed without a word, as servers do with those that are idle.
    let closed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&closed);
    let backend = Backend::new(move |stream| {
        let mut asking = Asking::over(stream);
        if asking.request().is_some() {
            let _ = asking.stream.write_all(&ok("once"));
        }
        drop(asking);
        count.fetch_add(1, Ordering::SeqCst);
    });
    let proxy = proxy_to(&backend, "");
    let mut client = Asking::of(proxy.addr());
    for _ in 0..5 {
        assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").text(), "once");
    }
    // What cannot be repeated goes to none of those.
    wait_for("the connections to be closed", || closed.load(Ordering::SeqCst) == backend.hits());
    let answer = client.ask("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\n\r\nx");
    assert_eq!(answer.text(), "once");
}

#[test]
fn what_cannot_be_repeated_is_sent_once() {
    let dead = Backend::new(|stream| {
        let _ = Asking::over(stream).request();
    });
    let proxy = proxy_to(&dead, "");
    let answer =
        Asking::of(proxy.addr()).ask("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\n\r\nx");
    assert_eq!(answer.status, 502);
    assert_eq!(dead.hits(), 1, "sent once");
    let answer = Asking::of(proxy.addr()).ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert_eq!(answer.status, 502);
    assert_eq!(dead.hits(), 4, "three attempts");
}

#[test]
fn a_protocol_is_switched_to_and_relayed() {
    let backend = Backend::new(|stream| {
        let mut asking = Asking::over(stream);
        let head = asking.request().unwrap();
        assert!(head.contains("upgrade: echo\r\n") && head.contains("connection: upgrade\r\n"), "{head}");
        asking
            .stream
            .write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nfirst,",
            )
            .unwrap();
        let mut bytes = [0; 5];
        std::io::Read::read_exact(&mut asking.stream, &mut bytes).unwrap();
        asking.stream.write_all(&bytes).unwrap();
    });
    let proxy = proxy_to(&backend, "");
    let mut client = Asking::of(proxy.addr());
    client
        .stream
        .write_all(b"GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: echo\r\n\r\nhello")
        .unwrap();
    let answer = client.answer(false).unwrap();
    assert_eq!((answer.status, answer.field("upgrade")), (101, Some("echo")));
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut client.stream, &mut rest).unwrap();
    let rest = [client.rest(), rest].concat();
    assert_eq!(String::from_utf8_lossy(&rest), "first,hello");
    drop(client);
    let line = proxy.access_line("the request", |line| line["upgraded"] == true);
    assert_eq!((&line["status"], &line["bytes_in"]), (&101.into(), &5.into()), "{line}");
}

#[test]
fn without_a_backend_there_is_a_page() {
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap()
    };
    let proxy = proxy_to(&port, "");
    let mut client = Asking::of(proxy.addr());
    let answer = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\nAccept: application/json\r\n\r\n");
    assert_eq!(answer.status, 502);
    assert!(answer.field("content-type").unwrap().contains("json"), "{}", answer.head);
    assert!(!answer.text().contains(&port.port().to_string()), "no address within: {}", answer.text());
    // The connection goes on.
    assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").status, 502);
}

#[test]
fn a_slow_client_does_not_hold_its_backend() {
    let text = "x".repeat(600 * 1024);
    let web = Web::new(move |_| ok(&text));
    let proxy = proxy_to(&web, "");
    let mut slow = Asking::of(proxy.addr());
    slow.stream.write_all(b"GET /slow HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
    wait_for("the request", || web.received().len() == 1);
    // While nothing of the first answer is read, others use its connection.
    wait_for("the connection to be free", || {
        let mut other = Asking::of(proxy.addr());
        assert_eq!(other.ask("HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n").status, 200);
        let received = web.received();
        received.last().unwrap().connection == received[0].connection
    });
    assert_eq!(slow.answer(false).unwrap().body.len(), 600 * 1024);
}
