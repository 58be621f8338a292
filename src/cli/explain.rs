//! `portcullis explain`: a made-up connection, and a request by it, through the functions of the data plane.

use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::{Context, bail};

use super::{ConfigArg, Exit, load, print};
use crate::config::{
    ActionConfig, BackendTls, CertificateStore, ClientAuthMode, Config, LimitConfig, Limits,
    PassthroughConfig, RejectWith, TerminateConfig, TlsPolicy, Verify,
};
use crate::guard::Acl;
use crate::net::ListenAddr;
use crate::peek::{
    Alpn, ClientHello, Detector, HelloError, Ja4, Patterns, Preface, Protocol, ServerName, Startup,
};
use crate::prelude;
use crate::route::{Decision, NoRoute, Query, RouteTable, Step};

mod http;

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
pub(super) struct Explain {
    #[command(flatten)]
    config: ConfigArg,
    #[command(flatten)]
    request: http::RequestArgs,
    /// The server name that the client asks for; without one the hello has no SNI.
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// ALPN protocols that the client offers, in order.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    alpn: Vec<String>,
    /// The client's fingerprint (JA4); without one no route matches by that.
    #[arg(long, value_name = "JA4", value_parser = Ja4::parse)]
    ja4: Option<Ja4>,
    /// The client's address.
    #[arg(long, visible_alias = "ip", value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)))]
    from: IpAddr,
    /// The listener; unless given the one with the port of the URL, or the first.
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// Use the first bytes in this file instead, as a client sends them.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sni", "alpn", "ja4", "protocol"])]
    hello: Option<PathBuf>,
    /// The client does not speak TLS but this.
    #[arg(long, conflicts_with_all = ["sni", "alpn", "ja4", "within"], value_parser = plain_protocol)]
    protocol: Option<Protocol>,
    /// The client begins TLS within this protocol (STARTTLS and its like).
    #[arg(long, value_name = "PROTOCOL", conflicts_with = "hello", value_parser = within_protocol)]
    within: Option<Protocol>,
    /// The database that a client of PostgreSQL asks for in clear; that of the user's name if left out.
    #[arg(long, value_name = "NAME", requires = "protocol")]
    database: Option<String>,
    /// The user that it is.
    #[arg(long, value_name = "NAME", requires = "protocol", default_value = "postgres")]
    user: String,
}

/// A protocol other than TLS.
fn plain_protocol(word: &str) -> Result<Protocol, String> {
    one_of(word, |protocol| protocol != Protocol::Tls)
}

/// A protocol within which TLS can be begun.
fn within_protocol(word: &str) -> Result<Protocol, String> {
    one_of(word, Protocol::has_starttls)
}

fn one_of(word: &str, which: fn(Protocol) -> bool) -> Result<Protocol, String> {
    let some = || Protocol::ALL.into_iter().filter(|protocol| which(*protocol));
    some().find(|protocol| protocol.as_str() == word).ok_or_else(|| {
        let words: Vec<_> = some().map(Protocol::as_str).collect();
        format!("the protocols are {}", words.join(", "))
    })
}

