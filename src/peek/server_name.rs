//! The server name of a ClientHello (RFC 6066 §3), normalised for comparison.

use std::borrow::Borrow;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A host name as routes compare it: ASCII, lower-case, no trailing dot, 1 to 253 bytes.
///
/// `_` is allowed although RFC 6066 asks for a DNS "HostName": service and tenant names use it, and it is
/// harmless. What could be read in two ways (IP literals, control bytes, a second dot) is refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerName(Box<str>);

/// Why bytes are not a server name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No bytes, or only a dot.
    #[error("the name is empty")]
    Empty,
    /// More than 253 bytes without the trailing dot.
    #[error("the name is longer than 253 bytes")]
    TooLong,
    /// A label with no bytes (two dots in a row, or a leading dot).
    #[error("the name has an empty label")]
    EmptyLabel,
    /// A label of more than 63 bytes.
    #[error("a label of the name is longer than 63 bytes")]
    LongLabel,
    /// A byte that is not a letter, a digit, `-`, `_` or `.`.
    #[error("byte 0x{0:02x} may not stand in a name")]
    BadByte(u8),
    /// An IPv4 or IPv6 address (RFC 6066 §3: "Literal IPv4 and IPv6 addresses are not permitted").
    #[error("the name is an IP address")]
    IpLiteral,
}

impl ServerName {
    /// Parses and normalises the bytes of a `host_name`.
    ///
    /// # Errors
    /// When the bytes are not a name; nothing is repaired beyond letter case and one trailing dot.
    pub fn parse(bytes: &[u8]) -> Result<Self, NameError> {
        let bytes = bytes.strip_suffix(b".").unwrap_or(bytes);
        if bytes.is_empty() {
            return Err(NameError::Empty);
        }
        if let Some(ip) = std::str::from_utf8(bytes).ok().map(|text| text.trim_matches(['[', ']']))
            && (ip.parse::<Ipv4Addr>().is_ok() || ip.parse::<Ipv6Addr>().is_ok())
        {
            return Err(NameError::IpLiteral);
        }
        if bytes.len() > 253 {
            return Err(NameError::TooLong);
        }
        for label in bytes.split(|b| *b == b'.') {
            check_label(label)?;
        }
        let name: String = bytes.iter().map(|b| char::from(b.to_ascii_lowercase())).collect();
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for ServerName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_label(label: &[u8]) -> Result<(), NameError> {
    if label.is_empty() {
        return Err(NameError::EmptyLabel);
    }
    if let Some(bad) = label.iter().find(|b| !(b.is_ascii_alphanumeric() || **b == b'-' || **b == b'_')) {
        return Err(NameError::BadByte(*bad));
    }
    if label.len() > 63 { Err(NameError::LongLabel) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_case_and_one_trailing_dot() {
        assert_eq!(ServerName::parse(b"WWW.Example.COM.").unwrap().as_str(), "www.example.com");
        assert_eq!(ServerName::parse(b"_dmarc.a-b.x").unwrap().as_str(), "_dmarc.a-b.x");
        assert_eq!(ServerName::parse(b"localhost").unwrap().as_str(), "localhost");
    }

    #[test]
    fn refuses_what_could_be_read_in_two_ways() {
        let long_label = [b'a'; 64];
        let long_name = [b"a.".as_slice(); 127].concat();
        let table: &[(&[u8], NameError)] = &[
            (b"", NameError::Empty),
            (b".", NameError::Empty),
            (b"..", NameError::EmptyLabel),
            (b"a.test..", NameError::EmptyLabel),
            (b".a.test", NameError::EmptyLabel),
            (b"a..test", NameError::EmptyLabel),
            (b"*.a.test", NameError::BadByte(b'*')),
            (b"a.test\0", NameError::BadByte(0)),
            (b"a\0.test", NameError::BadByte(0)),
            (b"a\r\n.test", NameError::BadByte(b'\r')),
            (b"a.test:443", NameError::BadByte(b':')),
            (b" a.test", NameError::BadByte(b' ')),
            (b"a/b", NameError::BadByte(b'/')),
            ("ä.test".as_bytes(), NameError::BadByte(0xc3)),
            (b"\xff\xfe", NameError::BadByte(0xff)),
            (b"127.0.0.1", NameError::IpLiteral),
            (b"127.0.0.1.", NameError::IpLiteral),
            (b"::1", NameError::IpLiteral),
            (b"[::1]", NameError::IpLiteral),
            (b"::ffff:10.0.0.1", NameError::IpLiteral),
            (&long_label, NameError::LongLabel),
        ];
        for (bytes, error) in table {
            assert_eq!(ServerName::parse(bytes), Err(*error), "{}", bytes.escape_ascii());
        }
        // 127 one-letter labels are 253 bytes without the trailing dot: the longest name there is.
        assert_eq!(ServerName::parse(&long_name).unwrap().as_str().len(), 253);
        assert_eq!(ServerName::parse(&[b"a".as_slice(), &long_name].concat()), Err(NameError::TooLong));
    }
}
