//! Paths in one spelling.
//!
//! A request's path is brought into this form once, before anything looks at it: rules, the cache and the backend
//! all see the same. What servers are known to read in different ways is refused.

use std::borrow::Cow;

/// Why a path has no one spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It does not begin with a slash, or a question mark stands in it.
    #[error("the path does not begin with a slash, or has a question mark in it")]
    Form,
    /// A `%` without two hexadecimal digits behind it.
    #[error("a percent sign without two hexadecimal digits")]
    Escape,
    /// `%2f`, `%5c` or `\`: a slash to some servers, a character to others.
    #[error("an escaped slash, or a backslash")]
    Slash,
    /// A control character, escaped or not.
    #[error("a control character")]
    Control,
    /// A longer encoding of a character than there need be (RFC 3629 §3), which hides it.
    #[error("an overlong encoding of a character")]
    Overlong,
    /// More `..` than folders.
    #[error("the path climbs above the root")]
    Climb,
    /// `..;x` or `.;x`: a dot segment to servers that cut parameters off first.
    #[error("a dot segment with parameters")]
    Dots,
    /// A `#`: fragments are not sent (RFC 9112 §3.2).
    #[error("a fragment")]
    Fragment,
}

impl PathError {
    /// All that [`PathError::reason`] says.
    pub const REASONS: [&'static str; 8] = [
        "path_form",
        "path_escape",
        "path_slash",
        "path_control",
        "path_overlong",
        "path_climb",
        "path_dots",
        "fragment",
    ];

    /// A word for logs and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Form => "path_form",
            Self::Escape => "path_escape",
            Self::Slash => "path_slash",
            Self::Control => "path_control",
            Self::Overlong => "path_overlong",
            Self::Climb => "path_climb",
            Self::Dots => "path_dots",
            Self::Fragment => "fragment",
        }
    }
}

/// The one spelling of `path`, which has no query.
///
/// - Escaped characters that need no escape are written as they are (RFC 3986 §6.2.2.2), hexadecimal digits in upper
///   case, and what may not stand in a path is escaped.
/// - `.` and `..` are resolved (§5.2.4), escaped ones too, after several slashes became one.
///
/// Nothing is decoded twice: `%252e` stays.
///
/// # Errors
/// When servers read the path in different ways.
pub fn normalise(path: &str) -> Result<String, PathError> {
    if !path.starts_with('/') {
        return Err(PathError::Form);
    }
    resolve(&unescape(path)?)
}

/// The path that rules look at: `path`, which is normalised, without the parameters of its segments.
///
/// `/a;v=1/b` is `/a/b`, since servers with parameters (RFC 3986 §3.3) find the same there. `%3B` ends a segment as well,
/// for those that decode first. A segment of nothing but parameters is none.
pub fn without_parameters(path: &str) -> Cow<'_, str> {
    if !path.contains(';') && !path.contains("%3B") {
        return Cow::Borrowed(path);
    }
    let mut plain = String::with_capacity(path.len());
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let name = name_of(segment);
        if !name.is_empty() || segments.peek().is_none() {
            plain.push('/');
            plain.push_str(name);
        }
    }
    Cow::Owned(plain)
}

/// A segment without its parameters.
pub(super) fn name_of(segment: &str) -> &str {
    let end = segment.find(';').into_iter().chain(segment.find("%3B")).min();
    end.and_then(|end| segment.get(..end)).unwrap_or(segment)
}

/// Puts every byte in its one form; slashes and dots are as they came.
fn unescape(path: &str) -> Result<String, PathError> {
    let mut plain = String::with_capacity(path.len());
    let mut bytes = path.as_bytes();
    let mut lead = None;
    while let [byte, rest @ ..] = bytes {
        (bytes, lead) = match (byte, rest) {
            (b'%', [high, low, rest @ ..]) => {
                let byte = escaped(*high, *low)?;
                push_escaped(&mut plain, byte, lead)?;
                (rest, Some(byte))
            }
            (b'%', _) => return Err(PathError::Escape),
            (byte, rest) => {
                push_plain(&mut plain, *byte)?;
                (rest, None)
            }
        };
    }
    Ok(plain)
}

