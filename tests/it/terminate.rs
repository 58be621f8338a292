//! TLS that ends here: real clients speak it, real servers behind do not, and every byte arrives; versions, suites, groups and
//! protocols are those of the policy.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::support::authority::{Authority, Key, converse, openssl, shake};
use crate::support::backend::Backend;
use crate::support::client::connect;
use crate::support::process::{Finished, finish};
use crate::support::programs::curl;
use crate::support::proxy::Proxy;
use crate::support::servers::{Mosquitto, Postgres, Redis, Web};
use crate::support::{Random, UNLIMITED, in_parallel};

/// A proxy for one name with what its `tls` says.
fn proxy_with(authority: &Authority, tls: &str, to: impl std::fmt::Display) -> Proxy {
    let top = authority.top();
    Proxy::start(&format!("{top}{UNLIMITED}[[route]]\nsni = 'a.test'\ntls = {tls}\nto = '{to}'\n"))
}

fn answered(done: &Finished) -> bool {
    done.stdout.contains("tag:") && done.stdout.contains("hello")
}

#[test]
fn redis_is_served_in_tls_with_a_name_and_without() {
    let (authority, server) = (Authority::of(&["redis.test"]), Redis::start());
    let proxy = Proxy::start(&format!(
        "{}[[route]]\nsni = ['redis.test', 'none']\nprotocol = 'redis'\ntls = 'files'\nto = '{}'\n",
        authority.top(),
        server.addr()
    ));
    let port = proxy.addr().port().to_string();
    let ca = authority.ca().display().to_string();
    let say = |name: &[&str], words: &[&str]| {
        let mut command = Command::new("redis-cli");
        command.args(["-h", "127.0.0.1", "-p", &port, "--tls", "--cacert", &ca]).args(name).args(words);
        finish(&mut command, "redis-tools", "")
    };
    let set = say(&["--sni", "redis.test"], &["set", "color", "blue"]);
    assert_eq!(set.stdout.trim(), "OK", "{}", set.stderr);
    assert_eq!(say(&[], &["get", "color"]).stdout.trim(), "blue", "without a name");
    let line = proxy.access_line("redis", |line| line["sni"] == "redis.test");
    assert_eq!((&line["action"], &line["tls_version"]), (&"terminate".into(), &"1.3".into()));

    // Many values of a megabyte in a row, without waiting for an answer.
    const VALUES: usize = 12;
    const LEN: usize = 1_000_000;
    let values: Vec<_> = (0..VALUES).map(|seed| Random::new(seed as u64).bytes(LEN)).collect();
    let mut client = shake(proxy.addr(), &Arc::new(authority.config()), "redis.test").unwrap();
    for (number, value) in values.iter().enumerate() {
        let head = format!("*3\r\n$3\r\nSET\r\n$3\r\nk{number:02}\r\n${LEN}\r\n");
        client.write_all(&[head.as_bytes(), value, b"\r\n"].concat()).unwrap();
    }
    let gets: String =
        (0..VALUES).map(|number| format!("*2\r\n$3\r\nGET\r\n$3\r\nk{number:02}\r\n")).collect();
    client.write_all(gets.as_bytes()).unwrap();
    let mut reader = BufReader::new(client);
    let mut line = String::new();
    for _ in 0..VALUES {
        line.clear();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, "+OK\r\n");
    }
    for value in &values {
        line.clear();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, format!("${LEN}\r\n"));
        let mut got = vec![0; LEN + 2];
        reader.read_exact(&mut got).unwrap();
        assert!(got[..LEN] == *value && got.ends_with(b"\r\n"), "other bytes");
    }
}

