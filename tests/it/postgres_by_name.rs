//! PostgreSQL by server name: TLS begins within the protocol, and its own clients and servers have the session to themselves.

use std::fmt::Write;
use std::io::{Read, Write as _};
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::client::{connect, exchange};
use crate::support::process::{Finished, Process, finish};
use crate::support::proxy::Proxy;
use crate::support::secured::{certificate, postgres};
use crate::support::servers::Server;
use crate::support::{SOON, wait_for};

/// What psql is told of a server: its name, or none, and what else.
struct Asked<'a> {
    name: &'a str,
    port: u16,
    more: &'a str,
}

/// Words of a connection for psql.
fn conninfo(Asked { name, port, more }: &Asked<'_>) -> String {
    format!(
        "host={name} hostaddr=127.0.0.1 port={port} user=postgres dbname=postgres connect_timeout=10 {more}"
    )
}

fn psql(asked: &Asked<'_>, query: &str) -> Finished {
    psql_with(asked, query, "")
}

fn psql_with(asked: &Asked<'_>, query: &str, input: &str) -> Finished {
    let info = conninfo(asked);
    let mut command = Command::new("psql");
    command.args([&info, "-XAtqc", query]).env("PGAPPNAME", "portcullis-test").env("HOME", "/nonexistent");
    finish(&mut command, "postgresql-client", input)
}

/// Which server it is.
const WHO: &str = "show cluster_name";

/// Two servers, found by name, and what PostgreSQL without TLS may ask for.
fn two(clear: &str) -> ([Server; 2], Proxy) {
    let [one, two] = ["one.db.test", "two.db.test"].map(postgres);
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n[[route]]\nsni = 'one.db.test'\nprotocol = 'postgres'\nto = '{}'\n\
         [[route]]\nsni = 'two.db.test'\nprotocol = 'postgres'\nto = '{}'\n{clear}",
        one.addr(),
        two.addr()
    ));
    ([one, two], proxy)
}

#[test]
fn each_server_is_found_by_its_name_and_seen_by_its_own_certificate() {
    let ([one, two], proxy) = two("");
    let port = proxy.addr().port();
    for (name, server) in [("one.db.test", &one), ("two.db.test", &two)] {
        let verified = format!("sslmode=verify-full sslrootcert={}", certificate(server).display());
        // `prefer` and `allow` come to TLS in the end, whichever way they try first.
        for more in ["sslmode=require", "sslmode=prefer", "sslmode=allow", &verified] {
            let done = psql(&Asked { name, port, more }, WHO);
            assert_eq!(done.stdout.trim(), name, "{more}: {}", done.stderr);
        }
    }
    let wrong = format!("sslmode=verify-full sslrootcert={}", certificate(&one).display());
    let done = psql(&Asked { name: "two.db.test", port, more: &wrong }, WHO);
    assert!(done.stderr.contains("certificate verify failed"), "{}", done.stderr);
    let line =
        proxy.access_line("one", |line| line["sni"] == "one.db.test" && line["action"] == "passthrough");
    assert_eq!(line["protocol"], "postgres");
}

#[test]
fn clients_that_cannot_be_served_are_told_why() {
    let (_servers, proxy) = two("");
    let port = proxy.addr().port();
    let table = [
        ("one.db.test", "sslmode=disable", "TLS is required"),
        // A name that no route has, and none at all: in TLS by then.
        ("other.db.test", "sslmode=require", "SSL error"),
        ("one.db.test", "sslmode=require sslsni=0", "SSL error"),
        ("one.db.test", "sslmode=prefer sslsni=0", "TLS is required"),
    ];
    for (name, more, expected) in table {
        let start = Instant::now();
        let done = psql(&Asked { name, port, more }, WHO);
        assert!(done.stderr.contains(expected) && done.stdout.is_empty(), "{name} {more}: {}", done.stderr);
        assert!(start.elapsed() < SOON, "{name} {more} took {:?}", start.elapsed());
    }
}

#[test]
fn clients_without_a_name_have_a_default_where_there_is_one() {
    let [one, two] = ["one.db.test", "two.db.test"].map(postgres);
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n[[route]]\nsni = 'one.db.test'\nprotocol = 'postgres'\nto = '{}'\n\
         [[route]]\nsni = ['two.db.test', 'none']\nprotocol = 'postgres'\nto = '{}'\n",
        one.addr(),
        two.addr()
    ));
    let asked = Asked { name: "127.0.0.1", port: proxy.addr().port(), more: "sslmode=require" };
    assert_eq!(psql(&asked, WHO).stdout.trim(), "two.db.test");
}

#[test]
fn without_tls_the_database_and_the_user_choose() {
    let [shop, rest] = ["shop.db.test", "rest.db.test"].map(postgres);
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n[[route]]\nprotocol = 'postgres'\ndatabase = ['postgres', 'shop']\nto = '{}'\n\
         [[route]]\nprotocol = 'postgres'\nuser = 'auditor'\nto = '{}'\n",
        shop.addr(),
        rest.addr()
    ));
    let port = proxy.addr().port();
    // Asked for TLS, it says that there is none; so does a server without.
    for more in ["sslmode=disable", "sslmode=prefer"] {
        let done = psql(&Asked { name: "x", port, more }, WHO);
        assert_eq!(done.stdout.trim(), "shop.db.test", "{}", done.stderr);
    }
    let auditor =
        psql(&Asked { name: "x", port, more: "sslmode=disable user=auditor dbname=template1" }, WHO);
    assert!(auditor.stderr.contains("role \"auditor\" does not exist"), "of the server: {}", auditor.stderr);
    let other = psql(&Asked { name: "x", port, more: "sslmode=disable dbname=template1" }, WHO);
    assert!(other.stderr.contains("not served here"), "{}", other.stderr);
    let tls = psql(&Asked { name: "x", port, more: "sslmode=require" }, WHO);
    assert!(tls.stderr.contains("server does not support SSL"), "{}", tls.stderr);
}

