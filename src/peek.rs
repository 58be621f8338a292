//! What the first bytes of a connection are: sans-io detection of the protocol and, for TLS, the ClientHello.

mod client_hello;
mod cursor;
mod detect;
mod extension;
mod ja4;
mod server_name;

use std::fmt;

pub use client_hello::{Alpn, Assembled, ClientHello, HelloError, HelloReader};
pub use detect::Detector;
pub use ja4::{Ja4, Ja4Error};
pub use server_name::{NameError, ServerName};

/// What a connection is, from its first bytes: all that routes may look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Preface {
    /// TLS, with its hello.
    Tls(Box<ClientHello>),
    /// Anything else, silence included.
    Other(Protocol),
}

/// What a connection turned out to be from its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// A TLS ClientHello.
    Tls,
    /// An HTTP/1 request in clear, or the HTTP/2 preface (RFC 9113 §3.4).
    Http,
    /// An SSH identification string (RFC 4253 §4.2).
    Ssh,
    /// Bytes of some other protocol.
    Unknown,
    /// No byte at all within the listener's `silent_after`.
    Silent,
}

impl Protocol {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 5] = [Self::Tls, Self::Http, Self::Ssh, Self::Unknown, Self::Silent];

    /// The word for it in configuration, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Ssh => "ssh",
            Self::Unknown => "unknown",
            Self::Silent => "silent",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
