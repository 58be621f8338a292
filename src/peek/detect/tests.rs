use proptest::prelude::*;

use super::super::samples::SAMPLES;
use super::*;

fn detect(bytes: &[u8]) -> Option<Protocol> {
    Detector::new(16384).advance(bytes).unwrap().map(|preface| preface.protocol())
}

/// What comes of `bytes` when they arrive in pieces that end at `ends`, and how many had arrived by then.
fn in_pieces(
    bytes: &[u8],
    ends: impl IntoIterator<Item = usize>,
) -> (Result<Option<Preface>, HelloError>, usize) {
    let mut detector = Detector::new(16384);
    for end in ends.into_iter().chain([bytes.len()]) {
        let step = detector.advance(&bytes[..end]);
        if step != Ok(None) {
            return (step, end);
        }
    }
    (Ok(None), bytes.len())
}

/// The detectors that say `Is`.
fn claims(bytes: &[u8]) -> Vec<Protocol> {
    let claims = DETECTORS.into_iter().filter(|detection| (detection.step)(bytes) == Step::Is);
    claims.map(|detection| detection.protocol).collect()
}

/// All that must hold of any bytes.
fn assert_laws(bytes: &[u8]) {
    let shown = bytes.escape_ascii();
    for Detection { protocol, step } in DETECTORS {
        let mut before = Step::NeedMore;
        for len in 0..=bytes.len() {
            let now = step(&bytes[..len]);
            assert!(before == Step::NeedMore || now == before, "{protocol} at {len} of {shown}");
            before = now;
        }
        if bytes.first() == Some(&22) || Opening::of(bytes) == Opening::Header {
            assert_eq!(before, Step::No, "{protocol} of {shown}");
        }
    }
    let claims = claims(bytes);
    assert!(claims.len() <= 1, "{claims:?} of {shown}");
    let (stepwise, at) = in_pieces(bytes, 0..bytes.len());
    assert_eq!(in_pieces(bytes, []).0, stepwise, "at once and byte by byte, {shown}");
    for more in at..=bytes.len() {
        if !matches!(stepwise, Ok(Some(Preface::Tls(_)))) {
            assert_eq!(Detector::new(16384).advance(&bytes[..more]), stepwise, "{more} bytes of {shown}");
        }
    }
    if let [protocol] = *claims {
        assert_eq!(stepwise, Ok(Some(Preface::Other(protocol))), "{shown}");
    }
}

#[test]
fn what_real_clients_send_is_known_at_its_last_telling_byte_and_not_before() {
    for (client, bytes, telling, protocol) in SAMPLES {
        for len in 0..=bytes.len() {
            let expected = (len >= telling).then_some(protocol);
            assert_eq!(detect(&bytes[..len]), expected, "{len} bytes of {client}");
        }
    }
}

#[test]
fn every_detector_has_samples() {
    for Detection { protocol, .. } in DETECTORS {
        assert!(SAMPLES.iter().any(|(.., sample)| *sample == protocol), "{protocol}");
    }
}

#[test]
fn no_cut_of_a_sample_changes_what_it_is() {
    for (client, bytes, telling, protocol) in SAMPLES {
        assert_laws(bytes);
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let (step, at) = in_pieces(bytes, [first, second]);
                assert_eq!(step, Ok(Some(Preface::Other(protocol))), "{client} cut at {first} and {second}");
                assert!(at >= telling, "{client} cut at {first} and {second}");
            }
        }
    }
}

/// What resembles a protocol and is none, and how many bytes tell.
const NONE: [(&[u8], usize); 42] = [
    (b"SSL-VPN", 4),
    (b"GETX /", 5),
    (b"PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n", 14),
    (b"AMQP0123456789012", 17),
    (b"AMQP\x04", 5),
    (b"\0\0\0\x07\x04\xd2\x16/", 4),
    (b"\0\0\x27\x11\0\x03\0\0", 4),
    (b"\0\0\0\x09\x04\xd2\x16/", 8),
    (b"\0\0\0\x0f\x04\xd2\x16.", 8),
    (b"\0\0\0\x08\0\x03\0\0", 8),
    (b"\0\0\0\x30\0\x02\0\0", 8),
    // Kerberos over TCP, and a length with a message of another protocol.
    (b"\0\0\0\x80\x6a\x7e", 5),
    (b"\x10\x0b\0\x04MQTT", 2),
    (b"\x10\xff\xff\xff\xff\x01\0\x04MQTT", 5),
    (b"\x10\x11\0\x04MQTX", 8),
    (b"\x11\x11\0\x04MQTT", 1),
    (b"\0\x0d8\x0c\n", 2),
    (b"\0\x0e9\x0c\n", 3),
    (b"\x04\0\x38", 2),
    (b"\x04\x03\0P", 2),
    (b"\x05\0", 2),
    (b"\x05\x02\0\xff", 4),
    (b"\x06\x01", 1),
    (b"\x03\0\0,'\xd0\0", 6),
    (b"\x03\0\0,&\xe0\0", 5),
    (b"\x03\0\0\x05\0", 4),
    (b"\x03\0\x02\0", 3),
    (b"<?xmlversion", 6),
    (b"<stream>", 8),
    (b"EHLO\r\n", 5),
    (b"CAPA x\r\n", 5),
    // A command behind a word, which is no tag.
    (b"HELP LOGIN", 5),
    (b"a SELECT inbox\r\n", 4),
    (b"a1 IDLE\r\n", 6),
    (b"a234567890123456 7", 18),
    (b"a2345678901234567 LOGIN", 17),
    (b"..", 2),
    (b"*0\r\n", 2),
    (b"*12345678\r\n", 9),
    (b"*1\r\n+OK", 5),
    // SNMP over TCP, and LDAP from a server.
    (b"0\x26\x02\x01\x01\x04\x06public", 6),
    (b"0\x0c\x02\x01\x01a\x07\x0a\x01\0\x04\0\x04\0", 6),
];

