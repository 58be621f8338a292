//! Heads that lie: about hosts, paths, clients and what is for one connection only.

use std::io::{Read, Write};
use std::sync::Arc;

use crate::http::proxy_to;
use crate::support::authority::{Authority, shake};
use crate::support::proxy::Proxy;
use crate::support::web::{Answer, Asking, Received, Web, ok};

/// The answer to a GET with these fields, each with its line end.
fn get(proxy: &Proxy, target: &str, fields: &str) -> Answer {
    Asking::of(proxy.addr()).ask(&format!("GET {target} HTTP/1.1\r\n{fields}\r\n"))
}

/// What the backend received last.
fn last(web: &Web) -> Received {
    web.received().pop().expect("a request")
}

/// Ends of lines, escaped, and characters of which the last byte is one.
const EVIL: [&str; 7] = [
    "%0d%0aX-Evil:%201",
    "%0D%0AX-Evil:1",
    "%0aX-Evil:1",
    "%0dX-Evil:1",
    "%00",
    "%E5%98%8A%E5%98%8DX-Evil:1",
    "%C4%8AX-Evil:1",
];

#[test]
fn no_line_is_ended_by_what_is_filled_in() {
    let web = Web::saying("ok");
    let fields = "x-path = '{path}', x-query = '{query}', x-host = '{host}', x-in = '{header.x-in}', \
                  x-cookie = '{cookie.c}'";
    let proxy = proxy_to(
        &web,
        &format!(
            "response_headers = {{ set = {{ {fields} }} }}\nrequest_headers = {{ set = {{ {fields} }} }}\n\
             [[route.rule]]\npath = '/away/*'\nredirect = 'https://b.test{{uri}}'\n\
             response_headers = {{ set = {{ {fields} }} }}\n\
             [[route.rule]]\npath = '~/group/(.*)'\nredirect = 'https://b.test/{{1}}'\n"
        ),
    );
    for prefix in ["/", "/away/", "/group/"] {
        for evil in EVIL {
            for (target, host, cookie) in [
                (format!("{prefix}{evil}"), "a.test".to_owned(), ""),
                (format!("{prefix}?q={evil}"), "a.test".to_owned(), ""),
                (prefix.to_owned(), format!("a.test{evil}"), ""),
                (prefix.to_owned(), "a.test".to_owned(), evil),
            ] {
                let fields = format!("Host: {host}\r\nX-In: {evil}\r\nCookie: c={cookie}\r\n");
                let answer = get(&proxy, &target, &fields);
                let expected: &[u16] = if prefix == "/" { &[200, 400] } else { &[308, 400] };
                assert!(expected.contains(&answer.status), "{target} {host}: {}", answer.head);
                let lower = answer.head.to_ascii_lowercase();
                assert!(
                    !lower.contains("\nx-evil") && !lower.contains("\rx-evil"),
                    "{target} {host}: {lower}"
                );
                assert!(!answer.head.contains('\0'), "{target} {host}");
                if target.contains('?') && host == "a.test" && prefix == "/away/" {
                    let location = answer.field("location").unwrap();
                    assert_eq!(location, format!("https://b.test/away/?q={evil}"), "as it came");
                }
            }
        }
    }
    for request in web.received() {
        let head = request.head.to_ascii_lowercase();
        assert!(!head.contains("\nx-evil") && !head.contains("\rx-evil") && !head.contains('\0'), "{head}");
    }
}

