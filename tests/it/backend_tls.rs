//! TLS with backends: of clients in clear and of clients whose own TLS ends here.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;

use crate::support::backend::Backend;
use crate::support::client::{connect, timed};
use crate::support::process::{Finished, finish};
use crate::support::proxy::Proxy;
use crate::support::secured::{self, CERTIFICATE, KEY, certify};
use crate::support::{Random, SOON, wait_for};

/// What a client of Redis says first.
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

/// The server's side of a connection with TLS.
type Secured = StreamOwned<ServerConnection, TcpStream>;

/// A route for Redis in clear to backends with TLS.
fn clear(to: &str, backend_tls: &str) -> String {
    format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\ntimeouts = {{ connect = '2s' }}\n\
         [[route]]\nname = 'cache'\nprotocol = 'redis'\nto = {to}\n{backend_tls}\n"
    )
}

fn to(addr: SocketAddr) -> String {
    format!("'tls://{addr}'")
}

/// A route for Redis in clear to `addr`, whose certificate is verified for `a.test` by its own file.
fn verified(addr: SocketAddr, folder: &Path) -> Proxy {
    let tls =
        format!("backend_tls = {{ verify = '{}', sni = 'a.test' }}", folder.join(CERTIFICATE).display());
    Proxy::start(&clear(&to(addr), &tls))
}

fn redis_cli(proxy: &Proxy, options: &[&str], words: &[&str]) -> Finished {
    let port = proxy.addr().port().to_string();
    let mut command = Command::new("redis-cli");
    command.args(["-h", "127.0.0.1", "-p", &port]).args(options).args(words);
    finish(&mut command, "redis-tools", "")
}

/// That Redis is reached, and answers.
fn assert_serves(proxy: &Proxy, options: &[&str]) {
    assert_eq!(redis_cli(proxy, options, &["set", "greeting", "hello"]).stdout, "OK\n");
    assert_eq!(redis_cli(proxy, options, &["get", "greeting"]).stdout, "hello\n");
}

/// That a client is turned away, for this reason.
fn assert_refused(proxy: &Proxy, reason: &str) {
    assert_refused_by(proxy, &[reason]);
}

/// The same for one of several.
fn assert_refused_by(proxy: &Proxy, reasons: &[&str]) {
    let mut client = connect(proxy.addr());
    let from = client.local_addr().unwrap();
    client.write_all(PING).unwrap();
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer);
    let line = proxy.access_line_of(from);
    assert!(reasons.iter().any(|reason| line["reason"] == *reason), "{line}");
    assert!(!answer.starts_with(b"+PONG"), "{}", answer.escape_ascii());
}

/// A folder with a certificate for `a.test`.
fn certified() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    certify(folder.path(), "a.test");
    folder
}

fn server_config(folder: &Path) -> Arc<ServerConfig> {
    let certificate = CertificateDer::from_pem_file(folder.join(CERTIFICATE)).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join(KEY)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

/// A backend with TLS, by the certificate in `folder`, that serves each connection by `serve`.
fn backend(folder: &Path, serve: impl Fn(Secured) + Send + Sync + 'static) -> Backend {
    let config = server_config(folder);
    Backend::new(move |stream| {
        serve(StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream));
    })
}

/// Sends back whatever comes, to the client's end, and takes its leave.
fn echo(mut stream: Secured) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => stream.write_all(&buffer[..n]).unwrap(),
            Err(_) => return,
        }
    }
    stream.conn.send_close_notify();
    let _ = stream.flush();
}

#[test]
fn clients_in_clear_reach_a_redis_that_speaks_only_tls() {
    let redis = secured::redis("a.test");
    let proxy = verified(redis.addr(), redis.folder());
    assert_serves(&proxy, &[]);
    let metrics = proxy.metrics();
    let handshakes = metrics.sum("portcullis_backend_handshakes_total", &[("route", "cache")]);
    assert_eq!(handshakes, 2.0);
}

