use proptest::prelude::*;

use super::*;

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A header of version 2 with this block.
fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let len = u16::try_from(block.len()).unwrap().to_be_bytes();
    [V2_BEGIN, &[command, family], &len, block].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &u16::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
}

/// 192.0.2.1:1025 to 198.51.100.2:443.
const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 4, 1, 1, 187];

fn v4_ends() -> Option<(SocketAddr, SocketAddr)> {
    Some((addr("192.0.2.1:1025"), addr("198.51.100.2:443")))
}

/// CRC-32C bit by bit (RFC 3720, appendix B.4 has its examples).
fn crc(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| if sum & 1 == 1 { (sum >> 1) ^ 0x82f6_3b78 } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step))
}

/// A header of version 2 whose last TLV is its checksum.
fn with_checksum(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let mut header = v2(command, family, &[block, &tlv(tlv::CRC32C, &[0; 4])].concat());
    let (at, sum) = (header.len() - 4, crc(&header));
    header[at..].copy_from_slice(&sum.to_be_bytes());
    header
}

/// A good header, and what it says.
struct Good {
    bytes: Vec<u8>,
    ends: Option<(SocketAddr, SocketAddr)>,
}

fn good() -> Vec<Good> {
    let v6 = [Ipv6Addr::LOCALHOST.octets(), "2001:db8::7".parse::<Ipv6Addr>().unwrap().octets()].concat();
    let mapped = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 2)];
    let mapped = mapped.map(|ip| ip.to_ipv6_mapped().octets()).concat();
    let ports = [4, 1, 1, 187];
    let v6_ends = Some((addr("[::1]:1025"), addr("[2001:db8::7]:443")));
    let lines = [
        ("PROXY TCP4 192.0.2.1 198.51.100.2 1025 443\r\n", v4_ends()),
        ("PROXY TCP6 ::1 2001:DB8::7 1025 443\r\n", v6_ends),
        ("PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c633:6402 1025 443\r\n", v4_ends()),
        (
            "PROXY TCP4 0.0.0.1 255.255.255.255 0 65535\r\n",
            Some((addr("0.0.0.1:0"), addr("255.255.255.255:65535"))),
        ),
        ("PROXY UNKNOWN\r\n", None),
        (
            "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
            None,
        ),
        ("PROXY UNKNOWN a b c d e f g + \t\r\n", None),
    ];
    let lines = lines.map(|(line, ends)| (line.as_bytes().to_vec(), ends));
    let binary = [
        (v2(0x21, 0x11, &V4), v4_ends()),
        (v2(0x21, 0x21, &[v6.as_slice(), &ports].concat()), v6_ends),
        (v2(0x21, 0x21, &[mapped.as_slice(), &ports].concat()), v4_ends()),
        (v2(0x21, 0x11, &[&V4[..], &tlv(4, &[0; 9]), &tlv(0xe0, b"?"), &tlv(2, b"")].concat()), v4_ends()),
        (with_checksum(0x21, 0x11, &V4), v4_ends()),
        (with_checksum(0x21, 0x11, &[&V4[..], &tlv(tlv::UNIQUE_ID, &[7; 128])].concat()), v4_ends()),
        (with_checksum(0x21, 0x00, &[]), None),
        (v2(0x21, 0x31, &[b'/'; 216]), None),
        (v2(0x21, 0x00, &[]), None),
        (v2(0x21, 0x00, b"to be ignored"), None),
        (v2(0x20, 0x00, &[]), None),
        (v2(0x20, 0x11, &V4), None),
        (v2(0x20, 0x21, &[1, 2]), None),
        (v2(0x20, 0xff, &[9; 40]), None),
        (v2(0x21, 0x11, &[&V4[..], &tlv(4, &vec![0; MAX_HEADER - FIXED - 12 - 3])].concat()), v4_ends()),
    ];
    lines.into_iter().chain(binary).map(|(bytes, ends)| Good { bytes, ends }).collect()
}

#[test]
fn good_headers_are_read_at_their_last_byte_and_not_before() {
    for Good { bytes, ends } in good() {
        let expected = Ok(Some(ProxyHeader { len: bytes.len(), ends, hops: Hops::default() }));
        for len in 0..bytes.len() {
            assert_eq!(ProxyHeader::read(&bytes[..len]), Ok(None), "{len} of {}", bytes.escape_ascii());
        }
        for rest in [&b""[..], b"\x16\x03\x01", b"\n", b"\r\n", b"PROXY "] {
            assert_eq!(ProxyHeader::read(&[&bytes, rest].concat()), expected, "{}", bytes.escape_ascii());
        }
    }
}