/// Targets and fields, the status of the answer, and the host that the backend is asked for.
const HOSTS: [(&str, &str, u16, &str); 60] = [
    ("/", "Host: a.test\r\n", 200, "a.test"),
    ("/", "Host: A.TEST\r\n", 200, "a.test"),
    ("/", "Host: a.test.\r\n", 200, "a.test"),
    ("/", "Host: a.test:80\r\n", 200, "a.test:80"),
    ("/", "Host: a.test:8080\r\n", 200, "a.test:8080"),
    ("/", "Host: 127.0.0.1\r\n", 200, "127.0.0.1"),
    ("/", "Host: [::1]:80\r\n", 200, "[::1]:80"),
    ("http://a.test/", "Host: a.test\r\n", 200, "a.test"),
    ("http://A.test:80/", "Host: a.test\r\n", 200, "a.test:80"),
    ("HTTP://a.test", "Host: a.test\r\n", 200, "a.test"),
    // The rule is found however it is spelt.
    ("/", "Host: secret.test\r\n", 403, ""),
    ("/", "Host: SECRET.test.\r\n", 403, ""),
    ("/", "Host: secret.test:9\r\n", 403, ""),
    ("http://secret.test/", "Host: secret.test\r\n", 403, ""),
    // None, several, or others.
    ("/", "", 400, ""),
    ("http://a.test/", "", 400, ""),
    ("/", "Host:\r\n", 400, ""),
    ("/", "Host: \r\n", 400, ""),
    ("/", "Host: a.test\r\nHost: a.test\r\n", 400, ""),
    ("/", "Host: a.test\r\nHost: secret.test\r\n", 400, ""),
    ("/", "Host: a.test, secret.test\r\n", 400, ""),
    ("http://secret.test/", "Host: a.test\r\n", 400, ""),
    ("http://a.test/", "Host: secret.test\r\n", 400, ""),
    ("http://a.test:81/", "Host: a.test\r\n", 400, ""),
    // What is no host.
    ("/", "Host: a b\r\n", 400, ""),
    ("/", "Host: a.test b\r\n", 400, ""),
    ("/", "Host: a.test\tb\r\n", 400, ""),
    ("/", "Host: a.test/x\r\n", 400, ""),
    ("/", "Host: a.test?x\r\n", 400, ""),
    ("/", "Host: a.test#x\r\n", 400, ""),
    ("/", "Host: a.test\\x\r\n", 400, ""),
    ("/", "Host: u@a.test\r\n", 400, ""),
    ("/", "Host: secret.test:x@a.test\r\n", 400, ""),
    ("/", "Host: http://a.test\r\n", 400, ""),
    ("/", "Host: a..test\r\n", 400, ""),
    ("/", "Host: .test\r\n", 400, ""),
    ("/", "Host: %61.test\r\n", 400, ""),
    ("/", "Host: a%00.test\r\n", 400, ""),
    ("/", "Host: a.test:\r\n", 400, ""),
    ("/", "Host: a.test:0\r\n", 400, ""),
    ("/", "Host: a.test:65536\r\n", 400, ""),
    ("/", "Host: a.test:+80\r\n", 400, ""),
    ("/", "Host: a.test:80:80\r\n", 400, ""),
    ("/", "Host: a.test:x\r\n", 400, ""),
    ("/", "Host: 127.1\r\n", 400, ""),
    ("/", "Host: 0x7f000001\r\n", 400, ""),
    ("/", "Host: ::1\r\n", 400, ""),
    ("/", "Host: [::1\r\n", 400, ""),
    ("/", "Host: [::1%25lo]\r\n", 400, ""),
    ("/", "Host: [a.test]\r\n", 400, ""),
    ("/", "Host: \u{e4}.test\r\n", 400, ""),
    ("http://u@a.test/", "Host: a.test\r\n", 400, ""),
    ("http://a.test@secret.test/", "Host: secret.test\r\n", 400, ""),
    ("http:///x", "Host: a.test\r\n", 400, ""),
    ("ftp://a.test/", "Host: a.test\r\n", 400, ""),
    ("a.test", "Host: a.test\r\n", 400, ""),
    ("a.test:80", "Host: a.test\r\n", 400, ""),
    ("//a.test/", "Host: a.test\r\n", 200, "a.test"),
    ("*", "Host: a.test\r\n", 400, ""),
    // For TLS, and this is none.
    ("https://a.test/", "Host: a.test\r\n", 421, ""),
];

#[test]
fn there_is_one_host() {
    let web = Web::saying("ok");
    let proxy =
        proxy_to(&web, "\n[[route.rule]]\nhost = 'secret.test'\nanswer = { status = 403, body = 'secret' }");
    for (target, fields, status, host) in HOSTS {
        let before = web.received().len();
        let answer = get(&proxy, target, fields);
        assert_eq!(answer.status, status, "{target} {fields:?}");
        let received = &web.received()[before..];
        assert_eq!(received.len(), usize::from(status == 200), "{target} {fields:?}");
        for request in received {
            assert_eq!(request.field("host"), Some(host), "{target} {fields:?}");
            assert_eq!(request.head.matches("host: ").count(), 2, "with X-Forwarded-Host: {}", request.head);
        }
    }
}

