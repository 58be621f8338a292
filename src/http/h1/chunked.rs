//! Bodies in chunks (RFC 9112 §7.1).

use std::num::NonZeroU64;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::head::{line_end, split_field};

/// Digits of a chunk's size at most; more have zeros before them, or are no size.
const MAX_DIGITS: u8 = 16;

/// Fields that are no trailers (RFC 9110 §6.5.1): they frame, route, prove, or say how the content is to be read, and would
/// come behind the decision that they are for.
const NO_TRAILERS: [&str; 29] = [
    "age",
    "authorization",
    "cache-control",
    "connection",
    "cookie",
    "date",
    "expect",
    "expires",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "location",
    "max-forwards",
    "pragma",
    "range",
    "retry-after",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "x-http-method-override",
    "x-original-url",
    "x-real-ip",
];

/// What such fields begin with.
const NO_TRAILER_BEGINNINGS: [&str; 9] = [
    "access-control-",
    // RFC 9440 §2: whoever ends TLS says so, nobody else.
    "client-cert",
    "content-",
    "if-",
    "proxy-",
    "sec-",
    "x-forwarded-",
    "x-portcullis-",
    "x-rewrite-",
];

/// What a body may have beside its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all chunk extensions.
    pub extensions: usize,
    /// Bytes of all trailers.
    pub trailers: usize,
    /// Number of trailers.
    pub fields: usize,
}

/// A decoder of one body. It holds nothing of it: what is not yet whole stays in the caller's buffer.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    state: State,
    trailers: HeaderMap,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A chunk's size, of which so much is known by so many digits.
    Size { size: u64, digits: u8 },
    /// Extensions behind the size, up to the end of the line.
    Extensions { size: u64 },
    /// The LF behind the size.
    SizeEnd { size: u64 },
    /// So many bytes of data, not 0.
    Data { left: u64 },
    /// The CR LF behind the data.
    DataEnd,
    /// Trailers, or the empty line at the end.
    Trailers,
    /// Nothing.
    End,
}

/// What was decoded.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Data, never empty.
    Data(Bytes),
    /// The end of the body, with its trailers.
    Trailers(HeaderMap),
    /// Nothing until more comes.
    NeedMore,
}

/// Why a body is not one in chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// A size that is none, or more than can be.
    #[error("a chunk's size is none")]
    Size,
    /// Something else than CR LF where it has to be.
    #[error("a line or a chunk does not end in CR LF")]
    LineEnd,
    /// A control character in an extension.
    #[error("a control character in a chunk extension")]
    Extension,
    /// More extensions than there may be.
    #[error("too many chunk extensions")]
    Extensions,
    /// A trailer that is no field.
    #[error("a trailer is no field")]
    Trailer,
    /// More trailers than there may be.
    #[error("too many trailers")]
    Trailers,
}

/// The line before a chunk.
#[derive(Clone, Copy, Debug)]
pub struct ChunkHead {
    bytes: [u8; 18],
    begin: usize,
}

impl Limits {
    /// No software is known to need extensions; some sends a few bytes of them.
    pub const DEFAULT: Self = Self { extensions: 4 * 1024, trailers: 8 * 1024, fields: 32 };
}

impl ChunkError {
    /// All that [`ChunkError::reason`] says.
    pub const REASONS: [&'static str; 6] =
        ["chunk_size", "chunk_end", "chunk_extension", "chunk_extensions", "trailer", "trailers"];

    /// A word for logs and metrics. The connection is of no more use.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Size => "chunk_size",
            Self::LineEnd => "chunk_end",
            Self::Extension => "chunk_extension",
            Self::Extensions => "chunk_extensions",
            Self::Trailer => "trailer",
            Self::Trailers => "trailers",
        }
    }
}

impl Decoder {
    /// A decoder at the beginning of a body.
    pub fn new(limits: Limits) -> Self {
        Self { limits, state: State::Size { size: 0, digits: 0 }, trailers: HeaderMap::new() }
    }

    /// Whether the body is at its end, and what follows in the buffer is another message.
    pub fn is_done(&self) -> bool {
        self.state == State::End
    }

    /// Takes what it can out of `bytes`, and says what it was. Behind the end nothing is taken.
    ///
    /// # Errors
    /// When it is no body in chunks, or too much is beside its data. The decoder is of no more use then.
    pub fn decode(&mut self, bytes: &mut BytesMut) -> Result<Decoded, ChunkError> {
        loop {
            match self.state {
                State::Data { left } => return Ok(self.data(left, bytes)),
                State::Trailers => return self.trailers(bytes),
                State::End => return Ok(Decoded::Trailers(HeaderMap::new())),
                State::Size { .. } | State::Extensions { .. } | State::SizeEnd { .. } | State::DataEnd => {}
            }
            if !self.line(bytes)? {
                return Ok(Decoded::NeedMore);
            }
        }
    }

