//! A connection with TLS over it. While nothing passes it holds the state of the session and no buffer: records are read into, and
//! made in, two buffers that all connections of a thread share. What is left over, the beginning of a record or what the socket
//! did not take, is kept in allocations of its size.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use rustls::pki_types::CertificateDer;
use rustls::{CipherSuite, HandshakeKind, NamedGroup, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::session::{Advanced, MAX_PLAIN, MAX_SEALED, Session};
use crate::net::{Conduit, Filled, Pipe, Socket};
use crate::peek::{Group, Handshake, KeyExchange, TlsVersion};

/// What is read of a connection at a time, in bytes.
const READ: usize = 64 * 1024;
/// The longest record (RFC 5246 §6.2.3), of which all but a byte may have to wait for the rest.
const RECORD: usize = 5 + (1 << 14) + 2048;
/// The least that is asked of a socket: little room for plaintext is no reason to read records in many pieces.
const READ_LEAST: usize = 4096;
/// Reads without content before other connections have their turn.
const ROUNDS: usize = 16;

/// What the connections of a thread share.
#[derive(Debug)]
pub struct Buffers {
    received: RefCell<Box<[u8]>>,
    sealed: RefCell<Box<[u8]>>,
}

/// A connection with TLS over it.
pub struct TlsStream {
    socket: Socket,
    session: Session,
    buffers: Rc<Buffers>,
    /// What was received of a record that is not whole yet.
    received: Box<[u8]>,
    /// Plaintext for which the reader had no room, and how much of it has been read since.
    plain: (Box<[u8]>, usize),
    /// What the socket did not take, and how much of it since.
    sealed: (Box<[u8]>, usize),
    /// The peer has said that it will say no more.
    ended: bool,
    /// It was told so.
    closed: bool,
}

/// What a handshake came to.
#[derive(Clone, Copy, Debug)]
pub struct Negotiated<'a> {
    /// The version.
    pub version: Option<ProtocolVersion>,
    /// The cipher suite.
    pub suite: Option<CipherSuite>,
    /// The group of the key exchange; of a resumed session of TLS 1.2 there was none.
    pub group: Option<NamedGroup>,
    /// The protocol inside.
    pub alpn: Option<&'a [u8]>,
    /// Whether a session from before went on.
    pub resumed: bool,
    /// The certificates that the peer has shown, its own first.
    pub certificates: &'a [CertificateDer<'static>],
}

impl Negotiated<'_> {
    /// The same as for handshakes that pass.
    pub fn as_handshake(&self) -> Handshake {
        Handshake {
            version: self.version.map(|version| TlsVersion::of(version.into())),
            key_exchange: Some(match self.group {
                Some(group) => KeyExchange::Group(Group::of(group.into())),
                None => KeyExchange::None,
            }),
            resumed: Some(self.resumed),
        }
    }

    /// The version, as people write it.
    pub fn version(&self) -> &'static str {
        match self.version {
            Some(ProtocolVersion::TLSv1_3) => "1.3",
            Some(ProtocolVersion::TLSv1_2) => "1.2",
            _ => "unknown",
        }
    }
}

impl Buffers {
    /// Buffers for the connections of one thread.
    pub fn new() -> Rc<Self> {
        let buffer = |len| RefCell::new(vec![0; len].into());
        Rc::new(Self { received: buffer(READ + RECORD), sealed: buffer(MAX_SEALED) })
    }

    /// Appends to `received` what there is to be read; an end of the stream is an error.
    pub(super) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        socket: &mut Socket,
        received: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        let mut buffer = self.received.borrow_mut();
        let mut read = ReadBuf::new(buffer.get_mut(..RECORD).unwrap_or_default());
        ready!(Pin::new(socket).poll_read(cx, &mut read))?;
        if read.filled().is_empty() {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        received.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }
}

impl TlsStream {
    /// The connection after its handshake, with what was `received` beyond that.
    pub(super) fn new(
        socket: Socket,
        session: Session,
        buffers: &Rc<Buffers>,
        received: &[u8],
        plain: Vec<u8>,
        ended: bool,
    ) -> Self {
        Self {
            socket,
            session,
            buffers: Rc::clone(buffers),
            received: received.into(),
            plain: (plain.into(), 0),
            sealed: Default::default(),
            ended,
            closed: false,
        }
    }

    /// What TLS is spoken over.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// What the peer has said already, all of it.
    pub fn take_said(&mut self) -> Vec<u8> {
        let (bytes, read) = std::mem::take(&mut self.plain);
        bytes.get(read..).unwrap_or_default().to_vec()
    }

