//! One certificate with its chain and its key.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tracing::error;
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use super::error::{CertificateError, PemError};
use super::folder::Found;
use super::key::{self, KeyKind, Match};
use super::pem;
use crate::peek::{NameError, ServerName};

/// A name that a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Name {
    Exact(Arc<str>),
    /// What follows `*.`, which stands for one label (RFC 9525 §6.3).
    Wildcard(Arc<str>),
}

/// A certificate, its intermediates and its key, as they are in a file. What signs is made from the key by the first
/// handshake that wants it.
pub struct Certificate {
    file: Box<Path>,
    leaf: Box<[u8]>,
    /// Shared with all certificates of the same issuer.
    chain: Box<[Arc<[u8]>]>,
    key: PrivateKeyDer<'static>,
    names: Box<[Name]>,
    kind: KeyKind,
    /// In seconds of Unix time, both inclusive.
    valid: (i64, i64),
    /// `None` once it has turned out that none can be made.
    signing: OnceLock<Option<Arc<CertifiedKey>>>,
}

/// Intermediates by their content.
#[derive(Debug, Default)]
pub(super) struct Issuers(Mutex<HashSet<Arc<[u8]>>>);

/// What a file came to.
pub(super) enum Outcome {
    /// A certificate, and what is to be warned of.
    Good(Box<Certificate>, Vec<CertificateError>),
    /// Nothing that a server has a use for: certificates of issuers, in a folder.
    Nothing,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.names.iter().map(ToString::to_string).collect::<Vec<_>>();
        f.debug_struct("Certificate")
            .field("file", &self.file)
            .field("names", &names)
            .field("kind", &self.kind)
            .field("valid", &self.valid)
            .finish_non_exhaustive()
    }
}

impl Certificate {
    /// Reads a certificate and its key. Keys are compared by what identifies them alone if `quick`.
    pub(super) fn read(found: &Found, issuers: &Issuers, quick: bool) -> Result<Outcome, CertificateError> {
        let path = found.id.certificate.as_path();
        let own = pem::read(path)?;
        if own.certificates.is_empty() {
            let reason = if own.key.is_some() { PemError::OnlyKey } else { PemError::NoCertificate };
            return Err(CertificateError::pem(path, reason));
        }
        let apart = found.key.as_deref().filter(|_| found.id.pair.is_some() || own.key.is_none());
        let (file, key, mode) = match apart {
            Some(file) => {
                let contents = pem::read(file)?;
                (file, contents.key, contents.mode)
            }
            None => (path, own.key, own.mode),
        };
        let mut certificates = own.certificates.into_iter();
        let leaf = certificates.next().unwrap_or_default();
        let (_, parsed) = parse_x509_certificate(&leaf).map_err(|error| {
            let source = match error {
                x509_parser::nom::Err::Error(source) | x509_parser::nom::Err::Failure(source) => source,
                x509_parser::nom::Err::Incomplete(_) => X509Error::InvalidCertificate,
            };
            CertificateError::Certificate { path: path.to_owned(), source }
        })?;
        let (names, bad) = names(&parsed);
        if !found.named && parsed.is_ca() && (key.is_none() || (names.is_empty() && bad.is_empty())) {
            return Ok(Outcome::Nothing);
        }
        let key = match (key, apart) {
            (Some(key), _) => key,
            (None, Some(file)) => return Err(CertificateError::pem(file, PemError::NoKey)),
            (None, None) => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                return Err(CertificateError::NoKey { path: path.to_owned(), stem });
            }
        };
        let rest = certificates.collect::<Vec<_>>();
        let kind = check_key(path, file, &parsed, &key, &rest, quick)?;
        if names.is_empty() {
            return Err(CertificateError::NoName { path: path.to_owned() });
        }
        let bad = bad.into_iter();
        let bad = bad.map(|(name, source)| CertificateError::BadName { path: path.to_owned(), name, source });
        // Those of a group, such as `ssl-cert`, may read it.
        let exposed = (mode & 0o007 != 0).then(|| CertificateError::Exposed { path: file.to_owned(), mode });
        let warnings = bad.chain(exposed).collect();
        let valid = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        let chain = rest.into_iter().map(|der| issuers.share(der)).collect();
        let (file, leaf, signing) = (path.into(), leaf.into_boxed_slice(), OnceLock::new());
        Ok(Outcome::Good(Box::new(Self { file, leaf, chain, key, names, kind, valid, signing }), warnings))
    }

    /// Its first name, by which it is known to an operator.
    pub fn label(&self) -> String {
        self.names.first().map(ToString::to_string).unwrap_or_default()
    }

    /// The file that it was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The names that it is for, lower-cased; `*.` at the beginning of one stands for one label.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.names.iter().map(ToString::to_string)
    }

    /// The kind of its key.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// From when it is valid, in seconds of Unix time.
    pub fn not_before(&self) -> i64 {
        self.valid.0
    }

    /// Until when it is valid, in seconds of Unix time.
    pub fn not_after(&self) -> i64 {
        self.valid.1
    }

    /// Whether it is valid at `now`, in seconds of Unix time.
    pub fn is_valid(&self, now: i64) -> bool {
        (self.valid.0..=self.valid.1).contains(&now)
    }

    /// What signs with its key. The first call makes it, which takes 30 µs for P-256, 0.3 ms for RSA of 2048 bits and
    /// 1 ms for 4096. `None` when the key turns out to be damaged.
    pub fn signing(&self) -> Option<Arc<CertifiedKey>> {
        let make = || match any_supported_type(&self.key) {
            Ok(key) => {
                let chain = std::iter::once(&*self.leaf).chain(self.chain.iter().map(|der| &**der));
                let chain = chain.map(|der| CertificateDer::from(der.to_vec())).collect();
                Some(Arc::new(CertifiedKey::new(chain, key)))
            }
            Err(error) => {
                error!(certificate = self.label(), file = %self.file.display(), %error, "no handshake can use this key");
                None
            }
        };
        self.signing.get_or_init(make).clone()
    }

    /// Whether no handshake has wanted its key so far.
    #[cfg(test)]
    pub(super) fn is_lazy(&self) -> bool {
        self.signing.get().is_none()
    }

    pub(super) fn is_broken(&self) -> bool {
        matches!(self.signing.get(), Some(None))
    }

    pub(super) fn index(&self) -> &[Name] {
        &self.names
    }

    pub(super) fn chain(&self) -> &[Arc<[u8]>] {
        &self.chain
    }

    /// Whether both are the same, whatever the state of their files.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.leaf == other.leaf && self.chain == other.chain && self.key == other.key
    }
}

