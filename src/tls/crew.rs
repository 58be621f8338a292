//! Threads for the handshakes that a data-plane thread has no time for: those whose signatures take milliseconds, and those that
//! come many at a time. They give way to all other threads, so that a flood of handshakes costs what is left over.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use rustix::process::{getpriority_process, setpriority_process};
use tokio::sync::oneshot;
use tracing::warn;

use super::handshake::{Handshake, HandshakeError};

/// How much further these threads stand back (nice(2)): half a scheduler's weight is worth three steps.
const NICER: i32 = 10;

/// Threads for handshakes.
#[derive(Debug)]
pub struct Crew {
    threads: usize,
    /// They are started by the first handshake for them. What waits is bounded by the handshakes that may be under way.
    jobs: OnceLock<Sender<Job>>,
}

/// What is to be advanced, and who waits for it.
struct Job {
    handshake: Box<Handshake>,
    done: oneshot::Sender<(Box<Handshake>, Result<(), HandshakeError>)>,
}

impl Crew {
    /// Up to so many threads.
    pub fn new(threads: usize) -> Self {
        Self { threads: threads.max(1), jobs: OnceLock::new() }
    }

    /// Advances a handshake on one of the threads; by itself where there are none.
    ///
    /// # Errors
    /// When nothing can come of it; with the handshake, if the peer may have to be told.
    pub async fn advance(
        &self,
        handshake: Box<Handshake>,
    ) -> Result<Box<Handshake>, (Option<Box<Handshake>>, HandshakeError)> {
        let (done, advanced) = oneshot::channel();
        let jobs = self.jobs.get_or_init(|| start(self.threads));
        let (handshake, result) = match jobs.send(Job { handshake, done }) {
            // A thread that panics takes its handshake with it and nothing else.
            Ok(()) => advanced.await.map_err(|_| (None, HandshakeError::Lost))?,
            Err(unsent) => {
                let mut handshake = unsent.0.handshake;
                let result = handshake.advance();
                (handshake, result)
            }
        };
        match result {
            Ok(()) => Ok(handshake),
            Err(error) => Err((Some(handshake), error)),
        }
    }
}

/// The threads end when nobody can send anything any more.
fn start(threads: usize) -> Sender<Job> {
    let (jobs, next) = channel();
    let next = Arc::new(Mutex::new(next));
    for index in 0..threads {
        let next = Arc::clone(&next);
        let started = thread::Builder::new().name(format!("handshakes-{index}")).spawn(move || work(&next));
        if let Err(error) = started {
            warn!(%error, "no thread for handshakes");
        }
    }
    jobs
}

fn work(next: &Mutex<Receiver<Job>>) {
    let nice = getpriority_process(None).unwrap_or(0);
    // Without it they are as others.
    let _ = setpriority_process(None, nice + NICER);
    loop {
        let job = next.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { mut handshake, done }) = job else { return };
        // Nobody waits any more for what was too long in the queue.
        if !done.is_closed() {
            let advance = AssertUnwindSafe(|| {
                let result = handshake.advance();
                (handshake, result)
            });
            if let Ok(advanced) = catch_unwind(advance) {
                let _ = done.send(advanced);
            }
        }
    }
}
