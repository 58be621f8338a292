//! What a handshake with a server shows: its certificate, whether that is to be trusted, and what was agreed on.

use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName as TlsName, UnixTime};
use rustls::{
    CertificateError, CommonState, DigitallySignedStruct, NamedGroup, ProtocolVersion, RootCertStore,
    SignatureScheme,
};
use x509_parser::extensions::GeneralName;

use crate::peek::ServerName;

/// Characters of an issuer's name that are told.
const ISSUER: usize = 80;

/// Takes any certificate: whether it is good is the client's business, which checks it itself.
#[derive(Debug)]
pub struct Anybody(Arc<CryptoProvider>);

/// What a server's certificate says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    /// The names that it is for.
    pub names: Vec<CertifiedName>,
    /// When it ends, in seconds of Unix time.
    pub not_after: i64,
    /// Who signed it: the common name, or else the organisation; empty when it has neither.
    pub issuer: Box<str>,
}

/// A DNS name of a certificate (RFC 9525 §6.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CertifiedName {
    /// This name.
    Exact(ServerName),
    /// Names of one label before this suffix, written `*.suffix`.
    Wildcard(ServerName),
}

/// What client and server agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The version, `1.2` or `1.3`.
    pub version: &'static str,
    /// The group of the key exchange by its registered name in lower case; `other`, or `none` where there is no group.
    pub group: &'static str,
    /// Whether that group withstands a quantum computer.
    pub post_quantum: bool,
    /// The protocol inside; `None` when the server chose none.
    pub alpn: Option<Box<[u8]>>,
}

/// The authorities that this system trusts.
#[derive(Debug)]
pub struct Authorities(Option<Arc<WebPkiServerVerifier>>);

/// What they say of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// One of them vouches for it.
    Trusted,
    /// It ends in an authority that this system does not know, or in itself.
    UnknownIssuer,
    /// It has ended, or not begun.
    Expired,
    /// One of them vouches for it, but not for the name.
    OtherName,
    /// It is not good for another reason.
    Bad,
    /// The system knows no authorities, or the server showed no certificate.
    Unknown,
}

impl Anybody {
    /// Whoever it is, with the signatures that this provider knows.
    pub fn new(provider: Arc<CryptoProvider>) -> Self {
        Self(provider)
    }
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &TlsName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl Certificate {
    /// What is in it; `None` for what is no certificate. Names that no client can ask for are left out.
    pub fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(der).ok()?;
        let san = parsed.subject_alternative_name().ok().flatten();
        let names = san.iter().flat_map(|san| &san.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) => CertifiedName::parse(name),
            _ => None,
        });
        let issuer = parsed.issuer();
        let issuer = issuer.iter_common_name().chain(issuer.iter_organization()).next();
        Some(Self {
            names: names.collect(),
            not_after: parsed.validity().not_after.timestamp(),
            issuer: issuer.and_then(|name| name.as_str().ok()).map(printable).unwrap_or_default(),
        })
    }

    /// The first of its names that covers `name`.
    pub fn covers(&self, name: &ServerName) -> Option<&CertifiedName> {
        self.names.iter().find(|certified| certified.covers(name))
    }
}

impl CertifiedName {
    /// Reads a name as certificates have it.
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("*.") {
            Some(suffix) => ServerName::parse(suffix.as_bytes()).ok().map(Self::Wildcard),
            None => ServerName::parse(text.as_bytes()).ok().map(Self::Exact),
        }
    }

    /// Whether a client that asks for `name` takes it.
    pub fn covers(&self, name: &ServerName) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Wildcard(suffix) => {
                name.as_str().split_once('.').is_some_and(|(_, rest)| rest == suffix.as_str())
            }
        }
    }
}

impl fmt::Display for CertifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

impl Agreed {
    /// What `connection`, whose handshake is done, has.
    pub fn of(connection: &CommonState) -> Self {
        let group = connection.negotiated_key_exchange_group().map(|group| group.name());
        let (group, post_quantum) = group.map_or(("none", false), described);
        Self {
            version: match connection.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => "1.3",
                // No other one is offered.
                _ => "1.2",
            },
            group,
            post_quantum,
            alpn: connection.alpn_protocol().map(Into::into),
        }
    }

    /// The protocol inside as text, `none` where there is none.
    pub fn alpn_text(&self) -> String {
        self.alpn.as_ref().map_or_else(|| "none".to_owned(), |alpn| alpn.escape_ascii().to_string())
    }

    /// Whether it is HTTP/2.
    pub fn is_h2(&self) -> bool {
        self.alpn.as_deref() == Some(b"h2")
    }
}

