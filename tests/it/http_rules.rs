//! What becomes of requests by the rules of a route.

use std::collections::HashMap;
use std::io::Write;

use crate::http::proxy_to;
use crate::support::proxy::Proxy;
use crate::support::wait_for;
use crate::support::web::{Answer, Asking, Web, ok};

fn get(proxy: &Proxy, path: &str, fields: &str) -> Answer {
    Asking::of(proxy.addr()).ask(&format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n"))
}

#[test]
fn rules_take_by_path_host_method_header_and_query() {
    let (web, api, beta) = (Web::saying("web"), Web::saying("api"), Web::saying("beta"));
    let proxy = proxy_to(
        &web,
        &format!(
            "[[route.rule]]\npath = '/api/*'\nto = 'http://{api}'\nstrip = '/api'\n\
             [[route.rule]]\nname = 'beta'\nheader = {{ x-beta = '1' }}\nto = 'http://{beta}'\n\
             [[route.rule]]\nhost = 'other.test'\npath = '/api/*'\nanswer = 403\n\
             [[route.rule]]\nquery = {{ gone = '*' }}\nmethod = ['GET']\nanswer = 410\n\
             [[route.rule]]\npath = '/old/*'\nredirect = 'https://new.test{{uri}}'\n\
             [[route.rule]]\npath = '/hello'\nanswer = {{ status = 200, body = 'hello {{client}}' }}\n"
        ),
    );
    assert_eq!(get(&proxy, "/", "").text(), "web");
    assert_eq!(get(&proxy, "/api/x?y=1", "").text(), "api");
    assert_eq!(api.received()[0].head.lines().next(), Some("GET /x?y=1 HTTP/1.1"));
    assert_eq!(get(&proxy, "/x", "X-Beta: 1\r\n").text(), "beta");
    assert_eq!(get(&proxy, "/x?gone=1", "").status, 410);
    let moved = get(&proxy, "/old/a?b", "");
    assert_eq!((moved.status, moved.field("location")), (308, Some("https://new.test/old/a?b")));
    assert_eq!(get(&proxy, "/hello", "").text(), "hello 127.0.0.1");
    let other = Asking::of(proxy.addr()).ask("GET /api/x HTTP/1.1\r\nHost: OTHER.test:80\r\n\r\n");
    assert_eq!(other.status, 403);
    let line = proxy.access_line("the request", |line| line["rule"] == "beta");
    assert_eq!(line["status"], 200, "{line}");
}

#[test]
fn heads_change_on_both_ways() {
    let web = Web::new(|request| {
        let host = request.field("host").unwrap();
        format!(
            "HTTP/1.1 302 Found\r\nlocation: http://{host}/base/next\r\nset-cookie: a=1; Path=/base\r\nx-secret: 1\r\n\
             content-length: 0\r\n\r\n"
        )
        .into_bytes()
    });
    let proxy = proxy_to(
        &web,
        "host_header = 'backend'\nadd = '/base'\nrequest_headers = { set = { x-who = '{client} {host}' }, remove = ['x-debug'] }\n\
         response_headers = { set = { x-route = '{route}' }, remove = 'x-secret' }\n",
    );
    let answer = get(&proxy, "/x", "X-Debug: 1\r\nX-Who: nobody\r\n");
    let request = web.received().remove(0);
    assert!(request.head.starts_with("GET /base/x HTTP/1.1\r\n"), "{}", request.head);
    assert_eq!(request.field("host"), Some(web.to_string().as_str()));
    assert_eq!((request.field("x-who"), request.field("x-debug")), (Some("127.0.0.1 a.test"), None));
    assert_eq!(answer.field("location"), Some("http://a.test/next"), "{}", answer.head);
    assert_eq!(answer.field("set-cookie"), Some("a=1; Path=/"), "{}", answer.head);
    assert_eq!((answer.field("x-route"), answer.field("x-secret")), (Some("web"), None));
}

#[test]
fn files_answer_and_nothing_outside_them() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("www");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("index.html"), "<p>start").unwrap();
    std::fs::write(root.join("big"), vec![b'x'; 300_000]).unwrap();
    std::fs::write(folder.path().join("secret"), "secret").unwrap();
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n[[route]]\nname = 'web'\nprotocol = 'http'\nfiles = '{}'\n",
        root.display()
    ));
    let mut client = Asking::of(proxy.addr());
    let start = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert_eq!((start.status, start.text().as_str()), (200, "<p>start"));
    assert_eq!(start.field("content-type"), Some("text/html; charset=utf-8"));
    let etag = start.field("etag").unwrap();
    let again = client.ask(&format!("GET / HTTP/1.1\r\nHost: a.test\r\nIf-None-Match: {etag}\r\n\r\n"));
    assert_eq!(again.status, 304);
    let part = client.ask("GET /big HTTP/1.1\r\nHost: a.test\r\nRange: bytes=10-19\r\n\r\n");
    assert_eq!((part.status, part.text().as_str()), (206, "xxxxxxxxxx"));
    assert_eq!(client.ask("GET /big HTTP/1.1\r\nHost: a.test\r\n\r\n").body.len(), 300_000);
    let head = client.ask("HEAD /big HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert_eq!(head.field("content-length"), Some("300000"));
    for path in ["/../secret", "/%2e%2e/secret", "/..%2fsecret", "/nothing", "/.hidden"] {
        let answer = client.ask(&format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
        assert!([400, 404].contains(&answer.status), "{path}: {}", answer.status);
    }
    assert_eq!(client.ask("DELETE /big HTTP/1.1\r\nHost: a.test\r\n\r\n").status, 405);
}

#[test]
fn a_split_gives_each_its_share_and_keeps_clients_with_theirs() {
    let (a, b) = (Web::saying("a"), Web::saying("b"));
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n[[route]]\nname = 'web'\nprotocol = 'http'\n\
         split = [{{ name = 'a', weight = 3, to = 'http://{a}' }}, {{ name = 'b', to = 'http://{b}' }}]\n\
         sticky_split = {{ cookie = 'ab' }}\n"
    ));
    let mut counts = HashMap::new();
    for _ in 0..400 {
        let answer = get(&proxy, "/", "");
        let cookie = answer.field("set-cookie").unwrap().to_owned();
        assert!(cookie.starts_with(&format!("ab={};", answer.text())), "{cookie}");
        *counts.entry(answer.text()).or_insert(0) += 1;
    }
    // 300 of 400, and 4.6 standard deviations.
    assert!((260..=340).contains(&counts["a"]), "{counts:?}");
    for name in ["a", "b"] {
        for _ in 0..10 {
            let answer = get(&proxy, "/", &format!("Cookie: x=1; ab={name}\r\n"));
            assert_eq!((answer.text().as_str(), answer.field("set-cookie")), (name, None));
        }
    }
    assert_eq!(b.received().last().unwrap().field("x-portcullis-variant"), Some("b"));
    let line = proxy.access_line("the variant", |line| line["variant"] == "b");
    assert_eq!(line["status"], 200);
}

