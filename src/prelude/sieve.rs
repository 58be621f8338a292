//! ManageSieve (RFC 5804), up to STARTTLS (§2.2).

use super::lines::{self, NotALine, command, heard, line, literal, told};
use super::{Heard, MAX_BYTES, PreludeError, ReplayError, Then, Told};

/// A server that offers STARTTLS and nothing else.
#[derive(Debug)]
pub(super) struct Server {
    name: Box<str>,
}

impl Server {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.into() }
    }

    /// What it is capable of, which is also the greeting (§1.7). The list of SASL mechanisms must be there, and may be empty when
    /// there is STARTTLS.
    pub(super) fn opening(&self) -> Vec<u8> {
        let name = &self.name;
        format!(
            "\"IMPLEMENTATION\" \"{name}\"\r\n\"SASL\" \"\"\r\n\"SIEVE\" \"\"\r\n\"STARTTLS\"\r\n\"VERSION\" \"1.0\"\r\nOK\r\n"
        )
        .into()
    }

    pub(super) fn advance(&self, bytes: &[u8]) -> Result<Option<Heard>, PreludeError> {
        let Some((line, len)) = line(bytes, MAX_BYTES)? else { return Ok(None) };
        // What follows would be read as commands.
        if literal(line).is_some() {
            return Err(PreludeError::Syntax);
        }
        let (verb, rest) = command(line);
        let go_on = |reply: &[u8]| heard(len, reply, Then::GoOn);
        match (verb.as_slice(), rest) {
            (b"CAPABILITY", b"") => go_on(&self.opening()),
            (b"NOOP", b"") => go_on(b"OK\r\n"),
            // The string is said again (§2.13).
            (b"NOOP", tag) if is_quoted(tag) => go_on(&[b"OK (TAG ", tag, b") \"Done\"\r\n"].concat()),
            (b"LOGOUT", b"") => heard(len, "OK \"Bye\"\r\n", Then::Close),
            (b"STARTTLS", b"") => heard(len, "OK \"Begin TLS negotiation now\"\r\n", Then::StartTls),
            (b"CAPABILITY" | b"NOOP" | b"LOGOUT" | b"STARTTLS", _) => go_on(b"NO \"Wrong arguments\"\r\n"),
            (verb, _) if lines::is_verb(verb) => {
                go_on(b"NO (ENCRYPT-NEEDED) \"Must issue a STARTTLS command first\"\r\n")
            }
            _ => go_on(b"NO \"Not a command\"\r\n"),
        }
    }
}

/// Whether this is one quoted string (§4, `quoted`).
fn is_quoted(bytes: &[u8]) -> bool {
    let Some(inner) = bytes.strip_prefix(b"\"").and_then(|inner| inner.strip_suffix(b"\"")) else {
        return false;
    };
    let mut escaped = false;
    for byte in inner {
        match (escaped, byte) {
            (true, b'"' | b'\\') => escaped = false,
            (true, _) | (false, b'"') => return false,
            (false, byte) => escaped = *byte == b'\\',
        }
    }
    !escaped
}

/// A client that wants TLS.
#[derive(Debug, Default)]
pub(super) struct Client {
    asked: bool,
}

impl Client {
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Option<Told>, ReplayError> {
        let Some(response) = response(bytes)? else { return Ok(None) };
        match (response.ok, self.asked) {
            (true, true) => lines::ready(response.len),
            (true, false) if response.offers_tls => {
                self.asked = true;
                told(response.len, "STARTTLS\r\n")
            }
            (true | false, _) => Err(ReplayError::Refused),
        }
    }
}

/// The lines up to OK, NO or BYE.
#[derive(Debug)]
struct Response {
    offers_tls: bool,
    ok: bool,
    len: usize,
}

fn response(bytes: &[u8]) -> Result<Option<Response>, NotALine> {
    let (mut offers_tls, mut len) = (false, 0);
    // Bounded by the bytes there are, which the caller bounds.
    while let Some((line, taken)) = whole_line(bytes.get(len..).unwrap_or_default())? {
        len += taken;
        match command(line).0.as_slice() {
            b"\"STARTTLS\"" => offers_tls = true,
            [b'"', ..] => {}
            b"OK" => return Ok(Some(Response { offers_tls, ok: true, len })),
            b"NO" | b"BYE" => return Ok(Some(Response { offers_tls, ok: false, len })),
            _ => return Err(NotALine),
        }
    }
    Ok(None)
}

