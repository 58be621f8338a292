//! Certificates of clients: who signed them, whether they were taken back, and whose they are.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::{ClientAuth, ClientAuthMode, NamePattern};
use crate::peek::ServerName;

/// Why certificates of clients cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum ClientAuthError {
    /// A certificate of an authority is none.
    #[error("a certificate of an authority cannot be used: {0}")]
    Authority(#[source] Error),
    /// A list of certificates that were taken back is none.
    #[error("a list of revoked certificates cannot be used: {0}")]
    Revocation(#[source] rustls::server::VerifierBuilderError),
    /// The library cannot work by these rules.
    #[error(transparent)]
    Library(Error),
}

/// Whose certificate a client shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The common name of its subject.
    pub common_name: Option<String>,
    /// Its alternative names: of servers, of mailboxes, and URIs.
    pub names: Vec<String>,
}

/// What certificates of clients are verified by.
///
/// # Errors
/// When an authority or a list cannot be used.
pub(super) fn verifier(
    auth: &ClientAuth,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, ClientAuthError> {
    let mut roots = RootCertStore::empty();
    for authority in auth.authorities.iter() {
        roots.add(authority.clone()).map_err(ClientAuthError::Authority)?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if !auth.revoked.is_empty() {
        // Lists of authorities between are seldom at hand; the client's own must be on none, and its authority's must be there.
        builder = builder.with_crls(auth.revoked.iter().cloned()).only_check_end_entity_revocation();
    }
    if auth.mode == ClientAuthMode::Optional {
        builder = builder.allow_unauthenticated();
    }
    let inner = builder.build().map_err(ClientAuthError::Revocation)?;
    if auth.names.is_none() && auth.common_names.is_none() {
        return Ok(inner);
    }
    Ok(Arc::new(OfSubjects { inner, names: auth.names.clone(), common_names: auth.common_names.clone() }))
}

impl Subject {
    /// Whose certificate that is; nobody's when it cannot be read.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Self::default() };
        let common_name = certificate.subject().iter_common_name().next();
        let common_name = common_name.and_then(|name| name.as_str().ok()).map(str::to_owned);
        let alternative = certificate.subject_alternative_name().ok().flatten();
        let names = alternative.map_or(&[][..], |extension| &extension.value.general_names);
        let names = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => {
                Some((*name).to_owned())
            }
            _ => None,
        });
        Self { common_name, names: names.collect() }
    }

    /// Whether one of its names is as one of the patterns says.
    fn has_name(&self, patterns: &[NamePattern]) -> bool {
        patterns.iter().any(|pattern| self.names.iter().any(|name| matches(pattern, name)))
    }
}

fn matches(pattern: &NamePattern, name: &str) -> bool {
    match pattern {
        // Mailboxes and URIs are no names of servers, and only looked for by regular expressions.
        NamePattern::Exact(wanted) => ServerName::parse(name.as_bytes()).is_ok_and(|name| name == *wanted),
        NamePattern::Suffix(suffix) => ServerName::parse(name.as_bytes()).is_ok_and(|name| {
            let before = name.as_str().strip_suffix(suffix.as_str());
            before.is_some_and(|before| before.ends_with('.') && before.len() > 1)
        }),
        NamePattern::Regex(regex) => regex.is_match(name),
        NamePattern::Any => true,
    }
}

/// Lets through the certificates of some of those that are signed.
#[derive(Debug)]
struct OfSubjects {
    inner: Arc<dyn ClientCertVerifier>,
    names: Option<Vec<NamePattern>>,
    common_names: Option<Vec<Box<str>>>,
}

impl ClientCertVerifier for OfSubjects {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        let subject = Subject::of(end_entity);
        let named = self.names.as_ref().is_none_or(|names| subject.has_name(names));
        let common = self.common_names.as_ref().is_none_or(|names| {
            let own = subject.common_name.as_deref();
            names.iter().any(|name| Some(&**name) == own)
        });
        if named && common {
            return Ok(verified);
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.inner.requires_raw_public_keys()
    }
}