#[test]
fn clients_whose_tls_ends_here_reach_it_in_another_one() {
    let redis = secured::redis("a.test");
    // Who it must be is the name that the client asks for.
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n[[route]]\nname = 'cache'\nsni = 'a.test'\n\
         tls = 'self-signed'\nto = 'tls://{}'\nbackend_tls = {{ verify = '{}' }}\n",
        redis.addr(),
        secured::certificate(&redis).display()
    ));
    assert_serves(&proxy, &["--tls", "--insecure", "--sni", "a.test"]);
}

#[test]
fn a_backend_with_another_name_or_another_authority_is_no_backend() {
    let redis = secured::redis("a.test");
    let file = secured::certificate(&redis);
    let named = |name: &str| format!("backend_tls = {{ verify = '{}', sni = '{name}' }}", file.display());
    let wrong = Proxy::start(&clear(&to(redis.addr()), &named("b.test")));
    assert_refused(&wrong, "backend_certificate");
    wrong.wait_metric(
        "portcullis_backend_handshakes_total",
        &[("route", "cache"), ("result", "certificate")],
        1.0,
    );
    // By its address, which is not in the certificate; and by the authorities of this system, which do not know it.
    let address = format!("backend_tls = {{ verify = '{}' }}", file.display());
    assert_refused(&Proxy::start(&clear(&to(redis.addr()), &address)), "backend_certificate");
    let system = "backend_tls = { sni = 'a.test' }";
    assert_refused(&Proxy::start(&clear(&to(redis.addr()), system)), "backend_certificate");
    assert_serves(&Proxy::start(&clear(&to(redis.addr()), "backend_tls = { verify = 'off' }")), &[]);
}

/// Else one client could have the backends passed over for all others.
#[test]
fn names_that_clients_choose_tell_nothing_against_a_backend() {
    let backends = [secured::redis("a.test"), secured::redis("a.test")];
    let authorities = tempfile::NamedTempFile::new().unwrap();
    let both = backends.each_ref().map(|redis| std::fs::read(secured::certificate(redis)).unwrap());
    std::fs::write(&authorities, both.concat()).unwrap();
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n[[route]]\nname = 'cache'\nsni = '*'\ntls = 'self-signed'\n\
         to = ['tls://{}', 'tls://{}']\neject = 2\nretry_budget = 'off'\nbackend_tls = {{ verify = '{}' }}\n",
        backends[0].addr(),
        backends[1].addr(),
        authorities.path().display()
    ));
    for _ in 0..8 {
        let refused = redis_cli(&proxy, &["--tls", "--insecure", "--sni", "b.test"], &["ping"]);
        assert!(!refused.stdout.contains("PONG"), "{refused:?}");
    }
    let failed = [("reason", "backend_certificate")];
    // Clients may come again by themselves.
    assert!(proxy.metrics().sum("portcullis_upstream_connect_failures_total", &failed) >= 16.0);
    for _ in &backends {
        let served = redis_cli(&proxy, &["--tls", "--insecure", "--sni", "a.test"], &["ping"]);
        assert_eq!(served.stdout, "PONG\n");
    }
    assert_eq!(proxy.metrics().sum("portcullis_upstream_ejections_total", &[("upstream", "cache")]), 0.0);
}

/// The pin of a certificate, by the commands that the documentation tells.
fn pin(certificate: &Path) -> String {
    let words = format!(
        "openssl x509 -in {} -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64",
        certificate.display()
    );
    finish(Command::new("sh").args(["-c", &words]), "openssl", "").stdout.trim().to_owned()
}

#[test]
fn a_pinned_key_is_enough_or_one_thing_more() {
    let redis = secured::redis("a.test");
    let file = secured::certificate(&redis);
    let other = certified();
    let (right, wrong) = (pin(&file), pin(&other.path().join(CERTIFICATE)));
    let proxy = |tls: &str| Proxy::start(&clear(&to(redis.addr()), &format!("backend_tls = {{ {tls} }}")));
    assert_serves(&proxy(&format!("verify = 'off', pins = ['{wrong}', '{right}']")), &[]);
    assert_refused(&proxy(&format!("verify = 'off', pins = '{wrong}'")), "backend_certificate");
    let verified = format!("verify = '{}', sni = 'a.test'", file.display());
    assert_serves(&proxy(&format!("{verified}, pins = '{right}'")), &[]);
    assert_refused(&proxy(&format!("{verified}, pins = '{wrong}'")), "backend_certificate");
    assert_refused(&proxy(&format!("pins = '{right}', sni = 'a.test'")), "backend_certificate");
}