impl Explain {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let config = match load(&self.config) {
            Ok(config) => config,
            Err(exit) => return Ok(exit),
        };
        let listener = self.listener(&config)?;
        let table = RouteTable::new(&config);
        let mut out = String::new();
        let (preface, settled) = match self.preface(&config, table.patterns(&listener, self.from))? {
            Ok(preface) => preface,
            Err(refused) => {
                let _ = writeln!(out, "result    refused before any route is tried: {refused}");
                return print(&out);
            }
        };
        describe(&mut out, &preface, self.from, &listener);
        beginning(&mut out, &preface, &config, &listener);
        if settled {
            let _ = writeln!(
                out,
                "          once it pauses for `silent_after`: more bytes could make it something else"
            );
        }
        if admission(&mut out, &config.limits, self.from, &listener) {
            let query = Query { preface: &preface, client: self.from, listener: &listener };
            decide(&mut out, &config, &table, &query, &self.request);
        }
        print(&out)
    }

    /// The name of the listener that the client comes in on.
    fn listener(&self, config: &Config) -> anyhow::Result<String> {
        let all = &config.listeners;
        if let Some(name) = &self.listener {
            if all.iter().any(|listener| *listener.name == **name) {
                return Ok(name.clone());
            }
            let known: Vec<_> = all.iter().map(|listener| &*listener.name).collect();
            bail!("no listener is named `{name}`; there are: {}", known.join(", "));
        }
        let port = self.request.port();
        let has_port = |bind: &ListenAddr| port.is_some() && Some(bind.socket().port()) == port;
        let of_port = all.iter().find(|listener| listener.bind.iter().any(has_port));
        Ok(of_port.or(all.first()).map_or_else(String::new, |listener| listener.name.to_string()))
    }

    /// Whether something is said that only a client of TLS has.
    fn says_tls(&self) -> bool {
        self.sni.is_some() || !self.alpn.is_empty() || self.ja4.is_some() || self.within.is_some()
    }

    /// What the client sends, and whether it is that only when it pauses; or why it is refused for that.
    fn preface(
        &self,
        config: &Config,
        patterns: Patterns<'_>,
    ) -> anyhow::Result<Result<(Preface, bool), HelloError>> {
        if let Some(path) = &self.hello {
            let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let mut detector = Detector::new(config.max_hello_size).with_ja4(true).with_patterns(patterns);
            return match (detector.advance(&bytes), detector.settle(&bytes)) {
                (Ok(Some(preface)), _) => Ok(Ok((prelude::in_clear(preface, &bytes), false))),
                (Ok(None), Some(preface)) => Ok(Ok((preface, true))),
                (Ok(None), None) => bail!("{} bytes are not enough to tell what it is", bytes.len()),
                (Err(refused), _) => Ok(Err(refused)),
            };
        }
        let in_clear = (self.request.is_clear() && !self.says_tls()).then_some(Protocol::Http);
        match self.protocol.or(in_clear) {
            Some(Protocol::Postgres) => {
                let (user, database) = (self.user.as_str(), self.database.as_ref().unwrap_or(&self.user));
                let startup = Startup { database: database.as_str().into(), user: user.into() };
                return Ok(Ok((Preface::Startup(Box::new(startup)), false)));
            }
            Some(protocol) => return Ok(Ok((Preface::Other(protocol), false))),
            None => {}
        }
        let server_name = match self.sni.as_deref().map(|name| ServerName::parse(name.as_bytes())) {
            Some(Err(bad)) => return Ok(Err(bad.into())),
            Some(Ok(name)) => Some(name),
            None => self.request.server_name(),
        };
        let offered: &[&[u8]] = if self.request.is_there() { &[b"h2", b"http/1.1"] } else { &[] };
        let alpn = match self.alpn.as_slice() {
            [] => Alpn::from_names(offered.iter().copied()),
            names => Alpn::from_names(names.iter().map(String::as_bytes)),
        };
        let ja4 = self.ja4.clone().map(Box::new);
        let within = self.within;
        let hello = ClientHello { server_name, alpn, ja4, within, records: 1, ..ClientHello::default() };
        Ok(Ok((Preface::Tls(Box::new(hello)), false)))
    }
}

// Writing to a string cannot fail, here and below.
fn describe(out: &mut String, preface: &Preface, from: IpAddr, listener: &str) {
    let _ = write!(out, "client    {from} on listener `{listener}`, ");
    let hello = match preface {
        Preface::Tls(hello) => hello,
        Preface::Startup(startup) => {
            let Startup { database, user } = &**startup;
            let _ = writeln!(out, "protocol postgres in clear, database {database}, user {user}");
            return;
        }
        Preface::Pattern(_) | Preface::Other(_) => {
            let _ = writeln!(out, "protocol {}", preface.protocol());
            return;
        }
    };
    let name = hello.server_name.as_ref().map_or("none", ServerName::as_str);
    let alpn: Vec<_> = hello.alpn.iter().map(|name| name.escape_ascii().to_string()).collect();
    let alpn = if alpn.is_empty() { "none".to_owned() } else { alpn.join(",") };
    let within = hello.within.map_or(String::new(), |protocol| format!(" begun within {protocol}"));
    let _ = writeln!(out, "TLS{within}, SNI {name}, ALPN {alpn}");
    if let Some(ja4) = &hello.ja4 {
        let _ = writeln!(out, "          fingerprint (JA4) {ja4}");
    }
    if hello.size > 0 {
        let ech = if hello.ech { ", with Encrypted ClientHello: the name is the outer one" } else { "" };
        let _ = writeln!(out, "          hello of {} bytes in {} record(s){ech}", hello.size, hello.records);
    }
}