/// A line up to its first literal, and how many bytes it takes with all of them.
fn whole_line(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, NotALine> {
    let Some((first, mut len)) = line(bytes, lines::MAX_TOLD)? else { return Ok(None) };
    let mut last = first;
    while literal(last).is_some() {
        let digits = last.rsplit(|byte| *byte == b'{').next().unwrap_or_default();
        let digits: String =
            digits.iter().filter(|byte| byte.is_ascii_digit()).map(|byte| char::from(*byte)).collect();
        len += digits.parse::<usize>().ok().filter(|size| *size <= MAX_BYTES).ok_or(NotALine)?;
        let Some(rest) = bytes.get(len..) else { return Ok(None) };
        let Some((next, taken)) = line(rest, lines::MAX_TOLD)? else { return Ok(None) };
        (last, len) = (next, len + taken);
    }
    Ok(Some((first, len)))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fails, hears, refuses, replays};
    use super::*;
    use crate::peek::Protocol::Sieve;

    const CAPABILITIES: &str = "\"IMPLEMENTATION\" \"mail.test\"\r\n\"SASL\" \"\"\r\n\"SIEVE\" \"\"\r\n\
        \"STARTTLS\"\r\n\"VERSION\" \"1.0\"\r\nOK\r\n";

    #[test]
    fn a_client_finds_starttls_alone() {
        let first = "NO (ENCRYPT-NEEDED) \"Must issue a STARTTLS command first\"\r\n";
        hears(
            Sieve,
            CAPABILITIES,
            &[
                ("capability\r\n", CAPABILITIES, Then::GoOn),
                ("NOOP\r\n", "OK\r\n", Then::GoOn),
                ("NOOP \"a\\\"b\"\r\n", "OK (TAG \"a\\\"b\") \"Done\"\r\n", Then::GoOn),
                ("NOOP \"a\" b\"\r\n", "NO \"Wrong arguments\"\r\n", Then::GoOn),
                ("AUTHENTICATE \"PLAIN\" \"AGFubgBzZWNyZXQ=\"\r\n", first, Then::GoOn),
                ("LISTSCRIPTS\r\n", first, Then::GoOn),
                ("\"x\"\r\n", "NO \"Not a command\"\r\n", Then::GoOn),
                ("STARTTLS\r\n", "OK \"Begin TLS negotiation now\"\r\n", Then::StartTls),
            ],
        );
        hears(Sieve, CAPABILITIES, &[("LOGOUT\r\n", "OK \"Bye\"\r\n", Then::Close)]);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        fails(Sieve, &[], b"STARTTLS\r\nLISTSCRIPTS\r\n", PreludeError::Injection);
        fails(Sieve, &[], b"AUTHENTICATE \"PLAIN\" {8+}\r\n", PreludeError::Syntax);
        fails(Sieve, &[], b"NOOP {10}\r\n", PreludeError::Syntax);
        fails(Sieve, &[], b"STARTTLS\n", PreludeError::Syntax);
    }

    #[test]
    fn a_backend_is_asked_once_it_offers() {
        let offer = "\"IMPLEMENTATION\" {9}\r\nOK\r\nNO\r\n\"\r\n\"SIEVE\" \"x {3}\"\r\n\"starttls\"\r\nOK \"hi\"\r\n";
        replays(Sieve, &[], "", &[(offer, "STARTTLS\r\n")], "OK {2}\r\nhi\r\n");
        let asked: &[&[u8]] = &[b"\"STARTTLS\"\r\nOK\r\n"];
        for (before, bad, error) in [
            (&[][..], &b"\"SIEVE\" \"\"\r\nOK\r\n"[..], ReplayError::Refused),
            (&[], b"BYE \"busy\"\r\n", ReplayError::Refused),
            (&[], b"* OK imap\r\n", ReplayError::Syntax),
            (&[], b"\"X\" {99999}\r\n", ReplayError::Syntax),
            (asked, b"NO \"no\"\r\n", ReplayError::Refused),
            (asked, b"OK\r\n\"SIEVE\" \"\"\r\nOK\r\n", ReplayError::Injection),
        ] {
            refuses(Sieve, &[], before, bad, error);
        }
    }
}
