//! How names of backends are resolved.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use super::decode::{Problem, Text, word};
use super::schema::words;
use super::values::Keyword;

/// How names of backends are resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// Nameservers to ask; empty means those of `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
    /// Deadline of one query.
    pub timeout: Duration,
    /// Which addresses are asked for.
    pub family: DnsFamily,
    /// Answers are kept at least this long, whatever their TTL.
    pub min_ttl: Duration,
    /// Answers are kept at most this long, whatever their TTL.
    pub max_ttl: Duration,
    /// The same of answers that there is nothing.
    pub negative_ttl: Duration,
    /// How long beyond its time the last answer is used while there is no other; `None`: for as long as it takes.
    pub stale_max: Option<Duration>,
}

/// Which addresses of a name are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsFamily {
    /// IPv4 and IPv6.
    Both,
    /// Only IPv4.
    V4,
    /// Only IPv6.
    V6,
}

/// `"unlimited"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unlimited;

const FAMILIES: [(&str, DnsFamily); 3] =
    [("both", DnsFamily::Both), ("ipv4", DnsFamily::V4), ("ipv6", DnsFamily::V6)];

impl Keyword for Unlimited {
    const WORD: &'static str = "unlimited";
}

impl Text for DnsFamily {
    const EXPECTED: &'static str = "\"both\", \"ipv4\" or \"ipv6\"";

    fn constraints() -> Value {
        words(FAMILIES.iter().map(|(word, _)| *word))
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        word(text, &FAMILIES)
    }
}

impl fmt::Display for DnsFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = FAMILIES.iter().find(|(_, family)| family == self);
        f.write_str(word.map_or("", |(word, _)| word))
    }
}
