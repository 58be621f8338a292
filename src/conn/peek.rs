//! Reading the first bytes of a connection until it is known what it is.

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{self, Poll, ready};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::io::{AsyncRead, ReadBuf};

use super::context::Context;
use super::hello_bytes::Held;
use super::limited::Entering;
use super::record::ConnRecord;
use super::refuse::{Refusal, alert, refuse};
use super::termination::Termination;
use crate::net::{Moment, Scratch, Socket, Timer};
use crate::peek::{Detector, HelloError, Patterns, Preface, Protocol};
use crate::prelude::{PreludeError, Why};
use crate::snapshot::{Beginnings, Snapshot};

/// How much and how long to read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) max_hello: usize,
    hello: Duration,
    pub(super) hello_by: Moment,
    /// From accept to the end of a handshake.
    handshake: Duration,
    pub(super) handshake_by: Moment,
    ja4: bool,
    /// How long a client has to send something until it counts as silent; `None` when no route is for such clients.
    silent_after: Option<Duration>,
    /// How long a client may pause until what it has sent is all that it is known by.
    settled_after: Duration,
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
    /// The event loop could not watch it.
    Unwatched,
    /// A ClientHello that is none.
    Hello(HelloError),
    /// It is unfinished, and unfinished ones take as much memory as they may.
    NoRoom,
    /// What was said before TLS begins within this protocol was wrong.
    Prelude(Protocol, PreludeError),
    /// The client went before it began TLS, or was told that it must.
    Left,
}

/// What a connection begins with, and what that counts for as long as more of it is awaited.
pub(super) struct First<'a, 'h> {
    pub(super) bytes: &'a mut Vec<u8>,
    pub(super) held: &'a mut Held<'h>,
}

impl Limits {
    pub(super) fn new(snapshot: &Snapshot, beginnings: &Beginnings, accepted: Moment) -> Self {
        let hello_by = accepted + snapshot.timeouts.hello;
        Self {
            max_hello: snapshot.max_hello,
            hello: snapshot.timeouts.hello,
            hello_by,
            handshake: snapshot.timeouts.handshake,
            handshake_by: accepted + snapshot.timeouts.handshake,
            ja4: snapshot.wants_ja4,
            silent_after: beginnings.silent_after,
            settled_after: beginnings.pause.unwrap_or(snapshot.timeouts.hello),
        }
    }

    /// The same for a client that is greeted now, which had no reason to hurry before.
    pub(super) fn greeted_at(self, now: Moment) -> Self {
        Self { hello_by: now + self.hello, handshake_by: now + self.handshake, ..self }
    }

    /// The same where silence is no protocol.
    pub(super) fn without_silence(self) -> Self {
        Self { silent_after: None, ..self }
    }
}

