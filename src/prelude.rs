//! What is said in clear before TLS begins inside another protocol: STARTTLS and its like, sans-io.
//!
//! A [`Prelude`] is spoken with a client, as its server would, until the client begins TLS: no more is offered than that.
//! A [`Replay`] is then spoken with the backend that was chosen by the server name in the ClientHello, as a client would, until that
//! one is ready for the same ClientHello. The session after that is between the two; what the client said before TLS is
//! forgotten by both, as the RFCs of these protocols demand.
//!
//! Bytes that a peer sends together with its last word in clear are refused: it could not have known yet that TLS begins, so
//! they were put there by somebody who wants them to be taken for a part of the session (CVE-2011-0411). Clients of MySQL alone
//! begin TLS unasked: what they send with their last word must be the beginning of a ClientHello.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::peek::{Preface, Protocol, ServerName, Startup};

mod ftp;
mod imap;
mod ldap;
mod lines;
mod mysql;
mod pop3;
mod postgres;
mod refusal;
mod sieve;
mod smtp;
mod xml;
mod xmpp;

pub use mysql::MYSQL_VERSION;
pub use refusal::{Why, refusal};

/// How long a message in clear may be, in bytes.
pub const MAX_BYTES: usize = 8192;
/// How many messages a client may send in clear.
pub const MAX_MESSAGES: usize = 16;

/// What servers of a listener say of themselves before TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Greeting {
    /// The name of the server, as in the greeting of SMTP (RFC 5321 §4.3.1): a host name, which stands in lines and between quotes
    /// as it is.
    pub name: Box<str>,
    /// The version that a MySQL server claims to be, as [`MYSQL_VERSION`]: it must suit the backends, because clients choose
    /// collation and statements by it.
    pub mysql_version: Box<str>,
}

/// The part in clear of a client's connection, with this as its server.
#[derive(Debug)]
pub struct Prelude {
    protocol: Protocol,
    side: Side,
    /// How many messages were heard.
    heard: usize,
}

#[derive(Debug)]
enum Side {
    Postgres(postgres::Server),
    Mysql(mysql::Server),
    Smtp(smtp::Server),
    Imap(imap::Server),
    Pop3(pop3::Server),
    Sieve(sieve::Server),
    Ftp(ftp::Server),
    Ldap,
    Xmpp(xmpp::Server),
}

/// A message of a client.
#[derive(Debug, PartialEq, Eq)]
pub struct Heard {
    /// How many bytes it took.
    pub len: usize,
    /// What is said to it.
    pub reply: Vec<u8>,
    /// What becomes of the connection.
    pub then: Then,
}

/// What becomes of a connection after a message of its client.
#[derive(Debug, PartialEq, Eq)]
pub enum Then {
    /// More messages.
    GoOn,
    /// The client begins TLS with its next byte, which may be there already where no answer is awaited (MySQL).
    StartTls,
    /// It goes on in clear; the message is none of the prelude's, and is to be passed on.
    Clear(Box<Startup>),
    /// It wants a query of another connection cancelled; so does the message, which is to be passed on (PostgreSQL).
    Cancel,
    /// It is over: the client said so, or what it wants is refused in the reply.
    Close,
}

/// A client that says what it may not, or what is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PreludeError {
    /// Bytes that are no message of the protocol.
    #[error("no message of the protocol")]
    Syntax,
    /// More than [`MAX_BYTES`], or more than [`MAX_MESSAGES`].
    #[error("too much was said before TLS")]
    TooMuch,
    /// Bytes behind the message that asks for TLS, or that is answered before more may be sent.
    #[error("bytes behind the one message that must be the last before TLS")]
    Injection,
}

/// The part in clear of a connection to a backend, with this as its client.
#[derive(Debug)]
pub struct Replay {
    side: Player,
}

#[derive(Debug)]
enum Player {
    Postgres,
    Mysql(mysql::Request),
    Smtp(smtp::Client),
    Imap(imap::Client),
    Pop3(pop3::Client),
    Sieve(sieve::Client),
    Ftp(ftp::Client),
    Ldap,
    Xmpp(xmpp::Client),
}

