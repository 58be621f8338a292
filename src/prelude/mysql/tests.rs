use super::*;
use crate::prelude::{Greeting, MAX_MESSAGES, Prelude};

/// A greeting, by a reader that was written from the manual and shares nothing with the writer.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    version: String,
    id: u32,
    nonce: Vec<u8>,
    flags: u32,
    collation: u8,
    plugin: String,
}

/// Reads all of a packet; what is too short or too long panics.
fn read(packet: &[u8]) -> Read {
    let mut rest = packet;
    let mut take = |len: usize| {
        let (head, tail) = rest.split_at(len);
        rest = tail;
        head.to_vec()
    };
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u32, |sum, byte| sum * 256 + u32::from(*byte));
    assert_eq!(number(&take(3)) as usize, packet.len() - 4);
    assert_eq!(take(2), [0, 10], "the first packet, version 10");
    let text = |take: &mut dyn FnMut(usize) -> Vec<u8>| {
        let bytes: Vec<_> = std::iter::from_fn(|| Some(take(1)[0]).filter(|byte| *byte != 0)).collect();
        String::from_utf8(bytes).unwrap()
    };
    let version = text(&mut take);
    let id = number(&take(4));
    let mut nonce = take(8);
    assert_eq!(take(1), [0]);
    let low = number(&take(2));
    let collation = take(1)[0];
    assert_eq!(take(2), [2, 0], "autocommit");
    let flags = low | number(&take(2)) << 16;
    let nonce_len = usize::from(take(1)[0]);
    assert_eq!(take(10), [0; 10]);
    nonce.extend(take(13.max(nonce_len - 8)));
    assert_eq!(nonce.pop(), Some(0));
    let plugin = text(&mut take);
    assert_eq!(rest, b"");
    Read { version, id, nonce, flags, collation, plugin }
}

/// A packet with this number and these flags, and `rest` behind the filler.
fn packet(number: u8, flags: u32, rest: &[u8]) -> Vec<u8> {
    let fields = [&flags.to_le_bytes()[..], &[0, 0, 0, 1], &[224], &[0; 23], rest].concat();
    let [a, b, c, _] = u32::try_from(fields.len()).unwrap().to_le_bytes();
    [&[a, b, c, number], &fields[..]].concat()
}

/// The same however it is cut.
fn hear(bytes: &[u8]) -> Result<Option<Heard>, PreludeError> {
    let whole = Server::new(MYSQL_VERSION, 1).advance(bytes);
    let mut server = Server::new(MYSQL_VERSION, 1);
    for len in 0..bytes.len() {
        match server.advance(&bytes[..len]) {
            Ok(None) => {}
            early => {
                assert!(early.is_err(), "{len}: {early:?}");
                return early;
            }
        }
    }
    assert_eq!(server.advance(bytes), whole);
    whole
}

fn prelude(version: &str) -> Prelude {
    let greeting = Greeting { name: "db.test".into(), mysql_version: version.into() };
    Prelude::new(Protocol::Mysql, &greeting).unwrap()
}

/// A greeting of MariaDB 10.11 as it came, but for the nonce.
const MARIADB: &[u8] =
    b"\x64\0\0\0\x0a5.5.5-10.11.19-MariaDB-0+deb12u1\0\x1f\0\0\0aaaaaaaa\0\xfe\xff\x08\x02\0\xff\x81\x15\
    \0\0\0\0\0\0\x1d\0\0\0bbbbbbbbbbbb\0mysql_native_password\0";

fn told(bytes: &[u8]) -> Result<Option<Told>, ReplayError> {
    prelude("8.0.36").replay().advance(bytes)
}

#[test]
fn the_greeting_is_read_by_another_reader() {
    for seed in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
        let read = |seed| read(&Server::new("8.0.36", seed).opening());
        let greeting = read(seed);
        let Read { version, plugin, .. } = &greeting;
        assert_eq!((version.as_str(), plugin.as_str()), ("8.0.36", "caching_sha2_password"));
        assert_eq!((greeting.flags, greeting.collation), (0x91ff_ffdf, 45));
        assert!(greeting.id >= 1 << 31);
        assert_eq!(greeting.nonce.len(), 20);
        assert!(greeting.nonce.iter().all(u8::is_ascii_graphic), "{greeting:?}");
        assert_eq!(read(seed), greeting);
        assert_ne!(read(seed ^ 1).nonce, greeting.nonce);
    }
    let version = |version: &str| read(&prelude(version).opening()).version;
    assert_eq!(version("8.0\0.36"), "8.0");
    assert_eq!(version(&"8".repeat(1000)).len(), 60);
    assert_eq!(version(""), "");
    assert_ne!(prelude("").opening(), prelude("").opening(), "another nonce for each");
}

