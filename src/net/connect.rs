//! Connecting to backends, over TCP or a Unix socket.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::rc::Rc;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::net::SendFlags;
use socket2::{Domain, Protocol, SockAddr, SockRef, Type};

use super::reactor::Reactor;
use super::relay::Conduit;
use super::socket::Socket;
use super::sockopt;

/// Where a backend is.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// At an address.
    Tcp(SocketAddr),
    /// At an address, to be connected to from that of a client, which is of the same family.
    Transparent(SocketAddr, IpAddr),
    /// At a Unix socket.
    Unix(&'a Path),
}

/// Finds out whether sockets of this process may have the addresses of clients, by asking for one of each family.
///
/// # Errors
/// What the kernel says, `PermissionDenied` without CAP_NET_ADMIN and CAP_NET_RAW.
pub fn probe_transparent() -> io::Result<()> {
    for of in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        let domain = Domain::for_address((of, 0).into());
        match socket2::Socket::new(domain, Type::STREAM, Some(Protocol::TCP)) {
            // A kernel without IPv6 has no such clients.
            Err(error) if of.is_ipv6() && Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT) => {}
            socket => sockopt::transparent(&SockRef::from(&socket?), of)?,
        }
    }
    Ok(())
}

/// Connects and sends what is `first` for the backend, or a part of it; says how much. Cancel safe: dropping
/// the future closes the socket.
///
/// # Errors
/// What the kernel says about the socket or the connection, which then has taken nothing; `WouldBlock` when
/// the queue of a Unix socket is full.
pub async fn connect(place: Place<'_>, first: &[u8], reactor: &Rc<Reactor>) -> io::Result<(Socket, usize)> {
    match place {
        Place::Tcp(addr) => connect_tcp(addr, None, first, reactor).await,
        Place::Transparent(addr, source) => connect_tcp(addr, Some(source), first, reactor).await,
        Place::Unix(path) => connect_unix(path, first, reactor),
    }
}

/// A Unix socket is connected at once or not at all.
fn connect_unix(path: &Path, first: &[u8], reactor: &Rc<Reactor>) -> io::Result<(Socket, usize)> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.connect(&SockAddr::unix(path)?)?;
    let socket = Socket::accepted(socket.into(), reactor);
    socket.watch()?;
    let sent = socket.send_now(first)?;
    Ok((socket, sent))
}

/// A socket that met itself is refused: nobody listened, and the kernel chose the very port of `addr` for
/// this end (RFC 9293 §3.5, simultaneous open).
async fn connect_tcp(
    addr: SocketAddr,
    source: Option<IpAddr>,
    first: &[u8],
    reactor: &Rc<Reactor>,
) -> io::Result<(Socket, usize)> {
    let socket =
        socket2::Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    sockopt::undelayed(&SockRef::from(&socket))?;
    if !first.is_empty() {
        // The acknowledgement that ends the handshake travels with the first bytes, not before them.
        socket.set_tcp_quickack(false)?;
    }
    if let Some(source) = source {
        sockopt::transparent(&SockRef::from(&socket), source)?;
        // The port is the kernel's to choose: the client's own may still be held by an earlier connection of it.
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    if let Err(error) = socket.connect(&addr.into())
        && Errno::from_io_error(&error) != Some(Errno::INPROGRESS)
    {
        return Err(error);
    }
    if is_itself(&socket, addr)? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let socket = Socket::connecting(socket.into(), reactor);
    // Watched before anything is sent: whatever fails, another backend may still be tried. On loopback the
    // kernel has shaken hands with its own side before it came back: no need to wait for that.
    let mut sent = if addr.ip().is_loopback() {
        socket.watch()?;
        socket.send_now(first)?
    } else {
        socket.watch_both()?;
        0
    };
    if first.is_empty() {
        poll_fn(|cx| socket.poll_writable(cx)).await?;
        return socket.take_error().map_or(Ok((socket, 0)), Err);
    }
    if sent == 0 {
        // Tells of a failed connection, too.
        sent = poll_fn(|cx| socket.poll_send(cx, first, SendFlags::empty())).await?;
    }
    // A backend that sends its answer in small pieces (Nagle, RFC 896) waits for each to be acknowledged. Should
    // this fail it costs 40 ms; the backend has its bytes and no other may get them.
    let _ = SockRef::from(&socket).set_tcp_quickack(true);
    Ok((socket, sent))
}

/// Whether the socket is connected to itself. `addr` may be any address of this host, or stand for one.
fn is_itself(socket: &socket2::Socket, addr: SocketAddr) -> io::Result<bool> {
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
