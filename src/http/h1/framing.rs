//! How long the body of a message is (RFC 9112 §6.3).

use http::header::{CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};
use http::{Method, StatusCode, Version};

use super::head::content_length;

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// As long as its chunks.
    Chunked,
    /// As long as the connection is open; of answers only.
    UntilClose,
}

/// Why it is not known how long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// A `Content-Length` that is no number, or several.
    #[error("Content-Length is not one number")]
    ContentLength,
    /// A `Transfer-Encoding` that is not `chunked` alone, or that HTTP/1.0 does not know.
    #[error("Transfer-Encoding is not chunked, or not known to this version")]
    TransferEncoding,
    /// Both.
    #[error("Content-Length and Transfer-Encoding together")]
    Both,
}

impl FramingError {
    /// All that [`FramingError::reason`] says.
    pub const REASONS: [&'static str; 3] = ["content_length", "transfer_encoding", "two_lengths"];

    /// A word for logs and metrics. The client is answered 400 where it is its request, 502 where it is an answer.
    pub fn reason(self) -> &'static str {
        match self {
            Self::ContentLength => "content_length",
            Self::TransferEncoding => "transfer_encoding",
            Self::Both => "two_lengths",
        }
    }
}

impl Framing {
    /// The framing of a request. Without a length there is no body.
    ///
    /// # Errors
    /// When that is not clear; the connection is of no more use.
    pub fn of_request(version: Version, headers: &HeaderMap) -> Result<Self, FramingError> {
        // Even the same length twice is nothing that a client sends.
        if headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
            return Err(FramingError::ContentLength);
        }
        Ok(Self::written(version, headers, false)?.unwrap_or(Self::None))
    }

    /// The framing of the answer to a request of this method. The same length several times is that length.
    ///
    /// # Errors
    /// When that is not clear; the answer is a bad one, and the connection of no more use.
    pub fn of_response(
        method: &Method,
        status: StatusCode,
        version: Version,
        headers: &HeaderMap,
    ) -> Result<Self, FramingError> {
        let written = Self::written(version, headers, true)?;
        let empty =
            status.is_informational() || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status);
        if empty || *method == Method::HEAD {
            return Ok(Self::None);
        }
        Ok(written.unwrap_or(Self::UntilClose))
    }

    /// What the head says.
    fn written(version: Version, headers: &HeaderMap, repeated: bool) -> Result<Option<Self>, FramingError> {
        let length = length(headers, repeated)?;
        let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
        let Some(encoding) = encodings.next() else { return Ok(length.map(Self::Length)) };
        let known =
            version == Version::HTTP_11 && encodings.next().is_none() && is_chunked(encoding.as_bytes());
        match (known, length) {
            (false, _) => Err(FramingError::TransferEncoding),
            (true, Some(_)) => Err(FramingError::Both),
            (true, None) => Ok(Some(Self::Chunked)),
        }
    }
}

/// The length that the head of an answer announces where none of it comes, as in the one to HEAD.
pub(in super::super) fn announced(headers: &HeaderMap) -> Option<u64> {
    length(headers, true).ok().flatten()
}

/// The one `Content-Length`; `repeated` ones, and lists of it, must be the same.
fn length(headers: &HeaderMap, repeated: bool) -> Result<Option<u64>, FramingError> {
    let mut one = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        for item in value.as_bytes().split(|byte| repeated && *byte == b',') {
            let item = if repeated { item.trim_ascii() } else { item };
            let length = content_length(item).ok_or(FramingError::ContentLength)?;
            if one.is_some_and(|one| one != length) {
                return Err(FramingError::ContentLength);
            }
            one = Some(length);
        }
    }
    Ok(one)
}

