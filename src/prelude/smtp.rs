//! SMTP and submission (RFC 5321), up to STARTTLS (RFC 3207).

use super::lines::{self, Reply, command, heard, is_verb, line, told};
use super::{Heard, PreludeError, ReplayError, Then, Told};

/// The longest command, in bytes with its end (RFC 5321 §4.5.3.1.4). No extension that makes it longer is offered.
const MAX_COMMAND: usize = 512;

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
        format!("220 {} ESMTP\r\n", self.name).into()
    }

    /// A client for a backend, by the same name.
    pub(super) fn replay(&self) -> Client {
        Client { name: self.name.clone(), awaits: Awaits::Greeting }
    }

    pub(super) fn advance(&self, bytes: &[u8]) -> Result<Option<Heard>, PreludeError> {
        let Some((line, len)) = line(bytes, MAX_COMMAND)? else { return Ok(None) };
        // PIPELINING is not offered: whoever does not wait for an answer is no client of SMTP (RFC 2920 §3.1).
        if bytes.len() > len {
            return Err(PreludeError::Injection);
        }
        let (verb, rest) = command(line);
        let go_on = |reply: &str| heard(len, reply, Then::GoOn);
        match (verb.as_slice(), rest) {
            (b"EHLO" | b"HELO", b"") => go_on("501 5.5.4 A domain or address is missing\r\n"),
            (b"EHLO", _) => go_on(&format!("250-{}\r\n250 STARTTLS\r\n", self.name)),
            (b"HELO", _) => go_on(&format!("250 {}\r\n", self.name)),
            (b"NOOP", _) | (b"RSET", b"") => go_on("250 2.0.0 OK\r\n"),
            (b"QUIT", b"") => heard(len, "221 2.0.0 Bye\r\n", Then::Close),
            (b"STARTTLS", b"") => heard(len, "220 2.0.0 Ready to start TLS\r\n", Then::StartTls),
            (b"RSET" | b"QUIT" | b"STARTTLS", _) => go_on("501 5.5.4 No parameters allowed\r\n"),
            // To every other command (RFC 3207 §4).
            (verb, _) if is_verb(verb) => go_on("530 5.7.0 Must issue a STARTTLS command first\r\n"),
            _ => go_on("500 5.5.2 Not a command\r\n"),
        }
    }
}

/// A client that wants TLS.
#[derive(Debug)]
pub(super) struct Client {
    name: Box<str>,
    awaits: Awaits,
}

#[derive(Debug)]
enum Awaits {
    Greeting,
    Extensions,
    Go,
}

impl Client {
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Option<Told>, ReplayError> {
        let Some(reply) = lines::reply(bytes)? else { return Ok(None) };
        let len = reply.len;
        match (&self.awaits, reply.code) {
            (Awaits::Greeting, 220) => {
                self.awaits = Awaits::Extensions;
                told(len, format!("EHLO {}\r\n", self.name))
            }
            (Awaits::Extensions, 250) if offers_tls(&reply)? => {
                self.awaits = Awaits::Go;
                told(len, "STARTTLS\r\n")
            }
            (Awaits::Go, 220) => lines::ready(len),
            _ => Err(ReplayError::Refused),
        }
    }
}

