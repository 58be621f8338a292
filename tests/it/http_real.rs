//! HTTP with the clients and servers that people use: curl, nghttp, h2load, Chromium; nginx, Node, aiohttp, gRPC, WebSocket.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::support::authority::Authority;
use crate::support::frames::{Frames, GOAWAY, HEADERS, PING, Seen, WHOLE, frame, head};
use crate::support::process::{Finished, finish};
use crate::support::programs::PlainNginx;
use crate::support::proxy::Proxy;
use crate::support::scripts::{Script, assert_ok};
use crate::support::web::{Asking, Web, ok};
use crate::support::{Random, SOON, UNLIMITED, until};

/// The packages of Debian.
const NGHTTP: &str = "nghttp2-client";

/// A proxy that ends TLS for `a.test`, of which `route` says more.
fn secured(authority: &Authority, route: &str) -> Proxy {
    Proxy::start(&format!(
        "{}{UNLIMITED}[[route]]\nname = 'a'\nsni = 'a.test'\ntls = 'files'\n{route}",
        authority.top()
    ))
}

/// A proxy in clear, by both versions.
fn clear(route: &str) -> Proxy {
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}[[route]]\nname = 'clear'\n\
         protocol = ['http', 'h2c']\n{route}"
    ))
}

/// Runs curl for a path of `a.test`, with TLS where there is an authority; what it says ends with status and version.
fn curl(proxy: SocketAddr, authority: Option<&Authority>, path: &str, options: &[&str]) -> Finished {
    let port = proxy.port();
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--show-error",
        "--max-time",
        "20",
        "--write-out",
        " %{http_code} %{http_version}",
    ]);
    command.args(["--resolve", &format!("a.test:{port}:{}", proxy.ip())]).args(options);
    let scheme = match authority {
        Some(authority) => {
            command.arg("--cacert").arg(authority.ca());
            "https"
        }
        None => "http",
    };
    finish(command.arg(format!("{scheme}://a.test:{port}{path}")), "curl", "")
}

/// What it printed, which it did without a complaint.
fn said(done: &Finished) -> &str {
    assert_eq!(done.code, Some(0), "{} {}", done.stdout, done.stderr);
    &done.stdout
}

/// How curl is told a version, and how it calls it.
const VERSIONS: [(&str, &str); 2] = [("--http1.1", "1.1"), ("--http2", "2")];

#[test]
fn curl_gets_and_posts_by_both_versions() {
    let authority = Authority::of(&["a.test"]);
    let server = Script::node();
    let proxy = secured(&authority, &format!("to = 'http://{server}'\n"));
    for (option, version) in VERSIONS {
        let ask = |path: &str, options: &[&str]| {
            curl(proxy.addr(), Some(&authority), path, &[&[option], options].concat())
        };
        let got = ask("/x?y=z", &[]);
        assert!(
            said(&got).contains("\"url\":\"/x?y=z\"") && got.stdout.ends_with(&format!(" 200 {version}")),
            "{got:?}"
        );
        let got = ask("/", &["--data", "12345"]);
        assert!(
            said(&got).contains("\"length\":5") && got.stdout.contains("\"content-length\":\"5\""),
            "{got:?}"
        );
        let got = ask("/", &["--head"]);
        assert!(
            said(&got).contains("\r\n\r\n") && got.stdout.ends_with(&format!(" 200 {version}")),
            "{got:?}"
        );
        let got = ask("/", &["-H", "Expect: 100-continue", "--data", "12345", "--verbose"]);
        assert!(said(&got).contains("\"length\":5"), "{got:?}");
        assert!(version == "2" || got.stderr.contains("HTTP/1.1 100 Continue"), "{got:?}");
        let got = ask("/trailers", &["--verbose"]);
        assert!(said(&got).starts_with("body 200"), "{got:?}");
        let got = ask("/trailers", &["--verbose", "-H", "TE: trailers"]);
        assert!(version == "1.1" || got.stderr.contains("< x-sum: 7"), "{got:?}");
        let got = ask("/hints", &["--verbose"]);
        assert!(said(&got).starts_with("hinted 200"), "{got:?}");
        assert!(got.stderr.contains(" 103 ") && got.stderr.contains("< link: </style.css>;"), "{got:?}");
    }
    let proxy = clear(&format!("to = 'http://{server}'\n"));
    let got = curl(proxy.addr(), None, "/", &["--http2-prior-knowledge"]);
    assert!(said(&got).contains("\"via\":\"2.0 ") && got.stdout.ends_with(" 200 2"), "{got:?}");
}

