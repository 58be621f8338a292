//! `portcullis reload`

use std::fmt::Write;

use hyper::{Method, StatusCode};
use serde::Deserialize;

use super::ask::ProcessArg;
use super::{Exit, complain, print};

/// Arguments of `reload`.
#[derive(Debug, clap::Args)]
pub(super) struct Reload {
    #[command(flatten)]
    process: ProcessArg,
}

/// What the process says of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Outcome {
    ok: bool,
    generation: u64,
    changes: Vec<Change>,
    overruled: Vec<String>,
    why: String,
    text: String,
}

/// A setting that is not what it was.
#[derive(Debug, Deserialize)]
struct Change {
    text: String,
}

impl Reload {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let answer = self.process.ask(Method::POST, "/api/v1/reload", None)?;
        if !matches!(
            answer.status,
            StatusCode::OK | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::SERVICE_UNAVAILABLE
        ) {
            answer.done()?;
            return Ok(Exit::Failure);
        }
        let outcome: Outcome = answer.json()?;
        if outcome.ok {
            return print(&outcome.to_text());
        }
        complain(outcome.text.trim_end());
        complain("the process goes on with its old configuration");
        Ok(match outcome.why.as_str() {
            "bad_config" => Exit::BadConfig,
            "temporary" => Exit::Temporary,
            _ => Exit::Failure,
        })
    }
}

impl Outcome {
    /// What is different now, a line each.
    fn to_text(&self) -> String {
        let mut out = String::new();
        for change in &self.changes {
            // Writing to a string cannot fail, here and below.
            let _ = writeln!(out, "{}", change.text);
        }
        for backend in &self.overruled {
            let _ = writeln!(
                out,
                "{backend}: what was asked of it at run time is forgotten, the file has changed it"
            );
        }
        let _ = writeln!(out, "the new configuration serves (generation {})", self.generation);
        out
    }
}
