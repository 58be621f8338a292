//! What operators see: a line a connection, exact counts, bounded label values, health.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::backend::Backend;
use crate::support::client::{
    Outcome, connect, exchange, held, loopback, probe, probe_from, read_to_end, served,
};
use crate::support::hello::{Keys, real, to};
use crate::support::process::finish;
use crate::support::proxy::Proxy;
use crate::support::{Random, SOON, UNLIMITED, until, wait_for};

/// A handshake record of no bytes, which RFC 8446 §5.1 forbids.
const BROKEN_HELLO: [u8; 5] = [22, 3, 1, 0, 0];

fn proxy_to(backend: &Backend, extra: &str) -> Proxy {
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}{extra}\n\
         [[route]]\nname = 'app'\nsni = 'a.test'\nto = '{backend}'\n"
    ))
}

#[test]
fn a_json_line_tells_the_whole_connection() {
    let backend = Backend::tagged("a");
    let proxy = proxy_to(&backend, "");
    let hello = real(Some("A.test"), &["h2", "http/1.1"], Keys::PostQuantum);
    let mut stream = connect(proxy.addr());
    std::io::Write::write_all(&mut stream, &hello).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    read_to_end(&mut stream, SOON);
    let line = proxy.access_line_of(stream.local_addr().unwrap());
    let expected = serde_json::json!({
        "client": stream.local_addr().unwrap().to_string(), "sni": "a.test", "alpn": ["h2", "http/1.1"],
        "protocol": "tls", "route": "app", "action": "passthrough", "backend": backend.to_string(),
        "bytes_in": hello.len(), "bytes_out": hello.len() + "tag:a\n".len(), "cause": "done",
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&line[key], value, "{key} in {line}");
    }
    assert!(line["id"].is_string() || line["id"].is_u64(), "{line}");
    assert!(line["listener"].is_string() && line["duration_ms"].as_f64().is_some(), "{line}");
    let time = line["time"].as_str().unwrap();
    assert!(
        time.len() >= 20 && time.as_bytes()[10] == b'T' && time.ends_with('Z'),
        "RFC 3339 in UTC: {time}"
    );
    assert!(line["reason"].is_null(), "{line}");
}

#[test]
fn ids_are_unique_and_each_connection_has_one_line() {
    let backend = Backend::tagged("a");
    let proxy = proxy_to(&backend, "");
    crate::support::in_parallel(8, 100, |_| {
        exchange(proxy.addr(), &[&to("a.test")]);
    });
    wait_for("100 lines", || proxy.access_log().len() == 100);
    let ids: std::collections::HashSet<String> =
        proxy.access_log().iter().map(|line| line["id"].to_string()).collect();
    assert_eq!(ids.len(), 100);
}

#[test]
fn logfmt_and_files_are_destinations_too() {
    let backend = Backend::tagged("a");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("access.log");
    let extra = format!("access_log = {{ to = '{}', format = 'logfmt' }}", file.display());
    let mut proxy = proxy_to(&backend, &extra);
    exchange(proxy.addr(), &[&to("a.test")]);
    let line = until("a line in the file", SOON, || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.split_once('\n').map(|(line, _)| line.to_owned())
    });
    for pair in ["sni=a.test", "route=app", "action=passthrough", "cause=done", "protocol=tls"] {
        assert!(line.split(' ').any(|word| word == pair), "{pair} in {line}");
    }
    assert!(proxy.process.stdout.all().is_empty(), "{:?}", proxy.process.stdout.all());
    proxy.assert_sound();
}

#[test]
fn an_access_log_that_nobody_reads_keeps_nobody_waiting() {
    let backend = Backend::tagged("a");
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert_eq!(finish(Command::new("mkfifo").arg(&pipe), "coreutils", "").code, Some(0));
    // Held open for reading and writing, so that opening does not wait; a pipe holds some 400 lines.
    let held = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let mut proxy = proxy_to(&backend, &format!("access_log = '{}'", pipe.display()));
    crate::support::in_parallel(8, 1000, |_| {
        assert!(exchange(proxy.addr(), &[&to("a.test")]).bytes.starts_with(b"tag:a\n"));
    });
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
    proxy.assert_sound();
    drop(held);
}

#[test]
fn a_full_disk_costs_lines_and_nothing_else() {
    let backend = Backend::tagged("a");
    let mut proxy = proxy_to(&backend, "access_log = '/dev/full'");
    for _ in 0..50 {
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
    }
    wait_for("the lost lines to be counted", || {
        proxy.metrics().sum("portcullis_accesslog_dropped_total", &[]) >= 1.0
    });
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
    proxy.assert_sound();
}

