//! What a client that speaks in clear is told when its connection is refused, in plain words of its protocol.

use std::borrow::Cow;

use super::{ldap, xmpp};
use crate::peek::Protocol;

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No backend can be reached.
    NoBackend,
    /// Nothing is served here that it may have.
    NoRoute,
    /// What it wants is served within TLS only.
    TlsRequired,
}

impl Why {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::NoBackend, Self::NoRoute, Self::TlsRequired];

    const fn words(self) -> &'static str {
        match self {
            Self::NoBackend => "no backend can be reached",
            Self::NoRoute => "not served here",
            Self::TlsRequired => "TLS is required",
        }
    }
}

/// What a client of `protocol` that last `said` this is told, to be followed by the end of the stream. `said` is the message that
/// goes unanswered, from its beginning, or nothing. The answer is empty where the protocol has no words for it that may be said at
/// that place, and for those of TLS and HTTP, which are told so elsewhere.
///
/// Once TLS was granted, a client can only be told by a TLS alert.
pub fn refusal(protocol: Protocol, why: Why, said: &[u8]) -> Cow<'static, [u8]> {
    let words = why.words();
    match protocol {
        Protocol::Postgres => postgres(why).into(),
        Protocol::Mysql => mysql(why, said).into(),
        Protocol::Ssh => ssh(why).into(),
        Protocol::Smtp => smtp(why).into(),
        // BYE may stand in place of a greeting as well (RFC 9051 §7.1.5).
        Protocol::Imap => format!("* BYE {words}\r\n").into_bytes().into(),
        Protocol::Pop3 => format!("-ERR {words}\r\n").into_bytes().into(),
        // As IMAP's (RFC 5804 §1.3).
        Protocol::Sieve => format!("BYE \"{words}\"\r\n").into_bytes().into(),
        // To any command, and in place of the greeting (RFC 959 §5.4).
        Protocol::Ftp => format!("421 {words}\r\n").into_bytes().into(),
        Protocol::Ldap => {
            let code = match why {
                Why::NoBackend => ldap::UNAVAILABLE,
                Why::NoRoute => ldap::UNWILLING_TO_PERFORM,
                Why::TlsRequired => ldap::CONFIDENTIALITY_REQUIRED,
            };
            ldap::refusal(said, code, words).into()
        }
        Protocol::Xmpp => {
            let condition = match why {
                Why::NoBackend => "remote-connection-failed",
                Why::NoRoute => "host-unknown",
                Why::TlsRequired => "policy-violation",
            };
            xmpp::refusal(said, condition, words).into()
        }
        Protocol::Redis => format!("-ERR {words}\r\n").into_bytes().into(),
        Protocol::Mqtt => mqtt(why, said).into(),
        Protocol::Amqp => amqp(why, said).into(),
        Protocol::Socks => socks(said).into(),
        Protocol::Tls
        | Protocol::Http
        | Protocol::H2c
        | Protocol::Dns
        | Protocol::Openvpn
        | Protocol::Rdp
        | Protocol::Unknown
        | Protocol::Silent => Cow::Borrowed(&[]),
    }
}

/// An ErrorResponse ("Error and Notice Message Fields", "PostgreSQL Error Codes").
fn postgres(why: Why) -> Vec<u8> {
    let code = match why {
        // cannot_connect_now, which clients with several hosts take as a reason to try the next.
        Why::NoBackend => "57P03",
        // sqlserver_rejected_establishment_of_sqlconnection.
        Why::NoRoute => "08004",
        // invalid_authorization_specification: what servers say where only `hostssl` lines fit.
        Why::TlsRequired => "28000",
    };
    let fields = format!("SFATAL\0VFATAL\0C{code}\0M{}\0\0", why.words());
    let len = u32::try_from(4 + fields.len()).expect("a line of text");
    [b"E", &len.to_be_bytes()[..], fields.as_bytes()].concat()
}

