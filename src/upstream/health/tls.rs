//! TLS of checks: a handshake, and the certificate's end.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::CheckError;
use crate::config::{TlsCheck, Verify};
use crate::tls::inspect::{Anybody, Certificate};

/// What all handshakes of an upstream have in common.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    /// What `check` asks for, with these protocols as ALPN.
    pub(super) fn new(check: &TlsCheck, alpn: &[&str]) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("the provider has cipher suites of both versions");
        let mut config = match &check.verify {
            Verify::Off => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anybody::new(provider)))
                .with_no_client_auth(),
            Verify::Roots(roots) => {
                let mut store = RootCertStore::empty();
                store.add_parsable_certificates(roots.certificates.iter().cloned());
                builder.with_root_certificates(store).with_no_client_auth()
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        // A resumed session shows no certificate.
        config.resumption = Resumption::disabled();
        let name = check.sni.as_ref().and_then(|sni| ServerName::try_from(sni.as_str().to_owned()).ok());
        // An address is never sent as a name (RFC 6066 §3), whichever it is.
        let name = name.unwrap_or_else(|| ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        Self { connector: TlsConnector::from(Arc::new(config)), name }
    }

    /// Shakes hands, and says when the certificate ends, in seconds of Unix time.
    pub(super) async fn handshake<S>(&self, stream: S) -> Result<(TlsStream<S>, Option<i64>), CheckError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = self.connector.connect(self.name.clone(), stream).await.map_err(CheckError::Tls)?;
        let (_, connection) = stream.get_ref();
        let certificate = connection.peer_certificates().and_then(<[_]>::first);
        let not_after = certificate.and_then(Certificate::read).map(|certificate| certificate.not_after);
        Ok((stream, not_after))
    }
}
