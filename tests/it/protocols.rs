//! Every protocol on one port, told by its first bytes: each has a route, and nothing keeps one waiting for another.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use crate::support::SOON;
use crate::support::backend::{Backend, Recorder};
use crate::support::client::{Outcome, connect, exchange, outcome, probe, probe_from, served, tag, timed};
use crate::support::proxy::{Proxy, on_config, on_file};
use crate::support::wait_for;

/// First bytes of clients.
const CLIENTS: [(&str, &[u8]); 16] = [
    ("http", b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"),
    ("h2c", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"),
    ("ssh", b"SSH-2.0-OpenSSH_9.2p1\r\n"),
    ("postgres", b"\0\0\0\x08\x04\xd2\x16/"),
    ("smtp", b"EHLO mail.example.com\r\n"),
    ("imap", b"a001 CAPABILITY\r\n"),
    ("pop3", b"CAPA\r\n"),
    ("ldap", b"0\x1d\x02\x01\x01w\x18\x80\x161.3.6.1.4.1.1466.20037"),
    ("xmpp", b"<?xml version='1.0'?><stream:stream to='a.test'>"),
    ("mqtt", b"\x10\x11\0\x04MQTT\x04\x02\0<\0\x05probe"),
    ("amqp", b"AMQP\0\0\x09\x01"),
    ("redis", b"*1\r\n$4\r\nPING\r\n"),
    ("dns", b"\0\x1d\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01"),
    ("openvpn", b"\0\x0e8\x0c\n\xf2\x15\xe8R\x8e\xda\0\0\0\0\0"),
    ("rdp", b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0\x01\0\x08\0\x03\0\0\0"),
    ("socks", b"\x05\x02\0\x01"),
];

#[test]
fn each_protocol_has_its_route_on_one_port_whole_and_byte_by_byte() {
    let backends = CLIENTS.map(|(word, _)| Backend::tagged(word));
    let routes: String = CLIENTS
        .into_iter()
        .zip(&backends)
        .map(|((word, _), to)| format!("[[route]]\nprotocol = '{word}'\nto = '{to}'\n"))
        .collect();
    let proxy = Proxy::start(&format!("listen = '127.0.0.1:0'\n{routes}"));
    for (word, bytes) in CLIENTS {
        assert_eq!(probe(proxy.addr(), bytes), served(word), "{word}");
        let pieces: Vec<_> = bytes.chunks(1).collect();
        let reply = exchange(proxy.addr(), &pieces);
        assert_eq!(tag(&reply.bytes).as_deref(), Some(word), "{word} byte by byte");
        assert!(reply.bytes.ends_with(bytes), "{word}: {reply:?}");
        proxy.access_line(word, |line| {
            line["protocol"] == word && line["route"] == format!("protocol:{word}")
        });
    }
}

#[test]
fn a_client_that_pauses_after_ambiguous_bytes_is_taken_as_unknown() {
    let recorder = Recorder::new("rest");
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nsilent_after = '300ms'\ntimeouts = {{ hello = '4s' }}\n\
         [[route]]\nprotocol = 'unknown'\nto = '{}'\n",
        recorder.backend
    ));
    // The beginning of an IMAP tag, of lengths, of a method.
    for (count, bytes) in [b"A".as_slice(), b"\0", b"\x10", b"PU", b"hello"].into_iter().enumerate() {
        let mut stream = connect(proxy.addr());
        let (took, got) = timed(|| outcome(&mut stream, bytes, SOON));
        assert_eq!(got, served("rest"), "{}", bytes.escape_ascii());
        assert!(took >= Duration::from_millis(290) && took < Duration::from_secs(3), "{took:?}");
        stream.write_all(b" and more").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
        wait_for("the backend", || recorder.received().len() == count + 1);
        assert_eq!(recorder.received()[count], [bytes, b" and more"].concat());
    }
    // One that has said all that it has to say is not waited for.
    let (took, reply) = timed(|| exchange(proxy.addr(), &[b"STATUS"]));
    assert_eq!(reply.bytes, b"tag:rest\nSTATUS");
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn what_may_become_tls_or_a_proxy_header_is_waited_for_until_the_deadline() {
    let backend = Backend::tagged("rest");
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nsilent_after = '50ms'\ntimeouts = {{ hello = '700ms' }}\n\
         [[route]]\nprotocol = ['unknown', 'silent']\nto = '{backend}'\n"
    ));
    for bytes in [b"\x16".as_slice(), b"\x16\x03", b"PROX", b"\r\n"] {
        let (took, got) = timed(|| probe(proxy.addr(), bytes));
        assert_eq!(got, Outcome::Closed, "{}", bytes.escape_ascii());
        assert!(took >= Duration::from_millis(650), "{took:?}");
    }
    assert_eq!(backend.hits(), 0);
}

