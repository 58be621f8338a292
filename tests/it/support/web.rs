//! Servers and clients of HTTP/1.1 that show every byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::SOON;
use super::backend::Backend;
use super::client::connect_from;

/// A server that keeps the requests that it received.
pub(crate) struct Web {
    pub(crate) backend: Backend,
    received: Arc<Mutex<Vec<Received>>>,
}

/// A request as a server received it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    /// The number of its connection.
    pub(crate) connection: usize,
    /// The head with its empty line.
    pub(crate) head: String,
    /// The body as it came, chunks and all.
    pub(crate) body: Vec<u8>,
}

/// An answer as a client received it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The head with its empty line, and those of the answers on the way before it.
    pub(crate) head: String,
    /// The body without chunks.
    pub(crate) body: Vec<u8>,
    /// What stood behind the last chunk.
    pub(crate) trailers: String,
}

/// A connection of a client, for one request after another.
pub(crate) struct Asking {
    pub(crate) stream: TcpStream,
    read: Vec<u8>,
}

impl Web {
    /// Answers each request with what `answer` gives, as it is; an answer with `connection: close` is the last.
    pub(crate) fn new(answer: impl Fn(&Received) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let received = Arc::new(Mutex::new(Vec::new()));
        let (kept, connections) = (Arc::clone(&received), AtomicUsize::new(0));
        let backend = Backend::new(move |stream| {
            let connection = connections.fetch_add(1, Ordering::SeqCst);
            let mut asking = Asking { stream, read: Vec::new() };
            while let Some(head) = asking.head() {
                let body = asking.body(&head);
                let request = Received { connection, head, body };
                kept.lock().unwrap().push(request.clone());
                let answer = answer(&request);
                let close = String::from_utf8_lossy(&answer).contains("connection: close\r\n");
                if asking.stream.write_all(&answer).is_err() || close {
                    return;
                }
            }
        });
        Self { backend, received }
    }

    /// Answers each request with 200 and this.
    pub(crate) fn saying(text: &str) -> Self {
        let answer = ok(text);
        Self::new(move |_| answer.clone())
    }

    /// The requests so far.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }
}

impl std::fmt::Display for Web {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.backend.fmt(f)
    }
}

/// An answer of 200 with this text.
pub(crate) fn ok(text: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len()).into_bytes()
}

impl Received {
    /// The lines of its head, sorted behind the first, without those of `Via`, `Forwarded` and the like.
    pub(crate) fn lines(&self) -> Vec<&str> {
        let mut lines = self.head.trim_end().split("\r\n");
        let first = lines.next().unwrap();
        let ours = ["via:", "forwarded:", "x-forwarded-", "x-real-ip:"];
        let mut rest: Vec<_> = lines.filter(|line| !ours.iter().any(|name| line.starts_with(name))).collect();
        rest.sort_unstable();
        [&[first], &*rest].concat()
    }

    /// The value of a field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.split("\r\n").find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

impl Answer {
    /// The value of a field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Asking {
    pub(crate) fn of(addr: SocketAddr) -> Self {
        let stream = connect_from(std::net::Ipv4Addr::LOCALHOST, addr);
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self { stream, read: Vec::new() }
    }

    /// Sends a request as it is and reads its answer.
    pub(crate) fn ask(&mut self, request: &str) -> Answer {
        self.stream.write_all(request.as_bytes()).unwrap();
        self.answer(request.starts_with("HEAD ")).expect("an answer")
    }

    /// Reads an answer; `None` when the stream ends before.
    pub(crate) fn answer(&mut self, to_head: bool) -> Option<Answer> {
        let mut before = String::new();
        loop {
            let head = self.head()?;
            let status: u16 = head.split(' ').nth(1)?.parse().ok()?;
            if (100..200).contains(&status) && status != 101 {
                before.push_str(&head);
                continue;
            }
            let bare = to_head || [101, 204, 304].contains(&status);
            let (body, trailers) = if bare { (Vec::new(), String::new()) } else { self.content(&head) };
            return Some(Answer { status, head: before + &head, body, trailers });
        }
    }

    fn fill(&mut self) -> bool {
        let mut chunk = [0; 65536];
        match self.stream.read(&mut chunk) {
            Ok(n @ 1..) => {
                self.read.extend_from_slice(&chunk[..n]);
                true
            }
            Ok(0) | Err(_) => false,
        }
    }

    /// The next head; `None` when the stream ends before.
    pub(crate) fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head: Vec<u8> = self.read.drain(..end + 4).collect();
                return Some(String::from_utf8(head).expect("a head of text"));
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// The body of a request as it comes.
    fn body(&mut self, head: &str) -> Vec<u8> {
        if let Some(length) = field(head, "content-length") {
            return self.exactly(length.parse().unwrap());
        }
        if field(head, "transfer-encoding").is_none() {
            return Vec::new();
        }
        loop {
            let end = self.read.windows(5).position(|bytes| bytes == b"0\r\n\r\n");
            // With fields behind the last chunk its end is the next empty line.
            let end = end.map(|at| at + 5).or_else(|| {
                let last = self.read.windows(3).position(|bytes| bytes == b"0\r\n")?;
                let rest = self.read[last..].windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
                Some(last + rest + 4)
            });
            if let Some(end) = end {
                return self.read.drain(..end).collect();
            }
            if !self.fill() {
                return std::mem::take(&mut self.read);
            }
        }
    }

    fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.read.len() < length && self.fill() {}
        let length = length.min(self.read.len());
        self.read.drain(..length).collect()
    }

    /// The body of an answer, without chunks, and its trailers.
    fn content(&mut self, head: &str) -> (Vec<u8>, String) {
        if let Some(length) = field(head, "content-length") {
            return (self.exactly(length.parse().unwrap()), String::new());
        }
        if field(head, "transfer-encoding").is_none() {
            while self.fill() {}
            return (std::mem::take(&mut self.read), String::new());
        }
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(self.line().trim(), 16).expect("the size of a chunk");
            if size == 0 {
                let mut trailers = String::new();
                loop {
                    match self.line() {
                        line if line.is_empty() => return (body, trailers),
                        line => trailers = trailers + &line + "\n",
                    }
                }
            }
            body.extend(self.exactly(size));
            assert_eq!(self.line(), "", "behind a chunk");
        }
    }

    fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.read.windows(2).position(|bytes| bytes == b"\r\n") {
                let line: Vec<u8> = self.read.drain(..end + 2).collect();
                return String::from_utf8(line[..end].to_vec()).unwrap();
            }
            assert!(self.fill(), "the stream ended within a line: {:?}", self.read);
        }
    }
}

impl Asking {
    /// A connection that was accepted.
    pub(crate) fn over(stream: TcpStream) -> Self {
        Self { stream, read: Vec::new() }
    }

    /// The head of the next request; its body is read, too.
    pub(crate) fn request(&mut self) -> Option<String> {
        let head = self.head()?;
        self.body(&head);
        Some(head)
    }

    /// What was read and belongs to nothing yet.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.read)
    }
}