fn escaped(high: u8, low: u8) -> Result<u8, PathError> {
    let digit = |byte| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    match (digit(high), digit(low)) {
        (Some(high), Some(low)) => Ok(high << 4 | low),
        _ => Err(PathError::Escape),
    }
}

/// Writes a byte that came escaped, behind `lead` if that came so too.
fn push_escaped(plain: &mut String, byte: u8, lead: Option<u8>) -> Result<(), PathError> {
    match (lead, byte) {
        (_, b'/' | b'\\') => Err(PathError::Slash),
        (_, byte) if byte.is_ascii_control() => Err(PathError::Control),
        // `%C0%AF` is a slash to a decoder that does not check; in Latin-1 these are no text either.
        (Some(0xc0 | 0xc1), 0x80..=0xbf) | (Some(0xe0), 0x80..=0x9f) | (Some(0xf0), 0x80..=0x8f) => {
            Err(PathError::Overlong)
        }
        (_, byte) if is_unreserved(byte) => {
            plain.push(char::from(byte));
            Ok(())
        }
        (_, byte) => {
            push_hex(plain, byte);
            Ok(())
        }
    }
}

/// Writes a byte that came as it is.
fn push_plain(plain: &mut String, byte: u8) -> Result<(), PathError> {
    match byte {
        b'\\' => Err(PathError::Slash),
        b'#' => Err(PathError::Fragment),
        b'?' => Err(PathError::Form),
        byte if byte.is_ascii_control() => Err(PathError::Control),
        byte if is_unreserved(byte) || b"/!$&'()*+,;=:@".contains(&byte) => {
            plain.push(char::from(byte));
            Ok(())
        }
        byte => {
            push_hex(plain, byte);
            Ok(())
        }
    }
}

/// Takes out empty and dot segments; what ended in one ends in a slash.
fn resolve(path: &str) -> Result<String, PathError> {
    let mut whole = String::with_capacity(path.len());
    let mut folder = true;
    for segment in path.split('/').skip(1) {
        folder = true;
        match (segment, name_of(segment)) {
            ("" | ".", _) => {}
            ("..", _) => whole.truncate(whole.rfind('/').ok_or(PathError::Climb)?),
            (_, "." | "..") => return Err(PathError::Dots),
            (segment, _) => {
                whole.push('/');
                whole.push_str(segment);
                folder = false;
            }
        }
    }
    if folder {
        whole.push('/');
    }
    Ok(whole)
}