/// What untrusted clients say of themselves.
const SAID: &str = "Host: a.test\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2, 127.0.0.1\r\n\
    X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.test\r\nX-Forwarded-Port: 1\r\nX-Real-IP: 3.3.3.3\r\n\
    Forwarded: for=4.4.4.4;host=evil.test\r\nX_Forwarded_For: 5.5.5.5\r\nX-Forwarded_For: 5.5.5.5\r\nX_Real_IP: 5.5.5.5\r\n";

#[test]
fn what_strangers_say_of_themselves_is_dropped() {
    let web = Web::saying("ok");
    let keys =
        "\n[[route.rule]]\nfrom = '1.1.1.1'\nanswer = 403\n[[route.rule]]\nfrom = '4.4.4.4'\nanswer = 403";
    let proxy = proxy_to(&web, keys);
    let more = "X-Forwarded-Prefix: /evil\r\nX-Forwarded-Scheme: https\r\nX-Forwarded-Ssl: on\r\n\
                X-Forwarded-Server: evil\r\nX-Forwarded-User: root\r\nX-Forwarded-Uri: /evil\r\nX-Forwarded-Method: PUT\r\n";
    assert_eq!(get(&proxy, "/", &format!("{SAID}{more}")).status, 200);
    let request = last(&web);
    for (name, value) in [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "a.test"),
        ("x-real-ip", "127.0.0.1"),
        ("forwarded", "for=127.0.0.1;host=a.test;proto=http"),
    ] {
        assert_eq!(request.field(name), Some(value), "{}", request.head);
        assert_eq!(request.head.matches(&format!("\n{name}: ")).count(), 1, "{}", request.head);
    }
    assert_eq!(request.field("x-forwarded-port"), Some(&*proxy.addr().port().to_string()));
    for evil in
        ["evil", "1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4", "5.5.5.5", "root", ": https", ": on", "PUT"]
    {
        assert!(!request.head.contains(evil), "{evil}: {}", request.head);
    }
}

#[test]
fn what_a_trusted_proxy_says_is_kept_up_to_the_first_stranger() {
    let web = Web::saying("ok");
    let keys = "trusted_proxies = ['127.0.0.0/8', '10.0.0.0/8']\n\
                [[route.rule]]\nfrom = '9.9.9.9'\nanswer = 403";
    let proxy = proxy_to(&web, keys);
    for (said, client, status) in [
        ("1.1.1.1", "1.1.1.1", 200),
        ("1.1.1.1, 2.2.2.2", "2.2.2.2", 200),
        ("1.1.1.1, 2.2.2.2, 10.0.0.1", "2.2.2.2", 200),
        // Whoever is behind 2.2.2.2 cannot say that it is 9.9.9.9, or be it.
        ("9.9.9.9, 2.2.2.2", "2.2.2.2", 200),
        ("9.9.9.9", "9.9.9.9", 403),
        ("2.2.2.2, 9.9.9.9", "9.9.9.9", 403),
        ("9.9.9.9, 10.0.0.1, 10.0.0.2", "9.9.9.9", 403),
        // What is no address ends the walk.
        ("9.9.9.9, unknown, 10.0.0.1", "10.0.0.1", 200),
        ("9.9.9.9, ", "127.0.0.1", 200),
    ] {
        let before = web.received().len();
        let fields = format!("Host: a.test\r\nX-Forwarded-For: {said}\r\nX-Forwarded-Proto: https\r\n");
        assert_eq!(get(&proxy, "/", &fields).status, status, "{said}");
        if let [request] = &web.received()[before..] {
            assert_eq!(request.field("x-real-ip"), Some(client), "{said}");
            let list = request.field("x-forwarded-for").unwrap();
            assert!(list.starts_with("1.1.1.1") || list.starts_with("9.9.9.9"), "{list}");
            assert!(list.ends_with(", 127.0.0.1"), "{list}");
            assert_eq!(request.field("x-forwarded-proto"), Some("https"));
        } else {
            assert_eq!(status, 403, "{said}");
        }
    }
}

