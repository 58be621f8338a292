//! TLS with an endpoint that was connected to, as part of the attempt: one whose certificate is not good, or that does not finish its
//! handshake, has failed like one that refuses, and the next one is tried. Nothing of the client's was sent to it.

use std::net::IpAddr;
use std::sync::Arc;

use metrics::Counter;
use tokio::io::AsyncWriteExt;

use super::super::endpoint::{Endpoint, Target};
use super::super::{ConnectError, Pool};
use super::{Reached, Search, Term};
use crate::net::Socket;
use crate::telemetry::{Family, Registry};
use crate::tls::{Connector, Handshake, HandshakeError, Whom};

const HANDSHAKES: Family = Family {
    name: "portcullis_backend_handshakes_total",
    help: "TLS handshakes with backends, by what came of them.",
    labels: &["route", "result"],
};

/// What may come of a handshake, in the order of [`Outcome`].
const RESULTS: [&str; 8] =
    ["full", "resumed", "certificate", "alert", "closed", "injected", "timeout", "failed"];

/// How the endpoints of a route are secured.
#[derive(Debug)]
pub(in super::super) struct Securing {
    connector: Arc<Connector>,
    results: [Counter; RESULTS.len()],
}

/// What came of a handshake; the index of its counter.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Full,
    Resumed,
    Certificate,
    Alert,
    Closed,
    Injected,
    Timeout,
    Failed,
}

impl Securing {
    /// With the endpoints of `pool`, for `route`; `None` when they do not speak TLS.
    pub(in super::super) fn new(pool: &Pool, route: &str, registry: &Registry) -> Option<Self> {
        let connector = Arc::clone(pool.connector()?);
        let results = RESULTS.map(|result| registry.counter(&HANDSHAKES, &[route, result]));
        Some(Self { connector, results })
    }

    fn count(&self, outcome: Outcome) {
        if let Some(counter) = self.results.get(outcome as usize) {
            counter.increment(1);
        }
    }
}

impl From<&HandshakeError> for Outcome {
    fn from(error: &HandshakeError) -> Self {
        match error {
            HandshakeError::Gone(_) => Self::Closed,
            HandshakeError::Alert(_) => Self::Alert,
            HandshakeError::Tls(_) if error.is_certificate() => Self::Certificate,
            HandshakeError::Injected => Self::Injected,
            HandshakeError::Tls(_)
            | HandshakeError::TooLarge
            | HandshakeError::Nameless
            | HandshakeError::Lost => Self::Failed,
        }
    }
}

impl From<HandshakeError> for ConnectError {
    fn from(error: HandshakeError) -> Self {
        if error.is_certificate() { Self::Certificate(error) } else { Self::Handshake(error) }
    }
}

impl Search<'_, '_> {
    /// Shakes hands with the endpoint, where that speaks TLS: within as much time as there is for a connection. Tells of a
    /// failure whether it is to blame for that.
    pub(super) async fn secure(
        &mut self,
        reached: &mut Reached,
        endpoint: &Endpoint,
    ) -> Result<Option<Box<Handshake>>, (ConnectError, bool)> {
        let Some(securing) = &self.upstream.securing else { return Ok(None) };
        let Term { until, fair, .. } = self.term();
        let whom = Whom {
            host: host(endpoint),
            asked: self.caller.server_name,
            ip: address(endpoint, reached),
            alpn: self.caller.alpn,
        };
        let handshake = securing.connector.begin(whom).map_err(|error| (error.into(), false))?;
        let mut handshake = Box::new(handshake);
        let rest = self.first.get(reached.sent..).unwrap_or_default();
        let socket = &mut reached.stream;
        let shaking = async {
            // What is said in clear before, all of it.
            socket.write_all(rest).await.map_err(HandshakeError::Gone)?;
            handshake.finish(socket, self.caller.buffers).await
        };
        let done = self.timer.timeout_at(until, shaking).await;
        reached.sent = self.first.len();
        match done {
            Some(Ok(())) => {
                securing.count(if handshake.is_resumed() { Outcome::Resumed } else { Outcome::Full });
                Ok(Some(handshake))
            }
            Some(Err(error)) => {
                securing.count(Outcome::from(&error));
                take_leave(&reached.stream, &mut handshake);
                let chosen = securing.connector.follows_client(whom) && is_answer(&error);
                Err((error.into(), !chosen))
            }
            None => {
                securing.count(Outcome::Timeout);
                Err((ConnectError::HandshakeTimeout, fair))
            }
        }
    }
}

/// Whether it may be how a sound backend answers to a name or a protocol that it does not have. Those that clients choose must
/// not have it passed over for everybody.
fn is_answer(error: &HandshakeError) -> bool {
    match error {
        HandshakeError::Tls(_) | HandshakeError::Alert(_) | HandshakeError::Gone(_) => true,
        HandshakeError::TooLarge
        | HandshakeError::Injected
        | HandshakeError::Nameless
        | HandshakeError::Lost => false,
    }
}

/// Tells the endpoint why, if it takes that at once: it knows best what is wrong with its certificate.
fn take_leave(socket: &Socket, handshake: &mut Handshake) {
    // It is given up either way.
    let _ = socket.send_now(&handshake.last_words());
}

/// The host that the configuration has for it; an address, or what is none, is for whoever reads it to find out.
fn host(endpoint: &Endpoint) -> Option<&str> {
    match &endpoint.target {
        Target::Tcp(_) => endpoint.name.rsplit_once(':').map(|(host, _)| host),
        Target::ServerName(_) | Target::Unix(_) => None,
    }
}

/// Where it is.
fn address(endpoint: &Endpoint, reached: &Reached) -> Option<IpAddr> {
    match (&endpoint.target, reached.named) {
        (Target::Tcp(addr), _) => Some(addr.ip()),
        (Target::ServerName(_), named) => named.map(|addr| addr.ip()),
        (Target::Unix(_), _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_a_counter() {
        let all = [
            Outcome::Full,
            Outcome::Resumed,
            Outcome::Certificate,
            Outcome::Alert,
            Outcome::Closed,
            Outcome::Injected,
            Outcome::Timeout,
            Outcome::Failed,
        ];
        let words = all.map(|outcome| format!("{outcome:?}").to_lowercase());
        assert_eq!(words, RESULTS);
        assert!(all.iter().enumerate().all(|(index, outcome)| *outcome as usize == index));
    }
}
