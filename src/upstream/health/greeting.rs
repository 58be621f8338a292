//! What servers of some protocols say first, or to one question: enough to tell that they serve.

use super::error::Excerpt;

/// Longest MySQL packet that can be a greeting: those of today have some hundred bytes.
const MYSQL_PACKET: usize = 4096;

/// How a server is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Greeting {
    /// What is said first.
    pub(super) say: &'static [u8],
    /// What a server of that protocol answers, for messages.
    pub(super) expected: &'static str,
    /// What it is that was heard so far.
    pub(super) hear: fn(&[u8]) -> Heard,
    /// What is said once the server was found well, in that many turns and after what it said since the last, so that it
    /// does not take the check for a client that failed; `None` when there is nothing more to say.
    pub(super) leave: fn(usize, &[u8]) -> Option<&'static [u8]>,
}

/// What the bytes so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Not enough to say.
    Part,
    /// A server that serves.
    Well,
    /// A server that says that it does not.
    Unwell(Excerpt),
    /// Something else.
    Strange,
}

/// An SSLRequest (PostgreSQL 17, 53.2.11 and 53.7), which is answered before any login, encrypted or not.
pub(super) const POSTGRES: Greeting = Greeting {
    say: &[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f],
    expected: "`S` or `N` of PostgreSQL",
    hear: postgres,
    leave: |_, _| None,
};

/// A HandshakeResponse41 of the user `portcullis` without a password, with the abilities LONG_PASSWORD, PROTOCOL_41,
/// SECURE_CONNECTION and PLUGIN_AUTH.
const MYSQL_LOGIN: &[u8] =
    b"\x42\0\0\x01\x01\x82\x08\0\0\0\0\x01\x21\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
                             portcullis\0\0mysql_native_password\0";

/// The server speaks first (MySQL Internals, Protocol::HandshakeV10).
pub(super) const MYSQL: Greeting =
    Greeting { say: b"", expected: "a greeting of MySQL", hear: mysql, leave: leave_mysql };

/// An inline command (Redis serialization protocol).
pub(super) const REDIS: Greeting =
    Greeting { say: b"PING\r\n", expected: "+PONG of Redis", hear: redis, leave: |_, _| None };

/// The server identifies itself (RFC 4253 §4.2).
pub(super) const SSH: Greeting =
    Greeting { say: b"", expected: "an identification of SSH", hear: ssh, leave: |_, _| None };

/// The server speaks first (RFC 5321 §3.1).
pub(super) const SMTP: Greeting =
    Greeting { say: b"", expected: "a greeting of SMTP", hear: smtp, leave: leave_smtp };

fn postgres(said: &[u8]) -> Heard {
    match said {
        [] => Heard::Part,
        [b'S' | b'N', ..] => Heard::Well,
        // An ErrorResponse (53.8): its length, then fields of a letter and a text that ends with a zero.
        [b'E', rest @ ..] => {
            let Some((length, fields)) = rest.split_first_chunk::<4>() else { return Heard::Part };
            let length = u32::from_be_bytes(*length) as usize;
            match length.checked_sub(4).map(|length| fields.get(..length)) {
                None => Heard::Strange,
                Some(None) => Heard::Part,
                Some(Some(fields)) => {
                    let mut fields = fields.split(|byte| *byte == 0);
                    let message = fields.find_map(|field| field.strip_prefix(b"M"));
                    Heard::Unwell(Excerpt::of(message.unwrap_or_default()))
                }
            }
        }
        _ => Heard::Strange,
    }
}

fn mysql(said: &[u8]) -> Heard {
    let Some(([low, middle, high, number], payload)) = said.split_first_chunk::<4>() else {
        return Heard::Part;
    };
    let length = u32::from_le_bytes([*low, *middle, *high, 0]) as usize;
    if *number != 0 || !(1..=MYSQL_PACKET).contains(&length) {
        return Heard::Strange;
    }
    // 10 is the version of the protocol, 255 an error.
    match (payload.first(), payload.get(..length)) {
        (None, _) | (Some(10 | 255), None) => Heard::Part,
        (Some(10), Some(_)) => Heard::Well,
        // A code of two bytes, and a text.
        (Some(255), Some(error)) => Heard::Unwell(Excerpt::of(error.get(3..).unwrap_or_default())),
        (Some(_), _) => Heard::Strange,
    }
}

/// A login that fails. A server counts connections that end after its greeting, and after 100 of them in a row
/// (`max_connect_errors`) it refuses their host, and with it every client of this proxy; those that are denied it does not
/// count.
fn leave_mysql(turn: usize, said: &[u8]) -> Option<&'static [u8]> {
    // To ask for another way to log in, or for more, would be answered by nothing.
    let asks = matches!(said.get(4), Some(0xfe | 1));
    match turn {
        0 => Some(MYSQL_LOGIN),
        1 if asks => Some(b"\0\0\0\x03"),
        2 if asks => Some(b"\0\0\0\x05"),
        _ => None,
    }
}

fn leave_smtp(turn: usize, _said: &[u8]) -> Option<&'static [u8]> {
    (turn == 0).then_some(b"QUIT\r\n")
}

fn redis(said: &[u8]) -> Heard {
    match (said.first(), line(said)) {
        (None | Some(b'+' | b'-'), None) => Heard::Part,
        (_, Some(b"+PONG")) => Heard::Well,
        // It serves those who log in, or may do other things.
        (_, Some(line)) if line.starts_with(b"-NOAUTH") || line.starts_with(b"-NOPERM") => Heard::Well,
        (_, Some(line @ [b'-', ..])) => Heard::Unwell(Excerpt::of(line)),
        _ => Heard::Strange,
    }
}

fn ssh(said: &[u8]) -> Heard {
    let mut rest = said;
    while let Some(line) = line(rest) {
        if line.starts_with(b"SSH-") {
            // 1.99 is 2.0 of a server that could speak the older one, too (§5.1).
            let known = line.starts_with(b"SSH-2.0-") || line.starts_with(b"SSH-1.99-");
            return if known { Heard::Well } else { Heard::Strange };
        }
        // Lines may come before it.
        rest = after_line(rest);
    }
    Heard::Part
}

fn smtp(said: &[u8]) -> Heard {
    let mut rest = said;
    while let Some(line) = line(rest) {
        match line {
            [b'2', b'2', b'0'] | [b'2', b'2', b'0', b' ', ..] => return Heard::Well,
            [b'2', b'2', b'0', b'-', ..] => rest = after_line(rest),
            [b'4' | b'5', second, third, ..] if second.is_ascii_digit() && third.is_ascii_digit() => {
                return Heard::Unwell(Excerpt::of(line));
            }
            _ => return Heard::Strange,
        }
    }
    Heard::Part
}

/// The first line, without its end.
fn line(said: &[u8]) -> Option<&[u8]> {
    let end = said.iter().position(|byte| *byte == b'\n')?;
    let line = said.get(..end)?;
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}

/// What follows the first line.
fn after_line(said: &[u8]) -> &[u8] {
    let end = said.iter().position(|byte| *byte == b'\n');
    end.and_then(|end| said.get(end + 1..)).unwrap_or_default()
}
