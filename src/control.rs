//! What a running server can be asked for, by its admin server as by signals, and what it answers.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::config::{self, Config, Effective};
use crate::upstream::{self, Changed, OperatorError};

/// Requests that wait to be looked at; whoever asks for more is told to come back.
pub const REQUESTS: usize = 16;

/// A request, and where its answer goes.
#[derive(Debug)]
pub enum Request {
    /// Read the configuration again and serve by it.
    Reload(oneshot::Sender<Outcome>),
    /// Do something to a backend.
    Operate {
        /// The upstream that has it, by name.
        upstream: String,
        /// What to do.
        change: upstream::Change,
        /// Who asks.
        by: Arc<str>,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Changed, OperatorError>>,
    },
    /// Stop accepting, let open connections end, and end.
    Drain,
}

/// The configuration that serves.
#[derive(Debug)]
pub struct Generation {
    /// How many configurations have served, this one included.
    pub number: u64,
    /// What it says.
    pub config: Config,
}

/// What came of a reload.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The new configuration serves.
    Reloaded {
        /// How many configurations have served, this one included.
        generation: u64,
        /// What is different from the one before.
        changes: Vec<config::Change>,
        /// Backends, after their upstreams, of which it says something else than when an operator acted: that is
        /// forgotten.
        overruled: Vec<String>,
    },
    /// The old configuration still serves.
    Kept {
        /// Why.
        why: Kept,
        /// The same for a person, over several lines.
        text: String,
        /// The errors, each with what is known of it.
        errors: Value,
    },
}

/// Why a configuration was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// It is not valid, or its tests fail.
    BadConfig,
    /// Something is in the way that may go: an address that another program has.
    Temporary,
    /// This machine could not.
    Failed,
}

impl Generation {
    /// Its settings, as `check --effective --json` prints them.
    pub fn to_json(&self) -> Value {
        let settings = self.config.effective.iter().map(Effective::to_json).collect::<Value>();
        serde_json::json!({ "generation": self.number, "settings": settings })
    }
}

impl Outcome {
    /// As the admin server says it.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Reloaded { generation, changes, overruled } => {
                let changes = changes.iter().map(config::Change::to_json).collect::<Value>();
                serde_json::json!({ "ok": true, "generation": generation, "changes": changes,
                    "overruled": overruled })
            }
            Self::Kept { why, text, errors } => {
                serde_json::json!({ "ok": false, "why": why, "text": text, "errors": errors })
            }
        }
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadConfig => "bad_config",
            Self::Temporary => "temporary",
            Self::Failed => "failed",
        })
    }
}
