//! TLS with backends: whom they must be, and what they are shown.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::sign::CertifiedKey;

use super::{TlsVersion, Verify};
use crate::peek::ServerName;

/// How TLS is spoken with the backends of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendTls {
    /// Against what their certificates are verified.
    pub verify: Verify,
    /// The name that is asked for and that certificates must have; `None`: the backend's, else the one that the client has
    /// asked for, else the backend's address.
    pub sni: Option<ServerName>,
    /// What they are shown when they ask for a certificate.
    pub certificate: Option<ClientCertificate>,
    /// The SHA-256 of public keys of which certificates must have one, be they verified or not; empty: any will do.
    pub pins: Vec<[u8; 32]>,
    /// The protocols inside that are offered; `None`: the one that was agreed on with the client, if any was.
    pub alpn: Option<Vec<Box<[u8]>>>,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
}

/// A certificate of this proxy as a client.
#[derive(Clone)]
pub struct ClientCertificate {
    /// The file of the certificate.
    pub certificate: Arc<Path>,
    /// The file of its key.
    pub key: Arc<Path>,
    /// What was read of both.
    pub certified: Arc<CertifiedKey>,
}

/// The key is the one that belongs to the certificate: there is no other.
impl PartialEq for ClientCertificate {
    fn eq(&self, other: &Self) -> bool {
        self.certificate == other.certificate
            && self.key == other.key
            && self.certified.cert == other.certified.cert
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificate").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl BackendTls {
    /// The files that it is read from.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let own = self.certificate.iter().flat_map(|own| [&*own.certificate, &*own.key]);
        own.chain(self.verify.file())
    }
}
