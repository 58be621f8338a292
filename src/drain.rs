//! Stopping: signals, what `/readyz` says meanwhile, and how long open connections may go on.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::conn::Shared;

/// Whether the server wants traffic.
#[derive(Debug, Default)]
pub struct Readiness(AtomicU8);

const STARTING: u8 = 0;
const READY: u8 = 1;
const DRAINING: u8 = 2;

/// What SIGHUP means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hangup {
    /// Nothing: a service outlives terminals.
    Ignored,
    /// The end: what runs in a terminal goes with it.
    Ends,
}

/// The signals that end the server.
#[derive(Debug)]
pub struct Signals {
    on_hangup: Hangup,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    reopen: Signal,
}

impl Readiness {
    /// From now on the server wants traffic.
    pub fn set_ready(&self) {
        self.0.store(READY, Ordering::Release);
    }

    fn set_draining(&self) {
        self.0.store(DRAINING, Ordering::Release);
    }

    /// Why it does not want traffic; `None` when it does.
    pub fn reason(&self) -> Option<&'static str> {
        match self.0.load(Ordering::Acquire) {
            READY => None,
            STARTING => Some("starting"),
            _ => Some("draining"),
        }
    }
}

impl Signals {
    /// Begins to listen for signals; they no longer end the process by themselves.
    ///
    /// # Errors
    /// When the runtime cannot watch them.
    pub fn listen(on_hangup: Hangup) -> io::Result<Self> {
        Ok(Self {
            on_hangup,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            reopen: signal(SignalKind::user_defined1())?,
        })
    }

    /// The name of the next signal that asks to stop. Others that are sent out of habit are no reason to
    /// end, as they are by default. Cancel safe.
    async fn next(&mut self) -> &'static str {
        loop {
            let ignored = tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => match self.on_hangup {
                    Hangup::Ends => return "SIGHUP",
                    Hangup::Ignored => "SIGHUP",
                },
                _ = self.reopen.recv() => "SIGUSR1",
            };
            warn!(
                signal = ignored,
                "ignored: neither reload nor reopening of logs is there yet; restart instead"
            );
        }
    }
}

/// What is forced ends at once; a worker that does not is stuck and left behind.
const FORCE_DEADLINE: Duration = Duration::from_secs(5);

/// Waits for the first signal, or for a worker to fail, then begins to drain.
pub async fn until_stopped(
    signals: &mut Signals,
    readiness: &Readiness,
    shared: &Shared,
    deadline: Duration,
) {
    let why = tokio::select! {
        signal = signals.next() => signal,
        () = shared.failed.cancelled() => "a worker failed",
    };
    readiness.set_draining();
    shared.draining.cancel();
    info!(signal = why, open = shared.guard.open(), deadline_s = deadline.as_secs(), "draining");
}

/// Waits until all connections have `ended`; forces them by a second signal or after `deadline`.
pub async fn force_when_due(
    signals: &mut Signals,
    ended: &CancellationToken,
    shared: &Shared,
    force: &CancellationToken,
    deadline: Duration,
) {
    tokio::select! {
        () = ended.cancelled() => return,
        signal = signals.next() => warn!(signal, "a second signal: closing what is open"),
        () = tokio::time::sleep(deadline) => {
            shared.drained.store(true, Ordering::Release);
            warn!("the time to drain is over: closing what is open");
        }
    }
    force.cancel();
    if tokio::time::timeout(FORCE_DEADLINE, ended.cancelled()).await.is_err() {
        error!("a worker does not end; leaving it behind");
    }
}
