//! What becomes of requests of HTTP, once it is known whose they are.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method, StatusCode};
use ipnet::IpNet;
use regex::Regex;

use super::{NamePattern, Origin, PassthroughConfig, RateLimit, Template, TlsPolicy};

/// What a route does that speaks HTTP with its clients.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// How TLS is ended before; `None`: clients speak in clear.
    pub tls: Option<Arc<TlsPolicy>>,
    /// What becomes of which requests, in the order of the file; what the route itself says is the last, and takes all.
    pub rules: Vec<RuleConfig>,
    /// What clients may take of time and memory.
    pub limits: HttpLimits,
    /// Proxies before this one, whose word on the client is kept (`Forwarded`, `X-Forwarded-*`).
    pub trusted_proxies: Arc<[IpNet]>,
}

/// What becomes of the requests that it takes.
#[derive(Clone, Debug)]
pub struct RuleConfig {
    /// Its name in logs and metrics.
    pub name: Arc<str>,
    /// Which it takes.
    pub when: RequestConditions,
    /// What becomes of them.
    pub action: RequestAction,
    /// What is asked of them before.
    pub policies: PoliciesOfRequests,
    /// What changes in their heads before they are passed on.
    pub request_headers: HeaderChanges,
    /// What changes in the heads of answers.
    pub response_headers: HeaderChanges,
    /// Where it is written.
    pub origin: Origin,
}

/// What is asked of requests, whatever becomes of them.
#[derive(Clone, Debug, Default)]
pub struct PoliciesOfRequests {
    /// How many a client may send.
    pub rate: Option<RequestRateConfig>,
    /// Pages of which other sites may use what is here.
    pub cors: Option<CorsConfig>,
    /// Whether answers tell browsers to be careful.
    pub security_headers: bool,
}

/// How many requests a client may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRateConfig {
    /// How many.
    pub limit: RateLimit,
    /// By what clients are told apart.
    pub per: SplitKey,
}

/// Pages of which other sites may use what is here (Fetch, CORS protocol).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorsConfig {
    /// Their origins, in lower case; `*` for any.
    pub origins: Vec<Box<str>>,
    /// The methods that they may use.
    pub methods: Vec<Method>,
    /// The fields that they may send; empty: those that they ask for.
    pub headers: Vec<HeaderName>,
    /// The fields of answers that they may see.
    pub expose: Vec<HeaderName>,
    /// Whether cookies and the like may be sent.
    pub credentials: bool,
    /// How long a browser may remember it.
    pub max_age: Duration,
}

impl CorsConfig {
    /// Nobody, for so long.
    pub fn of(max_age: Duration) -> Self {
        Self {
            origins: Vec::new(),
            methods: vec![Method::GET, Method::HEAD, Method::POST],
            headers: Vec::new(),
            expose: Vec::new(),
            credentials: false,
            max_age,
        }
    }
}

/// Conditions on a request, all of which must hold; an empty list means "any".
#[derive(Clone, Debug, Default)]
pub struct RequestConditions {
    /// The host that is asked for, of which one must match.
    pub hosts: Vec<NamePattern>,
    /// The path, of which one must match.
    pub paths: Vec<PathPattern>,
    /// The method, which must be one of these.
    pub methods: Vec<Method>,
    /// Header fields, each of which must be there with such a value.
    pub headers: Vec<(HeaderName, ValuePattern)>,
    /// Parameters of the query, the same.
    pub query: Vec<(Box<str>, ValuePattern)>,
    /// Networks, of which one must contain the client's address.
    pub from: Vec<IpNet>,
}

/// What a path must be, normalised as the one of a request is.
#[derive(Clone, Debug)]
pub enum PathPattern {
    /// `/login`: this path.
    Exact(Box<str>),
    /// `/api/*`: this path (here `/api`), and all below it.
    Prefix(Box<str>),
    /// `/img/**.png`: `*` stands for anything but a slash, `**` for anything; compiled, and as it is written.
    Glob(Regex, Box<str>),
    /// `~/v[0-9]+/.*`: paths that the regular expression matches as a whole; compiled, and as it is written without `~`.
    Regex(Regex, Box<str>),
}

/// What a value must be.
#[derive(Clone, Debug)]
pub enum ValuePattern {
    /// `*`: anything.
    Present,
    /// This.
    Exact(Box<str>),
    /// `~…`: what the regular expression matches as a whole.
    Regex(Regex),
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum RequestAction {
    /// It goes to a backend.
    Proxy(Box<ProxyConfig>),
    /// A file answers it.
    Files(FilesConfig),
    /// The client is sent elsewhere.
    Redirect(RedirectConfig),
    /// It is answered here.
    Answer(AnswerConfig),
}

/// How requests go to backends.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Where they go; of several each gets its share. Never empty.
    pub variants: Vec<VariantConfig>,
    /// By what a client stays with its variant, where there are several.
    pub sticky: SplitKey,
    /// The host that backends are asked for.
    pub host: HostHeader,
    /// What changes in the path.
    pub rewrite: PathRewrite,
    /// Whether request bodies are taken whole before a backend is asked.
    pub buffer_requests: bool,
    /// How long a backend has from the whole request to the head of its answer.
    pub response_timeout: Duration,
}

/// One of the backends, or groups of them, that requests are split over.
#[derive(Clone, Debug)]
pub struct VariantConfig {
    /// Its name, in logs, metrics and for backends.
    pub name: Arc<str>,
    /// Its share beside the others.
    pub weight: u32,
    /// Where requests go.
    pub to: PassthroughConfig,
    /// The version of HTTP that is spoken there.
    pub version: BackendHttp,
}

/// The version of HTTP that a backend speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendHttp {
    /// 1.1, in clear or in TLS.
    Http1,
    /// 2: in clear with prior knowledge (`h2c://`), or inside TLS (`h2://`).
    Http2,
}