#[test]
fn large_bodies_pass_byte_for_byte() {
    let authority = Authority::of(&["a.test"]);
    let server = Script::echo();
    let proxy = secured(&authority, &format!("to = 'http://{server}'\n"));
    let dir = tempfile::tempdir().unwrap();
    let (sent, got) = (dir.path().join("sent"), dir.path().join("got"));
    let bytes = Random::new(1).bytes(5_000_003);
    std::fs::write(&sent, &bytes).unwrap();
    let (sent, out) = (sent.to_str().unwrap(), got.to_str().unwrap());
    let data = format!("@{sent}");
    let ways: [&[&str]; 4] = [
        &["--data-binary", &data, "-H", "Expect:"],
        &["--data-binary", &data, "-H", "Expect: 100-continue"],
        &["--data-binary", &data, "-H", "Transfer-Encoding: chunked"],
        &["--upload-file", sent],
    ];
    for (option, version) in VERSIONS {
        for way in ways {
            let options = [&[option, "--output", out], way].concat();
            let done = curl(proxy.addr(), Some(&authority), "/echo", &options);
            assert_eq!(said(&done), format!(" 200 {version}"), "{way:?}");
            assert!(std::fs::read(&got).unwrap() == bytes, "{option} {way:?}");
        }
    }
}

#[test]
fn files_are_had_in_ranges() {
    let authority = Authority::of(&["a.test"]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("digits"), "0123456789".repeat(100_000)).unwrap();
    let proxy = secured(&authority, &format!("files = {{ root = '{}' }}\n", dir.path().display()));
    for (option, version) in VERSIONS {
        let ask = |options: &[&str]| {
            curl(proxy.addr(), Some(&authority), "/digits", &[&[option], options].concat())
        };
        assert_eq!(said(&ask(&["--range", "12-18"])), format!("2345678 206 {version}"));
        assert_eq!(said(&ask(&["--range", "-3"])), format!("789 206 {version}"));
        let out = dir.path().join("got");
        assert_eq!(said(&ask(&["--output", out.to_str().unwrap()])), format!(" 200 {version}"));
        assert_eq!(std::fs::metadata(out).unwrap().len(), 1_000_000);
        assert_eq!(
            ask(&["--range", "2000000-"]).stdout.rsplit_once(' ').unwrap().0.rsplit_once(' ').unwrap().1,
            "416"
        );
    }
}

/// An nginx that says how it was asked, with files: by HTTP/1.1 and 2, in clear and with TLS.
fn nginx(authority: &Authority, root: &Path, kind: &str) -> PlainNginx {
    let pair = authority.certs().join("one.pem").display().to_string();
    PlainNginx::start("http", |addr| {
        format!(
            "server {{ listen {addr} {kind}; ssl_certificate {pair}; ssl_certificate_key {pair}; root {};\n\
             keepalive_requests 100; location = /asked {{ return 200 '$request_method $server_protocol $host'; }} }}",
            root.display()
        )
    })
}

