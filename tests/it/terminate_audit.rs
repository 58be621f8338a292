//! What an auditor of TLS says of the default policy: testssl.sh.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::authority::{Authority, Key};
use crate::support::backend::Backend;
use crate::support::proxy::Proxy;
use crate::support::{UNLIMITED, until};

/// How long it may take: it opens some hundred connections, one after the other, by a shell script.
const PATIENCE: Duration = Duration::from_secs(240);

/// Findings that are of the test's own authority and of the auditor's tools, and not of how TLS is spoken here.
const OURS: [&str; 4] = [
    // That the authority has no list of what it took back, and nobody but us.
    "cert_revocation",
    "DNS_CAArecord",
    // That its own OpenSSL knows no GOST.
    "engine_problem",
    // That it had no ticket: it leaves as soon as its handshake is over, on a busy machine before the ticket has come.
    "sessionresumption_ticket",
];

/// Lets it look at both a certificate of ECDSA and one of RSA, by the default policy, and gives all that it finds.
fn audit(checks: &[&str]) -> Vec<Value> {
    let (authority, backend) = (Authority::new(), Backend::of_lines("a"));
    authority.server("ecdsa", &["localhost"], Key::Ecdsa);
    authority.server("rsa", &["localhost"], Key::Rsa);
    let mut proxy = Proxy::start(&format!(
        "{}{UNLIMITED}[[route]]\nsni = ['localhost', 'none']\ntls = 'files'\nto = '{backend}'\n",
        authority.top()
    ));
    let folder = tempfile::tempdir().unwrap();
    let (findings, log) = (folder.path().join("findings.json"), folder.path().join("log"));
    let file = File::create(&log).unwrap();
    let mut command = Command::new("timeout");
    command.args(["240", "testssl", "--quiet", "--color", "0", "--warnings", "off", "--ip", "127.0.0.1"]);
    command.args(["--connect-timeout", "10", "--openssl-timeout", "10", "--add-ca"]).arg(authority.ca());
    command.args(checks).arg("--jsonfile").arg(&findings);
    command.arg(format!("localhost:{}", proxy.addr().port())).env("HOME", folder.path());
    command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
    let mut child = command.spawn().expect("timeout; install it: apt-get install coreutils");
    let start = Instant::now();
    until("the audit", PATIENCE, || child.try_wait().unwrap());
    let log = std::fs::read_to_string(log).unwrap();
    let text = std::fs::read_to_string(&findings).unwrap_or_else(|error| {
        panic!("{error}; is it installed? apt-get install testssl.sh\n{log}");
    });
    let all: Vec<Value> =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}\n{log}"));
    println!("{} findings after {:?}", all.len(), start.elapsed());
    proxy.assert_sound();
    all
}

fn field<'a>(finding: &'a Value, key: &str) -> &'a str {
    finding[key].as_str().unwrap_or_default()
}

/// That nothing of it is weak, but for what is the test's own; and that it has looked at these.
fn assert_sound(all: &[Value], looked_at: &[&str]) {
    let weak = |finding: &&Value| {
        matches!(field(finding, "severity"), "LOW" | "MEDIUM" | "HIGH" | "CRITICAL" | "WARN" | "FATAL")
    };
    // Where there are several certificates, each has its number behind the name.
    let id = |finding: &Value| field(finding, "id").split(' ').next().unwrap_or_default().to_owned();
    let (ours, bad): (Vec<&Value>, Vec<&Value>) =
        all.iter().filter(weak).partition(|finding| OURS.contains(&&*id(finding)));
    println!("passed over: {ours:#?}");
    assert!(bad.is_empty(), "{bad:#?}");
    for wanted in looked_at {
        assert!(all.iter().any(|finding| id(finding) == *wanted), "{wanted} is not among {all:#?}");
    }
}

#[test]
fn an_auditor_finds_no_weak_version_suite_or_group() {
    let all = audit(&["--protocols", "--std", "--fs"]);
    assert_sound(&all, &["SSLv2", "SSLv3", "TLS1", "TLS1_1", "TLS1_2", "TLS1_3"]);
    let said = |id: &str| {
        let found = all.iter().find(|finding| finding["id"] == id);
        field(found.unwrap_or_else(|| panic!("{id}")), "finding")
    };
    for old in ["SSLv2", "SSLv3", "TLS1", "TLS1_1"] {
        assert_eq!(said(old), "not offered", "{old}");
    }
    for new in ["TLS1_2", "TLS1_3"] {
        assert!(said(new).starts_with("offered"), "{}", said(new));
    }
}

#[test]
fn an_auditor_finds_nothing_odd_in_what_a_client_gets_that_asks_for_nothing() {
    assert_sound(
        &audit(&["--server-defaults"]),
        &["TLS_session_ticket", "cert_commonName", "cert_signatureAlgorithm"],
    );
}

#[test]
fn an_auditor_finds_no_known_vulnerability() {
    let all = audit(&["--vulnerable"]);
    let looked_at =
        ["heartbleed", "CCS", "ticketbleed", "ROBOT", "secure_renego", "secure_client_renego", "CRIME_TLS"];
    assert_sound(&all, &looked_at);
}
