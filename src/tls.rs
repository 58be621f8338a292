//! TLS that ends here: certificates, handshakes with clients and with backends, and what comes out of both.

mod acceptor;
pub mod acme;
pub mod certs;
mod client_auth;
mod connector;
mod crew;
mod end;
mod handshake;
pub mod inspect;
mod metrics;
mod policy;
mod session;
mod stream;

pub use acceptor::{Acceptor, AcceptorError, Acceptors, Watching};
pub use client_auth::{ClientAuthError, Subject};
pub use connector::{Connector, Whom};
pub use crew::Crew;
pub use end::End;
pub use handshake::{Handshake, HandshakeError};
pub use metrics::HandshakeMetrics;
pub use stream::{Buffers, Negotiated, TlsStream};
