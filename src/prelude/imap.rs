//! IMAP (RFC 9051), up to STARTTLS (§6.2.1).

use super::lines::{self, Literal, command, heard, line, literal, told};
use super::{Heard, MAX_BYTES, PreludeError, ReplayError, Then, Told};

/// All that may be done before TLS; LOGINDISABLED tells clients to keep their passwords to themselves (§7.2.2).
const CAPABILITIES: &str = "CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED";
/// The tag of what backends are asked.
const ASK: &str = "p1 STARTTLS\r\n";

/// A server that offers STARTTLS and nothing else.
#[derive(Debug)]
pub(super) struct Server {
    name: Box<str>,
}

impl Server {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.into() }
    }

    pub(super) fn opening(&self) -> Vec<u8> {
        format!("* OK [{CAPABILITIES}] {} ready\r\n", self.name).into()
    }

    /// Commands may follow each other without a wait (§5.5), but not STARTTLS.
    pub(super) fn advance(&self, bytes: &[u8]) -> Result<Option<Heard>, PreludeError> {
        let Some((line, len)) = line(bytes, MAX_BYTES)? else { return Ok(None) };
        let (tag, rest) = tagged(line).ok_or(PreludeError::Syntax)?;
        match literal(line) {
            None => {}
            // What follows would be read as commands.
            Some(Literal::Follows) => return Err(PreludeError::Syntax),
            Some(Literal::Waits) if bytes.len() > len => return Err(PreludeError::Injection),
            Some(Literal::Waits) => {
                return heard(len, format!("{tag} BAD No literals before TLS\r\n"), Then::GoOn);
            }
        }
        let (verb, rest) = command(rest);
        let go_on = |answer: String| heard(len, answer, Then::GoOn);
        match (verb.as_slice(), rest) {
            (b"CAPABILITY", b"") => go_on(format!("* {CAPABILITIES}\r\n{tag} OK Done\r\n")),
            (b"NOOP", b"") => go_on(format!("{tag} OK Done\r\n")),
            // Nothing of either is told (RFC 2971 §3.2).
            (b"ID", [_, ..]) => go_on(format!("* ID NIL\r\n{tag} OK Done\r\n")),
            (b"LOGOUT", b"") => heard(len, format!("* BYE Bye\r\n{tag} OK Done\r\n"), Then::Close),
            (b"STARTTLS", b"") => {
                heard(len, format!("{tag} OK Begin TLS negotiation now\r\n"), Then::StartTls)
            }
            (b"CAPABILITY" | b"NOOP" | b"ID" | b"LOGOUT" | b"STARTTLS", _) => {
                go_on(format!("{tag} BAD Wrong arguments\r\n"))
            }
            (verb, _) if lines::is_verb(verb) => {
                go_on(format!("{tag} NO [PRIVACYREQUIRED] Must issue a STARTTLS command first\r\n"))
            }
            _ => go_on(format!("{tag} BAD Not a command\r\n")),
        }
    }
}

