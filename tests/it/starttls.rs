//! TLS that begins within a protocol: two real servers of each, told apart by name, each with a certificate and a session of its own.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Command;

use crate::support::SOON;
use crate::support::client::connect;
use crate::support::process::{Finished, finish};
use crate::support::proxy::Proxy;
use crate::support::secured::{certificate, dovecot, postfix, prosody, slapd, vsftpd};
use crate::support::servers::Server;

/// Two servers of a protocol for two names, and the proxy before them.
fn two(protocol: &str, start: impl Fn(&str) -> Server) -> ([Server; 2], Proxy) {
    let servers = ["one.test", "two.test"].map(start);
    let first = match protocol {
        "ldap" | "xmpp" => String::new(),
        _ => format!("server_first = {{ protocol = '{protocol}', name = 'front.test' }}\n"),
    };
    let routes = ["one.test", "two.test"].iter().zip(&servers).map(|(name, server)| {
        format!("[[route]]\nsni = '{name}'\nprotocol = '{protocol}'\nto = '{}'\n", server.addr())
    });
    let proxy = Proxy::start(&format!("listen = '127.0.0.1:0'\n{first}{}", routes.collect::<String>()));
    (servers, proxy)
}

/// What OpenSSL's client, which trusts `server` alone, hears after it has begun TLS for `name`.
fn begin(proxy: &Proxy, protocol: &str, name: &str, server: &Server, input: &str) -> Finished {
    let (addr, ca) = (proxy.addr().to_string(), certificate(server).display().to_string());
    let mut words =
        vec!["20", "openssl", "s_client", "-connect", &addr, "-starttls", protocol, "-servername", name];
    words.extend(["-verify_hostname", name, "-verify_return_error", "-CAfile", &ca, "-crlf", "-quiet"]);
    if protocol == "xmpp" {
        words.extend(["-xmpphost", name]);
    }
    finish(Command::new("timeout").args(words), "openssl", input)
}

/// Each name leads to its own server, and no other's certificate is seen.
fn leads_by_name(protocol: &str, start: impl Fn(&str) -> Server, input: &str, expected: &str) {
    let (servers, proxy) = two(protocol, start);
    for (index, name) in ["one.test", "two.test"].into_iter().enumerate() {
        let done = begin(&proxy, protocol, name, &servers[index], input);
        assert!(done.stdout.contains(expected), "{protocol} {name}: {:?}\n{}", done.stdout, done.stderr);
        let wrong = begin(&proxy, protocol, name, &servers[1 - index], input);
        assert!(wrong.stderr.contains("verify error"), "{protocol} {name}: {}", wrong.stderr);
        let line = proxy.access_line(name, |line| line["sni"] == name && line["action"] == "passthrough");
        assert_eq!(
            (&line["protocol"], &line["backend"]),
            (&protocol.into(), &servers[index].addr().to_string().into())
        );
    }
    let nobody = begin(&proxy, protocol, "other.test", &servers[0], input);
    assert!(nobody.stderr.contains("alert number 112"), "{protocol}: {}", nobody.stderr);
}

#[test]
fn smtp_by_name() {
    leads_by_name("smtp", postfix, "EHLO me\nQUIT\n", "221 2.0.0 Bye");
}

#[test]
fn imap_by_name() {
    leads_by_name(
        "imap",
        |name| dovecot(name, "imap"),
        "a login ann secret\na logout\n",
        "a OK [CAPABILITY ",
    );
}

#[test]
fn pop3_by_name() {
    leads_by_name("pop3", |name| dovecot(name, "pop3"), "USER ann\nPASS secret\nSTAT\nQUIT\n", "+OK 0 0");
}

#[test]
fn sieve_by_name() {
    leads_by_name("sieve", |name| dovecot(name, "sieve"), "LOGOUT\n", "\"SASL\" \"PLAIN\"");
}

#[test]
fn ftp_by_name() {
    leads_by_name("ftp", vsftpd, "USER anonymous\nPASS x\nPWD\nQUIT\n", "257 \"/\"");
}

#[test]
fn xmpp_by_name() {
    let stream = "<stream:stream to='one.test' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>\n";
    leads_by_name("xmpp", prosody, stream, "<stream:stream ");
}

