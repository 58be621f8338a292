//! Routes: what each matches, and what becomes of a connection that it takes.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::{HttpConfig, Ja4Pattern, NamePattern, Origin, TerminateConfig, TlsPolicy, UpstreamConfig};
use crate::net::ProxyVersion;
use crate::peek::{Pattern, Protocol};

/// A route: what it matches and what becomes of a connection that it takes.
#[derive(Clone, Debug)]
pub struct RouteConfig {
    /// The `name` key, or one made from what the route matches.
    pub name: Arc<str>,
    /// What the first bytes must be; never empty.
    pub keys: Vec<RouteKey>,
    /// Further conditions, all of which must hold.
    pub conditions: Conditions,
    /// What to do.
    pub action: ActionConfig,
    /// Where it is written.
    pub origin: Origin,
}

/// What the first bytes of a connection must be for a route to take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteKey {
    /// A TLS ClientHello whose server name matches.
    Sni(NamePattern),
    /// A TLS ClientHello without a server name (`sni = "none"`).
    NoSni,
    /// Bytes of no known protocol that begin so.
    Begins(Pattern),
    /// Something that is not TLS, or silence.
    Protocol(Protocol),
    /// Anything but silence (`protocol = "any"`).
    Anything,
}

/// Conditions beside the first bytes; `None` means "any".
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// Names of listeners, of which the connection must have come in on one.
    pub listeners: Option<Vec<Arc<str>>>,
    /// Fingerprints, of which the client must have one.
    pub ja4: Option<Vec<Ja4Pattern>>,
    /// ALPN protocol names, of which the client must offer one.
    pub alpn: Option<Vec<Box<[u8]>>>,
    /// Networks, of which one must contain the client's address.
    pub from: Option<Vec<IpNet>>,
    /// Of a route for TLS: the protocols of which one is spoken inside. Without this no hello is taken with which TLS begins
    /// within another protocol; with it, and without `alpn`, no hello that only offers other protocols.
    pub inside: Option<Vec<Protocol>>,
    /// Of a route for TLS: whether it must begin within a protocol (STARTTLS), or must not.
    pub starttls: Option<bool>,
    /// Of a route for PostgreSQL in clear: the databases, of which one must be asked for.
    pub databases: Option<Vec<Box<str>>>,
    /// The same of users.
    pub users: Option<Vec<Box<str>>>,
}

/// What a route does with a connection.
#[derive(Clone, Debug)]
pub enum ActionConfig {
    /// Pass the stream through untouched.
    Passthrough(PassthroughConfig),
    /// End TLS, and pass on what comes out of it.
    Terminate(TerminateConfig),
    /// Speak HTTP, in clear or inside TLS that ends here.
    Http(Arc<HttpConfig>),
    /// Send the client of HTTP to the same place of `https`, if a route takes the name.
    Redirect,
    /// Refuse it.
    Reject(RejectWith),
}

/// Where a passthrough route leads.
#[derive(Clone, Debug)]
pub struct PassthroughConfig {
    /// The backends to share connections over; of several routes that name the same group, the same.
    pub upstream: Arc<UpstreamConfig>,
    /// Where clients name the server: networks that it may be in although they are not the public's.
    pub internal: Vec<IpNet>,
    /// The PROXY header that they are sent first.
    pub proxy_protocol: Option<ProxyVersion>,
    /// Where it is written that they are connected to from the client's own address, if it is.
    pub transparent: Option<Origin>,
    /// Deadline of one attempt to connect.
    pub connect_timeout: Duration,
    /// How long a backend that is connected to has for its first byte until another one is tried, where that can be; `None`: for
    /// ever.
    pub answer_timeout: Option<Duration>,
    /// How long a connection may go without a byte in either direction.
    pub idle_timeout: Duration,
    /// The same once one direction has ended.
    pub half_closed_timeout: Duration,
}

/// How a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectWith {
    /// In the words of the client's protocol, which say why: a TLS alert, an answer of HTTP, an error of PostgreSQL. Clients of
    /// protocols that have none are just closed.
    Answer,
    /// A TLS alert (`unrecognized_name`, 112) and close; clients that do not speak TLS are just closed.
    Alert,
    /// Close (FIN).
    Close,
    /// Reset (RST).
    Reset,
    /// Say nothing: the socket goes away without a packet that travels further than one hop.
    Drop,
}

/// What happens to connections that no route takes; separate, so that neither is an accident of the other.
#[derive(Clone, Copy, Debug)]
pub struct Policies {
    /// The hello names a server that no route knows.
    pub unknown_sni: RejectWith,
    /// The hello names no server and no route has `sni = "none"`.
    pub no_sni: RejectWith,
    /// Not TLS, and no route for that protocol.
    pub unknown_protocol: RejectWith,
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sni(pattern) => pattern.fmt(f),
            Self::NoSni => f.write_str("none"),
            Self::Begins(pattern) => write!(f, "begins:{pattern}"),
            Self::Protocol(protocol) => write!(f, "protocol:{protocol}"),
            Self::Anything => f.write_str("protocol:any"),
        }
    }
}

