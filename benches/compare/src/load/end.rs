//! One end of a connection: what it has still to send, and what is still to come.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// Most bytes of one send or receive: enough that the calls cost little beside the bytes.
pub(super) const CHUNK: usize = 256 * 1024;
/// Without an end: bytes to send or to come.
pub(super) const ENDLESS: u64 = u64::MAX;

/// What may be sent late, in microseconds of the rate.
const ARREARS: u64 = 10_000;

/// How fast streams may go, all together.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes a microsecond, or MB a second.
    rate: u64,
    since: Instant,
    sent: u64,
}

impl Pace {
    pub(super) fn new(rate: u64) -> Self {
        Self { rate, since: Instant::now(), sent: 0 }
    }

    /// Whether another burst is due.
    pub(super) fn allows(&self) -> bool {
        self.sent < self.due()
    }

    /// What was not sent in time is not made up for later: the other side could not take it.
    pub(super) fn forgive(&mut self) {
        self.sent = self.sent.max(self.due().saturating_sub(ARREARS * self.rate));
    }

    fn due(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX).saturating_mul(self.rate)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Backend,
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct End {
    pub(super) socket: OwnedFd,
    pub(super) side: Side,
    /// Bytes of the hello still to send.
    pub(super) hello: usize,
    /// Bytes still to send after it.
    pub(super) owed: u64,
    /// Bytes still to come until something is complete.
    pub(super) due: u64,
    /// The connection's opening, or the request's sending.
    pub(super) since: Instant,
    /// The hello (backend) or its answer (client) has come.
    pub(super) open: bool,
    /// Whether writability is waited for.
    pub(super) writes: bool,
    /// Whether the stream waits until more may be sent.
    pub(super) paused: bool,
}

impl End {
    pub(super) fn new(socket: OwnedFd, side: Side) -> Self {
        let since = Instant::now();
        Self {
            socket,
            side,
            hello: 0,
            owed: 0,
            due: ENDLESS,
            since,
            open: false,
            writes: false,
            paused: false,
        }
    }

    pub(super) fn to_send(&self) -> bool {
        !self.paused && (self.hello > 0 || self.owed > 0)
    }

    pub(super) fn interest(&self) -> epoll::EventFlags {
        if self.writes { epoll::EventFlags::IN | epoll::EventFlags::OUT } else { epoll::EventFlags::IN }
    }

    /// Has the kernel drop bytes that are due; `None` if none were there.
    pub(super) fn discard(&mut self, scratch: &mut [u8]) -> rustix::io::Result<Option<u64>> {
        let most = usize::try_from(self.due).unwrap_or(CHUNK).min(scratch.len());
        let target = scratch.get_mut(..most).unwrap_or_default();
        match rustix::net::recv(self.socket.as_fd(), target, RecvFlags::TRUNC) {
            Ok((_, count)) => {
                if self.due != ENDLESS {
                    self.due -= count as u64;
                }
                Ok(Some(count as u64))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends what is to be sent as far as it goes; of a stream what `pace` allows at a time, so that all get
    /// their turn.
    pub(super) fn send(&mut self, hello: &[u8], filling: &[u8], pace: &mut Pace) -> rustix::io::Result<()> {
        while self.to_send() {
            if self.hello == 0 && self.owed == ENDLESS && !pace.allows() {
                self.paused = true;
                break;
            }
            let bytes = if self.hello > 0 {
                hello.get(hello.len() - self.hello..).unwrap_or_default()
            } else {
                let most = usize::try_from(self.owed).unwrap_or(CHUNK);
                filling.get(..most.min(filling.len())).unwrap_or_default()
            };
            match rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(count) if self.hello > 0 => self.hello -= count,
                Ok(count) if self.owed == ENDLESS => {
                    pace.sent += count as u64;
                    break;
                }
                Ok(count) => self.owed -= count as u64,
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