/// Whether STARTTLS is one of the lines after the first, of which each has the number (RFC 5321 §4.1.1.1).
fn offers_tls(reply: &Reply<'_>) -> Result<bool, ReplayError> {
    let mut offers = false;
    let count = reply.lines.len();
    for (index, line) in reply.lines.iter().enumerate().skip(1) {
        let keyword =
            if index + 1 == count { line } else { line.strip_prefix(b"250-").ok_or(ReplayError::Syntax)? };
        offers |= keyword.trim_ascii().eq_ignore_ascii_case(b"STARTTLS");
    }
    Ok(offers)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fails, hears, refuses, replays};
    use super::*;
    use crate::peek::Protocol::Smtp;

    #[test]
    fn a_client_finds_starttls_alone() {
        hears(
            Smtp,
            "220 mail.test ESMTP\r\n",
            &[
                ("ehlo laptop\r\n", "250-mail.test\r\n250 STARTTLS\r\n", Then::GoOn),
                ("RSET \r\n", "250 2.0.0 OK\r\n", Then::GoOn),
                ("StartTLS\r\n", "220 2.0.0 Ready to start TLS\r\n", Then::StartTls),
            ],
        );
        hears(
            Smtp,
            "220 mail.test ESMTP\r\n",
            &[
                ("HELO laptop\r\n", "250 mail.test\r\n", Then::GoOn),
                ("QUIT\r\n", "221 2.0.0 Bye\r\n", Then::Close),
            ],
        );
    }

    #[test]
    fn nothing_else_is_done_in_clear() {
        let first = "530 5.7.0 Must issue a STARTTLS command first\r\n";
        hears(
            Smtp,
            "220 mail.test ESMTP\r\n",
            &[
                ("AUTH PLAIN AGFubgBzZWNyZXQ=\r\n", first, Then::GoOn),
                ("MAIL FROM:<a@b>\r\n", first, Then::GoOn),
                ("DATA\r\n", first, Then::GoOn),
                ("LHLO x\r\n", first, Then::GoOn),
                ("EHLO\r\n", "501 5.5.4 A domain or address is missing\r\n", Then::GoOn),
                ("STARTTLS now\r\n", "501 5.5.4 No parameters allowed\r\n", Then::GoOn),
                ("\r\n", "500 5.5.2 Not a command\r\n", Then::GoOn),
                ("\u{16}\u{3}\u{1}\r\n", "500 5.5.2 Not a command\r\n", Then::GoOn),
            ],
        );
    }

    #[test]
    fn whoever_does_not_wait_is_refused() {
        fails(Smtp, &[], b"EHLO a\r\nSTARTTLS\r\n", PreludeError::Injection);
        fails(Smtp, &[b"EHLO a\r\n"], b"STARTTLS\r\nMAIL FROM:<a@b>\r\n", PreludeError::Injection);
        fails(Smtp, &[], b"EHLO a\n", PreludeError::Syntax);
        fails(Smtp, &[], b"EHLO a\0\r\n", PreludeError::Syntax);
        fails(Smtp, &[], &[b'a'; 512], PreludeError::Syntax);
    }

    #[test]
    fn a_backend_is_asked_once_it_offers() {
        replays(
            Smtp,
            &[],
            "",
            &[
                ("220-mx.test wait\r\n220 mx.test ESMTP\r\n", "EHLO mail.test\r\n"),
                ("250-mx.test\r\n250-SIZE 1000\r\n250-starttls\r\n250 HELP\r\n", "STARTTLS\r\n"),
            ],
            "220 go ahead\r\n",
        );
        let greeting: &[u8] = b"220 mx.test\r\n";
        for (before, bad, error) in [
            (&[][..], &b"554 no\r\n"[..], ReplayError::Refused),
            (&[], b"SSH-2.0-x\r\n", ReplayError::Syntax),
            (&[greeting], b"250-mx.test\r\n250 HELP\r\n", ReplayError::Refused),
            (&[greeting], b"250 STARTTLS\r\n", ReplayError::Refused),
            (&[greeting], b"250-mx.test\r\nSTARTTLS\r\n250 HELP\r\n", ReplayError::Syntax),
            (&[greeting], b"502 no\r\n", ReplayError::Refused),
            (&[greeting, b"250-a\r\n250 STARTTLS\r\n"], b"454 4.7.0 no\r\n", ReplayError::Refused),
            (&[greeting, b"250-a\r\n250 STARTTLS\r\n"], b"220 go\r\n220 x\r\n", ReplayError::Injection),
        ] {
            refuses(Smtp, &[], before, bad, error);
        }
    }
}
