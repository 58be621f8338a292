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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    fn script(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("hook");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn the_command_is_told_what_to_do_and_tells_why_it_could_not() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let hook = script(folder.path(), &format!("echo \"$@\" >{}", out.display()));
        call(&hook, Verb::Set, "_acme-challenge.a.test", "-x y").await.unwrap();
        assert_eq!(fs::read_to_string(&out).unwrap(), "set _acme-challenge.a.test -x y\n");
        let long = "ä".repeat(1000);
        let hook = script(folder.path(), &format!("echo {long}end >&2; exit 7"));
        let error = call(&hook, Verb::Clear, "a", "b").await.unwrap_err();
        let HookError::Failed { code: Some(7), said } = &error else { panic!("{error}") };
        assert!(said.len() <= TOLD && said.len() > TOLD - 4 && said.ends_with("äend"), "{said}");
        let hook = folder.path().join("not-there");
        assert!(matches!(call(&hook, Verb::Set, "a", "b").await, Err(HookError::Start(_))));
    }
}
