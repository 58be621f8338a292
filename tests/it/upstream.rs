//! Backends: shared in turn, passed over when they refuse, given up on in time.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::support::backend::{Backend, UnixBackend};
use crate::support::client::{Outcome, exchange, probe, served, timed};
use crate::support::hello::to;
use crate::support::netns::{Host, with_hosts};
use crate::support::process::finish;
use crate::support::proxy::Proxy;
use crate::support::{UNLIMITED, wait_for};

const INTERNAL_ERROR: Outcome = Outcome::Alert(80);

fn proxy_to(to: &str, extra: &str) -> Proxy {
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}{extra}\n[[route]]\nname = 'r'\nsni = 'a.test'\nto = [{to}]\n"
    ))
}

/// An address that refuses: its port is held, and nobody listens there.
pub(crate) fn refusing() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, addr)
}

/// A listening socket whose queue is full: the kernel answers no further SYN.
pub(crate) fn black_hole() -> (TcpListener, Vec<Socket>, SocketAddr) {
    let (socket, addr) = refusing();
    socket.listen(0).unwrap();
    let fillers = (0..4).map(|_| {
        let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        filler.set_nonblocking(true).unwrap();
        // In progress, or for good: the queue fills either way.
        let _ = filler.connect(&addr.into());
        filler
    });
    let fillers = fillers.collect();
    let full = TcpStream::connect_timeout(&addr, Duration::from_millis(300));
    assert_eq!(full.map_err(|error| error.kind()).err(), Some(std::io::ErrorKind::TimedOut));
    (TcpListener::from(socket), fillers, addr)
}

#[test]
fn two_backends_take_turns() {
    let (one, two) = (Backend::tagged("one"), Backend::tagged("two"));
    let proxy = proxy_to(&format!("'{one}', '{two}'"), "");
    for _ in 0..40 {
        assert!(matches!(probe(proxy.addr(), &to("a.test")), Outcome::Served(_)));
    }
    assert_eq!((one.hits(), two.hits()), (20, 20));
    let connects = |backend: &Backend| {
        proxy.metrics().sum(
            "portcullis_upstream_connects_total",
            &[("upstream", "r"), ("backend", &backend.to_string())],
        )
    };
    assert!((connects(&one) - 20.0).abs() < 0.5 && (connects(&two) - 20.0).abs() < 0.5);
    let line = proxy.access_line("one", |line| line["backend"] == one.to_string());
    assert!(line["connect_ms"].as_f64().is_some(), "{line}");
}

#[test]
fn a_backend_that_refuses_is_passed_over() {
    let (_held, refusing) = refusing();
    let good = Backend::tagged("good");
    let proxy = proxy_to(&format!("'{refusing}', '{good}'"), "");
    for _ in 0..30 {
        let (took, outcome) = timed(|| probe(proxy.addr(), &to("a.test")));
        assert_eq!(outcome, served("good"));
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    assert_eq!(good.hits(), 30);
    let failures = proxy.metrics().sum(
        "portcullis_upstream_connect_failures_total",
        &[("upstream", "r"), ("backend", &refusing.to_string()), ("reason", "refused")],
    );
    assert!(failures >= 1.0, "{failures}");
}

#[test]
fn without_any_backend_clients_are_told_in_their_protocol() {
    let (_held, refusing) = refusing();
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n[[route]]\nname = 'r'\nsni = 'a.test'\nto = '{refusing}'\n\
         [[route]]\nprotocol = 'ssh'\nto = '{refusing}'\n"
    ));
    assert_eq!(probe(proxy.addr(), &to("a.test")), INTERNAL_ERROR);
    let told = exchange(proxy.addr(), &[b"SSH-2.0-x\r\n"]).bytes;
    assert!(told.starts_with(b"SSH-2.0-") && told.windows(10).any(|part| part == b"no backend"), "{told:?}");
    let line = proxy.access_line("refused", |line| line["sni"] == "a.test");
    assert_eq!((&line["cause"], &line["stage"]), (&"upstream".into(), &"connect".into()));
    assert_eq!((&line["reason"], &line["route"]), (&"refused".into(), &"r".into()));
}

