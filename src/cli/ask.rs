//! Asking a running process, over its admin address.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::ConfigArg;
use crate::config::{AdminAddr, Config, SecretSource};

/// A reload may wait for names of backends to be resolved, as long as the configuration says.
const DEADLINE: Duration = Duration::from_secs(120);
/// Largest answer read, in bytes: the settings of 100,000 routes are below.
const MOST: usize = 256 * 1024 * 1024;

/// Which running process is asked.
#[derive(Debug, clap::Args)]
pub(super) struct ProcessArg {
    #[command(flatten)]
    pub(super) config: ConfigArg,
    /// The admin address of the process; by default the one that the configuration file gives, else the usual one.
    #[arg(long, env = "PORTCULLIS_ADMIN", value_name = "ADDR")]
    admin: Option<AdminAddr>,
    /// The file of the token that the process asks for.
    #[arg(long, env = "PORTCULLIS_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl ProcessArg {
    /// Asks for `path` and waits for the answer.
    pub(super) fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
        let address = self.admin.clone().unwrap_or_else(|| Config::admin_of(&self.config.file));
        let mut request = Request::builder().method(method).uri(path).header(HOST, "localhost");
        if let Some(file) = &self.token_file {
            let token = SecretSource::File(file.clone()).read();
            let token = token.with_context(|| format!("cannot read the token in {}", file.display()))?;
            request = request.header(AUTHORIZATION, [b"Bearer ", &*token].concat());
        }
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let request = request.body(Full::new(body))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let answer = runtime.block_on(async { timeout(DEADLINE, send(&address, request)).await });
        let answer = answer.map_err(|_| anyhow!("no answer within {} s", DEADLINE.as_secs()));
        answer.and_then(|answer| answer).with_context(|| format!("cannot ask the process at {address}"))
    }
}

impl Answer {
    /// What it says.
    pub(super) fn json<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("not an answer of Portcullis (status {})", self.status))
    }

    /// The answer, unless it is that this cannot be done.
    pub(super) fn done(self) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Problem {
            text: String,
        }
        if self.status.is_success() {
            return Ok(self);
        }
        match serde_json::from_slice::<Problem>(&self.body) {
            Ok(problem) => bail!("{}", problem.text.trim_end()),
            Err(_) => bail!("{}", String::from_utf8_lossy(&self.body).trim_end()),
        }
    }
}

async fn send(address: &AdminAddr, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
    match address {
        AdminAddr::Tcp(address) => send_over(TcpStream::connect(address).await?, request).await,
        AdminAddr::Unix(file) => send_over(UnixStream::connect(file).await?, request).await,
    }
}

async fn send_over<T>(stream: T, request: Request<Full<Bytes>>) -> anyhow::Result<Answer>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its errors reach whoever waits for the answer.
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    match Limited::new(response.into_body(), MOST).collect().await {
        Ok(body) => Ok(Answer { status, body: body.to_bytes() }),
        Err(error) => bail!("{error}"),
    }
}
