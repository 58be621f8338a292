//! Connections of either side, over TCP or a Unix socket, on the event loop of their thread.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use rustix::io::{Errno, ioctl_fionread};
use rustix::net::{RecvFlags, SendFlags, Shutdown, getsockname, recv, send, shutdown, sockopt::socket_error};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::pipe::{Filled, Pipe};
use super::reactor::{Interest, Reactor, Ready, Trigger, Watched};
use super::relay::Conduit;
use super::sockopt;

/// A connection.
#[derive(Debug)]
pub struct Socket(Watched<OwnedFd>);

impl Socket {
    /// A connection that was accepted: it has room to write, and nothing is known of what it sent.
    pub fn accepted(socket: OwnedFd, reactor: &Rc<Reactor>) -> Self {
        Self(Watched::new(socket, Trigger::Edge, Ready::WRITE, reactor))
    }

    /// A connection that may not be made yet.
    pub(super) fn connecting(socket: OwnedFd, reactor: &Rc<Reactor>) -> Self {
        Self(Watched::new(socket, Trigger::Edge, Ready::NOTHING, reactor))
    }

    /// The next read tries at once: there is probably something.
    pub fn expect_bytes(&self) {
        self.0.learn(Ready::READ);
    }

    /// Watches it, or finds out that it cannot be watched before anything depends on it.
    ///
    /// # Errors
    /// When the kernel watches too many descriptors already (epoll(7), `max_user_watches`).
    pub fn watch(&self) -> io::Result<()> {
        self.0.watch(Interest::Read)
    }

    /// Ready when the peer is gone: when the connection has failed or, where that counts, its stream has `ended`. Only once it
    /// is watched, and while nobody reads.
    pub fn poll_gone(&self, cx: &Context<'_>, ended: bool) -> Poll<()> {
        self.0.poll_gone(cx, ended)
    }

    /// Ready when there is something to read, an end or a failure; for who does not read yet.
    pub fn poll_heard(&self, cx: &Context<'_>) -> Poll<()> {
        // That it cannot be watched is for whoever reads to find out.
        self.0.poll_readable(cx).map(|_| ())
    }

    /// Whether there is nothing to read, now.
    pub fn has_nothing_left(&self) -> bool {
        ioctl_fionread(self).is_ok_and(|bytes| bytes == 0)
    }

    /// The address of this end, of a TCP connection.
    ///
    /// # Errors
    /// What the kernel says, or that it is no IP address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let addr = getsockname(self)?;
        SocketAddr::try_from(addr).map_err(|_| io::ErrorKind::Unsupported.into())
    }

    pub(super) fn watch_both(&self) -> io::Result<()> {
        self.0.watch(Interest::ReadWrite)
    }

    /// Sends what fits; 0 when nothing does now, or there is nothing.
    ///
    /// # Errors
    /// What the kernel says of the connection, which then has taken nothing.
    pub fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        match send(self, bytes, SendFlags::NOSIGNAL) {
            Ok(n) => {
                self.0.learn(Ready::WRITE);
                Ok(n)
            }
            Err(Errno::AGAIN) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Ready when it is connected, or failed to.
    pub(super) fn poll_writable(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_writable(cx)
    }

    pub(super) fn poll_send(
        &self,
        cx: &Context<'_>,
        bytes: &[u8],
        flags: SendFlags,
    ) -> Poll<io::Result<usize>> {
        let write = |socket: &OwnedFd| Ok(send(socket, bytes, flags | SendFlags::NOSIGNAL)?);
        let sent = ready!(self.0.poll_write_with(cx, write));
        if sent.as_ref().is_ok_and(|sent| *sent < bytes.len()) {
            // It is full: trying again would only say so.
            self.0.forget(Ready::WRITE);
        }
        Poll::Ready(sent)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.io().as_fd()
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buf.initialize_unfilled();
        let read = |socket: &OwnedFd| Ok(recv(socket, &mut *room, RecvFlags::empty())?.0);
        let n = ready!(self.0.poll_read_with(cx, read))?;
        if (1..room.len()).contains(&n) {
            // That was all: reading again would only say so. Unless it stopped before urgent data, which is known.
            self.0.forget(Ready::READ);
        }
        buf.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bytes, SendFlags::empty())
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match shutdown(&*self, Shutdown::Write) {
            // The peer has reset it, or both have ended: it is told no more, and what it has sent may be unread.
            Ok(()) | Err(Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

impl Conduit for Socket {
    fn poll_fill(&self, cx: &mut Context<'_>, pipe: &mut Pipe, most: usize) -> Poll<io::Result<Filled>> {
        self.0.poll_read_with(cx, |socket| pipe.fill(socket, most, self.0.is_urgent()))
    }

    fn poll_drain(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        self.0.poll_write_with(cx, |socket| pipe.drain(socket))
    }

    fn take_error(&self) -> Option<io::Error> {
        match socket_error(self) {
            Ok(Ok(())) => None,
            Ok(Err(error)) | Err(error) => Some(error.into()),
        }
    }

    fn has_been_drained(&self) -> bool {
        self.0.is_ending()
    }

    fn poll_write_more(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bytes, SendFlags::MORE)
    }

    fn keep_alive(&self) {
        // Unix sockets have none and need none. Where it cannot be set, idle limits remain.
        let _ = sockopt::keep_alive(&SockRef::from(self));
    }
}