#[test]
fn bad_lines_are_refused() {
    use ProxyHeaderError::{Addresses, Line, Missing};
    for (line, error) in [
        ("proxy TCP4 192.0.2.1 198.51.100.2 1025 443\r\n", Missing),
        ("PROXY\tTCP4 192.0.2.1 198.51.100.2 1025 443\r\n", Missing),
        (" PROXY TCP4 192.0.2.1 198.51.100.2 1025 443\r\n", Missing),
        ("GET / HTTP/1.1\r\n", Missing),
        ("PROXY tcp4 192.0.2.1 198.51.100.2 1025 443\r\n", Line),
        ("PROXY TCP5 192.0.2.1 198.51.100.2 1025 443\r\n", Line),
        ("PROXY UDP4 192.0.2.1 198.51.100.2 1025 443\r\n", Line),
        ("PROXY unknown\r\n", Line),
        ("PROXY UNKNOWNS\r\n", Line),
        ("PROXY UNKNOWN\n", Line),
        ("PROXY UNKNOWN \r \r\n", Line),
        ("PROXY \r\n", Line),
        ("PROXY TCP4\r\n", Line),
        ("PROXY TCP4 192.0.2.1\r\n", Line),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 1025\r\n", Line),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 1025 \r\n", Line),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 1025 443 \r\n", Line),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 1025 443 1\r\n", Line),
        ("PROXY TCP4  192.0.2.1 198.51.100.2 1025 443\r\n", Line),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 1025 443\n", Line),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 1025 443\r\r\n", Line),
        ("PROXY TCP4 192.0.2.1\r198.51.100.2 1025 443\r\n", Line),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 01025 443\r\n", Line),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 1025 0443\r\n", Line),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 +1025 443\r\n", Line),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 1025 +443\r\n", Line),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 -1 443\r\n", Line),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 1025 65536\r\n", Line),
        ("PROXY TCP4 192.0.2.01 198.51.100.2 1025 443\r\n", Line),
        ("PROXY TCP4 192.0.2.256 198.51.100.2 1025 443\r\n", Line),
        ("PROXY TCP4 192.0.2 198.51.100.2 1025 443\r\n", Line),
        ("PROXY TCP4 ::1 ::1 1025 443\r\n", Line),
        ("PROXY TCP6 192.0.2.1 198.51.100.2 1025 443\r\n", Line),
        ("PROXY TCP6 fe80::1%eth0 ::1 1025 443\r\n", Line),
        ("PROXY TCP6 [::1] ::1 1025 443\r\n", Line),
        ("PROXY TCP4 0.0.0.0 198.51.100.2 1025 443\r\n", Addresses),
        ("PROXY TCP4 224.0.0.1 198.51.100.2 1025 443\r\n", Addresses),
        ("PROXY TCP6 :: ::1 1025 443\r\n", Addresses),
        ("PROXY TCP6 ff02::1 ::1 1025 443\r\n", Addresses),
    ] {
        assert_eq!(ProxyHeader::read(line.as_bytes()), Err(error), "{}", line.escape_debug());
    }
    assert_eq!(ProxyHeader::read(b"PROXY TCP4 192.0.2.1\xff 198.51.100.2 1 2\r\n"), Err(Line));
}

#[test]
fn a_line_has_up_to_107_bytes() {
    let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_LINE - 16));
    assert_eq!(
        ProxyHeader::read(longest.as_bytes()),
        Ok(Some(ProxyHeader { len: MAX_LINE, ends: None, hops: Hops::default() }))
    );
    for line in [format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_LINE - 15)), longest.replace("\r\n", "xx")] {
        assert_eq!(ProxyHeader::read(line.as_bytes()), Err(ProxyHeaderError::TooLong), "{line}");
    }
}

