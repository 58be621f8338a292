//! The state of a TLS session without input and output: bytes in, plaintext and bytes out.

use std::fmt;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{ClientConfig, CommonState, Error, ServerConfig};

/// The most plaintext that is encrypted at a time, in bytes: four records.
pub(super) const MAX_PLAIN: usize = 64 * 1024;
/// Room for that encrypted, and for what may have to be said before: records add up to 40 bytes each (RFC 8446 §5.2, RFC 5246
/// §6.2.3), and an update of keys is one more.
pub(super) const MAX_SEALED: usize = MAX_PLAIN + 1024;
/// So much may be received in a row without any content, in bytes: updates of keys, tickets, records that are empty or nothing
/// but padding. All of it is work that carries nothing.
const MAX_BARREN: usize = 64 * 1024;

/// One side of a session.
pub(super) struct Session {
    side: Side,
    /// Bytes received since there was content.
    barren: usize,
    /// The peer broke the protocol, or may not go on.
    failed: bool,
}

enum Side {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// What bytes came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Advanced {
    /// So many are done with; the rest is part of a record.
    pub(super) used: usize,
    /// The peer will say no more.
    pub(super) closed: bool,
}

/// What one call of the library came to.
enum Step {
    /// There is more to do with what there is.
    Again,
    /// More bytes are needed.
    Wait,
    Closed,
}

impl Session {
    /// The server's side.
    ///
    /// # Errors
    /// When the configuration cannot work.
    pub(super) fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self { side: Side::Server(UnbufferedServerConnection::new(config)?), barren: 0, failed: false })
    }

    /// The client's side, which asks for `name` and offers these protocols.
    ///
    /// # Errors
    /// When the configuration cannot work.
    pub(super) fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        alpn: Vec<Vec<u8>>,
    ) -> Result<Self, Error> {
        let session = UnbufferedClientConnection::new_with_alpn(config, name, alpn)?;
        Ok(Self { side: Side::Client(session), barren: 0, failed: false })
    }

    /// Takes in what was received: hands on plaintext, and appends to `reply` what is to be sent.
    ///
    /// # Errors
    /// When the peer breaks the protocol or cannot be agreed with; `reply` then has the alert.
    pub(super) fn advance(
        &mut self,
        received: &mut [u8],
        plain: &mut dyn FnMut(&[u8]),
        reply: &mut Vec<u8>,
    ) -> Result<Advanced, Error> {
        let mut used = 0;
        let mut content = 0;
        let mut plain = |bytes: &[u8]| {
            content += bytes.len();
            plain(bytes);
        };
        let mut result = loop {
            let rest = received.get_mut(used..).unwrap_or_default();
            let (done, step) = match &mut self.side {
                Side::Server(session) => take(session.process_tls_records(rest), &mut plain, reply),
                Side::Client(session) => take(session.process_tls_records(rest), &mut plain, reply),
            };
            used += done;
            match step {
                Ok(Step::Again) => {}
                Ok(Step::Wait) => break Ok(Advanced { used, closed: false }),
                Ok(Step::Closed) => break Ok(Advanced { used, closed: true }),
                Err(error) => break Err(error),
            }
        };
        self.barren = if content > 0 || self.is_handshaking() { 0 } else { self.barren + used };
        if self.barren > MAX_BARREN {
            result = Err(Error::General("too much without content".to_owned()));
        }
        if result.is_err() {
            self.failed = true;
            self.collect(received.get_mut(used..).unwrap_or_default(), reply);
        }
        result
    }

    /// Appends what is left to be said after an error, which came of what `received` begins with.
    fn collect(&mut self, received: &mut [u8], reply: &mut Vec<u8>) {
        let mut ignore = |_: &[u8]| {};
        let mut used = 0;
        // A flight at most, and the alert; after that the library would find the same error, and have another alert for it.
        for _ in 0..16 {
            let start = reply.len();
            let rest = received.get_mut(used..).unwrap_or_default();
            let (done, step) = match &mut self.side {
                Side::Server(session) => take(session.process_tls_records(rest), &mut ignore, reply),
                Side::Client(session) => take(session.process_tls_records(rest), &mut ignore, reply),
            };
            used += done;
            if !matches!(step, Ok(Step::Again)) || is_alert(reply.get(start..).unwrap_or_default()) {
                return;
            }
        }
    }

    /// Encrypts the beginning of `plain` into `sealed`, which has room for [`MAX_SEALED`]; says how much of either. What was
    /// `received` and not used has to be there: the library keeps its place in the middle of a message in that, and panics without.
    ///
    /// # Errors
    /// When the session cannot carry any.
    pub(super) fn seal(
        &mut self,
        received: &mut [u8],
        plain: &[u8],
        sealed: &mut [u8],
    ) -> Result<(usize, usize), Error> {
        if self.failed {
            return Err(Error::General("the session has failed".to_owned()));
        }
        let plain = plain.get(..MAX_PLAIN).unwrap_or(plain);
        let written = match &mut self.side {
            Side::Server(session) => encrypt(session.process_tls_records(received), plain, sealed),
            Side::Client(session) => encrypt(session.process_tls_records(received), plain, sealed),
        };
        Ok((plain.len(), written?))
    }

    /// Appends to `reply` that nothing more will be said. What was `received` and not used has to be there, as for
    /// [`seal`](Self::seal).
    pub(super) fn close(&mut self, received: &mut [u8], reply: &mut Vec<u8>) {
        if self.failed {
            return;
        }
        let mut sealed = [0; 512];
        let written = match &mut self.side {
            Side::Server(session) => farewell(session.process_tls_records(received), &mut sealed),
            Side::Client(session) => farewell(session.process_tls_records(received), &mut sealed),
        };
        reply.extend_from_slice(sealed.get(..written).unwrap_or_default());
    }

    /// Whether the handshake goes on.
    pub(super) fn is_handshaking(&self) -> bool {
        self.common().is_handshaking()
    }

    /// What both sides have in common.
    pub(super) fn common(&self) -> &CommonState {
        match &self.side {
            Side::Server(session) => session,
            Side::Client(session) => session,
        }
    }

    /// The certificates that the peer has shown, its own first.
    pub(super) fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.common().peer_certificates().unwrap_or_default()
    }
}