impl RouteConfig {
    /// Whether it is for clients of this listener that begin TLS within the protocol.
    pub fn begins_tls_within(&self, protocol: Protocol, listener: &str) -> bool {
        let conditions = &self.conditions;
        protocol.has_starttls()
            && conditions.inside.as_ref().is_some_and(|inside| inside.contains(&protocol))
            && conditions.starttls != Some(false)
            && conditions.listens_on(listener)
    }

    /// Whether it is for clients of PostgreSQL on this listener by what they ask for in clear.
    pub fn wants_startup(&self, listener: &str) -> bool {
        let conditions = &self.conditions;
        (conditions.databases.is_some() || conditions.users.is_some()) && conditions.listens_on(listener)
    }
}

impl Conditions {
    /// Whether TLS that is there from the first byte may be for one of the protocols inside.
    pub fn may_be_tls_at_once(&self) -> bool {
        self.inside.as_ref().is_none_or(|inside| inside.iter().any(|protocol| protocol.is_spoken_in_tls()))
    }

    /// Whether they hold for a connection that came in on this listener, as far as that goes.
    pub fn listens_on(&self, listener: &str) -> bool {
        self.listeners.as_ref().is_none_or(|names| names.iter().any(|name| **name == *listener))
    }
}

impl ActionConfig {
    /// Where it leads, if anywhere.
    pub fn backends(&self) -> impl Iterator<Item = &PassthroughConfig> {
        self.stream_to().into_iter().chain(self.http().into_iter().flat_map(|http| http.backends()))
    }

    /// The folders whose files answer requests.
    pub fn roots(&self) -> impl Iterator<Item = &Path> {
        self.http().into_iter().flat_map(|http| http.roots())
    }

    /// What becomes of requests, where HTTP is spoken.
    pub fn http(&self) -> Option<&Arc<HttpConfig>> {
        match self {
            Self::Http(http) => Some(http),
            Self::Passthrough(_) | Self::Terminate(_) | Self::Redirect | Self::Reject(_) => None,
        }
    }

    /// The backends that streams are passed on to as they are, or without their TLS.
    pub fn stream_to(&self) -> Option<&PassthroughConfig> {
        match self {
            Self::Passthrough(to) | Self::Terminate(TerminateConfig { to, .. }) => Some(to),
            Self::Http(_) | Self::Redirect | Self::Reject(_) => None,
        }
    }

    /// How TLS is ended, where it is.
    pub fn tls(&self) -> Option<&Arc<TlsPolicy>> {
        match self {
            Self::Terminate(terminate) => Some(&terminate.tls),
            Self::Http(http) => http.tls.as_ref(),
            Self::Passthrough(_) | Self::Redirect | Self::Reject(_) => None,
        }
    }
}

/// As a list with commas; empty when there are none.
impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn any_of<T: ToString>(items: &[T]) -> String {
            items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
        }
        let alpn = |names: &Vec<Box<[u8]>>| {
            any_of(&names.iter().map(|name| name.escape_ascii().to_string()).collect::<Vec<_>>())
        };
        let all = [
            ("listener", self.listeners.as_deref().map(any_of)),
            ("ja4", self.ja4.as_deref().map(any_of)),
            ("alpn", self.alpn.as_ref().map(alpn)),
            ("from", self.from.as_deref().map(any_of)),
            ("protocol", self.inside.as_deref().map(any_of)),
            ("starttls", self.starttls.map(|starttls| starttls.to_string())),
            ("database", self.databases.as_deref().map(any_of)),
            ("user", self.users.as_deref().map(any_of)),
        ];
        let given = all.into_iter().filter_map(|(name, values)| Some(format!("{name} {}", values?)));
        f.write_str(&given.collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Display for ActionConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passthrough(to) | Self::Terminate(TerminateConfig { to, .. }) => {
                let ends = if matches!(self, Self::Terminate(_)) { " (TLS ends here)" } else { "" };
                let scheme = if to.upstream.tls.is_some() { "tls://" } else { "" };
                let to =
                    to.upstream.addresses().map(|address| format!("{scheme}{address}")).collect::<Vec<_>>();
                write!(f, "{}{ends}", to.join(", "))
            }
            Self::Http(http) => write!(f, "http ({} rules)", http.rules.len()),
            Self::Redirect => f.write_str("redirect (https)"),
            Self::Reject(with) => write!(f, "reject ({with})"),
        }
    }
}

impl fmt::Display for RejectWith {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answer => "answer",
            Self::Alert => "alert",
            Self::Close => "close",
            Self::Reset => "reset",
            Self::Drop => "drop",
        })
    }
}
