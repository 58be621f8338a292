use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::time::Instant;

use super::*;
use crate::net::Timers;
use crate::net::timer::with_clock;

#[derive(Default)]
struct Counts {
    up: Cell<(usize, usize)>,
    down: Cell<(usize, usize)>,
}

impl Counts {
    fn cell(&self, direction: Direction) -> &Cell<(usize, usize)> {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }
}

impl Meter for Counts {
    fn read(&self, direction: Direction, n: usize) {
        let (read, written) = self.cell(direction).get();
        self.cell(direction).set((read + n, written));
    }

    fn written(&self, direction: Direction, n: usize, _: bool) {
        let (read, written) = self.cell(direction).get();
        self.cell(direction).set((read, written + n));
    }
}

/// In memory there is nothing to splice.
macro_rules! copied {
    ($stream:ty) => {
        impl Conduit for $stream {
            fn poll_fill(&self, _: &mut Context<'_>, _: &mut Pipe, _: usize) -> Poll<io::Result<Filled>> {
                Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
            }

            fn poll_drain(&self, _: &mut Context<'_>, _: &mut Pipe) -> Poll<io::Result<usize>> {
                Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
            }

            fn take_error(&self) -> Option<io::Error> {
                None
            }
        }
    };
}

copied!(DuplexStream);
copied!(Gone);
copied!(Answered);

const LIMITS: IdleLimits =
    IdleLimits { open: Duration::from_secs(300), half_closed: Duration::from_secs(60) };

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| [i, i >> 8, i * 31].iter().fold(seed, |sum, part| sum ^ part.to_le_bytes()[0])).collect()
}

/// Writes `data` in pieces, ends the stream, and gives what comes back until its end.
async fn peer(stream: DuplexStream, data: &[u8], piece: usize) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let write = async {
        for piece in data.chunks(piece) {
            writer.write_all(piece).await.unwrap();
        }
        writer.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let (_, read) = tokio::join!(write, reader.read_to_end(&mut received));
    read.unwrap();
    received
}

/// Relays beside a clock that runs.
async fn ticking(
    client: &mut impl Conduit,
    upstream: &mut impl Conduit,
    prefix: Box<[u8]>,
    scratch: &Scratch,
    counts: &Counts,
) -> RelayEnd {
    let timers = Timers::new();
    let mut timer = timers.timer();
    let mut relay = Relay::new(prefix, scratch, LIMITS, timer.now());
    with_clock(&timers, poll_fn(|cx| relay.poll(cx, client, upstream, &mut timer, counts))).await
}

proptest! {
    /// Whatever fits at once into a socket and however the peers write, every byte arrives once, in order,
    /// and so do both ends of stream.
    #[test]
    fn bytes_pass_whole_and_in_order(
        prefix in 0..40usize, up in 0..5000usize, down in 0..5000usize,
        room_client in 1..200usize, room_upstream in 1..200usize, piece in 1..700usize,
    ) {
        let (client, mut down_end) = duplex(room_client);
        let (backend, mut up_end) = duplex(room_upstream);
        let (sent_up, sent_down) = (pattern(up, 1), pattern(down, 2));
        let first = pattern(prefix, 3);
        let counts = Counts::default();
        let scratch = Scratch::new(4);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (end, at_client, at_backend) = runtime.block_on(async {
            let relay = async {
                let end = ticking(&mut down_end, &mut up_end, first.clone().into(), &scratch, &counts).await;
                drop((down_end, up_end));
                end
            };
            tokio::join!(relay, peer(client, &sent_up, piece), peer(backend, &sent_down, piece))
        });
        prop_assert!(matches!(end, RelayEnd::Done));
        prop_assert_eq!(at_client, sent_down);
        prop_assert_eq!(at_backend, [first, sent_up].concat());
        prop_assert_eq!(counts.up.get(), (up, prefix + up));
        prop_assert_eq!(counts.down.get(), (down, down));
    }
}

/// Runs a relay in the background of `test`, on a clock that jumps to the next timer when all wait.
async fn with_relay<R>(test: impl AsyncFnOnce(DuplexStream, DuplexStream) -> R) -> (RelayEnd, R) {
    let (client, mut down_end) = duplex(64);
    let (backend, mut up_end) = duplex(64);
    let (counts, scratch) = (Counts::default(), Scratch::new(4));
    let relay = ticking(&mut down_end, &mut up_end, Box::default(), &scratch, &counts);
    tokio::join!(relay, test(client, backend))
}

#[tokio::test(start_paused = true)]
async fn silence_on_both_sides_ends_it() {
    let start = Instant::now();
    let (end, _peers) = with_relay(async |client, backend| (client, backend)).await;
    assert!(matches!(end, RelayEnd::Idle { half_closed: None, .. }));
    assert!((300..306).contains(&start.elapsed().as_secs()));
}

