//! What waits between two peers of which one is slow: in memory, and on the disk beyond that.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use rustix::fs::{CWD, Mode, OFlags};
use tracing::warn;

use super::disk::{Disk, Running};

/// What is written to the disk, or read from it, at a time, in bytes.
const PIECE: usize = 256 * 1024;

/// How much may wait.
#[derive(Clone, Debug)]
pub(super) struct Room {
    /// Bytes in memory.
    pub(super) memory: usize,
    /// Bytes on the disk, and who writes them; `None`: there are none.
    pub(super) disk: Option<(Disk, u64)>,
}

/// A queue of bytes.
#[derive(Debug)]
pub(super) struct Spool {
    room: Room,
    /// The oldest.
    front: VecDeque<Bytes>,
    /// Those after, between these places of the file.
    file: Option<Arc<File>>,
    read: u64,
    written: u64,
    /// The newest, that wait to be written.
    back: VecDeque<Bytes>,
    /// Bytes in memory.
    held: usize,
    job: Option<Job>,
    /// Nothing more is written.
    stuck: bool,
}

#[derive(Debug)]
enum Job {
    Write(Running<io::Result<(Arc<File>, u64)>>, usize),
    Read(Running<io::Result<Bytes>>),
}

impl Room {
    /// So many bytes in memory, and none elsewhere.
    pub(super) fn memory(memory: usize) -> Self {
        Self { memory, disk: None }
    }
}

impl Spool {
    pub(super) fn new(room: Room) -> Self {
        Self {
            room,
            front: VecDeque::new(),
            file: None,
            read: 0,
            written: 0,
            back: VecDeque::new(),
            held: 0,
            job: None,
            stuck: false,
        }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.held == 0 && self.read == self.written && self.job.is_none()
    }

    /// Whether it takes more, beside what is `held` elsewhere for the same peer.
    pub(super) fn has_room(&self, held: usize) -> bool {
        self.held + held < self.room.memory
    }

    /// Whether the disk is at work.
    pub(super) fn is_moving(&self) -> bool {
        self.job.is_some()
    }

    /// Puts these behind the others.
    pub(super) fn push(&mut self, data: Bytes) {
        self.held += data.len();
        // Half of the memory is for what is to be written.
        let direct = self.room.disk.is_none() || self.held < self.room.memory / 2;
        let in_front = direct && self.back.is_empty() && self.read == self.written && self.job.is_none();
        if in_front { self.front.push_back(data) } else { self.back.push_back(data) }
    }

    /// Moves what is too much to the disk, where that can be written. To be called whenever something was put in.
    pub(super) fn poll_move(&mut self, cx: &mut Context<'_>) {
        loop {
            if let Some(Job::Write(running, pieces)) = &mut self.job {
                let Poll::Ready(result) = Pin::new(running).poll(cx) else { return };
                let pieces = *pieces;
                self.job = None;
                self.wrote(result.map_err(io::Error::from).flatten(), pieces);
            }
            if self.job.is_some() || !self.begin_write() {
                return;
            }
        }
    }

