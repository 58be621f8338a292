//! Groups of backends: which there are, and how connections are shared out over them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::backend_tls::BackendTls;
use super::decode::{Problem, Text, quote, word};
use super::error::ErrorKind;
use super::health::HealthConfig;
use super::schema::words;
use super::values::checked_name;
use crate::net::UpstreamAddr;

const BALANCES: [(&str, BalanceWord); 6] = [
    ("round_robin", BalanceWord::RoundRobin),
    ("least_connections", BalanceWord::LeastConnections),
    ("p2c", BalanceWord::P2c),
    ("random", BalanceWord::Random),
    ("first", BalanceWord::First),
    ("hash", BalanceWord::Hash),
];

const KEYS: [(&str, ClientKey); 2] = [("source", ClientKey::Source), ("sni", ClientKey::Sni)];

const ON_DOWN: [(&str, OnDown); 2] = [("leave", OnDown::Leave), ("close", OnDown::Close)];

/// The largest weight of a backend.
pub const MAX_WEIGHT: u32 = 256;
/// The last tier of backends.
pub const MAX_TIER: u32 = 16;

/// A group of backends, written as an `[[upstream]]` or by the `to` of a route.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamConfig {
    /// Its name, or that of the route.
    pub name: Arc<str>,
    /// The backends; never empty.
    pub backends: Vec<BackendConfig>,
    /// How TLS is spoken with all of them; `None`: it is not.
    pub tls: Option<BackendTls>,
    /// The most connections at once of a backend that says nothing of it.
    pub max_connections: Option<u32>,
    /// How one is chosen.
    pub balance: Balance,
    /// By what clients are told apart that stay with their backend, and for how long after their last connection.
    pub sticky: Option<(ClientKey, Duration)>,
    /// In how much time a backend that comes (back) gets up to its share; zero means at once.
    pub slow_start: Duration,
    /// Where connections wait while all backends have as many as they may.
    pub queue: Option<QueueConfig>,
    /// When backends that fail are passed over.
    pub eject: Option<EjectConfig>,
    /// What becomes of the connections of a backend that goes down.
    pub on_down: OnDown,
    /// Attempts beyond the first, in percent of connections; `None` is without bound.
    pub retry_budget: Option<u32>,
    /// How backends are checked.
    pub health: Option<HealthConfig>,
}

/// A backend of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendConfig {
    /// Where it is.
    pub address: UpstreamAddr,
    /// Its share beside the others; with 0 it gets no new connections.
    pub weight: u32,
    /// Backends of a higher tier get connections only while none of a lower one is available.
    pub tier: u32,
    /// Where it stands; those in the zone of this proxy are preferred.
    pub zone: Option<Arc<str>>,
    /// The most connections that it has at once.
    pub max_connections: Option<u32>,
}

/// How one backend of a group is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// In turn, by weight.
    RoundRobin,
    /// The one with the fewest connections for its weight.
    LeastConnections,
    /// Of two drawn at random the one that connects faster and has fewer connections.
    P2c,
    /// At random, by weight.
    Random,
    /// The first one that has room.
    First,
    /// The same one for the same client.
    Hash {
        /// By what clients are told apart.
        on: ClientKey,
        /// The most that one may have of its fair share, in percent; above it the next one is taken.
        load: Option<u32>,
    },
}

/// By what clients are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientKey {
    /// By address: IPv4 /32, IPv6 /64.
    Source,
    /// By the server name that they ask for; those without one by address.
    Sni,
}

/// Where connections wait for a backend with room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// How many may wait.
    pub size: u32,
    /// How long one may.
    pub timeout: Duration,
}

/// When a backend is passed over for what connections to it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EjectConfig {
    /// After so many failures in a row.
    pub failures: u32,
    /// For so long the first time, longer each time after.
    pub length: Duration,
    /// So many of the group at most, in percent.
    pub at_most: u32,
    /// A connect that takes longer is a failure, too.
    pub slow: Option<Duration>,
}

/// What becomes of the connections of a backend that goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDown {
    /// They go on while they can.
    Leave,
    /// They are closed, so that clients come back and find another one.
    Close,
}

