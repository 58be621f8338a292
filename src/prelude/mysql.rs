//! MySQL and MariaDB, whose servers speak first: a greeting of our own, and the SSLRequest behind which TLS begins (MySQL's source
//! documentation, "Connection Phase Packets"; MariaDB's "Connection").
//!
//! A client computes its first proof of the password from the nonce of the greeting, which is ours and no backend's. So the
//! greeting offers a plugin for which that does not matter: a backend whose account has another one asks again with its own nonce
//! (AuthSwitchRequest), and one whose account has the same asks for the password itself, inside TLS ("Caching SHA-2 information").

use super::{Heard, MAX_BYTES, PreludeError, ReplayError, Then, Told, Why, refusal};
use crate::peek::Protocol;

/// What a greeting says of the server's version where the configuration says nothing: clients choose the collation and the first
/// statements by it, and with this one they choose what MariaDB and MySQL both know, but for MySQL's own driver for Java.
pub const MYSQL_VERSION: &str = "5.5.5-10.11.0-MariaDB";

/// The plugin that is offered. With `mysql_native_password` the accounts that have it could not log in: their backends would hold
/// the client's first proof against their own nonce, and not ask again.
const PLUGIN: &[u8] = b"caching_sha2_password";
/// The longest version that fits the field of clients (`SERVER_VERSION_LENGTH`).
const MAX_VERSION: usize = 60;
/// `utf8mb4_general_ci`, which all versions know from 5.5.3 on.
const COLLATION: u8 = 45;
/// Autocommit, as all servers have it by default.
const STATUS: u16 = 2;

const COMPRESS: u32 = 1 << 5;
const PROTOCOL_41: u32 = 1 << 9;
const SSL: u32 = 1 << 11;
const MULTI_FACTOR: u32 = 1 << 28;
const REMEMBER_OPTIONS: u32 = 1 << 31;
/// What MySQL 9.7 and MariaDB 10.11 and 11.8 have in common: bits 0 to 24, without compression, and with two more.
///
/// Bit 0 tells MariaDB's clients to use none of its extensions, some of which change how rows are sent. Compression can be
/// switched off in a backend, which then refuses whoever was promised it. Query attributes (bit 27) and result sets without
/// metadata (bit 25) are MySQL's alone. The factors of an account are asked for by the server, so MariaDB never does it.
const OFFERED: u32 = (0x01ff_ffff & !COMPRESS) | MULTI_FACTOR | REMEMBER_OPTIONS;

/// Length and number of a packet.
const HEADER: usize = 4;
/// A packet with capabilities, the largest packet, the collation and 23 bytes of filler, which is all of an SSLRequest and the
/// beginning of a login.
const SSL_REQUEST: usize = HEADER + 32;

/// A server that waits for an SSLRequest.
#[derive(Debug)]
pub(super) struct Server {
    greeting: Vec<u8>,
    request: Request,
}

/// An SSLRequest, of what was offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request([u8; SSL_REQUEST]);

impl Server {
    /// A server that claims to be of this version; its connection id and nonce follow from `seed`.
    pub(super) fn new(version: &str, seed: u64) -> Self {
        Self { greeting: greeting(version, seed), request: Request::new(OFFERED, 0, COLLATION) }
    }

    pub(super) fn opening(&self) -> Vec<u8> {
        self.greeting.clone()
    }

    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Option<Heard>, PreludeError> {
        let Some([a, b, c, number]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let len = HEADER + length([*a, *b, *c]);
        if *number != 1 || !(SSL_REQUEST..=MAX_BYTES).contains(&len) {
            return Err(PreludeError::Syntax);
        }
        let Some([_, _, _, _, a, b, c, d, e, f, g, h, collation]) = bytes.first_chunk() else {
            return Ok(None);
        };
        let flags = u32::from_le_bytes([*a, *b, *c, *d]);
        if flags & PROTOCOL_41 == 0 || (flags & SSL != 0 && len != SSL_REQUEST) {
            return Err(PreludeError::Syntax);
        }
        if bytes.len() < len {
            return Ok(None);
        }
        if flags & SSL == 0 {
            let reply = refusal(Protocol::Mysql, Why::TlsRequired, bytes).into_owned();
            return Ok(Some(Heard { len, reply, then: Then::Close }));
        }
        self.request = Request::new(flags, u32::from_le_bytes([*e, *f, *g, *h]), *collation);
        Ok(Some(Heard { len, reply: Vec::new(), then: Then::StartTls }))
    }

    /// What the client asked for.
    pub(super) fn request(&self) -> Request {
        self.request.clone()
    }
}

impl Request {
    /// Without what was not offered: some clients ask for all that they know, whatever the greeting says, and then behave as the
    /// greeting said. A backend goes by this packet, and not by the same fields of the login inside TLS. MariaDB's extensions,
    /// which are none of the offer, are asked for in the filler.
    fn new(flags: u32, largest: u32, collation: u8) -> Self {
        let mut packet = Vec::with_capacity(SSL_REQUEST);
        packet.extend_from_slice(&((flags & OFFERED) | SSL).to_le_bytes());
        packet.extend_from_slice(&largest.to_le_bytes());
        packet.push(collation);
        packet.resize(SSL_REQUEST - HEADER, 0);
        let mut request = [0; SSL_REQUEST];
        for (to, from) in request.iter_mut().zip(numbered(1, &packet)) {
            *to = from;
        }
        Self(request)
    }

