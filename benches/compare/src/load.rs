//! The load: clients before the proxy and the backend behind it, in one loop of one thread.
//!
//! The clients' hello is the same in a load, so the backend counts bytes and reads none. Neither side needs the
//! bytes it receives: the kernel drops them (MSG_TRUNC, tcp(7)), which spares a copy of each.

mod end;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use self::end::{CHUNK, ENDLESS, End, Pace, Side};

/// Connections that are opening at the same time; fewer than any listener's backlog.
const OPENING: usize = 64;
/// A load ends here if its time does not end it: more than a minute's worth.
const MOST_TIMES: u64 = 20_000_000;
const MOST_BYTES: u64 = 2_000_000_000_000;
/// Latencies kept, 8 bytes each.
const MOST_LATENCIES: usize = 4_000_000;
/// The listener's number among the events.
const LISTENER: u64 = u64::MAX;
/// Longest wait for events, so that the end of a window is not missed by much.
const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
/// The same while streams wait for their time.
const SHORT_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
/// How long the proxy may take to close its connections to the backend once the clients have gone.
const DRAIN: Duration = Duration::from_secs(5);

/// What happens on a connection after its hello.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// An answer, then the client closes, and the next connection is opened.
    Connect { answer: u64 },
    /// An answer, then requests and answers in turn.
    Exchange { request: u64, answer: u64 },
    /// An answer, then nothing.
    Hold { answer: u64 },
    /// Bytes without end, to the client, from it or both, at so many MB a second together.
    Stream { down: bool, up: bool, rate: u64 },
}

/// One load.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) hello: Vec<u8>,
    pub(crate) work: Work,
    pub(crate) clients: usize,
}

/// A running load.
pub(crate) struct Load<'a> {
    proxy: SocketAddr,
    listener: &'a OwnedFd,
    plan: Plan,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    ends: Vec<Option<End>>,
    free: Vec<usize>,
    clients: usize,
    backends: usize,
    opening: usize,
    closing: bool,
    pace: Pace,
    /// Ends whose streams wait for their time, in turn.
    paused: VecDeque<usize>,
    /// What is sent, and where the kernel would put what it drops.
    bytes: Vec<u8>,
    recording: bool,
    /// Nanoseconds of what was completed while recording, unsorted.
    pub(crate) latencies: Vec<u64>,
    /// Connections, exchanges or bytes so far.
    pub(crate) units: u64,
    /// Clients' connections that failed, or ended early.
    pub(crate) errors: u64,
}

impl<'a> Load<'a> {
    /// Prepares `plan` against `proxy`, whose backend listens on `listener` (which must not block).
    pub(crate) fn new(proxy: SocketAddr, listener: &'a OwnedFd, plan: Plan) -> rustix::io::Result<Self> {
        let rate = if let Work::Stream { rate, .. } = plan.work { rate } else { 0 };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
        Ok(Self {
            proxy,
            listener,
            plan,
            epoll,
            events: Vec::with_capacity(512),
            ends: Vec::new(),
            free: Vec::new(),
            clients: 0,
            backends: 0,
            opening: 0,
            closing: false,
            pace: Pace::new(rate),
            paused: VecDeque::new(),
            bytes: vec![0xa5; CHUNK],
            recording: false,
            latencies: Vec::new(),
            units: 0,
            errors: 0,
        })
    }

    /// Runs for `time`, or until `done`; opens connections as the plan has them.
    pub(crate) fn run(&mut self, time: Duration, done: impl Fn(&Self) -> bool) -> rustix::io::Result<()> {
        let deadline = Instant::now() + time;
        let most = if matches!(self.plan.work, Work::Stream { .. }) { MOST_BYTES } else { MOST_TIMES };
        while Instant::now() < deadline && self.units < most && !done(self) {
            while !self.closing && self.clients < self.plan.clients && self.opening < OPENING {
                if self.connect().is_err() {
                    self.errors += 1;
                    break;
                }
            }
            self.turn()?;
        }
        Ok(())
    }

    pub(crate) fn record(&mut self) {
        self.recording = true;
    }

    /// Opens no more connections than are held.
    pub(crate) fn stop_opening(&mut self) {
        self.plan.clients = self.held();
    }

    /// Connections that are open and have had their first answer.
    pub(crate) fn held(&self) -> usize {
        self.clients - self.opening
    }

    /// Clients that have waited for an answer since before `when`.
    pub(crate) fn waiting_since(&self, when: Instant) -> usize {
        let late = |end: &&End| end.side == Side::Client && end.due != ENDLESS && end.since < when;
        self.ends.iter().flatten().filter(late).count()
    }

    /// Closes all clients and gives the proxy time to follow; says how many connections it then still had
    /// to the backend.
    pub(crate) fn close(&mut self) -> rustix::io::Result<usize> {
        self.closing = true;
        let streams = matches!(self.plan.work, Work::Stream { .. });
        for slot in &mut self.ends {
            let Some(end) = slot.take_if(|end| end.side == Side::Client) else { continue };
            if streams {
                // Nobody needs what is under way: a reset spares the proxy its delivery. If the option cannot
                // be set, the proxy works a moment longer.
                let _ = sockopt::set_socket_linger(&end.socket, Some(Duration::ZERO));
            }
        }
        self.clients = 0;
        self.opening = 0;
        self.run(DRAIN, |load| load.backends == 0)?;
        let left = self.backends;
        self.ends.clear();
        self.free.clear();
        self.paused.clear();
        self.backends = 0;
        Ok(left)
    }

