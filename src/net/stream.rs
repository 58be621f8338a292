//! Connections to backends, over TCP or a Unix socket.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use super::pipe::{Filled, Pipe};
use super::relay::Conduit;
use super::sockopt;

/// A connection to a backend.
#[derive(Debug)]
pub enum Upstream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

/// Connects over TCP. Cancel safe: dropping the future closes the socket.
///
/// # Errors
/// What the kernel says about the socket or the connection; `ConnectionRefused` also when nobody listened
/// and the kernel chose the very port of `addr` for this end, so that the socket met itself (RFC 9293 §3.5,
/// simultaneous open).
pub async fn connect_tcp(addr: SocketAddr) -> io::Result<Upstream> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    sockopt::relayed(SockRef::from(&socket))?;
    let stream = socket.connect(addr).await?;
    if addr.ip().is_loopback() && stream.local_addr()? == addr {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(Upstream::Tcp(stream))
}

/// Connects to a Unix socket. Cancel safe.
///
/// # Errors
/// What the kernel says, `WouldBlock` when the backend's queue is full.
pub async fn connect_unix(path: &Path) -> io::Result<Upstream> {
    UnixStream::connect(path).await.map(Upstream::Unix)
}

impl AsFd for Upstream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsyncRead for Upstream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A readiness-driven splice for one type of stream.
macro_rules! conduit {
    ($stream:ty) => {
        impl Conduit for $stream {
            fn poll_fill(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<Filled>> {
                loop {
                    ready!(self.poll_read_ready(cx))?;
                    match self.try_io(Interest::READABLE, || pipe.fill(self)) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        result => return Poll::Ready(result),
                    }
                }
            }

            fn poll_drain(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
                loop {
                    ready!(self.poll_write_ready(cx))?;
                    match self.try_io(Interest::WRITABLE, || pipe.drain(self)) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        result => return Poll::Ready(result),
                    }
                }
            }

            fn take_error(&self) -> Option<io::Error> {
                <$stream>::take_error(self).unwrap_or_else(Some)
            }
        }
    };
}

conduit!(TcpStream);
conduit!(UnixStream);

impl Conduit for Upstream {
    fn poll_fill(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<Filled>> {
        match self {
            Self::Tcp(stream) => stream.poll_fill(cx, pipe),
            Self::Unix(stream) => stream.poll_fill(cx, pipe),
        }
    }

    fn poll_drain(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => stream.poll_drain(cx, pipe),
            Self::Unix(stream) => stream.poll_drain(cx, pipe),
        }
    }

    fn take_error(&self) -> Option<io::Error> {
        match self {
            Self::Tcp(stream) => Conduit::take_error(stream),
            Self::Unix(stream) => Conduit::take_error(stream),
        }
    }
}