    /// What is said to a server that has greeted; it says nothing before the ClientHello.
    pub(super) fn told(&self, bytes: &[u8]) -> Result<Option<Told>, ReplayError> {
        let Some([a, b, c, number]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let len = HEADER + length([*a, *b, *c]);
        if *number != 0 || !(HEADER + 1..=MAX_BYTES).contains(&len) {
            return Err(ReplayError::Syntax);
        }
        match (bytes.get(HEADER), bytes.get(HEADER..len)) {
            // The host may be blocked, or there are too many connections.
            (Some(0xff), _) => Err(ReplayError::Refused),
            (Some(10) | None, None) => Ok(None),
            (Some(10), Some(greeting)) => match offers_tls(greeting) {
                Some(true) => Ok(Some(Told { len, reply: self.0.to_vec(), ready: true })),
                Some(false) => Err(ReplayError::Refused),
                None => Err(ReplayError::Syntax),
            },
            _ => Err(ReplayError::Syntax),
        }
    }
}

/// `Protocol::HandshakeV10`.
fn greeting(version: &str, seed: u64) -> Vec<u8> {
    let nonce = nonce(seed);
    let (first, second) = nonce.split_at(8);
    let [low_a, low_b, high_a, high_b] = (OFFERED | SSL).to_le_bytes();
    let [status_a, status_b] = STATUS.to_le_bytes();
    let mut packet = vec![10];
    packet.extend(version.bytes().take_while(|byte| *byte != 0).take(MAX_VERSION));
    packet.push(0);
    packet.extend_from_slice(&connection_id(seed).to_le_bytes());
    packet.extend_from_slice(first);
    packet.extend_from_slice(&[0, low_a, low_b, COLLATION, status_a, status_b, high_a, high_b]);
    // Both parts of the nonce and the zero behind them; then 10 bytes, the last 4 of which are MariaDB's extensions.
    packet.push(21);
    packet.extend_from_slice(&[0; 10]);
    packet.extend_from_slice(second);
    packet.push(0);
    packet.extend_from_slice(PLUGIN);
    packet.push(0);
    numbered(0, &packet)
}

/// One that no server reaches by counting from 1: a client that has its own query killed kills nobody else's by it.
fn connection_id(seed: u64) -> u32 {
    let [a, b, c, d, ..] = seed.to_le_bytes();
    u32::from_le_bytes([a, b, c, d]) | 1 << 31
}

/// 20 printable bytes, as servers send them. No backend takes a proof made from them, so they need not be hard to guess.
fn nonce(seed: u64) -> [u8; 20] {
    let mut state = seed;
    std::array::from_fn(|_| {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let [.., byte] = (mixed ^ (mixed >> 31)).to_le_bytes();
        b'!' + byte % 94
    })
}

/// Whether a greeting says so; `None` when it is none.
fn offers_tls(greeting: &[u8]) -> Option<bool> {
    let version = greeting.iter().position(|byte| *byte == 0)?;
    // Behind the version: connection id, first part of the nonce, a zero, and the lower half of the capabilities.
    let fields = greeting.get(version + 1..)?;
    let low = fields.get(4 + 8 + 1..)?.first_chunk::<2>()?;
    Some(u32::from(u16::from_le_bytes(*low)) & SSL != 0)
}

fn length([a, b, c]: [u8; 3]) -> usize {
    u32::from_le_bytes([a, b, c, 0]) as usize
}

/// A packet of less than 16 MiB.
fn numbered(number: u8, packet: &[u8]) -> Vec<u8> {
    let [a, b, c, ..] = packet.len().to_le_bytes();
    [&[a, b, c, number], packet].concat()
}

#[cfg(test)]
mod tests;