#[test]
fn patterns_of_first_bytes_choose_a_route_however_the_bytes_are_cut() {
    let [long, short, desk, rest] = &["long", "short", "desk", "rest"].map(Backend::tagged);
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nsilent_after = '300ms'\n\
         [[route]]\nname = 'desk'\nbegins = '^\\xca\\xfe'\nfrom = '127.0.7.9'\nto = '{desk}'\n\
         [[route]]\nname = 'long'\nbegins = '^\\xca\\xfe\\x00+\\x01'\nto = '{long}'\n\
         [[route]]\nname = 'short'\nbegins = ['^\\xca\\xfe', '^STAT']\nto = '{short}'\n\
         [[route]]\nname = 'rest'\nprotocol = 'unknown'\nto = '{rest}'\n"
    ));
    let table: [(&[u8], &str); 6] = [
        (b"\xca\xfe\0\0\x01 and more", "long"),
        (b"\xca\xfe\0\0\x02 and more", "short"),
        (b"\xca\xfe", "short"),
        (b"STATUS?", "short"),
        (b"STATION", "short"),
        (b"\xca\xff", "rest"),
    ];
    for (bytes, tag) in table {
        assert_eq!(probe(proxy.addr(), bytes), served(tag), "{}", bytes.escape_ascii());
        let pieces: Vec<_> = bytes.chunks(1).collect();
        let reply = exchange(proxy.addr(), &pieces);
        assert_eq!(
            reply.bytes,
            [format!("tag:{tag}\n").as_bytes(), bytes].concat(),
            "{}",
            bytes.escape_ascii()
        );
    }
    let line = proxy.access_line("by a pattern", |line| line["route"] == "long");
    assert_eq!(line["protocol"], "unknown");
    assert_eq!(probe_from([127, 0, 7, 9].into(), proxy.addr(), b"\xca\xfe\0\0\x01"), served("desk"));
}

#[test]
fn check_tests_and_explain_know_first_bytes() {
    let config = "listen = '127.0.0.1:0'\n\
         [[route]]\nname = 'app'\nbegins = '^\\xca\\xfe'\nto = '127.0.0.1:9001'\n\
         [[route]]\nname = 'shell'\nprotocol = 'ssh'\nto = '127.0.0.1:22'\n\
         [[route]]\nname = 'rest'\nprotocol = 'unknown'\nreject = 'close'\n\
         [[test]]\nfirst = '\\xca\\xfe\\r\\n'\nexpect = { route = 'app' }\n\
         [[test]]\nfirst = \"SSH-2.0-x\"\nexpect = { route = 'shell' }\n\
         [[test]]\nfirst = 'A'\nexpect = { route = 'rest', reject = 'close' }\n\
         [[test]]\nfirst = '\\x16\\x03\\x01\\0\\0'\nexpect = 'reject'\n\
         [[test]]\nfirst = 'PROX'\nexpect = 'reject'\n";
    let checked = on_config("check", config, &[]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(checked.stdout.contains("5 of 5 tests") && checked.stdout.contains("^\\xca\\xfe"), "{checked:?}");
    for (first, came) in [("SSH-", "route `shell`"), ("\\x16\\x03\\x01\\0\\0", "refused before any route")] {
        let wrong = format!("{config}[[test]]\nfirst = '{first}'\nexpect = {{ route = 'app' }}\n");
        let checked = on_config("check", &wrong, &[]);
        assert_eq!(checked.code, Some(78), "{checked:?}");
        assert!(checked.stderr.contains(came) || checked.stdout.contains(came), "{checked:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let (file, path) = (dir.path().join("first.bin"), dir.path().join("portcullis.toml"));
    std::fs::write(&path, config).unwrap();
    let explain = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        on_file("explain", &path, &["--hello", file.to_str().unwrap()])
    };
    let app = explain(b"\xca\xfe\r\n").stdout;
    assert!(app.contains("first bytes ^\\xca\\xfe: route `app`") && app.contains("127.0.0.1:9001"), "{app}");
    let rest = explain(b"A").stdout;
    assert!(rest.contains("pauses") && rest.contains("`rest`"), "{rest}");
    assert_ne!(explain(b"\x16").code, Some(0));
}
