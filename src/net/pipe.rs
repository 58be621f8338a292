//! Pipes to splice through (splice(2)): made once, borrowed while bytes are in them, and kept for the next.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};

/// Capacity asked for, in bytes: what one trip through the pipe may carry. Every trip may wake both peers, and
/// with 256 KiB a peer that keeps up goes back to sleep in between: an upload of a GB then took 430 ms of CPU
/// instead of 277; 1 MiB brought no more than 2 % (`benches/compare`). The kernel grants less beyond
/// `fs.pipe-user-pages-soft`, which is fine: a smaller pipe only makes more trips.
const CAPACITY: usize = 512 * 1024;
/// The least capacity worth splicing through: with less, copying moves more in a call.
const LEAST: usize = 64 * 1024;

/// Bytes asked for at once: more than any pipe takes, since a pipe may take more than its capacity.
const MOST: usize = 1024 * 1024;

/// A pipe and what is in it.
#[derive(Debug)]
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    /// Bytes in it.
    pending: usize,
}

/// What became of filling a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// So many bytes are in it.
    Bytes(usize),
    /// The source has ended.
    End,
    /// The source has bytes that only a read gets at.
    ByReading,
}

/// A borrowed pipe; dropped, it goes back where it came from.
#[derive(Debug)]
pub(super) struct Lent<'a> {
    pool: &'a PipePool,
    pipe: Option<Pipe>,
}

/// The pipes of one thread.
#[derive(Debug)]
pub(super) struct PipePool {
    free: RefCell<Vec<Pipe>>,
    /// How many more may be made; each costs two descriptors.
    budget: Cell<usize>,
    /// How many there are, those of other threads with them. Changed only when one is made or closed.
    made: Arc<AtomicUsize>,
}

impl PipePool {
    pub(super) fn new(budget: usize) -> Self {
        Self { free: RefCell::default(), budget: Cell::new(budget), made: Arc::default() }
    }

    pub(super) fn counted_in(self, made: Arc<AtomicUsize>) -> Self {
        Self { made, ..self }
    }

    /// A pipe, or `None` when there is none to be had: relays then copy.
    pub(super) fn borrow(&self) -> Option<Lent<'_>> {
        let pipe = match self.free.borrow_mut().pop() {
            Some(pipe) => pipe,
            None => {
                let left = self.budget.get().checked_sub(1)?;
                let pipe = Pipe::with_capacity(CAPACITY).ok()?;
                self.budget.set(left);
                self.made.fetch_add(1, Ordering::Relaxed);
                pipe
            }
        };
        Some(Lent { pool: self, pipe: Some(pipe) })
    }
}

impl Lent<'_> {
    pub(super) fn pipe(&mut self) -> Option<&mut Pipe> {
        self.pipe.as_mut()
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        match self.pipe.take() {
            Some(pipe) if pipe.pending == 0 => self.pool.free.borrow_mut().push(pipe),
            // Its bytes belong to a connection that is over: it is closed, and another may be made.
            Some(_) => {
                self.pool.budget.set(self.pool.budget.get() + 1);
                self.pool.made.fetch_sub(1, Ordering::Relaxed);
            }
            None => {}
        }
    }
}

impl Pipe {
    /// A pipe of this capacity in bytes, or of what the kernel gives as long as that is worth it.
    ///
    /// # Errors
    /// When there are no descriptors or no memory for pipes left.
    pub fn with_capacity(capacity: usize) -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // Refused beyond the user's share of pipe memory, where new pipes have only a page or two (pipe(7)).
        if fcntl_setpipe_size(&writer, capacity).is_err() && fcntl_getpipe_size(&writer)? < LEAST {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(Self { reader, writer, pending: 0 })
    }

