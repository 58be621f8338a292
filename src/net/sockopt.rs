//! Socket options, each with the reason for its value.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt;
use socket2::{SockRef, TcpKeepalive};

/// Connections that wait to be accepted, a listener: a burst of a second at 4,000 a second. The kernel caps
/// it at `net.core.somaxconn`, 4,096 by default.
pub const BACKLOG: u32 = 4096;
/// The first keep-alive probe, then one every so often, and how many may go unanswered: a peer that is gone
/// is noticed within two minutes, and NAT on the way does not forget a quiet connection (RFC 5382 §5 asks
/// for hours, home routers keep minutes). TCP_USER_TIMEOUT is not for this: it would also end a connection
/// whose peer is alive and merely does not read (tcp(7)); idle limits do that, as configured.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Options of the connections that a listener accepts: they inherit them, so that none costs a system call.
pub(super) fn listening(socket: SockRef<'_>) -> io::Result<()> {
    undelayed(&socket)?;
    keep_alive(&socket)
}

/// Small messages of both sides pass at once; the endpoints decide about batching.
pub(super) fn undelayed(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)
}

/// The kernel probes the peer while nothing passes.
pub(super) fn keep_alive(socket: &SockRef<'_>) -> io::Result<()> {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_PROBES))
}

/// From now on it may be bound to an address of another host (ip(7), IP_TRANSPARENT). Needs CAP_NET_ADMIN or
/// CAP_NET_RAW.
pub(super) fn transparent(socket: &SockRef<'_>, of: IpAddr) -> io::Result<()> {
    match of {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true),
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

/// From now on closing the socket sends RST instead of FIN, and unsent bytes are thrown away.
pub fn reset_on_close(socket: impl AsFd) {
    // Fails only on sockets without connections, which have nothing to reset.
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}

/// From now on nothing that the socket sends travels further than one hop, and closing it sends no FIN: to
/// a client beyond the first router the connection just falls silent.
pub fn hide_close(socket: impl AsFd, peer: SocketAddr) {
    // An IPv4 client on a dual-stack socket is routed by the IPv4 option.
    let _ = match peer.ip().to_canonical() {
        IpAddr::V4(_) => sockopt::set_ip_ttl(&socket, 1),
        IpAddr::V6(_) => sockopt::set_ipv6_unicast_hops(&socket, Some(1)),
    };
    reset_on_close(socket);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With TCP_USER_TIMEOUT the kernel ends a connection whose peer does not read for so long, whatever
    /// the configured idle limit is.
    #[test]
    fn no_time_limit_but_the_configured_ones_ends_a_stalled_connection() {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listening(SockRef::from(&socket)).unwrap();
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
    }
}
