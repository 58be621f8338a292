//! Listening sockets: one a worker for each address, sharing the port by SO_REUSEPORT.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::addr::ListenAddr;
use super::sockopt;

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

/// A listening socket on a worker's runtime.
#[derive(Debug)]
pub struct Listener(AsyncFd<TcpListener>);

/// A connection as it was accepted: not yet known to the runtime, so that refusing it costs only its close.
#[derive(Debug)]
pub struct AcceptedSocket {
    /// The connection, non-blocking.
    pub socket: std::net::TcpStream,
    /// The client.
    pub peer: SocketAddr,
}

impl Listener {
    /// Registers a bound socket with the runtime of this thread.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    ///
    /// # Panics
    /// Outside a runtime.
    #[allow(
        deprecated,
        reason = "its successor is unsafe for types that may change their descriptor; this one cannot"
    )]
    pub fn new(socket: TcpListener) -> io::Result<Self> {
        AsyncFd::with_interest(socket, Interest::READABLE).map(Self)
    }

    /// The next connection. Cancel safe.
    ///
    /// # Errors
    /// What `accept4` says. None of it says that the listener is broken: the next call may succeed.
    pub async fn accept(&self) -> io::Result<AcceptedSocket> {
        self.0.async_io(Interest::READABLE, accept).await
    }

    /// A connection that is queued already.
    ///
    /// # Errors
    /// `WouldBlock` when none is, or what else `accept4` says.
    pub fn accept_queued(&self) -> io::Result<AcceptedSocket> {
        accept(self.0.get_ref())
    }
}

fn accept(listener: &TcpListener) -> io::Result<AcceptedSocket> {
    let (socket, peer) = acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
    let peer = peer.ok_or_else(|| io::Error::other("a connection without an IP address"))?;
    // An IPv4 client of a dual-stack socket has an IPv4 address, for every list, limit and log.
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    Ok(AcceptedSocket { socket: OwnedFd::into(socket), peer })
}
