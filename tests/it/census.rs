//! What the metrics say of TLS that passes through: what clients offer, and what servers choose.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use crate::support::backend::Backend;
use crate::support::client::{connect, exchange, probe};
use crate::support::hello::{Keys, extension, in_records, message_of, real, record, sni, to, vec16};
use crate::support::process::{Finished, finish};
use crate::support::programs::PlainNginx;
use crate::support::proxy::Proxy;
use crate::support::secured::{CERTIFICATE, KEY, certify, postgres};
use crate::support::{SOON, UNLIMITED};

const HANDSHAKES: &str = "portcullis_tls_handshakes_total";
const GROUPS: &str = "portcullis_tls_offered_groups_total";

fn proxy_to(backend: impl std::fmt::Display) -> Proxy {
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}\
         [[route]]\nname = 'app'\nsni = 'a.test'\nto = '{backend}'\n"
    ))
}

/// An nginx that ends TLS for `a.test`, with more of a configuration.
fn nginx(folder: &Path, more: &str) -> PlainNginx {
    certify(folder, "a.test");
    let at = folder.display();
    PlainNginx::start("http", |addr| {
        format!(
            "server {{ listen {addr} ssl; ssl_certificate {at}/{CERTIFICATE}; ssl_certificate_key {at}/{KEY};\n\
             ssl_protocols TLSv1.2 TLSv1.3; {more} location / {{ return 200 'page'; }} }}"
        )
    })
}

/// OpenSSL's client asks for a page, and waits for it and for tickets.
fn s_client(proxy: &Proxy, words: &[&str]) -> Finished {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &proxy.addr().to_string(), "-servername", "a.test", "-ign_eof"]);
    finish(command.args(words), "openssl", "GET / HTTP/1.0\r\n\r\n")
}

/// Waits until so many handshakes are counted that were alike, and no others but those of `others`.
fn counted(proxy: &Proxy, [version, group, resumed]: [&str; 3], count: f64, others: f64) {
    let labels = [("route", "app"), ("version", version), ("group", group), ("resumed", resumed)];
    proxy.wait_metric(HANDSHAKES, &labels, count);
    proxy.wait_metric(HANDSHAKES, &[], count + others);
}

#[test]
fn what_openssl_and_nginx_agree_on_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let nginx = nginx(dir.path(), "");
    let proxy = proxy_to(nginx.addr());
    let file = |name: &str| dir.path().join(name).display().to_string();
    let mut before = 0.0;
    for (version, number) in [("-tls1_2", "1.2"), ("-tls1_3", "1.3")] {
        let session = file(number);
        let first = s_client(&proxy, &[version, "-sess_out", &session]);
        assert!(first.stdout.contains("page") && first.stdout.contains("New, "), "{first:?}");
        counted(&proxy, [number, "x25519", "no"], 1.0, before);
        let again = s_client(&proxy, &[version, "-sess_in", &session]);
        assert!(again.stdout.contains("page") && again.stdout.contains("Reused, "), "{again:?}");
        // TLS 1.3 agrees on a new key for an old session, TLS 1.2 does not.
        let group = if number == "1.3" { "x25519" } else { "none" };
        counted(&proxy, [number, group, "yes"], 1.0, before + 1.0);
        // The curve of the certificate must be among them in TLS 1.2.
        for (groups, group, others) in [("P-256", "secp256r1", 2.0), ("P-384:P-256", "secp384r1", 3.0)] {
            s_client(&proxy, &[version, "-groups", groups]);
            counted(&proxy, [number, group, "no"], 1.0, before + others);
        }
        before += 4.0;
    }
    let refused = s_client(&proxy, &["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"]);
    assert!(refused.stderr.contains("alert number 40"), "{refused:?}");
    let reason = [("route", "app"), ("reason", "handshake_failure")];
    proxy.wait_metric("portcullis_tls_hello_refusals_total", &reason, 1.0);
    proxy.wait_metric(HANDSHAKES, &[], 8.0);
    let metrics = proxy.metrics();
    for (name, labels, count) in [
        ("portcullis_tls_hellos_total", ("version", "1.2"), 5.0),
        ("portcullis_tls_hellos_total", ("version", "1.3"), 4.0),
        ("portcullis_tls_hellos_total", ("version", "1.1"), 0.0),
        ("portcullis_tls_offered_features_total", ("feature", "resumption"), 2.0),
        ("portcullis_tls_offered_key_exchanges_total", ("offer", "classic"), 9.0),
        ("portcullis_tls_offered_alpn_total", ("alpn", "none"), 9.0),
        (GROUPS, ("group", "x25519"), 5.0),
        (GROUPS, ("group", "secp256r1"), 9.0),
        (GROUPS, ("group", "secp384r1"), 7.0),
        ("portcullis_clienthello_fragments_total", ("records", "1"), 9.0),
    ] {
        let is = metrics.sum(name, &[("listener", "default"), labels]);
        assert!((is - count).abs() < 0.5, "{name}{labels:?} is {is}, not {count}");
    }
}

