//! Kinds of keys, and whether a private key is a certificate's.

use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use x509_parser::asn1_rs::{Any, FromDer, Oid, Tag};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION,
    OID_SIG_ED25519,
};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// From this size on, a signature takes over a millisecond: as long as everything else of 20 connections.
const SLOW_BITS: usize = 3072;

const RSA_SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
];

/// The kind of a certificate's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// ECDSA over P-256.
    P256,
    /// ECDSA over P-384.
    P384,
    /// ECDSA over P-521.
    P521,
    /// Ed25519.
    Ed25519,
    /// RSA, with the bits of its modulus.
    Rsa(usize),
}

/// What a private key is to a certificate.
pub(super) enum Match {
    Its,
    Anothers,
}

impl KeyKind {
    /// The kind of a public key, or the object identifier of one that cannot be used.
    pub(super) fn of(key: &SubjectPublicKeyInfo<'_>) -> Result<Self, String> {
        let algorithm = &key.algorithm.algorithm;
        if *algorithm == OID_PKCS1_RSAENCRYPTION {
            return match key.parsed() {
                Ok(PublicKey::RSA(rsa)) => Ok(Self::Rsa(rsa.key_size())),
                _ => Err(algorithm.to_id_string()),
            };
        }
        if *algorithm == OID_SIG_ED25519 {
            return Ok(Self::Ed25519);
        }
        let curve = key.algorithm.parameters.as_ref().and_then(|parameters| Oid::try_from(parameters).ok());
        match curve.filter(|_| *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY) {
            Some(curve) if curve == OID_EC_P256 => Ok(Self::P256),
            Some(curve) if curve == OID_NIST_EC_P384 => Ok(Self::P384),
            Some(curve) if curve == OID_NIST_EC_P521 => Ok(Self::P521),
            Some(curve) => Err(curve.to_id_string()),
            None => Err(algorithm.to_id_string()),
        }
    }

    /// Whether a client that can verify these schemes can verify signatures of such a key.
    pub(super) fn is_verified_by(self, schemes: &[SignatureScheme]) -> bool {
        match self {
            Self::P256 => schemes.contains(&SignatureScheme::ECDSA_NISTP256_SHA256),
            Self::P384 => schemes.contains(&SignatureScheme::ECDSA_NISTP384_SHA384),
            Self::P521 => schemes.contains(&SignatureScheme::ECDSA_NISTP521_SHA512),
            Self::Ed25519 => schemes.contains(&SignatureScheme::ED25519),
            Self::Rsa(_) => RSA_SCHEMES.iter().any(|scheme| schemes.contains(scheme)),
        }
    }

    /// Whether it is RSA, whose signatures take ten times as long and more.
    pub fn is_rsa(self) -> bool {
        matches!(self, Self::Rsa(_))
    }

    /// Whether one signature takes so long that other connections should not wait for it.
    pub fn is_slow(self) -> bool {
        matches!(self, Self::Rsa(bits) if bits >= SLOW_BITS)
    }

    /// Whether certificates of both are for the same clients.
    pub(super) fn is_like(self, other: Self) -> bool {
        self == other || (self.is_rsa() && other.is_rsa())
    }
}

/// Whether `key` is that of the certificate with the public key `public`.
///
/// Making the key, as a handshake does, takes 33 µs for P-256 and proves that it is whole; of RSA it takes 0.3 ms for 2048
/// bits and 1 ms for 4096, so that of many keys only the modulus is compared (`quick`).
pub(super) fn compare(
    key: &PrivateKeyDer<'static>,
    public: &SubjectPublicKeyInfo<'_>,
    quick: bool,
) -> Result<Match, rustls::Error> {
    if quick
        && let Ok(PublicKey::RSA(rsa)) = public.parsed()
        && let Some(modulus) = modulus(key)
    {
        return Ok(if modulus == rsa.modulus { Match::Its } else { Match::Anothers });
    }
    let key = any_supported_type(key)?;
    // All keys of this provider know their public key.
    let its = key.public_key().is_none_or(|own| own.as_ref() == public.raw);
    Ok(if its { Match::Its } else { Match::Anothers })
}

/// The modulus of an RSA key (RFC 8017 §A.1.2, RFC 5208 §5).
fn modulus<'a>(key: &'a PrivateKeyDer<'static>) -> Option<&'a [u8]> {
    let rsa = match key {
        PrivateKeyDer::Pkcs1(key) => key.secret_pkcs1_der(),
        PrivateKeyDer::Pkcs8(key) => {
            let [_version, _algorithm, key] = elements(key.secret_pkcs8_der())?;
            key
        }
        _ => return None,
    };
    let [_version, modulus] = elements(rsa)?;
    Some(modulus)
}

/// The contents of the first elements of a SEQUENCE.
fn elements<const N: usize>(der: &[u8]) -> Option<[&[u8]; N]> {
    let (_, sequence) = Any::from_der(der).ok()?;
    let mut rest = (sequence.tag() == Tag::Sequence).then_some(sequence.data)?;
    let mut elements = [<&[u8]>::default(); N];
    for element in &mut elements {
        let (behind, any) = Any::from_der(rest).ok()?;
        (rest, *element) = (behind, any.data);
    }
    Some(elements)
}
