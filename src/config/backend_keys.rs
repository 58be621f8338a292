//! The shape of `backend_tls`, and how its values and the addresses of backends are written.

use std::fmt;

use serde_json::{Value, json};

use super::decode::{OneOrMany, Problem, Text, quote, shape};
use super::error::ErrorKind;
use super::tls_keys::CertificatePath;
use super::values::AlpnName;
use super::{BackendHttp, TlsVersion};
use crate::net::UpstreamAddr;
use crate::peek::ServerName;

/// What is written before the address of a backend, and what that speaks.
const SCHEMES: [(&str, Scheme); 6] = [
    ("tcp://", Scheme::Tcp),
    ("tls://", Scheme::Tls),
    ("http://", Scheme::Http),
    ("https://", Scheme::Https),
    ("h2c://", Scheme::H2c),
    ("h2://", Scheme::H2),
];

shape! {
    /// How TLS is spoken with backends.
    struct BackendTls {
        /// Whom the certificate must be signed by: `system` (by default) for the authorities of this system, a file of authorities
        /// (PEM), relative to the folder of this file, or `off` for anybody.
        verify: VerifyWith,
        /// The name that is asked for and that the certificate must have; by default the backend's, else the one that the client
        /// has asked for.
        sni: ServerName,
        /// The file of the certificate that backends are shown, and those that it is signed with (PEM).
        certificate: CertificatePath,
        /// The file of its key (PEM).
        key: CertificatePath,
        /// Public keys of which the backend's certificate must have one: their SHA-256 in base64 (RFC 7469, section 2.4).
        pins: OneOrMany<Pin>,
        /// The protocols inside that backends may choose from; by default the one that was agreed on with the client.
        alpn: OneOrMany<AlpnName>,
        /// The oldest version: `1.2` (by default) or `1.3`.
        min_version: TlsVersion,
    }
}

/// An address of a backend, and what that speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BackendAddr {
    pub(super) address: UpstreamAddr,
    pub(super) scheme: Scheme,
}

/// What a backend speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// What its clients do; nothing is written.
    Tcp,
    /// The same in TLS.
    Tls,
    /// HTTP/1.1.
    Http,
    /// The same in TLS.
    Https,
    /// HTTP/2 in clear.
    H2c,
    /// The same in TLS.
    H2,
}

/// What `verify` holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum VerifyWith {
    Off,
    System,
    File(CertificatePath),
}

/// The SHA-256 of a public key with its algorithm (SubjectPublicKeyInfo).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pin(pub(super) [u8; 32]);

impl Scheme {
    /// Whether it is spoken in TLS.
    pub(super) fn tls(self) -> bool {
        matches!(self, Self::Tls | Self::Https | Self::H2)
    }

    /// The version of HTTP, and the port where none is written.
    pub(super) fn http(self) -> Option<(BackendHttp, u16)> {
        match self {
            Self::Tcp | Self::Tls => None,
            Self::Http => Some((BackendHttp::Http1, 80)),
            Self::Https => Some((BackendHttp::Http1, 443)),
            Self::H2c => Some((BackendHttp::Http2, 80)),
            Self::H2 => Some((BackendHttp::Http2, 443)),
        }
    }

    /// The name of it that TLS agrees on.
    pub(super) fn alpn(self) -> Option<&'static [u8]> {
        match self {
            Self::Https => Some(b"http/1.1"),
            Self::H2 => Some(b"h2"),
            Self::Tcp | Self::Tls | Self::Http | Self::H2c => None,
        }
    }

    /// As it is written before an address.
    pub(super) fn as_str(self) -> &'static str {
        let written = SCHEMES.iter().find(|(_, scheme)| *scheme == self && self != Self::Tcp);
        written.map_or("", |(text, _)| text)
    }
}

impl fmt::Display for BackendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.scheme.as_str(), self.address)
    }
}