#[test]
fn a_redis_that_wants_a_certificate_is_shown_one() {
    let own = certified();
    let redis = secured::redis_for("a.test", &own.path().join(CERTIFICATE));
    let of = |folder: &Path| {
        let file = |name: &str| folder.join(name).display().to_string();
        format!(", certificate = '{}', key = '{}'", file(CERTIFICATE), file(KEY))
    };
    let proxy = |more: &str| {
        let file = secured::certificate(&redis);
        let tls = format!("backend_tls = {{ verify = '{}', sni = 'a.test'{more} }}", file.display());
        Proxy::start(&clear(&to(redis.addr()), &tls))
    };
    assert_serves(&proxy(&of(own.path())), &[]);
    // A server of TLS 1.3 judges it once the handshake is over for the client.
    let other = certified();
    for more in [String::new(), of(other.path())] {
        // It closes with the client's words unread, which may cost it its own.
        assert_refused_by(&proxy(&more), &["alert", "reset"]);
    }
}

/// What came before the hello, or is no TLS, could be anybody's.
#[test]
fn a_backend_that_greets_in_clear_is_told_nothing_of_the_client() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&heard);
    let greeter = Backend::new(move |mut stream| {
        let _ = stream.write_all(b"+OK who are you?\r\n");
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        sink.lock().unwrap().push(all);
    });
    let proxy = Proxy::start(&clear(&to(greeter.addr()), "backend_tls = { verify = 'off' }"));
    assert_refused(&proxy, "backend_handshake");
    let results = [("route", "cache"), ("result", "injected")];
    proxy.wait_metric("portcullis_backend_handshakes_total", &results, 1.0);
    wait_for("the end of the connection", || heard.lock().unwrap().len() == 1);
    let heard = heard.lock().unwrap();
    assert!(!heard[0].windows(4).any(|bytes| bytes == b"PING"), "{}", heard[0].escape_ascii());
}