    /// What the handshake came to.
    pub fn negotiated(&self) -> Negotiated<'_> {
        let common = self.session.common();
        Negotiated {
            version: common.protocol_version(),
            suite: common.negotiated_cipher_suite().map(|suite| suite.suite()),
            group: common.negotiated_key_exchange_group().map(|group| group.name()),
            alpn: common.alpn_protocol(),
            resumed: common.handshake_kind() == Some(HandshakeKind::Resumed),
            certificates: self.session.peer_certificates(),
        }
    }

    /// Takes in what there is: content goes to `buf` and what that has no room for to `plain`. Pending when there is nothing more
    /// to take in.
    fn poll_advance(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let buffers = Rc::clone(&self.buffers);
        let mut buffer = buffers.received.borrow_mut();
        let kept = self.received.len();
        if let Some(room) = buffer.get_mut(..kept) {
            room.copy_from_slice(&self.received);
        }
        // What is read has room as plaintext, as a rule.
        let most = buf.remaining().saturating_sub(kept).clamp(READ_LEAST, READ);
        let mut read = ReadBuf::new(buffer.get_mut(kept..kept + most).unwrap_or_default());
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut read))?;
        if read.filled().is_empty() {
            // RFC 8446 §6.1: without the alert somebody else may have cut the stream.
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        let have = kept + read.filled().len();
        let mut reply = Vec::new();
        let mut over = Vec::new();
        let mut take = |bytes: &[u8]| {
            let (fits, rest) = bytes.split_at(bytes.len().min(buf.remaining()));
            buf.put_slice(fits);
            over.extend_from_slice(rest);
        };
        let received = buffer.get_mut(..have).unwrap_or_default();
        let advanced = self.session.advance(received, &mut take, &mut reply);
        self.plain = (over.into(), 0);
        self.say(cx, &reply)?;
        let Advanced { used, closed } = advanced.map_err(invalid)?;
        self.ended |= closed;
        self.received = buffer.get(used..have).unwrap_or_default().into();
        Poll::Ready(Ok(()))
    }

    /// Sends `bytes` after what is on its way, or keeps what cannot be sent now.
    fn say(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        if self.poll_unsent(cx)?.is_ready() {
            while !rest.is_empty() {
                match Pin::new(&mut self.socket).poll_write(cx, rest) {
                    Poll::Ready(written) => rest = rest.get(written?..).unwrap_or_default(),
                    Poll::Pending => break,
                }
            }
        }
        if !rest.is_empty() {
            let (before, sent) = std::mem::take(&mut self.sealed);
            self.sealed = ([before.get(sent..).unwrap_or_default(), rest].concat().into(), 0);
        }
        Ok(())
    }

    /// Ready when nothing waits to be sent.
    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (bytes, sent) = &mut self.sealed;
        while let Some(rest) = bytes.get(*sent..).filter(|rest| !rest.is_empty()) {
            *sent += ready!(Pin::new(&mut self.socket).poll_write(cx, rest))?;
        }
        self.sealed = Default::default();
        Poll::Ready(Ok(()))
    }

    fn plain_left(&self) -> &[u8] {
        self.plain.0.get(self.plain.1..).unwrap_or_default()
    }
}

/// What a peer that breaks the protocol is to those above.
fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// A stream that ends without the alert that announces it is an error, `UnexpectedEof`.
impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Answers to the peer's own messages: nobody else sees to them.
        let _ = this.poll_unsent(cx)?;
        for _ in 0..ROUNDS {
            let left = this.plain_left();
            if !left.is_empty() {
                let n = left.len().min(buf.remaining());
                buf.put_slice(left.get(..n).unwrap_or_default());
                this.plain.1 += n;
                if this.plain_left().is_empty() {
                    this.plain = Default::default();
                }
                return Poll::Ready(Ok(()));
            }
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            let before = buf.filled().len();
            ready!(this.poll_advance(cx, buf))?;
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// What was taken is on its way only once it is flushed.
impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_unsent(cx))?;
        let buffers = Rc::clone(&this.buffers);
        let mut buffer = buffers.sealed.borrow_mut();
        let bytes = bytes.get(..MAX_PLAIN).unwrap_or(bytes);
        let (taken, made) = this.session.seal(&mut this.received, bytes, &mut buffer).map_err(invalid)?;
        this.say(cx, buffer.get(..made).unwrap_or_default())?;
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_unsent(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.closed, true) {
            let mut farewell = Vec::new();
            this.session.close(&mut this.received, &mut farewell);
            match this.say(cx, &farewell) {
                // A peer that has taken its leave may be gone.
                Err(_) if this.ended => this.sealed = Default::default(),
                said => said?,
            }
        }
        ready!(this.poll_unsent(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

impl Conduit for TlsStream {
    fn poll_fill(&self, _: &mut Context<'_>, _: &mut Pipe, _: usize) -> Poll<io::Result<Filled>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    fn poll_drain(&self, _: &mut Context<'_>, _: &mut Pipe) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    fn take_error(&self) -> Option<io::Error> {
        self.socket.take_error()
    }

    fn keep_alive(&self) {
        self.socket.keep_alive();
    }

    fn can_splice(&self) -> bool {
        false
    }

    /// RFC 8446 §6.1: an end that was not announced may be somebody else's.
    fn is_ended_by_closing(&self) -> bool {
        false
    }
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("socket", &self.socket)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}