#[test]
fn what_resembles_a_protocol_and_is_none_is_unknown_as_soon_as_that_shows() {
    for (bytes, telling) in NONE {
        for len in 0..=bytes.len() {
            let expected = (len >= telling).then_some(Protocol::Unknown);
            assert_eq!(detect(&bytes[..len]), expected, "{len} bytes of {}", bytes.escape_ascii());
        }
        assert_laws(bytes);
    }
}

#[test]
fn answers_and_broken_queries_are_no_dns() {
    const QUERY: &[u8] = b"\0\x1d\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01";
    assert_eq!(detect(QUERY), Some(Protocol::Dns));
    for (place, wrong) in [(0, 3), (1, 16), (4, 0x81), (4, 0x29), (5, 0x80), (5, 1), (7, 2), (9, 1), (11, 1)]
    {
        let mut bytes = QUERY.to_vec();
        bytes[place] = wrong;
        assert_eq!(detect(&bytes), Some(Protocol::Unknown), "{wrong} at {place}");
        assert_laws(&bytes);
    }
}

#[test]
fn a_header_of_a_proxy_is_never_a_protocol() {
    for header in [&b"PROXY UNKNOWN\r\n"[..], b"PROXY ?", b"\r\n\r\n\0\r\nQUIT\n!"] {
        let telling = if header[0] == b'P' { 6 } else { 12 };
        for len in 0..=header.len() {
            let expected = if len < telling { Ok(None) } else { Err(HelloError::ProxyHeader) };
            assert_eq!(Detector::new(16384).advance(&header[..len]), expected, "{len} bytes");
        }
    }
    assert_eq!(detect(b"PROXYING IT ALL"), Some(Protocol::Unknown));
    assert_eq!(detect(b"\r\nHELO"), Some(Protocol::Unknown));
}

#[test]
fn what_begins_like_tls_never_becomes_another_protocol() {
    let mut detector = Detector::new(16384);
    assert_eq!(detector.advance(&[22]), Ok(None));
    assert_eq!(detector.advance(&[22, 3]), Ok(None));
    assert!(!Detector::begins_tls(&[22]) && Detector::begins_tls(&[22, 3]));
    assert_eq!(detector.advance(&[22, 3, 1, 0, 0]), Err(HelloError::RecordLength));
    for byte in 0..=255 {
        assert_laws(&[22, byte]);
    }
    // SSL 2.0 hellos and other record types are not TLS handshakes.
    assert_eq!(detect(&[0x80, 0x2e, 1, 0, 2]), Some(Protocol::Unknown));
    assert_eq!(detect(&[22, 2]), Some(Protocol::Unknown));
    assert_eq!(detect(&[21, 3, 3, 0, 2, 2, 40]), Some(Protocol::Unknown));
}

#[test]
fn a_pause_settles_what_is_ambiguous_but_neither_tls_nor_a_header() {
    for bytes in [b"A".as_slice(), b"\0\0\0", b"PU", b"\x10", b"a1 ", b"\0\x20\x38\x01", b"hello", b"PRI * "]
    {
        let mut detector = Detector::new(16384);
        assert_eq!(detector.advance(bytes), Ok(None), "{}", bytes.escape_ascii());
        assert_eq!(
            detector.settle(bytes),
            Some(Preface::Other(Protocol::Unknown)),
            "{}",
            bytes.escape_ascii()
        );
    }
    for bytes in [
        b"".as_slice(),
        b"\x16",
        b"\x16\x03",
        b"\x16\x03\x01\x02\0\x01",
        b"P",
        b"PROXY",
        b"\r",
        b"\r\n\r\n\0",
    ] {
        let mut detector = Detector::new(16384);
        assert_eq!(detector.advance(bytes), Ok(None), "{}", bytes.escape_ascii());
        assert_eq!(detector.settle(bytes), None, "{}", bytes.escape_ascii());
    }
}

/// Bytes that get past the first few of many detectors.
fn telling() -> impl Strategy<Value = u8> {
    prop_oneof![
        any::<u8>(),
        prop::sample::select(
            b"\0\x01\x02\x03\x04\x05\x08\x0e\x10\x11\x16\x20\x30\x38\x50\x60\x82 *$.<0aAEIMPS\r\n".to_vec()
        ),
    ]
}

/// A sample, mutated: bytes overwritten, cut out and put in.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let edit = (any::<prop::sample::Index>(), telling(), 0..3u8);
    (prop::sample::select(SAMPLES.to_vec()), prop::collection::vec(edit, 1..4)).prop_map(|(sample, edits)| {
        let mut bytes = sample.1.to_vec();
        for (place, byte, kind) in edits {
            let place = place.index(bytes.len());
            match kind {
                0 => bytes[place] = byte,
                1 if bytes.len() > 1 => drop(bytes.remove(place)),
                _ => bytes.insert(place, byte),
            }
        }
        bytes
    })
}

/// What could be both of two samples: the beginning of one, then the other from there on.
fn spliced() -> impl Strategy<Value = Vec<u8>> {
    let sample = || prop::sample::select(SAMPLES.to_vec());
    (sample(), sample(), 0..16usize).prop_map(|(one, other, at)| {
        let first = one.1.iter().take(at).copied();
        first.chain(other.1.iter().skip(at).copied()).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn the_laws_hold_of_any_bytes(bytes in prop::collection::vec(telling(), 0..40)) {
        assert_laws(&bytes);
    }

    #[test]
    fn the_laws_hold_of_what_resembles_real_clients(bytes in prop_oneof![mutated(), spliced()]) {
        assert_laws(&bytes);
    }
}
