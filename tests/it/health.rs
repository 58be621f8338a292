//! Health checks with real servers: one that crashes, or says nothing, is passed over before a client notices, and is
//! used again once it is back.

use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustix::process::Signal;

use crate::support::backend::Backend;
use crate::support::client::{Outcome, loopback, probe, served};
use crate::support::hello::to;
use crate::support::process::finish;
use crate::support::proxy::Proxy;
use crate::support::servers::{Mariadb, Postgres, Redis, Server, Smtp, Sshd, Web};
use crate::support::{SOON, UNLIMITED, until};

/// How often is checked in these tests, and how long a check may take, as keys of `health`.
const OFTEN: &str = "interval = '500ms', timeout = '400ms', fall = 2";

/// A kind of server, and a client of its own that tells from which one its answer is.
struct Kind<'a> {
    check: &'a str,
    client: &'a [&'a str],
    package: &'a str,
}

/// A proxy before these backends, which are checked.
fn proxy_to(backends: &[SocketAddr], health: &str) -> Proxy {
    let list: Vec<_> = backends.iter().map(|backend| format!("'{backend}'")).collect();
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\nsilent_after = '20ms'\n{UNLIMITED}\
         [[upstream]]\nname = 'u'\nto = [{}]\nhealth = {health}\n\
         [[route]]\nprotocol = 'any'\nupstream = 'u'\n\
         [[route]]\nprotocol = 'silent'\nupstream = 'u'\n\
         [[route]]\nsni = 'a.test'\nupstream = 'u'\n",
        list.join(", ")
    ))
}

/// Waits until the checks find a backend well, or not.
fn wait_healthy(proxy: &Proxy, backend: SocketAddr, healthy: bool) {
    let backend = backend.to_string();
    let labels = [("upstream", "u"), ("backend", backend.as_str())];
    proxy.wait_metric("portcullis_upstream_healthy", &labels, if healthy { 1.0 } else { 0.0 });
}

/// How many checks of a backend have come to this.
fn checks(proxy: &Proxy, backend: SocketAddr, result: &str) -> f64 {
    let backend = backend.to_string();
    let labels = [("upstream", "u"), ("backend", backend.as_str()), ("result", result)];
    proxy.metrics().sum("portcullis_upstream_health_checks_total", &labels)
}

/// Waits for so many more checks that came to this.
fn wait_checks(proxy: &Proxy, backend: SocketAddr, result: &str, more: f64) {
    let before = checks(proxy, backend, result);
    until("more checks", SOON, || (checks(proxy, backend, result) >= before + more).then_some(()));
}

impl Kind<'_> {
    /// The last word that the client says, asked at `port`; nothing when it failed.
    fn ask(&self, port: u16) -> String {
        let port = port.to_string();
        let words: Vec<_> = self.client.iter().map(|word| word.replace("PORT", &port)).collect();
        let mut command = Command::new(&words[0]);
        let done = finish(command.args(&words[1..]).env("PGCONNECT_TIMEOUT", "5"), self.package, "");
        done.stdout.split_whitespace().last().unwrap_or_default().to_owned()
    }

    /// One of two servers crashes and comes back, is stopped and goes on; nobody but the other serves meanwhile.
    fn is_followed(&self, mut one: Server, other: &Server) {
        let (here, there) = (self.ask(one.addr().port()), self.ask(other.addr().port()));
        assert!(!here.is_empty() && !there.is_empty() && here != there, "{here:?} {there:?}");
        let proxy =
            proxy_to(&[one.addr(), other.addr()], &format!("{{ check = '{}', {OFTEN} }}", self.check));
        let port = proxy.addr().port();
        self.both_serve(port, &here, &there);
        one.kill();
        wait_healthy(&proxy, one.addr(), false);
        self.only_one_serves(port, &there);
        one.restart();
        wait_healthy(&proxy, one.addr(), true);
        self.both_serve(port, &here, &there);
        one.signal(Signal::STOP);
        wait_healthy(&proxy, one.addr(), false);
        self.only_one_serves(port, &there);
        assert!(checks(&proxy, one.addr(), "timeout") >= 2.0);
        one.signal(Signal::CONT);
        wait_healthy(&proxy, one.addr(), true);
        self.both_serve(port, &here, &there);
        assert!(checks(&proxy, other.addr(), "passed") >= 2.0);
    }

    fn both_serve(&self, port: u16, here: &str, there: &str) {
        until("both to serve", SOON, || {
            let answers = [self.ask(port), self.ask(port), self.ask(port)];
            (answers.iter().any(|answer| answer == here) && answers.iter().any(|answer| answer == there))
                .then_some(())
        });
    }

    fn only_one_serves(&self, port: u16, there: &str) {
        for _ in 0..4 {
            assert_eq!(self.ask(port), there);
        }
    }
}

