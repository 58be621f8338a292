//! Bodies that are read while they are sent.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use rustix::buffer::spare_capacity;
use rustix::io::{pread, retry_on_intr};

use super::super::disk::{Disk, Running};

/// What is read at once, in bytes, and what a file may have that is read with its opening: one hand-over to another thread
/// costs about as much as copying so much.
pub(super) const PIECE: u64 = 64 * 1024;

/// A piece of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    /// These bytes.
    Bytes(Bytes),
    /// So many bytes of the file.
    File {
        /// From here on.
        offset: u64,
        /// In bytes, at least one.
        len: u64,
    },
}

/// A body that is read while it is sent, in pieces of 64 KiB at most. While one of them is sent, the next is read; no other
/// memory is held. Dropped, it closes the file.
#[derive(Debug)]
pub struct FileStream {
    disk: Disk,
    /// Until the last of it is being read.
    file: Option<Arc<Held>>,
    /// What is neither given nor being read.
    segments: VecDeque<Segment>,
    reading: Option<Running<io::Result<Bytes>>>,
    len: u64,
}

/// An open file that is closed by the disk's threads: the last to close a file that was deleted does the work of deleting it.
#[derive(Debug)]
struct Held {
    file: Option<File>,
    disk: Disk,
}

impl Segment {
    /// In bytes.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }
}

impl FileStream {
    pub(super) fn new(disk: Disk, file: File, segments: Vec<Segment>) -> Self {
        let len = segments.iter().map(Segment::len).sum();
        let held = Held { file: Some(file), disk: disk.clone() };
        Self { disk, file: Some(Arc::new(held)), segments: segments.into(), reading: None, len }
    }

    /// Bytes that are still to come.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing more comes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The next piece, never empty; `None` after the last. They are as many bytes in all as [`len`](Self::len) says at first:
    /// of a file that grows meanwhile no more is sent.
    ///
    /// # Errors
    /// When the file cannot be read, or has become shorter. Nothing follows, and what was promised to the peer is not whole:
    /// its connection or stream must be broken off.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        self.read_ahead();
        let piece = match &mut self.reading {
            Some(reading) => {
                let read = ready!(Pin::new(reading).poll(cx));
                self.reading = None;
                read.unwrap_or_else(|lost| Err(lost.into()))
            }
            None => match self.segments.pop_front() {
                Some(Segment::Bytes(bytes)) => Ok(bytes),
                // Were it one of the file, it would be read now.
                Some(Segment::File { .. }) | None => return Poll::Ready(None),
            },
        };
        match &piece {
            Ok(bytes) => {
                self.len = self.len.saturating_sub(bytes.len() as u64);
                self.read_ahead();
            }
            Err(_) => {
                self.segments.clear();
                self.file = None;
                self.len = 0;
            }
        }
        Poll::Ready(Some(piece))
    }

    /// Has the next piece read, if that is one of the file and none is being read.
    fn read_ahead(&mut self) {
        let (None, Some(Segment::File { offset, len })) = (&self.reading, self.segments.front_mut()) else {
            return;
        };
        let (from, count) = (*offset, PIECE.min(*len));
        *offset = offset.saturating_add(count);
        *len -= count;
        if *len == 0 {
            self.segments.pop_front();
        }
        let more = self.segments.iter().any(|segment| matches!(segment, Segment::File { .. }));
        let Some(held) = (if more { self.file.clone() } else { self.file.take() }) else { return };
        self.reading = Some(self.disk.go_on(move || held.read(from, count)));
    }
}

impl Held {
    fn read(&self, offset: u64, len: u64) -> io::Result<Bytes> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok(read_exactly(file, offset, len)?.into())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            // Nobody waits for it: it is dropped where it would be run.
            drop(self.disk.go_on(move || drop(file)));
        }
    }
}

/// All segments at once. It blocks on the disk.
pub(super) fn read_all(file: &File, segments: &[Segment]) -> io::Result<Bytes> {
    if let [Segment::File { offset, len }] = segments {
        return Ok(read_exactly(file, *offset, *len)?.into());
    }
    let mut all = BytesMut::new();
    for segment in segments {
        match segment {
            Segment::Bytes(bytes) => all.extend_from_slice(bytes),
            Segment::File { offset, len } => all.extend_from_slice(&read_exactly(file, *offset, *len)?),
        }
    }
    Ok(all.freeze())
}

