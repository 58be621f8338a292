//! One incremental detector for everything that may arrive on a port.

use super::client_hello::{ClientHello, HelloError, HelloReader};
use super::{Preface, Protocol};
use crate::net::Opening;

/// Request methods that begin an HTTP/1 request: RFC 9110 §9, RFC 5789, and the WebDAV family. A closed list, because
/// other line protocols begin with capital letters too.
const METHODS: [&[u8]; 17] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"CONNECT ",
    b"OPTIONS ",
    b"TRACE ",
    b"PATCH ",
    b"PROPFIND ",
    b"PROPPATCH ",
    b"MKCOL ",
    b"COPY ",
    b"MOVE ",
    b"LOCK ",
    b"UNLOCK ",
    b"REPORT ",
];
/// What the preface of HTTP/2 begins with (RFC 9113 §3.4).
const H2C: [&[u8]; 1] = [b"PRI "];
const SSH: [&[u8]; 1] = [b"SSH-"];
/// The bytes by which a TLS connection is known for good: a handshake record of major version 3. From there
/// on bad bytes are a bad hello and never another protocol.
const TLS: [&[u8]; 1] = [&[22, 3]];

/// One step of a detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    NeedMore,
    Is,
    No,
}

/// Finds out what a connection is from its first bytes, however they are cut.
#[derive(Clone, Debug)]
pub struct Detector {
    max_hello: usize,
    ja4: bool,
    tls: Option<HelloReader>,
}

impl Detector {
    /// A detector that lets a ClientHello take up to `max_hello` bytes on the wire.
    pub fn new(max_hello: usize) -> Self {
        Self { max_hello, ja4: false, tls: None }
    }

    /// Whether the fingerprint of a ClientHello is wanted too.
    pub fn with_ja4(mut self, wanted: bool) -> Self {
        self.ja4 = wanted;
        self
    }

    /// Looks at `bytes`, all bytes of the connection so far. `Ok(None)` means that more are needed.
    ///
    /// Calls must pass the same bytes again, grown or not.
    ///
    /// # Errors
    /// When the bytes begin like TLS and are not a well-formed ClientHello, or are a PROXY header.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<Option<Preface>, HelloError> {
        if let Some(reader) = &mut self.tls {
            let assembled = reader.advance(bytes, self.max_hello)?;
            return Ok(assembled.map(|assembled| Preface::Tls(Box::new(assembled.hello))));
        }
        match Opening::of(bytes) {
            // A backend that trusts this proxy would believe it.
            Opening::Header => return Err(HelloError::ProxyHeader),
            Opening::NeedMore => return Ok(None),
            Opening::Other => {}
        }
        let steps = [
            (begins_with(bytes, &TLS), Protocol::Tls),
            (begins_with(bytes, &METHODS), Protocol::Http),
            (begins_with(bytes, &H2C), Protocol::H2c),
            (begins_with(bytes, &SSH), Protocol::Ssh),
        ];
        match steps.iter().find(|(step, _)| *step == Step::Is) {
            Some((_, Protocol::Tls)) => {
                self.tls = Some(HelloReader::default().with_ja4(self.ja4));
                self.advance(bytes)
            }
            Some((_, protocol)) => Ok(Some(Preface::Other(*protocol))),
            None if steps.iter().any(|(step, _)| *step == Step::NeedMore) => Ok(None),
            None => Ok(Some(Preface::Other(Protocol::Unknown))),
        }
    }

    /// Whether a connection that begins with `bytes` is TLS for good, well-formed or not.
    pub fn begins_tls(bytes: &[u8]) -> bool {
        begins_with(bytes, &TLS) == Step::Is
    }
}

fn begins_with(bytes: &[u8], prefixes: &[&[u8]]) -> Step {
    if prefixes.iter().any(|prefix| bytes.starts_with(prefix)) {
        Step::Is
    } else if prefixes.iter().any(|prefix| prefix.starts_with(bytes)) {
        Step::NeedMore
    } else {
        Step::No
    }
}

impl Preface {
    /// The protocol; where TLS is begun within one, that one.
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::Tls(hello) => hello.within.unwrap_or(Protocol::Tls),
            Self::Startup(_) => Protocol::Postgres,
            Self::Other(protocol) => *protocol,
        }
    }

    /// The hello of a TLS connection.
    pub fn hello(&self) -> Option<&ClientHello> {
        match self {
            Self::Tls(hello) => Some(hello),
            Self::Startup(_) | Self::Other(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect(bytes: &[u8]) -> Option<Protocol> {
        Detector::new(16384).advance(bytes).unwrap().map(|preface| preface.protocol())
    }

    #[test]
    fn each_protocol_is_known_at_its_last_telling_byte_and_not_before() {
        let table: [(&[u8], usize, Protocol); 6] = [
            (b"GET / HTTP/1.1\r\n", 4, Protocol::Http),
            (b"PRI * HTTP/2.0\r\n", 4, Protocol::H2c),
            (b"PROPPATCH /x", 10, Protocol::Http),
            (b"SSH-2.0-OpenSSH_9.2\r\n", 4, Protocol::Ssh),
            (b"SSL-VPN", 3, Protocol::Unknown),
            (b"\x00\x00\x00\x08", 1, Protocol::Unknown),
        ];
        for (bytes, telling, protocol) in table {
            for len in 0..telling {
                assert_eq!(detect(&bytes[..len]), None, "{} bytes of {}", len, bytes.escape_ascii());
            }
            for len in telling..=bytes.len() {
                assert_eq!(
                    detect(&bytes[..len]),
                    Some(protocol),
                    "{} bytes of {}",
                    len,
                    bytes.escape_ascii()
                );
            }
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
        assert_eq!(detect(b"PROXYING"), Some(Protocol::Unknown));
        assert_eq!(detect(b"\r\nHELO"), Some(Protocol::Unknown));
    }

    #[test]
    fn what_begins_like_tls_never_becomes_another_protocol() {
        let mut detector = Detector::new(16384);
        assert_eq!(detector.advance(&[22]), Ok(None));
        assert_eq!(detector.advance(&[22, 3]), Ok(None));
        assert!(!Detector::begins_tls(&[22]) && Detector::begins_tls(&[22, 3]));
        assert_eq!(detector.advance(&[22, 3, 1, 0, 0]), Err(HelloError::RecordLength));
        // SSL 2.0 hellos and other record types are not TLS handshakes.
        assert_eq!(detect(&[0x80, 0x2e, 1, 0, 2]), Some(Protocol::Unknown));
        assert_eq!(detect(&[22, 2]), Some(Protocol::Unknown));
        assert_eq!(detect(&[21, 3, 3, 0, 2, 2, 40]), Some(Protocol::Unknown));
    }
}