#[test]
fn postgres_in_clear_is_served_in_tls() {
    let (authority, server) = (Authority::of(&["db.test"]), Postgres::start());
    let proxy = Proxy::start(&format!(
        "{}[[route]]\nsni = 'db.test'\nprotocol = 'postgres'\ntls = 'files'\nto = '{}'\n",
        authority.top(),
        server.addr()
    ));
    let psql = |more: &str, query: &str, input: &str| {
        let info = format!(
            "host=db.test hostaddr=127.0.0.1 port={} user=postgres dbname=postgres connect_timeout=10 {more} \
             sslrootcert={}",
            proxy.addr().port(),
            authority.ca().display()
        );
        let mut command = Command::new("psql");
        command.args([&info, "-XAtqc", query]).env("HOME", "/nonexistent");
        finish(&mut command, "postgresql-client", input)
    };
    let verified = |query: &str, input: &str| psql("sslmode=verify-full", query, input);
    let inside = verified("select ssl from pg_stat_ssl where pid = pg_backend_pid()", "");
    assert_eq!(inside.stdout.trim(), "f", "the server speaks none: {}", inside.stderr);
    for version in ["TLSv1.2", "TLSv1.3"] {
        let more = format!(
            "sslmode=verify-full ssl_min_protocol_version={version} ssl_max_protocol_version={version}"
        );
        assert_eq!(psql(&more, "select 40 + 2", "").stdout.trim(), "42", "{version}");
    }
    let clear = psql("sslmode=disable", "select 1", "");
    assert!(clear.stderr.contains("TLS is required"), "{}", clear.stderr);

    let bytes = Random::new(7).bytes(5_000_000);
    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in &bytes {
        hex.push_str(&format!("{byte:02x}"));
    }
    let stored = verified("create table t (b bytea)", "");
    assert_eq!(stored.code, Some(0), "{}", stored.stderr);
    let stored = verified("copy t from stdin", &format!("\\\\x{hex}\n"));
    assert_eq!(stored.code, Some(0), "{}", stored.stderr);
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
    let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(verified("select encode(sha256(b), 'hex') from t", "").stdout.trim(), digest);
    let read = verified("select encode(b, 'hex') from t", "");
    assert!(read.stdout.trim() == hex || read.stdout.replace('\n', "") == hex, "other bytes came back");
    let line = proxy.access_line("psql", |line| line["sni"] == "db.test" && line["action"] == "terminate");
    assert_eq!(line["protocol"], "postgres");
}

#[test]
fn mosquitto_and_nginx_are_served_in_tls() {
    let (authority, broker, web) = (Authority::new(), Mosquitto::start(), Web::start());
    authority.server("mqtt", &["localhost"], Key::Ecdsa);
    authority.server("web", &["*.web.test"], Key::Rsa);
    let proxy = Proxy::start(&format!(
        "{}[[route]]\nsni = 'localhost'\nprotocol = 'mqtt'\ntls = 'files'\nto = '{}'\n\
         [[route]]\nsni = '*.web.test'\ntls = 'files'\nto = '{}'\n",
        authority.top(),
        broker.addr(),
        web.addr()
    ));
    let (port, ca) = (proxy.addr().port().to_string(), authority.ca().display().to_string());
    let mosquitto = |program: &str, words: &[&str]| {
        let mut command = Command::new(program);
        command.args(["-h", "localhost", "-p", &port, "--cafile", &ca, "-t", "t", "-q", "1"]);
        finish(command.args(words), "mosquitto-clients", "")
    };
    let published = mosquitto("mosquitto_pub", &["-r", "-m", "kept"]);
    assert_eq!(published.code, Some(0), "{}", published.stderr);
    assert_eq!(mosquitto("mosquitto_sub", &["-C", "1", "-W", "10"]).stdout.trim(), "kept");
    let page = curl("a.web.test", proxy.addr(), &authority.ca(), &["--http1.1"]);
    assert_eq!(page.stdout, format!("port {}", web.addr().port()), "{}", page.stderr);
}

/// Both directions at once by one thread that never waits for one of them alone.
const EXCHANGE: &str = "
import hashlib, random, select, socket, ssl, sys
host, port, ca, name, size, version = sys.argv[1:]
size = int(size)
context = ssl.create_default_context(cafile=ca)
context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
s = context.wrap_socket(socket.create_connection((host, int(port)), 20), server_hostname=name)
tag = b''
while not tag.endswith(b'\\n'):
    tag += s.recv(1)
