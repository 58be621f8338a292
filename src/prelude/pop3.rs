//! POP3 (RFC 1939), up to STLS (RFC 2595 §4).

use super::lines::{self, command, heard, line, told};
use super::{Heard, PreludeError, ReplayError, Then, Told};

/// The longest command, in bytes with its end (RFC 2449 §4).
const MAX_COMMAND: usize = 255;

/// A server that offers STLS and nothing else; its greeting has no timestamp, which would offer APOP.
#[derive(Debug)]
pub(super) struct Server {
    name: Box<str>,
}

impl Server {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.into() }
    }

    pub(super) fn opening(&self) -> Vec<u8> {
        format!("+OK {} ready\r\n", self.name).into()
    }

    pub(super) fn advance(&self, bytes: &[u8]) -> Result<Option<Heard>, PreludeError> {
        let Some((line, len)) = line(bytes, MAX_COMMAND)? else { return Ok(None) };
        // PIPELINING is not offered (RFC 2449 §6.6).
        if bytes.len() > len {
            return Err(PreludeError::Injection);
        }
        let (verb, rest) = command(line);
        match (verb.as_slice(), rest) {
            (b"CAPA", b"") => heard(len, "+OK\r\nSTLS\r\n.\r\n", Then::GoOn),
            (b"NOOP", b"") => heard(len, "+OK\r\n", Then::GoOn),
            (b"QUIT", b"") => heard(len, "+OK Bye\r\n", Then::Close),
            (b"STLS", b"") => heard(len, "+OK Begin TLS\r\n", Then::StartTls),
            (b"CAPA" | b"NOOP" | b"QUIT" | b"STLS", _) => {
                heard(len, "-ERR No arguments allowed\r\n", Then::GoOn)
            }
            (verb, _) if verb.len() <= 4 && lines::is_verb(verb) => {
                heard(len, "-ERR Must issue an STLS command first\r\n", Then::GoOn)
            }
            _ => heard(len, "-ERR Not a command\r\n", Then::GoOn),
        }
    }
}

/// A client that wants TLS.
#[derive(Debug, Default)]
pub(super) struct Client {
    asked: bool,
}

impl Client {
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Option<Told>, ReplayError> {
        let Some((line, len)) = line(bytes, lines::MAX_TOLD)? else { return Ok(None) };
        match command(line).0.as_slice() {
            b"+OK" if self.asked => lines::ready(len),
            b"+OK" => {
                self.asked = true;
                told(len, "STLS\r\n")
            }
            b"-ERR" => Err(ReplayError::Refused),
            _ => Err(ReplayError::Syntax),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fails, hears, refuses, replays};
    use super::*;
    use crate::peek::Protocol::Pop3;

    #[test]
    fn a_client_finds_stls_alone() {
        let first = "-ERR Must issue an STLS command first\r\n";
        hears(
            Pop3,
            "+OK mail.test ready\r\n",
            &[
                ("capa\r\n", "+OK\r\nSTLS\r\n.\r\n", Then::GoOn),
                ("NOOP\r\n", "+OK\r\n", Then::GoOn),
                ("USER ann\r\n", first, Then::GoOn),
                ("PASS secret\r\n", first, Then::GoOn),
                ("AUTH\r\n", first, Then::GoOn),
                ("APOP ann c4c9334bac560ecc979e58001b3e22fb\r\n", first, Then::GoOn),
                ("STLS now\r\n", "-ERR No arguments allowed\r\n", Then::GoOn),
                ("HELLO\r\n", "-ERR Not a command\r\n", Then::GoOn),
                ("STLS\r\n", "+OK Begin TLS\r\n", Then::StartTls),
            ],
        );
        hears(Pop3, "+OK mail.test ready\r\n", &[("QUIT\r\n", "+OK Bye\r\n", Then::Close)]);
    }

    #[test]
    fn whoever_does_not_wait_is_refused() {
        fails(Pop3, &[], b"CAPA\r\nSTLS\r\n", PreludeError::Injection);
        fails(Pop3, &[], b"STLS\r\nUSER eve\r\n", PreludeError::Injection);
        fails(Pop3, &[], b"STLS\n", PreludeError::Syntax);
        fails(Pop3, &[], &[b'a'; 255], PreludeError::Syntax);
    }

    #[test]
    fn a_backend_is_asked_once_it_has_greeted() {
        replays(
            Pop3,
            &[],
            "",
            &[("+OK Dovecot ready.\r\n", "STLS\r\n")],
            "+OK Begin TLS negotiation now.\r\n",
        );
        replays(Pop3, &[], "", &[("+OK\r\n", "STLS\r\n")], "+OK\r\n");
        refuses(Pop3, &[], &[], b"-ERR busy\r\n", ReplayError::Refused);
        refuses(Pop3, &[], &[], b"* OK imap\r\n", ReplayError::Syntax);
        refuses(Pop3, &[], &[b"+OK\r\n"], b"-ERR no TLS\r\n", ReplayError::Refused);
        refuses(Pop3, &[], &[b"+OK\r\n"], b"+OK\r\n+OK\r\n", ReplayError::Injection);
    }
}