#[test]
fn nginx_serves_by_every_scheme() {
    let authority = Authority::of(&["a.test"]);
    let dir = tempfile::tempdir().unwrap();
    let bytes = Random::new(2).bytes(3_000_001);
    std::fs::write(dir.path().join("large"), &bytes).unwrap();
    let schemes =
        [("http", "", "1.1"), ("https", "ssl", "1.1"), ("h2c", "http2", "2.0"), ("h2", "ssl http2", "2.0")];
    for (scheme, kind, version) in schemes {
        let nginx = nginx(&authority, dir.path(), kind);
        let verify = format!("backend_tls = {{ verify = '{}', sni = 'a.test' }}\n", authority.ca().display());
        let tls = if kind.contains("ssl") { &*verify } else { "" };
        let proxy = secured(&authority, &format!("to = '{scheme}://{}'\n{tls}", nginx.addr()));
        let out = dir.path().join("got");
        for (option, by) in VERSIONS {
            let ask = |path: &str, options: &[&str]| {
                curl(proxy.addr(), Some(&authority), path, &[&[option], options].concat())
            };
            assert_eq!(said(&ask("/asked", &[])), format!("GET HTTP/{version} a.test 200 {by}"), "{scheme}");
            assert!(said(&ask("/large", &["--head"])).contains("3000001"), "{scheme}");
            assert_eq!(said(&ask("/large", &["--output", out.to_str().unwrap()])), format!(" 200 {by}"));
            assert!(std::fs::read(&out).unwrap() == bytes, "{scheme} {option}");
        }
        // Its connections end after a hundred requests each; no client sees that.
        assert_all_succeed(&proxy, "/asked", &["-n", "3000", "-c", "4", "-m", "25"], scheme);
        let post = dir.path().join("post");
        std::fs::write(&post, "data").unwrap();
        let posting = ["-n", "500", "-c", "1", "-m", "1", "-d", post.to_str().unwrap()];
        assert_all_succeed(&proxy, "/asked", &posting, scheme);
    }
}

/// Lets h2load ask for a path of `a.test`.
fn assert_all_succeed(proxy: &Proxy, path: &str, options: &[&str], what: &str) {
    let mut command = Command::new("h2load");
    command.args(options).arg(format!("--connect-to={}", proxy.addr())).arg(format!("https://a.test{path}"));
    let done = finish(&mut command, NGHTTP, "");
    let count = options[1];
    let all = format!("status codes: {count} 2xx");
    assert!(done.code == Some(0) && done.stdout.contains(&all), "{what}: {} {}", done.stdout, done.stderr);
}

#[test]
fn many_streams_at_once_are_all_whole() {
    let authority = Authority::of(&["a.test"]);
    let server = Script::node();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("large"), Random::new(3).bytes(500_000)).unwrap();
    let files = format!(
        "[[route.rule]]\nname = 'f'\npath = '/large'\nfiles = {{ root = '{}' }}\n",
        dir.path().display()
    );
    let proxy = secured(&authority, &format!("to = 'http://{server}'\n{files}"));
    assert_all_succeed(&proxy, "/large", &["-n", "400", "-c", "2", "-m", "100"], "files");
    assert_all_succeed(&proxy, "/", &["-n", "2000", "-c", "10", "-m", "100"], "node");
    let nghttp = |options: &[&str], url: &str| {
        let mut command = Command::new("nghttp");
        finish(command.args(options).arg(url), NGHTTP, "")
    };
    let proxy = clear(&format!("to = 'http://{server}'\n{files}"));
    let url = format!("http://{}/large", proxy.addr());
    let done = nghttp(&["--null-out", "--stat", "--multiply=100"], &url);
    assert_eq!(done.stdout.matches(" 200 488K /large").count(), 100, "{}", done.stdout);
    let done = nghttp(&["--verbose"], &format!("http://{}/hints", proxy.addr()));
    let (before, after) = done.stdout.split_once(":status: 103").expect("hints");
    assert!(!before.contains(":status:") && after.contains("link: </style.css>"), "{}", done.stdout);
    assert!(after.contains(":status: 200") && after.contains("hinted"), "{}", done.stdout);
}

#[test]
fn grpc_passes_with_its_metadata_and_streams() {
    let authority = Authority::of(&["a.test"]);
    let server = Script::grpc();
    let proxy = secured(&authority, &format!("to = 'h2c://{server}'\n"));
    let (addr, ca) = (proxy.addr().to_string(), authority.ca());
    assert_ok(include_str!("../data/http/grpc_client.py"), &[&addr, "a.test", ca.to_str().unwrap()]);
}

