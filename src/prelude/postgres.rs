//! PostgreSQL, protocol 3: SSLRequest and what may come in its place (its manual, "Message Flow", "Message Formats").

use super::{Heard, PreludeError, ReplayError, Then, Told};
use crate::peek::Startup;

/// Length and code of an SSLRequest.
pub(super) const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const SSL: u32 = 80_877_103;
const GSSENC: u32 = 80_877_104;
const CANCEL: u32 = 80_877_102;
/// The major version of the protocol, which a StartupMessage begins with.
const MAJOR: u32 = 3;
/// The longest message before a session, in bytes. Servers take 10,000 (`MAX_STARTUP_PACKET_LENGTH`), which no client needs.
const MAX_LENGTH: usize = super::MAX_BYTES;

/// A server that has one answer left for each kind of encryption.
#[derive(Debug, Default)]
pub(super) struct Server {
    /// Whether it says no when it is asked for TLS.
    in_clear: bool,
    ssl: bool,
    gss: bool,
}

impl Server {
    pub(super) fn in_clear() -> Self {
        Self { in_clear: true, ..Self::default() }
    }

    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Option<Heard>, PreludeError> {
        let Some(header) = bytes.first_chunk::<8>() else { return Ok(None) };
        let [a, b, c, d, e, f, g, h] = *header;
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        let heard = |reply: &[u8], then| Ok(Some(Heard { len, reply: reply.to_vec(), then }));
        match u32::from_be_bytes([e, f, g, h]) {
            // Who asks for encryption must wait for the answer, and may ask for something else when it is refused.
            SSL | GSSENC if len == 8 && bytes.len() > len => Err(PreludeError::Injection),
            SSL if len == 8 && !self.ssl => {
                self.ssl = true;
                if self.in_clear { heard(b"N", Then::GoOn) } else { heard(b"S", Then::StartTls) }
            }
            GSSENC if len == 8 && !self.gss => {
                self.gss = true;
                heard(b"N", Then::GoOn)
            }
            // Secrets have 4 bytes, from protocol 3.2 on up to 256.
            CANCEL if (16..=268).contains(&len) => match bytes.len() {
                have if have < len => Ok(None),
                have if have > len => Err(PreludeError::Syntax),
                _ => Ok(Some(Heard { len: 0, reply: Vec::new(), then: Then::Cancel })),
            },
            version if version >> 16 == MAJOR && (9..=MAX_LENGTH).contains(&len) => match bytes.get(8..len) {
                None => Ok(None),
                Some(parameters) => {
                    let startup = startup(parameters).ok_or(PreludeError::Syntax)?;
                    Ok(Some(Heard { len: 0, reply: Vec::new(), then: Then::Clear(Box::new(startup)) }))
                }
            },
            _ => Err(PreludeError::Syntax),
        }
    }
}

/// Names and values, each ended by a zero byte, and one more at the end.
fn startup(parameters: &[u8]) -> Option<Startup> {
    let mut words = parameters.strip_suffix(&[0])?.split_inclusive(|byte| *byte == 0);
    let mut startup = Startup::default();
    let (mut user, mut database) = (None, None);
    while let Some(name) = words.next() {
        let value = words.next()?.strip_suffix(&[0])?;
        let place = match name.strip_suffix(&[0])? {
            b"user" => &mut user,
            b"database" => &mut database,
            b"" => return None,
            _ => continue,
        };
        // Servers take the last of several; one that means the first would be asked for another database.
        if place.replace(std::str::from_utf8(value).ok()?).is_some() {
            return None;
        }
    }
    startup.user = user.filter(|user| !user.is_empty())?.into();
    startup.database =
        database.filter(|database| !database.is_empty()).map_or_else(|| startup.user.clone(), Into::into);
    Some(startup)
}

