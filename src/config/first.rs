//! How first bytes are written: patterns over them, and bytes themselves.

use std::error::Error;

use serde_json::{Value, json};

use super::decode::{Problem, Text, quote};
use super::error::ErrorKind;
use crate::peek::{Pattern, PatternError};

/// The first bytes of a client; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FirstBytes(pub(super) Box<[u8]>);

impl Text for Pattern {
    const EXPECTED: &'static str = "a regular expression";

    fn parse(text: &str) -> Result<Self, Problem> {
        if !text.is_ascii() {
            // In double quotes TOML has made a character of `\xca` already, which is two bytes.
            let problem = format!("{} has characters that are not ASCII, and bytes are matched", quote(text));
            let hint = "write bytes as `\\xNN`, in single quotes, which leave backslashes alone";
            return Err(Problem::new(ErrorKind::BadRegex, problem).hint(hint));
        }
        let error = match Self::new(text) {
            Ok(pattern) => return Ok(pattern),
            Err(error) => error,
        };
        let (kind, hint) = match &error {
            PatternError::Syntax(source) => {
                let problem = format!("{} does not compile: {}", quote(text), reason(&**source));
                return Err(Problem::new(ErrorKind::BadRegex, problem));
            }
            PatternError::Size => (
                ErrorKind::OutOfRange,
                "repeat fewer things: `[ab]*a[ab]{20}` needs a state for each way to be within it",
            ),
            PatternError::Look => {
                (ErrorKind::BadRegex, "it is anchored at the first byte, and whatever may follow")
            }
            PatternError::Everything => {
                (ErrorKind::BadRegex, "write `protocol = \"unknown\"` for all that is no known protocol")
            }
            PatternError::Nothing => (ErrorKind::BadRegex, "ask for fewer bytes"),
        };
        Err(Problem::new(kind, format!("{} cannot be looked for: {error}", quote(text))).hint(hint))
    }
}

/// What is wrong with an expression: the last cause, drawn over several lines, of which the last one says it.
fn reason(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let text = cause.to_string();
    text.lines().last().unwrap_or("").trim_start_matches("error: ").to_owned()
}

impl Text for FirstBytes {
    const EXPECTED: &'static str = "the first bytes of a client";

    fn constraints() -> Value {
        json!({ "minLength": 1 })
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        match unescaped(text) {
            Some(bytes) if !bytes.is_empty() => Ok(Self(bytes.into())),
            Some(_) => Err(Problem::new(ErrorKind::OutOfRange, "there are no first bytes")
                .hint("write `protocol = \"silent\"` for a client that sends none")),
            None => Err(Problem::new(ErrorKind::BadValue, format!("{} has a `\\` that means nothing", quote(text)))
                .hint("bytes are written as `\\xNN`, `\\r`, `\\n`, `\\t`, `\\0` and `\\\\`, best in single quotes, which leave backslashes alone")),
        }
    }
}

/// The bytes that `text` stands for.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let (escape, after) = rest.split_first()?;
        rest = after;
        bytes.push(match escape {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'0' => 0,
            b'\\' => b'\\',
            b'x' => {
                let (digits, after) = rest.split_first_chunk::<2>()?;
                rest = after;
                let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
                u8::try_from(high? * 16 + low?).ok()?
            }
            _ => return None,
        });
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_stand_for_bytes() {
        for (text, bytes) in [
            ("SSH-2.0-x", b"SSH-2.0-x".as_slice()),
            (r"\x00\xfF\r\n\t\0\\x", b"\0\xff\r\n\t\0\\x"),
            ("\u{e9}\n", b"\xc3\xa9\n"),
        ] {
            assert_eq!(FirstBytes::parse(text).ok().map(|first| first.0), Some(bytes.into()), "{text}");
        }
        for text in ["", r"\", r"\x", r"\x0", r"\xg0", r"\x+1", r"\d"] {
            assert!(FirstBytes::parse(text).is_err(), "{text}");
        }
    }
}
