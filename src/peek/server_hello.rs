//! What a server answers a ClientHello with (RFC 8446 §4.1.3, RFC 5246 §7.3), as far as the bytes that were read first tell it.
//!
//! It is for statistics: whatever is odd, or cut off, is unknown and nobody's fault. Bytes are looked at once and never kept,
//! so that nothing has to be held of a connection for it.

use std::borrow::Cow;

use tls_parser::{TlsCipherAu, TlsCipherKx, TlsCipherSuite};

use super::cursor::Cursor;
use super::extension;
use super::parameters::{Group, Handshake, KeyExchange, TlsVersion};

/// Content types of records (RFC 8446 §5.1).
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
/// Types of handshake messages (RFC 8446 §4, RFC 5246 §7.4).
const SERVER_HELLO: u8 = 2;
const NEW_SESSION_TICKET: u8 = 4;
const SERVER_KEY_EXCHANGE: u8 = 12;
/// A curve by its number (RFC 8422 §5.4).
const NAMED_CURVE: u8 = 3;
/// An alert that servers of old send as a warning, and go on after it (RFC 6066 §3).
const UNRECOGNIZED_NAME: u8 = 112;
const WARNING: u8 = 1;
/// The random of a ServerHello that asks for another ClientHello (RFC 8446 §4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
    0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];
/// So many bytes of messages are joined when they come in several records: what tells the group stands behind the
/// certificates.
const MAX_JOINED: usize = 1 << 14;

/// What a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has chosen from what it was offered.
    Chosen(Handshake),
    /// It wants another ClientHello, with a key for another group (HelloRetryRequest); what it chooses comes after that.
    Retry,
    /// It refuses, with this alert.
    Refused(u8),
}

/// The body of a ServerHello.
struct ServerHello<'a> {
    version: TlsVersion,
    cipher: u16,
    retry: bool,
    /// The extension key_share; empty without one.
    key_share: &'a [u8],
    /// Whether it accepts a key that the client offers.
    pre_shared: bool,
}

impl Answer {
    /// Reads `bytes`, which are the server's first, or come first after a [`Answer::Retry`]. `None` when they say nothing yet.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut records = Cursor::new(bytes);
        while !records.is_empty() {
            let ahead = records;
            match next_record(&mut records) {
                // Sent after a retry for middleboxes (RFC 8446 §D.4).
                Some((CHANGE_CIPHER_SPEC, [_]) | (ALERT, [WARNING, UNRECOGNIZED_NAME])) => {}
                Some((ALERT, [_, alert])) => return Some(Self::Refused(*alert)),
                Some((HANDSHAKE, _)) => return Some(Self::of_messages(ahead)),
                _ => return Some(Self::Chosen(Handshake::default())),
            }
        }
        None
    }

    fn of_messages(records: Cursor<'_>) -> Self {
        let (messages, then) = join(records);
        let mut messages = Cursor::new(&messages);
        let hello = match next_message(&mut messages) {
            Some((SERVER_HELLO, body)) => ServerHello::read(body),
            _ => None,
        };
        match hello {
            None => Self::Chosen(Handshake::default()),
            Some(hello) if hello.retry => Self::Retry,
            Some(hello) if hello.version == TlsVersion::Tls13 => Self::Chosen(hello.modern()),
            Some(hello) => Self::Chosen(hello.of_old(messages, then)),
        }
    }
}

impl<'a> ServerHello<'a> {
    fn read(body: &'a [u8]) -> Option<Self> {
        let mut body = Cursor::new(body);
        let version = TlsVersion::of(body.u16()?);
        let retry = body.take(RETRY.len())? == RETRY;
        let _session_id = body.vec8()?;
        let cipher = body.u16()?;
        let _compression = body.u8()?;
        let mut hello = Self { version, cipher, retry, key_share: &[], pre_shared: false };
        let mut extensions = if body.is_empty() { body } else { Cursor::new(body.vec16()?) };
        while !extensions.is_empty() {
            let (kind, body) = (extensions.u16()?, extensions.vec16()?);
            match kind {
                extension::SUPPORTED_VERSIONS => hello.version = TlsVersion::of(Cursor::new(body).u16()?),
                extension::KEY_SHARE => hello.key_share = body,
                extension::PRE_SHARED_KEY => hello.pre_shared = true,
                _ => {}
            }
        }
        Some(hello)
    }

