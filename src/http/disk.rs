//! Threads for what waits for a disk: a data-plane thread that opened, asked after or read a file itself would keep all of
//! its connections waiting. What is done there is handed over by a queue, and what comes of it is handed back to a future
//! that any executor can drive.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::thread;

use tokio::sync::oneshot;

/// Jobs that may wait, for each thread. One of them takes some 20 µs where the page cache has the file, and some 10 ms on a disk
/// that turns: what is let in waits for seconds at the worst, and what is told to come again would have waited longer.
const WAITING_A_THREAD: usize = 256;

/// Threads for what waits for a disk. All copies are one; its threads end with the last of them.
#[derive(Clone)]
pub struct Disk(Arc<Shared>);

/// What comes of a job. Dropped, it takes the job out of the queue, if that has not begun.
#[derive(Debug)]
pub struct Running<T>(Result<oneshot::Receiver<T>, DiskError>);

/// Why nothing comes of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// Too much waits already.
    #[error("too much waits for the disk")]
    Full,
    /// The job panicked.
    #[error("reading from the disk panicked")]
    Panicked,
    /// No thread could be started.
    #[error("there is no thread to read from the disk")]
    NoThread,
}

struct Shared {
    threads: usize,
    /// They are started by the first job.
    jobs: OnceLock<Sender<Job>>,
    waiting: Arc<AtomicUsize>,
}

struct Job {
    place: Place,
    run: Box<dyn FnOnce() + Send>,
}

/// A place in the queue, which is free again when this is dropped.
struct Place(Arc<AtomicUsize>);

impl Disk {
    /// So many threads, one at least; they are started by the first job.
    pub fn new(threads: usize) -> Self {
        Self(Arc::new(Shared { threads: threads.max(1), jobs: OnceLock::new(), waiting: Arc::default() }))
    }

    /// Does this on one of the threads, unless too much waits for them. It is handed over at once, not when the future is
    /// first polled.
    ///
    /// The future is cancel safe: dropped, the job is forgotten, or what came of it is.
    ///
    /// # Errors
    /// The future's: [`DiskError::Full`] when nothing was begun, the others when nothing will come of it.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Running<T> {
        let place = self.place();
        // The place that was just taken is counted.
        if self.0.waiting.load(Ordering::Relaxed) > self.0.threads.saturating_mul(WAITING_A_THREAD) {
            return Running(Err(DiskError::Full));
        }
        self.send(place, job)
    }

    /// The same for what goes on with something that was let in before, and is therefore never turned away: one job of each
    /// answer that is being sent waits at most.
    pub(super) fn go_on<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Running<T> {
        self.send(self.place(), job)
    }

    fn place(&self) -> Place {
        self.0.waiting.fetch_add(1, Ordering::Relaxed);
        Place(Arc::clone(&self.0.waiting))
    }

    fn send<T: Send + 'static>(&self, place: Place, job: impl FnOnce() -> T + Send + 'static) -> Running<T> {
        let (done, result) = oneshot::channel();
        let run = Box::new(move || {
            // Nobody waits any more for what was too long in the queue.
            if !done.is_closed() {
                let _ = done.send(job());
            }
        });
        let jobs = self.0.jobs.get_or_init(|| start(self.0.threads));
        Running(jobs.send(Job { place, run }).map(|()| result).map_err(|_| DiskError::NoThread))
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.0.waiting.load(Ordering::Relaxed);
        f.debug_struct("Disk").field("threads", &self.0.threads).field("waiting", &waiting).finish()
    }
}

impl<T> Future for Running<T> {
    type Output = Result<T, DiskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            // A job that panics drops its end of the channel.
            Ok(result) => Pin::new(result).poll(cx).map_err(|_| DiskError::Panicked),
            Err(error) => Poll::Ready(Err(*error)),
        }
    }
}

