//! Addresses as types: what is listened on, what is connected to, and what a client counts as.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use socket2::SockRef;

/// A TCP address to listen on, written `":443"`, `"10.0.0.1:443"` or `"[::1]:443"`.
///
/// `":443"` means all addresses of both families (`[::]` with dual stack, RFC 3493 §5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenAddr {
    socket: SocketAddr,
    dual_stack: bool,
}

/// An address of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamAddr {
    /// A literal IP address and port.
    Ip(SocketAddr),
    /// A name to resolve, and a port.
    Name {
        /// The DNS name, lower-case.
        host: Box<str>,
        /// The TCP port, never 0.
        port: u16,
    },
    /// The name of a service, whose records say hosts and ports (SRV, RFC 2782); lower-case.
    Service(Box<str>),
    /// The server that the client names, at this port, never 0.
    ServerName(u16),
    /// A Unix stream socket.
    Unix(PathBuf),
}

/// Why an address was not understood; the message says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddrError {
    /// No `:port` at the end.
    #[error("`{0}` has no port; write `{0}:443`")]
    NoPort(String),
    /// Only a port.
    #[error("`{0}` has no address; write `:{0}` for all addresses, or one before it: `127.0.0.1:{0}`")]
    OnlyPort(u16),
    /// Something after the colon that is not a port.
    #[error("`{0}` is not a port; a port is a number from 1 to 65535")]
    BadPort(String),
    /// A host that is neither an IP address nor a DNS name.
    #[error("`{0}` is neither an IP address nor a host name")]
    BadHost(String),
    /// An IPv6 address without its brackets.
    #[error("`{0}` is an IPv6 address; write it in brackets: `[{0}]:443`")]
    Brackets(String),
    /// A listen address with a name.
    #[error("`{0}` is a name; listen on an IP address, or on `:443` for all of them")]
    NameToListen(String),
    /// A scheme that says something this build cannot do to a backend.
    #[error(
        "`{0}://` has no meaning here: bytes are passed on as they are; write `host:port` or `unix:/path`"
    )]
    Scheme(String),
    /// `srv+` and a name with a port.
    #[error("the ports of `srv+{0}` are in its records; write it without one")]
    ServicePort(String),
    /// `srv+` and something else than a name.
    #[error("`{0}` is not the name of a service; write it as in `srv+_db._tcp.example.com`")]
    BadService(String),
    /// `unix:` without an absolute path.
    #[error("`unix:` needs an absolute path, as in `unix:/run/app.sock`")]
    RelativePath,
}

/// The prefix under which NAT64 gives IPv4 addresses an IPv6 form (RFC 6052 §2.1, 64:ff9b::/96).
const NAT64: u128 = 0x0064_ff9b << 96;

impl ListenAddr {
    /// The socket address to bind.
    pub fn socket(&self) -> SocketAddr {
        self.socket
    }

    /// The address that a listening socket is bound to.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn of(socket: &TcpListener) -> io::Result<Self> {
        let bound = socket.local_addr()?;
        let dual_stack =
            bound.is_ipv6() && bound.ip().is_unspecified() && !SockRef::from(socket).only_v6()?;
        Ok(Self { socket: bound, dual_stack })
    }

    /// Whether the IPv6 socket takes IPv4 as well.
    pub fn dual_stack(&self) -> bool {
        self.dual_stack
    }

    /// The same with another port, for when port 0 was asked for and the kernel chose one.
    pub fn with_port(mut self, port: u16) -> Self {
        self.socket.set_port(port);
        self
    }
}

impl FromStr for ListenAddr {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<Self, AddrError> {
        if let Some(port) = text.strip_prefix(':') {
            let port = port.parse().map_err(|_| AddrError::BadPort(port.to_owned()))?;
            return Ok(Self { socket: SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), dual_stack: true });
        }
        if let Ok(socket) = text.parse() {
            return Ok(Self { socket, dual_stack: false });
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(AddrError::Scheme(scheme.to_owned()));
        }
        let (host, port) = split_port(text)?;
        port.parse::<u16>().map_err(|_| AddrError::BadPort(port.to_owned()))?;
        Err(AddrError::NameToListen(host.to_owned()))
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.dual_stack { write!(f, ":{}", self.socket.port()) } else { self.socket.fmt(f) }
    }
}

