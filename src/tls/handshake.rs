//! Handshakes.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, HandshakeKind, ServerConfig};
use tokio::io::AsyncWriteExt;

use super::session::Session;
use super::stream::{Buffers, TlsStream};
use crate::net::Socket;

/// The most that is read of a peer during its handshake, in bytes: chains of certificates of clients come to a few thousand.
const MAX_RECEIVED: usize = 128 * 1024;

/// What the first record of a server may be: an alert, or part of the handshake (RFC 8446 §5.1).
const RECORDS: [u8; 2] = [21, 22];

/// Why no handshake came of it.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer ended its stream, or the connection failed.
    #[error("the peer went during the handshake")]
    Gone(#[source] io::Error),
    /// The peer ended the handshake with this alert.
    #[error("the peer refused: {0:?}")]
    Alert(AlertDescription),
    /// Both have no version, suite, group or protocol in common, or the peer's certificate is not good.
    #[error(transparent)]
    Tls(Error),
    /// More was received than a handshake needs.
    #[error("the peer sent more than a handshake needs")]
    TooLarge,
    /// The peer, a server, spoke before it was spoken to, or not in TLS.
    #[error("the peer sent bytes before the handshake")]
    Injected,
    /// Nothing says who the peer must be.
    #[error("neither a name nor an address says who the peer must be")]
    Nameless,
    /// The thread that worked on it is gone.
    #[error("the handshake was lost with its thread")]
    Lost,
}

/// A handshake as far as it has come; it may be worked on by any thread.
pub struct Handshake {
    session: Session,
    /// What was received and not taken in yet.
    received: Vec<u8>,
    /// What is to be sent.
    reply: Vec<u8>,
    /// What came behind the peer's last message.
    plain: Vec<u8>,
    taken: usize,
    ended: bool,
    /// Whether this side speaks first.
    speaks_first: bool,
}

impl Handshake {
    /// The server's side, of a client that has said so much.
    ///
    /// # Errors
    /// When the configuration cannot work.
    pub fn accept(config: Arc<ServerConfig>, said: Vec<u8>) -> Result<Self, HandshakeError> {
        Ok(Self::new(Session::server(config)?, said))
    }

    /// The client's side, which asks for `name` and offers the protocols of `alpn`.
    ///
    /// # Errors
    /// When the configuration cannot work.
    pub fn connect(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        alpn: Vec<Vec<u8>>,
    ) -> Result<Self, HandshakeError> {
        let handshake = Self::new(Session::client(config, name, alpn)?, Vec::new());
        Ok(Self { speaks_first: true, ..handshake })
    }

    fn new(session: Session, received: Vec<u8>) -> Self {
        let taken = received.len();
        Self {
            session,
            received,
            reply: Vec::new(),
            plain: Vec::new(),
            taken,
            ended: false,
            speaks_first: false,
        }
    }

    /// Does the work that there is: hundreds of microseconds where it is to sign.
    ///
    /// # Errors
    /// When nothing can come of it; the peer may have to be told.
    pub fn advance(&mut self) -> Result<(), HandshakeError> {
        let Self { session, received, reply, plain, ended, .. } = self;
        let advanced = session.advance(received, &mut |bytes| plain.extend_from_slice(bytes), reply)?;
        received.drain(..advanced.used);
        *ended |= advanced.closed;
        Ok(())
    }

    /// Speaks with the peer from here to the end of the handshake. Not cancel safe: what was received is lost.
    ///
    /// # Errors
    /// When nothing came of it; [`last_words`](Self::last_words) may have to be sent.
    pub async fn finish(&mut self, socket: &mut Socket, buffers: &Buffers) -> Result<(), HandshakeError> {
        if self.speaks_first && !socket.has_nothing_left() {
            // Nobody in TLS speaks before the client: not the server then, or one that was not asked for TLS.
            return Err(HandshakeError::Injected);
        }
        loop {
            self.advance()?;
            if !self.reply.is_empty() {
                let reply = std::mem::take(&mut self.reply);
                socket.write_all(&reply).await.map_err(HandshakeError::Gone)?;
            }
            if !self.session.is_handshaking() {
                return Ok(());
            }
            if self.ended {
                return Err(HandshakeError::Gone(io::ErrorKind::UnexpectedEof.into()));
            }
            self.receive(socket, buffers).await?;
        }
    }