/// Whether a record of ours is an alert: of TLS 1.3 the length tells, since encrypted it is like others, all of which are longer
/// than a level, a description, the type and a tag (RFC 8446 §5.2 and §6).
fn is_alert(record: &[u8]) -> bool {
    matches!(record, [21, ..] | [23, _, _, 0, 19, ..])
}

/// Does what one state asks for; says how many bytes are done with.
fn take<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    plain: &mut dyn FnMut(&[u8]),
    reply: &mut Vec<u8>,
) -> (usize, Result<Step, Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let step = match state {
        Err(error) => Err(error),
        Ok(ConnectionState::EncodeTlsData(encode)) => append(encode, reply).map(|()| Step::Again),
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            // It is the caller's from here on.
            transmit.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => {
                    discard += record.discard;
                    plain(record.payload);
                }
                Some(Err(error)) => break Err(error),
                None => break Ok(Step::Again),
            }
        },
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Ok(Step::Closed),
        Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => Ok(Step::Wait),
        // Early data is never offered.
        Ok(other) => Err(unready(&other)),
    };
    (discard, step)
}

fn encrypt<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    plain: &[u8],
    sealed: &mut [u8],
) -> Result<usize, Error> {
    match status.state? {
        ConnectionState::WriteTraffic(mut traffic) => {
            traffic.encrypt(plain, sealed).map_err(|error| Error::General(error.to_string()))
        }
        state => Err(unready(&state)),
    }
}

/// A session that cannot take its leave any more has said something worse.
fn farewell<Data>(status: UnbufferedStatus<'_, '_, Data>, sealed: &mut [u8]) -> usize {
    match status.state {
        Ok(ConnectionState::WriteTraffic(mut traffic)) => traffic.queue_close_notify(sealed).unwrap_or(0),
        _ => 0,
    }
}

fn unready<Data>(state: &ConnectionState<'_, '_, Data>) -> Error {
    Error::General(format!("unexpected state {state:?}"))
}

fn append<Data>(mut encode: EncodeTlsData<'_, Data>, reply: &mut Vec<u8>) -> Result<(), Error> {
    let start = reply.len();
    loop {
        match encode.encode(reply.get_mut(start..).unwrap_or_default()) {
            Ok(written) => {
                reply.truncate(start + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
                reply.resize(start + required_size, 0);
            }
            Err(error @ EncodeError::AlreadyEncoded) => return Err(Error::General(error.to_string())),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match &self.side {
            Side::Server(_) => "server",
            Side::Client(_) => "client",
        };
        f.debug_struct("Session").field("side", &side).finish_non_exhaustive()
    }
}