#[test]
fn ldap_by_name() {
    let ([one, _two], proxy) = two("ldap", slapd);
    // An unbind request: without one the server waits.
    let done = begin(&proxy, "ldap", "one.test", &one, "");
    assert!(!done.stderr.contains("alert"), "{}", done.stderr);
    let line = proxy.access_line("one", |line| line["sni"] == "one.test" && line["action"] == "passthrough");
    assert_eq!(line["protocol"], "ldap");
}

/// The first answer of the proxy to `words`, said after its greeting; and all that comes until the end.
fn say(addr: SocketAddr, greets: bool, words: &str) -> String {
    let mut stream = connect(addr);
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut heard = vec![0; 4096];
    let mut len = if greets { stream.read(&mut heard).unwrap() } else { 0 };
    stream.write_all(words.as_bytes()).unwrap();
    loop {
        match stream.read(&mut heard[len..]) {
            Ok(0) | Err(_) => break,
            Ok(n) => len += n,
        }
    }
    String::from_utf8_lossy(&heard[..len]).into_owned()
}

/// Commands behind the one that begins TLS would be taken for a part of the session (CVE-2011-0411).
#[test]
fn commands_behind_the_one_that_begins_tls_are_refused() {
    let table = [
        ("smtp", "EHLO x\r\nSTARTTLS\r\nMAIL FROM:<a@b>\r\n"),
        ("imap", "a STARTTLS\r\nb LOGIN ann secret\r\n"),
        ("pop3", "STLS\r\nUSER ann\r\n"),
        ("sieve", "STARTTLS\r\nLOGOUT\r\n"),
        ("ftp", "AUTH TLS\r\nUSER ann\r\n"),
    ];
    for (protocol, words) in table {
        let proxy = Proxy::start(&format!(
            "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\nserver_first = '{protocol}'\n\
             [[route]]\nsni = '*'\nprotocol = '{protocol}'\nto = '127.0.0.1:1'\n"
        ));
        say(proxy.addr(), true, words);
        let line = proxy.access_line(protocol, |line| line["reason"] == "prelude_injection");
        assert_eq!((&line["protocol"], &line["action"]), (&serde_json::Value::Null, &"reject".into()));
        proxy.wait_metric("portcullis_clienthello_errors_total", &[("reason", "prelude_injection")], 1.0);
    }
}

#[test]
fn without_tls_nothing_is_done_for_anybody() {
    let table = [
        ("smtp", "EHLO x\r\nAUTH PLAIN AGFubgBzZWNyZXQ=\r\nQUIT\r\n", "530 5.7.0 "),
        ("imap", "a login ann secret\r\nb logout\r\n", "a NO [PRIVACYREQUIRED] "),
        ("pop3", "USER ann\r\nQUIT\r\n", "-ERR "),
        ("sieve", "AUTHENTICATE \"PLAIN\" \"AGFubgBzZWNyZXQ=\"\r\nLOGOUT\r\n", "NO "),
        ("ftp", "USER ann\r\nQUIT\r\n", "530 "),
    ];
    for (protocol, words, refusal) in table {
        let proxy = Proxy::start(&format!(
            "listen = '127.0.0.1:0'\nserver_first = '{protocol}'\n\
             [[route]]\nsni = '*'\nprotocol = '{protocol}'\nto = '127.0.0.1:1'\n"
        ));
        // One command after the other, as clients do that do not pipeline.
        let mut stream = connect(proxy.addr());
        stream.set_read_timeout(Some(SOON)).unwrap();
        let (mut heard, mut piece) = (Vec::new(), [0; 4096]);
        for command in words.split_inclusive("\r\n") {
            let n = stream.read(&mut piece).unwrap();
            heard.extend_from_slice(&piece[..n]);
            stream.write_all(command.as_bytes()).unwrap();
        }
        stream.read_to_end(&mut heard).unwrap();
        let heard = String::from_utf8_lossy(&heard);
        assert!(heard.contains(refusal), "{protocol}: {heard}");
        let line = proxy.access_line(protocol, |line| line["reason"] == "without_tls");
        assert_eq!(line["cause"], "client");
    }
}