    /// Bytes in the pipe.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Moves what `source` has, `most` bytes of it, into the pipe, which must be empty: then it cannot be the
    /// pipe that is full.
    /// `urgent`: whether there may be urgent data in the way.
    ///
    /// # Errors
    /// What splice(2) says: `WouldBlock` when the source has nothing, `InvalidInput` when it cannot be spliced
    /// from.
    pub fn fill(&mut self, source: impl AsFd, most: usize, urgent: bool) -> io::Result<Filled> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        match splice(&source, None, &self.writer, None, most.min(MOST), flags) {
            Ok(n @ 1..) => {
                self.pending += n;
                Ok(Filled::Bytes(n))
            }
            Err(Errno::AGAIN) if !urgent => Err(Errno::AGAIN.into()),
            Ok(_) | Err(Errno::AGAIN) => look(source),
            Err(error) => Err(error.into()),
        }
    }

    /// Moves what is in the pipe to `destination`. There must be something: then `WouldBlock` can only mean
    /// that the destination is full.
    ///
    /// # Errors
    /// What splice(2) says.
    pub fn drain(&mut self, destination: impl AsFd) -> io::Result<usize> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let n = splice(&self.reader, None, destination, None, self.pending, flags)?;
        self.pending -= n.min(self.pending);
        Ok(n)
    }
}

/// What a source has from which nothing was spliced. Splicing does not get past urgent data: the kernel
/// then says "nothing" as long as the peer is connected and "the end" afterwards, with bytes in the queue.
fn look(source: impl AsFd) -> io::Result<Filled> {
    let mut byte = [0];
    match recv(source, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT)? {
        (_, 0) => Ok(Filled::End),
        (_, _) => Ok(Filled::ByReading),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn bytes_go_through_and_an_empty_pipe_is_used_again() {
        let pool = PipePool::new(1);
        let (mut near, source) = UnixStream::pair().unwrap();
        let (destination, mut far) = UnixStream::pair().unwrap();
        let mut lent = pool.borrow().unwrap();
        assert!(pool.borrow().is_none(), "the budget is spent");
        let pipe = lent.pipe().unwrap();
        near.write_all(b"through the pipe").unwrap();
        assert_eq!(pipe.fill(&source, MOST, true).unwrap(), Filled::Bytes(16));
        assert_eq!(pipe.drain(&destination).unwrap(), 16);
        let mut read = [0; 16];
        far.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"through the pipe");
        drop(lent);
        assert!(pool.borrow().is_some());
    }

    #[test]
    fn a_pipe_with_bytes_in_it_is_never_lent_again() {
        let made = Arc::new(AtomicUsize::new(0));
        let pool = PipePool::new(1).counted_in(Arc::clone(&made));
        let (mut near, source) = UnixStream::pair().unwrap();
        let mut lent = pool.borrow().unwrap();
        assert_eq!(made.load(Ordering::Relaxed), 1);
        near.write_all(b"secret").unwrap();
        lent.pipe().unwrap().fill(&source, MOST, true).unwrap();
        drop(lent);
        assert_eq!(made.load(Ordering::Relaxed), 0);
        let mut next = pool.borrow().expect("the budget is whole again");
        assert_eq!(next.pipe().unwrap().pending(), 0);
    }

    #[test]
    fn urgent_data_is_neither_nothing_nor_the_end() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut source, _) = listener.accept().unwrap();
        near.write_all(b"before").unwrap();
        rustix::net::send(&near, b"!", rustix::net::SendFlags::OOB).unwrap();
        near.write_all(b"after").unwrap();
        near.shutdown(std::net::Shutdown::Write).unwrap();
        // All is there once the end is seen behind it.
        source.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        let pool = PipePool::new(1);
        let mut lent = pool.borrow().unwrap();
        let pipe = lent.pipe().unwrap();
        let (mut received, mut read) = (Vec::new(), [0; 64]);
        loop {
            let n = match pipe.fill(&source, MOST, true) {
                Ok(Filled::Bytes(n)) => {
                    std::fs::File::from(pipe.reader.try_clone().unwrap()).read(&mut read[..n])
                }
                Ok(Filled::ByReading) => source.read(&mut read),
                Ok(Filled::End) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => panic!("{error}"),
            };
            pipe.pending = 0;
            received.extend_from_slice(&read[..n.unwrap()]);
        }
        assert_eq!(received, b"beforeafter");
    }
}
