//! Accepting: every connection goes past the guard before anything is spent on it, and no error ends the
//! loop.

use std::future::pending;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tracing::{debug, warn};

use super::balance::{Admitted, Inbox};
use super::context::{Address, Context, ListenerContext};
use super::record::ConnRecord;
use super::registry::answer_all;
use super::{limited, serve};
use crate::guard::ConnPermit;
use crate::net::{AcceptedSocket, BACKLOG, Listener};
use crate::snapshot::Snapshot;

/// Queued connections taken in a row before others of this thread run.
const BATCH: u32 = 32;
/// Pauses when descriptors or memory have run out: the first, doubled up to the last. Short enough that
/// service is back within a second, long enough that waiting costs next to nothing.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// Accepts on a socket of `address` until that is closed, then takes what is queued and closes it.
pub async fn accept_loop(socket: Listener, address: Arc<Address>, cx: Rc<Context>) {
    // One future for all rounds: making one takes a lock that all workers share.
    let mut closed = pin!(address.closing.cancelled());
    let mut shortage = Shortage::default();
    while !address.closing.is_cancelled() {
        let result = tokio::select! {
            biased;
            result = socket.accept() => result,
            () = &mut closed => break,
        };
        match result {
            Ok(accepted) => {
                shortage.over();
                socket.paused(admit(accepted, address.listener(), &cx)).await;
            }
            Err(error) => socket.paused(shortage.pause(&error, &address.listener(), &cx)).await,
        }
    }
    if !cx.shared.replaced.load(Ordering::Acquire) {
        drain_queue(&socket, &address, &cx).await;
    }
    debug!(listener = %address.listener().name, "stopped listening");
}

/// Takes the connections that are queued when the address is closed: their clients have been told that they are
/// connected. At most a queue's length, since others may still come in.
async fn drain_queue(socket: &Listener, address: &Address, cx: &Rc<Context>) {
    for round in 1..=BACKLOG {
        match socket.accept_queued() {
            Ok(accepted) => socket.paused(admit(accepted, address.listener(), cx)).await,
            Err(error) if is_clients_own(&error) => {}
            Err(_) => return,
        }
        if round % BATCH == 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// The client gave up while it waited (accept(2)); others may be behind it.
fn is_clients_own(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::CONNABORTED | Errno::INTR | Errno::PROTO | Errno::PERM))
}

/// Serves the connection, or refuses it.
async fn admit(accepted: AcceptedSocket, listener: Arc<ListenerContext>, cx: &Rc<Context>) {
    let peer = accepted.peer.ip();
    // Everybody behind a proxy would share its limits: they are for the client that it names.
    let snapshot = cx.shared.snapshot.load_full();
    let named_later = snapshot.trusts(&listener.name, peer);
    let guard = cx.shared.guard.load();
    let admission = if named_later {
        Ok(guard.admit_unnamed())
    } else {
        guard.admit(peer, &listener.name, Instant::now())
    };
    drop(guard);
    match admission {
        Ok(permit) => {
            serve_admitted(Arriving { accepted, snapshot, named_later, permit }, listener, cx).await
        }
        Err(rejection) => limited::refuse(accepted, rejection, listener, cx),
    }
}

/// A connection that was admitted.
pub(super) struct Arriving {
    pub(super) accepted: AcceptedSocket,
    /// The configuration that it keeps, however long it has to wait.
    pub(super) snapshot: Arc<Snapshot>,
    /// Whether it begins with a header that says whose it is.
    pub(super) named_later: bool,
    pub(super) permit: ConnPermit,
}

/// Starts to serve the connection, or hands it over to another worker. At the cap on connections this waits, and
/// with it the loop, so that the excess stays in the kernel's queue.
pub(super) async fn serve_admitted(arriving: Arriving, listener: Arc<ListenerContext>, cx: &Rc<Context>) {
    let Arriving { accepted, snapshot, named_later, mut permit } = arriving;
    let AcceptedSocket { socket, peer, waited } = accepted;
    permit.wait_for_room().await;
    // The client's deadlines begin now: that it had to wait is not its fault.
    let at = Instant::now();
    let live = cx.begin();
    begin(Admitted { socket, client: peer, snapshot, named_later, waited, at, listener, permit, live }, cx);
}