#[test]
fn websockets_pass_in_clear_and_over_tls() {
    let authority = Authority::of(&["a.test"]);
    let server = Script::websocket();
    let to = format!("to = 'http://{server}'\n");
    let client = include_str!("../data/http/ws_client.py");
    let proxy = secured(&authority, &to);
    let ca = authority.ca();
    assert_ok(client, &[&proxy.addr().port().to_string(), "a.test", ca.to_str().unwrap()]);
    let proxy = clear(&to);
    assert_ok(client, &[&proxy.addr().port().to_string(), "a.test"]);
}

#[test]
fn names_of_other_routes_are_misdirected() {
    let authority = Authority::of(&["a.test", "b.test", "c.test"]);
    let proxy = Proxy::start(&format!(
        "{}[[route]]\nname = 'a'\nsni = ['a.test', 'c.test']\ntls = 'files'\nanswer = {{ status = 200, body = 'a' }}\n\
         [[route]]\nname = 'b'\nsni = 'b.test'\ntls = 'files'\nanswer = {{ status = 200, body = 'b' }}\n",
        authority.top()
    ));
    let port = proxy.addr().port();
    for (option, version) in VERSIONS {
        let ask = |host: &str| {
            let done = curl(proxy.addr(), Some(&authority), "/", &[option, "-H", &format!("Host: {host}")]);
            let status = said(&done).rsplit(' ').nth(1).unwrap().to_owned();
            assert!(done.stdout.ends_with(&format!(" {version}")), "{done:?}");
            (status, done.stdout.starts_with("a "))
        };
        for host in ["a.test", "A.test", "a.test:443", "c.test", &format!("c.test:{port}")] {
            assert_eq!(ask(host), ("200".into(), true), "{option} {host}");
        }
        // One that another route takes, and one that none does.
        for host in ["b.test", &format!("b.test:{port}"), "other.test", "127.0.0.1"] {
            assert_eq!(ask(host), ("421".into(), false), "{option} {host}");
        }
    }
}

#[test]
fn a_browser_loads_a_page_with_its_assets_and_opens_a_websocket() {
    let authority = Authority::of(&["a.test"]);
    let server = Script::echo();
    let proxy = secured(&authority, &format!("to = 'http://{server}'\n"));
    let dir = tempfile::tempdir().unwrap();
    let pair = authority.certs().join("one.pem");
    let spki = format!(
        "openssl x509 -in {} -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64",
        pair.display()
    );
    let spki = finish(Command::new("sh").args(["-c", &spki]), "openssl", "").stdout;
    let mut command = Command::new("chromium");
    command.args([
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--dump-dom",
    ]);
    command.args(["--host-resolver-rules=MAP a.test 127.0.0.1", "--virtual-time-budget=10000"]);
    command.arg(format!("--user-data-dir={}", dir.path().display()));
    command.arg(format!("--ignore-certificate-errors-spki-list={}", spki.trim_end()));
    let done =
        finish(command.arg(format!("https://a.test:{}/asset/page", proxy.addr().port())), "chromium", "");
    let outcome = "<p id=\"out\">50 assets by h2, socket says hello</p>";
    assert!(done.stdout.contains(outcome), "{} {}", done.stdout, done.stderr);
}

/// A client of WebSocket that shows its frames (RFC 6455 §5.2).
struct Socket(Asking);

