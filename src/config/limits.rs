//! Limits by source address, as resolved.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::{ListFile, Rate};

/// Limits by source address and in all; but for those of routes they act at accept, before a byte is read.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Only these networks may connect; empty means all. The longest prefix of `allow` and `deny` decides.
    pub allow: Vec<IpNet>,
    /// These networks may not connect.
    pub deny: Vec<IpNet>,
    /// More of `allow`, from files. With one, only what is allowed may connect, be it empty.
    pub allow_files: Vec<ListFile>,
    /// More of `deny`, from files.
    pub deny_files: Vec<ListFile>,
    /// No limit by source and no ban concerns these; `deny` does.
    pub exempt: Vec<IpNet>,
    /// The limits by source, in the order in which they are looked at; names are unique.
    pub by_source: Vec<LimitConfig>,
    /// Who is banned by rule; `None` means nobody.
    pub ban: Option<BanRule>,
    /// Concurrent connections in all; `None` means derived from the limit of open files.
    pub total: Option<usize>,
}

/// A limit by source: a `[[limit]]`, `rate_limit` or `connection_limit`. At least one of its figures is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitConfig {
    /// The name for logs and metrics.
    pub name: Arc<str>,
    /// What counts as one source.
    pub per: Per,
    /// New connections; `None` means no limit.
    pub rate: Option<RateLimit>,
    /// Concurrent connections; `None` means no limit.
    pub connections: Option<u32>,
    /// Concurrent connections that have not sent their hello yet; `None` means no limit.
    pub before_hello: Option<u32>,
    /// Relayed bytes a second, both directions together; `None` means no limit.
    pub bandwidth: Option<u64>,
    /// Names of the listeners that it is for; `None` means all.
    pub listeners: Option<Vec<Arc<str>>>,
    /// Names of the routes that it is for; `None` means that it acts before any is known.
    pub routes: Option<Vec<Arc<str>>>,
    /// What becomes of a connection that breaks it.
    pub action: LimitAction,
}

/// What counts as one source of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// All addresses that share a prefix of this length.
    Prefix {
        /// Of IPv4 addresses, 8 to 32.
        ipv4: u8,
        /// Of IPv6 addresses, 32 to 128.
        ipv6: u8,
    },
    /// Everybody together.
    All,
}

/// What becomes of a connection that breaks a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitAction {
    /// Reset (RST).
    Reset,
    /// Closed (FIN).
    Close,
    /// Nothing that travels further than one hop.
    Drop,
    /// Held until it conforms, and reset when it still does not after `max`.
    Delay {
        /// The longest time.
        max: Duration,
    },
    /// Held open and unread for `hold`, then reset.
    Tarpit {
        /// How long.
        hold: Duration,
    },
}

/// An address (IPv4 /32, IPv6 /64) that was refused by limits, or sent malformed hellos, `after` times `within` a
/// time is banned for `length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BanRule {
    /// How many times; at least 1.
    pub after: u32,
    /// In how much time; never zero.
    pub within: Duration,
    /// How long it is banned.
    pub length: Duration,
}

/// A GCRA limit: `rate` on average, `burst` at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The average.
    pub rate: Rate,
    /// How many may come at once; at least 1.
    pub burst: u32,
}

impl Per {
    /// One IPv4 address, or the IPv6 /64 that one household or machine gets.
    pub const IP: Self = Self::Prefix { ipv4: 32, ipv6: 64 };
    /// What a small network gets.
    pub const NETWORK: Self = Self::Prefix { ipv4: 24, ipv6: 56 };
    /// What an organisation gets (RFC 6177).
    pub const SITE: Self = Self::Prefix { ipv4: 24, ipv6: 48 };
}

impl LimitConfig {
    /// A limit of every address without a figure yet; what breaks it is reset.
    pub fn named(name: &str) -> Self {
        Self {
            name: Arc::from(name),
            per: Per::IP,
            rate: None,
            connections: None,
            before_hello: None,
            bandwidth: None,
            listeners: None,
            routes: None,
            action: LimitAction::Reset,
        }
    }

    /// Whether it concerns connections of this listener.
    pub fn is_for_listener(&self, name: &str) -> bool {
        self.listeners.as_ref().is_none_or(|names| names.iter().any(|listener| **listener == *name))
    }

    /// Whether it acts once this route is known.
    pub fn is_for_route(&self, name: &str) -> bool {
        self.routes.as_ref().is_some_and(|names| names.iter().any(|route| **route == *name))
    }
}

/// As one would write it in the configuration.
impl fmt::Display for Per {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("\"all\""),
            &Self::IP => f.write_str("\"ip\""),
            &Self::NETWORK => f.write_str("\"network\""),
            &Self::SITE => f.write_str("\"site\""),
            Self::Prefix { ipv4, ipv6 } => write!(f, "{{ ipv4 = {ipv4}, ipv6 = {ipv6} }}"),
        }
    }
}

impl fmt::Display for LimitAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reset => "reset",
            Self::Close => "close",
            Self::Drop => "drop",
            Self::Delay { .. } => "delay",
            Self::Tarpit { .. } => "tarpit",
        })
    }
}