/// What curl says of a page of `proxy`, its exit code first.
fn curl_says(proxy: &Proxy, options: &[&str]) -> (Option<i32>, String, String) {
    let url = format!("http://{}/", proxy.addr());
    let mut command = Command::new("curl");
    let page = finish(
        command.args(["--silent", "--verbose", "--max-time", "10"]).args(options).arg(url),
        "curl",
        "",
    );
    (page.code, page.stdout, page.stderr)
}

#[test]
fn without_any_backend_clients_of_http_are_told_in_their_version_of_it() {
    let (_held, refusing) = refusing();
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n[[route]]\nname = 'web'\nprotocol = ['http', 'h2c']\nto = '{refusing}'\nproxy_protocol = 'v2'\n"
    ));
    let status = "< HTTP/1.1 503 Service Unavailable";
    let (code, body, said) = curl_says(&proxy, &[]);
    assert_eq!((code, body.as_str()), (Some(0), "no backend can be reached\n"), "{said}");
    assert!(said.contains(status) && said.contains("< Connection: close"), "{said}");
    let (code, body, said) = curl_says(&proxy, &["--head"]);
    assert_eq!((code, body.lines().count()), (Some(0), 5), "{body}");
    assert!(said.contains(status) && !said.contains("Excess"), "{said}");
    // An upload is read to some length, lest the answer be lost to a reset.
    let dir = tempfile::tempdir().unwrap();
    let upload = dir.path().join("upload");
    std::fs::write(&upload, vec![b'u'; 200_000]).unwrap();
    let (code, body, said) = curl_says(&proxy, &["--upload-file", upload.to_str().unwrap()]);
    assert_eq!((code, body.as_str()), (Some(0), "no backend can be reached\n"), "{said}");
    let (code, body, said) = curl_says(&proxy, &["--http2-prior-knowledge"]);
    // CURLE_HTTP2: of the protocol, and not a stream that broke off (CURLE_PARTIAL_FILE).
    assert_eq!((code, body.as_str()), (Some(16), ""), "{said}");
    assert!(said.contains("GOAWAY, error=0, last_stream=0"), "{said}");
    wait_for("their lines", || proxy.access_log().len() == 4);
    for line in proxy.access_log() {
        let http = line["protocol"] == "http" || line["protocol"] == "h2c";
        assert!(http && line["route"] == "web", "{line}");
        assert_eq!((&line["stage"], &line["reason"]), (&"connect".into(), &"refused".into()), "{line}");
        assert!(line["bytes_out"].as_u64().unwrap() >= 26, "{line}");
    }
}

#[test]
fn a_unix_socket_is_a_backend() {
    let dir = tempfile::tempdir().unwrap();
    let backend = UnixBackend::tagged(&dir.path().join("backend.sock"), "unix");
    let proxy = proxy_to(&format!("'{}'", backend.to()), "");
    for _ in 0..5 {
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("unix"));
    }
    assert_eq!(backend.hits(), 5);
    let absent = proxy_to(&format!("'unix:{}'", dir.path().join("absent.sock").display()), "");
    assert_eq!(probe(absent.addr(), &to("a.test")), INTERNAL_ERROR);
}

#[test]
fn a_black_hole_is_given_up_on_in_time() {
    let (_listener, _fillers, hole) = black_hole();
    let proxy = proxy_to(&format!("'{hole}'"), "timeouts = { connect = '500ms' }");
    let (took, outcome) = timed(|| probe(proxy.addr(), &to("a.test")));
    assert_eq!(outcome, INTERNAL_ERROR);
    assert!(took > Duration::from_millis(400) && took < Duration::from_millis(2500), "{took:?}");
    let line = proxy.access_line("timeout", |line| line["sni"] == "a.test");
    assert_eq!(
        (&line["cause"], &line["stage"], &line["reason"]),
        (&"upstream_timeout".into(), &"connect".into(), &"timeout".into())
    );
    let labels = [("upstream", "r"), ("reason", "timeout")];
    assert!(proxy.metrics().sum("portcullis_upstream_connect_failures_total", &labels) >= 1.0);
}