#[test]
fn connection_takes_out_what_is_for_one_connection_and_nothing_else() {
    let web = Web::new(|_| {
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nset-cookie: a=b\r\ncache-control: private\r\nx-hop: 1\r\n\
          keep-alive: timeout=5\r\nproxy-connection: x\r\nconnection: set-cookie, cache-control, content-length, x-hop\r\n\r\nok"
            .into()
    });
    let proxy = proxy_to(&web, "");
    let kept = "X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, X-Real-IP, Forwarded, Authorization, Cookie, \
                Host, Content-Length, Content-Type, Via, Origin, Cache-Control, Range, If-Match, User-Agent";
    let request = format!(
        "POST / HTTP/1.1\r\nHost: a.test\r\nAuthorization: x\r\nCookie: a=b\r\nContent-Length: 5\r\nContent-Type: a/b\r\n\
         Origin: null\r\nCache-Control: no-cache\r\nRange: bytes=0-\r\nIf-Match: x\r\nUser-Agent: me\r\nX-Hop: 1\r\nX-Other: 1\r\n\
         Keep-Alive: 1\r\nProxy-Connection: x\r\nTE: gzip\r\nConnection: {kept}, X-Hop\r\nConnection: x-nothing,, close\r\n\r\nhello"
    );
    let answer = Asking::of(proxy.addr()).ask(&request);
    assert_eq!((answer.status, &*answer.body), (200, &b"ok"[..]));
    assert_eq!(answer.field("set-cookie"), Some("a=b"), "{}", answer.head);
    assert_eq!(answer.field("cache-control"), Some("private"));
    for name in ["x-hop", "keep-alive", "proxy-connection"] {
        assert_eq!(answer.field(name), None, "{}", answer.head);
    }
    let request = last(&web);
    for name in kept.split(", ") {
        assert!(request.field(name).is_some(), "{name}: {}", request.head);
    }
    assert_eq!((&*request.body, request.field("x-other")), (&b"hello"[..], Some("1")));
    for name in ["x-hop", "keep-alive", "proxy-connection", "te", "connection"] {
        assert_eq!(request.field(name), None, "{name}: {}", request.head);
    }
    let before = web.received().len();
    for bad in ["a b", "x\u{e4}", "\"close\"", "a;b"] {
        assert_eq!(get(&proxy, "/", &format!("Host: a.test\r\nConnection: {bad}\r\n")).status, 400, "{bad}");
    }
    assert_eq!(web.received().len(), before);
}

/// Ways to write `/admin`, or to try to: each is for the rule of `/admin/*`, or refused.
const ADMIN: [&str; 64] = [
    "/admin",
    "/admin/",
    "/admin/x",
    "/admin?",
    "/admin?x=y",
    "/admin/?/..",
    "//admin",
    "///admin",
    "//admin//",
    "/./admin",
    "/././admin",
    "/.//admin",
    "/admin/.",
    "/admin/./x",
    "/x/../admin",
    "/x/y/../../admin",
    "/x/../x/../admin",
    "/x//../admin",
    "/%61dmin",
    "/%61%64%6d%69%6e",
    "/%61%64%6D%69%6E/x",
    "/adm%69n",
    "/%2e/admin",
    "/%2E/admin",
    "/x/%2e%2e/admin",
    "/x/.%2e/admin",
    "/x/%2E./admin",
    "/x/%2e%2E/%61dmin",
    "/admin;",
    "/admin;x",
    "/admin;x=y/z",
    "/admin;/x",
    "/admin;a;b/x",
    "/admin%3bx",
    "/admin%3Bx/y",
    "/;/admin",
    "/;x/admin",
    "/;x/;y/admin",
    "/x/..;/admin",
    "/x/..;y/admin",
    "/.;/admin",
    "/.;x/admin",
    "/x/%2e%2e;/admin",
    "/x/..%3b/admin",
    "/admin%2f",
    "/admin%2fx",
    "/admin%2Fx",
    "/%2fadmin",
    "/x%2f..%2fadmin",
    "/x/..%2fadmin",
    "/admin%5cx",
    "/%5cadmin",
    "/\\admin",
    "/admin\\x",
    "/x\\..\\admin",
    "/x/..\\admin",
    "/admin%00",
    "/%00/admin",
    "/admin%0a",
    "/admin#x",
    "/x#/../admin",
    "/%c0%afadmin",
    "http://a.test/admin",
    "http://a.test//x/%2e%2e/admin",
];

