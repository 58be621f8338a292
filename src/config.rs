//! The configuration: one TOML file (and what it includes) → [`Config`].
//!
//! `source` reads the files, `file` holds the shapes of the TOML and `decode` fills them, `resolve` turns them
//! into [`Config`] with every default filled in and every error collected, `error` draws the errors. A
//! [`Config`] that exists is valid: listeners are named once, no two routes match the same thing, every name,
//! address and pattern is parsed.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::net::{ListenAddr, UpstreamAddr};
use crate::peek::{Ja4, Protocol, ServerName, Startup};
use crate::prelude::Greeting;

mod account;
mod acme;
mod acme_keys;
mod backend_keys;
mod backend_tls;
mod checks;
mod decode;
mod diff;
mod dns;
mod error;
mod file;
mod first;
mod health;
mod http;
mod http_keys;
mod http_values;
mod limits;
mod lists;
mod made_up;
mod overlap;
mod path;
mod pattern;
mod policy_keys;
mod pool_keys;
mod protocols;
mod resolve;
mod route;
mod schema;
mod source;
mod template;
mod tls;
mod tls_keys;
mod units;
mod upstream;
mod values;
mod watch;

#[cfg(test)]
mod tests;

pub use acme::{AcmeChallenge, AcmeConfig, ExternalAccount};
pub use backend_tls::{BackendTls, ClientCertificate};
pub use diff::{Change, diff, fixed};
pub use dns::{DnsConfig, DnsFamily};
pub use error::{ConfigError, ConfigErrors, ErrorKind};
pub use health::{Check, HealthConfig, HttpCheck, Roots, TlsCheck, Verify};
pub use http::{
    AnswerConfig, BackendHttp, CorsConfig, FilesConfig, HeaderChanges, HostHeader, HttpConfig, HttpLimits,
    PathPattern, PathRewrite, PoliciesOfRequests, ProxyConfig, RedirectConfig, RequestAction,
    RequestConditions, RequestRateConfig, RuleConfig, SplitKey, ValuePattern, VariantConfig,
};
pub use limits::{BanRule, LimitAction, LimitConfig, Limits, Per, RateLimit};
pub use lists::{ListFile, ListStamp};
pub use path::normal as normal_path;
pub use pattern::{Ja4Pattern, NamePattern, NameRegex};
pub use route::{ActionConfig, Conditions, PassthroughConfig, Policies, RejectWith, RouteConfig, RouteKey};
pub use schema::json_schema;
pub use template::{Part, Template, TemplateError, Variable};
pub use tls::{
    CertificateSource, CertificateStore, CipherSuite, ClientAuth, ClientAuthMode, Group, TerminateConfig,
    TlsPolicy, TlsVersion,
};
pub use units::Rate;
pub use upstream::{
    BackendConfig, Balance, ClientKey, EjectConfig, MAX_TIER, MAX_WEIGHT, OnDown, QueueConfig, UpstreamConfig,
};
pub use values::AdminAddrError;
pub use watch::Watch;

/// A whole configuration, resolved: defaults filled in, every value parsed and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The addresses to accept on, in file order; names are unique, never empty.
    pub listeners: Vec<ListenerConfig>,
    /// The routes in file order; names are unique.
    pub routes: Vec<RouteConfig>,
    /// The groups of backends that are named, by name, whether a route leads to them or not.
    pub upstreams: Vec<Arc<UpstreamConfig>>,
    /// The zone that this proxy stands in.
    pub zone: Option<Arc<str>>,
    /// What happens to connections that no route takes.
    pub policies: Policies,
    /// Limits that act before any route is looked at.
    pub limits: Limits,
    /// Deadlines of a connection's stages; routes may override some.
    pub timeouts: Timeouts,
    /// The largest ClientHello accepted, in bytes on the wire, record headers included.
    pub max_hello_size: usize,
    /// Memory that unfinished hellos may take in all, in bytes; `None` means by the cap on connections.
    pub hello_memory: Option<usize>,
    /// Data-plane threads; `None` means one a core.
    pub workers: Option<usize>,
    /// Whom the process becomes once its ports are bound.
    pub identity: Identity,
    /// What the process gives up beside that.
    pub sandbox: Sandbox,
    /// How backend names are resolved.
    pub dns: DnsConfig,
    /// Where certificates are ordered, and for which names.
    pub acme: Option<AcmeConfig>,
    /// How often the backends of passthrough routes are asked for their TLS, give or take a tenth; `None` means never.
    pub probe: Option<Duration>,
    /// Where `/metrics`, `/healthz` and `/readyz` are served; `None` means nowhere.
    pub admin: Option<AdminConfig>,
    /// Whether the files are read again when they change.
    pub reload_on_change: bool,
    /// Where the line a connection goes.
    pub access_log: AccessLogConfig,
    /// The `[[test]]` assertions, in file order.
    pub tests: Vec<TestCase>,
    /// Every setting with the place it came from, for `check --effective`.
    pub effective: Vec<Effective>,
}

