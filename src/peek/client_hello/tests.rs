use std::sync::Arc;

use proptest::prelude::*;
use rustls::pki_types::ServerName as TlsName;
use rustls::server::Acceptor;

use super::super::{Detector, Preface, Protocol};
use super::*;

const MAX: usize = 16384;

/// A real hello, one record: of rustls, with or without a post-quantum key share.
fn rustls_hello(sni: Option<&str>, alpn: &[&str], post_quantum: bool) -> Vec<u8> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups.retain(|group| post_quantum || group.name() != rustls::NamedGroup::X25519MLKEM768);
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.enable_sni = sni.is_some();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = TlsName::try_from(sni.unwrap_or("unused.test").to_owned()).unwrap();
    let mut hello = Vec::new();
    rustls::ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut hello).unwrap();
    hello
}

fn vec16(body: &[u8]) -> Vec<u8> {
    [&u16::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().as_slice(), &vec16(body)].concat()
}

fn sni(name: &[u8]) -> Vec<u8> {
    extension(0, &vec16(&[&[0], vec16(name).as_slice()].concat()))
}

/// A handshake message with these extensions, header included.
fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
    let body =
        [&[3, 3], [7; 32].as_slice(), &[0], &vec16(&[0x13, 0x01]), &[1, 0], &vec16(&extensions.concat())]
            .concat();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1], &length[1..], &body].concat()
}

fn record(fragment: &[u8]) -> Vec<u8> {
    [&[22, 3, 1], vec16(fragment).as_slice()].concat()
}

/// The same message in records of `size` bytes.
fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    hello[RECORD_HEADER..].chunks(size).flat_map(record).collect()
}

fn read(bytes: &[u8]) -> Result<Option<ClientHello>, HelloError> {
    HelloReader::default().advance(bytes, MAX).map(|assembled| assembled.map(|assembled| assembled.hello))
}

fn read_all(bytes: &[u8]) -> ClientHello {
    read(bytes).unwrap().expect("a complete hello")
}

/// Feeds growing prefixes, cut at `cuts`, to one detector.
fn read_in_steps(bytes: &[u8], cuts: &[usize]) -> Result<Option<Preface>, HelloError> {
    let mut detector = Detector::new(MAX);
    for cut in cuts.iter().copied().chain([bytes.len()]) {
        if let Some(preface) = detector.advance(&bytes[..cut])? {
            return Ok(Some(preface));
        }
    }
    Ok(None)
}

#[test]
fn reads_a_real_hello() {
    for post_quantum in [false, true] {
        let bytes = rustls_hello(Some("A.Test"), &["h2", "http/1.1"], post_quantum);
        let hello = read_all(&bytes);
        assert_eq!(hello.server_name.unwrap().as_str(), "a.test");
        assert_eq!(hello.alpn.iter().collect::<Vec<_>>(), [b"h2".as_slice(), b"http/1.1"]);
        assert_eq!(hello.versions, [0x0304, 0x0303]);
        assert_eq!(hello.groups.contains(&0x11ec), post_quantum);
        assert_eq!(hello.key_shares.first() == Some(&0x11ec), post_quantum);
        assert_eq!((hello.size, hello.records, hello.ech), (bytes.len() - RECORD_HEADER, 1, false));
    }
    let hello = read_all(&rustls_hello(None, &[], true));
    assert_eq!((hello.server_name, hello.alpn.is_empty()), (None, true));
}

#[test]
fn every_prefix_needs_more_and_every_split_gives_the_same() {
    let bytes = rustls_hello(Some("a.test"), &["h2"], true);
    let whole = read_all(&bytes);
    let mut reader = HelloReader::default();
    for len in 0..bytes.len() {
        assert_eq!(reader.advance(&bytes[..len], MAX), Ok(None), "after {len} bytes");
    }
    assert_eq!(reader.advance(&bytes, MAX).unwrap().unwrap().hello, whole);
    for size in 1..bytes.len() {
        let split = in_records(&bytes, size);
        let hello = read_all(&split);
        let records = (bytes.len() - RECORD_HEADER).div_ceil(size);
        assert_eq!(usize::from(hello.records), records);
        assert_eq!(ClientHello { records: 1, ..hello }, whole, "records of {size} bytes");
    }
}

#[test]
fn what_follows_the_hello_is_not_part_of_it() {
    let hello = rustls_hello(Some("a.test"), &[], true);
    let bytes = [hello.as_slice(), &[23, 3, 3, 0, 1, 0]].concat();
    let assembled = HelloReader::default().advance(&bytes, MAX).unwrap().unwrap();
    assert_eq!(assembled.wire_len, hello.len());
}