impl Socket {
    fn open(addr: SocketAddr) -> Self {
        let mut asking = Asking::of(addr);
        let answer = asking.ask(
            "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        );
        assert_eq!(answer.status, 101, "{}", answer.head);
        assert_eq!(answer.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        Self(asking)
    }

    fn echoes(&mut self, text: &str) {
        let length = text.len() as u8;
        // Masked by zeroes.
        self.0.stream.write_all(&[&[0x81, 0x80 | length, 0, 0, 0, 0], text.as_bytes()].concat()).unwrap();
        let mut answer = vec![0; 2 + text.len()];
        self.0.stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [&[0x81, length], text.as_bytes()].concat());
    }
}

#[test]
fn reloads_break_no_connection() {
    let (web, server) = (Web::saying("hello"), Script::websocket());
    let config = |round: usize| {
        format!(
            "listen = ['127.0.0.1:0']\nadmin = '127.0.0.1:0'\n{UNLIMITED}\n[[route]]\nname = 'web'\nprotocol = 'http'\n\
             to = 'http://{web}'\nresponse_headers = {{ set = {{ x-round = '{round}' }} }}\n\
             [[route.rule]]\nname = 'ws'\nheader = {{ upgrade = '*' }}\nto = 'http://{server}'\n"
        )
    };
    let proxy = Proxy::start(&config(0));
    let ask = |client: &mut Asking| {
        let answer = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
        answer.field("x-round").unwrap().parse::<usize>().unwrap()
    };
    let mut clients: Vec<_> = (0..200).map(|_| Asking::of(proxy.addr())).collect();
    let mut sockets: Vec<_> = (0..50).map(|_| Socket::open(proxy.addr())).collect();
    assert!(clients.iter_mut().all(|client| ask(client) == 0));
    for round in 1..=5 {
        proxy.write(&config(round));
        proxy.process.signal(Signal::HUP);
        for client in &mut clients {
            let heard = ask(client);
            assert!(heard == round || heard == round - 1, "{heard} in round {round}");
        }
        until("the new configuration", SOON, || {
            proxy.logged("the new configuration serves").get(round - 1).cloned()
        });
        assert!(clients.iter_mut().all(|client| ask(client) == round), "round {round}");
        for (number, socket) in sockets.iter_mut().enumerate() {
            socket.echoes(&format!("{number} in round {round}"));
        }
    }
}

#[test]
fn a_drain_ends_idle_connections_and_finishes_downloads() {
    let text = "0123456789".repeat(3_000_000);
    let web =
        Web::new(move |request| if request.head.contains(" /large ") { ok(&text) } else { ok("small") });
    let mut proxy = clear(&format!("to = 'http://{web}'\n"));
    let mut idle = Asking::of(proxy.addr());
    assert_eq!(idle.ask("GET / HTTP/1.1\r\nHost: x.test\r\n\r\n").text(), "small");
    let mut two = Frames::to(proxy.addr());
    two.send(&frame(HEADERS, WHOLE, 1, &head("GET", "/")));
    assert_eq!(two.seen(1), Seen::Answer(200));
    let mut loading = Asking::of(proxy.addr());
    loading.stream.write_all(b"GET /large HTTP/1.1\r\nHost: x.test\r\n\r\n").unwrap();
    until("the download to begin", SOON, || loading.stream.peek(&mut [0]).ok());
    let mut streaming = Frames::to(proxy.addr());
    streaming.send(&frame(HEADERS, WHOLE, 1, &head("GET", "/large")));
    assert_eq!(streaming.next_of(HEADERS).unwrap().status(), 200);
    proxy.process.signal(Signal::TERM);
    assert_eq!(idle.stream.read(&mut [0]).unwrap(), 0, "the idle connection");
    assert_eq!(two.next_of(GOAWAY).unwrap().code(), 0);
    let ping = two.next_of(PING).unwrap();
    two.send(&frame(PING, 1, 0, &ping.payload));
    while two.next().is_some() {}
    assert_eq!(loading.answer(false).unwrap().body.len(), 30_000_000);
    let (mut length, mut done, mut goes) = (0, false, false);
    while !done {
        let got = streaming.next().expect("the whole of the answer");
        match got.kind {
            0 => {
                length += got.payload.len();
                done = got.flags & 1 != 0;
                let more = u32::try_from(got.payload.len()).unwrap();
                if more > 0 {
                    let more = more.to_be_bytes();
                    streaming.send(&[frame(8, 0, 0, &more), frame(8, 0, 1, &more)].concat());
                }
            }
            PING if got.flags == 0 => drop(streaming.send(&frame(PING, 1, 0, &got.payload))),
            GOAWAY => goes = true,
            _ => {}
        }
    }
    assert!(goes && length == 30_000_000, "{length} bytes");
    drop((loading, streaming));
    assert!(proxy.process.wait(SOON).success());
}
