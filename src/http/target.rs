//! Who and what a request asks for (RFC 9112 §3.2, RFC 9113 §8.3.1).
//!
//! There is one answer to it, made here, for rules, the cache and the backend alike. What could be read in two ways is
//! refused.

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use http::header::HOST;
use http::{HeaderMap, Method, StatusCode};

use super::path::{self, PathError};
use crate::peek::ServerName;

/// Who and what is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What is written before `://`, in requests of HTTP/2 and to proxies.
    pub scheme: Option<Scheme>,
    /// A name in lower case without a dot behind it, or an address, of IPv6 in brackets; empty in requests of HTTP/1.0 that
    /// do not say.
    pub host: Box<str>,
    /// The port that is written behind it.
    pub port: Option<u16>,
    /// The path in its one spelling, see [`path::normalise`]; `*` when the whole server is asked (`OPTIONS *`).
    pub path: Box<str>,
    /// What is behind the question mark, with what cannot be sent escaped.
    pub query: Option<Box<str>>,
    /// The path that rules look at where it is another one.
    plain: Option<Box<str>>,
}

/// What stands before `://`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// In clear.
    Http,
    /// In TLS.
    Https,
}

/// How a request says who is asked, beside its target.
#[derive(Clone, Copy, Debug)]
pub enum Spoken<'a> {
    /// HTTP/1.0, where `Host` may be missing.
    Http10,
    /// HTTP/1.1, where it may not.
    Http11,
    /// HTTP/2, where the target is `:path`.
    Http2 {
        /// `:authority`; without it `Host` is needed.
        authority: Option<&'a str>,
        /// `:scheme`.
        scheme: Option<&'a str>,
    },
}

/// Why it is not known who or what a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The target is neither a path nor a URL, or `*` in a request that is not `OPTIONS`.
    #[error("the request's target has no known form")]
    Form,
    /// A tunnel is asked for.
    #[error("CONNECT is not for this server")]
    Connect,
    /// A URL that begins with something else than `http://` or `https://`.
    #[error("the scheme is neither http nor https")]
    Scheme,
    /// Nothing says which host is asked for.
    #[error("no host")]
    NoHost,
    /// More than one `Host`.
    #[error("more than one Host")]
    ManyHosts,
    /// The host is empty, no name and no address, has user information before it, or its port is none.
    #[error("the host is neither a name nor an address, or its port is none")]
    Host,
    /// `Host` and the URL, or `:authority`, are not the same.
    #[error("Host is not the host of the target")]
    Differ,
    /// The connection is not one to the server that is asked for.
    #[error("the connection is for another server")]
    Misdirected,
    /// The path, or the query, could be read in two ways.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// A host and its port, if one is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// As [`Target::host`] has it.
    pub host: Box<str>,
    /// The port.
    pub port: Option<u16>,
}

/// A request's target taken apart.
struct Parts<'a> {
    url: Option<(Scheme, Authority)>,
    /// With its query.
    path: &'a str,
}

