//! What the first bytes of a connection are: sans-io detection of the protocol and, for TLS, the ClientHello.

mod amqp;
mod client_hello;
mod cursor;
mod detect;
mod dns;
mod extension;
mod http;
mod ja4;
mod ldap;
mod mail;
mod mqtt;
mod openvpn;
mod parameters;
mod pattern;
mod postgres;
mod protocol;
mod rdp;
mod redis;
#[cfg(test)]
mod samples;
mod server_hello;
mod server_name;
mod socks;
mod ssh;
mod xmpp;

pub use client_hello::{Alpn, Assembled, ClientHello, HelloError, HelloReader};
pub use detect::Detector;
pub use ja4::{Ja4, Ja4Error};
pub use parameters::{Group, Handshake, KeyExchange, TlsVersion};
pub use pattern::{Pattern, PatternError, PatternId, Patterns};
pub use protocol::Protocol;
pub use server_hello::Answer;
pub use server_name::{NameError, ServerName};

/// What a client of PostgreSQL asks for in clear (StartupMessage).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Startup {
    /// The database; without one it is that of the user's name.
    pub database: Box<str>,
    /// The user.
    pub user: Box<str>,
}

/// What a connection is, from its first bytes: all that routes may look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Preface {
    /// TLS, with its hello.
    Tls(Box<ClientHello>),
    /// PostgreSQL in clear, with what is asked for.
    Startup(Box<Startup>),
    /// Bytes of no known protocol that this pattern matches.
    Pattern(PatternId),
    /// Anything else, silence included.
    Other(Protocol),
}
