//! Requests that hold only for some versions of a file (RFC 9110 §13).

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{
    HeaderMap, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
};

/// What tells a version of a file from others: the same on every server that a file is copied to with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// When it was changed: seconds since 1970.
    pub(super) seconds: i64,
    /// Nanoseconds beside these.
    pub(super) nanos: i64,
    /// Its length in bytes.
    pub(super) size: u64,
}

/// What a client is told of the version that it is given, and may come back with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Validators {
    /// A strong entity tag, with its quotes; `None` where nothing is known of the version.
    pub(super) etag: Option<String>,
    /// When it was changed, in seconds since 1970, never later than now.
    pub(super) modified: Option<u64>,
}

/// What a request says of versions.
#[derive(Debug)]
pub(super) struct Preconditions {
    matching: Option<Tags>,
    unmodified_since: Option<u64>,
    none_matching: Option<Tags>,
    modified_since: Option<u64>,
    range: Option<IfRange>,
}

/// What becomes of a request by what it says of versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on.
    Proceed,
    /// The client has this version (304).
    NotModified,
    /// It is for another version (412).
    Failed,
}

#[derive(Debug)]
enum Tags {
    Any,
    Listed(Vec<Tag>),
}

/// An entity tag as a client writes it.
#[derive(Debug, PartialEq, Eq)]
struct Tag {
    weak: bool,
    /// With its quotes.
    opaque: Box<[u8]>,
}

#[derive(Debug)]
enum IfRange {
    Tag(Tag),
    Modified(u64),
    /// What cannot be read matches nothing.
    Unclear,
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self { seconds: metadata.mtime(), nanos: metadata.mtime_nsec(), size: metadata.len() }
    }

    /// Whether it was changed before the other.
    pub(super) fn is_older_than(self, other: Self) -> bool {
        (self.seconds, self.nanos) < (other.seconds, other.nanos)
    }
}

impl Validators {
    /// Those of a file; `coding` tells its encoded forms apart.
    ///
    /// A time that is the first second of 1970, or one before or beside it, is that of archives and package stores which
    /// write none: all versions have it, so it says nothing.
    pub(super) fn of(stamp: Stamp, coding: Option<&str>, now: SystemTime) -> Self {
        let Some(seconds) = u64::try_from(stamp.seconds).ok().filter(|seconds| *seconds > 1) else {
            return Self::default();
        };
        let Stamp { size, nanos, .. } = stamp;
        let (dash, coding) = coding.map_or(("", ""), |coding| ("-", coding));
        // RFC 9110 §8.8.2.1: no time is told that is still to come.
        let now = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        Self {
            etag: Some(format!("\"{size:x}-{seconds:x}.{nanos:x}{dash}{coding}\"")),
            modified: Some(seconds.min(now)),
        }
    }

    /// For `Last-Modified`.
    pub(super) fn last_modified(&self) -> Option<String> {
        self.modified.map(|seconds| httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds)))
    }
}

impl Preconditions {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        Self {
            matching: Tags::of(headers, IF_MATCH),
            unmodified_since: only(headers, IF_UNMODIFIED_SINCE).and_then(date),
            none_matching: Tags::of(headers, IF_NONE_MATCH),
            modified_since: only(headers, IF_MODIFIED_SINCE).and_then(date),
            range: headers.contains_key(IF_RANGE).then(|| IfRange::of(headers)),
        }
    }

    /// In the order of RFC 9110 §13.2.2, for GET and HEAD and a file that there is.
    pub(super) fn verdict(&self, current: &Validators) -> Verdict {
        let unchanged = |since: Option<u64>| Some(current.modified? <= since?);
        let held = match &self.matching {
            Some(tags) => tags.contain(current, Comparison::Strong),
            None => unchanged(self.unmodified_since).unwrap_or(true),
        };
        if !held {
            return Verdict::Failed;
        }
        let known = match &self.none_matching {
            Some(tags) => tags.contain(current, Comparison::Weak),
            None => unchanged(self.modified_since).unwrap_or(false),
        };
        if known { Verdict::NotModified } else { Verdict::Proceed }
    }

    /// Whether a part may be sent, because what the client has is of the same version (§13.1.5).
    pub(super) fn range_holds(&self, current: &Validators) -> bool {
        match &self.range {
            None => true,
            Some(IfRange::Tag(tag)) => tag.is(current, Comparison::Strong),
            Some(IfRange::Modified(seconds)) => current.modified == Some(*seconds),
            Some(IfRange::Unclear) => false,
        }
    }
}

