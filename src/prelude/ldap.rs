//! LDAP (RFC 4511), up to the extended operation StartTLS (§4.14).

use super::lines::{heard, ready};
use super::{Heard, MAX_BYTES, PreludeError, ReplayError, Then, Told};

const START_TLS: &[u8] = b"1.3.6.1.4.1.1466.20037";
const NOTICE_OF_DISCONNECTION: &[u8] = b"1.3.6.1.4.1.1466.20036";

/// Result codes (§4.1.9).
mod code {
    pub(super) const SUCCESS: u8 = 0;
    pub(super) const PROTOCOL_ERROR: u8 = 2;
    pub(super) const UNAVAILABLE_CRITICAL_EXTENSION: u8 = 12;
    pub(in crate::prelude) const CONFIDENTIALITY_REQUIRED: u8 = 13;
    pub(in crate::prelude) const UNAVAILABLE: u8 = 52;
    pub(in crate::prelude) const UNWILLING_TO_PERFORM: u8 = 53;
}
pub(super) use code::{CONFIDENTIALITY_REQUIRED, UNAVAILABLE, UNWILLING_TO_PERFORM};

/// Tags of BER (X.690), and of operations (§4.2 to §4.12).
mod tag {
    pub(super) const BOOLEAN: u8 = 0x01;
    pub(super) const INTEGER: u8 = 0x02;
    pub(super) const OCTETS: u8 = 0x04;
    pub(super) const ENUMERATED: u8 = 0x0a;
    pub(super) const SEQUENCE: u8 = 0x30;
    pub(super) const UNBIND: u8 = 0x42;
    pub(super) const ABANDON: u8 = 0x50;
    pub(super) const EXTENDED_REQUEST: u8 = 0x77;
    pub(super) const EXTENDED_RESPONSE: u8 = 0x78;
    pub(super) const CONTROLS: u8 = 0xa0;
    /// The OID of an extended request, and of its response.
    pub(super) const REQUEST_NAME: u8 = 0x80;
    pub(super) const RESPONSE_NAME: u8 = 0x8a;

    /// The tag of the response to an operation that has one.
    pub(super) const fn response(operation: u8) -> Option<u8> {
        match operation {
            0x60 => Some(0x61),                          // bind
            0x63 => Some(0x65),                          // search, its end
            0x66 => Some(0x67),                          // modify
            0x68 => Some(0x69),                          // add
            0x4a => Some(0x6b),                          // delete
            0x6c => Some(0x6d),                          // modify DN
            0x6e => Some(0x6f),                          // compare
            EXTENDED_REQUEST => Some(EXTENDED_RESPONSE), // extended
            _ => None,
        }
    }
}

/// Bytes that are no LDAPMessage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotLdap;

impl From<NotLdap> for PreludeError {
    fn from(NotLdap: NotLdap) -> Self {
        Self::Syntax
    }
}

impl From<NotLdap> for ReplayError {
    fn from(NotLdap: NotLdap) -> Self {
        Self::Syntax
    }
}

/// What a server says to a request; other than StartTLS, nothing is done before TLS.
pub(super) fn hear(bytes: &[u8]) -> Result<Option<Heard>, PreludeError> {
    let Some(message) = message(bytes)? else { return Ok(None) };
    // That is for what a server says unasked (§4.1.1.1).
    if message.id == [0] {
        return Err(PreludeError::Syntax);
    }
    match message.operation.tag {
        tag::UNBIND => heard(message.len, [], Then::Close),
        // There is nothing to abandon, and no response to that (§4.11).
        tag::ABANDON => heard(message.len, [], Then::GoOn),
        tag::EXTENDED_REQUEST => {
            let (code, text) = extended(&message);
            let then = if code == code::SUCCESS { Then::StartTls } else { Then::GoOn };
            heard(message.len, response(message.id, tag::EXTENDED_RESPONSE, code, text, START_TLS), then)
        }
        operation => match tag::response(operation) {
            Some(tag) => {
                let text = "StartTLS is required first";
                heard(message.len, response(message.id, tag, CONFIDENTIALITY_REQUIRED, text, b""), Then::GoOn)
            }
            None => heard(message.len, notice(code::PROTOCOL_ERROR, "no such operation"), Then::Close),
        },
    }
}