/// Serves the connection, here or, when another worker has clearly less to do, there.
fn begin(mut admitted: Admitted, cx: &Rc<Context>) {
    if let Some(other) = cx.less_loaded() {
        let listener = Arc::clone(&admitted.listener);
        let mine = std::mem::replace(&mut admitted.live, other.begin());
        match other.take_over(admitted) {
            Ok(()) => return listener.metrics.handed_over.increment(1),
            Err(returned) => admitted = Admitted { live: mine, ..returned },
        }
    }
    serve_here(admitted, cx);
}

fn serve_here(admitted: Admitted, cx: &Rc<Context>) {
    let record = ConnRecord::open(&admitted, Rc::clone(cx));
    start(record, cx, |record| serve(Box::new(admitted), record));
}

/// Serves it in a task of its own: a panic ends that, with all that the connection counts for, and no other.
fn start<F>(record: ConnRecord, cx: &Context, serving: impl FnOnce(ConnRecord) -> F)
where
    F: Future<Output = ()> + 'static,
{
    let place = record.place();
    let task = tokio::task::spawn_local(serving(record));
    cx.connections.served_by(place, task.abort_handle());
}

/// Serves what other workers have accepted for this one, until draining begins and nothing is on its way.
pub async fn take_over_loop(mut inbox: Inbox, cx: Rc<Context>) {
    if let Some(questions) = inbox.take_questions() {
        let cx = Rc::clone(&cx);
        // Until the worker ends: what holds up a drain is what is asked for.
        tokio::task::spawn_local(async move { answer_all(questions, &cx.connections).await });
    }
    let mut drained = pin!(cx.shared.draining.cancelled());
    let mut closed = false;
    loop {
        let admitted = tokio::select! {
            biased;
            admitted = inbox.next() => admitted,
            () = &mut drained, if !closed => {
                inbox.close();
                closed = true;
                continue;
            }
        };
        let Some(admitted) = admitted else { return };
        serve_here(admitted, &cx);
    }
}

/// Times of want: when `accept` fails for lack of descriptors or memory.
#[derive(Debug, Default)]
struct Shortage {
    pause: Duration,
}

impl Shortage {
    fn over(&mut self) {
        self.pause = Duration::ZERO;
    }