    /// Whether a session from before went on.
    pub fn is_resumed(&self) -> bool {
        self.session.common().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// What the peer of a handshake that failed is to be told, in its own protocol.
    pub fn last_words(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.reply)
    }

    /// The connection after the handshake.
    pub fn into_stream(self, socket: Socket, buffers: &Rc<Buffers>) -> TlsStream {
        let Self { session, received, plain, ended, .. } = self;
        TlsStream::new(socket, session, buffers, &received, plain, ended)
    }

    async fn receive(&mut self, socket: &mut Socket, buffers: &Buffers) -> Result<(), HandshakeError> {
        let n = poll_fn(|cx| buffers.poll_receive(cx, socket, &mut self.received)).await;
        let first = self.taken == 0;
        self.taken += n.map_err(HandshakeError::Gone)?;
        if first && self.speaks_first && !self.received.first().is_some_and(|byte| RECORDS.contains(byte)) {
            return Err(HandshakeError::Injected);
        }
        if self.taken > MAX_RECEIVED { Err(HandshakeError::TooLarge) } else { Ok(()) }
    }
}

impl HandshakeError {
    /// The word for one that was not over in time.
    pub const TIMEOUT: &str = "handshake_timeout";
    /// All that [`reason`](Self::reason) can give.
    pub const REASONS: [&str; 14] = [
        "handshake_closed",
        "handshake_untrusted",
        "handshake_expired",
        "handshake_alert",
        "handshake_too_large",
        "handshake_injected",
        "handshake_lost",
        "handshake_incompatible",
        "no_application_protocol",
        "no_client_certificate",
        "certificate_revoked",
        "certificate_expired",
        "bad_certificate",
        "handshake_failed",
    ];

    /// Why, in a word of a fixed list.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Gone(_) => "handshake_closed",
            Self::Alert(AlertDescription::UnknownCA | AlertDescription::BadCertificate) => {
                "handshake_untrusted"
            }
            Self::Alert(AlertDescription::CertificateExpired) => "handshake_expired",
            Self::Alert(_) => "handshake_alert",
            Self::TooLarge => "handshake_too_large",
            Self::Injected => "handshake_injected",
            Self::Nameless => "handshake_nameless",
            Self::Lost => "handshake_lost",
            Self::Tls(error) => match error {
                Error::PeerIncompatible(_) => "handshake_incompatible",
                Error::NoApplicationProtocol => "no_application_protocol",
                Error::NoCertificatesPresented => "no_client_certificate",
                Error::InvalidCertificate(CertificateError::Revoked) => "certificate_revoked",
                Error::InvalidCertificate(
                    CertificateError::Expired | CertificateError::ExpiredContext { .. },
                ) => "certificate_expired",
                Error::InvalidCertificate(_) | Error::InvalidCertRevocationList(_) => "bad_certificate",
                _ => "handshake_failed",
            },
        }
    }
}

impl HandshakeError {
    /// Whether it is the peer's certificate, or that it has shown none.
    pub fn is_certificate(&self) -> bool {
        matches!(
            self,
            Self::Tls(
                Error::InvalidCertificate(_)
                    | Error::InvalidCertRevocationList(_)
                    | Error::NoCertificatesPresented
            )
        )
    }
}

impl From<Error> for HandshakeError {
    fn from(error: Error) -> Self {
        match error {
            Error::AlertReceived(alert) => Self::Alert(alert),
            error => Self::Tls(error),
        }
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").field("session", &self.session).finish_non_exhaustive()
    }
}