/// What never needs an escape (RFC 3986 §2.3).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Writes `byte` escaped.
pub(super) fn push_hex(text: &mut String, byte: u8) {
    let digit = |nibble| char::from_digit(nibble, 16).unwrap_or_default().to_ascii_uppercase();
    text.push('%');
    text.push(digit(u32::from(byte >> 4)));
    text.push(digit(u32::from(byte & 15)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_spelling_for_each_path() {
        for (path, expected) in [
            ("/", "/"),
            ("//", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("//a///b//", "/a/b/"),
            ("/./a/./b/.", "/a/b/"),
            ("/a/../b", "/b"),
            ("/a//../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/..", "/"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("/%2e/a", "/a"),
            ("/%61%64min", "/admin"),
            ("/a%7eb%2d%5F", "/a~b-_"),
            ("/a%3ab%20c", "/a%3Ab%20c"),
            ("/a b", "/a%20b"),
            ("/ä", "/%C3%A4"),
            ("/%c3%a4", "/%C3%A4"),
            ("/%e4", "/%E4"),
            ("/a\"<>[]^`{|}", "/a%22%3C%3E%5B%5D%5E%60%7B%7C%7D"),
            ("/a!$&'()*+,;=:@", "/a!$&'()*+,;=:@"),
            ("/%252e%252e/a", "/%252e%252e/a"),
            ("/%252f", "/%252f"),
            ("/...", "/..."),
            ("/.a/..b/", "/.a/..b/"),
            ("/a;v=1/b", "/a;v=1/b"),
        ] {
            assert_eq!(normalise(path).as_deref(), Ok(expected), "{path}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for (path, error) in [
            ("", PathError::Form),
            ("a", PathError::Form),
            ("*", PathError::Form),
            ("/a?b", PathError::Form),
            ("/a%2fb", PathError::Slash),
            ("/a%2Fb", PathError::Slash),
            ("/a%5cb", PathError::Slash),
            ("/a\\b", PathError::Slash),
            ("/a%00", PathError::Control),
            ("/a%0d%0aX:1", PathError::Control),
            ("/a%7f", PathError::Control),
            ("/a\0", PathError::Control),
            ("/a\tb", PathError::Control),
            ("/a\u{7f}", PathError::Control),
            ("/a%", PathError::Escape),
            ("/a%2", PathError::Escape),
            ("/a%zz", PathError::Escape),
            ("/a%u002f", PathError::Escape),
            ("/a%+1", PathError::Escape),
            ("/a%é1", PathError::Escape),
            ("/..", PathError::Climb),
            ("/a/../..", PathError::Climb),
            ("//..", PathError::Climb),
            ("/a/../../b", PathError::Climb),
            ("/%2e%2e/a", PathError::Climb),
            ("/a/..;/b", PathError::Dots),
            ("/a/..;x=1/b", PathError::Dots),
            ("/a/.;/b", PathError::Dots),
            ("/a/%2e%2e;/b", PathError::Dots),
            ("/a/..%3b/b", PathError::Dots),
            ("/a/%c0%af", PathError::Overlong),
            ("/a/%c0%ae%c0%ae/", PathError::Overlong),
            ("/a/%e0%80%af", PathError::Overlong),
            ("/a/%f0%80%80%af", PathError::Overlong),
            ("/a#b", PathError::Fragment),
        ] {
            assert_eq!(normalise(path), Err(error), "{path}");
            assert!(PathError::REASONS.contains(&error.reason()), "{path}");
        }
    }

    #[test]
    fn parameters_are_nothing_to_rules() {
        for (path, expected) in [
            ("/", "/"),
            ("/admin", "/admin"),
            ("/admin;x", "/admin"),
            ("/admin;x/y;z", "/admin/y"),
            ("/admin%3Bx", "/admin"),
            ("/;x/admin", "/admin"),
            ("/admin/;x", "/admin/"),
            ("/;x", "/"),
            ("/a%3Bb;c/", "/a/"),
        ] {
            assert_eq!(without_parameters(path), expected, "{path}");
        }
    }

    proptest! {
        /// What is normalised stays so, is a path to the `http` crate, and has nothing in it that is refused.
        #[test]
        fn once_is_enough(path in "/([a./%;?#\\\\2efF5cC ä]|%[0-9a-f]{2}|%2e|\\.\\.|//){0,24}") {
            let Ok(once) = normalise(&path) else { return Ok(()) };
            prop_assert_eq!(normalise(&once), Ok(once.clone()));
            let parsed: http::uri::PathAndQuery = once.parse().unwrap();
            prop_assert_eq!(parsed.as_str(), once.as_str());
            let segments: Vec<_> = once.split('/').skip(1).collect();
            let (last, folders) = segments.split_last().unwrap();
            prop_assert!(folders.iter().all(|segment| !segment.is_empty()) && !["..", "."].contains(last));
            let plain = without_parameters(&once);
            prop_assert!(!plain.contains("/../") && !plain.contains("//") && plain.starts_with('/'));
        }

        #[test]
        fn nothing_panics(path in "\\PC*") {
            let _ = normalise(&format!("/{path}")).map(|path| without_parameters(&path).into_owned());
        }
    }
}
