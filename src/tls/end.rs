//! One end of a connection: a socket, or TLS over one.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Buffers, Handshake, TlsStream};
use crate::net::{Conduit, Filled, Pipe, Socket};

/// One end of a connection.
#[derive(Debug)]
pub enum End {
    /// Bytes as they are.
    Plain(Socket),
    /// What is inside TLS.
    Tls(Box<TlsStream>),
}

impl End {
    /// The end at `socket`, where it is one with the TLS that was agreed on.
    pub fn new(socket: Socket, tls: Option<Box<Handshake>>, buffers: &Rc<Buffers>) -> Self {
        match tls {
            Some(handshake) => Self::Tls(Box::new(handshake.into_stream(socket, buffers))),
            None => Self::Plain(socket),
        }
    }

    /// The protocol inside TLS that was agreed on.
    pub fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.negotiated().alpn,
        }
    }

    /// What it is read from.
    pub fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.socket(),
        }
    }
}

impl From<Socket> for End {
    fn from(socket: Socket) -> Self {
        Self::Plain(socket)
    }
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl Conduit for End {
    fn can_splice(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    fn poll_fill(&self, cx: &mut Context<'_>, pipe: &mut Pipe, most: usize) -> Poll<io::Result<Filled>> {
        match self {
            Self::Plain(socket) => socket.poll_fill(cx, pipe, most),
            Self::Tls(stream) => stream.poll_fill(cx, pipe, most),
        }
    }

    fn poll_drain(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => socket.poll_drain(cx, pipe),
            Self::Tls(stream) => stream.poll_drain(cx, pipe),
        }
    }

    fn take_error(&self) -> Option<io::Error> {
        self.socket().take_error()
    }

    fn has_been_drained(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.has_been_drained(),
            Self::Tls(_) => false,
        }
    }

    fn is_ended_by_closing(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    fn poll_write_more(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => socket.poll_write_more(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn keep_alive(&self) {
        self.socket().keep_alive();
    }
}
