//! A made-up request, through the functions that the data plane has for it.

use std::fmt::{Display, Write};

use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::config::{
    AnswerConfig, BackendHttp, FilesConfig, HostHeader, HttpConfig, ProxyConfig, RequestAction, RuleConfig,
    SplitKey, VariantConfig,
};
use crate::conn::redirected;
use crate::http::admit;
use crate::http::fields::client_of;
use crate::http::rewrite::rewrite;
use crate::http::rules::{Asked, Rules};
use crate::http::target::{Authority, Scheme, Spoken, Target};
use crate::http::template::{Vars, expand};
use crate::peek::{Preface, Protocol, ServerName};
use crate::route::{Query, Route, RouteTable};

/// What `{id}` is in a request that never was.
const ID: &str = "0000000000000000-0";

/// The request, as the command line has it.
#[derive(Debug, clap::Args)]
pub(super) struct RequestArgs {
    /// The method of a request that the client sends; with it the way of the request is told, too.
    #[arg(value_name = "METHOD", requires = "url")]
    method: Option<Method>,
    /// Its URL. What is not said of the connection follows from it: the server name, ALPN (h2,http/1.1), or HTTP in clear.
    #[arg(value_name = "URL", requires = "method", conflicts_with = "hello", value_parser = url)]
    url: Option<Url>,
    /// A header field of the request, as in `X-Beta: 1`; may be given several times.
    #[arg(long = "header", value_name = "FIELD", requires = "url", value_parser = field)]
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// A URL taken apart, as clients do that.
#[derive(Clone, Debug)]
struct Url {
    scheme: Scheme,
    authority: Box<str>,
    /// What is sent as the target: path and query as they are written.
    uri: Box<str>,
}

/// A request, and the connection that it comes by.
struct Request<'a> {
    method: &'a Method,
    headers: HeaderMap,
    scheme: Scheme,
    query: &'a Query<'a>,
}

fn url(text: &str) -> Result<Url, String> {
    let parts = text.split_once("://").and_then(|(scheme, rest)| Some((Scheme::parse(scheme)?, rest)));
    let Some((scheme, rest)) = parts else {
        return Err("a URL begins with `http://` or `https://`".to_owned());
    };
    // Fragments are for the client itself (RFC 9110 §4.2.5).
    let rest = rest.split('#').next().unwrap_or_default();
    let (authority, uri) = rest.split_at(rest.find(['/', '?', '\\']).unwrap_or(rest.len()));
    if authority.is_empty() || !authority.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("there is no host that could be asked for".to_owned());
    }
    let slash = if uri.is_empty() || uri.starts_with('?') { "/" } else { "" };
    Ok(Url { scheme, authority: authority.into(), uri: format!("{slash}{uri}").into() })
}

fn field(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let parts = text.split_once(':').and_then(|(name, value)| {
        Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value.trim()).ok()?))
    });
    parts.ok_or_else(|| "a field is written as in `X-Beta: 1`".to_owned())
}

impl RequestArgs {
    /// Whether there is one.
    pub(super) fn is_there(&self) -> bool {
        self.url.is_some()
    }

    /// Whether its URL is for HTTP in clear.
    pub(super) fn is_clear(&self) -> bool {
        self.url.as_ref().is_some_and(|url| url.scheme == Scheme::Http)
    }

    /// The server name that its client asks for in TLS.
    pub(super) fn server_name(&self) -> Option<ServerName> {
        let host = Authority::parse(&self.url.as_ref()?.authority).ok()?.host;
        ServerName::parse(host.as_bytes()).ok()
    }

    /// The port that its client connects to.
    pub(super) fn port(&self) -> Option<u16> {
        let url = self.url.as_ref()?;
        Some(Authority::parse(&url.authority).ok()?.port.unwrap_or(url.scheme.port()))
    }