data = random.Random(1).randbytes(size)
s.setblocking(False)
sent, received, digest = 0, 0, hashlib.sha256()
while received < size:
    want = [s] if sent < size else []
    if not s.pending():
        select.select([s], want, [], 20)
    try:
        while True:
            part = s.recv(1 << 18)
            if not part:
                sys.exit('ended after %d' % received)
            received += len(part)
            digest.update(part)
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
        pass
    try:
        while sent < size:
            sent += s.send(data[sent:sent + (1 << 16)])
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
        pass
s.setblocking(True)
s.unwrap()
print(version, digest.hexdigest() == hashlib.sha256(data).hexdigest())
";

#[test]
fn fifty_megabytes_go_both_ways_at_once() {
    let (authority, backend) = (Authority::of(&["a.test"]), Backend::tagged("echo"));
    let proxy = proxy_with(&authority, "'files'", &backend);
    for version in ["TLSv1_2", "TLSv1_3"] {
        let (port, ca) = (proxy.addr().port().to_string(), authority.ca().display().to_string());
        let mut command = Command::new("python3");
        command.args(["-c", EXCHANGE, "127.0.0.1", &port, &ca, "a.test", "50000000", version]);
        let done = finish(&mut command, "python3", "");
        assert_eq!(done.stdout.trim(), format!("{version} True"), "{}", done.stderr);
    }
    proxy
        .access_line("both", |line| line["bytes_in"].as_u64() >= Some(50_000_000) && line["cause"] == "done");
}

#[test]
fn every_suite_of_both_versions_is_spoken() {
    let (authority, backend) = (Authority::new(), Backend::of_lines("a"));
    authority.server("ecdsa", &["a.test"], Key::Ecdsa);
    authority.server("rsa", &["a.test"], Key::Rsa);
    let proxy = proxy_with(&authority, "'files'", &backend);
    let old = ["ECDSA-AES128-GCM-SHA256", "RSA-AES128-GCM-SHA256", "ECDSA-AES256-GCM-SHA384"];
    let old =
        old.into_iter().chain(["RSA-AES256-GCM-SHA384", "ECDSA-CHACHA20-POLY1305", "RSA-CHACHA20-POLY1305"]);
    let old = old.map(|suite| ("-tls1_2", "-cipher", format!("ECDHE-{suite}")));
    let new = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];
    let new = new.map(|suite| ("-tls1_3", "-ciphersuites", suite.to_owned()));
    for (version, option, suite) in old.chain(new) {
        let done = openssl(proxy.addr(), Some("a.test"), &authority.ca(), &[version, option, &suite]);
        assert!(
            done.stdout.contains(&format!("Cipher is {suite}")),
            "{suite}: {}{}",
            done.stdout,
            done.stderr
        );
        assert!(answered(&done) && done.code == Some(0), "{suite}: {}{}", done.stdout, done.stderr);
        // OpenSSL has names of its own for those of TLS 1.2.
        let plain =
            |name: &str| name.replace("_WITH_", "_").replace(['_', '-'], "").replace("TLSECDHE", "ECDHE");
        let line = proxy.access_line(&suite, |line| {
            let logged = plain(line["tls_cipher"].as_str().unwrap_or_default());
            logged.trim_end_matches("SHA256") == plain(&suite).trim_end_matches("SHA256")
        });
        assert_eq!(line["tls_version"], if version == "-tls1_2" { "1.2" } else { "1.3" });
    }
    // What the guideline does not have.
    for suite in ["ECDHE-RSA-AES128-SHA", "AES128-GCM-SHA256", "DHE-RSA-AES128-GCM-SHA256"] {
        let done = openssl(proxy.addr(), Some("a.test"), &authority.ca(), &["-tls1_2", "-cipher", suite]);
        assert!(done.stderr.contains("alert handshake failure"), "{suite}: {}", done.stderr);
    }
}

