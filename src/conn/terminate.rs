//! Ending TLS: from the client's hello to what is said inside.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rustls::ServerConfig;
use tracing::debug;

use super::context::Context;
use super::passthrough::{Alone, Client};
use super::peek::Limits;
use super::record::ConnRecord;
use super::refuse::{Refusal, alert};
use super::termination::{Cause, Stage, Termination};
use crate::net::{Direction, Meter, Socket, Timer};
use crate::peek::ClientHello;
use crate::tls::{Acceptor, End, Handshake, HandshakeError};

/// Handshakes of all workers that are under way, of which there may be so many at once.
#[derive(Debug)]
pub struct Handshakes {
    under_way: AtomicUsize,
    most: AtomicUsize,
}

/// A handshake that is under way, until dropped.
#[derive(Debug)]
struct UnderWay<'a>(&'a Handshakes);

impl Handshakes {
    /// So many at most.
    pub fn new(most: usize) -> Self {
        Self { under_way: AtomicUsize::new(0), most: AtomicUsize::new(most) }
    }

    /// From now on so many at most.
    pub fn resize(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    fn begin(&self) -> Option<UnderWay<'_>> {
        let most = self.most.load(Ordering::Relaxed);
        let more = |count: usize| (count < most).then_some(count + 1);
        self.under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(UnderWay(self))
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client whose hello was read, and for which TLS ends here: what it is after the handshake, or why it is none.
pub(super) async fn terminate(
    client: Client,
    hello: &ClientHello,
    acceptor: Option<&Arc<Acceptor>>,
    limits: Limits,
    record: &mut ConnRecord,
    cx: &Context,
    timer: &mut Timer<'_>,
) -> Result<Client<End>, Alone> {
    let Client { stream: mut socket, said, told, mut counted } = client;
    record.ends_tls();
    let alone = |socket: Socket, refusal, why| Err(Alone { stream: End::Plain(socket), refusal, why });
    if let Some(config) = cx.shared.challenges.tls(hello) {
        let why = show(config, (&mut socket, said), limits, cx, timer).await;
        return alone(socket, Refusal::Close, why);
    }
    let name = hello.server_name.as_ref();
    let Some(acceptor) = acceptor.filter(|acceptor| acceptor.has_certificate(name)) else {
        return alone(socket, Refusal::Alert(alert::UNRECOGNIZED_NAME), Termination::NO_CERTIFICATE);
    };
    let Some(_under_way) = cx.shared.handshakes.begin() else {
        return alone(socket, Refusal::Alert(alert::INTERNAL_ERROR), Termination::TOO_MANY_HANDSHAKES);
    };
    let began = Instant::now();
    let shaking = shake_hands(&mut socket, said, (acceptor.config(), acceptor.is_slow(name)), cx);
    match timer.timeout_at(limits.handshake_by, shaking).await {
        Some(Ok(handshake)) => {
            acceptor.metrics().succeeded(began.elapsed());
            counted.permit.hello_done();
            let mut stream = Box::new(handshake.into_stream(socket, &cx.tls));
            record.terminated(&stream.negotiated());
            let said = stream.take_said();
            record.meter().read(Direction::Up, said.len());
            Ok(Client { stream: End::Tls(stream), said, told, counted })
        }
        Some(Err((handshake, error))) => {
            debug!(%error, "no handshake");
            acceptor.metrics().failed(error.reason());
            let words = handshake.map(|mut handshake| handshake.last_words()).unwrap_or_default();
            let refusal = if words.is_empty() { Refusal::Close } else { Refusal::Answer(words.into()) };
            alone(socket, refusal, Termination::from(&error))
        }
        None => {
            acceptor.metrics().failed(HandshakeError::TIMEOUT);
            alone(socket, Refusal::Close, Termination::HANDSHAKE_TIMEOUT)
        }
    }
}

/// Shakes hands with an authority that looks whether the name is ours, which is all that it wants (RFC 8737 §3).
async fn show(
    config: Arc<ServerConfig>,
    (socket, said): (&mut Socket, Vec<u8>),
    limits: Limits,
    cx: &Context,
    timer: &mut Timer<'_>,
) -> Termination {
    let Some(_under_way) = cx.shared.handshakes.begin() else { return Termination::TOO_MANY_HANDSHAKES };
    match timer.timeout_at(limits.handshake_by, shake_hands(socket, said, (&config, false), cx)).await {
        Some(Ok(_)) => Termination::CHALLENGED,
        Some(Err((_, error))) => Termination::from(&error),
        None => Termination::HANDSHAKE_TIMEOUT,
    }
}

/// The whole handshake, the work of which is done here or, where that would take too long, elsewhere.
async fn shake_hands(
    socket: &mut Socket,
    said: Vec<u8>,
    (config, slow): (&Arc<ServerConfig>, bool),
    cx: &Context,
) -> Result<Box<Handshake>, (Option<Box<Handshake>>, HandshakeError)> {
    let handshake = Handshake::accept(Arc::clone(config), said);
    let mut handshake = Box::new(handshake.map_err(|error| (None, error))?);
    if slow || !cx.may_shake_hands() {
        handshake = cx.shared.crew.advance(handshake).await?;
    }
    match handshake.finish(socket, &cx.tls).await {
        Ok(()) => Ok(handshake),
        Err(error) => Err((Some(handshake), error)),
    }
}

impl From<&HandshakeError> for Termination {
    fn from(error: &HandshakeError) -> Self {
        // A thread that panicked is a defect of ours.
        let ours = matches!(error, HandshakeError::Lost);
        let cause = if ours { Cause::Internal } else { Cause::Client };
        Self { cause, stage: Stage::Handshake, reason: Some(error.reason()) }
    }
}