#[test]
fn an_ssl_request_begins_tls_without_an_answer() {
    let request = packet(1, SSL | PROTOCOL_41 | 1 << 24, b"");
    let begun = Heard { len: 36, reply: Vec::new(), then: Then::StartTls };
    assert_eq!(hear(&request), Ok(Some(begun)));
    let hello = [&request[..], &[22, 3, 1, 2, 0, 1]].concat();
    let heard = prelude(MYSQL_VERSION).advance(&hello).unwrap().unwrap();
    assert_eq!((heard.len, heard.then), (36, Then::StartTls), "the ClientHello may be there already");
    for missing in [SSL, SSL | 1 << 24] {
        assert_eq!(hear(&packet(1, missing, b"")), Err(PreludeError::Syntax), "of protocol 4.0");
    }
}

#[test]
fn a_login_in_clear_is_refused_in_words() {
    for rest in [&b"ann\0\0"[..], &[7; MAX_BYTES - SSL_REQUEST]] {
        let heard = hear(&packet(1, PROTOCOL_41, rest)).unwrap().unwrap();
        assert_eq!((heard.len, &heard.then), (SSL_REQUEST + rest.len(), &Then::Close));
        assert_eq!(heard.reply, b"\x18\0\0\x02\xff\x57\x0c#HY000TLS is required");
    }
}

#[test]
fn what_is_no_packet_of_a_client_is_refused_at_once() {
    for bad in [
        packet(0, SSL | PROTOCOL_41, b""),
        packet(2, SSL | PROTOCOL_41, b""),
        packet(1, SSL | PROTOCOL_41, b"ann\0"),
        packet(1, PROTOCOL_41, &[7; MAX_BYTES - SSL_REQUEST + 1]),
        vec![31, 0, 0, 1],
        vec![0, 0, 0, 1],
        vec![0xff; 4],
        b"GET / HTTP/1.1\r\n".to_vec(),
        [&[22, 3, 1, 2], &[0; 512][..]].concat(),
    ] {
        assert_eq!(hear(&bad), Err(PreludeError::Syntax), "{}", bad[..4].escape_ascii());
    }
    assert_eq!(hear(b""), Ok(None));
    let mut prelude = prelude(MYSQL_VERSION);
    for _ in 0..MAX_MESSAGES {
        assert!(prelude.advance(&packet(1, SSL | PROTOCOL_41, b"")).is_ok());
    }
    assert_eq!(prelude.advance(&packet(1, SSL | PROTOCOL_41, b"")), Err(PreludeError::TooMuch));
}

#[test]
fn a_backend_is_asked_for_no_more_than_was_offered() {
    let mut prelude = prelude(MYSQL_VERSION);
    // Query attributes, and MariaDB's extensions in the filler.
    let mut request = packet(1, SSL | PROTOCOL_41 | COMPRESS | 1 << 27 | 1 << 23, b"");
    request[32..].copy_from_slice(&[0x1d, 0, 0, 0]);
    prelude.advance(&request).unwrap().unwrap();
    let asked = packet(1, SSL | PROTOCOL_41 | 1 << 23, b"");
    let greeting = MARIADB;
    let ready = Told { len: greeting.len(), reply: asked, ready: true };
    let mut replay = prelude.replay();
    assert_eq!(replay.opening(), b"");
    for len in 0..greeting.len() {
        assert_eq!(replay.advance(&greeting[..len]), Ok(None), "{len}");
    }
    assert_eq!(replay.advance(greeting), Ok(Some(ready)));
    let more = [greeting, b"x"].concat();
    assert_eq!(prelude.replay().advance(&more), Err(ReplayError::Injection));
}

#[test]
fn our_own_greeting_is_one_that_offers_tls() {
    let greeting = prelude("8.0.36").opening();
    assert!(told(&greeting).unwrap().unwrap().ready);
    let mut without = greeting.clone();
    let low = 4 + 1 + "8.0.36\0".len() + 4 + 9;
    without[low + 1] &= !0x08;
    assert_eq!(told(&without), Err(ReplayError::Refused));
}

#[test]
fn what_is_no_greeting_is_refused() {
    for refused in [&b"\x17\0\0\0\xff\x69\x04Host is blocked"[..], b"\x10\0\0\0\xff"] {
        assert_eq!(told(refused), Err(ReplayError::Refused));
    }
    for bad in [
        &b"\0\0\0\0"[..],
        b"\x10\0\0\x01",
        b"\xff\xff\xff\0",
        b"\x0a\0\0\0\x09",
        b"\x05\0\0\0\x0aabcd",
        b"\x05\0\0\0\x0a8.0\0",
        b"\x13\0\0\0\x0a8.0\0idididid12345678",
        b"HTTP/1.1 400",
    ] {
        assert_eq!(told(bad), Err(ReplayError::Syntax), "{}", bad.escape_ascii());
    }
    let long = u32::try_from(MAX_BYTES - HEADER + 1).unwrap().to_le_bytes();
    assert_eq!(told(&[long[0], long[1], long[2], 0]), Err(ReplayError::Syntax));
}