#[test]
fn the_certificate_is_one_that_the_client_can_verify() {
    let (authority, backend) = (Authority::new(), Backend::of_lines("a"));
    authority.server("ecdsa", &["a.test"], Key::Ecdsa);
    authority.server("rsa", &["a.test"], Key::Rsa);
    let proxy = proxy_with(&authority, "'files'", &backend);
    let table = [
        ("-tls1_3", "ECDSA+SHA256:RSA-PSS+SHA256", "ECDSA"),
        ("-tls1_3", "RSA-PSS+SHA256", "RSA-PSS"),
        ("-tls1_2", "ECDSA+SHA256:RSA+SHA256", "ECDSA"),
        ("-tls1_2", "RSA+SHA256", "RSA"),
    ];
    for (version, schemes, kind) in table {
        let done = openssl(proxy.addr(), Some("a.test"), &authority.ca(), &[version, "-sigalgs", schemes]);
        let expected = format!("Peer signature type: {kind}\n");
        assert!(
            done.stdout.contains(&expected) && answered(&done),
            "{schemes}: {}{}",
            done.stdout,
            done.stderr
        );
    }
}

/// What a client is told by the alert of this number.
fn refused(proxy: &Proxy, ca: &Path, options: &[&str], number: u8) {
    let done = openssl(proxy.addr(), Some("a.test"), ca, options);
    assert!(done.stderr.contains(&format!("SSL alert number {number}")), "{options:?}: {}", done.stderr);
    assert!(!answered(&done), "{options:?}");
}

fn accepted(proxy: &Proxy, ca: &Path, options: &[&str], said: &str) {
    let done = openssl(proxy.addr(), Some("a.test"), ca, options);
    assert!(answered(&done) && done.code == Some(0), "{options:?}: {}{}", done.stdout, done.stderr);
    assert!(done.stdout.contains(said), "{options:?}: no {said}: {}", done.stdout);
}

#[test]
fn the_rules_of_a_policy_have_their_effect() {
    let (authority, backend) = (Authority::of(&["a.test"]), Backend::of_lines("a"));
    let ca = authority.ca();
    for tls in ["{ policy = 'modern' }", "{ min_version = '1.3' }"] {
        let proxy = proxy_with(&authority, tls, &backend);
        refused(&proxy, &ca, &["-tls1_2"], 70);
        accepted(&proxy, &ca, &["-tls1_3"], "New, TLSv1.3");
        let line = proxy.access_line("the old one", |line| line["reason"] == "handshake_incompatible");
        assert_eq!((&line["stage"], &line["cause"]), (&"handshake".into(), &"client".into()));
    }
    let suites = "{ cipher_suites = ['TLS_AES_256_GCM_SHA384', 'TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384'] }";
    let proxy = proxy_with(&authority, suites, &backend);
    accepted(&proxy, &ca, &["-tls1_3"], "Cipher is TLS_AES_256_GCM_SHA384");
    accepted(&proxy, &ca, &["-tls1_2"], "Cipher is ECDHE-ECDSA-AES256-GCM-SHA384");
    refused(&proxy, &ca, &["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"], 40);
    refused(&proxy, &ca, &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], 40);
    let proxy = proxy_with(&authority, "{ groups = ['X25519MLKEM768', 'secp384r1'] }", &backend);
    for version in ["-tls1_2", "-tls1_3"] {
        accepted(&proxy, &ca, &[version], "384 bits");
        refused(&proxy, &ca, &[version, "-groups", "X25519"], 40);
    }
    let mut stream = shake(proxy.addr(), &Arc::new(authority.config()), "a.test").unwrap();
    let group = stream.conn.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(converse(&mut stream, "hello\n").unwrap(), "tag:a\nhello\n");
    drop(stream);
    proxy.access_line("the group", |line| line["tls_group"] == "X25519MLKEM768");
}

