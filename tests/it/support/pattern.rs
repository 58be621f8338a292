//! Streams whose every word says whose it is and where in it: a foreign, lost or doubled byte shows anywhere.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;

/// What one call writes or reads, at most, in bytes.
const CHUNK: usize = 64 * 1024;
/// What a server of [`serve`] says when all that it received was right.
const RIGHT: u8 = b'!';

/// The bytes of stream `id` from `at` on.
fn fill(id: usize, at: usize, bytes: &mut [u8]) {
    let word = |index: usize| ((id as u64) << 40 | index as u64).to_le_bytes();
    let (first, skip) = (at / 8, at % 8);
    let (head, rest) = bytes.split_at_mut(((8 - skip) % 8).min(bytes.len()));
    let head_len = head.len();
    head.copy_from_slice(&word(first)[skip..][..head_len]);
    for (index, chunk) in rest.chunks_mut(8).enumerate() {
        let len = chunk.len();
        chunk.copy_from_slice(&word((at + head_len) / 8 + index)[..len]);
    }
}

/// The first `len` bytes of stream `id`.
pub(crate) fn pattern(id: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(id, 0, &mut bytes);
    bytes
}

/// Writes a part of stream `id`, telling `pace` before each piece where it begins.
pub(crate) fn send(
    mut stream: &TcpStream,
    id: usize,
    part: Range<usize>,
    mut pace: impl FnMut(usize),
) -> Result<()> {
    let mut chunk = vec![0; CHUNK.min(part.len())];
    let mut at = part.start;
    while at < part.end {
        pace(at);
        let room = chunk.len().min(part.end - at);
        fill(id, at, &mut chunk[..room]);
        stream.write_all(&chunk[..room]).map_err(|error| in_stream(id, at, &error))?;
        at += room;
    }
    Ok(())
}

/// Reads a part of stream `id`, telling `pace` before each read where it is. Other bytes than the stream's are a
/// panic: no fault of a connection excuses them.
pub(crate) fn receive(
    mut stream: &TcpStream,
    id: usize,
    part: Range<usize>,
    mut pace: impl FnMut(usize),
) -> Result<()> {
    let (mut chunk, mut expected) = (vec![0; CHUNK.min(part.len())], vec![0; CHUNK.min(part.len())]);
    let mut at = part.start;
    while at < part.end {
        pace(at);
        let room = chunk.len().min(part.end - at);
        let n = match stream.read(&mut chunk[..room]).map_err(|error| in_stream(id, at, &error))? {
            0 => return Err(in_stream(id, at, &ErrorKind::UnexpectedEof.into())),
            n => n,
        };
        fill(id, at, &mut expected[..n]);
        assert!(chunk[..n] == expected[..n], "foreign or lost bytes in stream {id} after {at}");
        at += n;
    }
    Ok(())
}

fn in_stream(id: usize, at: usize, error: &Error) -> Error {
    Error::new(error.kind(), format!("stream {id} at {at}: {error}"))
}

/// Asserts that a stream has come to its end.
pub(crate) fn assert_end(mut stream: &TcpStream) {
    assert_eq!(stream.read(&mut [0]).expect("the end of the stream"), 0, "more than was sent");
}

/// The two streams of a connection: up and down.
fn ids(id: usize) -> [usize; 2] {
    [2 * id, 2 * id + 1]
}

/// A backend's part of [`exchange`] and [`request`], for hellos of `hello` bytes. Faults of the connection end
/// it: the client tells.
pub(crate) fn serve(mut stream: TcpStream, hello: usize) {
    let mut head = vec![0; hello + 16];
    if stream.read_exact(&mut head).is_err() {
        return;
    }
    let number = |at: usize| u64::from_le_bytes(head[hello + at..][..8].try_into().unwrap()) as usize;
    let ([up, down], len) = (ids(number(0)), number(8));
    let (sent, received) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(&stream, down, 0..len, |_| ()));
        let received = receive(&stream, up, 0..len, |_| ());
        (sender.join().unwrap(), received)
    });
    if sent.and(received).is_ok() {
        // Fails when the client has gone; it tells.
        let _ = stream.write_all(&[RIGHT]);
        let _ = stream.shutdown(Shutdown::Write);
    }
}

/// Asks a backend of [`serve`] for `len` bytes of connection `id`, and owes as many.
pub(crate) fn request(mut stream: &TcpStream, hello: &[u8], id: usize, len: usize) -> Result<()> {
    let numbers = [id as u64, len as u64].map(u64::to_le_bytes).concat();
    stream.write_all(&[hello, &numbers].concat())
}

/// Exchanges `len` bytes each way with a backend of [`serve`], at its own pace in each direction; every byte must
/// be right at both ends, and then both streams end.
pub(crate) fn exchange(
    stream: &TcpStream,
    hello: &[u8],
    id: usize,
    len: usize,
    pace: impl FnMut(usize) + Send,
) {
    let [up, down] = ids(id);
    request(stream, hello, id, len).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            send(stream, up, 0..len, |_| ()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        receive(stream, down, 0..len, pace).unwrap();
    });
    let (mut verdict, mut stream_end) = ([0], stream);
    stream_end.read_exact(&mut verdict).expect("a word of the backend, which received other bytes");
    assert_eq!(verdict, [RIGHT]);
    assert_end(stream);
}

/// Receives a part of what a backend of [`serve`] sends on connection `id`.
pub(crate) fn download(stream: &TcpStream, id: usize, part: Range<usize>) -> Result<()> {
    receive(stream, ids(id)[1], part, |_| ())
}
