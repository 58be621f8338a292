//! What authorities ask for while they look whether a name is ours, and what they are answered.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::error::AcmeError;
use crate::peek::{ClientHello, ServerName};

/// What the hellos of authorities offer, and nothing else (RFC 8737 §4).
const ALPN: &[u8] = b"acme-tls/1";
/// Where authorities ask in clear (RFC 8555 §8.3).
const PATH: &str = "/.well-known/acme-challenge/";
/// The most that is pending at once: orders are few at a time, and each has one.
const MOST: usize = 64;

/// The challenges that are pending: of them workers answer authorities.
#[derive(Debug, Default)]
pub struct Challenges {
    pending: ArcSwap<Vec<Pending>>,
    next: AtomicU64,
}

/// A challenge that is pending until dropped.
#[derive(Debug)]
pub(super) struct Offered {
    challenges: Arc<Challenges>,
    id: u64,
}

#[derive(Clone, Debug)]
struct Pending {
    id: u64,
    answer: Answer,
}

/// What an authority is answered.
#[derive(Clone)]
enum Answer {
    /// To a hello for this name.
    Tls(ServerName, Arc<ServerConfig>),
    /// To a request for this token.
    Http(Arc<str>, Arc<str>),
}

impl Challenges {
    /// What a handshake with an authority is made with; `None` for all other hellos. It needs no more than the handshake.
    pub fn tls(&self, hello: &ClientHello) -> Option<Arc<ServerConfig>> {
        let mut offers = hello.alpn.iter();
        if offers.next().is_none_or(|offer| offer != ALPN) || offers.next().is_some() {
            return None;
        }
        let asked = hello.server_name.as_ref()?;
        self.pending.load().iter().find_map(|pending| match &pending.answer {
            Answer::Tls(name, config) => (name == asked).then(|| Arc::clone(config)),
            Answer::Http(..) => None,
        })
    }

    /// What a request in clear for `path` is answered with; `None` for all that is not an authority's.
    pub fn http(&self, path: &str) -> Option<Arc<str>> {
        let asked = path.strip_prefix(PATH)?;
        self.pending.load().iter().find_map(|pending| match &pending.answer {
            Answer::Http(token, authorization) => (**token == *asked).then(|| Arc::clone(authorization)),
            Answer::Tls(..) => None,
        })
    }

    /// Answers hellos for `name` with a certificate that holds `digest` (RFC 8737 §3).
    ///
    /// # Errors
    /// When no such certificate can be made, or too much is pending.
    pub(super) fn offer_tls(
        self: &Arc<Self>,
        name: &ServerName,
        digest: &[u8],
    ) -> Result<Offered, AcmeError> {
        let config = challenge_config(name, digest)?;
        self.offer(Answer::Tls(name.clone(), Arc::new(config)))
    }

    /// Answers requests for `token`.
    ///
    /// # Errors
    /// When too much is pending.
    pub(super) fn offer_http(
        self: &Arc<Self>,
        token: &str,
        authorization: &str,
    ) -> Result<Offered, AcmeError> {
        self.offer(Answer::Http(token.into(), authorization.into()))
    }

    fn offer(self: &Arc<Self>, answer: Answer) -> Result<Offered, AcmeError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let before = self.pending.rcu(|pending| {
            let mut more = Vec::clone(pending);
            if more.len() < MOST {
                more.push(Pending { id, answer: answer.clone() });
            }
            more
        });
        if before.len() < MOST {
            Ok(Offered { challenges: Arc::clone(self), id })
        } else {
            Err(AcmeError::TooManyPending)
        }
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        self.challenges.pending.rcu(|pending| {
            let others = pending.iter().filter(|pending| pending.id != self.id);
            others.cloned().collect::<Vec<_>>()
        });
    }
}

/// Without what it is about: keys and tokens do not belong in logs.
impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls(name, _) => f.debug_tuple("Tls").field(name).finish(),
            Self::Http(..) => f.debug_tuple("Http").finish_non_exhaustive(),
        }
    }
}

fn challenge_config(name: &ServerName, digest: &[u8]) -> Result<ServerConfig, AcmeError> {
    let mut params = CertificateParams::new([name.as_str().to_owned()]).map_err(AcmeError::Key)?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate().map_err(AcmeError::Key)?;
    let certificate = params.self_signed(&key).map_err(AcmeError::Key)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signing = provider.key_provider.load_private_key(der).map_err(AcmeError::Tls)?;
    // Not checked against each other: the library refuses the extension, which is critical and unknown to it.
    let certified = CertifiedKey::new(vec![certificate.into()], signing);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(AcmeError::Tls)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peek::Alpn;

    fn hello(name: &str, offers: &[&str]) -> ClientHello {
        ClientHello {
            server_name: Some(ServerName::parse(name.as_bytes()).unwrap()),
            alpn: Alpn::from_names(offers.iter().map(|offer| offer.as_bytes())),
            ..ClientHello::default()
        }
    }

    #[test]
    fn only_hellos_of_authorities_for_pending_names_are_answered() {
        let challenges = Arc::new(Challenges::default());
        let name = ServerName::parse(b"a.test").unwrap();
        assert!(challenges.tls(&hello("a.test", &["acme-tls/1"])).is_none());
        let offered = challenges.offer_tls(&name, &[7; 32]).unwrap();
        let config = challenges.tls(&hello("A.test", &["acme-tls/1"])).unwrap();
        assert_eq!(config.alpn_protocols, [b"acme-tls/1".to_vec()]);
        for (name, offers) in [
            ("b.test", &["acme-tls/1"][..]),
            ("a.test", &[]),
            ("a.test", &["h2"]),
            ("a.test", &["acme-tls/1", "h2"]),
            ("a.test", &["h2", "acme-tls/1"]),
        ] {
            assert!(challenges.tls(&hello(name, offers)).is_none(), "{name} {offers:?}");
        }
        drop(offered);
        assert!(challenges.tls(&hello("a.test", &["acme-tls/1"])).is_none());
    }

    #[test]
    fn only_tokens_that_are_pending_are_answered() {
        let challenges = Arc::new(Challenges::default());
        let first = challenges.offer_http("abc", "abc.thumb").unwrap();
        let second = challenges.offer_http("def", "def.thumb").unwrap();
        assert_eq!(challenges.http("/.well-known/acme-challenge/abc").as_deref(), Some("abc.thumb"));
        for path in ["/.well-known/acme-challenge/", "/.well-known/acme-challenge/ab", "/abc", "abc"] {
            assert_eq!(challenges.http(path), None, "{path}");
        }
        drop(first);
        assert_eq!(challenges.http("/.well-known/acme-challenge/abc"), None);
        assert_eq!(challenges.http("/.well-known/acme-challenge/def").as_deref(), Some("def.thumb"));
        drop(second);
    }

    #[test]
    fn what_is_pending_is_bounded() {
        let challenges = Arc::new(Challenges::default());
        let offer = |token: usize| challenges.offer_http(&token.to_string(), "x");
        let held: Vec<_> = (0..MOST).map(|token| offer(token).unwrap()).collect();
        assert!(matches!(offer(MOST), Err(AcmeError::TooManyPending)));
        drop(held);
        assert!(offer(MOST).is_ok());
    }
}