/// A message of a backend.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    /// How many bytes it took.
    pub len: usize,
    /// What is said to it.
    pub reply: Vec<u8>,
    /// Whether the backend awaits a ClientHello now.
    pub ready: bool,
}

/// A backend that does not begin TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// It says that it does not speak TLS, or none with this client.
    #[error("the backend does not offer TLS in this protocol")]
    Refused,
    /// Bytes that are no message of the protocol.
    #[error("the backend does not speak the protocol")]
    Syntax,
    /// Bytes behind the message after which it must wait for the ClientHello.
    #[error("the backend said more than it may before TLS")]
    Injection,
}

impl Prelude {
    /// The prelude of `protocol`, if it has one.
    pub fn new(protocol: Protocol, greeting: &Greeting) -> Option<Self> {
        let name = &greeting.name;
        let side = match protocol {
            Protocol::Postgres => Side::Postgres(postgres::Server::default()),
            Protocol::Mysql => Side::Mysql(mysql::Server::new(&greeting.mysql_version, unique())),
            Protocol::Smtp => Side::Smtp(smtp::Server::new(name)),
            Protocol::Imap => Side::Imap(imap::Server::new(name)),
            Protocol::Pop3 => Side::Pop3(pop3::Server::new(name)),
            Protocol::Sieve => Side::Sieve(sieve::Server::new(name)),
            Protocol::Ftp => Side::Ftp(ftp::Server::new(name)),
            Protocol::Ldap => Side::Ldap,
            Protocol::Xmpp => Side::Xmpp(xmpp::Server::new(name)),
            _ => return None,
        };
        Some(Self { protocol, side, heard: 0 })
    }

    /// The prelude of PostgreSQL where clients are told that there is no TLS, and say what they want in clear.
    pub fn of_postgres_in_clear() -> Self {
        Self { protocol: Protocol::Postgres, side: Side::Postgres(postgres::Server::in_clear()), heard: 0 }
    }

    /// The protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// What is said first of all; empty where clients speak first.
    pub fn opening(&self) -> Vec<u8> {
        match &self.side {
            Side::Postgres(_) | Side::Ldap | Side::Xmpp(_) => Vec::new(),
            Side::Mysql(server) => server.opening(),
            Side::Smtp(server) => server.opening(),
            Side::Imap(server) => server.opening(),
            Side::Pop3(server) => server.opening(),
            Side::Sieve(server) => server.opening(),
            Side::Ftp(server) => server.opening(),
        }
    }

    /// Reads the first message of `bytes`, which are all that was received and not taken yet. `Ok(None)` means that more are needed.
    ///
    /// # Errors
    /// When it is none, or there are bytes behind it that may not be there.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<Option<Heard>, PreludeError> {
        let heard = match &mut self.side {
            Side::Postgres(server) => server.advance(bytes)?,
            Side::Mysql(server) => server.advance(bytes)?,
            Side::Smtp(server) => server.advance(bytes)?,
            Side::Imap(server) => server.advance(bytes)?,
            Side::Pop3(server) => server.advance(bytes)?,
            Side::Sieve(server) => server.advance(bytes)?,
            Side::Ftp(server) => server.advance(bytes)?,
            Side::Ldap => ldap::hear(bytes)?,
            Side::Xmpp(server) => server.advance(bytes)?,
        };
        let Some(heard) = heard.filter(|heard| heard.len <= MAX_BYTES) else {
            return if bytes.len() >= MAX_BYTES { Err(PreludeError::TooMuch) } else { Ok(None) };
        };
        self.heard += 1;
        if self.heard > MAX_MESSAGES {
            return Err(PreludeError::TooMuch);
        }
        if heard.then == Then::StartTls && self.side.awaits_answer() && bytes.len() > heard.len {
            return Err(PreludeError::Injection);
        }
        Ok(Some(heard))
    }

    /// The server that the client named in clear, where it did (XMPP).
    pub fn server_name(&self) -> Option<&ServerName> {
        match &self.side {
            Side::Xmpp(server) => server.server_name(),
            Side::Postgres(_)
            | Side::Mysql(_)
            | Side::Smtp(_)
            | Side::Imap(_)
            | Side::Pop3(_)
            | Side::Sieve(_)
            | Side::Ftp(_)
            | Side::Ldap => None,
        }
    }

    /// What a backend is played once the client has begun TLS.
    pub fn replay(&self) -> Replay {
        let side = match &self.side {
            Side::Postgres(_) => Player::Postgres,
            Side::Mysql(server) => Player::Mysql(server.request()),
            Side::Smtp(server) => Player::Smtp(server.replay()),
            Side::Imap(_) => Player::Imap(imap::Client::default()),
            Side::Pop3(_) => Player::Pop3(pop3::Client::default()),
            Side::Sieve(_) => Player::Sieve(sieve::Client::default()),
            Side::Ftp(_) => Player::Ftp(ftp::Client::default()),
            Side::Ldap => Player::Ldap,
            Side::Xmpp(server) => Player::Xmpp(server.replay()),
        };
        Replay { side }
    }
}