/// An ERR packet (MySQL's manual of the source, "`ERR_Packet`"), in reply to the packet that was `said`. Before a handshake a client
/// has not told that it knows SQL states, and gets none.
fn mysql(why: Why, said: &[u8]) -> Vec<u8> {
    let (code, state) = match why {
        // ER_CON_COUNT_ERROR, which clients take as a reason to try again later.
        Why::NoBackend => (1040_u16, "08004"),
        // ER_HOST_NOT_PRIVILEGED.
        Why::NoRoute => (1130, "HY000"),
        // ER_SECURE_TRANSPORT_REQUIRED.
        Why::TlsRequired => (3159, "HY000"),
    };
    let (sequence, state) = match said.get(3) {
        None => (0, String::new()),
        Some(sequence) => (sequence.wrapping_add(1), format!("#{state}")),
    };
    let payload = [&[0xff], &code.to_le_bytes()[..], state.as_bytes(), why.words().as_bytes()].concat();
    let [a, b, c, _] = u32::try_from(payload.len()).expect("a line of text").to_le_bytes();
    [&[a, b, c, sequence], payload.as_slice()].concat()
}

/// The identification of a server and SSH_MSG_DISCONNECT, in clear as before any exchange of keys (RFC 4253 §4.2, §6, §11.1). Lines
/// before the identification are not shown by OpenSSH's client, the description of a disconnect is.
fn ssh(why: Why) -> Vec<u8> {
    const DISCONNECT: u8 = 1;
    let reason: u32 = match why {
        Why::NoBackend => 7,                  // SSH_DISCONNECT_SERVICE_NOT_AVAILABLE
        Why::NoRoute | Why::TlsRequired => 1, // SSH_DISCONNECT_HOST_NOT_ALLOWED_TO_CONNECT
    };
    let words = why.words().as_bytes();
    let len = u32::try_from(words.len()).expect("a line of text").to_be_bytes();
    // The description, and the tag of its language, of no length.
    let payload = [&[DISCONNECT], &reason.to_be_bytes()[..], &len, words, &[0; 4]].concat();
    // Packets are a multiple of 8 bytes, four of them padding at least.
    let padding = 4 + (8 - (5 + payload.len() + 4) % 8) % 8;
    let packet = u32::try_from(1 + payload.len() + padding).expect("a line of text").to_be_bytes();
    let padding_len = u8::try_from(padding).expect("less than 12");
    [b"SSH-2.0-Portcullis\r\n", &packet[..], &[padding_len], &payload, &vec![0; padding]].concat()
}

/// A reply that fits any command and the place of the greeting (RFC 5321 §3.8); the codes behind it are of RFC 3463.
fn smtp(why: Why) -> Vec<u8> {
    let status = match why {
        Why::NoBackend => "4.3.2",
        Why::NoRoute => "4.7.1",
        Why::TlsRequired => "4.7.0",
    };
    format!("421 {status} {}\r\n", why.words()).into()
}

/// A CONNACK of the version that the CONNECT is of (MQTT 3.1.1 §3.2, 5.0 §3.2).
fn mqtt(why: Why, said: &[u8]) -> Vec<u8> {
    let (return_code, reason): (u8, u8) = match why {
        Why::NoBackend => (3, 0x88),                  // Server unavailable
        Why::NoRoute | Why::TlsRequired => (5, 0x87), // Not authorized
    };
    match mqtt_level(said) {
        Some(3 | 4) => vec![0x20, 2, 0, return_code],
        Some(5) => {
            let words = why.words().as_bytes();
            let len = u8::try_from(words.len()).expect("less than a length of two bytes has");
            // One property: a Reason String, which is text with a length of two bytes.
            [&[0x20, len + 6, 0, reason, len + 3, 0x1f, 0, len], words].concat()
        }
        _ => Vec::new(),
    }
}

/// The level of the protocol in a CONNECT: behind the remaining length of up to four bytes, and the name.
fn mqtt_level(said: &[u8]) -> Option<u8> {
    let rest = said.strip_prefix(&[0x10])?;
    let end = rest.iter().take(4).position(|byte| *byte < 0x80)?;
    let rest = rest.get(end + 1..)?;
    let rest = rest.strip_prefix(b"\0\x04MQTT").or_else(|| rest.strip_prefix(b"\0\x06MQIsdp"))?;
    rest.first().copied()
}

