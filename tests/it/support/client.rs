//! Clients that look closely at how a connection ends.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use super::SOON;

/// How a peer's bytes ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// FIN.
    Eof,
    /// RST.
    Reset,
    /// Not at all within the time given.
    Open,
}

/// What came in before the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) bytes: Vec<u8>,
    pub(crate) end: End,
}

/// What became of a connection, as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The backend with this tag answered.
    Served(String),
    /// A fatal TLS alert of this description, then the end of the stream.
    Alert(u8),
    /// The end of the stream without a byte.
    Closed,
    /// A reset without a byte.
    Reset,
    /// Nothing for as long as was waited.
    Open,
    /// Anything else.
    Other(Reply),
}

/// A connection from 127.0.0.1.
pub(crate) fn connect(addr: SocketAddr) -> TcpStream {
    connect_from(Ipv4Addr::LOCALHOST, addr)
}

/// A connection from some address of 127.0.0.0/8.
pub(crate) fn connect_from(source: Ipv4Addr, addr: SocketAddr) -> TcpStream {
    try_connect(source, addr).unwrap_or_else(|error| panic!("{source} to {addr}: {error}"))
}

/// The same where the connection may be refused as soon as it is there.
pub(crate) fn try_connect(source: Ipv4Addr, addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    if source != Ipv4Addr::LOCALHOST {
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    socket.connect_timeout(&addr.into(), SOON)?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Closes with RST.
pub(crate) fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Reads until the end, or until nothing came for `quiet`.
pub(crate) fn read_to_end(stream: &mut TcpStream, quiet: Duration) -> Reply {
    read_while(stream, quiet, |_| true)
}

/// Reads as long as `more` says, until the end, or until nothing came for `quiet`.
pub(crate) fn read_while(stream: &mut TcpStream, quiet: Duration, more: impl Fn(&[u8]) -> bool) -> Reply {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 65536];
    stream.set_read_timeout(Some(quiet)).unwrap();
    while more(&bytes) {
        match stream.read(&mut chunk) {
            Ok(0) => return Reply { bytes, end: End::Eof },
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock | ErrorKind::TimedOut => return Reply { bytes, end: End::Open },
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                    return Reply { bytes, end: End::Reset };
                }
                _ => panic!("read: {error}"),
            },
        }
    }
    Reply { bytes, end: End::Open }
}

/// Sends `chunks` one by one with a short pause between them, then FIN, and reads the whole answer.
pub(crate) fn exchange(addr: SocketAddr, chunks: &[&[u8]]) -> Reply {
    let mut stream = connect(addr);
    let mut written = Ok(());
    for (index, chunk) in chunks.iter().enumerate() {
        if index > 0 {
            // Nothing tells a client that its peer has read: the pause makes two reads of two segments.
            std::thread::sleep(Duration::from_millis(2));
        }
        written = stream.write_all(chunk);
        if written.is_err() {
            break;
        }
    }
    // Fails when the proxy has reset the connection already; the read tells.
    let _ = stream.shutdown(Shutdown::Write);
    end_told_by(&written, read_to_end(&mut stream, SOON))
}

/// A reset is told once: when the write got to know of it, the read after it sees the end of the stream.
fn end_told_by(written: &io::Result<()>, mut reply: Reply) -> Reply {
    let reset = written.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
    if reset && reply.end == End::Eof {
        reply.end = End::Reset;
    }
    reply
}

/// Sends `bytes`, stays open, and says what became of the connection within ten seconds.
pub(crate) fn probe(addr: SocketAddr, bytes: &[u8]) -> Outcome {
    probe_from(Ipv4Addr::LOCALHOST, addr, bytes)
}

/// The same from some address of 127.0.0.0/8.
pub(crate) fn probe_from(source: Ipv4Addr, addr: SocketAddr, bytes: &[u8]) -> Outcome {
    match try_connect(source, addr) {
        Ok(mut stream) => outcome(&mut stream, bytes, SOON),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Outcome::Reset,
        Err(error) => panic!("{source} to {addr}: {error}"),
    }
}

/// Sends `bytes` on an open connection and says what became of it.
pub(crate) fn outcome(stream: &mut TcpStream, bytes: &[u8], quiet: Duration) -> Outcome {
    // Fails on connections refused at accept.
    let written = stream.write_all(bytes);
    let reply = end_told_by(&written, read_while(stream, quiet, |bytes| tag(bytes).is_none()));
    match (tag(&reply.bytes), reply.end, reply.bytes.as_slice()) {
        (Some(tag), _, _) => Outcome::Served(tag),
        (None, End::Eof, []) => Outcome::Closed,
        (None, End::Reset, []) => Outcome::Reset,
        (None, End::Open, []) => Outcome::Open,
        (None, End::Eof, [21, 3, _, 0, 2, 2, description]) => Outcome::Alert(*description),
        _ => Outcome::Other(reply),
    }
}

/// The tag that a backend's answer begins with, once it is whole.
pub(crate) fn tag(bytes: &[u8]) -> Option<String> {
    let rest = bytes.strip_prefix(b"tag:")?;
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    Some(String::from_utf8_lossy(&rest[..end]).into_owned())
}

/// The outcome of being served by the backend with this tag.
pub(crate) fn served(tag: &str) -> Outcome {
    Outcome::Served(tag.to_owned())
}

/// A connection that a tagged backend has answered, kept open.
pub(crate) fn held(source: Ipv4Addr, addr: SocketAddr, hello: &[u8]) -> TcpStream {
    let mut stream = connect_from(source, addr);
    let got = outcome(&mut stream, hello, SOON);
    assert!(matches!(got, Outcome::Served(_)), "{got:?}");
    stream
}

/// How long `work` took, and what it gave.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let value = work();
    (start.elapsed(), value)
}

/// 127.0.0.`last`.
pub(crate) fn loopback(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, last)
}

/// A port that is free on all addresses, for programs that cannot be told to choose one. The kernel gives no such
/// port to anybody else (ip_local_port_range begins at 32,768), and other tests have theirs.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const PORTS: u32 = 20_000;
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(next < PORTS, "no port is free");
        let port = 10_000 + (std::process::id().wrapping_mul(97) + next) % PORTS;
        let port = u16::try_from(port).unwrap();
        if std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}