#[test]
fn a_server_that_asks_for_another_hello_is_followed_to_its_choice() {
    let dir = tempfile::tempdir().unwrap();
    let nginx = nginx(dir.path(), "ssl_ecdh_curve secp384r1;");
    let proxy = proxy_to(nginx.addr());
    let session = dir.path().join("session").display().to_string();
    assert!(s_client(&proxy, &["-tls1_3", "-sess_out", &session]).stdout.contains("page"));
    counted(&proxy, ["1.3", "secp384r1", "no"], 1.0, 0.0);
    let again = s_client(&proxy, &["-tls1_3", "-sess_in", &session]);
    assert!(again.stdout.contains("Reused, "), "{again:?}");
    counted(&proxy, ["1.3", "secp384r1", "yes"], 1.0, 1.0);
    proxy.wait_metric("portcullis_tls_hello_retries_total", &[("route", "app")], 2.0);
}

/// A hello as no client sends it: GREASE in its lists, as browsers have it; X25519MLKEM768 without a key, and the Kyber of
/// drafts; ECH, early data and a key of old.
fn with_everything() -> Vec<u8> {
    let list = |items: &[u16]| items.iter().flat_map(|item| item.to_be_bytes()).collect::<Vec<u8>>();
    let share = [list(&[29]), vec16(&[9; 32])].concat();
    let extensions = [
        sni(b"a.test"),
        extension(43, &[&[6], list(&[0x3a3a, 0x0304, 0x0303]).as_slice()].concat()),
        extension(10, &vec16(&list(&[0x4a4a, 0x11ec, 29, 29, 0x6399]))),
        extension(51, &vec16(&share)),
        extension(0xfe0d, &[0]),
        extension(42, &[]),
        extension(41, &[0]),
    ];
    record(&message_of(0x0303, &[0x13, 1], &[0], Some(&extensions.concat())))
}

