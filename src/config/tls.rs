//! TLS that ends here: by which certificates, and by which rules.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

use super::{NamePattern, PassthroughConfig};

/// What a route does that ends TLS and passes on what comes out of it.
#[derive(Clone, Debug)]
pub struct TerminateConfig {
    /// How TLS is ended.
    pub tls: Arc<TlsPolicy>,
    /// Where what comes out goes.
    pub to: PassthroughConfig,
}

/// By which certificates and rules TLS is ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsPolicy {
    /// Where certificates are from.
    pub certificates: CertificateStore,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// The cipher suites, in order of preference; never empty.
    pub suites: Vec<CipherSuite>,
    /// The groups of key exchange, in order of preference; never empty.
    pub groups: Vec<Group>,
    /// The protocols that clients may choose from by ALPN, in order of preference; empty: ALPN is not answered.
    pub alpn: Vec<Box<[u8]>>,
    /// Whether clients may come back to a session without another key exchange of certificates.
    pub resumption: bool,
    /// What clients must show.
    pub client_auth: Option<ClientAuth>,
}

/// Where certificates are from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateStore {
    /// From these files and folders.
    Files(Arc<[CertificateSource]>),
    /// Made here, by an authority of this process's own; that is kept in this folder, or is another one at each start.
    SelfSigned(Option<PathBuf>),
    /// Ordered from an authority, and kept in this folder.
    Acme(PathBuf),
}

/// Files with certificates.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CertificateSource {
    /// A PEM file with a certificate, its intermediates, and its key unless that lies beside it; or a folder of such
    /// files and of folders of them.
    ///
    /// In a folder, what ends in `.pem`, `.crt` or `.cer` counts, in it and one level below it; hidden files and
    /// folders do not. The key of `NAME.pem` is in `NAME.key`, `NAME-key.pem`, `NAME.key.pem` or `NAME.pem.key`; that of
    /// `fullchain.pem` and `cert.pem` also in `privkey.pem` or `key.pem`, or in the only file beside it that is named as
    /// a key.
    Path(PathBuf),
    /// A certificate with its intermediates, and its key.
    Pair {
        /// The PEM file of the certificate.
        certificate: PathBuf,
        /// The PEM file of its key.
        key: PathBuf,
    },
}

/// What clients must show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuth {
    /// Whether they must.
    pub mode: ClientAuthMode,
    /// The authorities that sign certificates of clients; never empty.
    pub authorities: Arc<[CertificateDer<'static>]>,
    /// The lists of certificates that were taken back.
    pub revoked: Arc<[CertificateRevocationListDer<'static>]>,
    /// Names of which the certificate must have one (`dNSName`, or the e-mail address or URI as it is written); `None`: any will do.
    pub names: Option<Vec<NamePattern>>,
    /// Common names of which the certificate must have one; `None`: any will do.
    pub common_names: Option<Vec<Box<str>>>,
}

/// Whether clients must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuthMode {
    /// They must.
    Required,
    /// They may; what they show must be good.
    Optional,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2, RFC 5246.
    V12,
    /// 1.3, RFC 8446.
    V13,
}

macro_rules! names {
    ($(#[doc = $doc:literal])* enum $name:ident { $( $(#[doc = $variant_doc:literal])* $variant:ident = $text:literal, )* }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $( $(#[doc = $variant_doc])* $variant, )* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )* ];

            /// Its name, of IANA's registry.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $text, )* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

names! {
    /// A cipher suite.
    enum CipherSuite {
        /// TLS 1.3.
        Aes128Gcm = "TLS_AES_128_GCM_SHA256",
        /// TLS 1.3.
        Aes256Gcm = "TLS_AES_256_GCM_SHA384",
        /// TLS 1.3.
        Chacha20 = "TLS_CHACHA20_POLY1305_SHA256",
        /// TLS 1.2.
        EcdheEcdsaAes128Gcm = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        /// TLS 1.2.
        EcdheRsaAes128Gcm = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        /// TLS 1.2.
        EcdheEcdsaAes256Gcm = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        /// TLS 1.2.
        EcdheRsaAes256Gcm = "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        /// TLS 1.2.
        EcdheEcdsaChacha20 = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        /// TLS 1.2.
        EcdheRsaChacha20 = "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    }
}

names! {
    /// A group of key exchange.
    enum Group {
        /// Post-quantum and classic (RFC 9881's KEM with X25519).
        X25519Mlkem768 = "X25519MLKEM768",
        /// RFC 7748.
        X25519 = "x25519",
        /// P-256.
        Secp256r1 = "secp256r1",
        /// P-384.
        Secp384r1 = "secp384r1",
        /// Post-quantum and P-256.
        Secp256r1Mlkem768 = "SecP256r1MLKEM768",
        /// Post-quantum alone.
        Mlkem768 = "MLKEM768",
    }
}

impl CipherSuite {
    /// The version that it is of.
    pub const fn version(self) -> TlsVersion {
        match self {
            Self::Aes128Gcm | Self::Aes256Gcm | Self::Chacha20 => TlsVersion::V13,
            Self::EcdheEcdsaAes128Gcm
            | Self::EcdheRsaAes128Gcm
            | Self::EcdheEcdsaAes256Gcm
            | Self::EcdheRsaAes256Gcm
            | Self::EcdheEcdsaChacha20
            | Self::EcdheRsaChacha20 => TlsVersion::V12,
        }
    }
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V12 => "1.2",
            Self::V13 => "1.3",
        })
    }
}

impl fmt::Display for CertificateSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Pair { certificate, .. } => certificate.display().fmt(f),
        }
    }
}
