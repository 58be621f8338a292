//! Ambiguous names (L5) and first bytes that are no TLS hello with a name (L6): one reading or none.

use std::time::Duration;

use crate::support::backend::Backend;
use crate::support::client::{Outcome, connect, exchange, outcome, probe, served};
use crate::support::hello::{
    Keys, alpn, built, extension, handshake, host, message, message_of, real, record, sni, vec16,
};
use crate::support::proxy::Proxy;
use crate::support::{SOON, UNLIMITED};

const UNEXPECTED_MESSAGE: Outcome = Outcome::Alert(10);
const DECODE_ERROR: Outcome = Outcome::Alert(50);
const ILLEGAL_PARAMETER: Outcome = Outcome::Alert(47);
const UNRECOGNIZED_NAME: Outcome = Outcome::Alert(112);

/// Names and how they are read: as the name of a route, as one that no route knows, or as none.
fn names() -> Vec<(&'static [u8], Outcome)> {
    let mut table: Vec<(&[u8], Outcome)> = vec![
        (b"a.test", served("a")),
        (b"A.TEST", served("a")),
        (b"a.TeSt", served("a")),
        (b"a.test.", served("a")),
        (b"A.test.", served("a")),
        (b"x.wild.test", served("wild")),
        (b"X.Y.Wild.Test", served("wild")),
        (b"_srv.wild.test", served("wild")),
        (b"a-b.wild.test.", served("wild")),
        (b"xn--bcher-kva.wild.test", served("wild")),
        (b"wild.test", UNRECOGNIZED_NAME),
        (b"a.test.evil.test", UNRECOGNIZED_NAME),
        (b"evila.test", UNRECOGNIZED_NAME),
        (b"xwild.test", UNRECOGNIZED_NAME),
        (b"test", UNRECOGNIZED_NAME),
        (b"localhost", UNRECOGNIZED_NAME),
    ];
    let refused: [&[u8]; 22] = [
        b"",
        b".",
        b"..",
        b"a.test..",
        b".a.test",
        b"a..test",
        b"*",
        b"*.wild.test",
        b"a.test\0",
        b"\0a.test",
        b"a.test\0.evil.test",
        b"a.test ",
        b" a.test",
        b"a.test\n",
        b"a.test:443",
        b"a.test/",
        b"user@a.test",
        b"127.0.0.1",
        b"127.0.0.1.",
        b"::1",
        b"[::1]",
        b"\xc3\xa4.wild.test",
    ];
    table.extend(refused.map(|name| (name, ILLEGAL_PARAMETER)));
    table
}

/// Hellos whose list of names or of extensions is odd.
fn odd_lists() -> Vec<(&'static str, Vec<u8>, Outcome)> {
    let list = |entries: &[u8]| built(&[extension(0, &vec16(entries))]);
    let other_type = [&[1], vec16(b"x").as_slice()].concat();
    let two = [host(b"a.test"), host(b"x.wild.test")].concat();
    let same_twice = [host(b"a.test"), host(b"a.test")].concat();
    let long_label = [[b'a'; 64].as_slice(), b".wild.test"].concat();
    let name_of = |len: usize| [b"a.".repeat((len - 9) / 2), b"wild.test".to_vec()].concat();
    vec![
        ("two names", list(&two), ILLEGAL_PARAMETER),
        ("the same name twice", list(&same_twice), ILLEGAL_PARAMETER),
        ("another type first", list(&[other_type.clone(), host(b"a.test")].concat()), ILLEGAL_PARAMETER),
        ("another type last", list(&[host(b"a.test"), other_type.clone()].concat()), ILLEGAL_PARAMETER),
        ("only another type", list(&other_type), ILLEGAL_PARAMETER),
        ("two SNI extensions", built(&[sni(b"a.test"), sni(b"x.wild.test")]), ILLEGAL_PARAMETER),
        ("the same SNI twice", built(&[sni(b"a.test"), sni(b"a.test")]), ILLEGAL_PARAMETER),
        (
            "another extension twice",
            built(&[sni(b"a.test"), alpn(&[b"h2"]), alpn(&[b"h2"])]),
            ILLEGAL_PARAMETER,
        ),
        ("an empty extension", built(&[extension(0, &[])]), DECODE_ERROR),
        ("an empty list", list(&[]), DECODE_ERROR),
        ("a list longer than its extension", built(&[extension(0, &[0, 40, 0, 0, 1, b'a'])]), DECODE_ERROR),
        (
            "a list shorter than its extension",
            built(&[extension(0, &[vec16(&host(b"a.test")), vec![0]].concat())]),
            DECODE_ERROR,
        ),
        ("a name longer than its list", built(&[extension(0, &vec16(&[0, 0, 9, b'a']))]), DECODE_ERROR),
        ("a label of 64 bytes", built(&[sni(&long_label)]), ILLEGAL_PARAMETER),
        ("a name of 253 bytes", built(&[sni(&name_of(253))]), served("wild")),
        ("a name of 255 bytes", built(&[sni(&name_of(255))]), ILLEGAL_PARAMETER),
        ("a name of 10,001 bytes", built(&[sni(&name_of(10_001))]), ILLEGAL_PARAMETER),
    ]
}