/// A named group of addresses to accept on.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// The name that routes, logs and metrics use.
    pub name: Arc<str>,
    /// Addresses to bind; never empty.
    pub bind: Vec<ListenAddr>,
    /// How long a client may stay silent before the connection counts as [`Protocol::Silent`].
    pub silent_after: Duration,
    /// The protocol whose servers speak first that is spoken here, by clients that say nothing for so long.
    pub server_first: Option<(Protocol, Duration)>,
    /// What servers of this listener say of themselves before TLS begins within their protocol.
    pub greeting: Greeting,
    /// Networks of trusted proxies: connections from there begin with a PROXY header, all others must not.
    pub proxy_protocol: Vec<IpNet>,
    /// Where it is written.
    pub origin: Origin,
}

/// How long a backend that is connected to has for its first byte until another one is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerTimeout {
    /// As long as an attempt to connect.
    LikeConnect,
    /// So long; `None`: no other one is tried.
    Of(Option<Duration>),
}

impl AnswerTimeout {
    /// How long that is where an attempt to connect may take so long.
    fn of(self, connect: Duration) -> Option<Duration> {
        match self {
            Self::LikeConnect => Some(connect),
            Self::Of(answer) => answer,
        }
    }
}

/// Deadlines and idle limits of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From accept to the complete hello; absolute, no byte renews it.
    pub hello: Duration,
    /// One attempt to connect to a backend.
    pub connect: Duration,
    /// From there to its first byte, until another one is tried.
    pub answer: AnswerTimeout,
    /// From accept until TLS that ends here is agreed on; absolute.
    pub handshake: Duration,
    /// A relayed connection without a byte in either direction.
    pub idle: Duration,
    /// The same once one direction has ended.
    pub half_closed: Duration,
    /// From the signal to stop until open connections are closed.
    pub drain: Duration,
}

/// Whom the process becomes once its ports are bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Nothing is said: whoever it was started as.
    Unsaid,
    /// Whoever it was started as, on purpose (`user = "off"`).
    Kept,
    /// This user.
    Account(Account),
}

/// What the process gives up of the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// Nothing.
    Off,
    /// All that it does not need (Landlock), as far as the kernel can.
    Landlock,
}

/// A user with the one group that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The user's name, or its number when it has none.
    pub name: Arc<str>,
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

/// The admin address.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// Where to listen.
    pub bind: AdminAddr,
    /// Networks that may ask; for TCP addresses outside loopback never empty.
    pub allow: Vec<IpNet>,
    /// Where the token for `/api` is.
    pub token: Option<SecretSource>,
    /// Whether nobody wrote it down: then it is no error that it cannot be bound.
    pub by_default: bool,
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// In a variable of the environment.
    Environment(String),
    /// In a file.
    File(PathBuf),
    /// In a file that systemd passes on (`$CREDENTIALS_DIRECTORY`).
    Credential(String),
}

/// A duration as it is written in a configuration, `1h30m`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    values::parse(text)
}

/// A network as it is written in a configuration, an address for itself.
pub fn parse_network(text: &str) -> Option<IpNet> {
    values::parse(text)
}

/// A zone as it is written in a configuration.
pub fn parse_zone(text: &str) -> Option<Arc<str>> {
    values::parse::<upstream::ZoneName>(text).map(|zone| zone.0.into())
}

/// The one of `names` that `text` was probably meant to be.
pub fn similar<'n>(text: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    decode::similar(text, names)
}

/// Where the admin server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddr {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// Where access-log lines go, and in which form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLogConfig {
    /// The destination.
    pub to: LogTarget,
    /// The form of a line.
    pub format: LogFormat,
    /// Whether a line tells the client's fingerprint.
    pub ja4: bool,
}

/// Destination of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, appended to.
    File(PathBuf),
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// `key=value` pairs.
    Logfmt,
}

/// A `[[test]]`: a made-up connection and what must become of it.
#[derive(Clone, Debug)]
pub struct TestCase {
    /// The `name` key, or one made from the input.
    pub name: Arc<str>,
    /// What the client sends.
    pub input: TestInput,
    /// The client's address; `None` means 192.0.2.1 (TEST-NET-1, RFC 5737).
    pub from: Option<std::net::IpAddr>,
    /// The listener; `None` means the first one.
    pub listener: Option<Arc<str>>,
    /// What must come out.
    pub expect: Expectation,
    /// Where it is written.
    pub origin: Origin,
}