/// Whether a `Transfer-Encoding` is `chunked` alone.
pub(super) fn is_chunked(value: &[u8]) -> bool {
    value.eq_ignore_ascii_case(b"chunked")
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn map(lengths: &[&'static str], encodings: &[&'static str]) -> HeaderMap {
        let field = |name: HeaderName, value: &&'static str| (name, HeaderValue::from_static(value));
        let mut headers = HeaderMap::new();
        for (name, value) in lengths.iter().map(|value| field(CONTENT_LENGTH, value)) {
            headers.append(name, value);
        }
        for (name, value) in encodings.iter().map(|value| field(TRANSFER_ENCODING, value)) {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn requests_have_one_length_or_none() {
        use FramingError::{Both, ContentLength, TransferEncoding};
        for (lengths, encodings, expected) in [
            (&[][..], &[][..], Ok(Framing::None)),
            (&["0"], &[], Ok(Framing::Length(0))),
            (&["007"], &[], Ok(Framing::Length(7))),
            (&["18446744073709551615"], &[], Ok(Framing::Length(u64::MAX))),
            (&[], &["Chunked"], Ok(Framing::Chunked)),
            (&["18446744073709551616"], &[], Err(ContentLength)),
            (&["5", "5"], &[], Err(ContentLength)),
            (&["5, 5"], &[], Err(ContentLength)),
            (&["+5"], &[], Err(ContentLength)),
            (&["-5"], &[], Err(ContentLength)),
            (&[""], &[], Err(ContentLength)),
            (&["5 5"], &[], Err(ContentLength)),
            (&["0x5"], &[], Err(ContentLength)),
            (&["5"], &["chunked"], Err(Both)),
            (&[], &["chunked", "chunked"], Err(TransferEncoding)),
            (&[], &["gzip, chunked"], Err(TransferEncoding)),
            (&[], &["identity"], Err(TransferEncoding)),
            (&[], &[""], Err(TransferEncoding)),
        ] {
            let framing = Framing::of_request(Version::HTTP_11, &map(lengths, encodings));
            assert_eq!(framing, expected, "{lengths:?} {encodings:?}");
        }
        let old = Framing::of_request(Version::HTTP_10, &map(&[], &["chunked"]));
        assert_eq!(old, Err(TransferEncoding));
        for error in [Both, ContentLength, TransferEncoding] {
            assert!(FramingError::REASONS.contains(&error.reason()));
        }
    }

    #[test]
    fn answers_have_one_length_or_end_with_the_connection() {
        use FramingError::{Both, ContentLength, TransferEncoding};
        for (lengths, encodings, expected) in [
            (&[][..], &[][..], Ok(Framing::UntilClose)),
            (&["5"], &[], Ok(Framing::Length(5))),
            (&["5", "5"], &[], Ok(Framing::Length(5))),
            (&["5, 5"], &[], Ok(Framing::Length(5))),
            (&["5", "6"], &[], Err(ContentLength)),
            (&["5,6"], &[], Err(ContentLength)),
            (&["5,"], &[], Err(ContentLength)),
            (&["x"], &[], Err(ContentLength)),
            (&[], &["chunked"], Ok(Framing::Chunked)),
            (&[], &["gzip"], Err(TransferEncoding)),
            (&[], &["chunked", "chunked"], Err(TransferEncoding)),
            (&["5"], &["chunked"], Err(Both)),
        ] {
            let headers = map(lengths, encodings);
            let of =
                |method: &Method, status| Framing::of_response(method, status, Version::HTTP_11, &headers);
            assert_eq!(of(&Method::GET, StatusCode::OK), expected, "{lengths:?} {encodings:?}");
            // Nor is a head believed that is not clear, where nothing comes behind it.
            let none = expected.map(|_| Framing::None);
            assert_eq!(of(&Method::HEAD, StatusCode::OK), none, "{lengths:?} {encodings:?}");
            for status in [StatusCode::EARLY_HINTS, StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED] {
                assert_eq!(of(&Method::GET, status), none, "{status} {lengths:?} {encodings:?}");
            }
        }
        let old = map(&[], &["chunked"]);
        let old = Framing::of_response(&Method::GET, StatusCode::OK, Version::HTTP_10, &old);
        assert_eq!(old, Err(TransferEncoding));
    }
}