impl Scheme {
    /// Reads it, in whatever case.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Http, Self::Https].into_iter().find(|scheme| text.eq_ignore_ascii_case(scheme.as_str()))
    }

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port where none is written.
    pub fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Target {
    /// Reads the target `uri` of a request, with what else says who is asked.
    ///
    /// # Errors
    /// When that is not clear.
    pub fn read(
        method: &Method,
        uri: &str,
        headers: &HeaderMap,
        spoken: Spoken<'_>,
    ) -> Result<Self, TargetError> {
        if *method == Method::CONNECT {
            return Err(TargetError::Connect);
        }
        let parts = Parts::read(method, uri)?;
        let (scheme, above) = above(parts.url, spoken)?;
        let authority = agreed(above, host_field(headers)?, scheme, spoken)?;
        let (path, query) = match parts.path.split_once('?') {
            Some((path, query)) => (path, Some(escape_query(query)?)),
            None => (parts.path, None),
        };
        let path = if path == "*" { path.to_owned() } else { path::normalise(path)? };
        let plain = match path::without_parameters(&path) {
            Cow::Borrowed(_) => None,
            Cow::Owned(plain) => Some(plain.into()),
        };
        let Authority { host, port } = authority;
        Ok(Self { scheme, host, port, path: path.into(), query, plain })
    }

    /// The path that rules look at, see [`path::without_parameters`].
    pub fn match_path(&self) -> &str {
        self.plain.as_deref().unwrap_or(&self.path)
    }

    /// Host and port as they are written.
    pub fn authority(&self) -> Cow<'_, str> {
        match self.port {
            Some(port) => Cow::Owned(format!("{}:{port}", self.host)),
            None => Cow::Borrowed(&self.host),
        }
    }

    /// Path and query.
    pub fn uri(&self) -> Cow<'_, str> {
        match &self.query {
            Some(query) => Cow::Owned(format!("{}?{query}", self.path)),
            None => Cow::Borrowed(&self.path),
        }
    }

    /// Checks that a connection for the server name `sni` is one to the host that is asked for: what was decided for the one
    /// must not hold for another (RFC 9110 §7.4).
    ///
    /// # Errors
    /// [`TargetError::Misdirected`] when it is not.
    pub fn check_server_name(&self, sni: &ServerName) -> Result<(), TargetError> {
        if *self.host == *sni.as_str() { Ok(()) } else { Err(TargetError::Misdirected) }
    }

    /// Checks that a request for `https` did not come in clear, nor the other way round, where it says what it is for
    /// (RFC 9110 §7.4).
    ///
    /// # Errors
    /// [`TargetError::Misdirected`] when it did.
    pub fn check_scheme(&self, connection: Scheme) -> Result<(), TargetError> {
        if self.scheme.is_none_or(|scheme| scheme == connection) {
            Ok(())
        } else {
            Err(TargetError::Misdirected)
        }
    }
}

impl TargetError {
    /// All that [`TargetError::reason`] says, but for those of [`PathError::REASONS`].
    pub const REASONS: [&'static str; 8] = [
        "target_form",
        "connect",
        "scheme",
        "host_missing",
        "host_twice",
        "host_bad",
        "host_differs",
        "misdirected",
    ];

    /// What the client is answered.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::Form
            | Self::Scheme
            | Self::NoHost
            | Self::ManyHosts
            | Self::Host
            | Self::Differ
            | Self::Path(_) => StatusCode::BAD_REQUEST,
        }
    }

    /// A word for logs and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Form => "target_form",
            Self::Connect => "connect",
            Self::Scheme => "scheme",
            Self::NoHost => "host_missing",
            Self::ManyHosts => "host_twice",
            Self::Host => "host_bad",
            Self::Differ => "host_differs",
            Self::Misdirected => "misdirected",
            Self::Path(error) => error.reason(),
        }
    }
}

impl Authority {
    /// Reads it.
    ///
    /// # Errors
    /// [`TargetError::Host`] when it is none.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((ip, port)) => {
                let ip: Ipv6Addr = ip.parse().map_err(|_| TargetError::Host)?;
                (format!("[{ip}]").into(), port)
            }
            None => {
                let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
                (parse_host(host)?, port)
            }
        };
        let port = match port.strip_prefix(':') {
            Some(port) => Some(parse_port(port)?),
            None if port.is_empty() => None,
            None => return Err(TargetError::Host),
        };
        Ok(Self { host, port })
    }

    /// Whether both are the same, with the port of `scheme` where none is written.
    pub(super) fn is(&self, other: &Self, scheme: Option<Scheme>) -> bool {
        let port = |port: Option<u16>| port.or(scheme.map(Scheme::port));
        self.host == other.host && port(self.port) == port(other.port)
    }
}

impl<'a> Parts<'a> {
    fn read(method: &Method, uri: &'a str) -> Result<Self, TargetError> {
        if uri.starts_with('/') {
            return Ok(Self { url: None, path: uri });
        }
        if uri == "*" {
            let known = *method == Method::OPTIONS;
            return if known { Ok(Self { url: None, path: uri }) } else { Err(TargetError::Form) };
        }
        let (scheme, rest) = uri.split_once("://").ok_or(TargetError::Form)?;
        let scheme = Scheme::parse(scheme).ok_or(TargetError::Scheme)?;
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let url = Some((scheme, Authority::parse(authority)?));
        match path {
            // RFC 9112 §3.2.4.
            "" if *method == Method::OPTIONS => Ok(Self { url, path: "*" }),
            "" => Ok(Self { url, path: "/" }),
            path if path.starts_with('/') => Ok(Self { url, path }),
            // A query right behind the authority: there are two ways to go on, and nobody sends it.
            _ => Err(TargetError::Form),
        }
    }
}