    async fn pause(&mut self, error: &io::Error, listener: &ListenerContext, cx: &Context) {
        if is_clients_own(error) {
            return listener.metrics.accept_other.increment(1);
        }
        match Errno::from_io_error(error) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                listener.metrics.accept_shortage.increment(1);
            }
            _ => listener.metrics.accept_other.increment(1),
        }
        if cx.tells_trouble() {
            warn!(listener = %listener.name, %error, "cannot accept connections; trying again until it works");
        }
        self.pause = (self.pause * 2).clamp(PAUSE.0, PAUSE.1);
        let mut timer = cx.timers.timer();
        let until = timer.now() + self.pause;
        timer.timeout_at(until, pending::<()>()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use arc_swap::ArcSwap;
    use tokio::task::LocalSet;
    use tokio_util::sync::CancellationToken;

    use super::super::{Handshakes, HelloBytes, Shared, Workers};
    use super::*;
    use crate::config::Config;
    use crate::conn::Termination;
    use crate::guard::Guard;
    use crate::net::{InstanceId, Reactor};
    use crate::snapshot::Snapshot;
    use crate::telemetry::{AccessLog, Registry};
    use crate::tls::{Acceptors, Crew};
    use crate::upstream::Resolver;

    /// What one worker needs to serve, with room for one connection.
    fn worker(config: &Config, registry: &Arc<Registry>) -> (Rc<Context>, Arc<ListenerContext>) {
        let (workers, inboxes) = Workers::new(1);
        let mut resolver = Resolver::new(&config.dns, registry);
        let shared = Shared {
            instance: InstanceId::random(),
            snapshot: ArcSwap::from_pointee(Snapshot::new(
                config,
                None,
                &mut resolver,
                (&Arc::default(), &Acceptors::default()),
                registry,
            )),
            guard: ArcSwap::from_pointee(Guard::new(&config.limits, 1, registry)),
            access_log: ArcSwap::from_pointee(AccessLog::open(&config.access_log, registry).unwrap()),
            draining: CancellationToken::new(),
            failed: CancellationToken::new(),
            drained: AtomicBool::new(false),
            replaced: AtomicBool::new(false),
            workers,
            hello_bytes: HelloBytes::new(1 << 20),
            handshakes: Handshakes::new(1),
            challenges: Arc::default(),
            crew: Crew::new(1),
            disk: crate::http::disk::Disk::new(1),
            sessions: Arc::default(),
            pipes: Arc::new(AtomicUsize::new(0)),
        };
        let cx = Context::new(Arc::new(shared), Reactor::new().unwrap(), 0, &inboxes[0], 0);
        (Rc::new(cx), ListenerContext::new(&Arc::from("default"), registry))
    }

    async fn admitted(cx: &Rc<Context>, listener: &Arc<ListenerContext>) -> Admitted {
        let (near, _) = UnixStream::pair().unwrap();
        let client = SocketAddr::from(([192, 0, 2, 1], 4711));
        let at = Instant::now();
        let mut permit = cx.shared.guard.load().admit(client.ip(), &listener.name, at).unwrap();
        permit.wait_for_room().await;
        Admitted {
            socket: near.into(),
            client,
            snapshot: cx.shared.snapshot.load_full(),
            named_later: false,
            waited: false,
            at,
            listener: Arc::clone(listener),
            permit,
            live: cx.begin(),
        }
    }

    #[test]
    fn a_panic_ends_its_connection_gives_back_what_it_counted_for_and_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("access.log");
        let text = format!(
            "listen = \":443\"\naccess_log = \"{}\"\nconnection_limit = 1\n\
             [[route]]\nsni = \"a.test\"\nto = \"10.0.0.1:443\"\n",
            log.display()
        );
        let config = Config::parse(Path::new("test.toml"), &text).unwrap();
        let registry = Arc::new(Registry::new().unwrap());
        let (cx, listener) = worker(&config, &registry);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(LocalSet::new().run_until(async {
            // With room for one in all and for the address: each needs what the one before gave back.
            for round in 0..3 {
                let admitted = admitted(&cx, &listener).await;
                assert_eq!((cx.shared.guard.load().open(), cx.shared.workers.live().sum::<usize>()), (1, 1));
                let record = ConnRecord::open(&admitted, Rc::clone(&cx));
                start(record, &cx, |record| async move {
                    let (_admitted, record) = (admitted, record);
                    tokio::task::yield_now().await;
                    assert!(round == 1, "a defect");
                    record.finish(Termination::REJECTED);
                });
                cx.all_gone().await;
                assert_eq!(cx.shared.guard.load().open(), 0);
            }
        }));
        cx.shared.access_log.load().flush();
        let lines = std::fs::read_to_string(&log).unwrap();
        let panics = lines.lines().filter(|line| line.contains(r#""reason":"panic""#));
        let panics: Vec<_> = panics.filter(|line| line.contains(r#""cause":"internal""#)).collect();
        assert_eq!((panics.len(), lines.lines().count()), (2, 3), "{lines}");
        let metrics = registry.render();
        assert!(metrics.contains("portcullis_internal_errors_total{listener=\"default\"} 2"), "{metrics}");
        assert!(metrics.contains("portcullis_connections_active{listener=\"default\"} 0"), "{metrics}");
    }
}