/// Hellos that are odd outside the names.
fn odd_messages() -> Vec<(&'static str, Vec<u8>, Outcome)> {
    let ciphers: &[u8] = &[0x13, 1];
    vec![
        (
            "bytes after the hello in its record",
            record(&[message(&[sni(b"a.test")]), vec![0]].concat()),
            UNEXPECTED_MESSAGE,
        ),
        ("two hellos in a record", record(&message(&[sni(b"a.test")]).repeat(2)), UNEXPECTED_MESSAGE),
        ("a ServerHello", record(&handshake(2, &[0; 40])), UNEXPECTED_MESSAGE),
        ("no cipher suites", record(&message_of(0x0303, &[], &[0], Some(&sni(b"a.test")))), DECODE_ERROR),
        (
            "no compression methods",
            record(&message_of(0x0303, ciphers, &[], Some(&sni(b"a.test")))),
            DECODE_ERROR,
        ),
        (
            "half a cipher suite",
            record(&message_of(0x0303, &[1, 2, 3], &[0], Some(&sni(b"a.test")))),
            DECODE_ERROR,
        ),
        ("half an extension", record(&message_of(0x0303, ciphers, &[0], Some(&[0, 0, 0]))), DECODE_ERROR),
        ("an empty body", record(&handshake(1, &[])), DECODE_ERROR),
        ("TLS 1.0", record(&message_of(0x0301, ciphers, &[0], Some(&sni(b"a.test")))), served("a")),
        ("an empty ALPN list", built(&[sni(b"a.test"), extension(16, &[0, 0])]), DECODE_ERROR),
        ("an empty ALPN name", built(&[sni(b"a.test"), alpn(&[b""])]), DECODE_ERROR),
        (
            "SNI last behind GREASE",
            built(&[extension(0x5a5a, &[]), alpn(&[b"h2"]), sni(b"a.test")]),
            served("a"),
        ),
    ]
}