impl FromStr for UpstreamAddr {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<Self, AddrError> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = Path::new(path.strip_prefix("//").unwrap_or(path));
            return if path.is_absolute() {
                Ok(Self::Unix(path.to_owned()))
            } else {
                Err(AddrError::RelativePath)
            };
        }
        if let Some(name) = text.strip_prefix("srv+") {
            return service(name);
        }
        if let Some(port) = text.strip_prefix("sni:") {
            let parsed = port.parse().ok().filter(|port| *port != 0);
            return parsed.map(Self::ServerName).ok_or_else(|| AddrError::BadPort(port.to_owned()));
        }
        let text = match text.split_once("://") {
            Some(("tcp", rest)) => rest,
            Some((scheme, _)) => return Err(AddrError::Scheme(scheme.to_owned())),
            None => text,
        };
        if let Ok(socket) = text.parse::<SocketAddr>() {
            return if socket.port() == 0 {
                Err(AddrError::BadPort("0".to_owned()))
            } else {
                Ok(Self::Ip(socket))
            };
        }
        let (host, port) = split_port(text)?;
        let port =
            port.parse().ok().filter(|port| *port != 0).ok_or_else(|| AddrError::BadPort(port.to_owned()))?;
        if !is_host_name(host) {
            return Err(AddrError::BadHost(host.to_owned()));
        }
        Ok(Self::Name { host: host.to_ascii_lowercase().into(), port })
    }
}

