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
    /// To read the configuration again.
    Reloads,
    /// The end: what runs in a terminal goes with it.
    Ends,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signalled {
    /// To stop; the name of the signal.
    Stop(&'static str),
    /// To read the configuration again.
    Reload,
    /// To open the logs again.
    Reopen,
    /// To let a new process take over.
    Upgrade,
}

/// The signals that the server listens to.
#[derive(Debug)]
pub struct Signals {
    on_hangup: Hangup,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    reopen: Signal,
    upgrade: Signal,
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
            upgrade: signal(SignalKind::user_defined2())?,
        })
    }

    /// What the next signal asks for. Cancel safe.
    pub async fn next(&mut self) -> Signalled {
        tokio::select! {
            _ = self.terminate.recv() => Signalled::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Signalled::Stop("SIGINT"),
            _ = self.hangup.recv() => match self.on_hangup {
                Hangup::Ends => Signalled::Stop("SIGHUP"),
                Hangup::Reloads => Signalled::Reload,
            },
            _ = self.reopen.recv() => Signalled::Reopen,
            _ = self.upgrade.recv() => Signalled::Upgrade,
        }
    }

    /// The name of the next signal that asks to stop; others wait for [`Signals::next`]. Cancel safe.
    pub async fn stop(&mut self) -> &'static str {
        let hangup_ends = self.on_hangup == Hangup::Ends;
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv(), if hangup_ends => "SIGHUP",
        }
    }
}

/// What is forced ends at once; a worker that does not is stuck and left behind.
const FORCE_DEADLINE: Duration = Duration::from_secs(5);

/// Begins to drain: no more is accepted, and whoever asks is told that no more is wanted.
pub fn begin(why: &str, readiness: &Readiness, shared: &Shared, deadline: Duration) {
    readiness.set_draining();
    shared.draining.cancel();
    let open = shared.guard.load().open();
    info!(signal = why, open, deadline_s = deadline.as_secs(), "draining");
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
        signal = signals.stop() => warn!(signal, "a second signal: closing what is open"),
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