/// AMQP 1.0 has words for one of the three: the header of TLS, in answer to one that is not (§5.2.1). Else a server that sends a
/// header and ends says that it speaks another version, which is wrong; 0-9-1 has nothing before its handshake (§4.2.2).
fn amqp(why: Why, said: &[u8]) -> Vec<u8> {
    match (why, said) {
        (Why::TlsRequired, [b'A', b'M', b'Q', b'P', 0 | 3, 1, 0, 0, ..]) => b"AMQP\x02\x01\0\0".to_vec(),
        (Why::NoBackend | Why::NoRoute | Why::TlsRequired, _) => Vec::new(),
    }
}

/// "Request rejected or failed" of SOCKS 4, "no acceptable methods" of 5 (RFC 1928 §3).
fn socks(said: &[u8]) -> Vec<u8> {
    match said.first() {
        Some(4) => vec![0, 0x5b, 0, 0, 0, 0, 0, 0],
        Some(5) => vec![5, 0xff],
        Some(_) | None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words that could be told from each other by whoever reads them.
    fn told(protocol: Protocol, said: &[u8]) -> Vec<Vec<u8>> {
        Why::ALL.into_iter().map(|why| refusal(protocol, why, said).into_owned()).collect()
    }

    #[test]
    fn text_is_of_one_line_and_says_why() {
        for protocol in
            [Protocol::Smtp, Protocol::Imap, Protocol::Pop3, Protocol::Sieve, Protocol::Ftp, Protocol::Redis]
        {
            for why in Why::ALL {
                let line = String::from_utf8(refusal(protocol, why, b"").into_owned()).unwrap();
                assert!(line.is_ascii() && line.contains(why.words()), "{line}");
                assert_eq!(line.find("\r\n"), Some(line.len() - 2), "{line}");
            }
        }
        assert_eq!(&*refusal(Protocol::Smtp, Why::TlsRequired, b""), b"421 4.7.0 TLS is required\r\n");
        assert_eq!(&*refusal(Protocol::Imap, Why::NoBackend, b""), b"* BYE no backend can be reached\r\n");
    }

    #[test]
    fn postgres_has_all_fields_and_no_more() {
        for (message, code) in told(Protocol::Postgres, b"").iter().zip(["57P03", "08004", "28000"]) {
            assert_eq!(message[0], b'E');
            assert_eq!(u32::from_be_bytes(message[1..5].try_into().unwrap()) as usize, message.len() - 1);
            let (fields, end) = message[5..].split_at(message.len() - 7);
            assert_eq!(end, [0, 0]);
            let fields: Vec<_> = std::str::from_utf8(fields).unwrap().split('\0').collect();
            assert_eq!(fields[..3], ["SFATAL", "VFATAL", &format!("C{code}")]);
            assert_eq!((fields.len(), &fields[3][..1]), (4, "M"));
        }
    }

    #[test]
    fn mysql_counts_packets() {
        let first = refusal(Protocol::Mysql, Why::NoBackend, b"");
        assert_eq!(&*first, b"\x1c\0\0\0\xff\x10\x04no backend can be reached");
        let third = refusal(Protocol::Mysql, Why::TlsRequired, b"\x20\0\0\x01\x85");
        assert_eq!(&*third, b"\x18\0\0\x02\xff\x57\x0c#HY000TLS is required");
        for packet in told(Protocol::Mysql, b"\x20\0\0\xff") {
            assert_eq!((usize::from(packet[0]), packet[3]), (packet.len() - 4, 0));
        }
    }

    #[test]
    fn ssh_packets_are_padded() {
        for (all, why) in told(Protocol::Ssh, b"").into_iter().zip(Why::ALL) {
            let packet = all.strip_prefix(b"SSH-2.0-Portcullis\r\n").unwrap();
            let (len, padding) =
                (u32::from_be_bytes(packet[..4].try_into().unwrap()) as usize, usize::from(packet[4]));
            assert_eq!((packet.len() % 8, packet.len()), (0, 4 + len));
            assert!(packet.len() >= 16 && (4..12).contains(&padding), "{padding}");
            let payload = &packet[5..packet.len() - padding];
            let text = why.words().as_bytes();
            assert_eq!(
                (payload[0], payload[5..9].to_vec()),
                (1, vec![0, 0, 0, u8::try_from(text.len()).unwrap()])
            );
            assert_eq!(payload[9..], [text, &[0; 4]].concat());
        }
    }

    #[test]
    fn mqtt_answers_in_the_version_asked_for() {
        let connect = |name: &[u8], level: u8| {
            [&[0x10, 0x8a, 0x01, 0, u8::try_from(name.len()).unwrap()], name, &[level]].concat()
        };
        let answer = |said: &[u8]| refusal(Protocol::Mqtt, Why::NoBackend, said).into_owned();
        assert_eq!(answer(&connect(b"MQIsdp", 3)), [0x20, 2, 0, 3]);
        assert_eq!(answer(&connect(b"MQTT", 4)), [0x20, 2, 0, 3]);
        assert_eq!(refusal(Protocol::Mqtt, Why::TlsRequired, &connect(b"MQTT", 4))[..], [0x20, 2, 0, 5]);
        let five = answer(&connect(b"MQTT", 5));
        assert_eq!(usize::from(five[1]), five.len() - 2);
        assert_eq!((usize::from(five[4]), usize::from(five[7])), (five.len() - 5, five.len() - 8));
        assert_eq!(
            (&five[2..4], &five[5..7], &five[8..]),
            (&[0, 0x88][..], &[0x1f, 0][..], &b"no backend can be reached"[..])
        );
        for none in
            [&b""[..], b"\x10", b"\x10\x8a\x8a\x8a\x8a\x01", b"\x10\x05\0\x04MQTT", &connect(b"MQTT", 6)]
        {
            assert_eq!(answer(none), b"", "{}", none.escape_ascii());
        }
    }

    #[test]
    fn others_are_told_where_there_is_a_word_for_it() {
        let to = |protocol, said: &[u8]| refusal(protocol, Why::TlsRequired, said).into_owned();
        assert_eq!(to(Protocol::Socks, b"\x04\x01"), [0, 0x5b, 0, 0, 0, 0, 0, 0]);
        assert_eq!(to(Protocol::Socks, b"\x05\x01\0"), [5, 0xff]);
        assert_eq!(to(Protocol::Amqp, b"AMQP\x03\x01\0\0"), b"AMQP\x02\x01\0\0");
        assert_eq!(to(Protocol::Amqp, b"AMQP\0\0\x09\x01"), b"");
        assert_eq!(told(Protocol::Amqp, b"AMQP\0\x01\0\0")[..2], [b"", b""]);
        assert_eq!(told(Protocol::Dns, b"\0\x1d\0\0"), [b"", b"", b""]);
    }

    #[test]
    fn a_stream_begins_before_it_ends() {
        let header = "<stream:stream xmlns='jabber:server' xmlns:stream='http://etherx.jabber.org/streams' \
            from='a.test' to='b.test' version='1.0'>";
        let end = "<stream:error><host-unknown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>\
            <text xmlns='urn:ietf:params:xml:ns:xmpp-streams' xml:lang='en'>not served here</text>\
            </stream:error></stream:stream>";
        let told = |said: &str| {
            String::from_utf8(refusal(Protocol::Xmpp, Why::NoRoute, said.as_bytes()).into_owned()).unwrap()
        };
        assert_eq!(told(""), end);
        let whole = told(header);
        let begins = whole.strip_suffix(end).unwrap();
        assert!(begins.starts_with("<?xml version='1.0'?><stream:stream xmlns='jabber:server'"), "{begins}");
        assert!(begins.ends_with(" from='b.test' to='a.test' version='1.0'>"), "{begins}");
    }
}