impl Text for BackendAddr {
    const EXPECTED: &'static str = UpstreamAddr::EXPECTED;

    fn constraints() -> Value {
        UpstreamAddr::constraints()
    }

    fn bare_number(number: &str) -> Option<Problem> {
        UpstreamAddr::bare_number(number)
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let known = SCHEMES.iter().find_map(|(written, scheme)| Some((text.strip_prefix(written)?, *scheme)));
        let (rest, scheme) = known.unwrap_or((text, Scheme::Tcp));
        let Some((_, port)) = scheme.http() else {
            let address = <UpstreamAddr as Text>::parse(rest).map_err(|problem| match known {
                None if text.contains("://") => problem
                    .hint("with TLS: `tls://host:port`; for HTTP `http://`, `https://`, `h2c://` or `h2://`"),
                _ => problem,
            })?;
            return Ok(Self { address, scheme });
        };
        let address = http_address(text, rest, port)?;
        Ok(Self { address, scheme })
    }
}

/// The address behind a scheme of HTTP, with that port if there is none.
fn http_address(text: &str, rest: &str, port: u16) -> Result<UpstreamAddr, Problem> {
    let bad = |message: &str| Problem::new(ErrorKind::BadAddress, format!("{} {message}", quote(text)));
    let has_no_port = ["unix:", "srv+"].iter().any(|prefix| rest.starts_with(prefix));
    if has_no_port {
        return <UpstreamAddr as Text>::parse(rest);
    }
    if let Some((host, _)) = rest.split_once(['/', '?', '#']) {
        let scheme = text.strip_suffix(rest).unwrap_or("");
        return Err(bad("is a URL, and a backend is an address")
            .hint(format!("write `\"{scheme}{host}\"`; a path is put before that of requests by `add`")));
    }
    let address = if rest.ends_with(']') || !rest.contains(':') {
        <UpstreamAddr as Text>::parse(&format!("{rest}:{port}"))?
    } else {
        <UpstreamAddr as Text>::parse(rest)?
    };
    match address {
        UpstreamAddr::ServerName(_) => Err(bad(
            "is no backend: requests are only sent to those that are named",
        )
        .hint("write the address of the backend, or `sni:PORT` without a scheme to pass streams through")),
        address => Ok(address),
    }
}

impl Text for VerifyWith {
    const EXPECTED: &'static str = "\"system\", \"off\" or a path";

    fn parse(text: &str) -> Result<Self, Problem> {
        match text {
            "off" => Ok(Self::Off),
            "system" => Ok(Self::System),
            path => CertificatePath::parse(path).map(Self::File),
        }
    }
}

impl Text for Pin {
    const EXPECTED: &'static str = "the SHA-256 of a public key in base64";

    fn constraints() -> Value {
        json!({ "pattern": "^[A-Za-z0-9+/]{43}=$" })
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        sha256_of_base64(text).map(Self).ok_or_else(|| {
            let message = format!("{} is not the SHA-256 of a public key in base64", quote(text));
            Problem::new(ErrorKind::BadValue, message).hint(
                "of a certificate: `openssl x509 -in cert.pem -pubkey -noout | openssl pkey -pubin -outform der | \
                 openssl dgst -sha256 -binary | base64`",
            )
        })
    }
}

/// 32 bytes in base64 (RFC 4648, section 4): 43 digits and one character of padding. What its last digit has left over is nothing.
fn sha256_of_base64(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_suffix('=').filter(|digits| digits.len() == 43)?;
    let (mut bytes, mut bits, mut have) = (Vec::with_capacity(32), 0_u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        have += 6;
        if have >= 8 {
            have -= 8;
            bytes.push(u8::try_from(bits >> have).ok()?);
            bits &= (1 << have) - 1;
        }
    }
    bytes.try_into().ok().filter(|_| bits == 0)
}