/// The result of an extended request (§4.12, §4.14.1).
fn extended(message: &Message<'_>) -> (u8, &'static str) {
    match element(message.operation.content) {
        Ok(Some(name)) if name.tag == tag::REQUEST_NAME && name.content == START_TLS => {
            if !name.rest.is_empty() {
                (code::PROTOCOL_ERROR, "StartTLS has no value")
            } else if is_critical(message.controls) {
                (code::UNAVAILABLE_CRITICAL_EXTENSION, "no control is known")
            } else {
                (code::SUCCESS, "")
            }
        }
        Ok(Some(name)) if name.tag == tag::REQUEST_NAME => {
            (CONFIDENTIALITY_REQUIRED, "StartTLS is required first")
        }
        Ok(_) | Err(NotLdap) => (code::PROTOCOL_ERROR, "no extended request"),
    }
}

/// Whether one of these controls may not be passed over (§4.1.11); what is none of them may not either.
fn is_critical(mut controls: &[u8]) -> bool {
    while !controls.is_empty() {
        let Ok(Some(control)) = element(controls) else { return true };
        let Ok(Some(kind)) = element(control.content) else { return true };
        match element(kind.rest) {
            Ok(None) if kind.rest.is_empty() => {}
            Ok(Some(critical)) if critical.tag != tag::BOOLEAN || critical.content == [0] => {}
            Ok(_) | Err(NotLdap) => return true,
        }
        controls = control.rest;
    }
    false
}

/// What a backend is asked: StartTLS, as message 1.
pub(super) fn request() -> Vec<u8> {
    let operation = encode(tag::EXTENDED_REQUEST, &[&encode(tag::REQUEST_NAME, &[START_TLS])]);
    encode(tag::SEQUENCE, &[&encode(tag::INTEGER, &[&[1]]), &operation])
}

/// What a backend says to that: the response, or that it disconnects.
pub(super) fn told(bytes: &[u8]) -> Result<Option<Told>, ReplayError> {
    let Some(message) = message(bytes)? else { return Ok(None) };
    if message.operation.tag != tag::EXTENDED_RESPONSE {
        return Err(ReplayError::Syntax);
    }
    let result = element(message.operation.content)?.ok_or(ReplayError::Syntax)?;
    match (message.id, result.tag, result.content) {
        ([1], tag::ENUMERATED, [code::SUCCESS]) => ready(message.len),
        ([0 | 1], tag::ENUMERATED, [_, ..]) => Err(ReplayError::Refused),
        _ => Err(ReplayError::Syntax),
    }
}

/// What a client is told instead of a response to the request it sent, or unasked.
pub(super) fn refusal(said: &[u8], code: u8, text: &str) -> Vec<u8> {
    match message(said) {
        Ok(Some(message)) if message.id != [0] => match tag::response(message.operation.tag) {
            Some(tag) => response(message.id, tag, code, text, b""),
            None => notice(code, text),
        },
        Ok(_) | Err(NotLdap) => notice(code, text),
    }
}

/// A notice of disconnection (§4.4.1).
fn notice(code: u8, text: &str) -> Vec<u8> {
    response(&[0], tag::EXTENDED_RESPONSE, code, text, NOTICE_OF_DISCONNECTION)
}

/// A response with an LDAPResult (§4.1.9).
fn response(id: &[u8], tag: u8, code: u8, text: &str, name: &[u8]) -> Vec<u8> {
    let result = [
        encode(tag::ENUMERATED, &[&[code]]),
        encode(tag::OCTETS, &[]),
        encode(tag::OCTETS, &[text.as_bytes()]),
    ]
    .concat();
    let name = if name.is_empty() { Vec::new() } else { encode(tag::RESPONSE_NAME, &[name]) };
    encode(tag::SEQUENCE, &[&encode(tag::INTEGER, &[id]), &encode(tag, &[&result, &name])])
}

fn encode(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let [high, low] = u16::try_from(content.len()).expect("answers are a line of text").to_be_bytes();
    let head: &[u8] = if content.len() < 0x80 { &[tag, low] } else { &[tag, 0x82, high, low] };
    [head, &content].concat()
}

/// An LDAPMessage (§4.1.1).
#[derive(Debug)]
struct Message<'a> {
    id: &'a [u8],
    operation: Element<'a>,
    controls: &'a [u8],
    len: usize,
}

fn message(bytes: &[u8]) -> Result<Option<Message<'_>>, NotLdap> {
    if bytes.first().is_some_and(|first| *first != tag::SEQUENCE) {
        return Err(NotLdap);
    }
    let Some(outer) = element(bytes)? else { return Ok(None) };
    let id = element(outer.content)?.filter(|id| id.tag == tag::INTEGER).ok_or(NotLdap)?;
    // Of 31 bits, without a sign and without zeros that need not be there (X.690 §8.3.2).
    let is_id = match id.content {
        [first] => *first < 0x80,
        [0, second, rest @ ..] => *second >= 0x80 && rest.len() <= 2,
        [first, rest @ ..] => *first < 0x80 && rest.len() <= 3,
        [] => false,
    };
    if !is_id {
        return Err(NotLdap);
    }
    let operation = element(id.rest)?.ok_or(NotLdap)?;
    let controls = match element(operation.rest)? {
        Some(controls) if controls.tag == tag::CONTROLS && controls.rest.is_empty() => controls.content,
        None if operation.rest.is_empty() => &[],
        _ => return Err(NotLdap),
    };
    Ok(Some(Message { id: id.content, operation, controls, len: bytes.len() - outer.rest.len() }))
}

