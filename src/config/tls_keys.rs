//! The shapes of `tls` and `certificates`, and how their values are written.

use serde_json::Value;

use super::decode::{Either, OneOrMany, Problem, Text, quote, shape, word};
use super::error::ErrorKind;
use super::schema::words;
use super::values::{AlpnName, SniWord};
use super::{CipherSuite, ClientAuthMode, Group, TlsVersion};

shape! {
    /// TLS that ends here.
    struct Tls {
        /// Certificates of this route alone, as at the top of the file; those there if left out.
        certificates: OneOrMany<Either<CertificatePath, CertificatePair>>,
        /// Who makes the certificates, in place of files: `self-signed`, or `acme` for the authority at the top of the file.
        issuer: Issuer,
        /// The rules of Mozilla's guideline: `intermediate` (TLS 1.2 and 1.3; by default) or `modern` (1.3 alone).
        policy: Preset,
        /// The oldest version: `1.2` or `1.3`.
        min_version: TlsVersion,
        /// Cipher suites in order of preference, by their names in IANA's registry.
        cipher_suites: OneOrMany<CipherSuite>,
        /// Groups of key exchange in order of preference, by their names in IANA's registry.
        groups: OneOrMany<Group>,
        /// The protocols inside that clients may choose from, in order of preference; by default `alpn` of the route, or the names
        /// of its `protocol`.
        alpn: OneOrMany<AlpnName>,
        /// Whether clients may come back to their session by a ticket; by default they may.
        resumption: bool,
        /// Certificates that clients must show; a string is `ca`.
        client_auth: Either<CertificatePath, ClientAuth>,
    }
}

shape! {
    /// Certificates that clients must show.
    struct ClientAuth {
        /// Files (PEM) of the authorities that sign them, relative to the folder of this file.
        ca: OneOrMany<CertificatePath> = required,
        /// `required` (by default), or `optional`: who has none may come without.
        mode: ClientAuthMode,
        /// Files (PEM) of lists of certificates that were taken back.
        crl: OneOrMany<CertificatePath>,
        /// Names of which the certificate must have one among its alternative names: a name, `*.suffix` or `~regex`.
        names: OneOrMany<SniWord>,
        /// Common names of which the certificate's subject must have one.
        common_names: OneOrMany<String>,
    }
}

shape! {
    /// A certificate and its key.
    struct CertificatePair {
        /// The file of the certificate and those that it is signed with (PEM), relative to the folder of this file.
        certificate: CertificatePath = required,
        /// The file of its key (PEM).
        key: CertificatePath = required,
    }
}

/// A path, relative to the folder of the file that it is written in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CertificatePath(pub(super) String);

/// Where a route's certificates are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CertificatesFrom {
    Files,
    SelfSigned,
    Acme,
}

/// Who makes certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Issuer {
    SelfSigned,
    Acme,
}

/// Rules that go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preset {
    Modern,
    Intermediate,
}

const FROM: [(&str, CertificatesFrom); 3] = [
    ("files", CertificatesFrom::Files),
    ("acme", CertificatesFrom::Acme),
    ("self-signed", CertificatesFrom::SelfSigned),
];
const ISSUERS: [(&str, Issuer); 2] = [("acme", Issuer::Acme), ("self-signed", Issuer::SelfSigned)];
const PRESETS: [(&str, Preset); 2] = [("modern", Preset::Modern), ("intermediate", Preset::Intermediate)];
const VERSIONS: [(&str, TlsVersion); 2] = [("1.2", TlsVersion::V12), ("1.3", TlsVersion::V13)];
const MODES: [(&str, ClientAuthMode); 2] =
    [("required", ClientAuthMode::Required), ("optional", ClientAuthMode::Optional)];

/// Words of a list.
macro_rules! word_text {
    ($($type:ty, $expected:literal, $words:expr;)*) => {
        $(impl Text for $type {
            const EXPECTED: &'static str = $expected;

            fn constraints() -> Value {
                words($words.iter().map(|(word, _)| *word))
            }

            fn parse(text: &str) -> Result<Self, Problem> {
                word(text, &$words)
            }
        })*
    };
}
word_text! {
    CertificatesFrom, "\"files\", \"acme\", \"self-signed\" or a table", FROM;
    Issuer, "\"acme\" or \"self-signed\"", ISSUERS;
    Preset, "\"modern\" or \"intermediate\"", PRESETS;
    TlsVersion, "\"1.2\" or \"1.3\"", VERSIONS;
    ClientAuthMode, "\"required\" or \"optional\"", MODES;
}

/// Names of a registry.
macro_rules! registry_text {
    ($($type:ident, $expected:literal;)*) => {
        $(impl Text for $type {
            const EXPECTED: &'static str = $expected;

            fn constraints() -> Value {
                words($type::ALL.iter().map(|known| known.as_str()))
            }

            fn parse(text: &str) -> Result<Self, Problem> {
                let known: Vec<_> = $type::ALL.iter().map(|known| (known.as_str(), *known)).collect();
                let found = known.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
                found.map_or_else(|| word(text, &known), |(_, known)| Ok(*known))
            }
        })*
    };
}
registry_text! {
    CipherSuite, "the name of a cipher suite";
    Group, "the name of a group";
}

impl Text for CertificatePath {
    const EXPECTED: &'static str = "a path";

    fn parse(text: &str) -> Result<Self, Problem> {
        if text.is_empty() || text.contains('\0') {
            return Err(Problem::new(ErrorKind::BadValue, format!("{} is not a path", quote(text))));
        }
        Ok(Self(text.to_owned()))
    }
}
