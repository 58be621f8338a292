//! The shape of `acme`, and how its values are written.

use std::time::Duration;

use hyper::Uri;
use serde_json::Value;

use super::decode::{OneOrMany, Problem, Text, quote, shape, word};
use super::error::ErrorKind;
use super::file::Secret;
use super::schema::words;
use super::tls_keys::CertificatePath;
use super::values::AbsolutePath;

shape! {
    /// The authority that certificates are ordered from. To write this is to agree to its terms.
    struct Acme {
        /// Mailboxes that it may write to.
        email: OneOrMany<Email>,
        /// Its directory: an `https` URL, `letsencrypt` (by default) or `staging`, which is the same to try things out with.
        directory: Directory,
        /// A file (PEM) of the authorities that vouch for its server; by default those of the system.
        ca: CertificatePath,
        /// How control over names is shown: `tls-alpn-01` (by default), `http-01` or `dns-01`.
        challenge: Challenge,
        /// With `dns-01`: the command that publishes a record and takes it back, called as `HOOK set|clear NAME VALUE`.
        dns_hook: AbsolutePath,
        /// The account elsewhere that the one here is bound to.
        eab: ExternalAccount,
        /// How long before its end a certificate is renewed; when a third of its time is left if left out.
        renew_before: Duration,
    }
}

shape! {
    /// An account elsewhere that the one of ACME is bound to.
    struct ExternalAccount {
        /// The name of its key.
        kid: String = required,
        /// Where the key is, in Base64.
        hmac: Secret = required,
    }
}

/// A mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Email(pub(super) String);

/// The URL of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Directory(pub(super) String);

/// How control over names is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    TlsAlpn,
    Http,
    Dns,
}

/// Where certificates are from when nothing else is said.
pub(super) const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
const STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";

const CHALLENGES: [(&str, Challenge); 3] =
    [("tls-alpn-01", Challenge::TlsAlpn), ("http-01", Challenge::Http), ("dns-01", Challenge::Dns)];

impl Text for Email {
    const EXPECTED: &'static str = "a mailbox or a table";

    fn parse(text: &str) -> Result<Self, Problem> {
        // RFC 8555 §7.3: one address, and no fields of a header behind it.
        let plain = |part: &str| {
            !part.is_empty()
                && !part.contains(|c: char| c.is_whitespace() || c.is_control() || ",?<>".contains(c))
        };
        match text.rsplit_once('@') {
            Some((local, domain)) if plain(local) && plain(domain) && text.len() <= 254 => {
                Ok(Self(text.to_owned()))
            }
            _ => {
                let problem = Problem::new(ErrorKind::BadValue, format!("{} is not a mailbox", quote(text)));
                Err(problem.hint("write one such as `you@example.com`"))
            }
        }
    }
}

impl Text for Directory {
    const EXPECTED: &'static str = "an URL, \"letsencrypt\" or \"staging\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        match text {
            "letsencrypt" => return Ok(Self(LETS_ENCRYPT.to_owned())),
            "staging" => return Ok(Self(STAGING.to_owned())),
            _ => {}
        }
        let wrong = |message: String| Problem::new(ErrorKind::BadValue, message);
        let uri: Uri = text.parse().map_err(|_| wrong(format!("{} is not an URL", quote(text))))?;
        // RFC 8555 §6.1.
        let https = uri.scheme_str() == Some("https");
        if !https || uri.host().is_none_or(str::is_empty) || text.contains(['@', '#']) {
            let hint =
                "write one such as `https://ca.example.com/acme/directory`, `letsencrypt` or `staging`";
            return Err(wrong(format!("{} is no `https` URL of a directory", quote(text))).hint(hint));
        }
        Ok(Self(text.to_owned()))
    }
}

impl Text for Challenge {
    const EXPECTED: &'static str = "\"tls-alpn-01\", \"http-01\" or \"dns-01\"";

    fn constraints() -> Value {
        words(CHALLENGES.iter().map(|(word, _)| *word))
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        word(text, &CHALLENGES)
    }
}
