//! Health checks as configured: what is asked of a backend, how often, and what counts as well.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::http::uri::PathAndQuery;
use rustls::pki_types::CertificateDer;

use crate::net::ProxyVersion;
use crate::peek::ServerName;

/// How the endpoints of an upstream are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    /// What is asked.
    pub check: Check,
    /// From the beginning of one check to that of the next, give or take a tenth.
    pub interval: Duration,
    /// Deadline of one check; always shorter than the interval.
    pub timeout: Duration,
    /// Checks in a row that must pass until an endpoint that is down is up; at least 1.
    pub rise: u32,
    /// Checks in a row that must fail until an endpoint that is up is down; at least 1.
    pub fall: u32,
    /// The port that is checked, when it is not the one of the traffic.
    pub port: Option<u16>,
    /// The port at which the endpoint's host says what it thinks of itself.
    pub agent: Option<u16>,
    /// The PROXY header that is sent first, which names no client.
    pub proxy_protocol: Option<ProxyVersion>,
}

/// What a check asks of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// A TCP handshake, or whatever a Unix socket takes for one.
    Tcp,
    /// A TLS handshake.
    Tls(TlsCheck),
    /// A request, over TLS or not.
    Http(HttpCheck, Option<TlsCheck>),
    /// The answer to an SSLRequest.
    Postgres,
    /// The greeting of a MySQL or MariaDB server.
    Mysql,
    /// The answer to PING.
    Redis,
    /// The identification of an SSH server.
    Ssh,
    /// The greeting of an SMTP server.
    Smtp,
}

/// What TLS is checked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsCheck {
    /// The name that is asked for; none is when there is none.
    pub sni: Option<ServerName>,
    /// Against what the certificate is verified.
    pub verify: Verify,
    /// How long before the certificate's end that is told.
    pub expiry_warning: Duration,
}

/// Against what the certificate of an endpoint is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Nothing: any certificate will do.
    Off,
    /// These authorities, for the name that is asked for.
    Roots(Roots),
}

/// Certificates of authorities.
#[derive(Clone, PartialEq, Eq)]
pub struct Roots {
    /// The file that they are from; `None` for those of the system.
    pub file: Option<Arc<Path>>,
    /// The certificates; never empty.
    pub certificates: Arc<[CertificateDer<'static>]>,
}

/// What is asked for by HTTP, and what must come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    /// The path with its query.
    pub path: PathAndQuery,
    /// The `Host`; `None` is the server name, or the address.
    pub host: Option<HeaderValue>,
    /// Codes of which the answer must have one; never empty.
    pub status: Vec<RangeInclusive<u16>>,
    /// What must occur in the first 64 KiB of the answer's body.
    pub body: Option<Box<str>>,
}

impl Check {
    /// The word for it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls(_) => "tls",
            Self::Http(_, None) => "http",
            Self::Http(_, Some(_)) => "https",
            Self::Postgres => "postgres",
            Self::Mysql => "mysql",
            Self::Redis => "redis",
            Self::Ssh => "ssh",
            Self::Smtp => "smtp",
        }
    }

    /// What it has of TLS.
    pub fn tls(&self) -> Option<&TlsCheck> {
        match self {
            Self::Tls(tls) | Self::Http(_, Some(tls)) => Some(tls),
            Self::Tcp
            | Self::Http(_, None)
            | Self::Postgres
            | Self::Mysql
            | Self::Redis
            | Self::Ssh
            | Self::Smtp => None,
        }
    }
}

impl Verify {
    /// The file of the authorities, if they are from one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Off => None,
            Self::Roots(roots) => roots.file.as_deref(),
        }
    }
}

/// As it is written.
impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Roots(Roots { file: None, .. }) => f.write_str("system"),
            Self::Roots(Roots { file: Some(file), .. }) => file.display().fmt(f),
        }
    }
}

/// Without the certificates, of which a system has hundreds.
impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roots").field("file", &self.file).finish_non_exhaustive()
    }
}