#[test]
fn server_names_that_could_be_read_in_two_ways_are_refused() {
    let list = |entries: &[u8]| read(&record(&message(&[extension(0, entries)])));
    let entry = |name: &[u8]| [&[0], vec16(name).as_slice()].concat();
    assert_eq!(list(&vec16(&entry(b"a.test"))).unwrap().unwrap().server_name.unwrap().as_str(), "a.test");
    let two = vec16(&[entry(b"a.test"), entry(b"b.test")].concat());
    let other_type_first = vec16(&[[&[1], vec16(b"x").as_slice()].concat(), entry(b"a.test")].concat());
    let other_type_last = vec16(&[entry(b"a.test"), [&[1], vec16(b"x").as_slice()].concat()].concat());
    assert_eq!(list(&two), Err(HelloError::SeveralNames));
    assert_eq!(list(&other_type_first), Err(HelloError::SeveralNames));
    assert_eq!(list(&other_type_last), Err(HelloError::SeveralNames));
    assert_eq!(list(&[]), Err(HelloError::Syntax));
    assert_eq!(list(&[0, 0]), Err(HelloError::Syntax));
    assert_eq!(list(&vec16(&entry(b""))), Err(HelloError::Name(NameError::Empty)));
    assert_eq!(list(&[vec16(&entry(b"a.test")), vec![0]].concat()), Err(HelloError::Syntax));
    assert_eq!(list(&vec16(&entry(b"10.0.0.1"))), Err(HelloError::Name(NameError::IpLiteral)));
    assert_eq!(
        read(&record(&message(&[sni(b"a.test"), sni(b"a.test")]))),
        Err(HelloError::DuplicateExtension)
    );
    let apart = message(&[sni(b"a.test"), extension(0x5a5a, b""), extension(0x5a5a, b"")]);
    assert_eq!(read(&record(&apart)), Err(HelloError::DuplicateExtension));
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let good = message(&[sni(b"a.test")]);
    // The list of extensions one byte longer or shorter than its bytes.
    for change in [1i16, -1] {
        let mut bad = good.clone();
        let at = 4 + 2 + 32 + 1 + 4 + 2;
        let length = i16::from_be_bytes([bad[at], bad[at + 1]]) + change;
        bad[at..at + 2].copy_from_slice(&length.to_be_bytes());
        assert_eq!(read(&record(&bad)), Err(HelloError::Syntax), "{change}");
    }
    assert_eq!(read(&record(&message(&[extension(16, &[0, 0])]))), Err(HelloError::Syntax));
    assert_eq!(read(&record(&message(&[extension(16, &[0, 1, 0])]))), Err(HelloError::Syntax));
    assert_eq!(read(&record(&message(&[extension(43, &[3, 3, 4, 3])]))), Err(HelloError::Syntax));
    assert_eq!(read(&record(&message(&[extension(10, &[0, 1, 0])]))), Err(HelloError::Syntax));
    assert_eq!(read(&record(&message(&[extension(51, &[0, 4, 0, 29, 0, 0])]))), Err(HelloError::Syntax));
}

#[test]
fn records_that_are_no_part_of_a_hello_are_refused() {
    let message = message(&[sni(b"a.test")]);
    let (first, second) = message.split_at(30);
    let between = |middle: &[u8]| read(&[&record(first), middle, &record(second)].concat());
    assert!(between(&[]).unwrap().is_some());
    assert_eq!(between(&[22, 3, 3, 0, 0]), Err(HelloError::RecordLength), "an empty record");
    assert_eq!(between(&[21, 3, 3, 0, 2, 1, 0]), Err(HelloError::NotHandshake), "an alert");
    assert_eq!(between(&[20, 3, 3, 0, 1, 1]), Err(HelloError::NotHandshake), "ChangeCipherSpec");
    assert_eq!(between(&[22, 2, 0, 0, 1, 0]), Err(HelloError::NotHandshake), "another version");
    assert_eq!(read(&record(&[message.as_slice(), &[0]].concat())), Err(HelloError::TrailingBytes));
    assert_eq!(read(&record(&[2, 0, 0, 1, 0])), Err(HelloError::NotClientHello));
    assert_eq!(read(&[22, 3, 1, 0x40, 1]), Err(HelloError::RecordLength));
}

#[test]
fn the_limit_counts_bytes_on_the_wire() {
    let padded = |size: usize| {
        let bare = record(&message(&[sni(b"a.test"), extension(21, &[])])).len();
        record(&message(&[sni(b"a.test"), extension(21, &vec![0; size - bare])]))
    };
    assert!(read(&padded(MAX)).unwrap().is_some());
    assert_eq!(read(&padded(MAX + 1)), Err(HelloError::TooLarge));
    // Known from the header alone, long before the bytes are there.
    assert_eq!(read(&[22, 3, 1, 0x10, 0, 1, 0, 0xff, 0xff]), Err(HelloError::TooLarge));
    // The headers of small records count too.
    let spread = in_records(&padded(8192), 1);
    assert_eq!(read(&spread), Err(HelloError::TooLarge));
    assert!(HelloReader::default().advance(&spread, spread.len()).unwrap().is_some());
}