/// What `balance` holds, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BalanceWord {
    RoundRobin,
    LeastConnections,
    P2c,
    Random,
    First,
    Hash,
}

/// The name of a group of backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UpstreamName(pub(super) String);

/// The name of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ZoneName(pub(super) String);

/// A part of something, written `"20%"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Percent(pub(super) u32);

impl BackendConfig {
    /// The backend at `address`, with nothing said about it.
    pub fn at(address: UpstreamAddr) -> Self {
        Self { address, weight: 1, tier: 1, zone: None, max_connections: None }
    }
}

impl UpstreamConfig {
    /// The addresses of its backends.
    pub fn addresses(&self) -> impl Iterator<Item = &UpstreamAddr> {
        self.backends.iter().map(|backend| &backend.address)
    }

    /// The port of the server that clients name, where that is what it stands for.
    pub fn server_name(&self) -> Option<u16> {
        self.addresses().find_map(|address| match address {
            UpstreamAddr::ServerName(port) => Some(*port),
            _ => None,
        })
    }
}

impl Balance {
    fn word(self) -> BalanceWord {
        match self {
            Self::RoundRobin => BalanceWord::RoundRobin,
            Self::LeastConnections => BalanceWord::LeastConnections,
            Self::P2c => BalanceWord::P2c,
            Self::Random => BalanceWord::Random,
            Self::First => BalanceWord::First,
            Self::Hash { .. } => BalanceWord::Hash,
        }
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.word().fmt(f)
    }
}

/// The word that stands for `value`.
fn word_of<T: PartialEq>(words: &[(&'static str, T)], value: &T) -> &'static str {
    words.iter().find(|(_, known)| known == value).map_or("", |(word, _)| word)
}

impl fmt::Display for BalanceWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(word_of(&BALANCES, self))
    }
}

impl fmt::Display for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(word_of(&KEYS, self))
    }
}

impl fmt::Display for OnDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(word_of(&ON_DOWN, self))
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl Text for BalanceWord {
    const EXPECTED: &'static str = "the name of an algorithm";

    fn constraints() -> Value {
        words(BALANCES.iter().map(|(word, _)| *word))
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        word(text, &BALANCES)
    }
}

impl Text for ClientKey {
    const EXPECTED: &'static str = "\"source\" or \"sni\"";

    fn constraints() -> Value {
        words(KEYS.iter().map(|(word, _)| *word))
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        word(text, &KEYS)
    }
}

impl Text for OnDown {
    const EXPECTED: &'static str = "\"leave\" or \"close\"";

    fn constraints() -> Value {
        words(ON_DOWN.iter().map(|(word, _)| *word))
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        word(text, &ON_DOWN)
    }
}

impl Text for UpstreamName {
    const EXPECTED: &'static str = "the name of an upstream";

    fn constraints() -> Value {
        json!({ "pattern": "^[A-Za-z0-9_-]+$" })
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        checked_name(text, "upstream", "-_").map(Self)
    }
}

impl Text for ZoneName {
    const EXPECTED: &'static str = "the name of a zone";

    fn constraints() -> Value {
        json!({ "pattern": "^[A-Za-z0-9_.-]+$" })
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        checked_name(text, "zone", "-_.").map(Self)
    }
}

impl Text for Percent {
    const EXPECTED: &'static str = "a part such as \"50%\"";

    fn constraints() -> Value {
        json!({ "pattern": "^[0-9]+%$", "examples": ["50%"] })
    }

    fn bare_number(number: &str) -> Option<Problem> {
        let problem = Problem::new(ErrorKind::MissingUnit, "a part needs a unit");
        // A fraction is meant as one: 1.25 is 125%.
        let fraction = number.parse::<f64>().ok().filter(|_| number.contains('.'));
        let percent = fraction.map_or_else(|| number.to_owned(), |part| format!("{:.0}", part * 100.0));
        Some(problem.hint(format!("write `\"{percent}%\"`")))
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let number = text.strip_suffix('%').filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
        number.and_then(|number| number.parse().ok()).map(Self).ok_or_else(|| {
            Problem::new(ErrorKind::BadValue, format!("{} is not a part", quote(text)))
                .hint("write a whole number and `%`, as in `\"50%\"`")
        })
    }
}
