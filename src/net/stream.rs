//! Connections to backends, over TCP or a Unix socket.

use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

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

/// Where a backend is.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// At an address.
    Tcp(SocketAddr),
    /// At a Unix socket.
    Unix(&'a Path),
}

/// Connects and sends what is `first` for the backend, or a part of it; says how much. Cancel safe: dropping
/// the future closes the socket.
///
/// # Errors
/// What the kernel says about the socket or the connection, which then has taken nothing; `WouldBlock` when
/// the queue of a Unix socket is full.
pub async fn connect(place: Place<'_>, first: &[u8]) -> io::Result<(Upstream, usize)> {
    match place {
        Place::Tcp(addr) => connect_tcp(addr, first).await,
        // The relay sends it.
        Place::Unix(path) => Ok((Upstream::Unix(UnixStream::connect(path).await?), 0)),
    }
}

/// A socket that met itself is refused: nobody listened, and the kernel chose the very port of `addr` for
/// this end (RFC 9293 §3.5, simultaneous open).
async fn connect_tcp(addr: SocketAddr, first: &[u8]) -> io::Result<(Upstream, usize)> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    sockopt::undelayed(&SockRef::from(&socket))?;
    if !first.is_empty() {
        // The acknowledgement that ends the handshake travels with the first bytes, not before them.
        socket.set_tcp_quickack(false)?;
    }
    if let Err(error) = socket.connect(&addr.into())
        && Errno::from_io_error(&error) != Some(Errno::INPROGRESS)
    {
        return Err(error);
    }
    if is_itself(&socket, addr)? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    // Before anything is sent: whatever fails, another backend may still be tried.
    let stream = TcpStream::from_std(socket.into())?;
    // The kernel has shaken hands with its own side before it came back: no need to wait for that.
    let mut sent = if addr.ip().is_loopback() { send_now(&SockRef::from(&stream), first)? } else { 0 };
    if first.is_empty() {
        stream.writable().await?;
        return stream.take_error()?.map_or(Ok((Upstream::Tcp(stream), 0)), Err);
    }
    if sent == 0 {
        // Tells of a failed connection, too.
        sent = stream.async_io(Interest::WRITABLE, || SockRef::from(&stream).send(first)).await?;
    }
    // A backend that sends its answer in small pieces (Nagle, RFC 896) waits for each to be acknowledged. Should
    // this fail it costs 40 ms; the backend has its bytes and no other may get them.
    let _ = SockRef::from(&stream).set_tcp_quickack(true);
    Ok((Upstream::Tcp(stream), sent))
}

/// Whether the socket is connected to itself. `addr` may be any address of this host, or stand for one.
fn is_itself(socket: &Socket, addr: SocketAddr) -> io::Result<bool> {
    if !is_ephemeral(addr.port()) {
        return Ok(false);
    }
    let local = socket.local_addr()?.as_socket();
    let same_port = local.is_some_and(|local| local.port() == addr.port());
    // Without a peer yet, it has not met anyone.
    Ok(same_port && socket.peer_addr().is_ok_and(|peer| peer.as_socket() == local))
}

/// Whether the kernel may choose this port for a connection (ip(7), `ip_local_port_range`, as it was first
/// read: a change while this runs is not noticed).
fn is_ephemeral(port: u16) -> bool {
    static RANGE: OnceLock<RangeInclusive<u16>> = OnceLock::new();
    let range = RANGE.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let mut bounds = text.split_whitespace().map(str::parse);
        match (bounds.next(), bounds.next()) {
            (Some(Ok(first)), Some(Ok(last))) => first..=last,
            // Unknown: it may choose any.
            _ => 0..=u16::MAX,
        }
    });
    range.contains(&port)
}

/// Sends what fits, 0 when nothing does now.
fn send_now(socket: &SockRef<'_>, bytes: &[u8]) -> io::Result<usize> {
    if bytes.is_empty() {
        return Ok(0);
    }
    match socket.send(bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
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

            fn has_been_drained(&self) -> bool {
                // A read with room to spare has taken the readiness away, except for that of an end, or of
                // a failure, which looks like an end as well.
                self.try_io(Interest::READABLE, || Ok(())).is_ok()
                    && self.try_io(Interest::ERROR, || Ok(())).is_err()
            }

            fn poll_write_more(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
                loop {
                    ready!(self.poll_write_ready(cx))?;
                    match self.try_io(Interest::WRITABLE, || Ok(send(&*self, bytes, flags)?)) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        result => return Poll::Ready(result),
                    }
                }
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

    fn has_been_drained(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.has_been_drained(),
            Self::Unix(stream) => stream.has_been_drained(),
        }
    }

    fn poll_write_more(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_more(cx, bytes),
            Self::Unix(stream) => stream.poll_write_more(cx, bytes),
        }
    }

    fn keep_alive(&self) {
        // A client's connection inherits it from its listener. Where it cannot be set, idle limits remain.
        if let Self::Tcp(stream) = self {
            let _ = sockopt::keep_alive(&SockRef::from(stream));
        }
    }
}
