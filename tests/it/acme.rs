//! Certificates that are ordered by ACME, of a real authority.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::backend::Backend;
use crate::support::client::{probe, served};
use crate::support::hello::{self, Keys};
use crate::support::pebble::{Manner, Pebble};
use crate::support::process::finish;
use crate::support::proxy::Proxy;
use crate::support::until;

/// How long an order may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// An authority, a folder for what is kept, and a backend.
struct Case {
    pebble: Pebble,
    state: TempDir,
    backend: Backend,
}

impl Case {
    fn new(manner: &Manner) -> Self {
        Self::with(Pebble::start(manner))
    }

    fn with(pebble: Pebble) -> Self {
        Self {
            pebble,
            state: tempfile::tempdir().unwrap(),
            backend: Backend::new(|mut stream| drop(stream.write_all(b"inside"))),
        }
    }

    /// A configuration of routes for these names, with more in the table `acme`.
    fn config(&self, names: &[&str], more: &str) -> String {
        let (tls, http) = self.pebble.looks_at();
        let to = self.backend.addr();
        let routes = names.iter().map(|name| {
            format!("[[route]]\nname = \"{name}\"\nsni = \"{name}\"\ntls = \"acme\"\nto = \"{to}\"\n")
        });
        format!(
            "listen = [\"{tls}\", \"{http}\"]\nadmin = \"127.0.0.1:0\"\naccess_log = \"stdout\"\nstate = \"{}\"\n\
             acme = {{ directory = \"{}\", ca = \"{}\", {more} }}\n{}",
            self.state.path().join("state").display(),
            self.pebble.directory(),
            self.pebble.ca().display(),
            routes.collect::<String>(),
        )
    }

    fn tls(&self) -> SocketAddr {
        self.pebble.looks_at().0
    }

    fn file(&self, name: &str) -> PathBuf {
        self.state.path().join("state/acme/certificates").join(format!("{name}.pem"))
    }