/// How its listener comes to know what the client is, where that takes more than first bytes.
fn beginning(out: &mut String, preface: &Preface, config: &Config, listener: &str) {
    let protocol = preface.protocol();
    let led = |protocol| config.routes.iter().any(|route| route.begins_tls_within(protocol, listener));
    let server_first = config.listeners.iter().find(|found| *found.name == *listener);
    let server_first = server_first.and_then(|found| found.server_first);
    let waits = server_first.filter(|(first, _)| *first == protocol || protocol == Protocol::Silent);
    if let Some((first, after)) = waits {
        let _ = writeln!(out, "listener  who says nothing for {after:?} is taken for a client of {first}");
    }
    if led(protocol) {
        let greeted = if protocol.is_server_first() { "greeted, and " } else { "" };
        let _ = writeln!(
            out,
            "listener  clients of {protocol} are {greeted}offered TLS, whose hello names the server"
        );
    }
    let must = led(protocol) && preface.hello().is_none() && protocol != Protocol::Postgres;
    if must {
        let _ =
            writeln!(out, "          without it they are told that TLS is required: see --within {protocol}");
    } else if preface.hello().is_some_and(|hello| hello.within.is_some()) && !led(protocol) {
        let _ = writeln!(
            out,
            "          nobody is offered TLS within {protocol} here: no route with `sni` is for it"
        );
    }
}

/// Whether the lists let the client in; the limits can only be told, since they depend on what came before.
fn admission(out: &mut String, limits: &Limits, from: IpAddr, listener: &str) -> bool {
    let allowed = Acl::of(limits).allows(from);
    let verdict = if allowed { "may connect" } else { "may not connect: reset at accept" };
    let exempt = !limits.exempt.is_empty() && Acl::new(&limits.exempt, &[]).allows(from);
    let bans = limits.ban.filter(|_| !exempt).map_or(String::new(), |ban| {
        format!("; banned for {:?} after {} refusals within {:?}", ban.length, ban.after, ban.within)
    });
    let _ = writeln!(out, "lists     {from} {verdict}{bans}");
    if exempt {
        let _ = writeln!(out, "limit     none: {from} is exempt");
        return allowed;
    }
    for limit in limits.by_source.iter().filter(|limit| limit.is_for_listener(listener)) {
        let _ = writeln!(out, "limit     {}", describe_limit(limit));
    }
    allowed
}

/// `name: 50/s, burst 100; 256 open; 32 before their hello, per "ip"`.
fn describe_limit(limit: &LimitConfig) -> String {
    let figures = [
        limit.rate.map(|limit| format!("{}, burst {}", limit.rate, limit.burst)),
        limit.connections.map(|n| format!("{n} open")),
        limit.before_hello.map(|n| format!("{n} before their hello")),
        limit.bandwidth.map(|n| format!("{n} bytes a second")),
    ];
    let figures: Vec<_> = figures.into_iter().flatten().collect();
    let routes =
        limit.routes.as_ref().map_or(String::new(), |routes| format!(", on route {}", routes.join(", ")));
    format!("{}: {}, per {}{routes}; else {}", limit.name, figures.join("; "), limit.per, limit.action)
}

fn decide(
    out: &mut String,
    config: &Config,
    table: &RouteTable,
    query: &Query<'_>,
    request: &http::RequestArgs,
) {
    let greeted = config
        .listeners
        .iter()
        .any(|listener| *listener.name == *query.listener && listener.server_first.is_some());
    if *query.preface == Preface::Other(Protocol::Silent) && greeted {
        let _ = writeln!(out, "result    nobody counts as silent here");
        return;
    }
    if *query.preface == Preface::Other(Protocol::Silent) && !table.wants_silence(query.listener) {
        let hello = config.timeouts.hello;
        let _ =
            writeln!(out, "result    no route is for silent clients: closed after {hello:?} (hello_timeout)");
        return;
    }
    let mut tried = String::new();
    let decision = table.find_traced(query, |step| trace(&mut tried, step));
    out.push_str(&tried);
    let (rule, tls) = (decision.to_string(), query.preface.hello().is_some());
    let alpn = matches!(decision, Decision::NoRoute(NoRoute::NoAlpn, _));
    let _ = writeln!(out, "result    {rule}");
    match decision {
        Decision::Route(route) => match route.action() {
            ActionConfig::Passthrough(to) => destination(out, config, to),
            ActionConfig::Terminate(TerminateConfig { tls, to }) => {
                ends(out, tls);
                destination(out, config, to);
            }
            ActionConfig::Http(http) => {
                if let Some(tls) = &http.tls {
                    ends(out, tls);
                }
                return request.explain(out, (route, http), table, query);
            }
            ActionConfig::Redirect => return request.redirect(out, table),
            ActionConfig::Reject(with) => refusal(out, *with, tls, alpn),
        },
        Decision::NoRoute(_, with) => refusal(out, with, tls, alpn),
    }
    if request.is_there() && matches!(decision, Decision::Route(_)) {
        let _ = writeln!(out, "request   not looked at: the route does not speak HTTP");
    }
}

