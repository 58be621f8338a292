//! `portcullis connections`, `close` and `drain`: what is open, and its end.

use hyper::Method;
use serde::Deserialize;
use serde_json::Value;

use super::ask::ProcessArg;
use super::{Exit, print};

/// Arguments of `connections`.
#[derive(Debug, clap::Args)]
pub(super) struct Connections {
    /// How many at most.
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,
    #[command(flatten)]
    process: ProcessArg,
}

/// Arguments of `close`.
#[derive(Debug, clap::Args)]
pub(super) struct Close {
    /// The connection's id, as `connections` and the access log tell it.
    id: String,
    #[command(flatten)]
    process: ProcessArg,
}

/// Arguments of `drain`.
#[derive(Debug, clap::Args)]
pub(super) struct Drain {
    #[command(flatten)]
    process: ProcessArg,
}

/// What the process answers.
#[derive(Debug, Deserialize)]
struct All {
    connections: Vec<Value>,
}

impl Connections {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let path = format!("/api/v1/connections?limit={}", self.limit);
        let all: All = self.process.ask(Method::GET, &path, None)?.done()?.json()?;
        print(&all.connections.iter().map(|connection| format!("{connection}\n")).collect::<String>())
    }
}

impl Close {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        if !self.id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            anyhow::bail!("an id has only the digits 0 to f");
        }
        let path = format!("/api/v1/connections/{}", self.id);
        self.process.ask(Method::DELETE, &path, None)?.done()?;
        print(&format!("{} is closed\n", self.id))
    }
}

impl Drain {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        self.process.ask(Method::POST, "/api/v1/drain", None)?.done()?;
        print("the process drains, and then ends\n")
    }
}
