//! Heads of requests, looked at before they are parsed.
//!
//! Parsers are lenient in ways that differ. What is let through here has one reading: lines that end in CR LF, no line that
//! goes on in the next, names that are names, and one length at most.

use http::StatusCode;

use super::framing::is_chunked;

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// A CR without an LF behind it, or an LF without a CR before it.
    #[error("a line does not end in CR LF")]
    LineEnd,
    /// There is no empty line at its end, or one before it.
    #[error("the head does not end in one empty line")]
    End,
    /// Not `METHOD SP target SP version`.
    #[error("the first line is no request line")]
    RequestLine,
    /// Neither `HTTP/1.0` nor `HTTP/1.1`.
    #[error("the version is neither HTTP/1.0 nor HTTP/1.1")]
    Version,
    /// A line that begins with a space: the one before may go on there, or not (RFC 9112 §5.2).
    #[error("a line begins with a space")]
    Fold,
    /// A field without a name, or with something in it that is no token, as a space before the colon (§5.1).
    #[error("a field's name is none")]
    Name,
    /// A control character in a value.
    #[error("a control character in a field's value")]
    Value,
    /// More than one `Content-Length`, or one that is no number.
    #[error("Content-Length is not one number")]
    ContentLength,
    /// A `Transfer-Encoding` that is not `chunked` alone, or that HTTP/1.0 does not know.
    #[error("Transfer-Encoding is not chunked, or not known to this version")]
    TransferEncoding,
    /// Both (§6.1).
    #[error("Content-Length and Transfer-Encoding together")]
    Both,
}

/// What is said of a body so far.
#[derive(Default)]
struct Lengths {
    content_length: bool,
    transfer_encoding: bool,
}

impl HeadError {
    /// All that [`HeadError::reason`] says.
    pub const REASONS: [&'static str; 10] = [
        "line_end",
        "head_end",
        "request_line",
        "http_version",
        "fold",
        "field_name",
        "field_value",
        "content_length",
        "transfer_encoding",
        "two_lengths",
    ];

    /// What the client is answered, and its connection closed.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::LineEnd
            | Self::End
            | Self::RequestLine
            | Self::Fold
            | Self::Name
            | Self::Value
            | Self::ContentLength
            | Self::TransferEncoding
            | Self::Both => StatusCode::BAD_REQUEST,
        }
    }

    /// A word for logs and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::LineEnd => "line_end",
            Self::End => "head_end",
            Self::RequestLine => "request_line",
            Self::Version => "http_version",
            Self::Fold => "fold",
            Self::Name => "field_name",
            Self::Value => "field_value",
            Self::ContentLength => "content_length",
            Self::TransferEncoding => "transfer_encoding",
            Self::Both => "two_lengths",
        }
    }
}

/// Checks the whole head of a request, from its first byte to the empty line and with it. Empty lines before it, which
/// RFC 9112 §2.2 lets servers skip, are the caller's to skip.
///
/// # Errors
/// When it could be read in two ways.
pub fn check_request_head(head: &[u8]) -> Result<(), HeadError> {
    let mut lines = Lines(head);
    let is_1_0 = check_request_line(lines.next().ok_or(HeadError::End)??)?;
    let mut lengths = Lengths::default();
    while let Some(line) = lines.next() {
        let line = line?;
        if line.is_empty() {
            return if lines.0.is_empty() { Ok(()) } else { Err(HeadError::End) };
        }
        let (name, value) = split_field(line)?;
        lengths.read(name, value, is_1_0)?;
    }
    Err(HeadError::End)
}

/// Name and value of a field's line, the value without the white space around it.
pub(super) fn split_field(line: &[u8]) -> Result<(&[u8], &[u8]), HeadError> {
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Err(HeadError::Fold);
    }
    let at = line.iter().position(|byte| *byte == b':').ok_or(HeadError::Name)?;
    let (name, value) = line.split_at_checked(at).ok_or(HeadError::Name)?;
    if !is_token(name) {
        return Err(HeadError::Name);
    }
    let value = value.strip_prefix(b":").unwrap_or(value);
    if value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(HeadError::Value);
    }
    Ok((name, trim(value)))
}

/// The lines of a head, without the CR LF that each ends in.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], HeadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let line = line_end(self.0).and_then(|end| {
            let (line, rest) = end.and_then(|end| self.0.split_at_checked(end)).ok_or(HeadError::End)?;
            self.0 = rest.strip_prefix(b"\r\n").unwrap_or(rest);
            Ok(line)
        });
        Some(line)
    }
}

/// Where the first line of `bytes` ends; `None` where it does not yet.
///
/// # Errors
/// When it ends in another way than by CR LF.
pub(super) fn line_end(bytes: &[u8]) -> Result<Option<usize>, HeadError> {
    let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else { return Ok(None) };
    match bytes.get(end..).unwrap_or_default() {
        [b'\r', b'\n', ..] => Ok(Some(end)),
        [b'\r'] => Ok(None),
        _ => Err(HeadError::LineEnd),
    }
}

impl Lengths {
    fn read(&mut self, name: &[u8], value: &[u8], is_1_0: bool) -> Result<(), HeadError> {
        if name.eq_ignore_ascii_case(b"content-length") {
            if self.content_length || content_length(value).is_none() {
                return Err(HeadError::ContentLength);
            }
            self.content_length = true;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.transfer_encoding || is_1_0 || !is_chunked(value) {
                return Err(HeadError::TransferEncoding);
            }
            self.transfer_encoding = true;
        }
        if self.content_length && self.transfer_encoding { Err(HeadError::Both) } else { Ok(()) }
    }
}

/// A length: digits and nothing else.
pub(super) fn content_length(value: &[u8]) -> Option<u64> {
    let digits =
        std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

/// Whether the version is 1.0.
fn check_request_line(line: &[u8]) -> Result<bool, HeadError> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(HeadError::RequestLine);
    };
    // What is not ASCII can only be escaped later, and is there.
    if !is_token(method) || target.is_empty() || target.iter().any(u8::is_ascii_control) {
        return Err(HeadError::RequestLine);
    }
    match version {
        b"HTTP/1.1" => Ok(false),
        b"HTTP/1.0" => Ok(true),
        _ => Err(HeadError::Version),
    }
}

/// Whether `bytes` are a token (RFC 9110 §5.6.2).
fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// Without the spaces and tabs around it; no other white space is any (RFC 9110 §5.6.3).
fn trim(value: &[u8]) -> &[u8] {
    let is_text = |byte: &u8| !matches!(byte, b' ' | b'\t');
    let begin = value.iter().position(is_text).unwrap_or(value.len());
    let end = value.iter().rposition(is_text).map_or(begin, |last| last + 1);
    value.get(begin..end).unwrap_or_default()
}

#[cfg(test)]
mod tests;