/// What a server says to an SSLRequest: one byte, or an ErrorResponse from one that knows no such message.
pub(super) fn told(bytes: &[u8]) -> Result<Option<Told>, ReplayError> {
    match bytes.first() {
        None => Ok(None),
        Some(b'S') => Ok(Some(Told { len: 1, reply: Vec::new(), ready: true })),
        Some(b'N' | b'E') => Err(ReplayError::Refused),
        Some(_) => Err(ReplayError::Syntax),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(code: u32, rest: &[u8]) -> Vec<u8> {
        let len = u32::try_from(8 + rest.len()).unwrap();
        [&len.to_be_bytes()[..], &code.to_be_bytes(), rest].concat()
    }

    /// The same however it is cut.
    fn hear(bytes: &[u8]) -> Result<Option<Heard>, PreludeError> {
        let whole = Server::default().advance(bytes);
        let mut server = Server::default();
        for len in 0..bytes.len() {
            match server.advance(&bytes[..len]) {
                Ok(None) => {}
                early => return early,
            }
        }
        assert_eq!(server.advance(bytes), whole);
        whole
    }

    #[test]
    fn encryption_is_offered_by_tls_alone() {
        let mut server = Server::default();
        let refused = Heard { len: 8, reply: b"N".to_vec(), then: Then::GoOn };
        assert_eq!(server.advance(&message(GSSENC, b"")), Ok(Some(refused)));
        let begun = Heard { len: 8, reply: b"S".to_vec(), then: Then::StartTls };
        assert_eq!(server.advance(&SSL_REQUEST), Ok(Some(begun)));
        assert_eq!(server.advance(&SSL_REQUEST), Err(PreludeError::Syntax), "once");
        assert_eq!(message(SSL, b""), SSL_REQUEST);
        let early = [message(GSSENC, b""), SSL_REQUEST.to_vec()].concat();
        assert_eq!(Server::default().advance(&early), Err(PreludeError::Injection));
    }

    #[test]
    fn without_tls_none_is_begun() {
        let mut server = Server::in_clear();
        let refused = Heard { len: 8, reply: b"N".to_vec(), then: Then::GoOn };
        assert_eq!(server.advance(&SSL_REQUEST), Ok(Some(refused)));
        assert_eq!(server.advance(&SSL_REQUEST), Err(PreludeError::Syntax), "once");
    }

    #[test]
    fn a_startup_says_which_database_and_who() {
        let told =
            |parameters: &[u8]| match hear(&message(3 << 16, parameters)).map(|heard| heard.unwrap().then) {
                Ok(Then::Clear(startup)) => Ok((startup.database.to_string(), startup.user.to_string())),
                Ok(other) => panic!("{other:?}"),
                Err(error) => Err(error),
            };
        let both = told(b"user\0ann\0database\0shop\0application_name\0psql\0\0");
        assert_eq!(both, Ok(("shop".to_owned(), "ann".to_owned())));
        assert_eq!(told(b"user\0ann\0\0"), Ok(("ann".to_owned(), "ann".to_owned())));
        assert_eq!(told(b"user\0ann\0database\0\0\0"), Ok(("ann".to_owned(), "ann".to_owned())));
        for bad in [
            &b"database\0shop\0\0"[..],
            b"user\0ann\0user\0eve\0\0",
            b"user\0ann\0database\0a\0database\0b\0\0",
            b"user\0ann\0",
            b"user\0ann\0\0\0",
            b"user\0ann",
            b"user\0\xff\0\0",
            b"\0",
        ] {
            assert_eq!(told(bad), Err(PreludeError::Syntax), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn a_cancel_request_is_whole_and_alone() {
        let request = message(CANCEL, &[0, 0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(hear(&request).unwrap().unwrap().then, Then::Cancel);
        assert_eq!(Server::default().advance(&[&request[..], b"x"].concat()), Err(PreludeError::Syntax));
        let long = message(CANCEL, &[7; 260]);
        assert_eq!(hear(&long).unwrap().unwrap().then, Then::Cancel);
        assert_eq!(hear(&message(CANCEL, &[7; 261])), Err(PreludeError::Syntax));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bad in [message(2 << 16, b"x"), message(SSL, b"x"), message(3 << 16, &[0; 10_000]), vec![0xff; 8]]
        {
            assert_eq!(
                Server::default().advance(&bad),
                Err(PreludeError::Syntax),
                "{}",
                bad[..8].escape_ascii()
            );
        }
    }

    #[test]
    fn a_server_is_ready_or_is_not() {
        assert_eq!(told(b""), Ok(None));
        assert_eq!(told(b"S"), Ok(Some(Told { len: 1, reply: Vec::new(), ready: true })));
        assert_eq!(told(b"N"), Err(ReplayError::Refused));
        assert_eq!(told(b"EFATAL"), Err(ReplayError::Refused));
        assert_eq!(told(b"HTTP/1.1 400"), Err(ReplayError::Syntax));
    }
}