    /// Whether a client that trusts `root` alone gets a certificate for the name, and what the route's backend says behind it.
    fn is_served(&self, name: &str, root: &Path) -> bool {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &self.tls().to_string(), "-servername", name]);
        command.args(["-verify_hostname", name, "-verify_return_error", "-quiet"]);
        let done = finish(command.arg("-CAfile").arg(root), "openssl", "");
        done.stdout.contains("inside")
    }

    fn wait_served(&self, name: &str) {
        // Looking costs a process.
        let file = if name.starts_with("x.") { "_.a.test" } else { name };
        until(&format!("a certificate for {name}"), PATIENCE, || self.file(file).exists().then_some(()));
        let root = self.pebble.root();
        until(&format!("{name} to be served"), PATIENCE, || self.is_served(name, &root).then_some(()));
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn issued(proxy: &Proxy) -> f64 {
    proxy.metrics().sum("portcullis_acme_orders_total", &[("result", "issued")])
}

fn wait_issued(proxy: &Proxy, count: f64) {
    until(&format!("{count} certificates"), PATIENCE, || (issued(proxy) >= count).then_some(()));
}

#[test]
fn names_get_certificates_that_are_served_and_kept_and_outlive_a_restart() {
    let case = Case::new(&Manner::default());
    let config = case.config(&["a.test", "b.test", "c.test"], "email = \"you@example.com\"");
    let proxy = Proxy::start(&config);
    for name in ["a.test", "b.test", "c.test"] {
        case.wait_served(name);
        assert_eq!(mode(&case.file(name)), 0o600, "{name}");
    }
    assert_eq!(mode(case.file("a.test").parent().unwrap()), 0o700);
    let account = std::fs::read_dir(case.state.path().join("state/acme")).unwrap().find_map(|entry| {
        let file = entry.unwrap().path().join("account.json");
        file.exists().then_some(file)
    });
    assert_eq!(mode(&account.unwrap()), 0o600);
    wait_issued(&proxy, 3.0);
    let metrics = proxy.metrics();
    let next = metrics.sum("portcullis_acme_next_renewal_timestamp_seconds", &[("name", "a.test")]);
    #[allow(clippy::cast_precision_loss, reason = "seconds")]
    let now = jiff::Timestamp::now().as_second() as f64;
    assert!(next > now + 50.0 * 86_400.0 && next < now + 61.0 * 86_400.0, "{}", next - now);
    assert_eq!(metrics.sum("portcullis_acme_errors_total", &[]), 0.0);
    let challenged = proxy.access_line("a look of the authority", |line| line["reason"] == "acme_challenge");
    assert_eq!(challenged["cause"], "done", "{challenged}");
    assert_eq!(case.pebble.accounts(), 1);
    let before = std::fs::read(case.file("a.test")).unwrap();
    drop(proxy);
    let proxy = Proxy::start(&config);
    let root = case.pebble.root();
    assert!(case.is_served("a.test", &root), "from the first moment on");
    assert_eq!(issued(&proxy), 0.0);
    assert_eq!(case.pebble.issued(), 3);
    assert_eq!(std::fs::read(case.file("a.test")).unwrap(), before);
}

#[test]
fn the_authority_may_ask_in_clear() {
    let case = Case::new(&Manner::default());
    let redirect = "[[route]]\nprotocol = \"http\"\nredirect = \"https\"\n";
    let config = case.config(&["a.test"], "challenge = \"http-01\"") + redirect;
    let proxy = Proxy::start(&config);
    case.wait_served("a.test");
    wait_issued(&proxy, 1.0);
}

#[test]
fn a_command_may_publish_records_which_wildcards_need() {
    let case = Case::new(&Manner::default());
    let hook = case.state.path().join("hook");
    let calls = case.state.path().join("calls");
    let nameserver = case.pebble.nameserver();
    let script = format!(
        "#!/bin/sh\nset -e\necho \"$1 $2\" >>{}\n\
         curl -sS --fail -d \"{{\\\"host\\\":\\\"$2.\\\",\\\"value\\\":\\\"$3\\\"}}\" {nameserver}/$1-txt\n",
        calls.display()
    );
    std::fs::write(&hook, script).unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let more = format!("challenge = \"dns-01\", dns_hook = \"{}\"", hook.display());
    let proxy = Proxy::start(&case.config(&["*.a.test", "a.test"], &more));
    wait_issued(&proxy, 2.0);
    case.wait_served("a.test");
    case.wait_served("x.a.test");
    assert!(case.file("_.a.test").exists());
    let calls = std::fs::read_to_string(calls).unwrap();
    let calls: Vec<_> = calls.lines().collect();
    let once = ["set _acme-challenge.a.test", "clear _acme-challenge.a.test"];
    assert_eq!(calls, [once, once].concat());
}

#[test]
fn certificates_are_renewed_in_time_with_new_keys() {
    let case = Case::new(&Manner { validity: 20, ..Manner::default() });
    let proxy = Proxy::start(&case.config(&["a.test"], ""));
    wait_issued(&proxy, 1.0);
    let first = std::fs::read_to_string(case.file("a.test")).unwrap();
    wait_issued(&proxy, 2.0);
    let second = std::fs::read_to_string(case.file("a.test")).unwrap();
    let key = |text: &str| text[text.find("-----BEGIN PRIVATE KEY").unwrap()..].to_owned();
    assert_ne!(key(&first), key(&second));
    assert_eq!(case.pebble.accounts(), 1);
    case.wait_served("a.test");
}

#[test]
fn a_name_that_is_refused_waits_and_takes_no_other_along() {
    let case = Case::new(&Manner { blocked: vec!["blocked.test"], ..Manner::default() });
    let elsewhere = r#"{"host":"elsewhere.test","addresses":["127.0.0.77"]}"#;
    case.pebble.tell_nameserver("/add-a", elsewhere);
    let proxy = Proxy::start(&case.config(&["blocked.test", "elsewhere.test", "good.test"], ""));
    case.wait_served("good.test");
    let refused = |name: &str| {
        until(&format!("{name} to be refused"), PATIENCE, || {
            proxy.logged("there is no new certificate").into_iter().find(|line| line["name"] == *name)
        })
    };
    let blocked = refused("blocked.test");
    assert_eq!(blocked["problem"], "urn:ietf:params:acme:error:rejectedIdentifier", "{blocked}");
    let elsewhere = refused("elsewhere.test");
    assert_eq!(elsewhere["problem"], "urn:ietf:params:acme:error:unauthorized", "{elsewhere}");
    assert!(elsewhere["detail"].as_str().is_some_and(|detail| detail.contains("127.0.0.77")), "{elsewhere}");
    let next: jiff::Timestamp = elsewhere["next"].as_str().unwrap().parse().unwrap();
    let told: jiff::Timestamp = elsewhere["timestamp"].as_str().unwrap().parse().unwrap();
    let pause = next.as_second() - told.as_second();
    assert!((53..=67).contains(&pause), "{pause}: {elsewhere}");
    let metrics = proxy.metrics();
    assert_eq!(metrics.sum("portcullis_acme_orders_total", &[("result", "refused")]), 2.0);
    // A name without a certificate is answered with nothing else.
    let root = case.pebble.root();
    assert!(!case.is_served("blocked.test", &root));
    assert!(case.is_served("good.test", &root));
}

#[test]
fn an_authority_that_is_down_takes_no_certificate_away() {
    let mut case = Case::new(&Manner::default());
    let config = case.config(&["a.test"], "");
    let proxy = Proxy::start(&config);
    case.wait_served("a.test");
    let root = case.pebble.root();
    drop(proxy);
    case.pebble.down();
    let config = case.config(&["a.test", "b.test"], "");
    let proxy = Proxy::start(&config);
    assert!(case.is_served("a.test", &root));
    let line = until("a complaint", PATIENCE, || {
        proxy
            .logged("there is no new certificate")
            .pop()
            .or_else(|| proxy.logged("there is no account with the authority yet").pop())
    });
    assert!(line["error"].as_str().is_some_and(|error| error.contains("Connection refused")), "{line}");
    assert!(case.is_served("a.test", &root));
    // It comes back with a memory as empty as Pebble's: the account is made anew. A reload is a reason to try again.
    case.pebble.up();
    until("b.test", PATIENCE, || {
        proxy.reconfigure(&config);
        (issued(&proxy) >= 1.0).then_some(())
    });
    case.wait_served("b.test");
    assert!(case.is_served("a.test", &root), "of the root before");
}

#[test]
fn an_account_may_have_to_be_bound_to_another() {
    let key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let case = Case::new(&Manner { external_key: Some(key), ..Manner::default() });
    let file = case.state.path().join("hmac");
    std::fs::write(&file, format!("{key}\n")).unwrap();
    let without = Proxy::start(&case.config(&["a.test"], ""));
    let line =
        until("a complaint", PATIENCE, || without.logged("there is no account with the authority yet").pop());
    assert_eq!(line["problem"], "urn:ietf:params:acme:error:externalAccountRequired", "{line}");
    let more = format!("eab = {{ kid = \"kid-1\", hmac = {{ file = \"{}\" }} }}", file.display());
    without.reconfigure(&case.config(&["a.test"], &more));
    case.wait_served("a.test");
}

#[test]
fn names_come_and_go_with_the_configuration() {
    let case = Case::new(&Manner::default());
    let proxy = Proxy::start(&case.config(&["a.test"], ""));
    case.wait_served("a.test");
    proxy.reconfigure(&case.config(&["a.test", "b.test"], ""));
    case.wait_served("b.test");
    proxy.reconfigure(&case.config(&["b.test"], ""));
    wait_issued(&proxy, 2.0);
    assert_eq!(case.pebble.issued(), 2, "one each");
    assert_eq!(case.pebble.accounts(), 1);
}

#[test]
fn routes_that_want_other_protocols_are_found_by_the_authority_and_backends_are_left_their_own_challenges() {
    let case = Case::new(&Manner::default());
    let own = Backend::tagged("own");
    let to = case.backend.addr();
    // The name has a route that passes everything else through, challenges too: they are the backend's.
    let config = case.config(&[], "")
        + &format!(
            "[[route]]\nname = \"a.test-alpn\"\nsni = \"a.test\"\nalpn = \"h2\"\ntls = \"acme\"\nto = \"{to}\"\n\
             [[route]]\nsni = \"own.test\"\nto = \"{}\"\n",
            own.addr()
        );
    let proxy = Proxy::start(&config);
    wait_issued(&proxy, 1.0);
    let asked = hello::real(Some("own.test"), &["acme-tls/1"], Keys::Classic);
    assert_eq!(probe(proxy.addr(), &asked), served("own"));
    // And where nothing is pending any more, no backend is asked, and nobody answers for the name.
    let asked = hello::real(Some("a.test"), &["acme-tls/1"], Keys::Classic);
    probe(proxy.addr(), &asked);
    let line = proxy.access_line("who asked too late", |line| line["reason"] == "no_application_protocol");
    assert_eq!((line["route"].as_str(), case.backend.hits()), (Some("a.test-alpn"), 0), "{line}");
}