#[test]
fn ambiguous_names_are_refused_and_others_have_one_reading() {
    let backends = ["a", "wild", "none"].map(Backend::tagged);
    let [a, wild, none] = &backends;
    let mut proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}\
         [[route]]\nsni = 'a.test'\nto = '{a}'\n[[route]]\nsni = '*.wild.test'\nto = '{wild}'\n\
         [[route]]\nsni = 'none'\nto = '{none}'\n"
    ));
    let mut wrong = Vec::new();
    let mut served = 0;
    let names = names()
        .into_iter()
        .map(|(name, expected)| (name.escape_ascii().to_string(), built(&[sni(name)]), expected));
    let structures = odd_lists()
        .into_iter()
        .chain(odd_messages())
        .map(|(what, hello, expected)| (what.to_owned(), hello, expected));
    let table: Vec<_> = names.chain(structures).collect();
    assert!(table.len() >= 40);
    for (what, hello, expected) in &table {
        served += usize::from(matches!(expected, Outcome::Served(_)));
        let got = probe(proxy.addr(), hello);
        if got != *expected {
            wrong.push(format!("{what}: {got:?}, not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(backends.iter().map(Backend::hits).sum::<usize>(), served);
    let metrics = proxy.metrics();
    assert!(metrics.sum("portcullis_clienthello_errors_total", &[]) >= 35.0);
    proxy.assert_sound();
}

/// First bytes of what is not TLS with a name.
const HTTP: &[u8] = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SSH: &[u8] = b"SSH-2.0-OpenSSH_9.9\r\n";
const SSL2: &[u8] = &[0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10, 1, 0, 0x80];
const GARBAGE: &[u8] = &[0xde, 0xad, 0xbe, 0xef, 0, 1, 2, 3];

#[test]
fn without_routes_for_them_other_protocols_are_refused_with_a_reason() {
    let backend = Backend::tagged("a");
    let mut proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}timeouts = {{ hello = '1s' }}\n\
         [[route]]\nsni = 'a.test'\nto = '{backend}'\n"
    ));
    let addr = proxy.addr();
    for bytes in [SSL2, GARBAGE] {
        assert_eq!(probe(addr, bytes), Outcome::Closed, "{}", bytes.escape_ascii());
    }
    // In words of their own: an answer, GOAWAY (RFC 9113 §6.8), a disconnect message (RFC 4253 §11.1).
    let table = [(HTTP, &b"HTTP/1.1 400 "[..]), (HTTP2, b"\0\0\0\x04\0"), (SSH, b"SSH-2.0-")];
    for (bytes, words) in table {
        let reply = exchange(addr, &[bytes]);
        assert!(reply.bytes.starts_with(words), "{}: {reply:?}", bytes.escape_ascii());
    }
    assert_eq!(probe(addr, &real(None, &["h2"], Keys::PostQuantum)), UNRECOGNIZED_NAME, "no SNI");
    assert_eq!(probe(addr, &built(&[alpn(&[b"h2"])])), UNRECOGNIZED_NAME, "no SNI");
    let bare = record(&message_of(0x0301, &[0, 0x2f], &[0], None));
    assert_eq!(probe(addr, &bare), UNRECOGNIZED_NAME, "no extensions at all");
    assert_eq!(probe(addr, &crate::support::hello::to("b.test")), UNRECOGNIZED_NAME);
    assert_eq!(probe(addr, b""), Outcome::Closed, "silence until the deadline");
    // A port scanner goes away at once.
    drop(connect(addr));
    let logged = |reason: &str| proxy.access_log().iter().filter(|line| line["reason"] == reason).count();
    for (reason, count) in [("unknown_protocol", 5), ("no_sni", 3), ("unknown_sni", 1), ("hello_timeout", 1)]
    {
        crate::support::wait_for(reason, || logged(reason) == count);
    }
    proxy.wait_metric("portcullis_clienthello_errors_total", &[("reason", "hello_timeout")], 1.0);
    for (protocol, count) in [("http", 1), ("h2c", 1), ("ssh", 1), ("unknown", 2)] {
        let lines = proxy.access_log();
        let of =
            lines.iter().filter(|line| line["protocol"] == protocol && line["reason"] == "unknown_protocol");
        assert_eq!(of.count(), count, "{protocol}: {lines:#?}");
    }
    assert_eq!(backend.hits(), 0);
    proxy.assert_sound();
}

