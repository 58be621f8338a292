//! The handshakes of a round.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::pki_types::ServerName as TlsName;
use rustls::{AlertDescription, ClientConfig, PeerIncompatible};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::plan::{Aim, Plan};
use crate::tls::inspect::{Agreed, Anybody, Authorities, Certificate, Trust};
use crate::upstream::health::{CheckError, Step, dial, within};

/// Handshakes under way at once: each is a descriptor here, and work for a backend.
const AT_ONCE: usize = 8;
/// What one may take, from the connection to its end.
const DEADLINE: Duration = Duration::from_secs(5);

/// A handshake that was made, or tried.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Whereto.
    pub aim: Aim,
    /// What came of it.
    pub outcome: Result<Facts, Failure>,
}

/// What a backend showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its certificate; `None` when it showed none that could be read.
    pub certificate: Option<Certificate>,
    /// What was agreed on.
    pub agreed: Agreed,
    /// What the authorities of this system say of the certificate for the name that was asked for.
    pub trust: Trust,
}

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// This machine could not: that says nothing of the backend.
    Ours(Box<str>),
    /// The backend speaks no version of TLS from 1.2 on.
    OldTls,
    /// For this reason.
    Other(Box<str>),
}

/// Makes the handshakes of `plan`; gives what was seen in its order. Cancel safe: dropping it closes all connections.
pub async fn run(plan: &Plan, authorities: &Arc<Authorities>) -> Vec<Seen> {
    let config = Arc::new(client());
    let mut waiting: VecDeque<_> = plan.aims.iter().cloned().enumerate().collect();
    let mut under_way = JoinSet::new();
    let mut seen = Vec::with_capacity(waiting.len());
    loop {
        while under_way.len() < AT_ONCE
            && let Some((place, aim)) = waiting.pop_front()
        {
            let (config, authorities) = (Arc::clone(&config), Arc::clone(authorities));
            under_way.spawn(async move {
                let outcome = shake_hands(&aim, &config, &authorities).await.map_err(Failure::from);
                (place, Seen { aim, outcome })
            });
        }
        match under_way.join_next().await {
            Some(Ok(one)) => seen.push(one),
            // A defect, of which the log tells: the others go on.
            Some(Err(_)) => {}
            None => break,
        }
    }
    seen.sort_by_key(|(place, _)| *place);
    seen.into_iter().map(|(_, seen)| seen).collect()
}

fn client() -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has cipher suites of both versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody::new(provider)))
        .with_no_client_auth();
    // A resumed session shows no certificate.
    config.resumption = Resumption::disabled();
    config
}

async fn shake_hands(
    aim: &Aim,
    config: &ClientConfig,
    authorities: &Authorities,
) -> Result<Facts, CheckError> {
    let until = Instant::now() + DEADLINE;
    let stream = dial(&aim.target, aim.header, until).await?;
    let mut config = config.clone();
    config.alpn_protocols = aim.alpn.iter().map(|name| name.to_vec()).collect();
    let other = |error| CheckError::Tls(std::io::Error::other(error));
    let name = TlsName::try_from(aim.name.as_str().to_owned()).map_err(other)?;
    let handshake = Box::pin(TlsConnector::from(Arc::new(config)).connect(name.clone(), stream));
    let handshake = async { handshake.await.map_err(CheckError::Tls) };
    let mut stream = within(until, Step::Handshake, handshake).await?;
    let connection = stream.get_ref().1;
    let chain = connection.peer_certificates().unwrap_or_default();
    let facts = Facts {
        certificate: chain.first().and_then(Certificate::read),
        agreed: Agreed::of(connection),
        trust: authorities.judge(chain, &name),
    };
    // All is known; how the server takes the leave does not matter.
    let _ = timeout_at(until, stream.shutdown()).await;
    Ok(facts)
}

impl From<CheckError> for Failure {
    fn from(error: CheckError) -> Self {
        if error.is_ours() {
            return Self::Ours(error.told().into());
        }
        let tls = match &error {
            CheckError::Tls(source) => source.get_ref().and_then(|source| source.downcast_ref()),
            _ => None,
        };
        match tls {
            Some(
                rustls::Error::AlertReceived(AlertDescription::ProtocolVersion)
                | rustls::Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13),
            ) => Self::OldTls,
            _ => Self::Other(error.told().into()),
        }
    }
}
