//! `portcullis run`

use std::num::NonZeroUsize;

use super::{ConfigArg, Exit, complain, load};
use crate::drain::Hangup;
use crate::server::{Bound, Server, StartError};

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub(super) struct Run {
    #[command(flatten)]
    config: ConfigArg,
    /// Data-plane threads; one a core unless this or the configuration says otherwise.
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
}

impl Run {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        match load(&self.config) {
            Ok(config) => {
                let bound = Server::bind(config, Some(self.config.file), self.workers);
                Ok(serve_with(bound, Hangup::Reloads, |_| ()))
            }
            Err(exit) => Ok(exit),
        }
    }
}

/// Serves what was bound to the end, after `started` was shown it; tells what kept it from starting.
pub(super) fn serve_with(
    bound: Result<Bound, StartError>,
    hangup: Hangup,
    started: impl FnOnce(&Bound),
) -> Exit {
    let result = bound.and_then(|bound| {
        started(&bound);
        bound.run(hangup)
    });
    match result {
        Ok(()) => Exit::Done,
        Err(StartError::Assertions(failed)) => {
            failed.iter().for_each(|mismatch| complain(&format!("error: {mismatch}")));
            Exit::BadConfig
        }
        Err(start) => {
            let exit = match &start {
                StartError::Transparent { .. } => Exit::BadConfig,
                start if start.is_temporary() => Exit::Temporary,
                _ => Exit::Failure,
            };
            // Whatever the log is set to: who starts a program must learn why it did not.
            complain(&format!("error: {:#}", anyhow::Error::new(start)));
            exit
        }
    }
}