/// What the client of a [`TestCase`] sends.
#[derive(Clone, Debug)]
pub enum TestInput {
    /// A TLS ClientHello.
    Hello {
        /// Its server name.
        sni: Option<ServerName>,
        /// Its ALPN offers in order.
        alpn: Vec<Box<[u8]>>,
        /// Its fingerprint; without one it has none that a route could match.
        ja4: Option<Ja4>,
        /// The protocol within which TLS is begun.
        within: Option<Protocol>,
    },
    /// A session of PostgreSQL in clear.
    Startup(Startup),
    /// First bytes of another protocol, or none.
    Protocol(Protocol),
    /// These first bytes, and then a pause; never empty.
    First(Box<[u8]>),
}

/// What must become of a [`TestCase`]; every part that is given must hold.
#[derive(Clone, Debug, Default)]
pub struct Expectation {
    /// `"passthrough"` or `"reject"`.
    pub action: Option<ExpectedAction>,
    /// The name of the route.
    pub route: Option<Arc<str>>,
    /// Addresses that must be among the route's backends.
    pub to: Vec<UpstreamAddr>,
    /// How it is refused.
    pub reject: Option<RejectWith>,
}

/// The action that a [`TestCase`] expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpectedAction {
    /// Passed through to a backend.
    Passthrough,
    /// Passed to a backend without its TLS, which ends here.
    Terminate,
    /// Spoken with by HTTP.
    Http,
    /// Sent to https.
    Redirect,
    /// Refused, by a route or by a policy.
    Reject,
}

/// One resolved setting, for `check --effective`.
#[derive(Clone, Debug)]
pub struct Effective {
    /// The key as one would write it, `timeouts.idle` or `route[app].to`.
    pub key: String,
    /// The value in TOML.
    pub value: String,
    /// Where it was written; `None` means it is a default.
    pub origin: Option<Origin>,
}

/// A place in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file as it was named.
    pub file: Arc<Path>,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

impl SecretSource {
    /// The file that it is in, if its path is written.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Environment(_) | Self::Credential(_) => None,
        }
    }

    /// The secret, without a line feed at its end.
    ///
    /// # Errors
    /// When it is not there, cannot be read, or is empty.
    pub fn read(&self) -> io::Result<Box<[u8]>> {
        let mut secret = match self {
            Self::Environment(name) => {
                std::env::var_os(name).ok_or(io::ErrorKind::NotFound)?.into_encoded_bytes()
            }
            Self::File(path) => std::fs::read(path)?,
            Self::Credential(name) => {
                let folder = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or(io::ErrorKind::NotFound)?;
                std::fs::read(Path::new(&folder).join(name))?
            }
        };
        while secret.last().is_some_and(u8::is_ascii_whitespace) {
            secret.pop();
        }
        if secret.is_empty() { Err(io::ErrorKind::InvalidData.into()) } else { Ok(secret.into()) }
    }
}

/// As it is written in TOML.
impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, value) = match self {
            Self::Environment(name) => ("env", name.clone()),
            Self::File(path) => ("file", path.display().to_string()),
            Self::Credential(name) => ("credential", name.clone()),
        };
        write!(f, "{{ {key} = {} }}", toml::Value::String(value))
    }
}

impl fmt::Display for AdminAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(socket) => socket.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for LogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Stdout => f.write_str("stdout"),
            Self::Stderr => f.write_str("stderr"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl Effective {
    /// As an object of `key`, `value` and `origin`.
    pub fn to_json(&self) -> serde_json::Value {
        let origin = self.origin.as_ref().map(ToString::to_string);
        serde_json::json!({ "key": self.key, "value": self.value, "origin": origin })
    }
}

impl Config {
    /// Reads, parses and resolves the file at `path` and the files it includes.
    ///
    /// # Errors
    /// Every error found in any of the files, each with its place and a hint.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        resolve::resolve(source::read(path)?)
    }

    /// The admin address that the file at `path` gives, whatever else is wrong with it, or the usual one.
    pub fn admin_of(path: &Path) -> AdminAddr {
        resolve::admin_of(source::read(path).ok())
    }

    /// Parses and resolves `text`; `name` stands for the file in messages. `include` is relative to the
    /// folder of `name`.
    ///
    /// # Errors
    /// Every error found, each with its place and a hint.
    pub fn parse(name: &Path, text: &str) -> Result<Self, ConfigErrors> {
        resolve::resolve(source::from_text(name, text)?)
    }

    /// The listener that a connection to `target` from this machine would come in on.
    pub fn own(&self, target: SocketAddr) -> Option<&ListenerConfig> {
        resolve::own(&self.listeners, target)
    }
}