/// What stands above `Host`: the URL's authority, or `:authority`.
fn above(
    url: Option<(Scheme, Authority)>,
    spoken: Spoken<'_>,
) -> Result<(Option<Scheme>, Option<Authority>), TargetError> {
    match (url, spoken) {
        (None, Spoken::Http10 | Spoken::Http11) => Ok((None, None)),
        (Some((scheme, authority)), Spoken::Http10 | Spoken::Http11) => Ok((Some(scheme), Some(authority))),
        // `:path` has no other forms (RFC 9113 §8.3.1).
        (Some(_), Spoken::Http2 { .. }) => Err(TargetError::Form),
        (None, Spoken::Http2 { authority, scheme }) => {
            let scheme = scheme.map(|text| Scheme::parse(text).ok_or(TargetError::Scheme)).transpose()?;
            Ok((scheme, authority.map(Authority::parse).transpose()?))
        }
    }
}

/// The one `Host` there may be.
fn host_field(headers: &HeaderMap) -> Result<Option<Authority>, TargetError> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(TargetError::ManyHosts);
    }
    host.map(|host| Authority::parse(host.to_str().map_err(|_| TargetError::Host)?)).transpose()
}

/// Who is asked, by all that says so.
fn agreed(
    above: Option<Authority>,
    host: Option<Authority>,
    scheme: Option<Scheme>,
    spoken: Spoken<'_>,
) -> Result<Authority, TargetError> {
    match (above, host, spoken) {
        (Some(above), Some(host), _) if above.is(&host, scheme) => Ok(above),
        (Some(_), Some(_), _) => Err(TargetError::Differ),
        // RFC 9112 §3.2: whatever its target says.
        (_, None, Spoken::Http11) => Err(TargetError::NoHost),
        (Some(one), None, _) | (None, Some(one), _) => Ok(one),
        (None, None, Spoken::Http10) => Ok(Authority { host: "".into(), port: None }),
        (None, None, Spoken::Http2 { .. }) => Err(TargetError::NoHost),
    }
}

fn parse_host(text: &str) -> Result<Box<str>, TargetError> {
    if text.parse::<Ipv4Addr>().is_ok() {
        return Ok(text.into());
    }
    let name = ServerName::parse(text.as_bytes()).map_err(|_| TargetError::Host)?;
    // `127.1` and `0x7f000001` are addresses to some resolvers, and to the URL standard.
    let last = name.as_str().rsplit('.').next().unwrap_or_default();
    let number = match last.strip_prefix("0x") {
        Some(hex) => hex.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => last.bytes().all(|byte| byte.is_ascii_digit()),
    };
    if number { Err(TargetError::Host) } else { Ok(name.as_str().into()) }
}

/// A port in its one spelling: no sign, no zero before it, and not nothing (which RFC 3986 allows, and nobody sends).
fn parse_port(text: &str) -> Result<u16, TargetError> {
    match text.bytes().next() {
        Some(b'1'..=b'9') => text.parse().map_err(|_| TargetError::Host),
        _ => Err(TargetError::Host),
    }
}

/// A query as it can be sent: control characters, spaces, quotes, angle brackets and what is not ASCII are escaped, as the
/// URL standard has it; the rest is as it came.
fn escape_query(query: &str) -> Result<Box<str>, TargetError> {
    let mut text = String::with_capacity(query.len());
    for byte in query.bytes() {
        match byte {
            b'#' => return Err(PathError::Fragment.into()),
            b'"' | b'<' | b'>' => path::push_hex(&mut text, byte),
            b'!'..=b'~' => text.push(char::from(byte)),
            byte => path::push_hex(&mut text, byte),
        }
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests;
