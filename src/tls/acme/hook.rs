//! The command that publishes records.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::error::HookError;

/// How long the command may take: it waits until all servers of the zone have the record.
const DEADLINE: Duration = Duration::from_secs(300);
/// Bytes of what it says of itself that are told of it.
const TOLD: usize = 400;

/// What is asked of the command.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verb {
    /// That the record is there for whoever asks.
    Set,
    /// That it goes.
    Clear,
}

/// Calls `hook` for a TXT record and waits until it is done.
///
/// # Errors
/// When it does not end well, or not in time; it is ended then.
pub(super) async fn call(hook: &Path, verb: Verb, name: &str, value: &str) -> Result<(), HookError> {
    let mut command = Command::new(hook);
    command.args([verb.as_str(), name, value]).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    let ended = timeout(DEADLINE, command.output()).await.map_err(|_| HookError::Slow)?;
    let output = ended.map_err(HookError::Start)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(output.stderr.trim_ascii()).into_owned();
    let from = said.char_indices().map(|(at, _)| at).find(|at| said.len() - at <= TOLD);
    let said = said.get(from.unwrap_or(said.len())..).unwrap_or_default().to_owned();
    Err(HookError::Failed { code: output.status.code(), said })
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Clear => "clear",
        }
    }
}