#[test]
fn metrics_have_the_exact_counts() {
    let backend = Backend::tagged("a");
    let proxy = proxy_to(&backend, "");
    let hello = to("a.test");
    for _ in 0..7 {
        exchange(proxy.addr(), &[&hello]);
    }
    for _ in 0..5 {
        probe(proxy.addr(), &to("unknown.test"));
    }
    for _ in 0..3 {
        probe(proxy.addr(), &BROKEN_HELLO);
    }
    let open = held(Ipv4Addr::LOCALHOST, proxy.addr(), &hello);
    let count = |name: &str, labels: &[(&str, &str)], value: f64| proxy.wait_metric(name, labels, value);
    count("portcullis_connections_active", &[], 1.0);
    drop(open);
    count("portcullis_connections_active", &[], 0.0);
    count("portcullis_connections_total", &[("action", "passthrough")], 8.0);
    count("portcullis_clienthello_errors_total", &[], 3.0);
    count("portcullis_received_bytes_total", &[("route", "app")], (8 * hello.len()) as f64);
    let answers = 8 * "tag:a\n".len() + 8 * hello.len();
    count("portcullis_sent_bytes_total", &[("route", "app")], answers as f64);
    count("portcullis_connection_duration_seconds_count", &[("route", "app")], 8.0);
    count("portcullis_clienthello_duration_seconds_count", &[], 13.0);
    count(
        "portcullis_upstream_connects_total",
        &[("upstream", "app"), ("backend", &backend.to_string())],
        8.0,
    );
    count("portcullis_accesslog_dropped_total", &[], 0.0);
    count("portcullis_accept_errors_total", &[], 0.0);
    let metrics = proxy.metrics();
    for name in [
        "portcullis_build_info",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
    ] {
        assert!(metrics.has(name), "{name}");
    }
}

#[test]
fn every_refusal_has_a_reason_in_the_log_and_in_a_metric() {
    let backend = Backend::tagged("a");
    let extra = "deny = ['127.0.0.2']\n[[route]]\nsni = 'no.test'\nreject = 'close'";
    let proxy = proxy_to(&backend, extra);
    probe_from(loopback(2), proxy.addr(), &to("a.test"));
    probe(proxy.addr(), &to("unknown.test"));
    probe(proxy.addr(), &real(None, &[], Keys::Classic));
    probe(proxy.addr(), b"SSH-2.0-x\r\n");
    probe(proxy.addr(), &to("no.test"));
    for reason in ["acl", "unknown_sni", "no_sni", "unknown_protocol", "rejected"] {
        let line = proxy.access_line(reason, |line| line["reason"] == reason);
        assert_eq!((&line["action"], &line["cause"]), (&"reject".into(), &"policy".into()), "{reason}");
        proxy.wait_metric("portcullis_connections_rejected_total", &[("reason", reason)], 1.0);
    }
}

#[test]
fn connections_refused_at_accept_count_among_all() {
    let backend = Backend::tagged("a");
    let proxy = proxy_to(&backend, "deny = ['127.0.0.2']");
    for _ in 0..3 {
        assert_eq!(probe_from(loopback(2), proxy.addr(), &to("a.test")), Outcome::Reset);
    }
    proxy.wait_metric("portcullis_connections_total", &[("action", "reject")], 3.0);
}

#[test]
fn a_refused_hello_is_a_rejection() {
    let backend = Backend::tagged("a");
    let proxy = proxy_to(&backend, "");
    assert_eq!(probe(proxy.addr(), &BROKEN_HELLO), Outcome::Alert(50));
    let line = proxy.access_line("the broken hello", |line| line["reason"] == "record_length");
    assert_eq!((&line["cause"], &line["stage"]), (&"client".into(), &"peek".into()));
    proxy.wait_metric("portcullis_clienthello_errors_total", &[("reason", "record_length")], 1.0);
    assert_eq!(line["action"], "reject", "it was sent an alert: {line}");
    proxy.wait_metric("portcullis_connections_total", &[("action", "reject")], 1.0);
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    let backend = Backend::tagged("a");
    let proxy = proxy_to(&backend, "");
    exchange(proxy.addr(), &[&to("a.test")]);
    probe(proxy.addr(), &to("b.test"));
    let text = proxy.ask("/metrics").body;
    let checked = finish(Command::new("promtool").args(["check", "metrics"]), "prometheus", &text);
    assert_eq!((checked.code, checked.stdout.as_str(), checked.stderr.as_str()), (Some(0), "", ""), "{text}");
}

#[test]
fn names_that_clients_choose_never_become_labels() {
    let backend = Backend::tagged("a");
    let proxy = proxy_to(&backend, "access_log = 'off'");
    let unknown = |number: usize| {
        let name = format!("x{:016x}.attack.test", Random::new(number as u64).next());
        // Many addresses, since an address has too few ports for all that are closed here.
        let source = Ipv4Addr::new(127, 0, 1 + (number % 8) as u8, 1);
        assert_eq!(probe_from(source, proxy.addr(), &to(&name)), Outcome::Alert(112));
    };
    unknown(0);
    exchange(proxy.addr(), &[&to("a.test")]);
    let before = proxy.ask("/metrics").body;
    crate::support::in_parallel(8, 10_000, |number| unknown(number + 1));
    let after = proxy.ask("/metrics").body;
    assert!(!after.contains("attack"), "{after}");
    let (before, after) = (before.len(), after.len());
    assert!(after <= before + before / 20, "from {before} to {after} bytes");
}

#[test]
fn health_and_readiness_differ_while_draining() {
    let backend = Backend::tagged("a");
    let mut proxy = proxy_to(&backend, "timeouts = { drain = '20s' }");
    assert_eq!((proxy.ask("/healthz").status, proxy.ask("/readyz").status), (200, 200));
    assert_eq!(proxy.ask("/nothing").status, 404);
    let open = held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test"));
    proxy.process.signal(Signal::TERM);
    wait_for("not ready", || proxy.ask("/readyz").status == 503);
    assert_eq!(proxy.ask("/healthz").status, 200, "it is still alive");
    drop(open);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
}

#[test]
fn the_admin_server_listens_on_a_unix_socket() {
    use std::io::{Read, Write};
    let backend = Backend::tagged("a");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = 'unix:{}'\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n",
        path.display()
    ));
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.contains("200 OK") && text.contains("portcullis_connections_total"), "{text}");
}
