//! Sessions that are taken up again: by whom, for how long, and never where other rules hold (T4, T5, T9).

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::authority::{Authority, openssl};
use crate::support::backend::Backend;
use crate::support::process::Finished;
use crate::support::proxy::Proxy;
use crate::support::wait_for;

const VERSIONS: [&str; 2] = ["-tls1_2", "-tls1_3"];
/// Two threads serve, and each has served some of so many but for once in 500 times.
const AGAIN: usize = 10;

/// A client with files for its sessions.
struct Client<'a> {
    authority: &'a Authority,
    sessions: TempDir,
}

impl<'a> Client<'a> {
    fn new(authority: &'a Authority) -> Self {
        Self { authority, sessions: tempfile::tempdir().unwrap() }
    }

    fn file(&self, version: &str) -> PathBuf {
        self.sessions.path().join(version)
    }

    fn visit(&self, proxy: &Proxy, name: &str, options: &[&str]) -> Finished {
        openssl(proxy.addr(), Some(name), &self.authority.ca(), options)
    }

    /// A session by this version, which is kept.
    fn begin(&self, proxy: &Proxy, name: &str, version: &str) {
        let file = self.file(version);
        let done = self.visit(proxy, name, &[version, "-sess_out", file.to_str().unwrap()]);
        assert!(is_new(&done) && is_served(&done), "{version}: {}{}", done.stdout, done.stderr);
    }

    /// The kept session is offered.
    fn come_back(&self, proxy: &Proxy, name: &str, version: &str) -> Finished {
        let file = self.file(version);
        assert!(file.exists(), "no session was given");
        self.visit(proxy, name, &[version, "-sess_in", file.to_str().unwrap()])
    }

    /// That it is taken up.
    fn resumes(&self, proxy: &Proxy, name: &str) {
        for version in VERSIONS {
            let done = self.come_back(proxy, name, version);
            assert!(is_resumed(&done) && is_served(&done), "{version}: {}{}", done.stdout, done.stderr);
        }
    }

    /// That it is not, and nobody minds.
    fn begins_anew(&self, proxy: &Proxy, name: &str) {
        for version in VERSIONS {
            let done = self.come_back(proxy, name, version);
            assert!(is_new(&done) && is_served(&done), "{version}: {}{}", done.stdout, done.stderr);
        }
    }
}

fn is_new(done: &Finished) -> bool {
    done.stdout.contains("\nNew, TLSv1.")
}

fn is_resumed(done: &Finished) -> bool {
    done.stdout.contains("\nReused, TLSv1.")
}

fn is_served(done: &Finished) -> bool {
    done.code == Some(0) && done.stdout.contains("tag:")
}

fn route(name: &str, tls: &str, to: &Backend) -> String {
    format!("[[route]]\nsni = '{name}'\ntls = {tls}\nto = '{to}'\n")
}

#[test]
fn sessions_are_taken_up_again_by_whichever_thread_serves() {
    let (authority, backend) = (Authority::of(&["a.test"]), Backend::of_lines("a"));
    let proxy = Proxy::start(&format!("{}{}", authority.top(), route("a.test", "'files'", &backend)));
    let client = Client::new(&authority);
    for version in VERSIONS {
        client.begin(&proxy, "a.test", version);
    }
    for _ in 0..AGAIN {
        client.resumes(&proxy, "a.test");
    }
    let count =
        |resumed: bool| proxy.access_log().iter().filter(|line| line["tls_resumed"] == resumed).count();
    wait_for("the log", || count(true) == 2 * AGAIN && count(false) == 2);
}

#[test]
fn where_sessions_are_not_kept_none_is_given() {
    let (authority, backend) = (Authority::of(&["a.test"]), Backend::of_lines("a"));
    let proxy =
        Proxy::start(&format!("{}{}", authority.top(), route("a.test", "{ resumption = false }", &backend)));
    let client = Client::new(&authority);
    client.begin(&proxy, "a.test", "-tls1_3");
    assert!(!client.file("-tls1_3").exists(), "a ticket was given");
    client.begin(&proxy, "a.test", "-tls1_2");
    if !client.file("-tls1_2").exists() {
        return;
    }
    // Without a ticket and without a number there is nothing in it to be offered.
    let done = client.come_back(&proxy, "a.test", "-tls1_2");
    assert!(is_new(&done) && is_served(&done), "{}{}", done.stdout, done.stderr);
}