    fn turn(&mut self) -> rustix::io::Result<()> {
        self.events.clear();
        let wait = if self.paused.is_empty() { WAIT } else { SHORT_WAIT };
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let events = std::mem::take(&mut self.events);
        for event in &events {
            match event.data.u64() {
                LISTENER => self.accept()?,
                number => self.drive(usize::try_from(number).unwrap_or(usize::MAX), event.flags),
            }
        }
        self.events = events;
        self.pace.forgive();
        for _ in 0..self.paused.len() {
            if !self.pace.allows() {
                break;
            }
            let Some(number) = self.paused.pop_front() else { break };
            if let Some(end) = self.ends.get_mut(number).and_then(Option::as_mut) {
                end.paused = false;
            }
            self.drive(number, epoll::EventFlags::OUT);
        }
        Ok(())
    }

    fn connect(&mut self) -> rustix::io::Result<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        match rustix::net::connect(&socket, &self.proxy) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let mut end = End::new(socket, Side::Client);
        end.hello = self.plan.hello.len();
        match self.plan.work {
            Work::Connect { answer } | Work::Exchange { answer, .. } | Work::Hold { answer } => {
                end.due = answer
            }
            Work::Stream { up, .. } => {
                end.open = true;
                end.owed = if up { ENDLESS } else { 0 };
            }
        }
        // On loopback the handshake is over when connect() returns.
        end.send(&self.plan.hello, &self.bytes, &mut self.pace)?;
        self.opening += usize::from(!end.open);
        self.clients += 1;
        self.register(end)
    }

    fn accept(&mut self) -> rustix::io::Result<()> {
        for _ in 0..OPENING {
            match rustix::net::accept_with(self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    sockopt::set_tcp_nodelay(&socket, true)?;
                    let mut end = End::new(socket, Side::Backend);
                    end.due = self.plan.hello.len() as u64;
                    self.backends += 1;
                    self.register(end)?;
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn register(&mut self, mut end: End) -> rustix::io::Result<()> {
        end.writes = end.to_send();
        let number = self.free.pop().unwrap_or_else(|| {
            self.ends.push(None);
            self.ends.len() - 1
        });
        epoll::add(&self.epoll, &end.socket, epoll::EventData::new_u64(number as u64), end.interest())?;
        if end.paused {
            self.paused.push_back(number);
        }
        if let Some(slot) = self.ends.get_mut(number) {
            *slot = Some(end);
        }
        Ok(())
    }

    fn drive(&mut self, number: usize, flags: epoll::EventFlags) {
        // An event of an end that was closed earlier in the same turn finds nothing, or another end, for which
        // it is one look too many.
        let Some(mut end) = self.ends.get_mut(number).and_then(Option::take) else { return };
        let stays = self.step(&mut end, flags).and_then(|stays| {
            if stays && end.writes != end.to_send() {
                end.writes = end.to_send();
                let data = epoll::EventData::new_u64(number as u64);
                epoll::modify(&self.epoll, &end.socket, data, end.interest())?;
            }
            Ok(stays)
        });
        if stays == Ok(true) {
            if end.paused && !self.paused.contains(&number) {
                self.paused.push_back(number);
            }
            if let Some(slot) = self.ends.get_mut(number) {
                *slot = Some(end);
            }
            return;
        }
        self.free.push(number);
        match end.side {
            Side::Client => {
                self.clients -= 1;
                self.opening -= usize::from(!end.open);
                self.errors += u64::from(stays.is_err());
            }
            Side::Backend => self.backends -= 1,
        }
    }

    /// Moves an end on by what its events allow; says whether it stays.
    fn step(&mut self, end: &mut End, flags: epoll::EventFlags) -> rustix::io::Result<bool> {
        use epoll::EventFlags as Flags;
        if flags.intersects(Flags::IN | Flags::HUP | Flags::ERR) {
            match end.discard(&mut self.bytes)? {
                None => {}
                Some(0) if end.side == Side::Client => return Err(Errno::CONNRESET),
                Some(0) => return Ok(false),
                Some(count) => {
                    if end.open && matches!(self.plan.work, Work::Stream { .. }) {
                        self.units += count;
                    }
                    if end.due == 0 && !self.complete(end)? {
                        return Ok(false);
                    }
                }
            }
        }
        end.send(&self.plan.hello, &self.bytes, &mut self.pace)?;
        Ok(true)
    }

    /// What was due has come: the backend answers, the client goes on. Says whether the end stays.
    fn complete(&mut self, end: &mut End) -> rustix::io::Result<bool> {
        let first = !std::mem::replace(&mut end.open, true);
        if end.side == Side::Backend {
            (end.owed, end.due) = match self.plan.work {
                Work::Connect { answer } | Work::Hold { answer } => (answer, ENDLESS),
                Work::Exchange { request, answer } => (end.owed + answer, request),
                Work::Stream { down, .. } => (if down { ENDLESS } else { 0 }, ENDLESS),
            };
            return Ok(true);
        }
        self.opening -= usize::from(first);
        match self.plan.work {
            Work::Connect { .. } => {
                self.completed(end);
                return Ok(false);
            }
            Work::Exchange { request, answer } => {
                if !first {
                    self.completed(end);
                }
                (end.owed, end.due, end.since) = (request, answer, Instant::now());
            }
            // More than the answer is a fault, and so is the end of the connection.
            Work::Hold { .. } if !first => return Err(Errno::PROTO),
            Work::Hold { .. } => end.due = 1,
            Work::Stream { .. } => end.due = ENDLESS,
        }
        Ok(true)
    }

    fn completed(&mut self, end: &End) {
        self.units += 1;
        if self.recording && self.latencies.len() < MOST_LATENCIES {
            self.latencies.push(u64::try_from(end.since.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
    }
}

#[cfg(test)]
mod tests;