    /// Tells where the request is sent by a route that redirects whatever it has; in general where there is none.
    pub(super) fn redirect(&self, out: &mut String, table: &RouteTable) {
        let (Some(method), Some(url)) = (&self.method, &self.url) else {
            let _ = writeln!(out, "client    sees 308 to https if a route takes the host, else 421");
            return;
        };
        let mut head = format!("{method} {} HTTP/1.1\r\n", url.uri).into_bytes();
        if !self.headers.iter().any(|(name, _)| *name == HOST) {
            head.extend_from_slice(format!("host: {}\r\n", url.authority).as_bytes());
        }
        for (name, value) in &self.headers {
            head.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        head.extend_from_slice(b"\r\n");
        let _ = match redirected(&head, |name| table.serves(name)) {
            Ok(location) => writeln!(out, "client    sees 308 to {location}"),
            Err(StatusCode::MISDIRECTED_REQUEST) => {
                writeln!(out, "client    sees 421: no route takes the host")
            }
            Err(status) => writeln!(out, "client    sees {}", status.as_u16()),
        };
    }

    /// Tells what becomes of the request by `route`, which its connection has come to.
    pub(super) fn explain(
        &self,
        out: &mut String,
        (route, config): (&Route, &HttpConfig),
        table: &RouteTable,
        query: &Query<'_>,
    ) {
        let (Some(method), Some(url)) = (&self.method, &self.url) else { return };
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
        let hello = query.preface.hello();
        let scheme = if hello.is_some() { Scheme::Https } else { Scheme::Http };
        let mut request = Request { method, headers, scheme, query };
        let target = match request.target(url) {
            Ok(target) => target,
            Err(error) => {
                let _ = writeln!(out, "request   {method} {} of {}", url.uri, url.authority);
                return refused(out, error, error.status(), error.reason());
            }
        };
        let _ = writeln!(out, "request   {method} {} of {}", target.uri(), target.authority());
        if *target.path != *target.match_path() {
            let _ = writeln!(out, "          rules look at {}", target.match_path());
        }
        let name = &*route.config.name;
        let takes = |host: &str| {
            hello.is_none_or(|hello| table.takes_host(host, hello, (query.client, query.listener), name))
        };
        match admit(method, &target, scheme, takes) {
            Ok(()) => request.find(out, &target, (name, config)),
            Err((status, "misdirected")) => {
                refused(out, "the connection is for another server", status, "misdirected");
            }
            Err((status, reason)) => refused(out, "its method is none that is taken", status, reason),
        }
    }
}

impl Request<'_> {
    /// Reads who and what is asked for, as it is sent by the protocol that would be spoken.
    fn target(&mut self, url: &Url) -> Result<Target, crate::http::target::TargetError> {
        let preface = self.query.preface;
        let is_h2 = *preface == Preface::Other(Protocol::H2c)
            || preface.hello().is_some_and(|hello| hello.alpn.iter().any(|name| *name == *b"h2"));
        let spoken = if is_h2 {
            Spoken::Http2 { authority: Some(&url.authority), scheme: Some(url.scheme.as_str()) }
        } else {
            if let (false, Ok(host)) =
                (self.headers.contains_key(HOST), HeaderValue::try_from(&*url.authority))
            {
                self.headers.insert(HOST, host);
            }
            Spoken::Http11
        };
        Target::read(self.method, &url.uri, &self.headers, spoken)
    }

    /// Which rule takes it, and what that does.
    fn find(&self, out: &mut String, target: &Target, (route, config): (&str, &HttpConfig)) {
        let client = client_of(&self.headers, self.query.client, &config.trusted_proxies);
        if client != self.query.client.to_canonical() {
            let _ = writeln!(out, "client    {client}, by the word of {}", self.query.client);
        }
        let asked = Asked {
            host: &target.host,
            path: target.match_path(),
            method: self.method,
            headers: &self.headers,
            query: target.query.as_deref(),
            client,
        };
        let mut tried = String::new();
        let found = Rules::new(&config.rules).find_traced(&asked, &mut |step| {
            let path = step.path.map_or_else(|| "any path".to_owned(), ToString::to_string);
            let rule = named(config, step.rule);
            let _ = writeln!(tried, "tried     {}, {path}: {rule} {}", step.host, step.verdict);
        });
        out.push_str(&tried);
        let Some((found, rule)) = found.and_then(|found| Some((config.rules.get(found.rule)?, found))) else {
            return refused(out, "no rule takes it", StatusCode::NOT_FOUND, "no_rule");
        };
        let _ = writeln!(out, "result    {}", named(config, rule.rule));
        let vars = Vars {
            scheme: self.scheme,
            host: &target.host,
            authority: &target.authority(),
            method: self.method,
            path: &target.path,
            query: target.query.as_deref(),
            client,
            route,
            variant: "",
            id: ID,
            headers: &self.headers,
            groups: rule.groups.as_ref(),
        };
        act(out, found, target, &vars);
    }
}

/// A rule and its place; the last one is what the route says of the rest.
fn named(config: &HttpConfig, index: usize) -> String {
    let Some(rule) = config.rules.get(index) else { return String::new() };
    let RuleConfig { name, origin, .. } = rule;
    if index + 1 == config.rules.len() {
        return format!("the route itself ({origin})");
    }
    format!("rule `{name}` ({origin})")
}