/// Two things are wrong with these; which one is told must not depend on how they are cut.
#[test]
fn the_first_thing_wrong_is_told_however_the_bytes_are_cut() {
    let long_and_no_hello = [22, 3, 1, 0x3f, 0xff, 0xff, 0xff];
    let long_and_no_record = [in_records(&rustls_hello(None, &[], false), 1), vec![21; 5]].concat();
    for (bytes, max) in [(long_and_no_hello.as_slice(), 16384), (&long_and_no_record, 600)] {
        let whole = HelloReader::default().advance(bytes, max);
        let mut reader = HelloReader::default();
        let steps =
            (0..=bytes.len()).map(|len| reader.advance(&bytes[..len], max)).find(|step| *step != Ok(None));
        assert_eq!(steps, Some(whole.clone()));
        assert_eq!(whole, Err(HelloError::TooLarge));
    }
}

/// The hello with only the extensions that routing reads, so that another parser judges just those.
fn reduced(message: &[u8]) -> Vec<u8> {
    let (_, contents) = parse_tls_handshake_client_hello(&message[HANDSHAKE_HEADER..]).unwrap();
    let mut extensions = Cursor::new(contents.ext.unwrap_or_default());
    // rustls wants signature algorithms before it shows a hello at all.
    let mut kept = extension(13, &vec16(&[4, 3]));
    while !extensions.is_empty() {
        let (kind, body) = (extensions.u16().unwrap(), extensions.vec16().unwrap());
        if [0, 10, 16, 43].contains(&kind) {
            kept.extend(extension(kind, body));
        }
    }
    let fixed = message.len() - HANDSHAKE_HEADER - contents.ext.map_or(0, |list| list.len() + 2);
    let body = [&message[HANDSHAKE_HEADER..HANDSHAKE_HEADER + fixed], &vec16(&kept)].concat();
    [&[1], &u32::try_from(body.len()).unwrap().to_be_bytes()[1..], body.as_slice()].concat()
}

/// The first handshake message in these records, which is complete.
fn joined(bytes: &[u8]) -> Vec<u8> {
    let mut records = Cursor::new(bytes);
    let mut message = Vec::new();
    while records.take(3).is_some() {
        message.extend_from_slice(records.vec16().unwrap_or_default());
    }
    let length = u32::from_be_bytes([0, message[1], message[2], message[3]]);
    message.truncate(HANDSHAKE_HEADER + usize::try_from(length).unwrap());
    message
}

/// What rustls reads: the name and the ALPN offers, or `None` when it finds the message malformed.
fn rustls_reads(bytes: &[u8]) -> Option<(Option<String>, Vec<Vec<u8>>)> {
    let mut acceptor = Acceptor::default();
    acceptor.read_tls(&mut &*bytes).unwrap();
    match acceptor.accept() {
        Ok(Some(accepted)) => {
            let hello = accepted.client_hello();
            let alpn = hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect();
            Some((hello.server_name().map(str::to_ascii_lowercase), alpn))
        }
        Ok(None) => None,
        Err((rustls::Error::InvalidMessage(_), _)) => None,
        // Well-formed, and refused for what it offers: nothing that routing decides.
        Err(_) => Some((None, Vec::new())),
    }
}

#[test]
fn the_oracle_reads_names() {
    let hello = rustls_hello(Some("a.test"), &["h2"], true);
    let reduced = record(&reduced(&hello[RECORD_HEADER..]));
    assert_eq!(rustls_reads(&reduced), Some((Some("a.test".to_owned()), vec![b"h2".to_vec()])));
    let two_names = vec16(
        &[[&[0], vec16(b"a.test").as_slice()].concat(), [&[0], vec16(b"b.test").as_slice()].concat()]
            .concat(),
    );
    assert_eq!(rustls_reads(&record(&message(&[extension(0, &two_names)]))), None);
}

#[derive(Clone, Debug)]
enum Mutation {
    Set(usize, u8),
    Insert(usize, u8),
    Remove(usize),
}

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    // Mostly near the front, where lengths and names are.
    let at = prop_oneof![0..64usize, 0..400usize, 0..2000usize];
    let one = (at, any::<u8>(), 0..4u8).prop_map(|(at, byte, kind)| match kind {
        0 => Mutation::Insert(at, byte),
        1 => Mutation::Remove(at),
        _ => Mutation::Set(at, byte),
    });
    prop::collection::vec(one, 0..4)
}