#[test]
fn too_many_requests_are_told_when_to_come_again() {
    let web = Web::saying("web");
    let proxy = proxy_to(&web, "request_rate = { rate = '1/m', burst = 3, per = { header = 'x-key' } }\n");
    let mut client = Asking::of(proxy.addr());
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\nX-Key: one\r\n\r\n";
    for _ in 0..3 {
        assert_eq!(client.ask(request).status, 200);
    }
    let answer = client.ask(request);
    assert_eq!(answer.status, 429);
    let wait: u64 = answer.field("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(get(&proxy, "/", "X-Key: two\r\n").status, 200, "another client");
    assert_eq!(web.received().len(), 4);
    let line = proxy.access_line("the request", |line| line["status"] == 429);
    assert_eq!(line["reason"], "request_rate");
}

#[test]
fn pages_of_other_sites_may_use_what_is_here_if_it_is_said() {
    let web = Web::new(|_| {
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\naccess-control-allow-origin: *\r\n\r\n".into()
    });
    let proxy = proxy_to(
        &web,
        "cors = { origins = 'https://app.test', methods = ['GET', 'PUT'], credentials = true }\nsecurity_headers = true\n",
    );
    let asks = |origin: &str| {
        Asking::of(proxy.addr()).ask(&format!(
            "OPTIONS / HTTP/1.1\r\nHost: a.test\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: PUT\r\n\
             Access-Control-Request-Headers: x-a\r\n\r\n"
        ))
    };
    let may = asks("https://app.test");
    assert_eq!((may.status, may.field("access-control-allow-origin")), (204, Some("https://app.test")));
    assert_eq!(may.field("access-control-allow-methods"), Some("GET, PUT"));
    assert_eq!(may.field("access-control-allow-headers"), Some("x-a"));
    assert_eq!(asks("https://evil.test").field("access-control-allow-origin"), None);
    assert_eq!(web.received().len(), 0, "a backend is not asked");
    let answer = get(&proxy, "/", "Origin: https://app.test\r\n");
    assert_eq!(answer.field("access-control-allow-origin"), Some("https://app.test"));
    assert_eq!(answer.field("access-control-allow-credentials"), Some("true"));
    let answer = get(&proxy, "/", "Origin: https://evil.test\r\n");
    assert_eq!(answer.field("access-control-allow-origin"), None, "nor by what the backend says");
    assert_eq!(answer.field("x-content-type-options"), Some("nosniff"));
    assert_eq!(answer.field("strict-transport-security"), None, "which is for TLS");
}

#[test]
fn a_slow_body_does_not_hold_its_backend_where_it_is_taken_before() {
    let web = Web::new(|request| ok(&request.body.len().to_string()));
    let proxy = proxy_to(&web, "buffer_requests = true\n");
    let body = "x".repeat(700_000);
    let mut client = Asking::of(proxy.addr());
    let head = format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n", body.len());
    client.stream.write_all(head.as_bytes()).unwrap();
    client.stream.write_all(&body.as_bytes()[..600_000]).unwrap();
    // While the rest is awaited others are answered, and nobody has bothered a backend with this one.
    assert_eq!(get(&proxy, "/", "").text(), "0");
    assert_eq!(web.backend.hits(), 1);
    client.stream.write_all(&body.as_bytes()[600_000..]).unwrap();
    assert_eq!(client.answer(false).unwrap().text(), "700000");
    wait_for("the request", || web.received().len() == 2);
    let received = &web.received()[1];
    assert!(received.body == body.as_bytes() && received.field("content-length") == Some("700000"));
}

#[test]
fn a_long_answer_waits_on_the_disk_for_a_slow_client() {
    let text = "0123456789".repeat(2_000_000);
    let answer = ok(&text);
    let web =
        Web::new(move |request| if request.head.contains("/long") { answer.clone() } else { ok("short") });
    let proxy = proxy_to(&web, "");
    let mut slow = Asking::of(proxy.addr());
    slow.stream.write_all(b"GET /long HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
    wait_for("the request", || web.received().len() == 1);
    // Its connection is free although the client has read nothing.
    wait_for("the connection to be free", || {
        assert_eq!(get(&proxy, "/", "").text(), "short");
        let received = web.received();
        received.last().unwrap().connection == received[0].connection
    });
    assert!(slow.answer(false).unwrap().body == text.as_bytes());
}
