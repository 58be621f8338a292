//! FTP (RFC 959), up to AUTH TLS (RFC 4217).

use super::lines::{self, command, heard, is_verb, line, told};
use super::{Heard, PreludeError, ReplayError, Then, Told};

/// The longest command, in bytes with its end. The RFC has no bound; a path is what is longest, and none is said before TLS.
const MAX_COMMAND: usize = 512;
/// What a server that knows FEAT and TLS must list (RFC 4217 with RFC 2389).
const FEATURES: &str = "211-Features:\r\n AUTH TLS\r\n PBSZ\r\n PROT\r\n211 End\r\n";

/// A server that offers TLS and nothing else.
#[derive(Debug)]
pub(super) struct Server {
    name: Box<str>,
}

impl Server {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.into() }
    }

    pub(super) fn opening(&self) -> Vec<u8> {
        format!("220 {} ready\r\n", self.name).into()
    }

    /// Commands that come before an answer are queued (RFC 959 §5.4), but nothing may follow AUTH TLS.
    pub(super) fn advance(&self, bytes: &[u8]) -> Result<Option<Heard>, PreludeError> {
        let Some((line, len)) = line(bytes, MAX_COMMAND)? else { return Ok(None) };
        let (verb, rest) = command(line);
        let go_on = |reply: &str| heard(len, reply, Then::GoOn);
        match (verb.as_slice(), rest.to_ascii_uppercase().as_slice()) {
            // `TLS-C` is another word for the same; `SSL` and `TLS-P` protect data connections without being asked to, so that a
            // backend that was asked for `TLS` would be of another mind than its client (RFC 4217).
            (b"AUTH", b"TLS" | b"TLS-C") => heard(len, "234 Begin TLS\r\n", Then::StartTls),
            (b"AUTH", _) => go_on("504 Only AUTH TLS\r\n"),
            (b"FEAT", b"") => go_on(FEATURES),
            (b"NOOP", b"") => go_on("200 OK\r\n"),
            (b"QUIT", b"") => heard(len, "221 Bye\r\n", Then::Close),
            (b"FEAT" | b"NOOP" | b"QUIT", _) => go_on("501 No parameters allowed\r\n"),
            // 530 is what all commands may be answered before a login (RFC 959 §5.4); 534 is for levels of protection.
            (verb, _) if is_verb(verb) => go_on("530 Must issue AUTH TLS first\r\n"),
            _ => go_on("500 Not a command\r\n"),
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
        let Some(reply) = lines::reply(bytes)? else { return Ok(None) };
        match reply.code {
            // It will be ready in some minutes, and says so then (RFC 959 §5.4).
            120 if !self.asked => told(reply.len, ""),
            220 if !self.asked => {
                self.asked = true;
                told(reply.len, "AUTH TLS\r\n")
            }
            234 if self.asked => lines::ready(reply.len),
            _ => Err(ReplayError::Refused),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fails, hears, refuses, replays};
    use super::*;
    use crate::peek::Protocol::Ftp;

    #[test]
    fn a_client_finds_tls_alone() {
        let first = "530 Must issue AUTH TLS first\r\n";
        hears(
            Ftp,
            "220 mail.test ready\r\n",
            &[
                ("feat\r\n", FEATURES, Then::GoOn),
                ("AUTH SSL\r\n", "504 Only AUTH TLS\r\n", Then::GoOn),
                ("AUTH\r\n", "504 Only AUTH TLS\r\n", Then::GoOn),
                ("USER ann\r\n", first, Then::GoOn),
                ("PASS secret\r\n", first, Then::GoOn),
                ("PBSZ 0\r\n", first, Then::GoOn),
                ("NOOP\r\n", "200 OK\r\n", Then::GoOn),
                ("QUIT now\r\n", "501 No parameters allowed\r\n", Then::GoOn),
                ("\u{fffd}ABOR\r\n", "500 Not a command\r\n", Then::GoOn),
                ("auth tls\r\n", "234 Begin TLS\r\n", Then::StartTls),
            ],
        );
        hears(Ftp, "220 mail.test ready\r\n", &[("QUIT\r\n", "221 Bye\r\n", Then::Close)]);
    }

    #[test]
    fn nothing_follows_before_tls() {
        fails(Ftp, &[], b"AUTH TLS\r\nUSER eve\r\n", PreludeError::Injection);
        fails(Ftp, &[], b"AUTH TLS\n", PreludeError::Syntax);
        fails(Ftp, &[], &[b'a'; 512], PreludeError::Syntax);
    }

    #[test]
    fn a_backend_is_asked_once_it_is_ready() {
        let greeting = "220-Welcome\r\n to this\r\n220 server\r\n";
        replays(Ftp, &[], "", &[("120 wait\r\n", ""), (greeting, "AUTH TLS\r\n")], "234 Go\r\n");
        refuses(Ftp, &[], &[], b"421 busy\r\n", ReplayError::Refused);
        refuses(Ftp, &[], &[], b"hello\r\n", ReplayError::Syntax);
        for bad in [&b"334 ADAT\r\n"[..], b"530 no\r\n", b"220 what\r\n", b"120 wait\r\n"] {
            refuses(Ftp, &[], &[b"220 a\r\n"], bad, ReplayError::Refused);
        }
        refuses(Ftp, &[], &[b"220 a\r\n"], b"234 a\r\n234 b\r\n", ReplayError::Injection);
    }
}
