//! TLS with backends: whom they must be, and what handshakes with them are made of.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionMemoryCache, Resumption, WebPkiServerVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};

use super::handshake::{Handshake, HandshakeError};
use super::policy::versions;
use crate::config::{BackendTls, Verify};

/// Names of which sessions are kept to be gone on with: of each up to eight tickets, a few kilobytes. Most groups of backends
/// have one name; those of a client's choice push each other out.
const NAMES_KEPT: usize = 256;

/// How TLS is spoken with the backends of a group, and the sessions with them that may go on.
pub struct Connector {
    tls: BackendTls,
    config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
}

/// A backend that is connected to, as far as that says who it must be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Whom<'a> {
    /// The host that is written in the configuration.
    pub host: Option<&'a str>,
    /// The name that the client has asked for.
    pub asked: Option<&'a str>,
    /// Its address.
    pub ip: Option<IpAddr>,
    /// The protocol inside that was agreed on with the client.
    pub alpn: Option<&'a [u8]>,
}

/// Its public key is none of those that it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the public key of the certificate is none of `pins`")]
struct NotPinned;

/// What the certificates of backends must be: signed by authorities, of a key, both, or anything.
#[derive(Debug)]
struct Checked {
    authorities: Option<Arc<WebPkiServerVerifier>>,
    pins: Vec<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

impl Connector {
    /// What `tls` asks for.
    ///
    /// # Panics
    /// When it names authorities and there is none among them, which the configuration rules out.
    pub fn new(tls: &BackendTls) -> Self {
        let provider = Arc::new(default_provider());
        let authorities = match &tls.verify {
            Verify::Off => None,
            Verify::Roots(roots) => {
                let mut store = RootCertStore::empty();
                store.add_parsable_certificates(roots.certificates.iter().cloned());
                let builder =
                    WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider));
                Some(builder.build().expect("there are authorities, and no lists of revoked certificates"))
            }
        };
        let verifier = Checked { authorities, pins: tls.pins.clone(), provider: Arc::clone(&provider) };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions(tls.min_version))
            .expect("the provider has cipher suites of both versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &tls.certificate {
            Some(own) => {
                let one = SingleCertAndKey::from(Arc::clone(&own.certified));
                builder.with_client_cert_resolver(Arc::new(one))
            }
            None => builder.with_no_client_auth(),
        };
        // Only what was verified by these rules goes on: the sessions are those of this group.
        config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(NAMES_KEPT)));
        let name = tls.sni.as_ref().and_then(|name| ServerName::try_from(name.as_str().to_owned()).ok());
        Self { tls: tls.clone(), config: Arc::new(config), name }
    }

    /// Whether it is what `tls` asks for.
    pub fn is_of(&self, tls: &BackendTls) -> bool {
        self.tls == *tls
    }

    /// A handshake with a backend.
    ///
    /// # Errors
    /// When nothing says who that must be, or the configuration cannot work.
    pub fn begin(&self, whom: Whom<'_>) -> Result<Handshake, HandshakeError> {
        let name = self.name(whom).ok_or(HandshakeError::Nameless)?;
        let alpn = match (&self.tls.alpn, whom.alpn) {
            (Some(names), _) => names.iter().map(|name| name.to_vec()).collect(),
            (None, agreed) => agreed.map(<[u8]>::to_vec).into_iter().collect(),
        };
        Handshake::connect(Arc::clone(&self.config), name, alpn)
    }

    /// Whether what is asked of the backend is the client's choice, so that a refusal may tell against that.
    pub fn follows_client(&self, whom: Whom<'_>) -> bool {
        let alpn = whom.alpn.is_some() && self.tls.alpn.is_none();
        alpn || self.name(whom) != self.name(Whom { asked: None, ..whom })
    }

    /// Who the backend must be.
    fn name(&self, whom: Whom<'_>) -> Option<ServerName<'static>> {
        if let Some(name) = &self.name {
            return Some(name.clone());
        }
        let names = [whom.host, whom.asked].into_iter().flatten();
        let named = names.filter_map(|name| ServerName::try_from(name.trim_end_matches('.').to_owned()).ok());
        let named = named.into_iter().find(|name| matches!(name, ServerName::DnsName(_)));
        // An address is never sent as a name (RFC 6066 §3), whichever it is.
        let ip = match self.tls.verify {
            Verify::Off => Some(whom.ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))),
            Verify::Roots(_) => whom.ip,
        };
        named.or_else(|| ip.map(ServerName::from))
    }
}

impl Checked {
    fn is_pinned(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return false };
        let hash = digest(&SHA256, parsed.public_key().raw);
        self.pins.iter().any(|pin| pin == hash.as_ref())
    }

    /// Whether anybody will do, so that it is of no use to have him prove that he has the key. What cannot be read as a certificate
    /// today, as some old ones, serves then as well.
    fn is_anybody(&self) -> bool {
        self.authorities.is_none() && self.pins.is_empty()
    }
}

impl ServerCertVerifier for Checked {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(authorities) = &self.authorities {
            authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        }
        if self.pins.is_empty() || self.is_pinned(end_entity) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::Other(OtherError(Arc::new(NotPinned))).into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.is_anybody() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.is_anybody() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("tls", &self.tls).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::config::{Roots, TlsVersion};
    use crate::peek;

    fn off() -> BackendTls {
        BackendTls {
            verify: Verify::Off,
            sni: None,
            certificate: None,
            pins: Vec::new(),
            alpn: None,
            min_version: TlsVersion::V12,
        }
    }

    fn named(tls: &BackendTls, whom: Whom<'_>) -> Option<String> {
        Connector::new(tls).name(whom).map(|name| name.to_str().into_owned())
    }

    #[test]
    fn a_backend_is_who_it_is_said_to_be_or_whom_the_client_wants() {
        let ip = Some("10.0.0.1".parse().unwrap());
        let whom = Whom { host: Some("app.internal."), asked: Some("www.example.com"), ip, alpn: None };
        assert_eq!(named(&off(), whom).unwrap(), "app.internal");
        for host in [None, Some("10.0.0.1"), Some("[::1]")] {
            assert_eq!(named(&off(), Whom { host, ..whom }).unwrap(), "www.example.com");
            assert_eq!(named(&off(), Whom { host, asked: None, ..whom }).unwrap(), "10.0.0.1");
        }
        let follows = |host, alpn| Connector::new(&off()).follows_client(Whom { host, alpn, ..whom });
        assert!(
            !follows(Some("app.internal"), None) && follows(None, None) && follows(whom.host, Some(b"h2"))
        );
        let sni = peek::ServerName::parse(b"other.example.com").ok();
        assert_eq!(named(&BackendTls { sni, ..off() }, whom).unwrap(), "other.example.com");
    }

    #[test]
    fn without_any_name_nobody_can_be_verified() {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec!["a.test".to_owned()]).unwrap().self_signed(&key).unwrap();
        let roots = Roots { file: None, certificates: [certificate.der().clone()].into() };
        let verified = BackendTls { verify: Verify::Roots(roots), ..off() };
        assert_eq!(named(&verified, Whom::default()), None);
        assert!(matches!(Connector::new(&verified).begin(Whom::default()), Err(HandshakeError::Nameless)));
        assert_eq!(named(&off(), Whom::default()).unwrap(), "0.0.0.0");
    }
}
