use std::sync::Arc;

use proptest::prelude::*;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, HandshakeKind, NamedGroup, RootCertStore, ServerConfig,
    ServerConnection,
};

use super::*;

type Kx = &'static dyn SupportedKxGroup;

/// A client and a server that trust each other, with the versions and groups of each.
struct Pair {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// What a server sent, flight by flight, and what both say of the handshake.
struct Talk {
    flights: Vec<Vec<u8>>,
    kind: HandshakeKind,
    group: Option<NamedGroup>,
}

fn provider(groups: &[Kx]) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { kx_groups: groups.to_vec(), ..aws_lc_rs::default_provider() })
}

impl Pair {
    fn new(version: &'static rustls::SupportedProtocolVersion, client: &[Kx], server: &[Kx]) -> Self {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider(client));
        let client = client.with_protocol_versions(&[version]).unwrap().with_root_certificates(roots);
        let server = ServerConfig::builder_with_provider(provider(server));
        let server = server.with_protocol_versions(&[version]).unwrap().with_no_client_auth();
        let mut server = server.with_single_cert(vec![cert.der().clone()], key).unwrap();
        server.ticketer = aws_lc_rs::Ticketer::new().unwrap();
        Self { client: Arc::new(client.with_no_client_auth()), server: Arc::new(server) }
    }

    /// Shakes hands, and lets the client hear of tickets.
    fn talk(&self) -> Talk {
        let name = ServerName::try_from("a.test").unwrap();
        let mut client = ClientConnection::new(Arc::clone(&self.client), name).unwrap();
        let mut server = ServerConnection::new(Arc::clone(&self.server)).unwrap();
        let mut flights = Vec::new();
        while client.is_handshaking() || server.is_handshaking() || server.wants_write() {
            hear(&mut server, &said(&mut client));
            let flight = said(&mut server);
            hear(&mut client, &flight);
            flights.push(flight);
        }
        let group = client.negotiated_key_exchange_group().map(SupportedKxGroup::name);
        Talk { flights, kind: client.handshake_kind().unwrap(), group }
    }
}

fn said<D>(tls: &mut ConnectionCommon<D>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut bytes).unwrap();
    }
    bytes
}

fn hear<D>(tls: &mut ConnectionCommon<D>, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        tls.read_tls(&mut bytes).unwrap();
        tls.process_new_packets().unwrap();
    }
}

const CLASSIC: [Kx; 2] = [aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1];
const HYBRID: [Kx; 2] = [aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519];

fn chosen(version: TlsVersion, key_exchange: Option<KeyExchange>, resumed: Option<bool>) -> Option<Answer> {
    Some(Answer::Chosen(Handshake { version: Some(version), key_exchange, resumed }))
}

fn group_of(talk: &Talk) -> Option<KeyExchange> {
    talk.group.map(|group| KeyExchange::Group(Group::of(group.into())))
}

#[test]
fn of_tls_1_3_all_is_in_the_hello() {
    for (groups, expected) in [(&CLASSIC, Group::X25519), (&HYBRID, Group::X25519Mlkem768)] {
        let pair = Pair::new(&rustls::version::TLS13, groups, groups);
        for (kind, resumed) in [(HandshakeKind::Full, false), (HandshakeKind::Resumed, true)] {
            let talk = pair.talk();
            assert_eq!((talk.kind, group_of(&talk)), (kind, Some(KeyExchange::Group(expected))));
            assert_eq!(
                Answer::read(&talk.flights[0]),
                chosen(TlsVersion::Tls13, group_of(&talk), Some(resumed))
            );
        }
    }
}

#[test]
fn a_retry_comes_before_the_choice() {
    // The client sends a key for its first group alone, which the server does not have.
    let talk = Pair::new(&rustls::version::TLS13, &CLASSIC, &CLASSIC[1..]).talk();
    assert_eq!(talk.kind, HandshakeKind::FullWithHelloRetryRequest);
    assert_eq!(Answer::read(&talk.flights[0]), Some(Answer::Retry));
    let second = chosen(TlsVersion::Tls13, Some(KeyExchange::Group(Group::Secp256r1)), Some(false));
    assert_eq!(Answer::read(&talk.flights[1]), second);
    // The record that is there for middleboxes may come alone, or before the hello.
    let filler = [20, 3, 3, 0, 1, 1];
    assert_eq!(Answer::read(&filler), None);
    assert_eq!(Answer::read(&[&filler, talk.flights[1].as_slice()].concat()), second);
}

#[test]
fn of_tls_1_2_the_messages_behind_the_hello_tell() {
    let pair = Pair::new(&rustls::version::TLS12, &CLASSIC, &CLASSIC);
    let talk = pair.talk();
    assert_eq!(talk.kind, HandshakeKind::Full);
    let group = Some(KeyExchange::Group(Group::X25519));
    assert_eq!(Answer::read(&talk.flights[0]), chosen(TlsVersion::Tls12, group, Some(false)));
    let talk = pair.talk();
    assert_eq!(talk.kind, HandshakeKind::Resumed);
    let resumed = chosen(TlsVersion::Tls12, Some(KeyExchange::None), Some(true));
    assert_eq!(Answer::read(&talk.flights[0]), resumed);
}

