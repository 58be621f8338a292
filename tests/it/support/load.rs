//! A load that notices everything: connections that are opened all the time, and streams that are checked byte by
//! byte.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::backend::Backend;
use super::client::{connect, probe, served};
use super::hello::to;
use super::pattern::{exchange, serve};
use super::{SOON, wait_for};

/// Streams, and the bytes each way of one.
const STREAMS: usize = 200;
const LEN: usize = 256 * 1024;
/// The names that the load asks for.
const STREAM: &str = "stream.test";
const CANARY: &str = "canary.test";

/// What the load needs behind the proxy.
pub(crate) struct Load {
    streams: Backend,
    canary: Backend,
}

/// Lets the streams go on, and the clients end, also when the test fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Load {
    pub(crate) fn new() -> Self {
        let len = to(STREAM).len();
        Self { streams: Backend::new(move |stream| serve(stream, len)), canary: Backend::tagged("canary") }
    }

    /// The routes to it.
    pub(crate) fn routes(&self) -> String {
        format!(
            "[[route]]\nsni = '{STREAM}'\nto = '{}'\n[[route]]\nsni = '{CANARY}'\nto = '{}'\n",
            self.streams, self.canary
        )
    }

    /// Does `change` while the first half of each stream has passed and the second has not. Every byte must arrive,
    /// and every new connection be served. Gives how many of those there were.
    pub(crate) fn during(&self, addr: SocketAddr, change: impl FnOnce()) -> usize {
        let (done, count) = (&AtomicBool::new(false), &AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for id in 0..STREAMS {
                let stream = move || {
                    let stream = connect(addr);
                    stream.set_read_timeout(Some(SOON * 6)).unwrap();
                    exchange(&stream, &to(STREAM), id, LEN, |at| {
                        while at >= LEN / 2 && !done.load(Ordering::Acquire) {
                            // Not for a figure: the second half comes after the change.
                            std::thread::sleep(Duration::from_millis(20));
                        }
                    });
                };
                std::thread::Builder::new().stack_size(256 * 1024).spawn_scoped(scope, stream).unwrap();
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Acquire) {
                        assert_eq!(probe(addr, &to(CANARY)), served("canary"));
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let _done = Done(done);
            wait_for("the streams to be there", || self.streams.hits() == STREAMS);
            change();
        });
        count.load(Ordering::Relaxed)
    }
}
