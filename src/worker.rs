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

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::{JoinSet, LocalSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::conn::{Address, Context, Inbox, Shared, accept_loop, take_over_loop};
use crate::net::{Listener, Reactor};
use crate::service::Heart;

/// A listening socket for one worker.
#[derive(Debug)]
pub struct WorkerSocket {
    /// The bound socket.
    pub socket: Arc<TcpListener>,
    /// The address that it is one of.
    pub address: Arc<Address>,
}

/// What a worker is given at its start.
#[derive(Debug)]
pub struct WorkerConfig {
    /// Its number.
    pub id: u16,
    /// Where it finds listening sockets: those that it begins with, and those that come later.
    pub sockets: UnboundedReceiver<WorkerSocket>,
    /// Where it finds connections that others have accepted.
    pub inbox: Inbox,
    /// What tells that its event loop turns.
    pub heart: Heart,
    /// How many pipes it may have.
    pub pipes: usize,
}

/// Setting up an event loop takes milliseconds.
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
    /// When the thread or its event loop cannot be set up.
    pub fn spawn(config: WorkerConfig, shared: Arc<Shared>, force: CancellationToken) -> io::Result<Self> {
        let (started, start) = sync_channel(1);
        let name = format!("worker-{}", config.id);
        let run = move || {
            // Dropped with the thread, whichever way that ends.
            let _alarm = Alarm(Arc::clone(&shared));
            let told = started.clone();
            if let Err(error) = work(config, shared, force, &started) {
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
    WorkerConfig { id, sockets, inbox, heart, pipes }: WorkerConfig,
    shared: Arc<Shared>,
    force: CancellationToken,
    started: &SyncSender<io::Result<()>>,
) -> io::Result<()> {
    let reactor = Reactor::new()?;
    let cx = Rc::new(Context::new(shared, Rc::clone(&reactor), id, &inbox, pipes));
    let tasks = LocalSet::new();
    tasks.spawn_local(heart.beat());
    let mut serving = tasks.spawn_local(serve(sockets, inbox, Rc::clone(&cx), force));
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
    sockets: UnboundedReceiver<WorkerSocket>,
    inbox: Inbox,
    cx: Rc<Context>,
    force: CancellationToken,
) {
    tokio::select! {
        () = force.cancelled() => {}
        () = async {
            accept_all(sockets, inbox, &cx).await;
            cx.all_gone().await;
        } => {}
    }
    debug!("done");
}

/// Runs the loops that take connections until all have ended, the one of the inbox with them: until draining.
async fn accept_all(mut sockets: UnboundedReceiver<WorkerSocket>, inbox: Inbox, cx: &Rc<Context>) {
    let mut loops = JoinSet::new();
    loops.spawn_local(take_over_loop(inbox, Rc::clone(cx)));
    loop {
        tokio::select! {
            biased;
            Some(WorkerSocket { socket, address }) = sockets.recv() => {
                let listener = Listener::new(socket, &cx.reactor);
                loops.spawn_local(accept_loop(listener, address, Rc::clone(cx)));
            }
            ended = loops.join_next() => match ended {
                None => return,
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    error!(%error, "a loop that takes connections failed");
                    cx.shared.failed.cancel();
                }
            },
        }
    }
}
