//! A bounded queue of lines with a writer thread: whoever has something to tell never waits for the
//! destination, which may be a full disk, a pipe that nobody reads, or gone.

use std::io::{self, BufWriter, Write};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

/// Lines that may wait to be written: a second of a busy proxy, about 4 MiB.
const QUEUE: usize = 8192;
/// How long flushing waits for a destination that blocks.
const FLUSH_DEADLINE: Duration = Duration::from_secs(1);

/// The queue's end for those who tell.
#[derive(Clone, Debug)]
pub(super) struct LineQueue(SyncSender<Item>);

#[derive(Debug)]
enum Item {
    /// A line with its end.
    Line(Vec<u8>),
    /// Answer once all before is written.
    Flush(SyncSender<()>),
}

impl LineQueue {
    /// Starts a thread called `name` that writes to `output` and tells `lost` of each failed write.
    pub(super) fn start(
        name: &str,
        output: Box<dyn Write + Send>,
        lost: impl Fn(&io::Error) + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, items) = sync_channel(QUEUE);
        let write = move || write_items(&items, BufWriter::new(output), lost);
        std::thread::Builder::new().name(name.to_owned()).spawn(write)?;
        Ok(Self(queue))
    }

    /// Queues a line, which ends in a line feed; says whether there was room.
    pub(super) fn push(&self, line: Vec<u8>) -> bool {
        self.0.try_send(Item::Line(line)).is_ok()
    }

    /// Waits until what is queued is written, at most a second.
    pub(super) fn flush(&self) {
        let deadline = Instant::now() + FLUSH_DEADLINE;
        let (done, flushed) = sync_channel(1);
        let mut request = Item::Flush(done);
        while let Err(std::sync::mpsc::TrySendError::Full(back)) = self.0.try_send(request) {
            if Instant::now() >= deadline {
                return;
            }
            request = back;
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let _ = flushed.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

/// Writes until nobody is left who could tell anything. What is written is flushed whenever the queue is
/// empty.
fn write_items(
    items: &Receiver<Item>,
    mut output: BufWriter<Box<dyn Write + Send>>,
    lost: impl Fn(&io::Error),
) {
    let check = |result: io::Result<()>| {
        if let Err(error) = result {
            lost(&error);
        }
    };
    loop {
        let item = match items.try_recv() {
            Ok(item) => item,
            Err(TryRecvError::Empty) => {
                check(output.flush());
                match items.recv() {
                    Ok(item) => item,
                    Err(_) => return,
                }
            }
            Err(TryRecvError::Disconnected) => return check(output.flush()),
        };
        match item {
            Item::Line(line) => check(output.write_all(&line)),
            Item::Flush(done) => {
                check(output.flush());
                // Whoever asked may have given up.
                let _ = done.try_send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Never takes anything.
    struct Stuck;

    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            loop {
                std::thread::park();
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_written_in_order_and_flushed() {
        let output = Shared::default();
        let queue = LineQueue::start("test", Box::new(output.clone()), |error| panic!("{error}")).unwrap();
        for line in ["one\n", "two\n"] {
            assert!(queue.push(line.into()));
        }
        queue.flush();
        assert_eq!(*output.0.lock().unwrap(), b"one\ntwo\n");
    }

    #[test]
    fn a_stuck_destination_keeps_nobody_waiting() {
        let queue = LineQueue::start("test", Box::new(Stuck), |_| ()).unwrap();
        let line = vec![b'x'; 16 * 1024];
        let taken = (0..2 * QUEUE).take_while(|_| queue.push(line.clone())).count();
        assert!((QUEUE..2 * QUEUE).contains(&taken), "{taken} lines were taken");
        let start = Instant::now();
        queue.flush();
        assert!(start.elapsed() < 2 * FLUSH_DEADLINE);
    }
}