/// How TLS ends here.
fn ends(out: &mut String, tls: &TlsPolicy) {
    let certificates = match &tls.certificates {
        CertificateStore::Files(files) => {
            files.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        }
        CertificateStore::SelfSigned(_) => "self-signed".to_owned(),
        CertificateStore::Acme(_) => "acme".to_owned(),
    };
    let shown = match tls.client_auth.as_ref().map(|auth| auth.mode) {
        Some(ClientAuthMode::Required) => ", a certificate of the client is required",
        Some(ClientAuthMode::Optional) => ", a certificate of the client is optional",
        None => "",
    };
    let _ = writeln!(
        out,
        "tls       ends here: {} or newer, certificates {certificates}{shown}",
        tls.min_version
    );
}

/// Where a connection leads.
fn destination(out: &mut String, config: &Config, passthrough: &PassthroughConfig) {
    let tls = passthrough.upstream.tls.as_ref();
    let scheme = if tls.is_some() { "tls://" } else { "" };
    let backends: Vec<_> =
        passthrough.upstream.addresses().map(|address| format!("{scheme}{address}")).collect();
    let _ = match passthrough.upstream.server_name() {
        Some(port) => writeln!(out, "backend   the server that the client names, at port {port}"),
        None => writeln!(out, "backends  {} in turn, the next one when a connect fails", backends.join(", ")),
    };
    if let Some(tls) = tls {
        backend_tls(out, tls);
    }
    let _ = writeln!(
        out,
        "timeouts  hello {:?}, connect {:?}, answer {}, idle {:?}, half-closed {:?}",
        config.timeouts.hello,
        passthrough.connect_timeout,
        passthrough.answer_timeout.map_or_else(|| "off".to_owned(), |answer| format!("{answer:?}")),
        passthrough.idle_timeout,
        passthrough.half_closed_timeout
    );
}

/// How TLS is spoken with the backends.
fn backend_tls(out: &mut String, tls: &BackendTls) {
    let signed = match &tls.verify {
        Verify::Off => "any certificate".to_owned(),
        Verify::Roots(roots) => match &roots.file {
            None => "a certificate that this system trusts".to_owned(),
            Some(file) => format!("a certificate signed by {}", file.display()),
        },
    };
    let name = match (&tls.verify, &tls.sni) {
        (_, Some(name)) => format!(", for {name}"),
        (Verify::Roots(_), None) => {
            ", for the backend's name, else the client's, else the address".to_owned()
        }
        (Verify::Off, None) => String::new(),
    };
    let pins = match tls.pins.len() {
        0 => String::new(),
        1 => ", with the pinned key".to_owned(),
        pins => format!(", with one of {pins} pinned keys"),
    };
    let shown = if tls.certificate.is_some() { ", shown one of ours" } else { "" };
    let _ = writeln!(out, "to them   TLS {} or newer, {signed}{name}{pins}{shown}", tls.min_version);
}

fn trace(out: &mut String, step: Step<'_>) {
    let _ = match step.outcome {
        None => writeln!(out, "tried     {}: no route", step.probe),
        Some((route, verdict)) => {
            writeln!(
                out,
                "tried     {}: route `{}` ({}) {verdict}",
                step.probe, route.config.name, route.config.origin
            )
        }
    };
}

fn refusal(out: &mut String, with: RejectWith, tls: bool, alpn: bool) {
    let seen = match with {
        RejectWith::Answer | RejectWith::Alert if alpn => {
            "the fatal alert no_application_protocol (120), then the end of the stream"
        }
        RejectWith::Answer | RejectWith::Alert if tls => {
            "the fatal alert unrecognized_name (112), then the end of the stream"
        }
        RejectWith::Answer => {
            "why, in the words of its protocol where that has any, then the end of the stream"
        }
        RejectWith::Alert | RejectWith::Close => "the end of the stream",
        RejectWith::Reset => "a reset",
        RejectWith::Drop => "nothing",
    };
    let _ = writeln!(out, "client    sees {seen}");
}