/// The tag of a command and what is behind it (§9, `tag`).
fn tagged(line: &[u8]) -> Option<(&str, &[u8])> {
    let space = line.iter().position(|byte| *byte == b' ')?;
    let (tag, rest) = line.split_at(space);
    let tag = std::str::from_utf8(tag).ok()?;
    let is_tag = !tag.is_empty() && tag.chars().all(|c| c.is_ascii_graphic() && !r#"(){%*"\+"#.contains(c));
    is_tag.then_some((tag, rest.strip_prefix(b" ")?))
}

/// A client that wants TLS.
#[derive(Debug, Default)]
pub(super) struct Client {
    asked: bool,
}

impl Client {
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Option<Told>, ReplayError> {
        if self.asked {
            return answer(bytes);
        }
        let Some((line, len)) = line(bytes, lines::MAX_TOLD)? else { return Ok(None) };
        let (status, text) = command(line.strip_prefix(b"* ").ok_or(ReplayError::Syntax)?);
        match status.as_slice() {
            b"OK" if lacks_tls(text) => Err(ReplayError::Refused),
            b"OK" => {
                self.asked = true;
                told(len, ASK)
            }
            // There is no TLS within a session that was authenticated before (§7.1.4).
            b"PREAUTH" | b"BYE" => Err(ReplayError::Refused),
            _ => Err(ReplayError::Syntax),
        }
    }
}

/// Whether a greeting tells what the server is capable of, and TLS is no part of it.
fn lacks_tls(text: &[u8]) -> bool {
    let text = text.to_ascii_uppercase();
    let list = text.strip_prefix(b"[CAPABILITY ").and_then(|list| list.split(|byte| *byte == b']').next());
    list.is_some_and(|list| list.split(|byte| *byte == b' ').all(|word| word != b"STARTTLS"))
}

/// The answer to STARTTLS, behind whatever else a server has to say meanwhile.
fn answer(bytes: &[u8]) -> Result<Option<Told>, ReplayError> {
    let mut len = 0;
    // Bounded by the bytes there are, which the caller bounds.
    while let Some((line, taken)) = line(bytes.get(len..).unwrap_or_default(), lines::MAX_TOLD)? {
        len += taken;
        let (tag, rest) = command(line);
        let (status, _) = command(rest);
        match (tag.as_slice(), status.as_slice()) {
            (_, b"BYE") | (b"P1", b"NO" | b"BAD") => return Err(ReplayError::Refused),
            (b"P1", b"OK") => return lines::ready(len),
            (b"*", _) if literal(line).is_none() => {}
            _ => return Err(ReplayError::Syntax),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fails, hears, refuses, replays};
    use super::*;
    use crate::peek::Protocol::Imap;

    const GREETING: &str = "* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] mail.test ready\r\n";

    #[test]
    fn a_client_finds_starttls_alone() {
        let listed = "* CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED\r\n. OK Done\r\n";
        hears(
            Imap,
            GREETING,
            &[
                (". capability\r\n", listed, Then::GoOn),
                ("a1 ID (\"name\" \"x\")\r\n", "* ID NIL\r\na1 OK Done\r\n", Then::GoOn),
                ("a2 NOOP\r\n", "a2 OK Done\r\n", Then::GoOn),
                ("a3 StartTLS\r\n", "a3 OK Begin TLS negotiation now\r\n", Then::StartTls),
            ],
        );
        hears(Imap, GREETING, &[("a LOGOUT\r\n", "* BYE Bye\r\na OK Done\r\n", Then::Close)]);
    }

    #[test]
    fn nothing_else_is_done_in_clear() {
        let first = "a NO [PRIVACYREQUIRED] Must issue a STARTTLS command first\r\n";
        hears(
            Imap,
            GREETING,
            &[
                ("a LOGIN ann secret\r\n", first, Then::GoOn),
                ("a AUTHENTICATE PLAIN\r\n", first, Then::GoOn),
                ("a SELECT INBOX\r\n", first, Then::GoOn),
                ("a LOGIN {3}\r\n", "a BAD No literals before TLS\r\n", Then::GoOn),
                ("a STARTTLS now\r\n", "a BAD Wrong arguments\r\n", Then::GoOn),
                ("a ID\r\n", "a BAD Wrong arguments\r\n", Then::GoOn),
                ("GET / HTTP/1.1\r\n", "GET BAD Not a command\r\n", Then::GoOn),
                ("a \r\n", "a BAD Not a command\r\n", Then::GoOn),
            ],
        );
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        fails(Imap, &[], b"a STARTTLS\r\nb LOGIN x y\r\n", PreludeError::Injection);
        fails(Imap, &[], b"a LOGIN {3}\r\nann {6}\r\n", PreludeError::Injection);
        for bad in [
            &b"a LOGIN {3+}\r\n"[..],
            b"STARTTLS\r\n",
            b"\r\n",
            b" STARTTLS\r\n",
            b"* STARTTLS\r\n",
            b"+ STARTTLS\r\n",
            b"a\x7f STARTTLS\r\n",
            b"\xc3\xa4 STARTTLS\r\n",
            b"a STARTTLS\n",
        ] {
            fails(Imap, &[], bad, PreludeError::Syntax);
        }
    }

    #[test]
    fn a_backend_is_asked_where_it_does_not_say_no() {
        replays(Imap, &[], "", &[("* OK ready\r\n", "p1 STARTTLS\r\n")], "p1 OK Begin\r\n");
        let greeting = "* ok [capability IMAP4rev1 starttls] ready\r\n";
        replays(
            Imap,
            &[],
            "",
            &[(greeting, "p1 STARTTLS\r\n")],
            "* CAPABILITY IMAP4rev1\r\n* OK\r\np1 OK\r\n",
        );
        let asked: &[&[u8]] = &[b"* OK ready\r\n"];
        for (before, bad, error) in [
            (&[][..], &b"* PREAUTH hello\r\n"[..], ReplayError::Refused),
            (&[], b"* BYE busy\r\n", ReplayError::Refused),
            (&[], b"* OK [CAPABILITY IMAP4rev1] ready\r\n", ReplayError::Refused),
            (&[], b"+OK pop\r\n", ReplayError::Syntax),
            (asked, b"p1 BAD what\r\n", ReplayError::Refused),
            (asked, b"* BYE busy\r\n", ReplayError::Refused),
            (asked, b"* X {3}\r\n", ReplayError::Syntax),
            (asked, b"p2 OK\r\n", ReplayError::Syntax),
            (asked, b"p1 OK\r\n* CAPABILITY X\r\n", ReplayError::Injection),
        ] {
            refuses(Imap, &[], before, bad, error);
        }
    }
}