/// Reads into the `first` bytes, which hold what is there already, until they tell what the connection is: the hello and
/// whatever came with it, to be passed on first. The deadline is absolute: bytes do not renew it. Nothing is held for a
/// client that has sent nothing. What may still become several things is what the detector makes of it once the client
/// pauses, or sends no more: it may be waiting for an answer.
pub(super) async fn read_preface(
    stream: &mut Socket,
    first: First<'_, '_>,
    scratch: &Scratch,
    (limits, patterns): (Limits, Patterns<'_>),
    timer: &mut Timer<'_>,
) -> Result<Preface, PeekError> {
    let First { bytes, held } = first;
    let mut detector = Detector::new(limits.max_hello).with_ja4(limits.ja4).with_patterns(patterns);
    let silent_at = limits.silent_after.map(|silent| limits.hello_by.min(timer.now() + silent));
    loop {
        if let Some(preface) = detector.advance(bytes).map_err(PeekError::Hello)? {
            return Ok(preface);
        }
        if !held.grow_to(bytes.capacity()) {
            return Err(PeekError::NoRoom);
        }
        let settled = detector.settle(bytes);
        let until = match &settled {
            _ if bytes.is_empty() => silent_at.unwrap_or(limits.hello_by),
            Some(_) => limits.hello_by.min(timer.now() + limits.settled_after),
            None => limits.hello_by,
        };
        let room = limits.max_hello.saturating_sub(bytes.len());
        match (timer.timeout_at(until, read_more(stream, bytes, scratch, room)).await, settled) {
            (Some(Err(PeekError::Closed)) | None, Some(settled)) => return Ok(settled),
            (Some(read), _) => read?,
            (None, None) if bytes.is_empty() && silent_at.is_some() => {
                return Ok(Preface::Other(Protocol::Silent));
            }
            (None, None) => return Err(PeekError::Timeout),
        }
    }
}

/// Ends a connection whose first bytes were nothing that may be served.
pub(super) async fn turn_away(
    (stream, said): (Socket, &[u8]),
    error: PeekError,
    entering: Entering<'_>,
    record: &mut ConnRecord,
    cx: &Context,
    timer: &mut Timer<'_>,
) -> Termination {
    let Entering { permit, listener } = entering;
    listener.metrics.hello_failed(&error);
    if matches!(error, PeekError::Hello(_) | PeekError::Prelude(..)) {
        permit.strike(&cx.shared.guard.load(), record.client().ip(), Instant::now());
    }
    if error.is_refused() {
        record.refused();
    }
    refuse(stream, error.refusal(said), record, &cx.scratch, timer).await;
    error.into()
}

/// Reads what is there, up to `room` bytes.
pub(super) async fn read_more(
    stream: &mut Socket,
    bytes: &mut Vec<u8>,
    scratch: &Scratch,
    room: usize,
) -> Result<(), PeekError> {
    poll_fn(|cx| scratch.with(|scratch| poll_once(cx, stream, scratch, bytes, room))).await
}

fn poll_once(
    cx: &mut task::Context<'_>,
    stream: &mut Socket,
    scratch: &mut [u8],
    bytes: &mut Vec<u8>,
    room: usize,
) -> Poll<Result<(), PeekError>> {
    let room = room.clamp(1, scratch.len());
    let mut buf = ReadBuf::new(scratch.get_mut(..room).unwrap_or_default());
    ready!(Pin::new(stream).poll_read(cx, &mut buf)).map_err(PeekError::from_read)?;
    if buf.filled().is_empty() {
        return Poll::Ready(Err(PeekError::Closed));
    }
    if bytes.is_empty() {
        // Most hellos come whole; others grow by doubling, so that many small reads stay cheap.
        bytes.reserve_exact(buf.filled().len());
    }
    bytes.extend_from_slice(buf.filled());
    Poll::Ready(Ok(()))
}

impl PeekError {
    /// The words for the variants in logs and metrics.
    pub(super) const REASONS: [&str; 19] = [
        "hello_timeout",
        "closed",
        "reset",
        "unwatched",
        "too_large",
        "not_handshake",
        "record_length",
        "not_client_hello",
        "trailing_bytes",
        "syntax",
        "duplicate_extension",
        "several_names",
        "bad_name",
        "proxy_untrusted",
        "hello_memory",
        "prelude_syntax",
        "prelude_length",
        "prelude_injection",
        "without_tls",
    ];

    /// What a failed read means: the kernel's limits of what can be watched are never the client's doing.
    fn from_read(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::NOSPC | Errno::NOMEM) => Self::Unwatched,
            _ => Self::Reset,
        }
    }

    /// The word for it.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Timeout => "hello_timeout",
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Unwatched => "unwatched",
            Self::Hello(HelloError::TooLarge) => "too_large",
            Self::Hello(HelloError::NotHandshake) => "not_handshake",
            Self::Hello(HelloError::RecordLength) => "record_length",
            Self::Hello(HelloError::NotClientHello) => "not_client_hello",
            Self::Hello(HelloError::TrailingBytes) => "trailing_bytes",
            Self::Hello(HelloError::Syntax) => "syntax",
            Self::Hello(HelloError::DuplicateExtension) => "duplicate_extension",
            Self::Hello(HelloError::SeveralNames) => "several_names",
            Self::Hello(HelloError::Name(_)) => "bad_name",
            Self::Hello(HelloError::ProxyHeader) => "proxy_untrusted",
            Self::NoRoom => "hello_memory",
            Self::Prelude(_, PreludeError::Syntax) => "prelude_syntax",
            Self::Prelude(_, PreludeError::TooMuch) => "prelude_length",
            Self::Prelude(_, PreludeError::Injection) => "prelude_injection",
            Self::Left => "without_tls",
        }
    }

    /// Whether it is the proxy that ends the connection.
    pub(super) fn is_refused(&self) -> bool {
        match self {
            Self::Timeout | Self::Hello(_) | Self::NoRoom | Self::Prelude(..) => true,
            Self::Closed | Self::Reset | Self::Unwatched | Self::Left => false,
        }
    }

    /// How the client is told (RFC 8446 §6.2) that `said` this last.
    pub(super) fn refusal(&self, said: &[u8]) -> Refusal {
        match self {
            Self::Timeout | Self::Closed | Self::Reset | Self::Unwatched => Refusal::Close,
            // Nothing of it stays behind, in the kernel neither.
            Self::NoRoom => Refusal::Reset,
            Self::Prelude(protocol, _) => Refusal::in_words(*protocol, Why::NoRoute, said),
            // It may have been told something that must not be taken away again.
            Self::Left => Refusal::Answer(Cow::Borrowed(b"")),
            Self::Hello(HelloError::ProxyHeader) => Refusal::Close,
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
