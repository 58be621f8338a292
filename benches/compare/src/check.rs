//! Does the proxy pass bytes as they are? Asked before anything is measured, with plain blocking sockets.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

/// How long a proxy may take until it serves.
const START: Duration = Duration::from_secs(15);
/// Between two attempts while it does not.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a connection to the backend, or any read or write after it, may take. On loopback that is long.
const PATIENCE: Duration = Duration::from_secs(3);
const ECHOED: usize = 1024 * 1024;
/// Bytes of the answer to a client that has ended its own stream: more than fits a proxy's buffer.
const ANSWER: usize = 300_000;

/// The proxy and the backend behind it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path<'a> {
    pub(crate) proxy: SocketAddr,
    pub(crate) listener: &'a OwnedFd,
    pub(crate) hello: &'a [u8],
}

impl Path<'_> {
    /// Waits until a connection through the proxy reaches the backend.
    pub(crate) fn wait(&self) -> io::Result<()> {
        let deadline = Instant::now() + START;
        loop {
            let attempt = self.client().and_then(|client| {
                self.accept(Duration::from_millis(500))?;
                Ok(client)
            });
            match attempt {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }

    /// 1 MiB comes back as it was sent, and the hello before it.
    pub(crate) fn echo(&self) -> io::Result<()> {
        let sent = [self.hello, &pattern(ECHOED)].concat();
        let mut client = self.client()?;
        let (mut reader, mut backend) = (client.try_clone()?, self.accept(PATIENCE)?);
        thread::scope(|scope| {
            scope.spawn(move || io::copy(&mut backend.try_clone()?, &mut backend));
            let rest = sent.get(self.hello.len()..).unwrap_or_default();
            let writer = scope.spawn(move || client.write_all(rest).map(|()| client));
            let mut back = vec![0; sent.len()];
            let read = reader.read_exact(&mut back);
            // Also when reading failed: it ends the backend's copying.
            reader.shutdown(Shutdown::Both).or_else(|error| match error.kind() {
                io::ErrorKind::NotConnected => Ok(()),
                _ => Err(error),
            })?;
            writer.join().map_err(|_| io::Error::other("the writer panicked"))??;
            read?;
            if back == sent { Ok(()) } else { Err(io::Error::other("other bytes came back")) }
        })
    }

    /// A client that has ended its stream still gets the answer, whole and with its end.
    pub(crate) fn half_close(&self) -> io::Result<()> {
        let mut client = self.client()?;
        let mut backend = self.accept(PATIENCE)?;
        client.shutdown(Shutdown::Write)?;
        let answer = pattern(ANSWER);
        thread::scope(|scope| {
            let answer = &answer;
            let asked = scope.spawn(move || {
                let mut got = Vec::new();
                backend.read_to_end(&mut got)?;
                backend.write_all(answer)?;
                io::Result::Ok(got)
            });
            let mut got = Vec::new();
            let read = client.read_to_end(&mut got);
            drop(client);
            let asked = asked.join().map_err(|_| io::Error::other("the backend panicked"))??;
            if asked != self.hello {
                return Err(io::Error::other("the backend did not get the hello"));
            }
            read?;
            if got == *answer {
                return Ok(());
            }
            Err(io::Error::other(format!("{} of {ANSWER} bytes arrived", got.len())))
        })
    }

    /// A connection to the proxy that has sent its hello.
    fn client(&self) -> io::Result<TcpStream> {
        let mut client = TcpStream::connect_timeout(&self.proxy, PATIENCE)?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.set_write_timeout(Some(PATIENCE))?;
        client.write_all(self.hello)?;
        Ok(client)
    }

    fn accept(&self, patience: Duration) -> io::Result<TcpStream> {
        let patience = Timespec::try_from(patience).map_err(io::Error::other)?;
        let mut listener = [PollFd::new(self.listener, PollFlags::IN)];
        if rustix::event::poll(&mut listener, Some(&patience))? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no connection reached the backend"));
        }
        let backend = TcpStream::from(rustix::net::accept(self.listener)?);
        backend.set_read_timeout(Some(PATIENCE))?;
        backend.set_write_timeout(Some(PATIENCE))?;
        Ok(backend)
    }
}

/// Bytes whose order shows: no two runs of 256 are alike.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| at.to_le_bytes().iter().fold(0x5a, |sum: u8, byte| sum.rotate_left(3) ^ byte))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Copies both ways between each client and the backend; ends both when `whole` is not set and one ends.
    fn forward(listener: &TcpListener, backend: SocketAddr, connections: usize, whole: bool) {
        for _ in 0..connections {
            let (client, _) = listener.accept().unwrap();
            let server = TcpStream::connect(backend).unwrap();
            for (mut from, mut to) in [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server.try_clone().unwrap(), client.try_clone().unwrap()),
            ] {
                thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                    if !whole {
                        let _ = from.shutdown(Shutdown::Both);
                    }
                });
            }
        }
    }

    #[test]
    fn a_forwarder_passes_and_one_that_drops_answers_does_not() {
        let backend = TcpListener::bind("127.0.0.1:0").unwrap();
        let backend_address = backend.local_addr().unwrap();
        backend.set_nonblocking(true).unwrap();
        let listener = OwnedFd::from(backend);
        for (whole, delivered) in [(true, true), (false, false)] {
            let front = TcpListener::bind("127.0.0.1:0").unwrap();
            let proxy = front.local_addr().unwrap();
            let forwarder = thread::spawn(move || forward(&front, backend_address, 3, whole));
            let path = Path { proxy, listener: &listener, hello: &pattern(234) };
            path.wait().unwrap();
            path.echo().unwrap();
            assert_eq!(path.half_close().is_ok(), delivered);
            forwarder.join().unwrap();
        }
    }
}