impl Issuers {
    /// Those that certificates have already.
    pub(super) fn of<'a>(certificates: impl Iterator<Item = &'a Arc<Certificate>>) -> Self {
        Self(Mutex::new(certificates.flat_map(|certificate| certificate.chain()).map(Arc::clone).collect()))
    }

    fn share(&self, der: Vec<u8>) -> Arc<[u8]> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = known.get(der.as_slice()) {
            return Arc::clone(same);
        }
        let der = Arc::<[u8]>::from(der);
        known.insert(Arc::clone(&der));
        der
    }
}

impl Name {
    fn parse(text: &str) -> Result<Self, NameError> {
        let (wildcard, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let name = ServerName::parse(name.as_bytes())?;
        let name = Arc::from(name.as_str());
        Ok(if wildcard { Self::Wildcard(name) } else { Self::Exact(name) })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(name) => write!(f, "*.{name}"),
        }
    }
}

/// Now, in seconds of Unix time.
pub(super) fn unix_seconds(now: SystemTime) -> i64 {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// The DNS names of subjectAltName, each once, and those that are none.
fn names(certificate: &X509Certificate<'_>) -> (Box<[Name]>, Vec<(String, NameError)>) {
    let (mut names, mut bad) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    let extension = certificate.subject_alternative_name().ok().flatten();
    for name in extension.iter().flat_map(|extension| &extension.value.general_names) {
        let GeneralName::DNSName(text) = name else { continue };
        match Name::parse(text) {
            Ok(name) if seen.insert(name.clone()) => names.push(name),
            Ok(_) => {}
            Err(error) => bad.push((text.escape_default().to_string(), error)),
        }
    }
    (names.into(), bad)
}

/// Whether the key in `file` is that of the certificate in `path`, and of which kind it is.
fn check_key(
    path: &Path,
    file: &Path,
    certificate: &X509Certificate<'_>,
    key: &PrivateKeyDer<'static>,
    rest: &[Vec<u8>],
    quick: bool,
) -> Result<KeyKind, CertificateError> {
    let compare = |certificate: &X509Certificate<'_>| {
        key::compare(key, certificate.public_key(), quick)
            .map_err(|source| CertificateError::BadKey { path: file.to_owned(), source })
    };
    let kind = KeyKind::of(certificate.public_key())
        .map_err(|oid| CertificateError::UnknownKey { path: path.to_owned(), oid })?;
    if let Match::Its = compare(certificate)? {
        return Ok(kind);
    }
    for (index, der) in rest.iter().enumerate() {
        if let Ok((_, other)) = parse_x509_certificate(der)
            && let Match::Its = compare(&other)?
        {
            return Err(CertificateError::NotFirst { path: path.to_owned(), position: index + 2 });
        }
    }
    Err(CertificateError::Mismatch { path: path.to_owned(), key: file.to_owned() })
}
