//! Certificates from an authority, by ACME (RFC 8555).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Roots, SecretSource};

/// Where certificates are ordered, and for which names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmeConfig {
    /// The authority's directory, an `https` URL.
    pub directory: Arc<str>,
    /// Mailboxes that the authority may write to.
    pub contacts: Vec<Box<str>>,
    /// Who vouches for the authority's own server.
    pub roots: Roots,
    /// How control over names is shown.
    pub challenge: AcmeChallenge,
    /// The account elsewhere that the one here is bound to (RFC 8555 §7.3.4).
    pub external_account: Option<ExternalAccount>,
    /// How long before their end certificates are renewed at the latest; `None`: when a third of their time is left.
    pub renew_before: Option<Duration>,
    /// The folder for the account and the certificates.
    pub state: PathBuf,
    /// The names that routes end TLS for by such certificates, each once; `*.suffix` is one.
    pub names: Vec<Arc<str>>,
}

/// How control over a name is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcmeChallenge {
    /// By a certificate of our own, to hellos for `acme-tls/1` (RFC 8737).
    TlsAlpn01,
    /// By an answer to a request in clear (RFC 8555 §8.3).
    Http01,
    /// By a record that this command publishes (RFC 8555 §8.4).
    Dns01(PathBuf),
}

/// An account elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalAccount {
    /// The name of the key.
    pub kid: Box<str>,
    /// Where the key is, in Base64.
    pub hmac: SecretSource,
}

impl AcmeConfig {
    /// Where certificates are, a file a name.
    pub fn certificates(&self) -> PathBuf {
        Self::certificates_in(&self.state)
    }

    /// The same of the folder `state`.
    pub(super) fn certificates_in(state: &Path) -> PathBuf {
        state.join("acme").join("certificates")
    }
}

impl AcmeChallenge {
    /// Its name, of IANA's registry.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::Http01 => "http-01",
            Self::Dns01(_) => "dns-01",
        }
    }
}

impl fmt::Display for AcmeChallenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