/// So many bytes and not one less.
fn read_exactly(file: &File, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = offset.saturating_add(bytes.len() as u64);
        if retry_on_intr(|| pread(file.as_fd(), spare_capacity(&mut bytes), at))? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file has become shorter"));
        }
    }
    // The allocator may have given more, which was read into as well.
    bytes.truncate(len);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::future::poll_fn;
    use std::path::Path;

    use super::*;

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn stream(path: &Path, segments: Vec<Segment>) -> FileStream {
        FileStream::new(Disk::new(1), File::open(path).unwrap(), segments)
    }

    fn next(stream: &mut FileStream) -> Option<io::Result<Bytes>> {
        block_on(poll_fn(|cx| stream.poll_chunk(cx)))
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|index| u8::try_from(index % 251).unwrap()).collect()
    }

    #[test]
    fn segments_come_in_their_order_and_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let bytes = pattern(300_000);
        fs::write(&path, &bytes).unwrap();
        let segments = vec![
            Segment::Bytes(Bytes::from_static(b"head")),
            Segment::File { offset: 10, len: 150_000 },
            Segment::Bytes(Bytes::from_static(b"mid")),
            Segment::File { offset: 200_000, len: 1 },
            Segment::Bytes(Bytes::from_static(b"end")),
        ];
        let expected = [b"head", &bytes[10..150_010], b"mid", &bytes[200_000..200_001], b"end"].concat();
        assert_eq!(read_all(&File::open(&path).unwrap(), &segments).unwrap(), expected);
        let mut stream = stream(&path, segments);
        let mut all = Vec::new();
        while !stream.is_empty() {
            assert_eq!(stream.len(), (expected.len() - all.len()) as u64);
            let piece = next(&mut stream).unwrap().unwrap();
            assert!(!piece.is_empty() && piece.len() as u64 <= PIECE);
            all.extend_from_slice(&piece);
        }
        assert!(all == expected);
        assert!(next(&mut stream).is_none());
        assert!(next(&mut stream).is_none());
    }

    #[test]
    fn a_file_that_shrinks_is_an_error_and_one_that_grows_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let len = 3 * PIECE;
        for (changed, pieces, fails) in
            [(len - 1, 2, true), (PIECE, 1, true), (0, 0, true), (len + 1, 3, false)]
        {
            fs::write(&path, vec![b'x'; usize::try_from(len).unwrap()]).unwrap();
            let mut stream = stream(&path, vec![Segment::File { offset: 0, len }]);
            File::options().write(true).open(&path).unwrap().set_len(changed).unwrap();
            for _ in 0..pieces {
                assert_eq!(next(&mut stream).unwrap().unwrap().len() as u64, PIECE, "{changed}");
            }
            if fails {
                assert_eq!(next(&mut stream).unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            }
            assert!(next(&mut stream).is_none(), "{changed}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut stream = stream(dir.path(), vec![Segment::File { offset: 0, len: 1 }]);
        assert_eq!(next(&mut stream).unwrap().unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert!(next(&mut stream).is_none());
    }

    #[test]
    fn one_piece_is_read_ahead_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, pattern(4 * 65536)).unwrap();
        let mut stream = stream(&path, vec![Segment::File { offset: 0, len: 4 * PIECE }]);
        next(&mut stream).unwrap().unwrap();
        assert!(stream.reading.is_some());
        assert_eq!(*stream.segments.front().unwrap(), Segment::File { offset: 2 * PIECE, len: 2 * PIECE });
    }

    #[test]
    fn the_file_is_closed_with_the_last_piece_and_with_the_stream() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("closed-in-time");
        fs::write(&path, pattern(3 * 65536)).unwrap();
        let path = path.canonicalize().unwrap();
        let open = || {
            let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
            links.filter(|link| fs::read_link(link.path()).is_ok_and(|to| to == path)).count()
        };
        for read in [0, 1, 3] {
            let mut stream = stream(&path, vec![Segment::File { offset: 0, len: 3 * PIECE }]);
            let disk = stream.disk.clone();
            assert_eq!(open(), 1);
            for _ in 0..read {
                next(&mut stream).unwrap().unwrap();
            }
            if read < 3 {
                assert_eq!(open(), 1);
                drop(stream);
            }
            // One thread: the closing has been handed over before this, or with the piece before it.
            for _ in 0..2 {
                block_on(disk.run(|| ())).unwrap();
            }
            assert_eq!(open(), 0, "after {read} pieces");
        }
    }
}
