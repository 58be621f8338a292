//! `compare-floor`: passes connections on with the fewest system calls that do it correctly, and does nothing else:
//! no routing, no limits, no deadlines, no counters, no log. What it costs is what a proxy cannot go below;
//! it is no proxy for use.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, sockopt};

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);
const BACKLOG: i32 = 4096;
/// Connections accepted in a row.
const BATCH: usize = 32;
/// The listener's number among the events.
const LISTENER: u64 = u64::MAX;

/// One end of a connection.
struct End {
    socket: OwnedFd,
    /// Its other end; none before the first bytes.
    other: Option<usize>,
    ended: bool,
}

struct Floor {
    backend: SocketAddr,
    epoll: OwnedFd,
    ends: Vec<Option<End>>,
    /// Places of ends that are gone; free from the next turn on.
    free: Vec<usize>,
    gone: Vec<usize>,
    bytes: Vec<u8>,
}

fn main() -> std::io::Result<()> {
    let usage = || std::io::Error::other("usage: compare-floor LISTEN BACKEND");
    let mut words = std::env::args().skip(1);
    let mut address = || words.next().and_then(|word| word.parse::<SocketAddr>().ok()).ok_or_else(usage);
    let (listen, backend) = (address()?, address()?);
    let listener = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, FLAGS, None)?;
    sockopt::set_socket_reuseaddr(&listener, true)?;
    // Accepted sockets inherit it.
    sockopt::set_tcp_nodelay(&listener, true)?;
    rustix::net::bind(&listener, &listen)?;
    rustix::net::listen(&listener, BACKLOG)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let bytes = vec![0; 64 * 1024];
    let mut floor = Floor { backend, epoll, ends: Vec::new(), free: Vec::new(), gone: Vec::new(), bytes };
    let mut events = Vec::with_capacity(256);
    loop {
        match epoll::wait(&floor.epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events.drain(..) {
            match usize::try_from(event.data.u64()) {
                Ok(number) if event.data.u64() != LISTENER => floor.drive(number, event.flags),
                _ => floor.accept(&listener),
            }
        }
        floor.free.append(&mut floor.gone);
    }
}

impl Floor {
    fn accept(&mut self, listener: &OwnedFd) {
        for _ in 0..BATCH {
            let Ok(socket) = rustix::net::accept_with(listener, FLAGS) else { return };
            let number = self.insert(End { socket, other: None, ended: false });
            self.first(number);
            self.watch(number);
        }
    }

    fn insert(&mut self, end: End) -> usize {
        let number = self.free.pop().unwrap_or_else(|| {
            self.ends.push(None);
            self.ends.len() - 1
        });
        if let Some(slot) = self.ends.get_mut(number) {
            *slot = Some(end);
        }
        number
    }

    fn watch(&mut self, number: usize) {
        let Some(Some(end)) = self.ends.get(number) else { return };
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        // Not watched, the connection hangs, and the measurement says so.
        let _ = epoll::add(&self.epoll, &end.socket, EventData::new_u64(number as u64), flags);
    }

    /// Connects to the backend once the client has said something.
    fn first(&mut self, number: usize) {
        let Some(Some(end)) = self.ends.get_mut(number) else { return };
        let said = match rustix::net::recv(&end.socket, &mut *self.bytes, RecvFlags::empty()) {
            Ok((said, _)) if said > 0 => said,
            Err(Errno::AGAIN) => return,
            _ => return self.remove(number),
        };
        match self.connect(said) {
            Ok(socket) => {
                let other = self.insert(End { socket, other: Some(number), ended: false });
                if let Some(Some(end)) = self.ends.get_mut(number) {
                    end.other = Some(other);
                }
                self.watch(other);
            }
            Err(_) => self.remove(number),
        }
    }

    fn connect(&self, said: usize) -> rustix::io::Result<OwnedFd> {
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, FLAGS, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        // The acknowledgement that ends the handshake travels with the first bytes.
        sockopt::set_tcp_quickack(&socket, false)?;
        match rustix::net::connect(&socket, &self.backend) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        rustix::net::send(&socket, self.bytes.get(..said).unwrap_or_default(), SendFlags::NOSIGNAL)?;
        Ok(socket)
    }

    fn drive(&mut self, number: usize, flags: EventFlags) {
        let Some(Some(end)) = self.ends.get(number) else { return };
        let Some(other) = end.other else { return self.first(number) };
        while self.pass(number, other) && flags.contains(EventFlags::RDHUP) {}
    }

    /// Passes on what there is; says whether there may be more.
    fn pass(&mut self, number: usize, other: usize) -> bool {
        let Ok([Some(from), Some(to)]) = self.ends.get_disjoint_mut([number, other]) else { return false };
        match rustix::net::recv(&from.socket, &mut *self.bytes, RecvFlags::empty()) {
            Ok((0, _)) if !to.ended => {
                from.ended = true;
                let _ = rustix::net::shutdown(&to.socket, Shutdown::Write);
                false
            }
            Ok((count @ 1.., _)) => {
                // What does not fit is lost: the loads that this is for always fit.
                let bytes = self.bytes.get(..count).unwrap_or_default();
                rustix::net::send(&to.socket, bytes, SendFlags::NOSIGNAL) == Ok(count)
            }
            Err(Errno::AGAIN) => false,
            _ => {
                self.remove(number);
                self.remove(other);
                false
            }
        }
    }

    fn remove(&mut self, number: usize) {
        if self.ends.get_mut(number).is_some_and(|slot| slot.take().is_some()) {
            self.gone.push(number);
        }
    }
}
