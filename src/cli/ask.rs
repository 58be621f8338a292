//! Asking a running process, over its admin address.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::ConfigArg;
use crate::config::{AdminAddr, Config};

/// A reload may wait for names of backends to be resolved, as long as the configuration says.
const DEADLINE: Duration = Duration::from_secs(120);
/// Largest answer read, in bytes: the settings of 100,000 routes are below.
const MOST: usize = 256 * 1024 * 1024;

/// Where a running process is asked.
#[derive(Debug, clap::Args)]
pub(super) struct AdminArg {
    /// The admin address of the process; by default the one that the configuration file gives.
    #[arg(long, env = "PORTCULLIS_ADMIN", value_name = "ADDR")]
    admin: Option<AdminAddr>,
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl AdminArg {
    /// Asks for `path` and waits for the answer.
    pub(super) fn ask(&self, config: &ConfigArg, method: Method, path: &str) -> anyhow::Result<Answer> {
        let address = match &self.admin {
            Some(address) => address.clone(),
            None => Config::admin_of(&config.file).ok_or_else(|| {
                anyhow!(
                    "{} gives no admin address; give that of the process with `--admin`",
                    config.file.display()
                )
            })?,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let answer = runtime.block_on(async { timeout(DEADLINE, send(&address, method, path)).await });
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
}

async fn send(address: &AdminAddr, method: Method, path: &str) -> anyhow::Result<Answer> {
    match address {
        AdminAddr::Tcp(address) => send_over(TcpStream::connect(address).await?, method, path).await,
        AdminAddr::Unix(file) => send_over(UnixStream::connect(file).await?, method, path).await,
    }
}

async fn send_over<T>(stream: T, method: Method, path: &str) -> anyhow::Result<Answer>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its errors reach whoever waits for the answer.
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header(HOST, "localhost");
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let status = response.status();
    match Limited::new(response.into_body(), MOST).collect().await {
        Ok(body) => Ok(Answer { status, body: body.to_bytes() }),
        Err(error) => bail!("{error}"),
    }
}