#[test]
fn bad_binary_headers_are_refused() {
    use ProxyHeaderError::{Addresses, Checksum, Kind, Missing, Tlvs, TooLong};
    let mut foreign = V2_BEGIN.to_vec();
    foreign[11] = b'\r';
    let with = |rest: &[u8]| [&V4[..], rest].concat();
    let mut multicast = V4;
    multicast[0] = 224;
    let mut wrong = with_checksum(0x21, 0x11, &V4);
    wrong[17] ^= 1;
    let mut wrong_local = with_checksum(0x20, 0x11, &V4);
    wrong_local[17] ^= 1;
    let twice = [tlv(tlv::CRC32C, &[0; 4]), tlv(tlv::CRC32C, &[0; 4])].concat();
    let mut over = v2(0x21, 0x11, &V4);
    over[14..16].copy_from_slice(&u16::try_from(MAX_HEADER - FIXED + 1).unwrap().to_be_bytes());
    for (header, error) in [
        (foreign, Missing),
        (v2(0x11, 0x11, &V4), Kind),
        (v2(0x31, 0x11, &V4), Kind),
        (v2(0x22, 0x11, &V4), Kind),
        (v2(0x2f, 0x11, &V4), Kind),
        (v2(0x21, 0x10, &V4), Kind),
        (v2(0x21, 0x12, &V4), Kind),
        (v2(0x21, 0x22, &[1; 36]), Kind),
        (v2(0x21, 0x32, &[1; 216]), Kind),
        (v2(0x21, 0x01, &[]), Kind),
        (v2(0x21, 0x41, &V4), Kind),
        (v2(0x21, 0x11, &V4[..11]), Addresses),
        (v2(0x21, 0x11, &[]), Addresses),
        (v2(0x21, 0x21, &[1; 35]), Addresses),
        (v2(0x21, 0x31, &[1; 215]), Addresses),
        (v2(0x21, 0x11, &multicast), Addresses),
        (v2(0x21, 0x11, &[0; 12]), Addresses),
        (v2(0x21, 0x11, &with(&[0])), Tlvs),
        (v2(0x21, 0x11, &with(&[4, 0])), Tlvs),
        (v2(0x21, 0x11, &with(&[4, 0, 1])), Tlvs),
        (v2(0x21, 0x11, &with(&[4, 255, 255, 1])), Tlvs),
        (v2(0x21, 0x11, &with(&[&tlv(4, b"ok")[..], b"gar"].concat())), Tlvs),
        (v2(0x21, 0x31, &[1; 217]), Tlvs),
        (v2(0x21, 0x11, &with(&tlv(tlv::CRC32C, &[0; 4]))), Checksum),
        (v2(0x21, 0x11, &with(&tlv(tlv::CRC32C, &[0; 3]))), Checksum),
        (v2(0x21, 0x11, &with(&twice)), Checksum),
        (wrong, Checksum),
        (wrong_local, Checksum),
        (over, TooLong),
    ] {
        assert_eq!(ProxyHeader::read(&header), Err(error), "{}", header.escape_ascii());
    }
    // Told as soon as it is known.
    assert_eq!(ProxyHeader::read(&v2(0x11, 0, &[])[..13]), Err(Kind));
}

#[test]
fn what_begins_like_a_header_is_told_from_all_else() {
    for (bytes, opening) in [
        (&b"PROXY "[..], Opening::Header),
        (b"PROXY nonsense", Opening::Header),
        (V2_BEGIN, Opening::Header),
        (b"", Opening::NeedMore),
        (b"PRO", Opening::NeedMore),
        (&V2_BEGIN[..11], Opening::NeedMore),
        (b"PROXYS", Opening::Other),
        (b"PROPFIND / HTTP/1.1", Opening::Other),
        (b"\r\n\r\nx", Opening::Other),
        (&[22, 3, 1], Opening::Other),
    ] {
        assert_eq!(Opening::of(bytes), opening, "{}", bytes.escape_ascii());
    }
}

/// The id of all these bytes alike.
fn instance(byte: u8) -> InstanceId {
    let value = [b"portcullis".as_slice(), &[byte; 8]].concat();
    let Hops(ids) = Hops::read(&value).unwrap().unwrap();
    ids[0]
}

fn hops(bytes: impl IntoIterator<Item = u8>) -> Hops {
    Hops(bytes.into_iter().map(instance).collect())
}

