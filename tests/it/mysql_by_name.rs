//! MySQL by server name: clients are greeted before their server is known, and still log in to it, in TLS of its own.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::support::client::connect;
use crate::support::hello;
use crate::support::process::{Finished, finish};
use crate::support::proxy::Proxy;
use crate::support::secured::{certificate, mariadb};
use crate::support::servers::Server;

/// Connects by a socket of its own to where the name is not looked up: the name is for SNI and the certificate. Without one there is
/// no TLS.
const PYMYSQL: &str = "
import socket, sys, pymysql
name, port, user, password, ca, query = sys.argv[1:]
tls = {'ssl': {'ca': ca, 'check_hostname': True}} if ca else {'ssl_disabled': True}
client = pymysql.connect(host=name, user=user, password=password, defer_connect=True, **tls)
client.connect(socket.create_connection(('127.0.0.1', int(port)), 10))
cursor = client.cursor()
cursor.execute(query)
print(cursor.fetchone()[0])
";
/// Which server it is.
pub(crate) const WHO: &str = "select @@report_host";

/// Debian's PyMySQL, as a client of `name` that trusts nothing but `ca`.
pub(crate) fn ask(at: SocketAddr, name: &str, account: (&str, &str), ca: &Path, query: &str) -> Finished {
    let port = at.port().to_string();
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", PYMYSQL, name, &port, account.0, account.1]).arg(ca).arg(query);
    finish(&mut command, "python3-pymysql python3-nacl", "")
}

/// Debian's `mariadb`, which names no server.
fn mariadb_client(proxy: &Proxy, options: &[&str]) -> Finished {
    let port = proxy.addr().port().to_string();
    let mut command = Command::new("mariadb");
    command.args(["--no-defaults", "-h", "127.0.0.1", "-P", &port, "-u", "open", "-Ne", WHO]).args(options);
    finish(&mut command, "mariadb-client", "")
}

/// Two servers, found by name; the second is for clients of the names in `more` too.
fn two(more: &str) -> ([Server; 2], Proxy) {
    let [one, two] = ["one.db.test", "two.db.test"].map(mariadb);
    let proxy = Proxy::start(&format!(
        "[[listener]]\nname = 'db'\nbind = '127.0.0.1:0'\nserver_first = 'mysql'\n\
         [[route]]\nsni = 'one.db.test'\nprotocol = 'mysql'\nto = '{}'\n\
         [[route]]\nsni = ['two.db.test'{more}]\nprotocol = 'mysql'\nto = '{}'\n",
        one.addr(),
        two.addr()
    ));
    ([one, two], proxy)
}

#[test]
fn each_server_is_found_by_its_name_and_logged_in_to() {
    let ([one, two], proxy) = two("");
    for (name, server) in [("one.db.test", &one), ("two.db.test", &two)] {
        let ca = certificate(server);
        for account in [("native", "secret"), ("ed", "secret"), ("open", "")] {
            let done = ask(proxy.addr(), name, account, &ca, WHO);
            assert_eq!(done.stdout.trim(), name, "{account:?}: {}", done.stderr);
        }
        let long = ask(proxy.addr(), name, ("native", "secret"), &ca, "select repeat('abcdefgh', 1000000)");
        assert!(long.stdout.trim() == "abcdefgh".repeat(1_000_000), "{}", long.stderr);
        let wrong = ask(proxy.addr(), name, ("native", "wrong"), &ca, WHO);
        assert!(wrong.stderr.contains("Access denied for user 'native'"), "{}", wrong.stderr);
    }
    let wrong = ask(proxy.addr(), "two.db.test", ("open", ""), &certificate(&one), WHO);
    assert!(wrong.stderr.contains("certificate verify failed"), "{}", wrong.stderr);
    let line =
        proxy.access_line("one", |line| line["sni"] == "one.db.test" && line["action"] == "passthrough");
    assert_eq!(line["protocol"], "mysql");
}

#[test]
fn clients_without_tls_or_a_name_are_told_so() {
    let ([one, _two], proxy) = two("");
    let clear = ask(proxy.addr(), "one.db.test", ("open", ""), Path::new(""), WHO);
    assert!(clear.stderr.contains("(3159, 'TLS is required')"), "{}{}", clear.stdout, clear.stderr);
    let clear = mariadb_client(&proxy, &["--skip-ssl"]);
    assert!(clear.stderr.contains("ERROR 3159 (HY000): TLS is required"), "{}", clear.stderr);
    let nameless = mariadb_client(&proxy, &["--ssl"]);
    assert!(nameless.stderr.contains("TLS/SSL error"), "{}{}", nameless.stdout, nameless.stderr);
    let other = ask(proxy.addr(), "other.db.test", ("open", ""), &certificate(&one), WHO);
    assert!(other.stderr.contains("unrecognized name"), "{}{}", other.stdout, other.stderr);
}

#[test]
fn clients_without_a_name_have_a_default_where_there_is_one() {
    let (_servers, proxy) = two(", 'none'");
    let done = mariadb_client(&proxy, &["--ssl"]);
    assert_eq!(done.stdout.trim(), "two.db.test", "{}", done.stderr);
}

/// The first bytes that come after an SSLRequest and `more` in one segment.
fn after_request(proxy: SocketAddr, more: &[u8]) -> Vec<u8> {
    let mut client = connect(proxy);
    let mut header = [0; 4];
    client.read_exact(&mut header).unwrap();
    let mut greeting = vec![0; usize::from(header[0])];
    client.read_exact(&mut greeting).unwrap();
    assert_eq!((header[3], greeting[0]), (0, 10));
    // CLIENT_SSL, CLIENT_PROTOCOL_41 and CLIENT_SECURE_CONNECTION.
    let request = [&[32, 0, 0, 1, 0, 0x8a, 0, 0, 0, 0, 0, 1, 45][..], &[0; 23]].concat();
    client.write_all(&[&request, more].concat()).unwrap();
    let mut answer = [0; 5];
    let len = client.read(&mut answer).unwrap_or(0);
    answer[..len].to_vec()
}

#[test]
fn a_client_hello_may_come_with_the_request_and_nothing_else() {
    let (_servers, proxy) = two("");
    let answer = after_request(proxy.addr(), &hello::to("one.db.test"));
    assert_eq!(answer[..2], [22, 3], "the ServerHello of the backend");
    let injected = after_request(proxy.addr(), b"\x0f\0\0\0\x03drop tables");
    assert!(!injected.starts_with(&[22]), "{injected:?}");
    let line = proxy.access_line("the second", |line| line["action"] == "reject");
    assert_eq!(line["reason"], "not_handshake");
}