fn refused(out: &mut String, why: impl Display, status: StatusCode, reason: &str) {
    let _ = writeln!(out, "result    refused with {status} ({reason}): {why}");
}

/// What is filled in cannot be sent.
fn unfit(out: &mut String) {
    let why = "what is filled in has control characters, or is not text";
    refused(out, why, StatusCode::BAD_REQUEST, "unfit_value");
}

/// What a rule does with a request.
fn act(out: &mut String, rule: &RuleConfig, target: &Target, vars: &Vars<'_>) {
    match &rule.action {
        RequestAction::Proxy(proxy) => passed_on(out, proxy, target, vars),
        RequestAction::Files(files) => folder(out, files),
        RequestAction::Redirect(redirect) => match expand(&redirect.to, vars) {
            Some(to) => _ = writeln!(out, "client    sees {} to {to}", redirect.status.as_u16()),
            None => unfit(out),
        },
        RequestAction::Answer(answer) => fixed(out, answer, vars),
    }
}

/// Which backends get it, and as what.
fn passed_on(out: &mut String, proxy: &ProxyConfig, target: &Target, vars: &Vars<'_>) {
    let all: u64 = proxy.variants.iter().map(|variant| u64::from(variant.weight)).sum();
    let split = proxy.variants.len() > 1;
    if split {
        let by = match &proxy.sticky {
            SplitKey::Source => "its address".to_owned(),
            SplitKey::Cookie(name) => format!("the cookie `{name}`"),
            SplitKey::Header(name) => format!("the field `{name}`"),
        };
        let _ = writeln!(out, "split     a client stays with its variant by {by}");
    }
    for variant in &proxy.variants {
        let vars = Vars { variant: if split { &variant.name } else { "" }, ..*vars };
        let path = match rewrite(&proxy.rewrite, &target.path, &vars) {
            Ok(rewritten) => rewritten.path,
            Err(error) => return refused(out, error, error.status(), error.reason()),
        };
        let host = match &proxy.host {
            HostHeader::Keep => target.authority().into_owned(),
            HostHeader::Backend => "that of the backend".to_owned(),
            HostHeader::Set(host) => match expand(host, &vars) {
                Some(host) => host,
                None => return unfit(out),
            },
        };
        if split {
            let _ = writeln!(out, "variant   `{}`, {} of {all}", variant.name, variant.weight);
        }
        let _ = writeln!(out, "backends  {}", backends(variant));
        let uri = target.query.as_deref().map_or_else(|| path.to_string(), |query| format!("{path}?{query}"));
        let _ = writeln!(out, "          asked for {uri}, host {host}");
        let (connect, idle) = (variant.to.connect_timeout, variant.to.idle_timeout);
        let response = proxy.response_timeout;
        let _ = writeln!(out, "timeouts  connect {connect:?}, response {response:?}, idle {idle:?}");
    }
}

/// The backends of a variant, as they are written.
fn backends(variant: &VariantConfig) -> String {
    let scheme = match (variant.version, &variant.to.upstream.tls) {
        (BackendHttp::Http1, None) => "http",
        (BackendHttp::Http1, Some(_)) => "https",
        (BackendHttp::Http2, None) => "h2c",
        (BackendHttp::Http2, Some(_)) => "h2",
    };
    let all: Vec<_> =
        variant.to.upstream.addresses().map(|address| format!("{scheme}://{address}")).collect();
    all.join(", ")
}

/// The folder whose files answer.
fn folder(out: &mut String, files: &FilesConfig) {
    let _ = write!(out, "files     in {}", files.root.display());
    if let Some(strip) = &files.strip {
        let _ = write!(out, ", by the path behind {strip}");
    }
    if let Some(fallback) = &files.fallback {
        let _ = write!(out, ", else {}", fallback.display());
    }
    out.push('\n');
}

/// An answer that is always the same.
fn fixed(out: &mut String, answer: &AnswerConfig, vars: &Vars<'_>) {
    let status = answer.status;
    let body = match answer.body.as_ref().map(|body| expand(body, vars)) {
        Some(Some(body)) => format!("{body:?} ({})", answer.content_type),
        Some(None) => return unfit(out),
        None if status.is_client_error() || status.is_server_error() => "the page of an error".to_owned(),
        None => "nothing".to_owned(),
    };
    let _ = writeln!(out, "client    sees {}, and {body}", status.as_u16());
}