    /// The next piece; `None` when nothing waits.
    pub(super) fn poll_pop(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            if let Some(data) = self.front.pop_front() {
                self.held -= data.len();
                return Poll::Ready(Ok(Some(data)));
            }
            match &mut self.job {
                Some(Job::Read(running)) => {
                    let data = ready!(Pin::new(running).poll(cx)).map_err(io::Error::from).flatten();
                    self.job = None;
                    let data = data?;
                    self.read += data.len() as u64;
                    self.held += data.len();
                    self.front.push_back(data);
                }
                Some(Job::Write(..)) => {
                    self.poll_move(cx);
                    if matches!(self.job, Some(Job::Write(..))) {
                        return Poll::Pending;
                    }
                }
                None if self.read < self.written => self.begin_read(),
                None if self.back.is_empty() => return Poll::Ready(Ok(None)),
                None => std::mem::swap(&mut self.front, &mut self.back),
            }
        }
    }

    fn begin_write(&mut self) -> bool {
        let waiting = self.back.iter().map(Bytes::len).sum::<usize>();
        let Some((disk, most)) = &self.room.disk else { return false };
        let on_disk = self.written - self.read;
        let few = waiting < PIECE.min(self.room.memory / 4).max(1);
        if self.stuck || few || on_disk + waiting as u64 > *most {
            return false;
        }
        let pieces = self.back.iter().cloned().collect::<Vec<_>>();
        let (file, at) = (self.file.clone(), self.written);
        let job = disk.run(move || write(file, at, &pieces));
        self.job = Some(Job::Write(job, self.back.len()));
        true
    }

    /// The first so many pieces of what waited are on the disk; or could not be put there.
    fn wrote(&mut self, result: io::Result<(Arc<File>, u64)>, pieces: usize) {
        match result {
            Ok((file, len)) => {
                self.file = Some(file);
                self.written += len;
                let written = self.back.drain(..pieces).map(|data| data.len()).sum::<usize>();
                self.held -= written;
            }
            Err(error) => {
                warn!(%error, "no room on the disk for what waits for a slow peer");
                // The rest stays in memory.
                self.stuck = true;
            }
        }
    }

    fn begin_read(&mut self) {
        let (Some(file), Some((disk, _))) = (self.file.clone(), &self.room.disk) else { return };
        let (at, left) = (self.read, self.written - self.read);
        let len = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let read = move || {
            let mut bytes = BytesMut::zeroed(len);
            file.read_exact_at(&mut bytes, at)?;
            Ok(bytes.freeze())
        };
        self.job = Some(Job::Read(disk.run(read)));
    }
}

/// Writes these at a place of the file, which is made where there is none: one without a name, that is gone with the last who
/// has it open.
fn write(file: Option<Arc<File>>, at: u64, pieces: &[Bytes]) -> io::Result<(Arc<File>, u64)> {
    let file = match file {
        Some(file) => file,
        None => {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(CWD, std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR)?;
            Arc::new(File::from(fd))
        }
    };
    let mut end = at;
    for piece in pieces {
        file.write_all_at(piece, end)?;
        end += piece.len() as u64;
    }
    Ok((file, end - at))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn pieces() -> impl Iterator<Item = Bytes> {
        (0..64_u8).map(|n| Bytes::from(vec![n; 1000 + usize::from(n)]))
    }

    async fn pop(spool: &mut Spool) -> Option<Bytes> {
        poll_fn(|cx| spool.poll_pop(cx)).await.unwrap()
    }

    /// All that was put in comes out in the same order, whenever it is taken.
    #[tokio::test]
    async fn nothing_is_lost_on_the_way_over_the_disk() {
        let all = pieces().flatten().collect::<Vec<_>>();
        for taken_after in [1, 3, 17, 64] {
            let disk = Disk::new(1);
            let mut spool = Spool::new(Room { memory: 8000, disk: Some((disk, 1 << 20)) });
            let mut got = Vec::new();
            for (index, piece) in pieces().enumerate() {
                // Until some of it lies on the disk.
                poll_fn(|cx| {
                    spool.poll_move(cx);
                    if spool.has_room(0) { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
                spool.push(piece);
                if index % taken_after == taken_after - 1 {
                    got.extend(pop(&mut spool).await.unwrap());
                }
            }
            assert!(taken_after == 1 || spool.written > 0, "the disk has its part");
            while let Some(piece) = pop(&mut spool).await {
                got.extend(piece);
            }
            assert!(spool.is_empty() && spool.held == 0);
            assert!(got == all, "{} of {} bytes", got.len(), all.len());
        }
    }

    #[tokio::test]
    async fn without_a_disk_memory_is_the_bound() {
        let mut spool = Spool::new(Room::memory(3000));
        spool.push(Bytes::from(vec![1; 2000]));
        assert!(spool.has_room(0));
        spool.push(Bytes::from(vec![2; 2000]));
        assert!(!spool.has_room(0));
        assert_eq!(pop(&mut spool).await.unwrap()[0], 1);
        assert!(spool.has_room(0));
        assert_eq!(pop(&mut spool).await.unwrap()[0], 2);
        assert_eq!(pop(&mut spool).await, None);
    }
}