impl From<DiskError> for io::Error {
    fn from(error: DiskError) -> Self {
        Self::other(error)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The threads end when nobody can send anything any more. Where none can be started, nothing can be sent.
fn start(threads: usize) -> Sender<Job> {
    let (jobs, next) = channel();
    let next = Arc::new(Mutex::new(next));
    for index in 0..threads {
        let next = Arc::clone(&next);
        // Fewer threads do the same, and none is told to those who send.
        let _ = thread::Builder::new().name(format!("disk-{index}")).spawn(move || work(&next));
    }
    jobs
}

fn work(next: &Mutex<Receiver<Job>>) {
    loop {
        let job = next.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { place, run }) = job else { return };
        drop(place);
        // Those who wait see that the other end is gone.
        let _ = catch_unwind(AssertUnwindSafe(run));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::mpsc::RecvTimeoutError;
    use std::time::Duration;

    use super::*;

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    /// A disk of one thread, which is busy until the sender is dropped.
    fn busy() -> (Disk, Sender<()>, Running<()>) {
        let disk = Disk::new(1);
        let (hold, held) = channel();
        let (begun, began) = channel();
        let running = disk.run(move || {
            begun.send(()).unwrap();
            let _ = held.recv();
        });
        began.recv().unwrap();
        (disk, hold, running)
    }

    #[test]
    fn jobs_are_done_on_other_threads() {
        let disk = Disk::new(2);
        let name = block_on(disk.run(|| thread::current().name().map(str::to_owned))).unwrap();
        assert!(name.unwrap().starts_with("disk-"));
        let jobs: Vec<_> = (0..100).map(|number| disk.run(move || number * 2)).collect();
        let done: Vec<_> = jobs.into_iter().map(|job| block_on(job).unwrap()).collect();
        assert_eq!(done, (0..100).map(|number| number * 2).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_is_an_error_of_its_job_alone() {
        let disk = Disk::new(1);
        let broken = disk.run(|| panic!("on purpose"));
        let whole = disk.run(|| 1);
        assert_eq!(block_on(broken), Err::<(), _>(DiskError::Panicked));
        assert_eq!(block_on(whole), Ok(1));
    }

    #[test]
    fn what_is_too_much_is_told_at_once_and_what_was_let_in_goes_on() {
        let (disk, hold, running) = busy();
        let waiting: Vec<_> = (0..WAITING_A_THREAD).map(|number| disk.run(move || number)).collect();
        assert_eq!(block_on(disk.run(|| 0)), Err(DiskError::Full));
        let next = disk.go_on(|| 7);
        drop(hold);
        block_on(running).unwrap();
        assert_eq!(block_on(next), Ok(7));
        for (number, job) in waiting.into_iter().enumerate() {
            assert_eq!(block_on(job), Ok(number));
        }
        assert_eq!(block_on(disk.run(|| 0)), Ok(0), "places are free again");
    }

    #[test]
    fn a_job_that_nobody_waits_for_is_not_done() {
        let (disk, hold, running) = busy();
        let (done, seen) = channel();
        drop(disk.run(move || done.send(())));
        drop(hold);
        block_on(running).unwrap();
        assert!(seen.recv().is_err(), "the job was dropped, not run");
    }

    thread_local! {
        static END: RefCell<Option<Sender<()>>> = const { RefCell::new(None) };
    }

    #[test]
    fn the_threads_end_with_the_last_copy() {
        let disk = Disk::new(1);
        let (end, ended) = channel();
        block_on(disk.run(move || END.set(Some(end)))).unwrap();
        let copy = disk.clone();
        drop(disk);
        assert_eq!(block_on(copy.run(|| 1)), Ok(1));
        let last = copy.run(|| 2);
        drop(copy);
        assert_eq!(ended.recv_timeout(Duration::from_secs(10)), Err(RecvTimeoutError::Disconnected));
        assert_eq!(block_on(last), Ok(2), "what was handed over is still done");
    }
}