/// T8: who offers protocols of which there is none here goes without (ALPACA); nothing is guessed.
#[test]
fn protocols_are_agreed_on_or_refused() {
    let (authority, backend) = (Authority::of(&["a.test"]), Backend::of_lines("a"));
    let ca = authority.ca();
    let proxy = proxy_with(&authority, "{ alpn = ['h2', 'http/1.1'] }", &backend);
    let silent = proxy_with(&authority, "'files'", &backend);
    for version in ["-tls1_2", "-tls1_3"] {
        accepted(&proxy, &ca, &[version], "No ALPN negotiated");
        accepted(&proxy, &ca, &[version, "-alpn", "http/1.1"], "ALPN protocol: http/1.1");
        // The order is that of the server.
        accepted(&proxy, &ca, &[version, "-alpn", "smtp,http/1.1,h2"], "ALPN protocol: h2");
        for wrong in ["smtp", "acme-tls/1", "http/1.0,HTTP/1.1"] {
            refused(&proxy, &ca, &[version, "-alpn", wrong], 120);
        }
        accepted(&silent, &ca, &[version, "-alpn", "smtp,h2"], "No ALPN negotiated");
    }
    let line = proxy.access_line("none in common", |line| line["reason"] == "no_application_protocol");
    assert_eq!(line["cause"], "client");
    // The names of the route's protocol are known without being written.
    let proxy = Proxy::start(&format!(
        "{}[[route]]\nsni = 'a.test'\nprotocol = 'postgres'\ntls = 'files'\nto = '{backend}'\n",
        authority.top()
    ));
    refused(&proxy, &ca, &["-alpn", "h2"], 120);
    let done = openssl(proxy.addr(), Some("a.test"), &ca, &["-alpn", "postgresql"]);
    assert!(done.stdout.contains("ALPN protocol: postgresql"), "{}{}", done.stdout, done.stderr);
}

#[test]
fn certificates_of_an_authority_of_its_own_serve_while_trying_things_out() {
    let backend = Backend::of_lines("a");
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nstate = '{}'\n[[route]]\nsni = ['a.test', '*.a.test', 'none']\ntls = 'self-signed'\n\
         to = '{backend}'\n",
        state.path().display()
    ));
    let ca = find(state.path(), "ca.pem");
    for name in ["a.test", "b.a.test"] {
        let done = openssl(proxy.addr(), Some(name), &ca, &[]);
        assert!(answered(&done) && done.stdout.contains("Verification: OK"), "{name}: {}", done.stderr);
    }
    assert!(answered(&openssl(proxy.addr(), None, &ca, &[])), "without a name");
}

/// The file of this name, in the folder or below.
fn find(folder: &Path, name: &str) -> std::path::PathBuf {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().is_some_and(|own| own == name) {
                return path;
            }
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    panic!("no {name} below {}", folder.display());
}

#[test]
fn a_backend_that_speaks_first_is_heard_and_many_are_served_at_once() {
    let (authority, backend) = (Authority::of(&["a.test"]), Backend::tagged("first"));
    let proxy = proxy_with(&authority, "'files'", &backend);
    let config = Arc::new(authority.config());
    in_parallel(8, 200, |number| {
        let mut stream = shake(proxy.addr(), &config, "a.test").unwrap();
        let mut greeting = [0; 10];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"tag:first\n");
        let said = Random::new(number as u64).bytes(1 + number * 331);
        stream.write_all(&said).unwrap();
        stream.conn.send_close_notify();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        assert!(heard == said, "other bytes");
    });
}

/// Where no backend is, the client of TLS is not left to guess: its stream ends, and not as if it were whole.
#[test]
fn without_a_backend_the_connection_ends() {
    let authority = Authority::of(&["a.test"]);
    let proxy = proxy_with(&authority, "'files'", "127.0.0.1:1");
    let mut stream = shake(proxy.addr(), &Arc::new(authority.config()), "a.test").unwrap();
    let mut heard = Vec::new();
    let end = stream.read_to_end(&mut heard);
    assert!(heard.is_empty(), "{heard:?} {end:?}");
    let line = proxy.access_line("no backend", |line| line["action"] == "terminate");
    assert_eq!((&line["stage"], &line["cause"]), (&"connect".into(), &"upstream".into()));
    // What is no TLS is none here, either.
    let mut clear = connect(proxy.addr());
    clear.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let _ = clear.read_to_end(&mut heard);
    assert!(!heard.starts_with(b"HTTP/1.1 200"), "{}", heard.escape_ascii());
}
