//! What backends show of their TLS, by real servers: `check --probe`, and the same of a running process.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::backend::Backend;
use crate::support::client::free_port;
use crate::support::programs::PlainNginx;
use crate::support::proxy::{Proxy, on_config};
use crate::support::{SOON, until};

/// The end of the certificates, in seconds of Unix time.
const END: f64 = 1_925_078_400.0;

/// The versions of TLS that servers have.
const NEW: &str = "TLSv1.2 TLSv1.3";
const OLD: &str = "TLSv1.2";

/// A certificate and its key in PEM, in a folder of their own.
fn certificate(names: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_after = rcgen::date_time_ymd(2031, 1, 2);
    std::fs::write(dir.path().join("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(dir.path().join("key.pem"), key.serialize_pem()).unwrap();
    dir
}

/// An nginx with the certificate of `folder`; `listen` is what stands behind `ssl`.
fn nginx(folder: &Path, listen: &str, versions: &str) -> PlainNginx {
    let at = folder.display();
    PlainNginx::start("http", |addr| {
        format!(
            "server {{ listen {addr} ssl {listen}; ssl_certificate {at}/cert.pem;\n\
             ssl_certificate_key {at}/key.pem; ssl_protocols {versions}; location / {{ return 200 'a page'; }} }}"
        )
    })
}

/// A route by the name `name` for `name.test`.
fn route(name: &str, to: SocketAddr, more: &str) -> String {
    format!("[[route]]\nname = '{name}'\nsni = '{name}.test'\nto = '{to}'\n{more}\n")
}

/// What `check --probe --json` says of the backends, which must end with `code`.
fn probed(routes: &str, options: &[&str], code: i32) -> Value {
    let options: Vec<_> = ["--probe", "--json"].iter().chain(options).copied().collect();
    let checked = on_config("check", &format!("listen = '127.0.0.1:0'\n{routes}"), &options);
    assert_eq!(checked.code, Some(code), "{checked:?}");
    let report: Value = serde_json::from_str(&checked.stdout).unwrap();
    assert_eq!(report["ok"], true);
    report["probe"].clone()
}

/// The warnings as `kind route>other`.
fn warnings(report: &Value) -> Vec<String> {
    let one = |warning: &Value| {
        let word = |key: &str| warning[key].as_str().unwrap_or("").to_owned();
        format!("{} {}>{}", word("kind"), word("route"), word("other"))
    };
    report["warnings"].as_array().unwrap().iter().map(one).collect()
}

#[test]
fn two_backends_with_one_wildcard_certificate_and_http2_are_warned_of() {
    let wildcard = certificate(&["*.test"]);
    let (a, b) = (nginx(wildcard.path(), "http2", NEW), nginx(wildcard.path(), "http2", NEW));
    let routes = route("a", a.addr(), "") + &route("b", b.addr(), "");
    let report = probed(&routes, &[], 0);
    assert_eq!(warnings(&report), ["coalescing a>b", "coalescing b>a"]);
    let warning = &report["warnings"][0];
    assert_eq!(warning["backends"][0], a.addr().to_string());
    assert_eq!(warning["other_backends"][0], b.addr().to_string());
    assert_eq!(warning["names"][0]["certificate"], "*.test");
    assert_eq!(warning["names"][0]["covers"][0], "b.test");
    assert!(warning["origin"].as_str().unwrap().ends_with("portcullis.toml:2"), "{warning}");
    let seen = &report["seen"][0];
    assert_eq!(
        (&seen["route"], &seen["version"], &seen["alpn"]),
        (&"a".into(), &"1.3".into(), &"h2".into()),
        "{seen}"
    );
    assert!((seen["certificate"]["not_after"].as_f64().unwrap() - END).abs() < 0.5, "{seen}");
    assert_eq!(seen["trust"], "unknown_issuer");

    let text = on_config("check", &format!("listen = '127.0.0.1:0'\n{routes}"), &["--probe", "--strict"]);
    assert_eq!(text.code, Some(75), "{text:?}");
    for part in [
        "Backends as clients see them:".to_owned(),
        format!("warning: coalescing: the certificate of {}, where route `a` (", a.addr()),
        "portcullis.toml:2) leads, covers names that route `b` (".to_owned(),
        format!("portcullis.toml:7) leads to {}: b.test (by *.test)", b.addr()),
        "   help: give each backend a certificate for its own names only".to_owned(),
        "probed: 2 handshakes, 0 failed, 2 warnings".to_owned(),
        "ok: 1 listeners, 2 routes".to_owned(),
    ] {
        assert!(text.stdout.contains(&part), "{part}\n{}", text.stdout);
    }
    let row = text.stdout.lines().find(|line| line.trim_start().starts_with("a ")).unwrap();
    let cells: Vec<_> = row.split_whitespace().collect();
    assert_eq!(cells[..4], ["a", &a.addr().to_string(), &a.addr().to_string(), "a.test"]);
    assert_eq!((cells[4], cells[6], cells[9]), ("1.3", "h2", "*.test"), "{row}");
}

#[test]
fn what_has_no_http2_or_one_backend_draws_no_requests() {
    let (wildcard, own) = (certificate(&["*.test"]), certificate(&["a.test"]));
    let (h2, h1) = (nginx(wildcard.path(), "http2", NEW), nginx(wildcard.path(), "", NEW));
    let of_a = nginx(own.path(), "http2", NEW);
    // The one with HTTP/2 draws those of the other; the other draws none.
    let report = probed(&(route("a", h2.addr(), "") + &route("b", h1.addr(), "")), &[], 0);
    assert_eq!(warnings(&report), ["coalescing a>b"]);
    // Taken from the one whose certificate has both names there is nothing left.
    let report = probed(&(route("a", of_a.addr(), "") + &route("b", h1.addr(), "")), &["--strict"], 0);
    assert_eq!(warnings(&report), [""; 0]);
    let report = probed(&(route("a", h2.addr(), "") + &route("b", h2.addr(), "")), &["--strict"], 0);
    assert_eq!(warnings(&report), [""; 0]);
    let upstream = format!("[[upstream]]\nname = 'u'\nto = ['{}', '{}']\n", h2.addr(), h1.addr());
    let led = |name| format!("[[route]]\nname = '{name}'\nsni = '{name}.test'\nupstream = 'u'\n");
    let report = probed(&(upstream + &led("a") + &led("b")), &["--strict"], 0);
    assert_eq!(report["seen"].as_array().unwrap().len(), 4);
    assert_eq!(warnings(&report), [""; 0]);
    let listeners = "[[listener]]\nname = 'x'\nbind = '127.0.0.1:0'\n";
    let apart = route("a", h2.addr(), "listener = 'default'") + &route("b", h1.addr(), "listener = 'x'");
    let report = probed(&(listeners.to_owned() + &apart), &["--strict"], 0);
    assert_eq!(warnings(&report), [""; 0]);
}

#[test]
fn other_faults_of_backends_are_warned_of_within_bounded_time() {
    let own = certificate(&["a.test"]);
    let (new, old) = (nginx(own.path(), "http2", NEW), nginx(own.path(), "proxy_protocol", OLD));
    // It takes the hello and says nothing.
    let hangs = Backend::new(|mut stream| {
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let routes = route("a", old.addr(), "proxy_protocol = 'v1'")
        + &route("b", new.addr(), "")
        + &route("c", hangs.addr(), "")
        + &route("d", nobody, "");
    let start = Instant::now();
    let report = probed(&routes, &["--strict"], 75);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(warnings(&report), ["coalescing b>a", "other_name b>", "no_handshake c>", "no_handshake d>"]);
    assert_eq!(
        (&report["seen"][0]["version"], &report["seen"][0]["alpn"]),
        (&"1.2".into(), &"http/1.1".into())
    );
    assert!(report["seen"][2]["error"].as_str().unwrap().contains("no TLS handshake in time"), "{report}");
    assert!(report["seen"][3]["error"].as_str().unwrap().contains("no connection"), "{report}");
}

/// The head of configurations of a running process.
const HEAD: &str = "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n";

/// A process that probes a new server, one of TLS 1.2, both with one certificate, and nobody; after its first round.
struct Probing {
    proxy: Proxy,
    new: PlainNginx,
    old: PlainNginx,
    _certificate: TempDir,
}

impl Probing {
    fn start() -> Self {
        let wildcard = certificate(&["*.test"]);
        let (new, old) = (nginx(wildcard.path(), "http2", NEW), nginx(wildcard.path(), "http2", OLD));
        let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let routes = route("a", new.addr(), "") + &route("b", old.addr(), "") + &route("c", nobody, "");
        let proxy = Proxy::start(&format!("{HEAD}probe = '1h'\n{routes}"));
        let probing = Self { proxy, new, old, _certificate: wildcard };
        probing.wait_rounds(1);
        probing
    }

    fn rounds(&self) -> usize {
        self.proxy.logged("the backends were probed").len()
    }

    fn wait_rounds(&self, rounds: usize) {
        until("a round", SOON, || (self.rounds() == rounds).then_some(()));
    }

    /// The kinds and routes of the lines with this message, sorted.
    fn told(&self, message: &str) -> Vec<String> {
        let lines = self.proxy.logged(message);
        let word = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
        let mut told: Vec<_> =
            lines.iter().map(|line| format!("{} {}", word(line, "kind"), word(line, "route"))).collect();
        told.sort();
        told
    }

    fn is(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        let now = self.proxy.metrics().sum(name, labels);
        assert!((now - value).abs() < 0.5, "{name}{labels:?} is {now}");
    }
}

#[test]
fn a_running_process_has_metrics_of_what_it_saw() {
    let probing = Probing::start();
    let (a, b) = (probing.new.addr().to_string(), probing.old.addr().to_string());
    let of_a = [("route", "a"), ("backend", &*a)];
    let of_b = [("route", "b"), ("backend", &*b)];
    for labels in [of_a, of_b] {
        probing.is("portcullis_backend_certificate_not_after_timestamp_seconds", &labels, END);
    }
    let info = "portcullis_backend_tls_info";
    probing.is(info, &[of_a[0], of_a[1], ("version", "1.3"), ("group", "x25519"), ("alpn", "h2")], 1.0);
    probing.is(info, &[of_b[0], of_b[1], ("version", "1.2"), ("alpn", "h2")], 1.0);
    assert!(probing.proxy.metrics().has("portcullis_backend_tls_post_quantum"));
    probing.is("portcullis_backend_tls_post_quantum", &[], 0.0);
    probing.is("portcullis_backend_coalescing", &[("route", "a"), ("other", "b")], 1.0);
    probing.is("portcullis_backend_coalescing", &[("route", "b"), ("other", "a")], 1.0);
    probing.is("portcullis_backend_probe_failures_total", &[("route", "c")], 1.0);

    // One backend for both, and the third is gone.
    let routes = route("a", probing.new.addr(), "") + &route("b", probing.new.addr(), "");
    let config = format!("{HEAD}probe = '1h'\n{routes}");
    probing.proxy.reconfigure(&config);
    probing.wait_rounds(2);
    probing.is("portcullis_backend_coalescing", &[], 0.0);
    probing.is(info, &[("version", "1.2")], 0.0);
    probing.is(info, &[], 2.0);

    // Nobody is asked any more.
    probing.proxy.reconfigure(&config.replace("'1h'", "'off'"));
    probing.proxy.wait_metric(info, &[], 0.0);
    assert_eq!(probing.rounds(), 2);
}

#[test]
fn a_running_process_tells_what_is_new_and_what_is_gone() {
    let (new, gone) =
        ("something is wrong with the TLS of a backend", "no longer wrong with the TLS of a backend");
    let probing = Probing::start();
    // Nothing is known of the certificate of `c`, whose name is covered by those of both others.
    let expected = ["coalescing a", "coalescing a", "coalescing b", "coalescing b", "no_handshake c"];
    assert_eq!(probing.told(new), expected);
    // The same again is no news.
    assert_eq!(probing.proxy.reload().code, Some(0));
    probing.wait_rounds(2);
    assert_eq!((probing.told(new).len(), probing.told(gone).len()), (expected.len(), 0));
    let routes = route("a", probing.new.addr(), "") + &route("b", probing.new.addr(), "");
    probing.proxy.reconfigure(&format!("{HEAD}probe = '1h'\n{routes}"));
    probing.wait_rounds(3);
    assert_eq!(probing.told(new).len(), expected.len());
    assert_eq!(probing.told(gone), expected);
}