    /// Takes one step through what is not data; `false` when more is needed for that.
    fn line(&mut self, bytes: &mut BytesMut) -> Result<bool, ChunkError> {
        if self.state == State::DataEnd {
            return self.data_end(bytes);
        }
        let Some(byte) = bytes.first().copied() else { return Ok(false) };
        bytes.advance(1);
        self.state = match (self.state, byte) {
            (State::Size { size, digits: 1.. } | State::Extensions { size }, b'\r') => {
                State::SizeEnd { size }
            }
            (State::Size { size, digits: 1.. }, b';') => self.extension(size)?,
            (State::Size { size, digits }, byte) => {
                let digit =
                    char::from(byte).to_digit(16).filter(|_| digits < MAX_DIGITS).ok_or(ChunkError::Size)?;
                // Sixteen digits fit.
                State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (State::Extensions { .. }, b'\n') => return Err(ChunkError::LineEnd),
            (State::Extensions { .. }, byte) if byte.is_ascii_control() && byte != b'\t' => {
                return Err(ChunkError::Extension);
            }
            (State::Extensions { size }, _) => self.extension(size)?,
            (State::SizeEnd { size: 0 }, b'\n') => State::Trailers,
            (State::SizeEnd { size: left }, b'\n') => State::Data { left },
            (
                State::SizeEnd { .. } | State::Data { .. } | State::DataEnd | State::Trailers | State::End,
                _,
            ) => {
                return Err(ChunkError::LineEnd);
            }
        };
        Ok(true)
    }

    /// Counts a byte of an extension.
    fn extension(&mut self, size: u64) -> Result<State, ChunkError> {
        self.limits.extensions = self.limits.extensions.checked_sub(1).ok_or(ChunkError::Extensions)?;
        Ok(State::Extensions { size })
    }

    fn data(&mut self, left: u64, bytes: &mut BytesMut) -> Decoded {
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        if len == 0 {
            return Decoded::NeedMore;
        }
        // No more than was left.
        self.state = match left.saturating_sub(len as u64) {
            0 => State::DataEnd,
            left => State::Data { left },
        };
        Decoded::Data(bytes.split_to(len).freeze())
    }

    fn data_end(&mut self, bytes: &mut BytesMut) -> Result<bool, ChunkError> {
        match bytes.as_ref() {
            [b'\r', b'\n', ..] => {
                bytes.advance(2);
                self.state = State::Size { size: 0, digits: 0 };
                Ok(true)
            }
            [] | [b'\r'] => Ok(false),
            _ => Err(ChunkError::LineEnd),
        }
    }

    fn trailers(&mut self, bytes: &mut BytesMut) -> Result<Decoded, ChunkError> {
        loop {
            let Some(end) = line_end(bytes).map_err(|_| ChunkError::LineEnd)? else {
                let fits = bytes.len() <= self.limits.trailers;
                return if fits { Ok(Decoded::NeedMore) } else { Err(ChunkError::Trailers) };
            };
            let line = bytes.split_to(end).freeze();
            bytes.advance(2);
            if line.is_empty() {
                self.state = State::End;
                return Ok(Decoded::Trailers(std::mem::take(&mut self.trailers)));
            }
            self.trailer(&line)?;
        }
    }

    fn trailer(&mut self, line: &[u8]) -> Result<(), ChunkError> {
        let Limits { extensions: _, trailers, fields } = &mut self.limits;
        *trailers = trailers.checked_sub(line.len()).ok_or(ChunkError::Trailers)?;
        *fields = fields.checked_sub(1).ok_or(ChunkError::Trailers)?;
        let (name, value) = split_field(line).map_err(|_| ChunkError::Trailer)?;
        let name = HeaderName::from_bytes(name).map_err(|_| ChunkError::Trailer)?;
        let value = HeaderValue::from_bytes(value).map_err(|_| ChunkError::Trailer)?;
        if may_trail(&name) {
            self.trailers.append(name, value);
        }
        Ok(())
    }
}

/// Whether a field may come behind a body. Digests may (RFC 9530 §2): they are only known there.
pub fn may_trail(name: &HeaderName) -> bool {
    let name = name.as_str();
    let never = NO_TRAILERS.binary_search(&name).is_ok()
        || NO_TRAILER_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning));
    name == "content-digest" || !(never || name.contains('_'))
}

/// What of `trailers` may come behind a body.
pub fn trailing(trailers: HeaderMap) -> HeaderMap {
    if trailers.keys().all(may_trail) {
        return trailers;
    }
    let mut left = HeaderMap::with_capacity(trailers.len());
    for name in trailers.keys().filter(|name| may_trail(name)) {
        for value in trailers.get_all(name) {
            left.append(name, value.clone());
        }
    }
    left
}

/// The line before a chunk of `len` bytes; behind them comes a CR LF.
pub fn head(len: NonZeroU64) -> ChunkHead {
    let mut head = ChunkHead { bytes: [0; 18], begin: 18 };
    let mut left = len.get();
    let digits = std::iter::from_fn(|| {
        let digit = u32::try_from(left & 15).ok().and_then(|digit| char::from_digit(digit, 16));
        let more = left > 0;
        left >>= 4;
        digit.filter(|_| more).and_then(|digit| u8::try_from(digit).ok())
    });
    for (place, byte) in head.bytes.iter_mut().rev().zip([b'\n', b'\r'].into_iter().chain(digits)) {
        *place = byte;
        head.begin -= 1;
    }
    head
}

/// The last chunk, with those of `trailers` that may be trailers.
pub fn last(trailers: &HeaderMap) -> Bytes {
    let mut bytes = BytesMut::from(&b"0\r\n"[..]);
    for (name, value) in trailers.iter().filter(|(name, _)| may_trail(name)) {
        bytes.extend_from_slice(name.as_ref());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.freeze()
}

impl AsRef<[u8]> for ChunkHead {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(self.begin..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