/// RFC 9110 §8.8.3.2.
#[derive(Clone, Copy)]
enum Comparison {
    Strong,
    Weak,
}

impl Tags {
    /// Those of all fields of this name. What follows something that is no tag is not read: nothing matches it.
    fn of(headers: &HeaderMap, name: HeaderName) -> Option<Self> {
        let mut fields = headers.get_all(name).iter().peekable();
        fields.peek()?;
        let mut tags = Vec::new();
        for field in fields {
            let mut rest = field.as_bytes().trim_ascii();
            if rest == b"*" {
                return Some(Self::Any);
            }
            while let Some((tag, after)) = Tag::split(rest) {
                tags.push(tag);
                rest = after.trim_ascii_start();
                while let Some(after) = rest.strip_prefix(b",") {
                    rest = after.trim_ascii_start();
                }
            }
        }
        Some(Self::Listed(tags))
    }

    fn contain(&self, current: &Validators, comparison: Comparison) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(tags) => tags.iter().any(|tag| tag.is(current, comparison)),
        }
    }
}

impl Tag {
    /// The tag that these bytes begin with, and what follows.
    fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (weak, quoted) = match bytes.strip_prefix(b"W/") {
            Some(quoted) => (true, quoted),
            None => (false, bytes),
        };
        let inner = quoted.strip_prefix(b"\"")?;
        let end = inner.iter().position(|byte| *byte == b'"')?;
        let (opaque, after) = quoted.split_at_checked(end + 2)?;
        Some((Self { weak, opaque: opaque.into() }, after))
    }

    fn is(&self, current: &Validators, comparison: Comparison) -> bool {
        let strong = matches!(comparison, Comparison::Strong);
        let same = current.etag.as_deref().is_some_and(|etag| etag.as_bytes() == &*self.opaque);
        same && !(strong && self.weak)
    }
}

impl IfRange {
    fn of(headers: &HeaderMap) -> Self {
        let Some(value) = only(headers, IF_RANGE) else { return Self::Unclear };
        match Tag::split(value.as_bytes().trim_ascii()) {
            Some((tag, b"")) => Self::Tag(tag),
            Some(_) => Self::Unclear,
            None => date(value).map_or(Self::Unclear, Self::Modified),
        }
    }
}

/// The value of a field that may be there once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut fields = headers.get_all(name).iter();
    let field = fields.next()?;
    if fields.next().is_some() { None } else { field.to_str().ok() }
}

