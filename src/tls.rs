//! TLS that ends here: certificates, handshakes with clients and with backends, and what comes out of both.

pub mod certs;
pub mod inspect;
