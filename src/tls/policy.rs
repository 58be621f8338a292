//! The rules of a route as the library wants them.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{self, Ticketer, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, GetRandomFailed, SupportedKxGroup};
use rustls::server::{NoServerSessionStorage, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier};
use rustls::ticketer::TicketRotator;
use rustls::{ServerConfig, SupportedCipherSuite, SupportedProtocolVersion, version};

use super::client_auth::{self, ClientAuthError};
use crate::config::{CipherSuite, Group, TlsPolicy, TlsVersion};

/// How long tickets are made with a key, in seconds; as long again they are taken. Who learns a key can read the
/// sessions of TLS 1.2 that were resumed by tickets of it.
const TICKET_KEY: u32 = 6 * 3600;

/// What handshakes by these rules are made with: certificates from `certificates`, tickets from `tickets`.
///
/// # Errors
/// When what clients must show cannot be checked.
pub(super) fn server_config(
    policy: &TlsPolicy,
    certificates: Arc<dyn ResolvesServerCert>,
    tickets: &Arc<dyn ProducesTickets>,
) -> Result<ServerConfig, ClientAuthError> {
    let provider = Arc::new(provider(policy));
    let versions = versions(policy.min_version);
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(ClientAuthError::Library)?;
    let verifier = match &policy.client_auth {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(auth) => client_auth::verifier(auth, provider)?,
    };
    let mut config = builder.with_client_cert_verifier(verifier).with_cert_resolver(certificates);
    config.alpn_protocols = policy.alpn.iter().map(|name| name.to_vec()).collect();
    // Nothing is kept here: tickets are, by clients.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    if policy.resumption {
        config.ticketer = Arc::clone(tickets);
    } else {
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

/// Tickets with keys of their own, which no other route takes.
///
/// # Errors
/// When the system has no random numbers.
pub(super) fn tickets() -> Result<Arc<dyn ProducesTickets>, rustls::Error> {
    Ok(Arc::new(TicketRotator::new(TICKET_KEY, ticket_key)?))
}

fn ticket_key() -> Result<Box<dyn ProducesTickets>, GetRandomFailed> {
    Ok(Box::new(TicketKey(Ticketer::new().map_err(|_| GetRandomFailed)?)))
}

/// One key, for as long as the rotation around it goes: its own would come later.
#[derive(Debug)]
struct TicketKey(Arc<dyn ProducesTickets>);

impl ProducesTickets for TicketKey {
    fn enabled(&self) -> bool {
        self.0.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.0.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(cipher)
    }
}

fn provider(policy: &TlsPolicy) -> CryptoProvider {
    CryptoProvider {
        cipher_suites: policy.suites.iter().map(|suite| supported_suite(*suite)).collect(),
        kx_groups: policy.groups.iter().map(|group| supported_group(*group)).collect(),
        ..aws_lc_rs::default_provider()
    }
}

/// Those from `min` on.
pub(super) fn versions(min: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    const ALL: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];
    const MODERN: &[&SupportedProtocolVersion] = &[&version::TLS13];
    match min {
        TlsVersion::V12 => ALL,
        TlsVersion::V13 => MODERN,
    }
}

fn supported_suite(suite: CipherSuite) -> SupportedCipherSuite {
    match suite {
        CipherSuite::Aes128Gcm => cipher_suite::TLS13_AES_128_GCM_SHA256,
        CipherSuite::Aes256Gcm => cipher_suite::TLS13_AES_256_GCM_SHA384,
        CipherSuite::Chacha20 => cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        CipherSuite::EcdheEcdsaAes128Gcm => cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::EcdheRsaAes128Gcm => cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::EcdheEcdsaAes256Gcm => cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::EcdheRsaAes256Gcm => cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::EcdheEcdsaChacha20 => cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        CipherSuite::EcdheRsaChacha20 => cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    }
}

fn supported_group(group: Group) -> &'static dyn SupportedKxGroup {
    match group {
        Group::X25519Mlkem768 => kx_group::X25519MLKEM768,
        Group::X25519 => kx_group::X25519,
        Group::Secp256r1 => kx_group::SECP256R1,
        Group::Secp384r1 => kx_group::SECP384R1,
        Group::Secp256r1Mlkem768 => kx_group::SECP256R1MLKEM768,
        Group::Mlkem768 => kx_group::MLKEM768,
    }
}