#[test]
fn postgres_is_followed() {
    let kind = Kind {
        check: "postgres",
        client: &["psql", "-h", "127.0.0.1", "-p", "PORT", "-U", "postgres", "-Atc", "show port"],
        package: "postgresql-client",
    };
    kind.is_followed(Postgres::start(), &Postgres::start());
}

#[test]
fn mariadb_is_followed() {
    let options =
        ["mysql", "--no-defaults", "-h", "127.0.0.1", "-P", "PORT", "-u", "root", "-Ne", "select @@port"];
    Kind { check: "mysql", client: &options, package: "mariadb-client" }
        .is_followed(Mariadb::start(), &Mariadb::start());
}

#[test]
fn redis_is_followed() {
    let client = &["redis-cli", "-p", "PORT", "config", "get", "port"];
    Kind { check: "redis", client, package: "redis-tools" }.is_followed(Redis::start(), &Redis::start());
}

#[test]
fn ssh_is_followed() {
    let client = &["ssh-keyscan", "-T", "5", "-t", "ed25519", "-p", "PORT", "127.0.0.1"];
    Kind { check: "ssh", client, package: "openssh-client" }.is_followed(Sshd::start(), &Sshd::start());
}

#[test]
fn smtp_is_followed() {
    let script =
        "import smtplib; print(smtplib.SMTP(timeout=5).connect('127.0.0.1', PORT)[1].split()[0].decode())";
    Kind { check: "smtp", client: &["python3", "-c", script], package: "python3" }
        .is_followed(Smtp::start(), &Smtp::start());
}

const CURL: [&str; 5] = ["curl", "--silent", "--max-time", "5", "http://127.0.0.1:PORT/"];

#[test]
fn http_is_followed() {
    Kind { check: "http", client: &CURL, package: "curl" }.is_followed(Web::start(), &Web::start());
}

#[test]
fn https_is_followed() {
    let client = &[
        "curl",
        "--silent",
        "--insecure",
        "--max-time",
        "5",
        "--resolve",
        "a.test:PORT:127.0.0.1",
        "https://a.test:PORT/",
    ];
    let next_year = SystemTime::now() + Duration::from_secs(365 * 86_400);
    Kind { check: "https", client, package: "curl" }
        .is_followed(Web::with_tls(next_year), &Web::with_tls(next_year));
}

/// The kernel goes on accepting for it, so that a connection alone says nothing.
#[test]
fn a_server_that_is_stopped_passes_for_well_by_tcp() {
    let redis = Redis::start();
    let proxy = proxy_to(&[redis.addr()], &format!("{{ check = 'tcp', {OFTEN} }}"));
    wait_checks(&proxy, redis.addr(), "passed", 1.0);
    redis.signal(Signal::STOP);
    wait_checks(&proxy, redis.addr(), "passed", 3.0);
    wait_healthy(&proxy, redis.addr(), true);
}

#[test]
fn a_page_that_is_gone_or_says_something_else_is_noticed() {
    let (one, other) = (Web::start(), Web::start());
    let health =
        format!("{{ check = 'http', path = '/up', status = 200, body = 'is well', rise = 1, {OFTEN} }}");
    let proxy = proxy_to(&[one.addr(), other.addr()], &health);
    let kind = Kind { check: "http", client: &CURL, package: "curl" };
    let port = proxy.addr().port();
    let (here, there) = (one.addr().port().to_string(), other.addr().port().to_string());
    kind.both_serve(port, &here, &there);
    one.set_up(None);
    wait_healthy(&proxy, one.addr(), false);
    kind.only_one_serves(port, &there);
    let line = until("a line in the log", SOON, || proxy.logged("a backend is down").pop());
    assert_eq!(line["error"], "the status is 503", "{line}");
    assert_eq!((&line["upstream"], &line["backend"]), (&"u".into(), &one.addr().to_string().into()));
    one.set_up(Some("all is well"));
    wait_healthy(&proxy, one.addr(), true);
    other.set_up(Some("all is lost"));
    wait_healthy(&proxy, other.addr(), false);
    kind.only_one_serves(port, &here);
    assert!(checks(&proxy, other.addr(), "body") >= 2.0);
}