#[test]
fn a_connection_that_comes_back_is_a_loop_and_so_is_one_that_came_too_far() {
    for (through, own, is_loop) in [
        (hops([]), 1, false),
        (hops([2]), 1, false),
        (hops([1]), 1, true),
        (hops([2, 1]), 1, true),
        (hops([1, 2, 3]), 1, true),
        (hops(2..=8), 1, false),
        (hops(2..=9), 1, true),
        (hops(2..=200), 1, true),
    ] {
        // Each hop as it is: written by one, read by the next.
        let value = [b"portcullis".as_slice(), &through.0.iter().flat_map(|id| id.0).collect::<Vec<_>>()];
        let header = with_checksum(0x21, 0x11, &[&V4[..], &tlv(tlv::HOPS, &value.concat())].concat());
        let read = ProxyHeader::read(&header).unwrap().unwrap();
        assert_eq!(read.hops.is_loop(instance(own)), is_loop, "{through:?}");
        assert!(read.hops.0.len() <= Hops::MAX && through.0.starts_with(&read.hops.0), "{read:?}");
    }
    assert_ne!(InstanceId::random(), InstanceId::random());
}

#[test]
fn hops_of_others_are_none_and_malformed_ones_are_refused() {
    let of = |tlvs: &[Vec<u8>]| {
        let header = with_checksum(0x21, 0x11, &[&V4[..], &tlvs.concat()].concat());
        ProxyHeader::read(&header).map(|header| header.unwrap().hops)
    };
    let ours = tlv(tlv::HOPS, b"portcullis\x01\x01\x01\x01\x01\x01\x01\x01");
    for foreign in [&b""[..], b"portculli", b"Portcullis\x01", b"vpce-08d2bf15fac5001c9"] {
        assert_eq!(of(&[tlv(tlv::HOPS, foreign)]), Ok(hops([])));
        assert_eq!(of(&[tlv(tlv::HOPS, foreign), ours.clone()]), Ok(hops([1])));
    }
    assert_eq!(of(&[tlv(0xe6, b"portcullis\x01\x01\x01\x01\x01\x01\x01\x01")]), Ok(hops([])));
    assert_eq!(of(&[tlv(tlv::HOPS, b"portcullis")]), Ok(hops([])));
    let one_more = tlv(tlv::HOPS, b"portcullis\x01\x01\x01\x01\x01\x01\x01\x01\x01");
    for malformed in [vec![one_more], vec![ours.clone(), ours.clone()]] {
        assert_eq!(of(&malformed), Err(ProxyHeaderError::Tlvs));
    }
    // What a proxy does for itself says nothing of anybody's way.
    let local = with_checksum(0x20, 0x11, &[&V4[..], &ours].concat());
    assert_eq!(ProxyHeader::read(&local).unwrap().unwrap().hops, hops([]));
}

fn announcement<'a>(source: &str, destination: &str, hops: &'a Hops) -> Announcement<'a> {
    Announcement {
        source: addr(source),
        destination: addr(destination),
        authority: Some("app.test"),
        alpn: Some(b"h2"),
        tls: None,
        unique_id: "00000000000000ff",
        hops,
        instance: instance(9),
    }
}

/// The value of the TLV, as §2.2.5 lays it out.
#[test]
fn tls_that_ended_here_is_told_with_whose_certificate_was_shown() {
    let hops = hops([]);
    let mut of = announcement("192.0.2.1:1", "192.0.2.2:443", &hops);
    let tls = AnnouncedTls { version: "TLSv1.3", cipher: Some("C"), group: None, client: Some(Some("ann")) };
    of.tls = Some(tls);
    let expected = b"\x20\x00\x19\x05\0\0\0\0\x21\x00\x07TLSv1.3\x22\x00\x03ann\x23\x00\x01C";
    let header = ProxyVersion::V2.write(&of);
    assert!(header.windows(expected.len()).any(|part| part == expected), "{header:?}");
    of.tls = Some(AnnouncedTls { cipher: None, client: None, ..tls });
    let expected = b"\x20\x00\x0f\x01\0\0\0\x01\x21\x00\x07TLSv1.3";
    let header = ProxyVersion::V2.write(&of);
    assert!(header.windows(expected.len()).any(|part| part == expected), "{header:?}");
    assert!(ProxyHeader::read(&header).is_ok());
}

