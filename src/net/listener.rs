//! Listening sockets: one a worker for each address, sharing the port by SO_REUSEPORT.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::addr::ListenAddr;
use super::reactor::{Reactor, Ready, Trigger, Watched};
use super::sockopt;

/// Connections accepted in a row before others of this thread run: a few hundred microseconds of work.
const BATCH: u32 = 32;

/// Binds one of the sockets that share `addr`. With port 0 the kernel chooses one for the first socket; the
/// others are bound to the address that the first one has.
///
/// # Errors
/// What the kernel says, `AddrInUse` when a socket of another program has the port.
pub fn bind(addr: ListenAddr) -> io::Result<TcpListener> {
    let (socket, addr) = open(addr)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    sockopt::listening(SockRef::from(&socket))?;
    socket.bind(&addr.into())?;
    socket.listen(sockopt::BACKLOG.cast_signed())?;
    Ok(socket.into())
}

/// Makes a listening socket of another process like those of [`bind`].
///
/// # Errors
/// What the kernel says.
pub fn adopt(socket: &TcpListener) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_nonblocking(true)?;
    // On a socket that listens already, this only sets how many may wait.
    socket.listen(sockopt::BACKLOG.cast_signed())?;
    sockopt::listening(socket)
}

/// A socket for `addr`, and the address to bind it to.
fn open(addr: ListenAddr) -> io::Result<(Socket, SocketAddr)> {
    let new = |addr: SocketAddr| Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP));
    let (socket, bind) = match new(addr.socket()) {
        // A kernel without IPv6: all addresses are the IPv4 ones.
        Err(error) if addr.dual_stack() && Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT) => {
            let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, addr.socket().port()));
            (new(v4)?, v4)
        }
        result => (result?, addr.socket()),
    };
    if bind.is_ipv6() {
        socket.set_only_v6(!addr.dual_stack())?;
    }
    // Past connections in TIME_WAIT do not keep a restart from binding.
    socket.set_reuse_address(true)?;
    Ok((socket, bind))
}

/// Binds `addr` for a moment without sharing it, to find out whether another program has it: sockets that
/// share a port would let the two split the connections between them unnoticed.
///
/// # Errors
/// `AddrInUse` when another program has the port, or what else the kernel says.
pub fn probe(addr: ListenAddr) -> io::Result<()> {
    let (socket, addr) = open(addr)?;
    // Without listening: a client must not get into the queue of a socket that is closed at once.
    socket.bind(&addr.into())
}

/// A listening socket on a worker's event loop.
#[derive(Debug)]
pub struct Listener {
    socket: Watched<Arc<TcpListener>>,
    /// How many to accept before the others of this thread have their turn, and how many of them are left.
    batch: Cell<u32>,
    left: Cell<u32>,
    /// The turn of the loop in which the last one was accepted.
    turn: Cell<u64>,
}

/// A connection as it was accepted: not yet known to the event loop, so that refusing it costs only its close.
#[derive(Debug)]
pub struct AcceptedSocket {
    /// The connection, non-blocking.
    pub socket: OwnedFd,
    /// The client.
    pub peer: SocketAddr,
    /// Whether it waited while others were served: what the client says first is probably there.
    pub waited: bool,
}

impl Listener {
    /// A bound socket, on the event loop of this thread.
    pub fn new(socket: Arc<TcpListener>, reactor: &Rc<Reactor>) -> Self {
        // The kernel tells of the queue as long as it is not empty: no need to find out by accepting.
        let socket = Watched::new(socket, Trigger::Level, Ready::NOTHING, reactor);
        Self { socket, batch: Cell::new(1), left: Cell::new(0), turn: Cell::new(0) }
    }

    /// The next connection. Cancel safe.
    ///
    /// # Errors
    /// What `accept4` says. None of it says that the listener is broken: the next call may succeed.
    pub async fn accept(&self) -> io::Result<AcceptedSocket> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(&self, cx: &Context<'_>) -> Poll<io::Result<AcceptedSocket>> {
        loop {
            ready!(self.socket.poll_readable(cx))?;
            let turn = self.socket.reactor().turns();
            let mut waited = true;
            if self.left.get() == 0 {
                // Others were left over from the turn before: there is a rush.
                waited = turn == self.turn.get() + 1;
                let batch = if waited { self.batch.get().saturating_mul(2).min(BATCH) } else { 1 };
                self.batch.set(batch);
                self.left.set(batch);
            }
            self.turn.set(turn);
            self.left.set(self.left.get() - 1);
            let accepted = accept(self.socket.io());
            let empty = accepted.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
            if empty || self.left.get() == 0 {
                // The others first; the next event tells whether there are more.
                self.left.set(0);
                self.socket.forget(if empty { Ready::READABLE } else { Ready::READ });
            }
            if !empty {
                return Poll::Ready(accepted.map(|accepted| AcceptedSocket { waited, ..accepted }));
            }
        }
    }

    /// A connection that is queued already.
    ///
    /// # Errors
    /// `WouldBlock` when none is, or what else `accept4` says.
    pub fn accept_queued(&self) -> io::Result<AcceptedSocket> {
        accept(self.socket.io())
    }

    /// Waits for `pause` without being told of connections meanwhile.
    pub async fn paused<F: Future>(&self, pause: F) -> F::Output {
        let mut pause = pin!(pause);
        if let Poll::Ready(output) = poll_fn(|cx| Poll::Ready(pause.as_mut().poll(cx))).await {
            return output;
        }
        // Should this fail, the loop turns in vain meanwhile. Whoever accepts next watches it again.
        let _ = self.socket.unwatch();
        pause.await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Others may have the socket, a process that took it over among them: closing it would not be enough
        // for the loop to hear no more of it (epoll(7)). Fails when it is not watched.
        let _ = self.socket.unwatch();
    }
}

fn accept(listener: &TcpListener) -> io::Result<AcceptedSocket> {
    let (socket, peer) = acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
    let peer = peer.ok_or_else(|| io::Error::other("a connection without an IP address"))?;
    // An IPv4 client of a dual-stack socket has an IPv4 address, for every list, limit and log.
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    Ok(AcceptedSocket { socket, peer, waited: true })
}