/// In seconds since 1970.
fn date(value: &str) -> Option<u64> {
    let time = httpdate::parse_http_date(value.trim()).ok()?;
    Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const SECONDS: i64 = 1_700_000_000;
    const BEFORE: &str = "Tue, 14 Nov 2023 22:13:19 GMT";
    const AT: &str = "Tue, 14 Nov 2023 22:13:20 GMT";
    const AFTER: &str = "Tue, 14 Nov 2023 22:13:21 GMT";

    fn current() -> Validators {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let validators = Validators::of(Stamp { seconds: SECONDS, nanos: 5, size: 255 }, None, now);
        assert_eq!(validators.etag.as_deref(), Some("\"ff-6553f100.5\""));
        assert_eq!(validators.last_modified().as_deref(), Some(AT));
        validators
    }

    fn preconditions(fields: &[(&'static str, &str)]) -> Preconditions {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Preconditions::of(&headers)
    }

    #[test]
    fn conditions_are_looked_at_in_their_order() {
        use Verdict::{Failed, NotModified, Proceed};
        const SAME: &str = "\"ff-6553f100.5\"";
        let table: &[(&[(&str, &str)], Verdict)] = &[
            (&[], Proceed),
            (&[("if-none-match", SAME)], NotModified),
            (&[("if-none-match", "W/\"ff-6553f100.5\"")], NotModified),
            (&[("if-none-match", "*")], NotModified),
            (&[("if-none-match", "\"x\"")], Proceed),
            (&[("if-none-match", "\"a,b\" ,, W/\"c\",\"ff-6553f100.5\"")], NotModified),
            (&[("if-none-match", "\"a\""), ("if-none-match", SAME)], NotModified),
            (&[("if-none-match", "ff-6553f100.5")], Proceed),
            (&[("if-none-match", "\"ff-6553f100.5")], Proceed),
            (&[("if-none-match", "w/\"ff-6553f100.5\"")], Proceed),
            (&[("if-none-match", "")], Proceed),
            (&[("if-none-match", "\"é\", \"ff-6553f100.5\"")], NotModified),
            (&[("if-modified-since", BEFORE)], Proceed),
            (&[("if-modified-since", AT)], NotModified),
            (&[("if-modified-since", AFTER)], NotModified),
            (&[("if-modified-since", "Tuesday, 14-Nov-23 22:13:20 GMT")], NotModified),
            (&[("if-modified-since", "Tue Nov 14 22:13:20 2023")], NotModified),
            (&[("if-modified-since", "yesterday")], Proceed),
            (&[("if-modified-since", AT), ("if-modified-since", AT)], Proceed),
            // The tag goes before the time.
            (&[("if-none-match", "\"x\""), ("if-modified-since", AFTER)], Proceed),
            (&[("if-none-match", SAME), ("if-modified-since", BEFORE)], NotModified),
            (&[("if-match", SAME)], Proceed),
            (&[("if-match", "\"x\", \"ff-6553f100.5\"")], Proceed),
            (&[("if-match", "*")], Proceed),
            (&[("if-match", "\"x\"")], Failed),
            (&[("if-match", "W/\"ff-6553f100.5\"")], Failed),
            (&[("if-match", "rubbish")], Failed),
            (&[("if-unmodified-since", BEFORE)], Failed),
            (&[("if-unmodified-since", AT)], Proceed),
            (&[("if-unmodified-since", "rubbish")], Proceed),
            (&[("if-match", SAME), ("if-unmodified-since", BEFORE)], Proceed),
            (&[("if-match", SAME), ("if-none-match", SAME)], NotModified),
            (&[("if-match", "\"x\""), ("if-none-match", SAME)], Failed),
        ];
        for (fields, expected) in table {
            assert_eq!(preconditions(fields).verdict(&current()), *expected, "{fields:?}");
        }
    }

    #[test]
    fn parts_are_of_the_version_that_the_client_has() {
        for (fields, expected) in [
            (&[][..], true),
            (&[("if-range", "\"ff-6553f100.5\"")], true),
            (&[("if-range", "W/\"ff-6553f100.5\"")], false),
            (&[("if-range", "\"x\"")], false),
            (&[("if-range", "\"ff-6553f100.5\", \"x\"")], false),
            (&[("if-range", "*")], false),
            (&[("if-range", AT)], true),
            (&[("if-range", AFTER)], false),
            (&[("if-range", BEFORE)], false),
            (&[("if-range", "rubbish")], false),
            (&[("if-range", AT), ("if-range", AT)], false),
        ] {
            assert_eq!(preconditions(fields).range_holds(&current()), expected, "{fields:?}");
        }
    }

    #[test]
    fn times_that_say_nothing_are_not_told() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        for seconds in [i64::MIN, -1, 0, 1] {
            let none = Validators::of(Stamp { seconds, nanos: 0, size: 1 }, None, now);
            assert_eq!(none, Validators::default());
            assert_eq!(preconditions(&[("if-none-match", "\"1-0.0\"")]).verdict(&none), Verdict::Proceed);
            assert_eq!(preconditions(&[("if-modified-since", AT)]).verdict(&none), Verdict::Proceed);
            assert_eq!(preconditions(&[("if-match", "*")]).verdict(&none), Verdict::Proceed);
            assert!(!preconditions(&[("if-range", AT)]).range_holds(&none));
        }
        let future = Validators::of(Stamp { seconds: i64::MAX, nanos: 0, size: 1 }, Some("br"), now);
        assert_eq!(future.last_modified().as_deref(), Some("Thu, 01 Jan 1970 00:16:40 GMT"));
        assert_eq!(future.etag.as_deref(), Some("\"1-7fffffffffffffff.0-br\""));
    }
}