/// The word for a group, and whether it withstands a quantum computer.
fn described(group: NamedGroup) -> (&'static str, bool) {
    match group {
        NamedGroup::X25519MLKEM768 => ("x25519mlkem768", true),
        NamedGroup::secp256r1MLKEM768 => ("secp256r1mlkem768", true),
        NamedGroup::MLKEM512 => ("mlkem512", true),
        NamedGroup::MLKEM768 => ("mlkem768", true),
        NamedGroup::MLKEM1024 => ("mlkem1024", true),
        NamedGroup::X25519 => ("x25519", false),
        NamedGroup::X448 => ("x448", false),
        NamedGroup::secp256r1 => ("secp256r1", false),
        NamedGroup::secp384r1 => ("secp384r1", false),
        NamedGroup::secp521r1 => ("secp521r1", false),
        _ => ("other", false),
    }
}

impl Authorities {
    /// Reads those of the system, which takes some files.
    pub fn of_the_system() -> Self {
        let mut roots = RootCertStore::empty();
        // What rustls does not understand it cannot trust; systems have some such.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Self(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().ok())
    }

    /// What they say of this chain, the server's own certificate first, for `name`.
    pub fn judge(&self, chain: &[CertificateDer<'_>], name: &TlsName<'_>) -> Trust {
        let (Some(verifier), Some((own, others))) = (&self.0, chain.split_first()) else {
            return Trust::Unknown;
        };
        match verifier.verify_server_cert(own, others, name, &[], UnixTime::now()) {
            Ok(_) => Trust::Trusted,
            Err(rustls::Error::InvalidCertificate(error)) => match error {
                CertificateError::UnknownIssuer => Trust::UnknownIssuer,
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Trust::Expired,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    Trust::OtherName
                }
                // One that signs itself is often an authority's, which no server may have.
                _ if is_its_own_issuer(own) => Trust::UnknownIssuer,
                _ => Trust::Bad,
            },
            Err(_) => Trust::Bad,
        }
    }
}

fn is_its_own_issuer(der: &CertificateDer<'_>) -> bool {
    let parsed = x509_parser::parse_x509_certificate(der);
    parsed.is_ok_and(|(_, parsed)| parsed.issuer().as_raw() == parsed.subject().as_raw())
}

impl Trust {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::UnknownIssuer => "unknown_issuer",
            Self::Expired => "expired",
            Self::OtherName => "other_name",
            Self::Bad => "bad",
            Self::Unknown => "unknown",
        }
    }
}

/// `text` in one line, and not too long.
fn printable(text: &str) -> Box<str> {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(ISSUER).map(plain).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};

    use super::*;

    fn name(text: &str) -> ServerName {
        ServerName::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_in_a_certificate() {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(["A.test", "*.b.test", "10.0.0.1"].map(str::to_owned)).unwrap();
        params.distinguished_name.push(DnType::CommonName, "an\nissuer");
        params.not_after = rcgen::date_time_ymd(2031, 1, 2);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let read = Certificate::read(certificate.der()).unwrap();
        let names: Vec<_> = read.names.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a.test", "*.b.test"], "addresses are no names");
        assert_eq!((read.not_after, &*read.issuer), (1_925_078_400, "an\u{fffd}issuer"));
        assert_eq!(Certificate::read(&CertificateDer::from(vec![0x30, 0])), None);
        let tls_name = TlsName::try_from("a.test").unwrap();
        let chain = [certificate.der().clone()];
        let trust = Authorities::of_the_system().judge(&chain, &tls_name);
        assert!(matches!(trust, Trust::UnknownIssuer | Trust::Unknown), "{trust:?}");
        assert_eq!(Authorities(None).judge(&chain, &tls_name), Trust::Unknown);
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        for (certified, asked, covers) in [
            ("a.test", "a.test", true),
            ("a.test", "b.a.test", false),
            ("*.a.test", "b.a.test", true),
            ("*.a.test", "a.test", false),
            ("*.a.test", "c.b.a.test", false),
            ("*.test", "a.test", true),
        ] {
            let certified = CertifiedName::parse(certified).unwrap();
            assert_eq!(certified.covers(&name(asked)), covers, "{certified} {asked}");
        }
        for text in ["*", "*.", "a*.test", "b.*.test", "**.test", ""] {
            assert_eq!(CertifiedName::parse(text), None, "{text}");
        }
    }
}
