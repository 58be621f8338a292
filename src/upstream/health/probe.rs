//! One check of one endpoint.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::header::HeaderValue;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::agent::{self, AgentReport};
use super::dial::{connect, dial, within};
use super::error::{CheckError, Excerpt, Step};
use super::greeting::{self, Greeting, Heard};
use super::tls::Tls;
use super::{Target, http};
use crate::config::{Check, HealthConfig, HttpCheck};
use crate::net::ProxyVersion;

/// What of an answer is read, in bytes.
const ANSWER: u64 = 8 * 1024;

/// How the endpoints of an upstream are checked.
pub struct Probe {
    kind: Kind,
    port: Option<u16>,
    agent: Option<u16>,
    header: Option<ProxyVersion>,
    timeout: Duration,
}

/// What is asked.
enum Kind {
    Connect,
    Greet(Greeting),
    Tls(Tls),
    Http(HttpCheck, Option<Tls>, Option<HeaderValue>),
}

/// What a check that passed found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// When the certificate ends, in seconds of Unix time.
    pub not_after: Option<i64>,
}

impl Probe {
    /// The check that `config` describes.
    pub fn new(config: &HealthConfig) -> Self {
        let kind = match &config.check {
            Check::Tcp => Kind::Connect,
            Check::Tls(tls) => Kind::Tls(Tls::new(tls, &[])),
            Check::Http(http, tls) => {
                let sni = tls.as_ref().and_then(|tls| tls.sni.as_ref());
                let name = sni.and_then(|sni| HeaderValue::from_str(sni.as_str()).ok());
                let tls = tls.as_ref().map(|tls| Tls::new(tls, &["http/1.1"]));
                Kind::Http(http.clone(), tls, http.host.clone().or(name))
            }
            Check::Postgres => Kind::Greet(greeting::POSTGRES),
            Check::Mysql => Kind::Greet(greeting::MYSQL),
            Check::Redis => Kind::Greet(greeting::REDIS),
            Check::Ssh => Kind::Greet(greeting::SSH),
            Check::Smtp => Kind::Greet(greeting::SMTP),
        };
        Self {
            kind,
            port: config.port,
            agent: config.agent,
            header: config.proxy_protocol,
            timeout: config.timeout,
        }
    }

    /// Checks `target` once, within the timeout. Cancel safe: dropping it closes the socket.
    ///
    /// # Errors
    /// Why it did not pass; [`CheckError::Resource`] says nothing about the endpoint.
    pub async fn run(&self, target: &Target) -> Result<Passed, CheckError> {
        let until = Instant::now() + self.timeout;
        let target = at_port(target, self.port);
        // What handshakes and requests need is boxed: it is there for the few endpoints that are checked just then.
        let stream = dial(&target, self.header, until).await?;
        match &self.kind {
            Kind::Connect => Ok(Passed::default()),
            Kind::Greet(greeting) => {
                greet(greeting, stream, until).await?;
                Ok(Passed::default())
            }
            Kind::Tls(tls) => {
                let (_, not_after) = within(until, Step::Handshake, Box::pin(tls.handshake(stream))).await?;
                Ok(Passed { not_after })
            }
            Kind::Http(check, None, host) => {
                let host = host.clone().unwrap_or_else(|| address(&target));
                within(until, Step::Answer, Box::pin(http::ask(check, host, stream))).await?;
                Ok(Passed::default())
            }
            Kind::Http(check, Some(tls), host) => {
                let host = host.clone().unwrap_or_else(|| address(&target));
                let (stream, not_after) =
                    within(until, Step::Handshake, Box::pin(tls.handshake(stream))).await?;
                within(until, Step::Answer, Box::pin(http::ask(check, host, stream))).await?;
                Ok(Passed { not_after })
            }
        }
    }

    /// Asks the agent on the host of `target`; `None` when there is none to ask. Cancel safe.
    ///
    /// # Errors
    /// Why it said nothing that is understood.
    pub async fn ask_agent(&self, target: &Target) -> Option<Result<AgentReport, CheckError>> {
        let (Some(_), Target::Tcp(_)) = (self.agent, target) else { return None };
        let until = Instant::now() + self.timeout;
        let target = at_port(target, self.agent);
        Some(async move { within(until, Step::Answer, hear_agent(&target)).await }.await)
    }
}

/// The same host at another port; a Unix socket has none.
fn at_port(target: &Target, port: Option<u16>) -> Target {
    match (target, port) {
        (Target::Tcp(address), Some(port)) => Target::Tcp(SocketAddr::new(address.ip(), port)),
        (same, _) => same.clone(),
    }
}

/// The `Host` for an endpoint without a name.
fn address(target: &Target) -> HeaderValue {
    let local = || HeaderValue::from_static("localhost");
    match target {
        Target::Tcp(address) => HeaderValue::from_str(&address.to_string()).unwrap_or_else(|_| local()),
        Target::Unix(_) | Target::ServerName(_) => local(),
    }
}

async fn greet<S>(greeting: &Greeting, mut stream: S, until: Instant) -> Result<(), CheckError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    within(until, Step::Answer, converse(greeting, &mut stream)).await?;
    // The check has passed; how the server takes the leave does not matter.
    let _ = timeout_at(until, leave(greeting, &mut stream)).await;
    Ok(())
}

async fn converse<S>(greeting: &Greeting, stream: &mut S) -> Result<(), CheckError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(greeting.say).await.map_err(CheckError::Lost)?;
    let mut stream = stream.take(ANSWER);
    let mut said = Vec::new();
    loop {
        let read = stream.read_buf(&mut said).await.map_err(CheckError::Lost)?;
        let strange = || CheckError::Unexpected { expected: greeting.expected, got: Excerpt::of(&said) };
        match (greeting.hear)(&said) {
            Heard::Well => return Ok(()),
            Heard::Unwell(excerpt) => return Err(CheckError::Unwell(excerpt)),
            Heard::Strange => return Err(strange()),
            Heard::Part if read > 0 => {}
            Heard::Part if said.is_empty() => {
                return Err(CheckError::Lost(io::ErrorKind::UnexpectedEof.into()));
            }
            Heard::Part => return Err(strange()),
        }
    }
}

async fn leave<S>(greeting: &Greeting, stream: &mut S) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut said = Vec::new();
    let mut turn = 0;
    while let Some(words) = (greeting.leave)(turn, &said) {
        stream.write_all(words).await?;
        said.clear();
        if stream.read_buf(&mut said).await? == 0 {
            break;
        }
        turn += 1;
    }
    Ok(())
}

async fn hear_agent(target: &Target) -> Result<AgentReport, CheckError> {
    let mut stream = connect(target).await?.take(agent::LINE as u64);
    let mut said = Vec::new();
    while !said.contains(&b'\n') {
        if stream.read_buf(&mut said).await.map_err(CheckError::Lost)? == 0 {
            break;
        }
    }
    let expected = "`up`, `down`, `drain` or a share such as `75%`";
    AgentReport::parse(&said).map_err(|got| CheckError::Unexpected { expected, got })
}