#[test]
fn what_clients_offer_is_counted() {
    let backend = Backend::tagged("a");
    let proxy = proxy_to(&backend);
    let old = |version| record(&message_of(version, &[0, 0x2f], &[0], Some(&sni(b"a.test"))));
    for hello in [
        real(Some("a.test"), &["h2", "http/1.1"], Keys::PostQuantum),
        real(Some("a.test"), &["h2", "made-up", "another"], Keys::PostQuantum),
        to("a.test"),
        in_records(&to("a.test"), 200),
        in_records(&to("a.test"), 50),
        with_everything(),
        old(0x0302),
        old(0x0301),
        old(0x0300),
    ] {
        exchange(proxy.addr(), &[&hello]);
    }
    // One without a route counts, one that is none does not.
    probe(proxy.addr(), &to("b.test"));
    probe(proxy.addr(), &[22, 3, 1, 0, 0]);
    // A server that speaks no TLS.
    counted(&proxy, ["unknown"; 3], 9.0, 0.0);
    let metrics = proxy.metrics();
    let are = |name: &str, label: &str, values: &[(&str, u32)]| {
        for (value, count) in values {
            let is = metrics.sum(name, &[("listener", "default"), (label, value)]);
            assert!((is - f64::from(*count)).abs() < 0.5, "{name}{{{label}={value}}} is {is}, not {count}");
        }
    };
    let versions = [("1.3", 7), ("1.2", 0), ("1.1", 1), ("1.0", 1), ("other", 1)];
    are("portcullis_tls_hellos_total", "version", &versions);
    let offers = [("post_quantum", 2), ("post_quantum_without_share", 1), ("classic", 4), ("none", 3)];
    are("portcullis_tls_offered_key_exchanges_total", "offer", &offers);
    are(GROUPS, "group", &[("x25519mlkem768", 3), ("x25519", 7), ("other_post_quantum", 1), ("other", 0)]);
    let protocols = [("h2", 2), ("http/1.1", 1), ("other", 1), ("none", 8), ("postgresql", 0)];
    are("portcullis_tls_offered_alpn_total", "alpn", &protocols);
    let features = [("resumption", 1), ("early_data", 1), ("ech", 1), ("starttls", 0)];
    are("portcullis_tls_offered_features_total", "feature", &features);
    are("portcullis_clienthello_fragments_total", "records", &[("1", 8), ("2", 1), ("3+", 1)]);
    are(
        "portcullis_clienthello_size_bytes_bucket",
        "le",
        &[("512", 8), ("1024", 8), ("1536", 10), ("+Inf", 10)],
    );
}

/// Shakes hands with X25519MLKEM768, which Debian's OpenSSL does not have.
#[test]
fn post_quantum_handshakes_are_counted() {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let server = server.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let server = Arc::new(server.with_single_cert(vec![cert.der().clone()], key).unwrap());
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = Arc::new(client.with_root_certificates(roots).with_no_client_auth());
    let backend = Backend::new(move |stream: TcpStream| {
        let mut tls = rustls::StreamOwned::new(ServerConnection::new(Arc::clone(&server)).unwrap(), stream);
        tls.write_all(b"page").unwrap();
        tls.conn.send_close_notify();
        tls.flush().unwrap();
    });
    let proxy = proxy_to(&backend);
    for (index, resumed) in ["no", "yes"].into_iter().enumerate() {
        let connection =
            ClientConnection::new(Arc::clone(&client), ServerName::try_from("a.test").unwrap()).unwrap();
        let stream = connect(proxy.addr());
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut page = String::new();
        rustls::StreamOwned::new(connection, stream).read_to_string(&mut page).unwrap();
        assert_eq!(page, "page");
        counted(&proxy, ["1.3", "x25519mlkem768", resumed], 1.0, index as f64);
    }
    let offer = [("offer", "post_quantum")];
    proxy.wait_metric("portcullis_tls_offered_key_exchanges_total", &offer, 2.0);
}

/// TLS that begins within PostgreSQL is TLS as any other.
#[test]
fn what_begins_within_a_protocol_is_counted_too() {
    let server = postgres("a.test");
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n\
         [[route]]\nname = 'app'\nsni = 'a.test'\nprotocol = 'postgres'\nto = '{}'\n",
        server.addr()
    ));
    let info = format!(
        "host=a.test hostaddr=127.0.0.1 port={} user=postgres dbname=postgres sslmode=require",
        proxy.addr().port()
    );
    let query = "select version || ' ' || ssl from pg_stat_ssl where pid = pg_backend_pid()";
    let mut command = Command::new("psql");
    let done =
        finish(command.args([&info, "-XAtqc", query]).env("HOME", "/nonexistent"), "postgresql-client", "");
    assert_eq!(done.stdout.trim(), "TLSv1.3 true", "{}", done.stderr);
    // Debian's server takes no other curve, for which its client sends no key at first.
    counted(&proxy, ["1.3", "secp256r1", "no"], 1.0, 0.0);
    proxy.wait_metric("portcullis_tls_hello_retries_total", &[("route", "app")], 1.0);
    proxy.wait_metric("portcullis_tls_offered_features_total", &[("feature", "starttls")], 1.0);
    proxy.wait_metric("portcullis_tls_hellos_total", &[("version", "1.3")], 1.0);
}