#[test]
fn each_protocol_reaches_the_route_made_for_it() {
    let backends = ["http", "ssh", "unknown", "silent", "none", "a"].map(Backend::tagged);
    let [http, ssh, unknown, silent, none, a] = &backends;
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nsilent_after = '300ms'\n\
         [[route]]\nprotocol = ['http', 'h2c']\nto = '{http}'\n[[route]]\nprotocol = 'ssh'\nto = '{ssh}'\n\
         [[route]]\nprotocol = 'unknown'\nto = '{unknown}'\n[[route]]\nprotocol = 'silent'\nto = '{silent}'\n\
         [[route]]\nsni = 'none'\nto = '{none}'\n[[route]]\nsni = 'a.test'\nto = '{a}'\n"
    ));
    let addr = proxy.addr();
    let table: [(&[u8], &str); 6] = [
        (HTTP, "http"),
        (HTTP2, "http"),
        (SSH, "ssh"),
        (SSL2, "unknown"),
        (GARBAGE, "unknown"),
        (b"", "silent"),
    ];
    for (bytes, tag) in table {
        assert_eq!(probe(addr, bytes), served(tag), "{}", bytes.escape_ascii());
    }
    assert_eq!(probe(addr, &real(None, &[], Keys::Classic)), served("none"));
    assert_eq!(probe(addr, &crate::support::hello::to("a.test")), served("a"));
    assert_eq!(probe(addr, &crate::support::hello::to("b.test")), UNRECOGNIZED_NAME, "unknown is not absent");
    // The first bytes of a protocol may be few; they are passed on whole.
    let mut slow = connect(addr);
    assert_eq!(outcome(&mut slow, b"SS", Duration::from_millis(100)), Outcome::Open);
    assert_eq!(outcome(&mut slow, b"H-2.0-x\r\n", SOON), served("ssh"));
    std::net::TcpStream::shutdown(&slow, std::net::Shutdown::Write).unwrap();
    let rest = crate::support::client::read_to_end(&mut slow, SOON).bytes;
    assert!(b"SSH-2.0-x\r\n".ends_with(&rest), "{}", rest.escape_ascii());
}

#[test]
fn absent_and_unknown_names_have_policies_of_their_own() {
    let backend = Backend::tagged("a");
    for (policies, unknown, absent, other) in [
        (
            "unknown_sni = 'reset'\nno_sni = 'close'\nunknown_protocol = 'reset'",
            Outcome::Reset,
            Outcome::Closed,
            Outcome::Reset,
        ),
        (
            "unknown_sni = 'close'\nno_sni = 'reset'\nunknown_protocol = 'alert'",
            Outcome::Closed,
            Outcome::Reset,
            Outcome::Closed,
        ),
        (
            "unknown_sni = 'alert'\nno_sni = 'answer'\nunknown_protocol = 'close'",
            UNRECOGNIZED_NAME,
            UNRECOGNIZED_NAME,
            Outcome::Closed,
        ),
    ] {
        let proxy = Proxy::start(&format!(
            "listen = '127.0.0.1:0'\n{policies}\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n"
        ));
        assert_eq!(probe(proxy.addr(), &crate::support::hello::to("b.test")), unknown, "{policies}");
        assert_eq!(probe(proxy.addr(), &real(None, &[], Keys::Classic)), absent, "{policies}");
        assert_eq!(probe(proxy.addr(), SSH), other, "{policies}");
    }
    assert_eq!(backend.hits(), 0);
}

#[test]
fn with_encrypted_client_hello_the_outer_name_decides() {
    let (outer, inner) = (Backend::tagged("outer"), Backend::tagged("rest"));
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n[[route]]\nsni = 'public.test'\nto = '{outer}'\n[[route]]\nsni = '*'\nto = '{inner}'\n"
    ));
    // An outer hello as RFC 9849 §5 has it: HPKE suite, config id, key and payload, all of them opaque here.
    let ech = [&[0, 0, 1, 0, 1, 42], vec16(&[5; 32]).as_slice(), &vec16(&[6; 208])].concat();
    let hello = built(&[sni(b"public.test"), extension(0xfe0d, &ech)]);
    assert_eq!(probe(proxy.addr(), &hello), served("outer"));
    assert_eq!(inner.hits(), 0);
}