/// The same in base64.
pub(super) fn base64(bytes: &[u8; 32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |index: usize| {
        let bit = index * 6;
        let pair = |at: usize| u16::from(bytes.get(at).copied().unwrap_or(0));
        let bits = (pair(bit / 8) << 8) | pair(bit / 8 + 1);
        let value = (bits >> (10 - bit % 8)) & 63;
        DIGITS.get(usize::from(value)).copied().map_or('=', char::from)
    };
    (0..43).map(digit).chain(['=']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_32_bytes_in_base64_and_nothing_else() {
        // RFC 7469, section 2.1.5.
        let text = "d6qzRu9zOECb90Uez27xWltNsj0e1Md7GkYYkVoZWmM=";
        let pin = Pin::parse(text).unwrap_or_else(|problem| panic!("{}", problem.message));
        assert_eq!(pin.0[..4], [0x77, 0xaa, 0xb3, 0x46]);
        assert_eq!(base64(&pin.0), text);
        for bytes in [[0; 32], [255; 32]] {
            assert_eq!(sha256_of_base64(&base64(&bytes)), Some(bytes));
        }
        for bad in [
            "",
            "=",
            "d6qzRu9zOECb90Uez27xWltNsj0e1Md7GkYYkVoZWmM",
            "d6qzRu9zOECb90Uez27xWltNsj0e1Md7GkYYkVoZWmN=",
            "d6qzRu9zOECb90Uez27xWltNsj0e1Md7GkYYkVoZW==",
            "d6qzRu9zOECb90Uez27xWltNsj0e1Md7GkYYkVoZWm-=",
            "sha256/6qzRu9zOECb90Uez27xWltNsj0e1Md7GkYYkV=",
        ] {
            assert!(Pin::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_scheme_says_that_a_backend_speaks_tls() {
        let parse = |text: &str| BackendAddr::parse(text).ok();
        let tls = |text: &str, address: &str| {
            assert_eq!(
                parse(text),
                Some(BackendAddr { address: address.parse().unwrap(), scheme: Scheme::Tls })
            );
            assert_eq!(parse(text).unwrap().to_string(), text);
        };
        tls("tls://10.0.0.1:443", "10.0.0.1:443");
        tls("tls://app.internal:443", "app.internal:443");
        tls("tls://unix:/run/app.sock", "unix:/run/app.sock");
        tls("tls://srv+_db._tcp.example.com", "srv+_db._tcp.example.com");
        assert_eq!(parse("10.0.0.1:443").map(|written| written.scheme), Some(Scheme::Tcp));
        assert_eq!(parse("tcp://10.0.0.1:443"), parse("10.0.0.1:443"));
        for bad in
            ["tls://", "tls:10.0.0.1:443", "tls://tls://10.0.0.1:443", "TLS://10.0.0.1:443", "tls://app"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_scheme_says_which_http_a_backend_speaks() {
        for (text, written) in [
            ("http://10.0.0.1:8080", "http://10.0.0.1:8080"),
            ("http://app.internal", "http://app.internal:80"),
            ("https://app.internal", "https://app.internal:443"),
            ("h2c://[2001:db8::1]", "h2c://[2001:db8::1]:80"),
            ("h2://[2001:db8::1]:8443", "h2://[2001:db8::1]:8443"),
            ("http://unix:/run/app.sock", "http://unix:/run/app.sock"),
            ("https://srv+_web._tcp.example.com", "https://srv+_web._tcp.example.com"),
        ] {
            let parsed =
                BackendAddr::parse(text).unwrap_or_else(|problem| panic!("{text}: {}", problem.message));
            assert_eq!(parsed.to_string(), written);
            assert!(parsed.scheme.http().is_some());
        }
        for bad in [
            "http://",
            "http://a.test/",
            "http://a.test/x?y",
            "http://sni:443",
            "ftp://a.test:21",
            "http://::1",
        ] {
            assert!(BackendAddr::parse(bad).is_err(), "{bad}");
        }
    }
}
