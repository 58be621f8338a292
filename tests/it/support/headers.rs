//! Headers of the PROXY protocol, built by nothing but its specification, and a proxy that trusts some.

use std::net::Ipv4Addr;

use super::proxy::Proxy;

/// A trusted proxy, and somebody else.
pub(crate) const TRUSTED: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 2, 1);
/// What version 2 begins with.
pub(crate) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A proxy that trusts 127.0.1.0/24, with what its route says beside where it leads.
pub(crate) fn proxy_with(top: &str, route: &str, backend: impl std::fmt::Display) -> Proxy {
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\nproxy_protocol = '127.0.1.0/24'\n{top}\n\
         [[route]]\nname = 'a'\nsni = ['a.test', 'none']\nto = '{backend}'\n{route}\n\
         [[route]]\nname = 'rest'\nprotocol = ['unknown', 'http']\nto = '{backend}'\n"
    ))
}

/// A line of version 1: from `source`:1025 to 198.51.100.2:443.
pub(crate) fn line(source: &str) -> Vec<u8> {
    format!("PROXY TCP4 {source} 198.51.100.2 1025 443\r\n").into_bytes()
}

/// The line of 192.0.2.1, and what follows it.
pub(crate) fn line_and(rest: &[u8]) -> Vec<u8> {
    [line("192.0.2.1").as_slice(), rest].concat()
}

/// A TLV.
pub(crate) fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind, (value.len() >> 8) as u8, value.len() as u8], value].concat()
}

/// A header of version 2.
pub(crate) fn binary(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    [SIGNATURE, &[command, family, (block.len() >> 8) as u8, block.len() as u8], block].concat()
}

/// From `source`:1025 to 198.51.100.2:443, with these TLVs.
pub(crate) fn v2(source: [u8; 4], tlvs: &[u8]) -> Vec<u8> {
    binary(0x21, 0x11, &[&source[..], &[198, 51, 100, 2, 4, 1, 1, 187], tlvs].concat())
}

/// CRC-32C, bit by bit.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| if sum & 1 == 1 { (sum >> 1) ^ 0x82f6_3b78 } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step))
}
