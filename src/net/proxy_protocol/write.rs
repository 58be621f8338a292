//! Writing headers, for backends that read them.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{FIXED, Hops, InstanceId, V2_BEGIN, checksum, tlv};

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVersion {
    /// A line of text: both addresses.
    V1,
    /// Binary: both addresses, and TLVs.
    V2,
}

/// What a header tells of a client's connection.
#[derive(Clone, Copy, Debug)]
pub struct Announcement<'a> {
    /// The client.
    pub source: SocketAddr,
    /// What it connected to.
    pub destination: SocketAddr,
    /// The server name that it asked for.
    pub authority: Option<&'a str>,
    /// The one ALPN name that it offered.
    pub alpn: Option<&'a [u8]>,
    /// What its TLS came to, where that ended here.
    pub tls: Option<AnnouncedTls<'a>>,
    /// What the connection is called here.
    pub unique_id: &'a str,
    /// What it has come through before.
    pub hops: &'a Hops,
    /// The process that writes it.
    pub instance: InstanceId,
}

/// What a header tells of TLS that ended here (§2.2.5).
#[derive(Clone, Copy, Debug)]
pub struct AnnouncedTls<'a> {
    /// The version, as in `TLSv1.3`.
    pub version: &'a str,
    /// The cipher suite.
    pub cipher: Option<&'a str>,
    /// The group of the key exchange.
    pub group: Option<&'a str>,
    /// The client's certificate, if it has shown one, which then was good: the common name of its subject, if it has one.
    pub client: Option<Option<&'a str>>,
}

/// Both ends, in one family.
enum Ends {
    V4([u8; 4], [u8; 4]),
    V6([u8; 16], [u8; 16]),
}

impl ProxyVersion {
    /// The header of this version.
    pub fn write(self, of: &Announcement<'_>) -> Vec<u8> {
        match self {
            Self::V1 => write_line(of),
            Self::V2 => write_binary(of),
        }
    }

    /// How it is written in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

impl fmt::Display for ProxyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Ends {
    /// A header has one family. Where the ends have two, the IPv4 one is told in its IPv6 form (RFC 4291 §2.5.5.2), which
    /// is the same address.
    fn of(of: &Announcement<'_>) -> Self {
        let mapped = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        match (of.source.ip().to_canonical(), of.destination.ip().to_canonical()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Self::V4(source.octets(), destination.octets()),
            (source, destination) => Self::V6(mapped(source), mapped(destination)),
        }
    }
}

/// §2.1.
fn write_line(of: &Announcement<'_>) -> Vec<u8> {
    let ports = format!("{} {}\r\n", of.source.port(), of.destination.port());
    let line = match Ends::of(of) {
        Ends::V4(source, destination) => {
            format!("PROXY TCP4 {} {} {ports}", IpAddr::from(source), IpAddr::from(destination))
        }
        Ends::V6(source, destination) => {
            format!("PROXY TCP6 {} {} {ports}", groups(source), groups(destination))
        }
    };
    line.into_bytes()
}

/// An IPv6 address in hexadecimal groups alone: an IPv4 tail is not in the grammar of version 1 (§2.1).
fn groups(octets: [u8; 16]) -> String {
    let ip = Ipv6Addr::from(octets);
    match ip.to_ipv4_mapped() {
        Some(v4) => {
            let [a, b, c, d] = v4.octets().map(u16::from);
            format!("::ffff:{:x}:{:x}", a << 8 | b, c << 8 | d)
        }
        None => ip.to_string(),
    }
}

impl AnnouncedTls<'_> {
    /// The value of its TLV.
    fn write(&self) -> Vec<u8> {
        // The client's certificate was shown in this session, be it one that goes on from another connection.
        let shown = if self.client.is_some() { tlv::ssl::CERT_SESS } else { 0 };
        let mut value = vec![tlv::ssl::SSL | shown];
        value.extend(u32::from(self.client.is_none()).to_be_bytes());
        let parts = [
            (tlv::ssl::VERSION, Some(self.version)),
            (tlv::ssl::CN, self.client.flatten()),
            (tlv::ssl::CIPHER, self.cipher),
            (tlv::ssl::GROUP, self.group),
        ];
        for (kind, part) in parts {
            append(kind, part.map(str::as_bytes), &mut value);
        }
        value
    }
}

/// Appends a TLV, unless there is none.
fn append(kind: u8, value: Option<&[u8]>, block: &mut Vec<u8>) {
    // Longer ones than a length can tell do not exist: names have up to 255 bytes.
    if let Some((value, len)) = value.and_then(|value| Some((value, u16::try_from(value.len()).ok()?))) {
        block.push(kind);
        block.extend(len.to_be_bytes());
        block.extend(value);
    }
}

/// §2.2.
fn write_binary(of: &Announcement<'_>) -> Vec<u8> {
    let (family, addresses) = match Ends::of(of) {
        Ends::V4(source, destination) => (0x11, [source, destination].concat()),
        Ends::V6(source, destination) => (0x21, [source, destination].concat()),
    };
    let mut block = addresses;
    block.extend(of.source.port().to_be_bytes());
    block.extend(of.destination.port().to_be_bytes());
    let hops = of.hops.write(of.instance);
    let tls = of.tls.map(|tls| tls.write());
    let values = [
        (tlv::ALPN, of.alpn),
        (tlv::AUTHORITY, of.authority.map(str::as_bytes)),
        (tlv::SSL, tls.as_deref()),
        (tlv::UNIQUE_ID, Some(of.unique_id.as_bytes())),
        (tlv::HOPS, Some(hops.as_slice())),
        (tlv::CRC32C, Some(&[0; 4][..])),
    ];
    for (kind, value) in values {
        append(kind, value, &mut block);
    }
    let len = u16::try_from(block.len()).unwrap_or(u16::MAX);
    let mut header = Vec::with_capacity(FIXED + block.len());
    header.extend(V2_BEGIN);
    header.extend([0x21, family]);
    header.extend(len.to_be_bytes());
    header.extend(block);
    // The checksum is the last of all.
    let at = header.len() - 4;
    let sum = checksum(&header, at);
    header.truncate(at);
    header.extend(sum.to_be_bytes());
    header
}
