//! Lines of the protocols that are made of them, and the replies with numbers of two of these.
//!
//! A line ends in CRLF and nothing else. To take a lone LF or CR for its end, as some servers do, would let one peer read
//! two lines where another reads one; all clients in use send CRLF. NUL bytes stand in no line.

use super::{Heard, PreludeError, ReplayError, Then, Told};

/// The longest line of a backend, in bytes with its end. SMTP has 512 for a reply and no other protocol a bound; servers of
/// IMAP list what they are capable of in one line.
pub(super) const MAX_TOLD: usize = 4096;

/// Bytes that are no line, or none of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotALine;

impl From<NotALine> for PreludeError {
    fn from(NotALine: NotALine) -> Self {
        Self::Syntax
    }
}

impl From<NotALine> for ReplayError {
    fn from(NotALine: NotALine) -> Self {
        Self::Syntax
    }
}

/// The first line of `bytes` without its end, and how many bytes it takes with that, at most `max`.
pub(super) fn line(bytes: &[u8], max: usize) -> Result<Option<(&[u8], usize)>, NotALine> {
    let within = bytes.get(..max).unwrap_or(bytes);
    let Some(end) = within.iter().position(|byte| matches!(byte, b'\r' | b'\n' | 0)) else {
        return if within.len() < max { Ok(None) } else { Err(NotALine) };
    };
    let (line, end) = within.split_at(end);
    match end {
        [b'\r', b'\n', ..] => Ok(Some((line, line.len() + 2))),
        [b'\r'] if within.len() < max => Ok(None),
        _ => Err(NotALine),
    }
}

/// The first word of a line in capitals, and the others: commands are the same in any case.
pub(super) fn command(line: &[u8]) -> (Vec<u8>, &[u8]) {
    let line = line.trim_ascii_end();
    let mut words = line.splitn(2, |byte| *byte == b' ');
    let verb = words.next().unwrap_or_default().to_ascii_uppercase();
    (verb, words.next().unwrap_or_default().trim_ascii_start())
}

/// Whether this is the word of a command, known or not.
pub(super) fn is_verb(word: &[u8]) -> bool {
    !word.is_empty() && word.iter().all(u8::is_ascii_alphabetic)
}

/// Whether a line ends in the length of a literal, which is what follows it (RFC 9051 §4.3, RFC 5804 §1.2).
pub(super) fn literal(line: &[u8]) -> Option<Literal> {
    let inner = line.strip_suffix(b"}")?.rsplit(|byte| *byte == b'{').next()?;
    let (digits, waits) = inner.strip_suffix(b"+").map_or((inner, true), |digits| (digits, false));
    let is_literal =
        inner.len() + 1 < line.len() && !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    is_literal.then_some(if waits { Literal::Waits } else { Literal::Follows })
}

/// How a literal comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Literal {
    /// After it was asked for.
    Waits,
    /// At once.
    Follows,
}

/// What was heard, of `len` bytes, and is answered by `reply`.
pub(super) fn heard(
    len: usize,
    reply: impl Into<Vec<u8>>,
    then: Then,
) -> Result<Option<Heard>, PreludeError> {
    Ok(Some(Heard { len, reply: reply.into(), then }))
}

/// What was told, of `len` bytes, and is answered by `reply`.
pub(super) fn told(len: usize, reply: impl Into<Vec<u8>>) -> Result<Option<Told>, ReplayError> {
    Ok(Some(Told { len, reply: reply.into(), ready: false }))
}

/// The backend begins TLS behind these `len` bytes.
pub(super) fn ready(len: usize) -> Result<Option<Told>, ReplayError> {
    Ok(Some(Told { len, reply: Vec::new(), ready: true }))
}

/// A reply with a number, of one line or several (RFC 5321 §4.2, RFC 959 §4.2).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply<'a> {
    /// Its number.
    pub(super) code: u16,
    /// Its lines, the first and last without the number.
    pub(super) lines: Vec<&'a [u8]>,
    /// How many bytes it takes.
    pub(super) len: usize,
}

/// The first reply of `bytes`. The lines between the first and the last are as they are: those of FTP need no number.
pub(super) fn reply(bytes: &[u8]) -> Result<Option<Reply<'_>>, NotALine> {
    let Some((first, mut len)) = line(bytes, MAX_TOLD)? else { return Ok(None) };
    let digits =
        first.first_chunk::<3>().filter(|digits| digits.iter().all(u8::is_ascii_digit)).ok_or(NotALine)?;
    let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    let end_of = |line: &'_ [u8]| match line.strip_prefix(digits) {
        Some([]) => true,
        Some([between, ..]) => *between == b' ',
        None => false,
    };
    let mut lines = vec![first.get(4..).unwrap_or_default()];
    match first.get(3) {
        None | Some(b' ') => return Ok(Some(Reply { code, lines, len })),
        Some(b'-') => {}
        Some(_) => return Err(NotALine),
    }
    // Bounded by the bytes there are, which the caller bounds.
    while let Some((next, taken)) = line(bytes.get(len..).unwrap_or_default(), MAX_TOLD)? {
        len += taken;
        if end_of(next) {
            lines.push(next.get(4..).unwrap_or_default());
            return Ok(Some(Reply { code, lines, len }));
        }
        lines.push(next);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_in_both_bytes_and_within_its_length() {
        assert_eq!(line(b"a b\r\nc", 8), Ok(Some((&b"a b"[..], 5))));
        assert_eq!(line(b"\r\n", 8), Ok(Some((&b""[..], 2))));
        assert_eq!(line(b"abcdef\r\n", 8), Ok(Some((&b"abcdef"[..], 8))));
        for more in [&b""[..], b"abc", b"abc\r"] {
            assert_eq!(line(more, 8), Ok(None));
        }
        for bad in [&b"a\nb"[..], b"a\rb\r\n", b"a\r\r\n", b"a\0", b"abcdefg\r\n", b"abcdefgh", b"abcdefg\r"]
        {
            assert_eq!(line(bad, 8), Err(NotALine), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn literals_are_told_by_the_end_of_a_line() {
        assert_eq!(literal(b"a LOGIN {3}"), Some(Literal::Waits));
        assert_eq!(literal(b"a LOGIN ~{3}"), Some(Literal::Waits));
        assert_eq!(literal(b"a LOGIN {30+}"), Some(Literal::Follows));
        for none in [&b"a LOGIN {}"[..], b"a {x}", b"a {3} ", b"3}", b"a 3}", b"a {+}", b""] {
            assert_eq!(literal(none), None, "{}", none.escape_ascii());
        }
    }

    #[test]
    fn replies_have_several_lines() {
        let one = reply(b"220 a\r\nx").unwrap().unwrap();
        assert_eq!((one.code, one.lines, one.len), (220, vec![&b"a"[..]], 7));
        let bare = reply(b"250\r\n").unwrap().unwrap();
        assert_eq!((bare.code, bare.len), (250, 5));
        let whole = b"211-a\r\n211-b\r\n c\r\n2111 \r\n211 d\r\n";
        for len in 0..whole.len() {
            assert_eq!(reply(&whole[..len]), Ok(None), "{len}");
        }
        let many = reply(whole).unwrap().unwrap();
        assert_eq!(many.lines, [&b"a"[..], b"211-b", b" c", b"2111 ", b"d"]);
        assert_eq!(many.len, whole.len());
        for bad in [&b"22\r\n"[..], b"220a\r\n", b"abc d\r\n", b"\r\n"] {
            assert_eq!(reply(bad), Err(NotALine), "{}", bad.escape_ascii());
        }
    }
}