/// What a tag and a length are before, and what is behind it.
#[derive(Debug)]
struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    rest: &'a [u8],
}

/// The first element of `bytes`. Lengths are definite (§5.1), and may have more bytes than they need: some clients write four always.
fn element(bytes: &[u8]) -> Result<Option<Element<'_>>, NotLdap> {
    let (tag, first, rest) = match bytes {
        // Tags of more bytes stand nowhere in LDAP.
        [tag, ..] if tag & 0x1f == 0x1f => return Err(NotLdap),
        [] | [_] => return Ok(None),
        [tag, first, rest @ ..] => (*tag, *first, rest),
    };
    let (len, rest) = match first {
        0..0x80 => (usize::from(first), rest),
        0x81..=0x84 => {
            let Some((digits, rest)) = rest.split_at_checked(usize::from(first - 0x80)) else {
                return Ok(None);
            };
            (digits.iter().fold(0, |len, digit| len << 8 | usize::from(*digit)), rest)
        }
        0x80 | 0x85.. => return Err(NotLdap),
    };
    if len > MAX_BYTES {
        return Err(NotLdap);
    }
    Ok(rest.split_at_checked(len).map(|(content, rest)| Element { tag, content, rest }))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fails, hears_bytes, refuses, replays_bytes};
    use super::*;
    use crate::peek::Protocol::Ldap;

    /// What `ldapsearch -ZZ` of OpenLDAP sends first.
    const OPENLDAP: &[u8] = b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037";
    const SUCCESS: &[u8] =
        b"\x30\x24\x02\x01\x01\x78\x1f\x0a\x01\x00\x04\x00\x04\x00\x8a\x161.3.6.1.4.1.1466.20037";

    /// A message with the name of StartTLS in an extended request, and more behind it.
    fn start_tls(id: &[u8], value: &[u8], controls: &[u8]) -> Vec<u8> {
        let operation = encode(tag::EXTENDED_REQUEST, &[&encode(tag::REQUEST_NAME, &[START_TLS]), value]);
        encode(tag::SEQUENCE, &[&encode(tag::INTEGER, &[id]), &operation, controls])
    }

    fn simple(id: u8, operation: &[u8]) -> Vec<u8> {
        encode(tag::SEQUENCE, &[&[tag::INTEGER, 1, id], operation])
    }

    #[test]
    fn tls_is_started() {
        assert_eq!(request(), OPENLDAP);
        hears_bytes(Ldap, b"", &[(OPENLDAP, SUCCESS, Then::StartTls)]);
        // Lengths as Windows writes them.
        let long = b"\x30\x84\0\0\0\x21\x02\x01\x01\x77\x84\0\0\0\x18\x80\x161.3.6.1.4.1.1466.20037";
        hears_bytes(Ldap, b"", &[(long, SUCCESS, Then::StartTls)]);
        for id in [&[0x7f][..], &[0, 0x80], &[1, 0], &[0x7f, 0xff, 0xff, 0xff]] {
            let answer = hear(&start_tls(id, b"", b"")).unwrap().unwrap();
            assert_eq!(answer.then, Then::StartTls);
            assert_eq!(message(&answer.reply).unwrap().unwrap().id, id);
        }
    }

    #[test]
    fn other_operations_need_tls() {
        let text = b"StartTLS is required first";
        let answer =
            |id: u8, tag: u8| [&[0x30, 38, 2, 1, id, tag, 33, 10, 1, 13, 4, 0, 4, 26][..], text].concat();
        let bind = simple(1, b"\x60\x12\x02\x01\x03\x04\x05cn=me\x80\x06secret");
        let search = simple(2, b"\x63\x03\x04\x01x");
        hears_bytes(
            Ldap,
            b"",
            &[
                (&bind, &answer(1, 0x61), Then::GoOn),
                (&search, &answer(2, 0x65), Then::GoOn),
                (&simple(3, b"\x4a\x01x"), &answer(3, 0x6b), Then::GoOn),
                (&simple(4, b"\x50\x01\x01"), b"", Then::GoOn),
                (&simple(5, b"\x42\x00"), b"", Then::Close),
            ],
        );
        let notice = hear(&simple(1, b"\x7f\x00")).unwrap_err();
        assert_eq!(notice, PreludeError::Syntax);
        let unknown = hear(&simple(1, b"\x7e\x00")).unwrap().unwrap();
        assert_eq!(unknown.then, Then::Close);
        assert!(unknown.reply.starts_with(b"\x30\x35\x02\x01\x00\x78\x30\x0a\x01\x02"), "{unknown:?}");
    }

    #[test]
    fn a_request_for_tls_has_no_more_than_it_may() {
        let code = |message: &[u8]| {
            let heard = hear(message).unwrap().unwrap();
            assert_eq!(heard.then, Then::GoOn);
            heard.reply[9]
        };
        assert_eq!(code(&start_tls(&[1], b"\x81\x01x", b"")), code::PROTOCOL_ERROR);
        assert_eq!(code(&simple(1, b"\x77\x06\x80\x041.23")), CONFIDENTIALITY_REQUIRED);
        assert_eq!(code(&simple(1, b"\x77\x00")), code::PROTOCOL_ERROR);
        let critical = b"\xa0\x0a\x30\x08\x04\x031.2\x01\x01\xff";
        assert_eq!(code(&start_tls(&[1], b"", critical)), code::UNAVAILABLE_CRITICAL_EXTENSION);
        assert_eq!(code(&start_tls(&[1], b"", b"\xa0\x01x")), code::UNAVAILABLE_CRITICAL_EXTENSION);
        for passed_over in
            [&b"\xa0\x07\x30\x05\x04\x031.2"[..], b"\xa0\x09\x30\x07\x04\x031.2\x04\x00", b"\xa0\x00"]
        {
            assert_eq!(hear(&start_tls(&[1], b"", passed_over)).unwrap().unwrap().then, Then::StartTls);
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        fails(Ldap, &[], &[OPENLDAP, b"x"].concat(), PreludeError::Injection);
        for bad in [
            &b"\x31\x00"[..],
            b"\x30\x80",
            b"\x30\x85",
            b"\x30\x84\x7f\xff\xff\xff",
            b"\x30\x00",
            b"\x30\x03\x02\x01\x01",
            b"\x30\x05\x02\x01\x00\x42\x00",
            b"\x30\x05\x02\x01\x80\x42\x00",
            b"\x30\x06\x02\x02\x00\x01\x42\x00",
            b"\x30\x09\x02\x05\x01\x01\x01\x01\x01\x42\x00",
            b"\x30\x05\x04\x01\x01\x42\x00",
            b"\x30\x05\x02\x01\x01\x42\x01",
            b"\x30\x07\x02\x01\x01\x42\x00\x42\x00",
            b"GET / HTTP/1.1\r\n",
        ] {
            fails(Ldap, &[], bad, PreludeError::Syntax);
        }
    }

    #[test]
    fn a_backend_starts_tls_or_does_not() {
        replays_bytes(Ldap, &[], OPENLDAP, &[], SUCCESS);
        replays_bytes(Ldap, &[], OPENLDAP, &[], b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00");
        for (bad, error) in [
            (&b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x02\x04\x00\x04\x00"[..], ReplayError::Refused),
            (&notice(UNAVAILABLE, "gone"), ReplayError::Refused),
            (b"\x30\x0c\x02\x01\x00\x78\x07\x0a\x01\x00\x04\x00\x04\x00", ReplayError::Refused),
            (b"\x30\x0c\x02\x01\x02\x78\x07\x0a\x01\x00\x04\x00\x04\x00", ReplayError::Syntax),
            (b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x00\x04\x00", ReplayError::Syntax),
            (b"\x30\x05\x02\x01\x01\x78\x00", ReplayError::Syntax),
            (b"220 smtp\r\n", ReplayError::Syntax),
            (&[SUCCESS, b"x"].concat(), ReplayError::Injection),
        ] {
            refuses(Ldap, &[], &[], bad, error);
        }
    }

    #[test]
    fn a_refusal_answers_what_was_asked() {
        let bind = simple(7, b"\x60\x07\x02\x01\x03\x04\x00\x80\x00");
        assert!(refusal(&bind, UNAVAILABLE, "x").starts_with(b"\x30\x0d\x02\x01\x07\x61\x08\x0a\x01\x34"));
        for other in [&b""[..], b"\x30", b"x", &simple(7, b"\x42\x00")] {
            assert_eq!(refusal(other, UNAVAILABLE, "x"), notice(UNAVAILABLE, "x"));
        }
    }
}
