//! The shape of `backend_tls`, and how its values and the addresses of backends are written.

use std::fmt;

use serde_json::{Value, json};

use super::TlsVersion;
use super::decode::{OneOrMany, Problem, Text, quote, shape};
use super::error::ErrorKind;
use super::tls_keys::CertificatePath;
use super::values::AlpnName;
use crate::net::UpstreamAddr;
use crate::peek::ServerName;

/// What is written before the address of a backend that speaks TLS.
const SCHEME: &str = "tls://";

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

/// An address of a backend, and whether that speaks TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BackendAddr {
    pub(super) address: UpstreamAddr,
    pub(super) tls: bool,
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

impl fmt::Display for BackendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.tls { SCHEME } else { "" }, self.address)
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
        let rest = text.strip_prefix(SCHEME);
        let address = <UpstreamAddr as Text>::parse(rest.unwrap_or(text)).map_err(|problem| match rest {
            None if text.contains("://") => problem.hint("with TLS: `tls://host:port`"),
            _ => problem,
        })?;
        Ok(Self { address, tls: rest.is_some() })
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
            assert_eq!(parse(text), Some(BackendAddr { address: address.parse().unwrap(), tls: true }));
            assert_eq!(parse(text).unwrap().to_string(), text);
        };
        tls("tls://10.0.0.1:443", "10.0.0.1:443");
        tls("tls://app.internal:443", "app.internal:443");
        tls("tls://unix:/run/app.sock", "unix:/run/app.sock");
        tls("tls://srv+_db._tcp.example.com", "srv+_db._tcp.example.com");
        assert_eq!(parse("10.0.0.1:443").map(|written| written.tls), Some(false));
        for bad in
            ["tls://", "tls:10.0.0.1:443", "tls://tls://10.0.0.1:443", "TLS://10.0.0.1:443", "tls://app"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