impl fmt::Display for UpstreamAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(socket) => socket.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
            Self::Service(name) => write!(f, "srv+{name}"),
            Self::ServerName(port) => write!(f, "sni:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The address that lists and limits know a client by: the IPv4 address of an IPv4-mapped one (RFC 4291
/// §2.5.5.2) or of one behind NAT64 (RFC 6052), else itself.
pub fn canonical(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => {
            let below = v6.to_bits().checked_sub(NAT64).and_then(|v4| u32::try_from(v4).ok());
            below.map_or(IpAddr::V6(v6), |v4| IpAddr::V4(Ipv4Addr::from_bits(v4)))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// What follows `srv+`.
fn service(name: &str) -> Result<UpstreamAddr, AddrError> {
    match name.rsplit_once(':') {
        Some((name, port)) if is_host_name(name) && port.bytes().all(|b| b.is_ascii_digit()) => {
            Err(AddrError::ServicePort(name.to_owned()))
        }
        None if is_host_name(name) => {
            Ok(UpstreamAddr::Service(name.trim_end_matches('.').to_ascii_lowercase().into()))
        }
        _ => Err(AddrError::BadService(name.to_owned())),
    }
}

fn split_port(text: &str) -> Result<(&str, &str), AddrError> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(AddrError::Brackets(text.to_owned()));
    }
    if let Ok(port) = text.parse() {
        return Err(AddrError::OnlyPort(port));
    }
    if text.is_empty() || text.ends_with(']') {
        return Err(AddrError::NoPort(text.to_owned()));
    }
    text.rsplit_once(':').ok_or_else(|| AddrError::NoPort(text.to_owned()))
}

/// RFC 1123 §2.1 host names, and `_` because service names in private zones use it.
fn is_host_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // A name whose last label is a number is a mistyped IPv4 address (URL Standard, "ends in a number").
    let numeric = host.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    host.len() <= 253 && !numeric && host.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses() {
        let any: ListenAddr = ":443".parse().unwrap();
        assert!(any.dual_stack());
        assert_eq!(any.socket(), "[::]:443".parse().unwrap());
        assert_eq!(any.to_string(), ":443");
        let v6: ListenAddr = "[::]:443".parse().unwrap();
        assert!(!v6.dual_stack());
        assert_eq!("127.0.0.1:0".parse::<ListenAddr>().unwrap().with_port(9).to_string(), "127.0.0.1:9");
        assert_eq!("localhost:443".parse::<ListenAddr>(), Err(AddrError::NameToListen("localhost".into())));
        assert_eq!(":70000".parse::<ListenAddr>(), Err(AddrError::BadPort("70000".into())));
        assert_eq!("443".parse::<ListenAddr>(), Err(AddrError::OnlyPort(443)));
        assert_eq!("https://a:443".parse::<ListenAddr>(), Err(AddrError::Scheme("https".into())));
    }

    #[test]
    fn upstream_addresses() {
        let parse = |text: &str| text.parse::<UpstreamAddr>();
        assert_eq!(parse("10.0.0.1:443"), Ok(UpstreamAddr::Ip("10.0.0.1:443".parse().unwrap())));
        assert_eq!(parse("tcp://[::1]:1"), Ok(UpstreamAddr::Ip("[::1]:1".parse().unwrap())));
        assert_eq!(
            parse("App.internal:80"),
            Ok(UpstreamAddr::Name { host: "app.internal".into(), port: 80 })
        );
        assert_eq!(parse("unix:/run/a.sock"), Ok(UpstreamAddr::Unix("/run/a.sock".into())));
        assert_eq!(parse("unix:a.sock"), Err(AddrError::RelativePath));
        let service = UpstreamAddr::Service("_db._tcp.example.com".into());
        assert_eq!(service.to_string(), "srv+_db._tcp.example.com");
        assert_eq!(parse("srv+_DB._tcp.example.com"), Ok(service.clone()));
        assert_eq!(parse("srv+_db._tcp.example.com."), Ok(service));
        assert_eq!(parse("srv+db.service.consul"), Ok(UpstreamAddr::Service("db.service.consul".into())));
        assert_eq!(parse("srv+_db._tcp.a:5432"), Err(AddrError::ServicePort("_db._tcp.a".into())));
        for bad in
            ["", ":1", "10.0.0.1", "10.0.0.1:1", "a b", "a..b", "//a", "a:b", "[::1]", "::1", "unix:/a"]
        {
            assert_eq!(parse(&format!("srv+{bad}")), Err(AddrError::BadService(bad.into())));
        }
        assert_eq!(parse("sni:443"), Ok(UpstreamAddr::ServerName(443)));
        assert_eq!(UpstreamAddr::ServerName(443).to_string(), "sni:443");
        for bad in ["", "0", "65536", "https", "443/"] {
            assert_eq!(parse(&format!("sni:{bad}")), Err(AddrError::BadPort(bad.into())));
        }
        assert_eq!(parse("sni.:443"), Ok(UpstreamAddr::Name { host: "sni.".into(), port: 443 }));
        assert_eq!(parse("app"), Err(AddrError::NoPort("app".into())));
        assert_eq!(parse("[::1]"), Err(AddrError::NoPort("[::1]".into())));
        assert_eq!(parse("app:0"), Err(AddrError::BadPort("0".into())));
        assert_eq!(parse("10.0.0.1:0"), Err(AddrError::BadPort("0".into())));
        assert_eq!(parse("10.0.0.300:443"), Err(AddrError::BadHost("10.0.0.300".into())));
        assert_eq!(parse("a b:1"), Err(AddrError::BadHost("a b".into())));
        assert_eq!(parse("::1"), Err(AddrError::Brackets("::1".into())));
        assert_eq!(parse("https://app:443"), Err(AddrError::Scheme("https".into())));
    }

    #[test]
    fn an_ipv4_address_in_ipv6_form_is_that_address() {
        let canonical = |ip: &str| canonical(ip.parse().unwrap()).to_string();
        assert_eq!(canonical("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(canonical("64:ff9b::192.0.2.7"), "192.0.2.7");
        assert_eq!(canonical("64:ff9b::"), "0.0.0.0");
        assert_eq!(canonical("64:ff9b::ffff:ffff"), "255.255.255.255");
        for other in
            ["192.0.2.7", "64:ff9b::1:0:0", "64:ff9b:1::c000:207", "64:ff9a::c000:207", "2001:db8::1"]
        {
            assert_eq!(canonical(other), other);
        }
    }
}
