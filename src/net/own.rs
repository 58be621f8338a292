//! What is this process's own, so that it does not connect to itself: the addresses that it listens on, and those of its host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::OnceLock;

use arc_swap::ArcSwap;

use super::addr::ListenAddr;

/// The addresses that this process listens on, which change with its configuration.
#[derive(Debug, Default)]
pub struct OwnListeners(ArcSwap<Vec<ListenAddr>>);

impl OwnListeners {
    /// From now on it listens on these.
    pub fn replace(&self, listeners: Vec<ListenAddr>) {
        self.0.store(listeners.into());
    }

    /// Whether a connection to `target` would come in on one of them. The kernel is only asked whose the address is
    /// where that decides.
    pub fn take(&self, target: SocketAddr) -> bool {
        self.any(target, false) || self.may_take(target) && is_own(target.ip())
    }

    /// Whether it would if the address were one of this host.
    pub fn may_take(&self, target: SocketAddr) -> bool {
        self.any(target, true)
    }

    fn any(&self, target: SocketAddr, is_own: bool) -> bool {
        self.0.load().iter().any(|listener| listener.takes(target, is_own))
    }
}

impl ListenAddr {
    /// Whether a connection to `target` from this host comes in here. `is_own`: whether that is known to be an address of
    /// this host; loopback is always.
    pub fn takes(&self, target: SocketAddr, is_own: bool) -> bool {
        let (bound, ip) = (self.socket(), target.ip().to_canonical());
        let of_family = bound.is_ipv4() == ip.is_ipv4() || self.dual_stack();
        let here = if bound.ip().is_unspecified() {
            of_family && (is_own || is_every_hosts(ip))
        } else {
            // Connecting to 0.0.0.0 or [::] reaches this host by loopback (Linux ip(7)).
            bound.ip().to_canonical() == ip || of_family && bound.ip().is_loopback() && ip.is_unspecified()
        };
        bound.port() != 0 && bound.port() == target.port() && here
    }
}

/// Whether the kernel delivers to this host what is sent to `ip`. Costs up to eight system calls.
pub fn is_own(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    is_every_hosts(ip) || is_own_source(ip) || may_be_bound(ip)
}

fn is_every_hosts(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified()
}

/// Whether the kernel would send from `ip` to `ip`. So it does with all that a host has but the further addresses of a
/// network, for which it takes the first.
fn is_own_source(ip: IpAddr) -> bool {
    let any = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    // Connecting a UDP socket sends nothing, whatever the port.
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == ip)
}

/// Whether a socket may have that address, which it may when the host has it; unless all may have any.
fn may_be_bound(ip: IpAddr) -> bool {
    static NONLOCAL: OnceLock<bool> = OnceLock::new();
    // ip(7), `ip_nonlocal_bind`, as it was first read.
    let is_set = |family| {
        let setting = std::fs::read_to_string(format!("/proc/sys/net/{family}/ip_nonlocal_bind"));
        setting.is_ok_and(|setting| setting.trim() != "0")
    };
    let shared = ip.is_multicast() || ip == Ipv4Addr::BROADCAST;
    !shared && !*NONLOCAL.get_or_init(|| is_set("ipv4") || is_set("ipv6")) && UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(listen: &str, target: &str, is_own: bool) -> bool {
        listen.parse::<ListenAddr>().unwrap().takes(target.parse().unwrap(), is_own)
    }

    #[test]
    fn a_listener_takes_what_comes_to_its_address() {
        for (listen, target) in [
            ("127.0.0.1:443", "127.0.0.1:443"),
            ("127.0.0.1:443", "[::ffff:127.0.0.1]:443"),
            ("127.0.0.1:443", "0.0.0.0:443"),
            ("[::1]:443", "[::]:443"),
            ("192.0.2.1:443", "192.0.2.1:443"),
            ("0.0.0.0:443", "127.9.9.9:443"),
            ("0.0.0.0:443", "[::ffff:127.0.0.1]:443"),
            ("[::]:443", "[::1]:443"),
            (":443", "127.0.0.1:443"),
            (":443", "[::1]:443"),
            (":443", "0.0.0.0:443"),
        ] {
            assert!(takes(listen, target, false), "{listen} {target}");
        }
        for (listen, target) in [
            ("127.0.0.1:443", "127.0.0.1:444"),
            ("127.0.0.1:443", "127.0.0.2:443"),
            ("127.0.0.1:443", "[::1]:443"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("192.0.2.1:443", "0.0.0.0:443"),
            ("192.0.2.1:443", "192.0.2.2:443"),
            ("0.0.0.0:443", "[::1]:443"),
            ("[::]:443", "127.0.0.1:443"),
        ] {
            assert!(!takes(listen, target, true), "{listen} {target}");
        }
        for (listen, target) in
            [("0.0.0.0:443", "192.0.2.1:443"), (":443", "192.0.2.1:443"), (":443", "[2001:db8::1]:443")]
        {
            assert!(takes(listen, target, true) && !takes(listen, target, false), "{listen} {target}");
        }
    }

    #[test]
    fn an_address_is_the_hosts_own_or_not() {
        for own in ["127.0.0.1", "127.9.9.9", "0.0.0.0", "::", "::1", "::ffff:127.0.0.1"] {
            assert!(is_own(own.parse().unwrap()), "{own}");
        }
        // Documentation, multicast and broadcast: nobody has them.
        for other in ["192.0.2.77", "2001:db8::77", "224.0.0.1", "255.255.255.255", "ff02::1"] {
            assert!(!is_own(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn what_is_listened_on_may_change() {
        let own = OwnListeners::default();
        let target = "127.0.0.1:443".parse().unwrap();
        assert!(!own.take(target));
        own.replace(vec![":443".parse().unwrap()]);
        assert!(own.take(target) && !own.take("127.0.0.1:80".parse().unwrap()));
        own.replace(Vec::new());
        assert!(!own.take(target));
    }
}
