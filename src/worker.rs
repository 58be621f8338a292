//! One data-plane thread: an event loop, its own listening sockets, and the connections that they accept, or
//! that are handed over to it. From then on a connection never leaves its thread, so nothing on its path is
//! shared or locked.

use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::task::{JoinSet, LocalSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::conn::{Context, Inbox, ListenerContext, Shared, accept_loop, take_over_loop};
use crate::net::{Listener, Reactor};
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

/// What a worker is given at its start.
#[derive(Debug)]
pub struct WorkerConfig {
    /// Its number.
    pub id: u16,
    /// Its listening sockets.
    pub sockets: Vec<WorkerSocket>,
    /// Where it finds connections that others have accepted.
    pub inbox: Inbox,
    /// How many pipes it may have.
    pub pipes: usize,
}

/// Setting up an event loop and its sockets takes milliseconds.
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
    /// Starts a worker. It runs until draining has begun and its connections have
    /// ended, or until `force` is cancelled.
    ///
    /// # Errors
    /// When the thread, its event loop or its sockets cannot be set up.
    pub fn spawn(
        config: WorkerConfig,
        shared: Arc<Shared>,
        registry: Arc<Registry>,
        force: CancellationToken,
    ) -> io::Result<Self> {
        let (started, start) = sync_channel(1);
        let name = format!("worker-{}", config.id);
        let run = move || {
            // Dropped with the thread, whichever way that ends.
            let _alarm = Alarm(Arc::clone(&shared));
            let told = started.clone();
            if let Err(error) = work(config, shared, &registry, force, &started) {
                // Whoever waits for the start may be told; after it, nothing fails in this way.
                let _ = told.try_send(Err(error));
            }
        };
        let thread = std::thread::Builder::new().name(name).spawn(run)?;
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
    WorkerConfig { id, sockets, inbox, pipes }: WorkerConfig,
    shared: Arc<Shared>,
    registry: &Registry,
    force: CancellationToken,
    started: &SyncSender<io::Result<()>>,
) -> io::Result<()> {
    let reactor = Reactor::new()?;
    let cx = Rc::new(Context::new(shared, Rc::clone(&reactor), id, &inbox, pipes));
    let listeners = sockets.into_iter().map(|WorkerSocket { socket, listener, name }| {
        let context = Rc::new(ListenerContext::new(listener, &name, registry));
        Ok((Listener::new(socket, &reactor)?, context))
    });
    let listeners = listeners.collect::<io::Result<Vec<_>>>()?;
    let tasks = LocalSet::new();
    let mut serving = tasks.spawn_local(serve(listeners, inbox, Rc::clone(&cx), force));
    // Whoever started this waits for it, or has given up.
    let _ = started.try_send(Ok(()));
    let mut tasks = pin!(tasks);
    reactor.run(
        &cx.timers,
        poll_fn(|task| {
            // Says whether all tasks have ended, and the last of them is this one.
            let _ = tasks.as_mut().poll(task);
            if serving.is_finished() { Pin::new(&mut serving).poll(task).map(drop) } else { Poll::Pending }
        }),
    )
    // Dropping the tasks drops the connections that are left; each tells that it was forced.
}

/// Accepts until draining begins, and waits until all connections have ended or are to be ended.
async fn serve(
    listeners: Vec<(Listener, Rc<ListenerContext>)>,
    inbox: Inbox,
    cx: Rc<Context>,
    force: CancellationToken,
) {
    let mut loops = JoinSet::new();
    let contexts = listeners.iter().map(|(_, context)| Rc::clone(context)).collect();
    loops.spawn_local(take_over_loop(inbox, contexts, Rc::clone(&cx)));
    for (listener, context) in listeners {
        loops.spawn_local(accept_loop(listener, context, Rc::clone(&cx)));
    }
    tokio::select! {
        () = force.cancelled() => {}
        () = async {
            while let Some(result) = loops.join_next().await {
                if let Err(error) = result {
                    error!(%error, "a loop that takes connections failed");
                    cx.shared.failed.cancel();
                }
            }
            cx.all_gone().await;
        } => {}
    }
    debug!("done");
}
