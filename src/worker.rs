//! One data-plane thread: a single-threaded runtime, its own listening sockets, and the connections that
//! they accept. A connection never leaves its thread, so nothing on its path is shared or locked.

use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::conn::{Context, ListenerContext, Shared, accept_loop};
use crate::net::Listener;
use crate::telemetry::Registry;

/// A listening socket for one worker.
#[derive(Debug)]
pub struct WorkerSocket {
    /// The bound socket.
    pub socket: TcpListener,
    /// The index of its listener in the configuration.
    pub listener: usize,
    /// The name of its listener.
    pub name: Arc<str>,
}

/// What a worker is told at its start.
#[derive(Clone, Copy, Debug)]
pub struct WorkerConfig {
    /// Its number.
    pub id: u16,
    /// How many pipes it may have.
    pub pipes: usize,
}

/// Setting up a runtime and its sockets takes milliseconds.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// Sounds when a worker ends although nobody asked it to.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if !self.0.draining.is_cancelled() {
            self.0.failed.cancel();
        }
    }
}

/// A running worker.
#[derive(Debug)]
pub struct Worker(JoinHandle<()>);

impl Worker {
    /// Starts a worker on `sockets`. It runs until draining has begun and its connections have
    /// ended, or until `force` is cancelled.
    ///
    /// # Errors
    /// When the thread, its runtime or its sockets cannot be set up.
    pub fn spawn(
        config: WorkerConfig,
        sockets: Vec<WorkerSocket>,
        shared: Arc<Shared>,
        registry: Arc<Registry>,
        force: CancellationToken,
    ) -> io::Result<Self> {
        let (started, start) = sync_channel(1);
        let run = move || {
            // Dropped with the thread, whichever way that ends.
            let _alarm = Alarm(Arc::clone(&shared));
            let told = started.clone();
            if let Err(error) = work(config, sockets, shared, &registry, force, &started) {
                // Whoever waits for the start may be told; after it, nothing fails in this way.
                let _ = told.try_send(Err(error));
            }
        };
        let thread = std::thread::Builder::new().name(format!("worker-{}", config.id)).spawn(run)?;
        start.recv_timeout(START_DEADLINE).map_err(io::Error::other)??;
        Ok(Self(thread))
    }

    /// Waits until it is done.
    pub fn join(self) {
        if self.0.join().is_err() {
            error!("a worker panicked");
        }
    }
}

fn work(
    WorkerConfig { id, pipes }: WorkerConfig,
    sockets: Vec<WorkerSocket>,
    shared: Arc<Shared>,
    registry: &Registry,
    force: CancellationToken,
    started: &SyncSender<io::Result<()>>,
) -> io::Result<()> {
    let runtime =
        Builder::new_current_thread().enable_io().enable_time().build_local(LocalOptions::default())?;
    let cx = Rc::new(Context::new(Arc::clone(&shared), id, pipes));
    runtime.block_on(async {
        let clock = Rc::clone(&cx);
        let clock = tokio::task::spawn_local(async move { clock.timers.run().await });
        let mut loops = JoinSet::new();
        for WorkerSocket { socket, listener, name } in sockets {
            let listener = Rc::new(ListenerContext::new(listener, &name, registry));
            loops.spawn_local(accept_loop(Listener::new(socket)?, listener, Rc::clone(&cx)));
        }
        // Whoever started this waits for it, or has given up.
        let _ = started.try_send(Ok(()));
        tokio::select! {
            () = force.cancelled() => {}
            _ = clock => {
                // Without it no deadline holds. It never ends but by a panic.
                error!(worker = id, "the clock failed");
                shared.failed.cancel();
            }
            () = async {
                while let Some(result) = loops.join_next().await {
                    if let Err(error) = result {
                        error!(worker = id, %error, "an accept loop failed");
                        shared.failed.cancel();
                    }
                }
                cx.all_gone().await;
            } => {}
        }
        debug!(worker = id, "done");
        io::Result::Ok(())
    })
    // Dropping the runtime drops the connections that are left; each tells that it was forced.
}
