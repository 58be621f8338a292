//! Reading the first bytes of a connection until it is known what it is.

use std::io;
use std::time::Instant;

use tokio::net::TcpStream;
use tokio::time::timeout_at;

use super::refuse::{Refusal, alert};
use crate::net::Scratch;
use crate::peek::{Detector, HelloError, Preface, Protocol};
use crate::snapshot::Snapshot;

/// How much and how long to read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    max_hello: usize,
    hello_by: Instant,
    /// When a client that has sent nothing counts as silent; `None` when no route is for such clients.
    silent_at: Option<Instant>,
}

/// Why no preface came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeekError {
    /// The deadline passed.
    Timeout,
    /// The client ended its stream before.
    Closed,
    /// The connection failed.
    Reset,
    /// A ClientHello that is none.
    Hello(HelloError),
}

impl Limits {
    pub(super) fn new(snapshot: &Snapshot, listener: usize, accepted: Instant) -> Self {
        let hello_by = accepted + snapshot.timeouts.hello;
        let silent_at = snapshot.silent_after(listener).map(|silent| hello_by.min(accepted + silent));
        Self { max_hello: snapshot.max_hello, hello_by, silent_at }
    }
}

/// Reads into `bytes`, which is empty, until they tell what the connection is: the hello and whatever came
/// with it, to be passed on first. The deadline is absolute: bytes do not renew it. Nothing is held for a
/// client that has sent nothing.
pub(super) async fn read_preface(
    stream: &TcpStream,
    bytes: &mut Vec<u8>,
    scratch: &Scratch,
    limits: Limits,
) -> Result<Preface, PeekError> {
    let mut detector = Detector::new(limits.max_hello);
    loop {
        let until = limits.silent_at.filter(|_| bytes.is_empty()).unwrap_or(limits.hello_by);
        match timeout_at(until.into(), stream.readable()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(PeekError::Reset),
            Err(_) if bytes.is_empty() && limits.silent_at.is_some() => {
                return Ok(Preface::Other(Protocol::Silent));
            }
            Err(_) => return Err(PeekError::Timeout),
        }
        if let Some(preface) =
            scratch.with(|scratch| read_once(stream, scratch, bytes, &mut detector, limits))?
        {
            return Ok(preface);
        }
    }
}

/// Reads what is there, up to what a hello may take in all.
fn read_once(
    stream: &TcpStream,
    scratch: &mut [u8],
    bytes: &mut Vec<u8>,
    detector: &mut Detector,
    limits: Limits,
) -> Result<Option<Preface>, PeekError> {
    let room = limits.max_hello.saturating_sub(bytes.len()).clamp(1, scratch.len());
    let buf = scratch.get_mut(..room).unwrap_or_default();
    match stream.try_read(buf) {
        Ok(0) => Err(PeekError::Closed),
        Ok(n) => {
            if bytes.is_empty() {
                // Most hellos come whole; others grow by doubling, so that many small reads stay cheap.
                bytes.reserve_exact(n);
            }
            bytes.extend_from_slice(buf.get(..n).unwrap_or_default());
            detector.advance(bytes).map_err(PeekError::Hello)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(_) => Err(PeekError::Reset),
    }
}

impl PeekError {
    /// The words for the variants in logs and metrics.
    pub(super) const REASONS: [&str; 12] = [
        "hello_timeout",
        "closed",
        "reset",
        "too_large",
        "not_handshake",
        "record_length",
        "not_client_hello",
        "trailing_bytes",
        "syntax",
        "duplicate_extension",
        "several_names",
        "bad_name",
    ];

    /// The word for it.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Timeout => "hello_timeout",
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Hello(HelloError::TooLarge) => "too_large",
            Self::Hello(HelloError::NotHandshake) => "not_handshake",
            Self::Hello(HelloError::RecordLength) => "record_length",
            Self::Hello(HelloError::NotClientHello) => "not_client_hello",
            Self::Hello(HelloError::TrailingBytes) => "trailing_bytes",
            Self::Hello(HelloError::Syntax) => "syntax",
            Self::Hello(HelloError::DuplicateExtension) => "duplicate_extension",
            Self::Hello(HelloError::SeveralNames) => "several_names",
            Self::Hello(HelloError::Name(_)) => "bad_name",
        }
    }

    /// Whether it is the proxy that ends the connection.
    pub(super) fn is_refused(&self) -> bool {
        match self {
            Self::Timeout | Self::Hello(_) => true,
            Self::Closed | Self::Reset => false,
        }
    }

    /// How the client is told (RFC 8446 §6.2).
    pub(super) fn refusal(&self) -> Refusal {
        match self {
            Self::Timeout | Self::Closed | Self::Reset => Refusal::Close,
            Self::Hello(
                HelloError::NotHandshake | HelloError::NotClientHello | HelloError::TrailingBytes,
            ) => Refusal::Alert(alert::UNEXPECTED_MESSAGE),
            Self::Hello(HelloError::RecordLength | HelloError::Syntax) => Refusal::Alert(alert::DECODE_ERROR),
            Self::Hello(
                HelloError::TooLarge
                | HelloError::DuplicateExtension
                | HelloError::SeveralNames
                | HelloError::Name(_),
            ) => Refusal::Alert(alert::ILLEGAL_PARAMETER),
        }
    }
}