impl Side {
    /// Whether a client that asks for TLS must be answered before it may begin it.
    fn awaits_answer(&self) -> bool {
        match self {
            // Nothing is said to an SSLRequest, so the ClientHello may come with it.
            Self::Mysql(_) => false,
            Self::Postgres(_)
            | Self::Smtp(_)
            | Self::Imap(_)
            | Self::Pop3(_)
            | Self::Sieve(_)
            | Self::Ftp(_)
            | Self::Ldap
            | Self::Xmpp(_) => true,
        }
    }
}

/// What a connection is that begins with `bytes`: of a session of PostgreSQL in clear, with what it asks for.
pub fn in_clear(preface: Preface, bytes: &[u8]) -> Preface {
    match (&preface, Prelude::of_postgres_in_clear().advance(bytes)) {
        (Preface::Other(Protocol::Postgres), Ok(Some(Heard { then: Then::Clear(startup), .. }))) => {
            Preface::Startup(startup)
        }
        _ => preface,
    }
}

impl Replay {
    /// What is said first of all; empty where the backend speaks first.
    pub fn opening(&self) -> Vec<u8> {
        match &self.side {
            Player::Postgres => postgres::SSL_REQUEST.to_vec(),
            Player::Mysql(_)
            | Player::Smtp(_)
            | Player::Imap(_)
            | Player::Pop3(_)
            | Player::Sieve(_)
            | Player::Ftp(_) => Vec::new(),
            Player::Ldap => ldap::request(),
            Player::Xmpp(client) => client.opening(),
        }
    }

    /// Reads the first message of `bytes`, which are all that was received and not taken yet. `Ok(None)` means that more are needed.
    ///
    /// # Errors
    /// When the backend does not begin TLS.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<Option<Told>, ReplayError> {
        let told = match &mut self.side {
            Player::Postgres => postgres::told(bytes)?,
            Player::Mysql(request) => request.told(bytes)?,
            Player::Smtp(client) => client.advance(bytes)?,
            Player::Imap(client) => client.advance(bytes)?,
            Player::Pop3(client) => client.advance(bytes)?,
            Player::Sieve(client) => client.advance(bytes)?,
            Player::Ftp(client) => client.advance(bytes)?,
            Player::Ldap => ldap::told(bytes)?,
            Player::Xmpp(client) => client.advance(bytes)?,
        };
        match told.filter(|told| told.len <= MAX_BYTES) {
            Some(told) if told.ready && bytes.len() > told.len => Err(ReplayError::Injection),
            None if bytes.len() >= MAX_BYTES => Err(ReplayError::Syntax),
            told => Ok(told),
        }
    }
}

/// A number that no other connection has, and that nobody can tell beforehand: a count under a hash of a random key. No secret
/// hangs on it, since nobody authenticates by it before TLS.
fn unique() -> u64 {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    KEY.hash_one(COUNT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests;
