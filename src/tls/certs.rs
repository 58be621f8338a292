//! The certificates that TLS ends with here: which there are, whose they are, and what replaces them while handshakes
//! go on.
//!
//! [`Certificates`] is what a server has: a [`Store`] that is replaced as a whole when files have changed. A certificate
//! is known by the file that it comes from; what was good in a file stays until the file has another good one, or is
//! gone. Keys are compared with their certificates when they are read; what signs is made by the first handshake that
//! wants it, so that 10,000 certificates cost the memory of their files.

mod certificate;
mod error;
mod folder;
mod key;
mod live;
mod load;
mod pem;
mod report;
pub mod self_signed;
mod store;
#[cfg(test)]
mod tests;

pub use certificate::Certificate;
pub use error::{CertificateError, PemError};
pub use folder::Source;
pub use key::KeyKind;
pub use live::{Certificates, Refreshed};
pub use store::{Candidates, Chosen, Store};
