//! `portcullis diff`

use std::path::PathBuf;

use hyper::Method;
use serde::Deserialize;

use super::ask::ProcessArg;
use super::{Exit, load, print, report};
use crate::config::{self, Config, Effective};

/// Arguments of `diff`.
#[derive(Debug, clap::Args)]
pub(super) struct Diff {
    /// Compare with this file instead of the running process.
    #[arg(long, value_name = "FILE", conflicts_with = "admin")]
    against: Option<PathBuf>,
    #[command(flatten)]
    process: ProcessArg,
}

/// The configuration of a running process.
#[derive(Debug, Deserialize)]
struct Running {
    settings: Vec<Setting>,
}

#[derive(Debug, Deserialize)]
struct Setting {
    key: String,
    value: String,
}

impl Diff {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let new = match load(&self.process.config) {
            Ok(config) => config,
            Err(exit) => return Ok(exit),
        };
        let old = match &self.against {
            Some(file) => match Config::load(file) {
                Ok(config) => config.effective,
                Err(errors) => return Ok(report(&errors)),
            },
            None => self.running()?,
        };
        let changes = config::diff(&old, &new.effective);
        let mut out: String = changes.iter().map(|change| format!("{change}\n")).collect();
        if changes.is_empty() {
            out.push_str("no difference\n");
        }
        print(&out)
    }

    /// The settings of the running process.
    fn running(&self) -> anyhow::Result<Vec<Effective>> {
        let answer = self.process.ask(Method::GET, "/api/v1/config", None)?.done()?;
        let running: Running = answer.json()?;
        let setting = |Setting { key, value }| Effective { key, value, origin: None };
        Ok(running.settings.into_iter().map(setting).collect())
    }
}