/// T4 (CVE-2025-23419): what one route has agreed on is nothing to another, least of all where that asks for more.
#[test]
fn a_session_of_one_route_is_none_of_another() {
    let (authority, [open, same, closed]) =
        (Authority::of(&["a.test", "b.test", "c.test"]), ["a", "b", "c"].map(Backend::of_lines));
    let closed_tls = format!("{{ client_auth = '{}' }}", authority.ca().display());
    let proxy = Proxy::start(&format!(
        "{}{}{}{}",
        authority.top(),
        route("a.test", "'files'", &open),
        route("b.test", "'files'", &same),
        route("c.test", &closed_tls, &closed)
    ));
    let client = Client::new(&authority);
    for version in VERSIONS {
        client.begin(&proxy, "a.test", version);
    }
    client.begins_anew(&proxy, "b.test");
    for version in VERSIONS {
        let done = client.come_back(&proxy, "c.test", version);
        assert!(!is_resumed(&done) && !is_served(&done), "{version}: {}", done.stdout);
        assert!(done.stderr.contains("SSL alert number 116"), "{version}: {}", done.stderr);
    }
    assert_eq!(closed.hits(), 0);
    client.resumes(&proxy, "a.test");
    // Who was let in comes back without a certificate, to where it was let in and nowhere else.
    let ann = authority.client(&["ann.test"]);
    let inside = Client::new(&authority);
    for version in VERSIONS {
        let file = inside.file(version);
        let [certificate, key] = [&ann.certificate, &ann.key].map(|path| path.to_str().unwrap());
        let options = [version, "-sess_out", file.to_str().unwrap(), "-cert", certificate, "-key", key];
        let done = inside.visit(&proxy, "c.test", &options);
        assert!(is_new(&done) && is_served(&done), "{version}: {}", done.stderr);
    }
    inside.resumes(&proxy, "c.test");
    inside.begins_anew(&proxy, "a.test");
}

#[test]
fn sessions_survive_a_reload_that_leaves_their_route_as_it_is() {
    let (authority, backend) = (Authority::of(&["a.test", "b.test"]), Backend::of_lines("a"));
    let with = |tls: &str, more: &str| format!("{}{}{more}", authority.top(), route("a.test", tls, &backend));
    let proxy = Proxy::start(&with("'files'", ""));
    let client = Client::new(&authority);
    for version in VERSIONS {
        client.begin(&proxy, "a.test", version);
    }
    proxy.reconfigure(&with("'files'", &route("b.test", "'files'", &backend)));
    for _ in 0..AGAIN / 2 {
        client.resumes(&proxy, "a.test");
    }
    // With other rules the sessions of before are over.
    let rules = "{ alpn = ['h2'] }";
    proxy.reconfigure(&with(rules, ""));
    client.begins_anew(&proxy, "a.test");
    for version in VERSIONS {
        client.begin(&proxy, "a.test", version);
    }
    client.resumes(&proxy, "a.test");
    // Also those that will have clients show certificates from now on.
    proxy.reconfigure(&with(&format!("{{ client_auth = '{}' }}", authority.ca().display()), ""));
    let hits = backend.hits();
    for version in VERSIONS {
        let done = client.come_back(&proxy, "a.test", version);
        assert!(
            !is_served(&done) && done.stderr.contains("SSL alert number 116"),
            "{version}: {}",
            done.stderr
        );
    }
    assert_eq!(backend.hits(), hits);
}

/// T5: keys of another process, or bytes that are nobody's, cost a whole handshake and nothing else.
#[test]
fn sessions_of_before_a_restart_begin_anew_without_an_error() {
    let (authority, backend) = (Authority::of(&["a.test"]), Backend::of_lines("a"));
    let config = format!("{}{}", authority.top(), route("a.test", "'files'", &backend));
    let client = Client::new(&authority);
    {
        let before = Proxy::start(&config);
        for version in VERSIONS {
            client.begin(&before, "a.test", version);
        }
        client.resumes(&before, "a.test");
    }
    let after = Proxy::start(&config);
    client.begins_anew(&after, "a.test");
    let line = after.access_line("anew", |line| line["tls_resumed"] == false);
    assert_eq!(line["cause"], "done");
}

/// T9: what is said before the handshake is over could be said again by somebody else; nothing of it is taken.
#[test]
fn early_data_is_not_taken() {
    let (authority, backend) = (Authority::of(&["a.test"]), Backend::of_lines("a"));
    let proxy = Proxy::start(&format!("{}{}", authority.top(), route("a.test", "'files'", &backend)));
    let client = Client::new(&authority);
    client.begin(&proxy, "a.test", "-tls1_3");
    let session = client.file("-tls1_3");
    assert_eq!(max_early_data(&session), 0);
    let early = client.sessions.path().join("early");
    std::fs::write(&early, "early\n").unwrap();
    let options = ["-tls1_3", "-sess_in", session.to_str().unwrap(), "-early_data", early.to_str().unwrap()];
    let done = client.visit(&proxy, "a.test", &options);
    assert!(is_resumed(&done) && is_served(&done), "{}{}", done.stdout, done.stderr);
    assert!(!done.stdout.contains("Early data was accepted"), "{}", done.stdout);
    assert!(!done.stdout.contains("tag:a\nearly"), "{}", done.stdout);
}

/// What a ticket allows to be said early, in bytes.
fn max_early_data(session: &Path) -> u64 {
    let text = crate::support::process::finish(
        std::process::Command::new("openssl").args(["sess_id", "-noout", "-text", "-in"]).arg(session),
        "openssl",
        "",
    );
    let rest = text.stdout.split("Max Early Data: ").nth(1).unwrap_or("0");
    rest.split_whitespace().next().unwrap().parse().unwrap()
}
