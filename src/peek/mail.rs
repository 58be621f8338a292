//! Mail: what clients of SMTP, IMAP and POP3 say first when they do not wait for the greeting, or have heard one.

use super::cursor::Cursor;
use super::detect::Step;

/// How a client of SMTP or LMTP names itself (RFC 5321 §4.1.1.1, RFC 2033 §4.1); a name follows.
const HELLOS: [&[u8]; 3] = [b"EHLO", b"HELO", b"LHLO"];
/// What a client of POP3 asks before it says who it is (RFC 2449 §5, RFC 2595 §4); USER is also a command of FTP.
const POP3_BARE: [&[u8]; 2] = [b"CAPA", b"STLS"];
/// With a name and a digest (RFC 1939 §7).
const POP3_NAMED: [&[u8]; 1] = [b"APOP"];
/// What a client of IMAP may ask in any state and before it is known (RFC 9051 §6.1, §6.2; ID: RFC 2971; ENABLE is sent
/// too early by some).
const IMAP: [&[u8]; 8] =
    [b"CAPABILITY", b"NOOP", b"LOGOUT", b"STARTTLS", b"AUTHENTICATE", b"LOGIN", b"ID", b"ENABLE"];
/// Longest tag that is looked at; clients count theirs.
const MAX_TAG: usize = 16;

/// SMTP, submission and LMTP.
pub(super) fn smtp(bytes: &[u8]) -> Step {
    word(bytes, &HELLOS, b" ")
}

/// POP3.
pub(super) fn pop3(bytes: &[u8]) -> Step {
    match (word(bytes, &POP3_BARE, b"\r\n"), word(bytes, &POP3_NAMED, b" ")) {
        (Step::Is, _) | (_, Step::Is) => Step::Is,
        (Step::No, Step::No) => Step::No,
        (Step::NeedMore, _) | (_, Step::NeedMore) => Step::NeedMore,
    }
}

/// IMAP. A tag is asked to have a digit, or to be `.` or one letter, as those of all clients: words are commands of
/// other protocols.
pub(super) fn imap(bytes: &[u8]) -> Step {
    let mut cursor = Cursor::new(bytes);
    let (mut len, mut tells) = (0, false);
    loop {
        let Some(byte) = cursor.u8() else { return Step::NeedMore };
        match byte {
            b' ' if len == 1 || tells => return word(cursor.rest(), &IMAP, b" \r\n"),
            // Alone.
            b'.' if len == 0 => match cursor.u8() {
                None => return Step::NeedMore,
                Some(b' ') => return word(cursor.rest(), &IMAP, b" \r\n"),
                Some(_) => return Step::No,
            },
            _ if len == MAX_TAG => return Step::No,
            b'0'..=b'9' => tells = true,
            b'a'..=b'z' | b'A'..=b'Z' => {}
            _ => return Step::No,
        }
        len += 1;
    }
}

/// Whether `bytes` begin with one of `words`, in any case, and then one of `ends`.
fn word(bytes: &[u8], words: &[&[u8]], ends: &[u8]) -> Step {
    let mut step = Step::No;
    for word in words {
        match bytes.split_at_checked(word.len()) {
            Some((first, rest)) if first.eq_ignore_ascii_case(word) => match rest.first() {
                Some(end) if ends.contains(end) => return Step::Is,
                Some(_) => {}
                None => step = Step::NeedMore,
            },
            Some(_) => {}
            None if word.get(..bytes.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(bytes)) => {
                step = Step::NeedMore;
            }
            None => {}
        }
    }
    step
}
