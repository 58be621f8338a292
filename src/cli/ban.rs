//! `portcullis ban`, `unban` and `bans`: who may not connect for a while.

use std::fmt::Write;
use std::time::Duration;

use hyper::Method;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::json;

use super::ask::ProcessArg;
use super::{Exit, print};
use crate::config::{parse_duration, parse_network};

/// Arguments of `ban`.
#[derive(Debug, clap::Args)]
pub(super) struct Ban {
    /// An address, or a network such as 192.0.2.0/24.
    #[arg(value_parser = network)]
    network: IpNet,
    /// For how long, as in 1h30m.
    #[arg(long = "for", value_name = "DURATION", default_value = "1h", value_parser = duration)]
    length: Duration,
    /// Why, for whoever looks at the bans later.
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    process: ProcessArg,
}

/// Arguments of `unban`.
#[derive(Debug, clap::Args)]
pub(super) struct Unban {
    /// The network, exactly as it is banned.
    #[arg(value_parser = network)]
    network: IpNet,
    #[command(flatten)]
    process: ProcessArg,
}

/// Arguments of `bans`.
#[derive(Debug, clap::Args)]
pub(super) struct Bans {
    #[command(flatten)]
    process: ProcessArg,
}

/// What the process answers.
#[derive(Debug, Deserialize)]
struct All {
    bans: Vec<One>,
}

#[derive(Debug, Deserialize)]
struct One {
    network: String,
    seconds_left: u64,
    reason: String,
}

fn network(text: &str) -> Result<IpNet, &'static str> {
    parse_network(text).ok_or("neither an address nor a network; write 192.0.2.7 or 192.0.2.0/24")
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    parse_duration(text).ok_or("not a duration; write 30s, 10m or 1h30m")
}

impl Ban {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let length = format!("{}ms", self.length.as_millis());
        let body = json!({ "network": self.network.to_string(), "for": length, "reason": self.reason });
        self.process.ask(Method::POST, "/api/v1/ban", Some(&body))?.done()?;
        print(&format!("{} is banned\n", self.network))
    }
}

impl Unban {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let body = json!({ "network": self.network.to_string() });
        self.process.ask(Method::POST, "/api/v1/unban", Some(&body))?.done()?;
        print(&format!("{} is no longer banned\n", self.network))
    }
}

impl Bans {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let answer = self.process.ask(Method::GET, "/api/v1/bans", None)?.done()?;
        let mut out = String::new();
        for One { network, seconds_left, reason } in answer.json::<All>()?.bans {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{network}\t{seconds_left} s left\t{reason}");
        }
        print(&out)
    }
}
