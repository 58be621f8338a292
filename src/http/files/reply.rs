//! What is answered with a file that there is.

use std::fs::File;
use std::hash::BuildHasher;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName,
    LAST_MODIFIED, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::accept::Coding;
use super::conditional::{Preconditions, Stamp, Validators, Verdict};
use super::range::{Part, Ranges, Selection};
use super::stream::{FileStream, PIECE, Segment, read_all};
use super::{Body, FileAnswer, FilesError};
use crate::http::disk::Disk;

/// A file as it is sent.
#[derive(Debug)]
pub(super) struct Representation {
    pub(super) file: File,
    pub(super) stamp: Stamp,
    /// How it is encoded; `None`: as it is.
    pub(super) coding: Option<Coding>,
    pub(super) content_type: String,
    /// By which fields of the request it was chosen.
    pub(super) vary: Vec<HeaderName>,
}

/// What a request says of the file that it is for.
#[derive(Debug)]
pub(super) struct Wishes {
    /// Whether the head alone is asked for.
    pub(super) head: bool,
    pub(super) preconditions: Preconditions,
    pub(super) ranges: Ranges,
}

/// What is sent of a file, and how that is told.
struct Content {
    status: StatusCode,
    content_type: String,
    content_range: Option<String>,
    segments: Vec<Segment>,
}

impl Wishes {
    pub(super) fn of(head: bool, headers: &HeaderMap) -> Self {
        Self { head, preconditions: Preconditions::of(headers), ranges: Ranges::of(headers) }
    }
}

impl Representation {
    /// The answer, with its body if that is short. It blocks on the disk.
    pub(super) fn answer(
        self,
        wishes: &Wishes,
        disk: &Disk,
        seed: &impl BuildHasher,
    ) -> Result<FileAnswer, FilesError> {
        let validators = Validators::of(self.stamp, self.coding.map(Coding::token), SystemTime::now());
        let mut headers = self.versions(&validators);
        match wishes.preconditions.verdict(&validators) {
            Verdict::Proceed => {}
            Verdict::NotModified => return Ok(FileAnswer::bare(StatusCode::NOT_MODIFIED, headers)),
            Verdict::Failed => {
                return Ok(FileAnswer::bare(StatusCode::PRECONDITION_FAILED, HeaderMap::new()));
            }
        }
        // RFC 9110 §14.2: parts are for GET.
        let parts = !wishes.head && wishes.preconditions.range_holds(&validators);
        let content = match if parts { wishes.ranges.select(self.stamp.size) } else { Selection::Whole } {
            Selection::Whole => self.whole(),
            Selection::Parts(parts) => self.parts(&parts, seed),
            Selection::Unsatisfiable => {
                let range = value(format!("bytes */{}", self.stamp.size));
                let headers = HeaderMap::from_iter([(CONTENT_RANGE, range)]);
                return Ok(FileAnswer::bare(StatusCode::RANGE_NOT_SATISFIABLE, headers));
            }
        };
        let len = length(&content.segments);
        headers.insert(CONTENT_TYPE, value(content.content_type));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(range) = content.content_range {
            headers.insert(CONTENT_RANGE, value(range));
        }
        if let Some(coding) = self.coding {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.token()));
        }
        let body = match len {
            _ if wishes.head => Body::None,
            ..=PIECE => Body::Bytes(read_all(&self.file, &content.segments).map_err(FilesError::Read)?),
            _ => Body::Stream(FileStream::new(disk.clone(), self.file, content.segments)),
        };
        Ok(FileAnswer { status: content.status, headers, body })
    }

    /// What is told of the version, even to those who have it (RFC 9110 §15.4.5).
    fn versions(&self, validators: &Validators) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(etag) = &validators.etag {
            headers.insert(ETAG, value(etag.clone()));
        }
        if let Some(modified) = validators.last_modified() {
            headers.insert(LAST_MODIFIED, value(modified));
        }
        for name in &self.vary {
            headers.append(VARY, HeaderValue::from(name.clone()));
        }
        headers
    }

    fn whole(&self) -> Content {
        let len = self.stamp.size;
        let segments = if len == 0 { Vec::new() } else { vec![Segment::File { offset: 0, len }] };
        Content {
            status: StatusCode::OK,
            content_type: self.content_type.clone(),
            content_range: None,
            segments,
        }
    }

    fn parts(&self, parts: &[Part], seed: &impl BuildHasher) -> Content {
        let size = self.stamp.size;
        let status = StatusCode::PARTIAL_CONTENT;
        if let [part] = parts {
            let content_range = Some(part.range(size));
            let content_type = self.content_type.clone();
            return Content { status, content_type, content_range, segments: vec![Segment::of(*part)] };
        }
        let boundary = boundary(seed, parts);
        let segments = multipart(&boundary, &self.content_type, parts, size);
        if length(&segments) >= size {
            return self.whole();
        }
        let content_type = format!("multipart/byteranges; boundary={boundary}");
        Content { status, content_type, content_range: None, segments }
    }
}

impl Segment {
    fn of(part: Part) -> Self {
        Self::File { offset: part.first, len: part.len() }
    }
}

impl Part {
    /// As in `Content-Range`.
    fn range(self, size: u64) -> String {
        format!("bytes {}-{}/{size}", self.first, self.last)
    }
}

/// RFC 9110 §14.6.
fn multipart(boundary: &str, content_type: &str, parts: &[Part], size: u64) -> Vec<Segment> {
    let mut segments = Vec::with_capacity(parts.len() * 2 + 1);
    let mut line = "";
    for part in parts {
        let head = format!(
            "{line}--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: {}\r\n\r\n",
            part.range(size)
        );
        segments.push(Segment::Bytes(head.into()));
        segments.push(Segment::of(*part));
        line = "\r\n";
    }
    segments.push(Segment::Bytes(format!("\r\n--{boundary}--\r\n").into()));
    segments
}

/// What separates parts. It cannot be foreseen, so that no file can be made that has it inside.
fn boundary(seed: &impl BuildHasher, parts: &[Part]) -> String {
    let now = SystemTime::now();
    format!("{:016x}{:016x}", seed.hash_one((0, now, parts)), seed.hash_one((1, now, parts)))
}

fn length(segments: &[Segment]) -> u64 {
    segments.iter().map(Segment::len).fold(0, u64::saturating_add)
}

/// Of text that was made here.
fn value(text: String) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(text)).expect("it is printable ASCII")
}