#[test]
fn a_line_is_written_as_it_stands_in_the_specification() {
    for (source, destination, line) in [
        ("192.0.2.1:1025", "198.51.100.2:443", "PROXY TCP4 192.0.2.1 198.51.100.2 1025 443\r\n"),
        ("[::1]:1", "[2001:db8::7]:2", "PROXY TCP6 ::1 2001:db8::7 1 2\r\n"),
        ("[::ffff:192.0.2.1]:1", "198.51.100.2:2", "PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r\n"),
        ("192.0.2.1:1", "[2001:db8::7]:2", "PROXY TCP6 ::ffff:c000:201 2001:db8::7 1 2\r\n"),
        ("[2001:db8::7]:1", "10.0.0.1:2", "PROXY TCP6 2001:db8::7 ::ffff:a00:1 1 2\r\n"),
    ] {
        let written = ProxyVersion::V1.write(&announcement(source, destination, &hops([1])));
        assert_eq!(String::from_utf8(written).unwrap(), line);
    }
}

#[test]
fn a_binary_header_is_written_byte_by_byte_as_specified() {
    let way = |ids: &[u8]| {
        let ids = ids.iter().flat_map(|id| [*id; 8]);
        tlv(0xe7, &b"portcullis".iter().copied().chain(ids).collect::<Vec<_>>())
    };
    let values = [tlv(1, b"h2"), tlv(2, b"app.test"), tlv(5, b"00000000000000ff"), way(&[1, 2, 9])].concat();
    let expected = with_checksum(0x21, 0x11, &[&V4[..], &values].concat());
    let written = ProxyVersion::V2.write(&announcement("192.0.2.1:1025", "198.51.100.2:443", &hops([1, 2])));
    assert_eq!(written, expected);
    let none = hops([]);
    let bare = announcement("192.0.2.1:1025", "[2001:db8::7]:443", &none);
    let bare = Announcement { authority: None, alpn: None, ..bare };
    let ends =
        ["::ffff:192.0.2.1", "2001:db8::7"].map(|ip| ip.parse::<Ipv6Addr>().unwrap().octets()).concat();
    let block = [ends.as_slice(), &[4, 1, 1, 187], &tlv(5, b"00000000000000ff"), &way(&[9])].concat();
    assert_eq!(ProxyVersion::V2.write(&bare), with_checksum(0x21, 0x21, &block));
}

#[test]
fn checksums_are_those_of_the_standard() {
    // RFC 3720, appendix B.4: 32 bytes of zeroes, and of ones.
    assert_eq!((crc(&[0; 32]), crc(&[255; 32])), (0x8a91_36aa, 0x62a8_ab43));
    assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
}

fn any_addr() -> impl Strategy<Value = SocketAddr> {
    let v4 = any::<[u8; 4]>().prop_map(IpAddr::from);
    let v6 = any::<[u8; 16]>().prop_map(IpAddr::from);
    (prop_oneof![v4, v6], any::<u16>()).prop_map(SocketAddr::from)
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(
        source in any_addr(), destination in any_addr(), name in "[a-z.]{0,253}", before in 0u8..7, alpn in prop::option::of(any::<[u8; 9]>()),
    ) {
        let through = hops(0..before);
        let of = Announcement {
            hops: &through, instance: instance(before),
            source, destination, authority: Some(&name), alpn: alpn.as_ref().map(<[u8; 9]>::as_slice), tls: None, unique_id: "7",
        };
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            let header = version.write(&of);
            match ProxyHeader::read(&header) {
                Ok(read) => {
                    let hops = if version == ProxyVersion::V2 { hops(0..=before) } else { hops([]) };
                    prop_assert_eq!(read, Some(ProxyHeader { len: header.len(), ends: Some((source, destination)), hops }));
                }
                Err(error) => prop_assert_eq!(error, ProxyHeaderError::Addresses),
            }
            for len in 0..header.len() {
                prop_assert!(matches!(ProxyHeader::read(&header[..len]), Ok(None)));
            }
        }
    }

    /// A verdict is final: more bytes never change it.
    #[test]
    fn damaged_headers_are_refused_or_read_alike_at_every_length(
        which in 0usize..22, edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = good().swap_remove(which).bytes;
        bytes.truncate(600);
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let mut verdict = None;
        for len in 0..=bytes.len() {
            let now = ProxyHeader::read(&bytes[..len]);
            if let Some(before) = &verdict {
                prop_assert_eq!(&now, before);
            } else if now != Ok(None) {
                verdict = Some(now);
            }
        }
    }
}
