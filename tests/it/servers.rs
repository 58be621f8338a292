//! Servers of protocols without SNI, some of which speak first: their own clients are served through the proxy, and again
//! after the server has crashed.

use std::process::Command;

use rustix::process::Signal;

use crate::support::process::finish;
use crate::support::proxy::Proxy;
use crate::support::servers::{Mariadb, Postgres, Redis, Server, Smtp, Sshd};
use crate::support::until;
use crate::support::{SOON, UNLIMITED};

/// What a real client of the server says, asked through the proxy at `port`.
fn ask(words: &[&str], package: &str, port: u16) -> String {
    let port = port.to_string();
    let words: Vec<_> = words.iter().map(|word| word.replace("PORT", &port)).collect();
    let done = finish(Command::new(&words[0]).args(&words[1..]).env("PGCONNECT_TIMEOUT", "5"), package, "");
    format!("{}{}", done.stdout, done.stderr)
}

/// Asks until the answer contains `expected`, before and after a crash of the server.
fn is_served(mut server: Server, words: &[&str], package: &str, expected: &str) {
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\nsilent_after = '20ms'\n{UNLIMITED}\
         [[route]]\nprotocol = ['silent', 'postgres', 'redis', 'ssh']\nto = '{}'\n",
        server.addr()
    ));
    let port = proxy.addr().port();
    let served = ask(words, package, port);
    assert!(served.contains(expected), "{words:?}: {served}");
    let before = server.id();
    server.kill();
    let refused = ask(words, package, port);
    assert!(!refused.contains(expected), "{words:?}: {refused}");
    server.restart();
    assert_ne!(server.id(), before);
    until("the server to serve again", SOON, || ask(words, package, port).contains(expected).then_some(()));
}

#[test]
fn postgres_is_served() {
    let words = ["psql", "-h", "127.0.0.1", "-p", "PORT", "-U", "postgres", "-Atc", "select 6 * 7"];
    is_served(Postgres::start(), &words, "postgresql-client", "42\n");
}

#[test]
fn mariadb_is_served() {
    let words =
        ["mysql", "--no-defaults", "-h", "127.0.0.1", "-P", "PORT", "-u", "root", "-Ne", "select 6 * 7"];
    is_served(Mariadb::start(), &words, "mariadb-client", "42\n");
}

#[test]
fn redis_is_served() {
    is_served(Redis::start(), &["redis-cli", "-p", "PORT", "ping"], "redis-tools", "PONG\n");
}

#[test]
fn ssh_is_served() {
    let words = ["ssh-keyscan", "-T", "5", "-t", "ed25519", "-p", "PORT", "127.0.0.1"];
    is_served(Sshd::start(), &words, "openssh-client", "ssh-ed25519 AAAA");
}

#[test]
fn smtp_is_served() {
    let script = "import smtplib; print(smtplib.SMTP('127.0.0.1', PORT, timeout=5).noop())";
    is_served(Smtp::start(), &["python3", "-c", script], "python3", "(250, ");
}

/// A server that is stopped is connected to by the kernel, and says nothing until it goes on.
#[test]
fn a_server_that_is_stopped_says_nothing() {
    let redis = Redis::start();
    let port = redis.addr().port();
    let ping = ["timeout", "1", "redis-cli", "-p", "PORT", "ping"];
    redis.signal(Signal::STOP);
    assert_eq!(ask(&ping, "redis-tools", port), "");
    redis.signal(Signal::CONT);
    assert_eq!(ask(&ping, "redis-tools", port), "PONG\n");
}