#[test]
fn behind_a_black_hole_the_next_backend_serves() {
    let (_listener, _fillers, hole) = black_hole();
    let good = Backend::tagged("good");
    // Shorter than the clock's tick, and longer.
    for limit in ["20ms", "300ms"] {
        let settings = format!("timeouts = {{ connect = '{limit}' }}");
        let proxy = proxy_to(&format!("'{hole}', '{good}'"), &settings);
        for _ in 0..4 {
            let (took, outcome) = timed(|| probe(proxy.addr(), &to("a.test")));
            assert_eq!(outcome, served("good"), "{limit}");
            assert!(took < Duration::from_millis(1500), "{limit}: {took:?}");
        }
    }
}

/// Where nobody listens and the kernel chooses the very port for the proxy's end, that end meets itself.
#[test]
fn a_connection_to_itself_is_none_at_whatever_address() {
    with_hosts(|| {
        let host = Host::new();
        host.execute("ip address add 10.9.9.9/32 dev lo", "");
        // Four ports to choose from: one time in a few it is the one.
        let range = || std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40003");
        host.run(range).expect("a writable /proc/sys/net");
        host.run(|| {
            for addr in ["127.0.0.1", "127.0.0.2", "10.9.9.9"] {
                let proxy = Proxy::start(&format!(
                    "listen = '127.0.0.1:2443'\n{UNLIMITED}[[route]]\nsni = 'a.test'\nto = '{addr}:40000'\n"
                ));
                for _ in 0..20 {
                    assert_eq!(probe(proxy.addr(), &to("a.test")), INTERNAL_ERROR, "{addr}");
                }
            }
        });
    });
}

#[test]
fn a_client_that_gives_up_while_the_proxy_connects_leaves_nothing_behind() {
    let (_listener, _fillers, hole) = black_hole();
    let mut proxy = proxy_to(&format!("'{hole}'"), "timeouts = { connect = '1s' }");
    let sockets = proxy.process.sockets();
    for _ in 0..20 {
        let mut stream = crate::support::client::connect(proxy.addr());
        stream.write_all(&to("a.test")).unwrap();
        crate::support::client::reset(stream);
    }
    wait_for("sockets to be given back", || {
        proxy.process.sockets() <= sockets
            && proxy.metrics().sum("portcullis_connections_active", &[]).abs() < 0.5
    });
    proxy.assert_sound();
}

/// Nagle's algorithm (RFC 896) keeps a small segment back until the one before it is acknowledged. A proxy that
/// delays its acknowledgements adds 40 ms to such an answer.
#[test]
fn an_answer_in_small_pieces_is_not_delayed() {
    let hello = to("a.test");
    let len = hello.len();
    let backend = Backend::new(move |mut stream| {
        stream.set_nodelay(false).unwrap();
        stream.read_exact(&mut vec![0; len]).unwrap();
        stream.write_all(b"tag:in ").unwrap();
        stream.write_all(b"pieces\n").unwrap();
        // Until the client closes.
        let _ = stream.read(&mut [0]);
    });
    let proxy =
        Proxy::start(&format!("listen = '127.0.0.1:0'\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n"));
    let mut times: Vec<Duration> = (0..11)
        .map(|_| {
            let (took, outcome) = timed(|| probe(proxy.addr(), &hello));
            assert_eq!(outcome, served("in pieces"));
            took
        })
        .collect();
    times.sort();
    // Linux delays acknowledgements by 40 ms at least.
    assert!(times[5] < Duration::from_millis(30), "{times:?}");
}