fn mutate(bytes: &mut Vec<u8>, mutations: &[Mutation]) {
    for mutation in mutations {
        let len = bytes.len();
        match *mutation {
            Mutation::Set(at, byte) => bytes[at % len] = byte,
            Mutation::Insert(at, byte) => bytes.insert(at % len, byte),
            Mutation::Remove(at) => drop(bytes.remove(at % len)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// However a stream is cut into segments, the verdict is that of the whole stream.
    #[test]
    fn segments_never_change_the_result(
        post_quantum: bool, size in 1..2000usize, mutations in mutations(),
        mut cuts in prop::collection::vec(0..4000usize, 0..12),
    ) {
        let mut bytes = in_records(&rustls_hello(Some("a.test"), &["h2"], post_quantum), size);
        mutate(&mut bytes, &mutations);
        cuts.retain(|cut| *cut < bytes.len());
        cuts.sort_unstable();
        prop_assert_eq!(read_in_steps(&bytes, &cuts), read_in_steps(&bytes, &[]));
    }

    /// Stricter than rustls, never looser: what is read here, rustls reads too, and the same.
    #[test]
    fn agrees_with_rustls(post_quantum: bool, size in 1..2000usize, mutations in mutations()) {
        let mut hello = rustls_hello(Some("a.test"), &["h2", "http/1.1"], post_quantum);
        mutate(&mut hello, &mutations);
        let bytes = if hello.starts_with(&[22, 3, 1]) { in_records(&hello, size) } else { hello };
        if let Ok(Some(ours)) = read(&bytes) {
            let reduced = record(&reduced(&joined(&bytes)));
            let Some((name, alpn)) = rustls_reads(&reduced) else {
                return Err(TestCaseError::fail("rustls finds it malformed"));
            };
            if let Some(name) = name {
                prop_assert_eq!(Some(name.trim_end_matches('.')), ours.server_name.as_ref().map(ServerName::as_str));
                prop_assert_eq!(alpn, ours.alpn.iter().map(<[u8]>::to_vec).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Detector::new(MAX).advance(&bytes);
        let _ = ClientHello::parse(&bytes);
        let _ = Detector::new(MAX).advance(&[&[22, 3, 1], vec16(&bytes).as_slice()].concat());
    }
}

#[test]
fn early_data_is_seen_and_what_belongs_to_a_hello_is_counted() {
    let hello = |extensions: &[Vec<u8>]| record(&message(extensions));
    let plain = hello(&[sni(b"a.test")]);
    for (bytes, early_data) in [
        (plain.clone(), false),
        (in_records(&plain, 10), false),
        (hello(&[extension(42, &[]), sni(b"a.test")]), true),
        // Empty in a hello, but a server that does not mind may take it for one.
        (hello(&[sni(b"a.test"), extension(42, &[0])]), true),
        (in_records(&hello(&[sni(b"a.test"), extension(42, &[])]), 7), true),
    ] {
        let read = read_all(&bytes);
        assert_eq!((read.early_data, read.wire_len()), (early_data, bytes.len()));
        let preface = Preface::Tls(Box::new(read));
        assert_eq!(preface.may_be_repeated(bytes.len()), !early_data);
        assert!(!preface.may_be_repeated(bytes.len() + 1), "with something behind it");
    }
    let other = [Protocol::Http, Protocol::Ssh, Protocol::Unknown];
    assert!(other.iter().all(|protocol| !Preface::Other(*protocol).may_be_repeated(1)));
    // Where the server speaks first, nothing was said.
    assert!([Protocol::Silent, Protocol::Smtp].iter().all(|it| Preface::Other(*it).may_be_repeated(0)));
}

#[test]
fn an_offer_to_resume_is_seen() {
    let versions = |list: &[u8]| extension(43, &[&[u8::try_from(list.len()).unwrap()], list].concat());
    let both = versions(&[3, 4, 3, 3]);
    let hello = |extensions: &[Vec<u8>]| read_all(&record(&message(extensions))).resumption;
    assert!(!hello(&[sni(b"a.test"), both.clone()]));
    assert!(!hello(&[extension(35, &[]), both.clone()]), "it asks for a ticket");
    assert!(hello(&[extension(35, &[1, 2, 3])]));
    assert!(hello(&[both.clone(), extension(41, &[0, 0])]));
    // An id of 32 bytes in place of none.
    let with_id = |extensions: &[Vec<u8>]| {
        let plain = message(extensions);
        let body = [&plain[4..38], &[32], [9; 32].as_slice(), &plain[39..]].concat();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        read_all(&record(&[&[1], &length[1..], body.as_slice()].concat())).resumption
    };
    assert!(with_id(&[sni(b"a.test")]));
    assert!(!with_id(&[sni(b"a.test"), both]), "made up for middleboxes");
}