#[test]
fn a_backend_that_stalls_in_the_handshake_is_given_up() {
    let silent = Backend::new(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let config = clear(&to(silent.addr()), "backend_tls = { verify = 'off' }").replace("'2s'", "'300ms'");
    let proxy = Proxy::start(&config);
    let (took, ()) = timed(|| assert_refused(&proxy, "backend_handshake_timeout"));
    assert!(took >= Duration::from_millis(300) && took < SOON, "{took:?}");
}

/// The handshake is part of the attempt: one that fails leads to the next backend.
#[test]
fn where_one_backend_cannot_be_agreed_with_the_next_one_serves() {
    let folder = certified();
    let good = backend(folder.path(), echo);
    let silent = Backend::new(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let other = certified();
    let stranger = backend(other.path(), echo);
    let greeter = Backend::new(|mut stream| {
        let _ = stream.write_all(b"+OK\r\n");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let file = folder.path().join(CERTIFICATE);
    for bad in [&silent, &stranger, &greeter] {
        let backends = format!("['tls://{bad}', 'tls://{good}']");
        let tls =
            format!("backend_tls = {{ verify = '{}', sni = 'a.test' }}\nbalance = 'first'", file.display());
        let proxy = Proxy::start(&clear(&backends, &tls).replace("'2s'", "'500ms'"));
        let mut client = connect(proxy.addr());
        client.write_all(PING).unwrap();
        let mut answer = [0; PING.len()];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, PING);
    }
}

#[test]
fn the_proxy_header_goes_before_tls_in_clear() {
    let folder = certified();
    let config = server_config(folder.path());
    let backend = Backend::new(move |mut stream| {
        let mut header = Vec::new();
        while !header.ends_with(b"\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            header.push(byte[0]);
        }
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
        stream.write_all(&header).unwrap();
        echo(stream);
    });
    let tls = "backend_tls = { verify = 'off' }\nproxy_protocol = 'v1'";
    let proxy = Proxy::start(&clear(&to(backend.addr()), tls));
    let mut client = connect(proxy.addr());
    client.write_all(PING).unwrap();
    let (from, at) = (client.local_addr().unwrap(), proxy.addr());
    let expected = format!("PROXY TCP4 {} {} {} {}\r\n", from.ip(), at.ip(), from.port(), at.port());
    let mut answer = vec![0; expected.len() + PING.len()];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(
        answer.escape_ascii().to_string(),
        [expected.as_bytes(), PING].concat().escape_ascii().to_string()
    );
}

#[test]
fn what_a_backend_breaks_off_is_not_taken_for_whole() {
    let folder = certified();
    let rude = backend(folder.path(), |mut stream| {
        let _ = stream.read(&mut [0; 64]);
        stream.write_all(b"+half").unwrap();
        // The stream ends without the alert that announces it.
    });
    let proxy = verified(rude.addr(), folder.path());
    let mut client = connect(proxy.addr());
    let from = client.local_addr().unwrap();
    client.write_all(PING).unwrap();
    let error = client.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.access_line_of(from)["reason"], "truncated");

    let polite = backend(folder.path(), |mut stream| {
        let _ = stream.read(&mut [0; 64]);
        stream.write_all(b"+whole").unwrap();
        stream.conn.send_close_notify();
        let _ = stream.flush();
        let _ = stream.sock.read_to_end(&mut Vec::new());
    });
    let proxy = verified(polite.addr(), folder.path());
    let mut client = connect(proxy.addr());
    client.write_all(PING).unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"+whole");
}

/// Ten megabytes there and back at the same time, and an end that is passed on.
#[test]
fn streams_pass_in_both_directions_byte_for_byte() {
    let folder = certified();
    let echo = backend(folder.path(), echo);
    let proxy = verified(echo.addr(), folder.path());
    for seed in [1, 2] {
        let bytes = [PING, &Random::new(seed).bytes(10_000_000)].concat();
        let client = connect(proxy.addr());
        let mut reader = client.try_clone().unwrap();
        let (sent, received) = std::thread::scope(|scope| {
            let back = scope.spawn(move || {
                let mut all = Vec::new();
                reader.read_to_end(&mut all).unwrap();
                all
            });
            (&client).write_all(&bytes).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            (digest(&SHA256, &bytes), back.join().unwrap())
        });
        assert_eq!(received.len(), bytes.len());
        assert_eq!(digest(&SHA256, &received).as_ref(), sent.as_ref());
    }
    let route = ("route", "cache");
    proxy.wait_metric("portcullis_backend_handshakes_total", &[route, ("result", "full")], 1.0);
    proxy.wait_metric("portcullis_backend_handshakes_total", &[route, ("result", "resumed")], 1.0);
}

/// HTTP/2 within HTTP/1.1 would be neither.
#[test]
fn the_backend_is_offered_the_protocol_that_the_client_chose() {
    let folder = certified();
    // Speaks first: what it says may come with the end of the handshake.
    let backend = backend(folder.path(), |mut stream| {
        while stream.conn.is_handshaking() {
            if stream.conn.complete_io(&mut stream.sock).is_err() {
                return;
            }
        }
        let alpn = stream.conn.alpn_protocol().map_or(b"none".to_vec(), <[u8]>::to_vec);
        stream.write_all(&alpn).unwrap();
        echo(stream);
    });
    let file = |name: &str| -> PathBuf { folder.path().join(name) };
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n[[route]]\nsni = 'a.test'\nto = 'tls://{backend}'\nbackend_tls = {{ verify = '{}' }}\n\
         [route.tls]\ncertificates = {{ certificate = '{}', key = '{}' }}\nalpn = ['h2', 'http/1.1']\n",
        file(CERTIFICATE).display(),
        file(CERTIFICATE).display(),
        file(KEY).display()
    ));
    for (offered, chosen) in [(&["http/1.1", "h2"][..], "h2"), (&["http/1.1"], "http/1.1"), (&[], "none")] {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(file(CERTIFICATE)).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        let session = ClientConnection::new(Arc::new(config), "a.test".try_into().unwrap()).unwrap();
        let mut client = StreamOwned::new(session, connect(proxy.addr()));
        let mut answer = vec![0; chosen.len()];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer.escape_ascii().to_string(), chosen, "of {offered:?}");
    }
}