fn record(kind: u8, fragment: &[u8]) -> Vec<u8> {
    [&[kind, 3, 3], u16::try_from(fragment.len()).unwrap().to_be_bytes().as_slice(), fragment].concat()
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind], &u32::try_from(body.len()).unwrap().to_be_bytes()[1..], body].concat()
}

/// A ServerHello of TLS 1.2 or before, without extensions.
fn old_hello(version: u16, cipher: u16) -> Vec<u8> {
    message(2, &[&version.to_be_bytes(), [7; 32].as_slice(), &[0], &cipher.to_be_bytes(), &[0]].concat())
}

#[test]
fn the_cipher_suite_says_whether_a_group_is_to_be_looked_for() {
    let ecdhe = message(12, &[3, 0, 24, 1, 4]);
    let explicit = message(12, &[1, 0, 24, 1, 4]);
    // A prime of 768 bytes begins like a named curve.
    let dhe = message(12, &[3, 0, 29, 29, 29]);
    let group = |group| Some(KeyExchange::Group(group));
    let table = [
        (0xc02f, &ecdhe, group(Group::Secp384r1)),
        (0xc02f, &explicit, None),
        (0x009e, &dhe, group(Group::Ffdhe)),
        // Static RSA, and a suite that nobody knows.
        (0x009c, &ecdhe, Some(KeyExchange::None)),
        (0xfefe, &ecdhe, None),
        // ECDHE_PSK has something else before the curve.
        (0xc035, &ecdhe, None),
    ];
    for (cipher, exchange, expected) in table {
        for (version, number) in [(TlsVersion::Tls12, 0x0303), (TlsVersion::Tls10, 0x0301)] {
            let messages = [old_hello(number, cipher), message(11, &[0, 0, 0]), exchange.clone()];
            let read = chosen(version, expected, Some(false));
            assert_eq!(Answer::read(&record(22, &messages.concat())), read, "{cipher:#x}");
            // A record each, as OpenSSL sends them.
            let apart: Vec<u8> = messages.iter().flat_map(|message| record(22, message)).collect();
            assert_eq!(Answer::read(&apart), read, "{cipher:#x}");
        }
    }
}

#[test]
fn what_is_cut_off_or_odd_is_unknown() {
    let hello = record(22, &old_hello(0x0303, 0xc02f));
    assert_eq!(Answer::read(&hello), chosen(TlsVersion::Tls12, None, None), "nothing behind it");
    let unknown = Some(Answer::Chosen(Handshake::default()));
    assert_eq!(Answer::read(&hello[..hello.len() - 1]), unknown);
    assert_eq!(Answer::read(b"220 mail.test ESMTP\r\n"), unknown);
    assert_eq!(Answer::read(&record(22, &message(1, &[]))), unknown, "a ClientHello");
    assert_eq!(Answer::read(&record(23, &[0; 40])), unknown);
    assert_eq!(Answer::read(&record(21, &[2, 40])), Some(Answer::Refused(40)));
    // The end of an alert is missing, and so is what it says.
    assert_eq!(Answer::read(&[21, 3, 3, 0, 3, 1, 112]), unknown);
    let warned = [record(21, &[1, 112]), hello].concat();
    assert_eq!(Answer::read(&warned), chosen(TlsVersion::Tls12, None, None));
}

proptest! {
    /// Of the beginning of an answer nothing is told that is not so.
    #[test]
    fn every_prefix_is_unknown_or_right(mlkem in any::<bool>(), old in any::<bool>()) {
        let version = if old { &rustls::version::TLS12 } else { &rustls::version::TLS13 };
        let talk = Pair::new(version, if mlkem && !old { &HYBRID } else { &CLASSIC }, &HYBRID).talk();
        let whole = &talk.flights[0];
        let Some(Answer::Chosen(right)) = Answer::read(whole) else { panic!("no choice") };
        let or_unknown = |told: [&str; 3]| told.iter().zip(right.words()).all(|(told, right)| *told == right || *told == "unknown");
        for len in 0..=whole.len() {
            match Answer::read(&whole[..len]) {
                None => assert_eq!(len, 0),
                Some(Answer::Chosen(told)) => assert!(or_unknown(told.words()), "after {len} bytes: {told:?}"),
                Some(other) => panic!("after {len} bytes: {other:?}"),
            }
        }
    }

    #[test]
    fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..200) {
        let hello = [record(22, &old_hello(0x0303, 0xc02f)), bytes.clone()].concat();
        let _ = (Answer::read(&bytes), Answer::read(&hello[..cut.min(hello.len())]));
    }
}