#[test]
fn a_certificate_that_ends_soon_is_warned_of_once() {
    let end = SystemTime::now() + Duration::from_secs(3 * 86_400);
    let (web, later) = (Web::with_tls(end), Web::with_tls(end + Duration::from_secs(30 * 86_400)));
    let proxy = proxy_to(
        &[web.addr(), later.addr()],
        &format!("{{ check = 'tls', expiry_warning = '7d', {OFTEN} }}"),
    );
    wait_checks(&proxy, web.addr(), "passed", 3.0);
    wait_checks(&proxy, later.addr(), "passed", 1.0);
    let not_after = |web: &Server| {
        let backend = web.addr().to_string();
        let labels = [("upstream", "u"), ("backend", backend.as_str())];
        proxy.metrics().sum("portcullis_upstream_certificate_not_after_timestamp_seconds", &labels)
    };
    let seconds = end.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((not_after(&web) - seconds).abs() < 2.0, "{}", not_after(&web));
    assert!(not_after(&later) > seconds + 86_400.0);
    let lines = proxy.logged("the certificate of a backend ends soon");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["backend"], web.addr().to_string());
}

#[test]
fn certificates_are_verified_for_the_name_that_is_asked_for() {
    let next_year = SystemTime::now() + Duration::from_secs(365 * 86_400);
    let (one, other) = (Web::with_tls(next_year), Web::with_tls(next_year));
    let authority = one.folder().join("certificate.pem");
    let health = format!(
        "{{ check = 'https', sni = 'a.test', verify = '{}', path = '/up', {OFTEN} }}",
        authority.display()
    );
    let proxy = proxy_to(&[one.addr(), other.addr()], &health);
    wait_checks(&proxy, one.addr(), "passed", 2.0);
    wait_healthy(&proxy, other.addr(), false);
    assert!(checks(&proxy, other.addr(), "tls") >= 1.0);
}

#[test]
fn another_port_is_checked_and_an_agent_drains() {
    let (one, other) = (Backend::tagged("one"), Backend::tagged("other"));
    let line = Arc::new(Mutex::new("up\n"));
    let says = Arc::clone(&line);
    let agent = Backend::new(move |mut stream| {
        let _ = stream.write_all(says.lock().unwrap().as_bytes());
    });
    let checked = Backend::tagged("checked");
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}\
         [[upstream]]\nname = 'agent'\nto = '{one}'\nhealth = {{ check = 'tcp', agent = {}, {OFTEN} }}\n\
         [[upstream]]\nname = 'port'\nto = '{other}'\nhealth = {{ check = 'tcp', port = {}, {OFTEN} }}\n\
         [[route]]\nsni = 'a.test'\nupstream = 'agent'\n[[route]]\nsni = 'b.test'\nupstream = 'port'\n",
        agent.addr().port(),
        checked.addr().port()
    ));
    until("checks of another port", SOON, || (checked.hits() >= 2).then_some(()));
    assert_eq!(other.hits(), 0);
    assert_eq!(probe(proxy.addr(), &to("b.test")), served("other"));
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("one"));
    *line.lock().unwrap() = "drain\n";
    let healthy = [("upstream", "agent")];
    proxy.wait_metric("portcullis_upstream_healthy", &healthy, 0.0);
    let drained = until("a line in the log", SOON, || proxy.logged("a backend drains").pop());
    assert_eq!(drained["by"], "agent");
    until("no new connections", SOON, || {
        (probe(proxy.addr(), &to("a.test")) == Outcome::Alert(80)).then_some(())
    });
    *line.lock().unwrap() = "up\n";
    proxy.wait_metric("portcullis_upstream_healthy", &healthy, 1.0);
    until("new connections", SOON, || (probe(proxy.addr(), &to("a.test")) == served("one")).then_some(()));
}

#[test]
fn an_agent_asks_for_a_share_of_the_weight() {
    let at = |host, port| SocketAddr::from((loopback(host), port));
    let (one, two) = (Backend::tagged_at(at(21, 0), "one"), Backend::tagged_at(at(22, 0), "two"));
    let agent = |addr, line: &'static str| {
        Backend::at(addr, move |mut stream| {
            let _ = stream.write_all(line.as_bytes());
        })
    };
    let little = agent(at(21, 0), "25%\n");
    let _all = agent(at(22, little.addr().port()), "up 100%\n");
    let health = format!("{{ check = 'tcp', agent = {}, {OFTEN} }}", little.addr().port());
    let proxy = proxy_to(&[one.addr(), two.addr()], &health);
    // What a check has found is there when the next one is made.
    wait_checks(&proxy, one.addr(), "passed", 2.0);
    wait_checks(&proxy, two.addr(), "passed", 2.0);
    let answers: Vec<_> = (0..40).map(|_| probe(proxy.addr(), &to("a.test"))).collect();
    let of = |tag| answers.iter().filter(|answer| **answer == served(tag)).count();
    assert!((7..=9).contains(&of("one")) && of("one") + of("two") == 40, "{} {}", of("one"), of("two"));
}
