//! The PROXY protocol, versions 1 and 2: a header by which one proxy tells the next who its client is, before the first
//! byte of that client. Sans-io; the sections are of the specification, <https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>.
//!
//! `ppp` reads addresses, ports and TLVs. It is lenient, or waits for ever, where a receiver may not be: lines that
//! have ended too early, signs before ports, families that do not exist, checksums. Those are looked at here first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ppp::{v1, v2};

mod hops;
mod write;

pub use hops::{Hops, InstanceId};
pub use write::{AnnouncedTls, Announcement, ProxyVersion};

/// Longest line of version 1, its end included (§2.1).
const MAX_LINE: usize = 107;
/// Signature, version and command, family, length (§2.2).
const FIXED: usize = 16;
/// Largest header of version 2 that is read. The format has room for 64 KiB; what senders put into it is below 1 KiB, but
/// for the client's certificate that some of them add.
const MAX_HEADER: usize = 16 * 1024;
const V1_BEGIN: &[u8] = b"PROXY ";
const V1_UNKNOWN: &[u8] = b"PROXY UNKNOWN";
/// The signature of version 2 (§2.2): nothing that any protocol begins with.
const V2_BEGIN: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Types of TLVs (§2.2.1 to §2.2.5, §2.2.8).
mod tlv {
    pub(super) const ALPN: u8 = 1;
    pub(super) const AUTHORITY: u8 = 2;
    pub(super) const CRC32C: u8 = 3;
    pub(super) const UNIQUE_ID: u8 = 5;
    pub(super) const SSL: u8 = 0x20;
    /// Our own, of those that are free for anybody.
    pub(super) const HOPS: u8 = 0xe7;

    /// What stands in the value of [`SSL`], §2.2.5.
    pub(super) mod ssl {
        pub(in super::super) const SSL: u8 = 1;
        pub(in super::super) const CERT_SESS: u8 = 4;
        pub(in super::super) const VERSION: u8 = 0x21;
        pub(in super::super) const CN: u8 = 0x22;
        pub(in super::super) const CIPHER: u8 = 0x23;
        pub(in super::super) const GROUP: u8 = 0x26;
    }
}

/// Whether bytes begin like a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// They do, whatever follows.
    Header,
    /// They are too few to tell.
    NeedMore,
    /// They do not.
    Other,
}

/// A whole header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Its length in bytes; what follows is the client's.
    pub len: usize,
    /// Both ends of the client's connection to the sender, IPv4 in its own form. `None` when the sender speaks for itself
    /// (`LOCAL`) or does not say (`UNKNOWN`, unspecified, a Unix socket): the connection's own ends stay.
    pub ends: Option<(SocketAddr, SocketAddr)>,
    /// What the connection has come through, as far as it is told.
    pub hops: Hops,
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyHeaderError {
    /// They do not begin like one.
    #[error("no PROXY header")]
    Missing,
    /// It is longer than it may be.
    #[error("a PROXY header that is too long")]
    TooLong,
    /// A line of version 1 that is none.
    #[error("a malformed line")]
    Line,
    /// A version, command, family or transport that does not exist or cannot be.
    #[error("an impossible version, command or family")]
    Kind,
    /// The addresses do not fit into the length, or are none that a client can have.
    #[error("impossible addresses")]
    Addresses,
    /// TLVs that do not end where the header does.
    #[error("malformed TLVs")]
    Tlvs,
    /// The checksum is wrong.
    #[error("a wrong checksum")]
    Checksum,
}

impl Opening {
    /// What `bytes`, the first of a connection, begin like.
    pub fn of(bytes: &[u8]) -> Self {
        let begins = [V1_BEGIN, V2_BEGIN];
        if begins.iter().any(|begin| bytes.starts_with(begin)) {
            Self::Header
        } else if begins.iter().any(|begin| begin.starts_with(bytes)) {
            Self::NeedMore
        } else {
            Self::Other
        }
    }
}

impl ProxyHeader {
    /// No header, nor what comes with the end of one, is longer.
    pub const MAX: usize = MAX_HEADER;

    /// Reads the header that `bytes`, the first of a connection, begin with. `Ok(None)` means that more are needed.
    ///
    /// # Errors
    /// When no further bytes would make it one.
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, ProxyHeaderError> {
        match Opening::of(bytes) {
            Opening::NeedMore => Ok(None),
            Opening::Other => Err(ProxyHeaderError::Missing),
            Opening::Header if bytes.starts_with(V1_BEGIN) => read_line(bytes),
            Opening::Header => read_binary(bytes),
        }
    }
}

/// Version 1 (§2.1).
fn read_line(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    let within = bytes.get(..MAX_LINE).unwrap_or(bytes);
    let Some(end) = within.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() < MAX_LINE { Ok(None) } else { Err(ProxyHeaderError::TooLong) };
    };
    let len = end + 1;
    let text = within.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(ProxyHeaderError::Line)?;
    if text.contains(&b'\r') {
        return Err(ProxyHeaderError::Line);
    }
    if let Some(rest) = text.strip_prefix(V1_UNKNOWN) {
        // What follows is to be ignored, whatever it is.
        let whole = matches!(rest.first(), None | Some(b' '));
        let header = ProxyHeader { len, ends: None, hops: Hops::default() };
        return if whole { Ok(Some(header)) } else { Err(ProxyHeaderError::Line) };
    }
    // A sign, which `str::parse` takes for part of a number; signs have no place in addresses either.
    if text.contains(&b'+') {
        return Err(ProxyHeaderError::Line);
    }
    let line = within.get(..len).unwrap_or_default();
    // The line has ended: that something is missing is for good.
    let header = v1::Header::try_from(line).map_err(|_| ProxyHeaderError::Line)?;
    let ends = match header.addresses {
        v1::Addresses::Tcp4(of) => ends_v4(of),
        v1::Addresses::Tcp6(of) => ends_v6(of),
        v1::Addresses::Unknown => return Err(ProxyHeaderError::Line),
    };
    Ok(Some(ProxyHeader { len, ends: Some(checked(ends)?), hops: Hops::default() }))
}

