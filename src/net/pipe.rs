//! Pipes to splice through (splice(2)): made once, borrowed while bytes are in them, and kept for the next.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// Capacity asked for, in bytes: what one trip through the pipe may carry. The kernel grants less beyond
/// `fs.pipe-user-pages-soft`, which is fine: a smaller pipe only makes more trips.
const CAPACITY: usize = 256 * 1024;

/// A pipe and what is in it.
#[derive(Debug)]
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    /// Bytes in it.
    pending: usize,
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
}

impl PipePool {
    pub(super) fn new(budget: usize) -> Self {
        Self { free: RefCell::default(), budget: Cell::new(budget) }
    }

    /// A pipe, or `None` when there is none to be had: relays then copy.
    pub(super) fn borrow(&self) -> Option<Lent<'_>> {
        let pipe = match self.free.borrow_mut().pop() {
            Some(pipe) => pipe,
            None => {
                let left = self.budget.get().checked_sub(1)?;
                let pipe = Pipe::new().ok()?;
                self.budget.set(left);
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
            Some(_) => self.pool.budget.set(self.pool.budget.get() + 1),
            None => {}
        }
    }
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // Refused beyond the user's share: the pipe stays at its default of 64 KiB, or a page.
        let _ = fcntl_setpipe_size(&writer, CAPACITY);
        Ok(Self { reader, writer, pending: 0 })
    }

    /// Bytes in the pipe.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Moves what `source` has into the pipe. The pipe must be empty: then `WouldBlock` can only mean that
    /// the source has nothing.
    ///
    /// # Errors
    /// What splice(2) says, `InvalidInput` when the source cannot be spliced from.
    pub fn fill(&mut self, source: impl AsFd) -> io::Result<usize> {
        let n = splice(source, None, &self.writer, None, CAPACITY, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?;
        self.pending += n;
        Ok(n)
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
        assert_eq!(pipe.fill(&source).unwrap(), 16);
        assert_eq!(pipe.drain(&destination).unwrap(), 16);
        let mut read = [0; 16];
        far.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"through the pipe");
        drop(lent);
        assert!(pool.borrow().is_some());
    }

    #[test]
    fn a_pipe_with_bytes_in_it_is_never_lent_again() {
        let pool = PipePool::new(1);
        let (mut near, source) = UnixStream::pair().unwrap();
        let mut lent = pool.borrow().unwrap();
        near.write_all(b"secret").unwrap();
        lent.pipe().unwrap().fill(&source).unwrap();
        drop(lent);
        let mut next = pool.borrow().expect("the budget is whole again");
        assert_eq!(next.pipe().unwrap().pending(), 0);
    }
}