#[test]
fn a_copy_of_fifty_megabytes_is_the_same_on_both_sides() {
    let ([_one, _two], proxy) = two("");
    let asked = Asked { name: "one.db.test", port: proxy.addr().port(), more: "sslmode=require" };
    let mut rows = String::new();
    for row in 0..500_000_u64 {
        let _ = writeln!(
            rows,
            "{row}\t{:0>92x}",
            u128::from(row).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
        );
    }
    assert!(rows.len() > 49_000_000, "{} bytes", rows.len());
    let made = psql(&asked, "create unlogged table t (n bigint, body text)");
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let stored = psql_with(&asked, "copy t from stdin", &rows);
    assert_eq!(stored.code, Some(0), "{}", stored.stderr);
    let read = psql(&asked, "copy (select * from t order by n) to stdout");
    assert!(read.stdout == rows, "{} bytes of {} came back, or others", read.stdout.len(), rows.len());
}

#[test]
fn a_query_is_cancelled_by_a_connection_that_names_no_server() {
    let (servers, proxy) = two("");
    let asked = Asked { name: "two.db.test", port: proxy.addr().port(), more: "sslmode=require" };
    // A query of the other server that must not be touched by it.
    let other = Asked { name: "one.db.test", port: proxy.addr().port(), more: "sslmode=require" };
    let sleep = |asked: &Asked<'_>| {
        let mut command = Command::new("psql");
        command.args([&conninfo(asked), "-XAtqc", "select pg_sleep(60)"]).env("HOME", "/nonexistent");
        Process::start(&mut command, "postgresql-client")
    };
    let runs =
        "select count(*) from pg_stat_activity where query = 'select pg_sleep(60)' and state = 'active'";
    let begin = |asked: &Asked<'_>| {
        let client = sleep(asked);
        wait_for("the query to run", || psql(asked, runs).stdout.trim() == "1");
        client
    };
    let (mut bystander, mut sleeping) = (begin(&other), begin(&asked));
    // One that stands still keeps the request from nobody else.
    servers[0].signal(rustix::process::Signal::STOP);
    // psql asks for it when it is interrupted, in clear.
    sleeping.signal(rustix::process::Signal::INT);
    let ended = sleeping.wait(SOON);
    assert_ne!(ended.code(), Some(0));
    assert!(
        sleeping.stderr.contains("canceling statement due to user request"),
        "{:?}",
        sleeping.stderr.all()
    );
    servers[0].signal(rustix::process::Signal::CONT);
    assert_eq!(psql(&other, runs).stdout.trim(), "1", "the other query goes on");
    bystander.signal(rustix::process::Signal::KILL);
    bystander.wait(SOON);
    let line = proxy.access_line("cancel", |line| line["reason"] == "cancel");
    assert_eq!((&line["protocol"], &line["action"]), (&"postgres".into(), &"passthrough".into()));
}

#[test]
fn a_request_to_cancel_of_somebody_without_a_session_goes_nowhere() {
    let ([_one, _two], proxy) = two("");
    let request =
        [&16_u32.to_be_bytes()[..], &80_877_102_u32.to_be_bytes(), &[0, 0, 0, 1, 0, 0, 0, 2]].concat();
    let reply = exchange(proxy.addr(), &[&request]);
    assert!(reply.bytes.is_empty(), "{reply:?}");
    let line = proxy.access_line("nothing", |line| line["reason"] == "cancels_nothing");
    assert_eq!(line["action"], "reject");
}

/// What a client sends behind its request for TLS, before it is answered, was put there by somebody (CVE-2021-23222).
#[test]
fn bytes_behind_the_request_for_tls_are_refused() {
    let ([one, _two], proxy) = two("");
    let request = [&8_u32.to_be_bytes()[..], &80_877_103_u32.to_be_bytes()].concat();
    let startup = [&request[..], b"\0\0\0\x10\0\x03\0\0user\0a\0\0"].concat();
    let mut stream = connect(proxy.addr());
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(&startup).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(!answer.contains(&b'S') || answer.starts_with(b"E"), "{}", answer.escape_ascii());
    let line = proxy.access_line("injection", |line| line["reason"] == "prelude_injection");
    assert_eq!(line["action"], "reject");
    drop(one);
}

/// A server that does not answer to the request for TLS holds nobody for longer than the hello may take.
#[test]
fn a_backend_that_begins_no_tls_is_given_up() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let to: SocketAddr = silent.local_addr().unwrap();
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\ntimeouts = {{ hello = '500ms' }}\n[[route]]\nsni = 'one.db.test'\n\
         protocol = 'postgres'\nto = '{to}'\n"
    ));
    let start = Instant::now();
    let asked = Asked { name: "one.db.test", port: proxy.addr().port(), more: "sslmode=require" };
    let done = psql(&asked, WHO);
    assert!(done.stderr.contains("SSL error: tlsv1 alert internal error"), "{}", done.stderr);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let line = proxy.access_line("timeout", |line| line["reason"] == "prelude_timeout");
    assert_eq!(line["cause"], "upstream_timeout");
}