#[test]
fn no_spelling_of_a_path_is_for_another_rule() {
    let web = Web::saying("ok");
    let proxy = proxy_to(
        &web,
        &format!(
            "\n[[route.rule]]\npath = '/admin/*'\nanswer = {{ status = 403, body = 'admin' }}\n\
             [[route.rule]]\npath = '/public/*'\nstrip = '/public'\nto = 'http://{web}'\n"
        ),
    );
    for path in ADMIN {
        let answer = get(&proxy, path, "Host: a.test\r\n");
        assert!([400, 403].contains(&answer.status), "{path}: {}", answer.status);
        // Nor where the rest of a path is passed on.
        let below = format!("/public/..{}", path.strip_prefix("http://a.test").unwrap_or(path));
        let answer = get(&proxy, &below, "Host: a.test\r\n");
        assert!([400, 403].contains(&answer.status), "{below}: {}", answer.status);
    }
    assert_eq!(web.received().len(), 0);
    for bad in [
        "/..",
        "/../admin",
        "/x/../../admin",
        "/%2e%2e/admin",
        "/%",
        "/%4",
        "/%zz",
        "/%u0061dmin",
        "/public/%2e%2e/../x",
    ] {
        assert_eq!(get(&proxy, bad, "Host: a.test\r\n").status, 400, "{bad}");
    }
    assert_eq!(web.received().len(), 0);
}

#[test]
fn backends_get_paths_in_their_one_spelling() {
    let web = Web::saying("ok");
    let proxy = proxy_to(
        &web,
        &format!("\n[[route.rule]]\npath = '/public/*'\nstrip = '/public'\nto = 'http://{web}'\n"),
    );
    for (path, passed) in [
        ("/", "/"),
        ("//", "/"),
        ("/a//b", "/a/b"),
        ("/a/./b/", "/a/b/"),
        ("/a/../b", "/b"),
        ("/a/b/..", "/a/"),
        ("/%61%2d%7e", "/a-~"),
        ("/a%20b%c3%a4", "/a%20b%C3%A4"),
        ("/\u{e4}", "/%C3%A4"),
        ("/a\"<>^`{|}", "/a%22%3C%3E%5E%60%7B%7C%7D"),
        // Decoded once, not twice.
        ("/%2561dmin", "/%2561dmin"),
        ("/%252e%252e/x", "/%252e%252e/x"),
        ("/a;b=c/d", "/a;b=c/d"),
        ("/a?b=%0d%0a/../c//d", "/a?b=%0d%0a/../c//d"),
        ("/public/x", "/x"),
        ("/public", "/"),
        ("/public//x/../y", "/y"),
        ("/%70ublic;p/x", "/x"),
        ("/public/%2561", "/%2561"),
        ("http://a.test/a//b?c", "/a/b?c"),
    ] {
        assert_eq!(get(&proxy, path, "Host: a.test\r\n").status, 200, "{path}");
        let head = last(&web).head;
        assert_eq!(head.lines().next(), Some(&*format!("GET {passed} HTTP/1.1")), "{path}");
    }
}

#[test]
fn methods_that_are_not_for_proxies_are_refused() {
    let web = Web::saying("ok");
    let proxy = proxy_to(&web, "");
    let mut client = Asking::of(proxy.addr());
    for line in [
        "TRACE / HTTP/1.1",
        "TRACK / HTTP/1.1",
        "trace / HTTP/1.1",
        "CONNECT a.test:80 HTTP/1.1",
        "CONNECT / HTTP/1.1",
        "CONNECT http://a.test/ HTTP/1.1",
    ] {
        let answer = client.ask(&format!("{line}\r\nHost: a.test\r\nCookie: secret=1\r\n\r\n"));
        assert_eq!(answer.status, 405, "{line}");
        assert!(answer.field("allow").is_some_and(|allow| allow.contains("GET")), "{}", answer.head);
        assert!(!answer.text().contains("secret") && !answer.head.contains("secret"), "{}", answer.text());
    }
    assert_eq!(web.received().len(), 0);
    // What is no tunnel to us is none to those behind: the next is a request.
    assert_eq!(client.ask("GET /next HTTP/1.1\r\nHost: a.test\r\n\r\n").text(), "ok");
    assert!(last(&web).head.starts_with("GET /next "));
}

