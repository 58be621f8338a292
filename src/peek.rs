//! What the first bytes of a connection are: sans-io detection of the protocol and, for TLS, the ClientHello.

mod client_hello;
mod cursor;
mod detect;
mod extension;
mod ja4;
mod protocol;
mod server_name;

pub use client_hello::{Alpn, Assembled, ClientHello, HelloError, HelloReader};
pub use detect::Detector;
pub use ja4::{Ja4, Ja4Error};
pub use protocol::Protocol;
pub use server_name::{NameError, ServerName};

/// What a connection is, from its first bytes: all that routes may look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Preface {
    /// TLS, with its hello.
    Tls(Box<ClientHello>),
    /// Anything else, silence included.
    Other(Protocol),
}
