//! Backends with a script.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use socket2::SockRef;

/// A TCP server that serves each connection on a thread; it stops accepting when dropped.
#[derive(Debug)]
pub(crate) struct Backend {
    listener: TcpListener,
    addr: SocketAddr,
    hits: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

/// A tagged backend that keeps what it received, one entry a finished connection.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) backend: Backend,
    received: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// A tagged backend on a Unix socket.
#[derive(Debug)]
pub(crate) struct UnixBackend {
    path: PathBuf,
    hits: Arc<AtomicUsize>,
}

impl Backend {
    /// Serves every connection by `serve`.
    pub(crate) fn new(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), serve)
    }

    pub(crate) fn at(addr: SocketAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(addr).unwrap_or_else(|error| panic!("{addr}: {error}"));
        let addr = listener.local_addr().unwrap();
        let hits = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (counter, stopped, serve) = (Arc::clone(&hits), Arc::clone(&stop), Arc::new(serve));
        let accepting = listener.try_clone().unwrap();
        std::thread::spawn(move || {
            for stream in accepting.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.unwrap();
                stream.set_nodelay(true).unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                let serve = Arc::clone(&serve);
                let thread = std::thread::Builder::new().stack_size(256 * 1024);
                thread.spawn(move || serve(stream)).unwrap();
            }
        });
        Self { listener, addr, hits, stop }
    }

    /// Answers with its tag, then sends back whatever comes, until the client's FIN.
    pub(crate) fn tagged(tag: &str) -> Self {
        Self::tagged_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), tag)
    }

    pub(crate) fn tagged_at(addr: SocketAddr, tag: &str) -> Self {
        let tag = tag.to_owned();
        Self::at(addr, move |mut stream| {
            echo(&tag, &mut stream.try_clone().unwrap(), &mut stream);
            let _ = stream.shutdown(Shutdown::Write);
        })
    }

    /// Answers a line with its tag and the line, and ends.
    pub(crate) fn of_lines(tag: &str) -> Self {
        let tag = tag.to_owned();
        Self::new(move |mut stream| {
            let mut line = Vec::new();
            let mut byte = [0];
            while !line.ends_with(b"\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                line.push(byte[0]);
            }
            if line.ends_with(b"\n") {
                // Who has gone does not want it.
                let _ = stream.write_all(&[format!("tag:{tag}\n").as_bytes(), &line].concat());
            }
            let _ = stream.shutdown(Shutdown::Write);
        })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Connections so far.
    pub(crate) fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts, also when its address cannot be reached from here.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.addr.fmt(f)
    }
}

impl Recorder {
    pub(crate) fn new(tag: &str) -> Self {
        let received = Arc::new(Mutex::new(Vec::new()));
        let (sink, tag) = (Arc::clone(&received), tag.to_owned());
        let backend = Backend::new(move |mut stream| {
            let bytes = echo(&tag, &mut stream.try_clone().unwrap(), &mut stream);
            sink.lock().unwrap().push(bytes);
            let _ = stream.shutdown(Shutdown::Write);
        });
        Self { backend, received }
    }

    pub(crate) fn received(&self) -> Vec<Vec<u8>> {
        self.received.lock().unwrap().clone()
    }
}

impl UnixBackend {
    pub(crate) fn tagged(path: &Path, tag: &str) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let hits = Arc::new(AtomicUsize::new(0));
        let (counter, tag) = (Arc::clone(&hits), tag.to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream: UnixStream = stream.unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                let tag = tag.clone();
                std::thread::spawn(move || {
                    echo(&tag, &mut stream.try_clone().unwrap(), &mut stream);
                    let _ = stream.shutdown(Shutdown::Write);
                });
            }
        });
        Self { path: path.to_owned(), hits }
    }

    pub(crate) fn to(&self) -> String {
        format!("unix:{}", self.path.display())
    }

    pub(crate) fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }
}

/// Tag, then everything back; gives what came. Faults of the connection end it: the client tells.
fn echo(tag: &str, reader: &mut impl Read, writer: &mut impl Write) -> Vec<u8> {
    let mut received = Vec::new();
    let mut chunk = vec![0; 16384];
    if writer.write_all(format!("tag:{tag}\n").as_bytes()).is_err() {
        return received;
    }
    while let Ok(n @ 1..) = reader.read(&mut chunk) {
        received.extend_from_slice(&chunk[..n]);
        if writer.write_all(&chunk[..n]).is_err() {
            break;
        }
    }
    received
}
