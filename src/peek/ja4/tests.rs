use proptest::prelude::*;

use super::super::{ClientHello, Detector, HelloError};
use super::*;

/// A hello of Chrome as it came from the wire; CyberChef (GCHQ) publishes it with its fingerprint, as a test of
/// its operation "JA4 Fingerprint".
const CHROME: &str = include_str!("../../../tests/data/hello/chrome.hex");
const CHROME_JA4: &str = "t13d1516h2_8daaf6152771_e5627efa2ab1";

/// Ciphers, extensions and signature algorithms of a published fingerprint.
type Lists = (&'static [u16], &'static [u16], &'static [u16]);

/// The example of the specification.
const SPECIFIED: Lists = (
    &[
        0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0xc014, 0x009c,
        0x009d, 0x002f, 0x0035,
    ],
    &[
        0x001b, 0x0000, 0x0033, 0x0010, 0x4469, 0x0017, 0x002d, 0x000d, 0x0005, 0x0023, 0x0012, 0x002b,
        0xff01, 0x000b, 0x000a, 0x0015,
    ],
    &[0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601],
);
/// Of FoxIO's `sigalg-grease.pcapng`, a Chrome that puts GREASE among its signature algorithms.
const GREASED: Lists = (
    SPECIFIED.0,
    &[
        0xfe0d, 0x0010, 0x0017, 0x0033, 0x44cd, 0xff01, 0x000a, 0x000d, 0x0023, 0x002b, 0x000b, 0xca34,
        0x002d, 0x0000, 0x0005, 0x001b, 0x0012,
    ],
    &[0x0a0a, 0x0904, 0x0905, 0x0906, 0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601],
);
/// Of FoxIO's `tls12.pcap`, a Firefox.
const FIREFOX: Lists = (
    &[
        0x1301, 0x1303, 0x1302, 0xc02b, 0xc02f, 0xcca9, 0xcca8, 0xc02c, 0xc030, 0xc00a, 0xc009, 0xc013,
        0xc014, 0x009c, 0x009d, 0x002f, 0x0035,
    ],
    &[
        0x0000, 0x0017, 0xff01, 0x000a, 0x000b, 0x0023, 0x0010, 0x0005, 0x0022, 0x0033, 0x002b, 0x000d,
        0x002d, 0x001c, 0x0015,
    ],
    &[0x0403, 0x0503, 0x0603, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601, 0x0203, 0x0201],
);
/// Of FoxIO's `tls-alpn-h2.pcap`: TLS 1.2, and signature algorithms that only look like GREASE.
const OLD: Lists = (
    &[
        0xc030, 0xc02c, 0xc028, 0xc024, 0xc014, 0xc00a, 0x009f, 0x006b, 0x0039, 0xcca9, 0xcca8, 0xccaa,
        0xff85, 0x00c4, 0x0088, 0x0081, 0x009d, 0x003d, 0x0035, 0x00c0, 0x0084, 0xc02f, 0xc02b, 0xc027,
        0xc023, 0xc013, 0xc009, 0x009e, 0x0067, 0x0033, 0x00be, 0x0045, 0x009c, 0x003c, 0x002f, 0x00ba,
        0x0041, 0xc011, 0xc007, 0x0005, 0x0004, 0xc012, 0xc008, 0x0016, 0x000a, 0x00ff,
    ],
    &[0x0000, 0x000b, 0x000a, 0x000d, 0x0010],
    &[0x0601, 0x0603, 0xefef, 0x0501, 0x0503, 0x0401, 0x0403, 0xeeee, 0xeded, 0x0301, 0x0303, 0x0201, 0x0203],
);

fn numbers(list: &[u16]) -> Vec<u8> {
    list.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn vec16(body: &[u8]) -> Vec<u8> {
    [&u16::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

fn alpn(name: &[u8]) -> Vec<u8> {
    vec16(&[&[u8::try_from(name.len()).unwrap()], name].concat())
}

/// The body of an extension of this kind: of those that are read a good one, of others something.
fn body(kind: u16, versions: &[u16], signatures: &[u16]) -> Vec<u8> {
    match kind {
        0x0000 => vec16(&[&[0], vec16(b"a.test").as_slice()].concat()),
        0x000a => vec16(&[0, 29]),
        0x000d => vec16(&numbers(signatures)),
        0x0010 => alpn(b"h2"),
        0x002b => [&[u8::try_from(versions.len() * 2).unwrap()], numbers(versions).as_slice()].concat(),
        0x0033 => vec16(&[0, 29, 0, 1, 7]),
        _ => vec![7; usize::from(kind % 5)],
    }
}

/// A handshake message of these ciphers and extensions, of TLS 1.2 by its own account.
fn message(ciphers: &[u16], extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let extension = |(kind, body): &(u16, Vec<u8>)| [kind.to_be_bytes().as_slice(), &vec16(body)].concat();
    let extensions = extensions.iter().flat_map(extension).collect::<Vec<_>>();
    let hello =
        [&[3, 3], [7; 32].as_slice(), &[0], &vec16(&numbers(ciphers)), &[1, 0], &vec16(&extensions)].concat();
    [&[1], &u32::try_from(hello.len()).unwrap().to_be_bytes()[1..], hello.as_slice()].concat()
}

fn ja4(message: &[u8]) -> String {
    let hello = ClientHello::parse_with_ja4(message).unwrap();
    hello.ja4.expect("it was asked for").to_string()
}

fn of_lists((ciphers, extensions, signatures): Lists) -> String {
    let extensions: Vec<_> =
        extensions.iter().map(|kind| (*kind, body(*kind, &[0x0304, 0x0303], signatures))).collect();
    ja4(&message(ciphers, &extensions))
}

#[test]
fn published_fingerprints_come_out() {
    assert_eq!(of_lists(SPECIFIED), CHROME_JA4);
    assert_eq!(of_lists(GREASED), "t13d1517h2_8daaf6152771_cb7bf5808d99");
    assert_eq!(of_lists(FIREFOX), "t13d1715h2_5b57614c22b0_3d5424432f57");
    assert_eq!(of_lists(OLD), "t12d4605h2_85626a9a5f7f_aaf95bb78ec9");
}

#[test]
fn a_published_hello_has_its_published_fingerprint() {
    let digits: String = CHROME.split_whitespace().collect();
    let bytes: Vec<u8> = (0..digits.len() / 2)
        .map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    let read = |wanted| {
        let preface = Detector::new(16384).with_ja4(wanted).advance(&bytes).unwrap().unwrap();
        preface.hello().unwrap().ja4.clone()
    };
    assert_eq!(read(true).unwrap().as_str(), CHROME_JA4);
    assert_eq!(read(false), None, "nothing is computed that nobody asks for");
}

#[test]
fn lists_that_are_empty_have_a_hash_of_noughts() {
    assert_eq!(ja4(&message(&[0x1301], &[])), format!("t12i010000_{}_{NOTHING}", hash(&[0x1301], &[])));
    assert_eq!(ja4(&message(&[0x1a1a], &[(0x2a2a, Vec::new())])), format!("t12i000000_{NOTHING}_{NOTHING}"));
    // Only a name and protocols: both are told of in the first part, and left out of the last.
    let both = [0x0000, 0x0010].map(|kind| (kind, body(kind, &[], &[])));
    assert_eq!(ja4(&message(&[0x1a1a], &both)), format!("t12d0002h2_{NOTHING}_{NOTHING}"));
    // A hello that ends behind its compression methods.
    let bare = [&[3, 3], [7; 32].as_slice(), &[0, 0, 2, 0x13, 1, 1, 0]].concat();
    let bare = [&[1, 0, 0, u8::try_from(bare.len()).unwrap()], bare.as_slice()].concat();
    assert_eq!(ja4(&bare), format!("t12i010000_{}_{NOTHING}", hash(&[0x1301], &[])));
}

#[test]
fn without_signature_algorithms_the_list_ends_without_an_underscore() {
    let mut kinds = SPECIFIED.1.to_vec();
    kinds.retain(|kind| ![0, 0x10].contains(kind));
    kinds.sort_unstable();
    // The specification's own figure.
    assert_eq!(hash(&kinds, &[]), "6d807ffa2a79");
    assert_eq!(hash(&kinds, SPECIFIED.2), "e5627efa2ab1");
}

#[test]
fn the_ends_of_the_first_protocol() {
    let ends = |name: &[u8]| {
        let text = ja4(&message(&[0x1301], &[(16, alpn(name))]));
        text[8..10].to_owned()
    };
    // The table of the specification, and the names in its text.
    for (name, expected) in [
        (&b"h2"[..], "h2"),
        (b"http/1.1", "h1"),
        (b"x", "xx"),
        (b"acme-tls/1", "a1"),
        (b"Hq", "Hq"),
        (b"\xab", "ab"),
        (b"\xab\xcd", "ad"),
        (b"\x30\xab", "3b"),
        (b"\x30\x31\xab\xcd", "3d"),
        (b"\x30\xab\xcd\x31", "01"),
        (b"_h", "58"),
        (b"\x0a\x0a", "0a"),
    ] {
        assert_eq!(ends(name), expected, "{name:x?}");
    }
    assert_eq!(&ja4(&message(&[0x1301], &[]))[8..10], "00");
}

#[test]
fn the_highest_version_counts() {
    let version = |versions: &[u16]| {
        let text = ja4(&message(&[0x1301], &[(43, body(43, versions, &[]))]));
        text[1..3].to_owned()
    };
    assert_eq!(version(&[0x0303, 0x7a7a, 0x0304, 0x0302]), "13");
    assert_eq!(version(&[0x0303, 0x0302]), "12");
    assert_eq!(version(&[0x0301]), "10");
    assert_eq!(version(&[0x0300]), "s3");
    assert_eq!(version(&[0x7f1c]), "00", "a draft");
    assert_eq!(version(&[0x1a1a]), "00", "GREASE alone");
}

#[test]
fn more_than_99_count_as_99() {
    let ciphers: Vec<u16> = (0..150).collect();
    let extensions: Vec<_> = (1000..1120).map(|kind| (kind, Vec::new())).collect();
    assert_eq!(&ja4(&message(&ciphers, &extensions))[..10], "t12i999900");
}

#[test]
fn signature_algorithms_that_are_no_list_are_refused_whether_asked_for_or_not() {
    for bad in [&[][..], &[0, 0], &[0, 3, 4, 3, 8], &[0, 2, 4, 3, 0], &[0, 4, 4, 3]] {
        let message = message(&[0x1301], &[(13, bad.to_vec())]);
        assert_eq!(ClientHello::parse_with_ja4(&message), Err(HelloError::Syntax), "{bad:?}");
        assert_eq!(ClientHello::parse(&message), Err(HelloError::Syntax), "{bad:?}");
    }
}

#[test]
fn text_is_a_fingerprint_or_is_not() {
    assert_eq!(Ja4::parse(CHROME_JA4).unwrap().as_str(), CHROME_JA4);
    for (text, error) in [
        ("", Ja4Error::Short(0)),
        ("t13d1516h2_", Ja4Error::Short(11)),
        ("q13d0310h3_55b375c5d22e_cd85d2d88918", Ja4Error::Transport),
        ("x13d", Ja4Error::Character(1)),
        ("t13x", Ja4Error::Character(4)),
        ("t13d15163\u{e9}", Ja4Error::Character(10)),
        ("t13d1516h2_8DAAF6152771", Ja4Error::Character(13)),
        ("t13d1516h2_8daaf6152771_e5627efa2ab1_", Ja4Error::Long),
    ] {
        assert_eq!(Ja4::parse(text), Err(error), "{text}");
    }
    for end in 0..CHROME_JA4.len() {
        assert_eq!(Ja4::check_prefix(&CHROME_JA4[..end]), Ok(()));
        assert_eq!(Ja4::parse(&CHROME_JA4[..end]), Err(Ja4Error::Short(end)));
    }
}

proptest! {
    /// GREASE at any place of any list, and extensions in any order, change nothing.
    #[test]
    fn grease_and_order_change_nothing(
        order in Just(SPECIFIED.1.to_vec()).prop_shuffle(), ciphers in Just(SPECIFIED.0.to_vec()).prop_shuffle(),
        at in prop::collection::vec(0..9usize, 4), grease in prop::collection::vec(0..16u16, 4),
    ) {
        let grease: Vec<u16> = grease.iter().map(|nibble| nibble << 12 | nibble << 4 | 0x0a0a).collect();
        let with = |list: &[u16], which: usize| {
            let mut list = list.to_vec();
            list.insert(at[which].min(list.len()), grease[which]);
            list
        };
        let (versions, signatures) = (with(&[0x0304, 0x0303], 0), with(SPECIFIED.2, 1));
        let kinds = with(&order, 2);
        let extensions: Vec<_> = kinds.iter().map(|kind| (*kind, body(*kind, &versions, &signatures))).collect();
        prop_assert_eq!(ja4(&message(&with(&ciphers, 3), &extensions)), CHROME_JA4);
    }

    /// Whatever a hello says, its fingerprint is one.
    #[test]
    fn every_hello_has_a_fingerprint_that_reads_back(
        ciphers in prop::collection::vec(any::<u16>(), 1..120), kinds in prop::collection::btree_set(any::<u16>(), 0..120),
        versions in prop::collection::vec(any::<u16>(), 1..9), signatures in prop::collection::vec(any::<u16>(), 1..9),
        name in prop::collection::vec(any::<u8>(), 1..9),
    ) {
        let content = |kind: u16| match kind {
            16 => alpn(&name),
            kind => body(kind, &versions, &signatures),
        };
        let extensions: Vec<_> = kinds.into_iter().map(|kind| (kind, content(kind))).collect();
        let text = ja4(&message(&ciphers, &extensions));
        prop_assert_eq!(Ja4::parse(&text).map(|read| read.to_string()), Ok(text));
    }
}
