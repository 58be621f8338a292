//! What can be wrong with a certificate, in words that say what to do.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem;
use x509_parser::error::X509Error;

use super::pem::MAX_FILE;
use crate::peek::NameError;

/// What is wrong with a file that a certificate comes from. Those that [are warnings](Self::is_warning) do not keep the
/// certificate from being served.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The file, or the folder, could not be read.
    #[error("cannot read `{}`", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// It is no PEM, or what is in it is not what should be.
    #[error("`{}` {reason}", path.display())]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What was found instead.
        #[source]
        reason: PemError,
    },
    /// There is a certificate and no key to it.
    #[error(
        "no private key for `{}`: write it into the same file, or beside it as `{stem}.key` or `{stem}-key.pem`",
        path.display()
    )]
    NoKey {
        /// The file of the certificate.
        path: PathBuf,
        /// Its name without extension.
        stem: String,
    },
    /// The first certificate of the file cannot be parsed.
    #[error("the certificate in `{}` cannot be parsed: is the file damaged?", path.display())]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// Where parsing ended.
        #[source]
        source: X509Error,
    },
    /// The certificate's key is of a kind that no handshake here can use.
    #[error(
        "the certificate in `{}` has a key of the kind {oid}: RSA, ECDSA over P-256, P-384 or P-521, and Ed25519 can be \
         used",
        path.display()
    )]
    UnknownKey {
        /// Which file.
        path: PathBuf,
        /// The object identifier of the algorithm, or of the curve.
        oid: String,
    },
    /// The private key is damaged, or too small to be used.
    #[error("the private key in `{}` cannot be used", path.display())]
    BadKey {
        /// The file of the key.
        path: PathBuf,
        /// What the library says.
        #[source]
        source: rustls::Error,
    },
    /// The private key belongs to another certificate.
    #[error("the private key in `{}` is not that of the certificate in `{}`", key.display(), path.display())]
    Mismatch {
        /// The file of the certificate.
        path: PathBuf,
        /// The file of the key.
        key: PathBuf,
    },
    /// The private key is that of a later certificate in the file.
    #[error(
        "`{}` begins with another certificate than the private key's, which is number {position}: put that one first",
        path.display()
    )]
    NotFirst {
        /// Which file.
        path: PathBuf,
        /// Where the certificate is, from 1.
        position: usize,
    },
    /// The certificate has no DNS name that a client could ask for.
    #[error(
        "the certificate in `{}` has no DNS name in its subjectAltName (its common name counts for nothing, RFC 9525 §2)",
        path.display()
    )]
    NoName {
        /// Which file.
        path: PathBuf,
    },
    /// One of the certificate's names cannot be asked for; the others are served.
    #[error("the certificate in `{}` has the name `{name}`, which is no DNS name and left out", path.display())]
    BadName {
        /// Which file.
        path: PathBuf,
        /// The name, made printable.
        name: String,
        /// What is wrong with it.
        #[source]
        source: NameError,
    },
    /// All users of this machine can read the private key.
    #[error("everybody on this machine can read the private key in `{0}` (mode {mode:03o}): `chmod o= {0}`", path.display())]
    Exposed {
        /// The file of the key.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

/// Why a file is not the PEM that it should be.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// A block does not end, or is not base64.
    #[error("is damaged or cut off: each block goes from a line `-----BEGIN …` to a line `-----END …`")]
    Damaged(#[source] pem::Error),
    /// It is DER.
    #[error("is DER and not PEM: `openssl x509 -inform der` or `openssl pkey -inform der` makes PEM of it")]
    Der,
    /// There is a key, and no certificate.
    #[error("holds a private key and no certificate: name it `NAME.key` or `NAME-key.pem` beside `NAME.pem`")]
    OnlyKey,
    /// No block is a certificate.
    #[error(
        "holds no certificate: write the server's first, as `-----BEGIN CERTIFICATE-----`, then the intermediates"
    )]
    NoCertificate,
    /// No block is a key.
    #[error("holds no private key: write it as `-----BEGIN PRIVATE KEY-----`, without passphrase")]
    NoKey,
    /// The key can only be read with a passphrase.
    #[error("holds a private key with a passphrase: `openssl pkey -in … -out …` writes it without one")]
    Passphrase,
    /// It is a device, a pipe, a socket, or a folder where a file should be.
    #[error("is not a file")]
    NoFile,
    /// It is larger than any certificate.
    #[error("is larger than {} KiB, which no certificate is", MAX_FILE / 1024)]
    TooLarge,
}

impl CertificateError {
    /// Whether the certificate is served all the same.
    pub fn is_warning(&self) -> bool {
        match self {
            Self::BadName { .. } | Self::Exposed { .. } => true,
            Self::Unreadable { .. }
            | Self::Pem { .. }
            | Self::NoKey { .. }
            | Self::Certificate { .. }
            | Self::UnknownKey { .. }
            | Self::BadKey { .. }
            | Self::Mismatch { .. }
            | Self::NotFirst { .. }
            | Self::NoName { .. } => false,
        }
    }

    /// The file or folder that it is about.
    pub fn path(&self) -> &Path {
        match self {
            Self::Unreadable { path, .. }
            | Self::Pem { path, .. }
            | Self::NoKey { path, .. }
            | Self::Certificate { path, .. }
            | Self::UnknownKey { path, .. }
            | Self::BadKey { path, .. }
            | Self::Mismatch { path, .. }
            | Self::NotFirst { path, .. }
            | Self::NoName { path }
            | Self::BadName { path, .. }
            | Self::Exposed { path, .. } => path,
        }
    }

    /// The error and what caused it, in one line.
    pub fn told(&self) -> String {
        let mut told = self.to_string();
        // The reason of PEM trouble is in its sentence.
        let mut cause = match self {
            Self::Pem { reason, .. } => reason.source(),
            other => other.source(),
        };
        while let Some(error) = cause {
            told.push_str(": ");
            told.push_str(&error.to_string());
            cause = error.source();
        }
        told
    }

    pub(super) fn pem(path: &Path, reason: PemError) -> Self {
        Self::Pem { path: path.to_owned(), reason }
    }

    /// Whether it says nothing about what is in the file, and the file need not change for it to pass.
    pub(super) fn is_unread(&self) -> bool {
        matches!(self, Self::Unreadable { .. })
    }
}