    /// Of TLS 1.3: all is in the hello.
    fn modern(&self) -> Handshake {
        let group = Cursor::new(self.key_share).u16().map(Group::of);
        Handshake {
            version: Some(self.version),
            key_exchange: Some(group.map_or(KeyExchange::None, KeyExchange::Group)),
            resumed: Some(self.pre_shared),
        }
    }

    /// Of older versions: what goes on with a session has neither certificate nor key exchange (RFC 5246 §7.3), so that the
    /// id of the client's session, or its ticket, need not be remembered.
    fn of_old(&self, messages: Cursor<'_>, then: Option<u8>) -> Handshake {
        let resumed = match (messages.rest().first(), then) {
            (Some(&NEW_SESSION_TICKET), _) | (None, Some(CHANGE_CIPHER_SPEC)) => Some(true),
            (Some(_), _) => Some(false),
            (None, _) => None,
        };
        let key_exchange = match resumed {
            Some(true) => Some(KeyExchange::None),
            Some(false) => self.exchanged(messages),
            None => None,
        };
        Handshake { version: Some(self.version), key_exchange, resumed }
    }

    /// How a key is agreed on, where the messages that follow the hello tell it: the cipher suite says whether they do.
    fn exchanged(&self, mut messages: Cursor<'_>) -> Option<KeyExchange> {
        let suite = TlsCipherSuite::from_id(self.cipher)?;
        match suite.kx {
            TlsCipherKx::Dhe => Some(KeyExchange::Group(Group::Ffdhe)),
            TlsCipherKx::Ecdhe | TlsCipherKx::Aecdh if suite.au != TlsCipherAu::Psk => loop {
                if let (SERVER_KEY_EXCHANGE, body) = next_message(&mut messages)? {
                    let mut body = Cursor::new(body);
                    let named = body.u8()? == NAMED_CURVE;
                    return body.u16().filter(|_| named).map(Group::of).map(KeyExchange::Group);
                }
            },
            TlsCipherKx::Rsa | TlsCipherKx::Psk => Some(KeyExchange::None),
            _ => None,
        }
    }
}

/// The content type of the next record and what there is of its fragment.
fn next_record<'a>(records: &mut Cursor<'a>) -> Option<(u8, &'a [u8])> {
    let kind = records.u8()?;
    // The version that it says means nothing (RFC 8446 §5.1), but for its major number.
    let [major, _] = records.u16()?.to_be_bytes();
    let len = usize::from(records.u16()?);
    // Of messages, what there is may do; anything else is nothing when its end is missing.
    let whole = len <= records.rest().len();
    let fragment = records.take(len.min(records.rest().len()))?;
    let known = major == 3 && (whole || kind == HANDSHAKE);
    Some((if known { kind } else { 0 }, fragment))
}

/// The type of the next message and its body, which must be whole.
fn next_message<'a>(messages: &mut Cursor<'a>) -> Option<(u8, &'a [u8])> {
    let kind = messages.u8()?;
    let (high, low) = (messages.u8()?, messages.u16()?);
    messages.take(usize::from(high) << 16 | usize::from(low)).map(|body| (kind, body))
}

/// The messages of the handshake that come first, as far as they are there, and the type of the record after them.
fn join(mut records: Cursor<'_>) -> (Cow<'_, [u8]>, Option<u8>) {
    let mut joined = Cow::Borrowed([].as_slice());
    while joined.len() < MAX_JOINED {
        match next_record(&mut records) {
            Some((HANDSHAKE, fragment)) if joined.is_empty() => joined = Cow::Borrowed(fragment),
            Some((HANDSHAKE, fragment)) => {
                let joined = joined.to_mut();
                joined.reserve(fragment.len() + records.rest().len().min(MAX_JOINED));
                joined.extend_from_slice(fragment);
            }
            then => return (joined, then.map(|(kind, _)| kind)),
        }
    }
    (joined, None)
}

#[cfg(test)]
mod tests;