/// Version 2 (§2.2).
fn read_binary(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    let fixed: Option<&[u8; FIXED]> = bytes.first_chunk();
    // Told by the first byte that is wrong, not only by the last of the fixed ones.
    let version = bytes.get(V2_BEGIN.len());
    if version.is_some_and(|byte| !matches!(byte, 0x20 | 0x21)) {
        return Err(ProxyHeaderError::Kind);
    }
    let Some([.., command, family, high, low]) = fixed else { return Ok(None) };
    let len = FIXED + usize::from(u16::from_be_bytes([*high, *low]));
    let is_local = *command == 0x20;
    let addresses = match family {
        0x11 => 12,
        0x21 => 36,
        0x31 => 216,
        0x00 => 0,
        // A local connection is accepted with whatever family, which is ignored.
        _ if is_local => 0,
        _ => return Err(ProxyHeaderError::Kind),
    };
    if len > MAX_HEADER {
        return Err(ProxyHeaderError::TooLong);
    }
    if len < FIXED + addresses && !is_local {
        return Err(ProxyHeaderError::Addresses);
    }
    let Some(bytes) = bytes.get(..len) else { return Ok(None) };
    // Of a block that is to be ignored nothing need be well-formed, but a checksum that is there must be right.
    let lenient = is_local || *family == 0;
    let hops = read_tlvs(bytes, FIXED + addresses, lenient)?;
    if lenient {
        return Ok(Some(ProxyHeader { len, ends: None, hops: Hops::default() }));
    }
    let header = v2::Header::try_from(bytes).map_err(|_| ProxyHeaderError::Addresses)?;
    let ends = match header.addresses {
        v2::Addresses::IPv4(of) => Some(checked(ends_v4(of))?),
        v2::Addresses::IPv6(of) => Some(checked(ends_v6(of))?),
        v2::Addresses::Unix(_) | v2::Addresses::Unspecified => None,
    };
    Ok(Some(ProxyHeader { len, ends, hops }))
}

/// Reads what stands from `at` to the end of `header`, which must be a row of TLVs, and the checksum among them right
/// (§2.2.3).
fn read_tlvs(header: &[u8], at: usize, lenient: bool) -> Result<Hops, ProxyHeaderError> {
    let mut stated = None;
    let mut hops = None;
    let mut offset = at;
    for found in v2::TypeLengthValues::from(header.get(at..).unwrap_or_default()) {
        let Ok(found) = found else {
            return if lenient { Ok(Hops::default()) } else { Err(ProxyHeaderError::Tlvs) };
        };
        // Behind the type and the length, of one and two bytes.
        let value = offset + 3;
        offset = value + found.value.len();
        if found.kind == tlv::CRC32C {
            let sum: [u8; 4] = found.value.as_ref().try_into().map_err(|_| ProxyHeaderError::Checksum)?;
            if stated.replace((value, u32::from_be_bytes(sum))).is_some() {
                return Err(ProxyHeaderError::Checksum);
            }
        } else if found.kind == tlv::HOPS
            && !lenient
            && let Some(told) = Hops::read(&found.value)?
            && hops.replace(told).is_some()
        {
            return Err(ProxyHeaderError::Tlvs);
        }
    }
    match stated {
        Some((value, sum)) if checksum(header, value) != sum => Err(ProxyHeaderError::Checksum),
        _ => Ok(hops.unwrap_or_default()),
    }
}

/// The checksum of `header`, whose own four bytes at `at` count as zero.
fn checksum(header: &[u8], at: usize) -> u32 {
    let (before, rest) = header.split_at(at.min(header.len()));
    let sum = crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]);
    crc32c::crc32c_append(sum, rest.get(4..).unwrap_or_default())
}

fn ends_v4(of: v2::IPv4) -> (SocketAddr, SocketAddr) {
    let source = SocketAddr::from((of.source_address, of.source_port));
    (source, SocketAddr::from((of.destination_address, of.destination_port)))
}

fn ends_v6(of: v2::IPv6) -> (SocketAddr, SocketAddr) {
    let source = SocketAddr::from((of.source_address, of.source_port));
    (source, SocketAddr::from((of.destination_address, of.destination_port)))
}

/// IPv4 in its own form, and a source that can be one (RFC 1122 §3.2.1.3, RFC 4291 §2.5.2 and §2.7): all limits go by it.
fn checked(
    (source, destination): (SocketAddr, SocketAddr),
) -> Result<(SocketAddr, SocketAddr), ProxyHeaderError> {
    let canonical = |addr: SocketAddr| SocketAddr::new(addr.ip().to_canonical(), addr.port());
    let (source, destination) = (canonical(source), canonical(destination));
    let is_none = match source.ip() {
        IpAddr::V4(ip) => ip == Ipv4Addr::UNSPECIFIED || ip == Ipv4Addr::BROADCAST || ip.is_multicast(),
        IpAddr::V6(ip) => ip == Ipv6Addr::UNSPECIFIED || ip.is_multicast(),
    };
    if is_none { Err(ProxyHeaderError::Addresses) } else { Ok((source, destination)) }
}

#[cfg(test)]
mod tests;