#[test]
fn answers_of_our_own_have_bodies_only_where_they_may() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = proxy_to(
        &dead,
        "\n[[route.rule]]\npath = '/fixed'\nanswer = { status = 200, body = 'fixed' }\n\
         [[route.rule]]\npath = '/error'\nanswer = 403\n\
         [[route.rule]]\npath = '/none'\nanswer = 204\n\
         [[route.rule]]\npath = '/same'\nanswer = 304\n\
         [[route.rule]]\npath = '/away'\nredirect = 'https://b.test{uri}'\n",
    );
    let mut client = Asking::of(proxy.addr());
    for method in ["HEAD", "GET"] {
        for (path, status) in [
            ("/fixed", 200),
            ("/error", 403),
            ("/none", 204),
            ("/same", 304),
            ("/away", 308),
            ("/dead", 502),
            ("/%00", 400),
        ] {
            let answer = client.ask(&format!("{method} {path} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
            assert_eq!(answer.status, status, "{method} {path}");
            assert!(!answer.text().contains(&dead.port().to_string()), "{}", answer.text());
            assert!(!answer.head.contains("127.0.0.1"), "{}", answer.head);
            if [204, 304].contains(&status) {
                assert_eq!(answer.field("content-length"), None, "{}", answer.head);
            }
        }
    }
    // Each of them was read whole, and none was longer.
    assert_eq!(client.rest(), b"");
}

#[test]
fn a_name_that_was_asked_for_by_tls_is_not_another_host() {
    let (a, b) = (Web::new(|_| ok("from a")), Web::new(|_| ok("from b")));
    let authority = Authority::of(&["a.test", "b.test", "x.wild.test", "y.wild.test"]);
    let proxy = Proxy::start(&format!(
        "{}[[route]]\nname = 'a'\nsni = ['a.test', '*.wild.test']\ntls = 'files'\nto = 'http://{a}'\n\
         [[route]]\nname = 'b'\nsni = ['b.test', 'y.wild.test']\ntls = 'files'\nto = 'http://{b}'\n",
        authority.top()
    ));
    let config = Arc::new(authority.config());
    for (sni, host, status, text) in [
        ("a.test", "a.test", 200, "from a"),
        ("a.test", "A.test.:443", 200, "from a"),
        ("b.test", "b.test", 200, "from b"),
        ("a.test", "x.wild.test", 200, "from a"),
        ("y.wild.test", "y.wild.test", 200, "from b"),
        ("a.test", "b.test", 421, ""),
        ("a.test", "B.TEST", 421, ""),
        ("a.test", "b.test.", 421, ""),
        ("a.test", "b.test:443", 421, ""),
        ("b.test", "a.test", 421, ""),
        ("x.wild.test", "y.wild.test", 421, ""),
        ("y.wild.test", "x.wild.test", 421, ""),
        ("a.test", "127.0.0.1", 421, ""),
        ("a.test", "[::1]", 421, ""),
        ("a.test", "other.test", 421, ""),
        ("a.test", "wild.test", 421, ""),
    ] {
        let before = (a.received().len(), b.received().len());
        let mut stream = shake(proxy.addr(), &config, sni).unwrap();
        // By both forms that name a host.
        for target in ["/", &format!("https://{host}/")] {
            let close = if target == "/" { "" } else { "Connection: close\r\n" };
            write!(stream, "GET {target} HTTP/1.1\r\nHost: {host}\r\n{close}\r\n").unwrap();
        }
        let mut answers = String::new();
        stream.read_to_string(&mut answers).unwrap();
        assert_eq!(answers.matches(&format!("HTTP/1.1 {status} ")).count(), 2, "{sni} {host}: {answers}");
        assert!(text.is_empty() || answers.matches(text).count() == 2, "{sni} {host}: {answers}");
        let new = (a.received().len() - before.0, b.received().len() - before.1);
        let expected = match text {
            "from a" => (2, 0),
            "from b" => (0, 2),
            _ => (0, 0),
        };
        assert_eq!(new, expected, "{sni} {host}");
    }
}