#[tokio::test(start_paused = true)]
async fn every_byte_renews_the_idle_limit() {
    let start = Instant::now();
    let (end, _peers) = with_relay(async |mut client: DuplexStream, mut backend: DuplexStream| {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(200)).await;
            backend.write_all(b"x").await.unwrap();
            client.read_exact(&mut [0]).await.unwrap();
        }
        (client, backend)
    })
    .await;
    assert!(matches!(end, RelayEnd::Idle { half_closed: None, .. }));
    assert!((2300..2306).contains(&start.elapsed().as_secs()));
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_relay_has_its_own_idle_limit() {
    let start = Instant::now();
    let (end, _peers) = with_relay(async |mut client: DuplexStream, mut backend: DuplexStream| {
        client.shutdown().await.unwrap();
        assert_eq!(backend.read(&mut [0]).await.unwrap(), 0, "the end of stream is passed on");
        backend.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
        (client, backend)
    })
    .await;
    assert!(matches!(end, RelayEnd::Idle { half_closed: Some(Direction::Up), .. }));
    assert!((60..62).contains(&start.elapsed().as_secs()));
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_a_half_closed_relay_begins_with_the_end_of_stream() {
    let (end, ()) = with_relay(async |mut client: DuplexStream, mut backend: DuplexStream| {
        // Longer than the limit of a half-closed one.
        tokio::time::sleep(Duration::from_secs(200)).await;
        client.shutdown().await.unwrap();
        assert_eq!(backend.read(&mut [0]).await.unwrap(), 0, "the end of stream is passed on");
        tokio::time::sleep(Duration::from_secs(50)).await;
        backend.write_all(b"late").await.unwrap();
        let mut answer = [0; 4];
        client.read_exact(&mut answer).await.unwrap();
        backend.shutdown().await.unwrap();
    })
    .await;
    assert!(matches!(end, RelayEnd::Done), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stalls_holds_no_more_than_one_scratch_buffer() {
    let (client, mut down_end) = duplex(16);
    let (backend, mut up_end) = duplex(1 << 20);
    let (counts, scratch) = (Counts::default(), Scratch::new(4));
    let mut backend = backend;
    backend.write_all(&pattern(1 << 20, 9)).await.unwrap();
    let end = ticking(&mut down_end, &mut up_end, Box::default(), &scratch, &counts).await;
    assert!(matches!(end, RelayEnd::Idle { half_closed: None, .. }));
    let (read, written) = counts.down.get();
    assert_eq!((read, written), (SCRATCH, 16));
    drop(client);
}

/// A peer that is gone: reads end or fail, writes fail.
struct Gone;

impl AsyncRead for Gone {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Gone {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A backend that has answered and closed: it resets whoever sends more.
struct Answered(Option<&'static [u8]>);

impl AsyncRead for Answered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        buf.put_slice(self.0.take().unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Answered {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What the client says too late must not cost it an answer that was whole: resetting it would throw away
/// what the kernel still has to send.
#[tokio::test]
async fn an_answer_that_is_whole_is_not_lost_to_what_the_client_says_after_it() {
    let (mut client, mut down_end) = duplex(64);
    let (counts, scratch) = (Counts::default(), Scratch::new(4));
    let mut backend = Answered(Some(b"answer"));
    let relay = ticking(&mut down_end, &mut backend, Box::default(), &scratch, &counts);
    let talk = async {
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        client.write_all(&[0; 1000]).await.unwrap();
        client.shutdown().await.unwrap();
        answer
    };
    let (end, answer) = tokio::join!(relay, talk);
    assert_eq!(answer, b"answer");
    let delivered = matches!(end, RelayEnd::Fault(Fault { side: Side::Upstream, delivered: true, .. }));
    assert!(delivered, "{end:?}");
}

/// When a write was told of a reset, the kernel reports a plain end to the read after it. The client must
/// not take that for the end of a whole answer.
#[tokio::test]
async fn a_reset_found_by_writing_is_not_passed_on_as_an_end_of_stream() {
    let (mut client, mut down_end) = duplex(64);
    client.write_all(b"request").await.unwrap();
    let (counts, scratch) = (Counts::default(), Scratch::new(4));
    let end = ticking(&mut down_end, &mut Gone, Box::default(), &scratch, &counts).await;
    assert!(matches!(end, RelayEnd::Fault(Fault { side: Side::Upstream, .. })), "{end:?}");
    let read = tokio::time::timeout(Duration::ZERO, client.read(&mut [0])).await;
    assert!(read.is_err(), "the client saw an end of stream: {read:?}");
}