/// By what clients of a split are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SplitKey {
    /// By address.
    Source,
    /// By a cookie of this name, which is set where a client has none.
    Cookie(Box<str>),
    /// By the value of a header field; those without one by address.
    Header(HeaderName),
}

/// The host that a backend is asked for.
#[derive(Clone, Debug)]
pub enum HostHeader {
    /// The one that the client asks for.
    Keep,
    /// The backend's own.
    Backend,
    /// This one.
    Set(Template),
}

/// What changes in the path of a request, in this order.
#[derive(Clone, Debug, Default)]
pub struct PathRewrite {
    /// This is taken off its beginning, where it begins so.
    pub strip: Option<Box<str>>,
    /// Where the regular expression matches, the whole path becomes this; `{1}` is its first group.
    pub replace: Option<(Regex, Template)>,
    /// This is put before it.
    pub add: Option<Box<str>>,
}

/// Files that answer requests.
#[derive(Clone, Debug)]
pub struct FilesConfig {
    /// The folder that they lie in.
    pub root: PathBuf,
    /// Files that answer for their folder, the first that there is.
    pub index: Vec<Box<str>>,
    /// The file, below the root, that answers what there is no file for (applications of a single page).
    pub fallback: Option<PathBuf>,
    /// What is taken off the path first.
    pub strip: Option<Box<str>>,
    /// Whether files and folders are served whose names begin with a dot.
    pub dotfiles: bool,
    /// Whether `NAME.br`, `NAME.zst` and `NAME.gz` beside a file answer for it, to those who take them.
    pub precompressed: bool,
}

/// Where clients are sent.
#[derive(Clone, Debug)]
pub struct RedirectConfig {
    /// The URL.
    pub to: Template,
    /// One of 301, 302, 303, 307, 308.
    pub status: StatusCode,
}

/// An answer that is always the same.
#[derive(Clone, Debug)]
pub struct AnswerConfig {
    /// Its status; the page of an error is made when there is no body.
    pub status: StatusCode,
    /// What it says.
    pub body: Option<Template>,
    /// The type of that.
    pub content_type: Box<str>,
}

/// What changes in a head: first what is removed, then what is set, then what is added.
#[derive(Clone, Debug, Default)]
pub struct HeaderChanges {
    /// Fields that are taken out.
    pub remove: Vec<HeaderName>,
    /// Fields that are there once, with this value.
    pub set: Vec<(HeaderName, Template)>,
    /// Fields that are put behind what there is of the same name.
    pub add: Vec<(HeaderName, Template)>,
}

/// What clients of HTTP may take of time and memory.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpLimits {
    /// Fields of a head.
    pub max_headers: usize,
    /// Bytes of a head.
    pub max_header_size: usize,
    /// Bytes of a URI.
    pub max_uri: usize,
    /// Bytes of a request's body; `None`: any number.
    pub max_body: Option<u64>,
    /// From the first byte of a head to its last.
    pub header_timeout: Duration,
    /// Between two requests of a connection.
    pub keep_alive: Duration,
    /// Between two pieces of a body.
    pub body_timeout: Duration,
    /// Bytes a second that a body must come in with, on average once it has had a while; `None`: any.
    pub min_body_rate: Option<u64>,
    /// How long a client may take nothing of its answer.
    pub write_timeout: Duration,
    /// Streams of HTTP/2 that a connection may have at once.
    pub max_streams: u32,
}

impl HttpLimits {
    /// What applies where nothing is said.
    pub const DEFAULT: Self = Self {
        max_headers: 100,
        max_header_size: 32 * 1024,
        max_uri: 16 * 1024,
        max_body: None,
        header_timeout: Duration::from_secs(10),
        keep_alive: Duration::from_secs(60),
        body_timeout: Duration::from_secs(30),
        min_body_rate: Some(256),
        write_timeout: Duration::from_secs(60),
        max_streams: 100,
    };
}

impl HttpConfig {
    /// Where its requests may go.
    pub fn backends(&self) -> impl Iterator<Item = &PassthroughConfig> {
        self.rules.iter().flat_map(|rule| rule.action.variants()).map(|variant| &variant.to)
    }

    /// The folders whose files answer requests.
    pub fn roots(&self) -> impl Iterator<Item = &Path> {
        self.rules.iter().filter_map(|rule| match &rule.action {
            RequestAction::Files(files) => Some(&*files.root),
            RequestAction::Proxy(_) | RequestAction::Redirect(_) | RequestAction::Answer(_) => None,
        })
    }
}

impl RequestAction {
    /// The backends, or groups of them, that requests are split over.
    pub fn variants(&self) -> &[VariantConfig] {
        match self {
            Self::Proxy(proxy) => &proxy.variants,
            Self::Files(_) | Self::Redirect(_) | Self::Answer(_) => &[],
        }
    }
}

impl HeaderChanges {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

/// As it is written.
impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => f.write_str(path),
            Self::Prefix(path) => write!(f, "{path}/*"),
            Self::Glob(_, text) => f.write_str(text),
            Self::Regex(_, text) => write!(f, "~{text}"),
        }
    }
}

/// As it is written.
impl fmt::Display for ValuePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("*"),
            Self::Exact(value) => f.write_str(value),
            Self::Regex(regex) => {
                let whole = regex.as_str();
                let written = whole.strip_prefix("^(?:").and_then(|rest| rest.strip_suffix(")$"));
                write!(f, "~{}", written.unwrap_or(whole))
            }
        }
    }
}

/// As it is written.
impl fmt::Display for HostHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("keep"),
            Self::Backend => f.write_str("backend"),
            Self::Set(host) => host.fmt(f),
        }
    }
}
