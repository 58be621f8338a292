//! A nameserver with a script: what no real one does. Messages are made byte by byte (RFC 1035 §4).

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::client::free_port;

/// How it answers a question for addresses of IPv4; of all others it says that there are none.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// With this address, after some time.
    Address(Ipv4Addr, Duration),
    /// With nothing.
    Silence,
    /// With the first address under another id, then with the second as it should.
    WrongId(Ipv4Addr, Ipv4Addr),
    /// With the first address from another port, then with the second as it should.
    WrongPort(Ipv4Addr, Ipv4Addr),
    /// With the first address for another name, then with the second as it should.
    WrongName(Ipv4Addr, Ipv4Addr),
    /// By UDP that there is more, by TCP with these addresses.
    Truncated(Vec<Ipv4Addr>),
    /// By UDP that there is more, and by TCP nothing.
    TruncatedForGood,
    /// With a record whose name leads to itself.
    PointerLoop,
    /// With a message that ends in the middle of a record.
    CutOff(Ipv4Addr),
    /// With the id and zeros, as many as fit.
    Zeros,
    /// That it has failed (SERVFAIL).
    Failure,
}

/// The server; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Nameserver {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    answer: Mutex<Answer>,
    stop: AtomicBool,
    queries: AtomicUsize,
    by_tcp: AtomicUsize,
    /// Queries that wait for their answer, and the most that did at once.
    waiting: AtomicUsize,
    most: AtomicUsize,
}

/// Types of records.
const A: u16 = 1;
/// What a message is told to be: an answer (QR), of an authority (AA).
const ANSWER: u16 = 0x8400;
const TRUNCATED: u16 = 0x0200;
const SERVFAIL: u16 = 2;

impl Nameserver {
    pub(crate) fn start(answer: Answer) -> Self {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let (udp, tcp) = (UdpSocket::bind(addr).unwrap(), TcpListener::bind(addr).unwrap());
        let shared = Arc::new(Shared {
            answer: Mutex::new(answer),
            stop: AtomicBool::new(false),
            queries: AtomicUsize::new(0),
            by_tcp: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        });
        let (by_udp, by_tcp) = (Arc::clone(&shared), Arc::clone(&shared));
        std::thread::spawn(move || by_udp.serve_udp(&udp));
        std::thread::spawn(move || by_tcp.serve_tcp(&tcp));
        Self { addr, shared }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on it answers so.
    pub(crate) fn set(&self, answer: Answer) {
        *self.shared.answer.lock().unwrap() = answer;
    }

    /// Questions for addresses of IPv4 so far, and how many of all questions came by TCP.
    pub(crate) fn queries(&self) -> (usize, usize) {
        (self.shared.queries.load(Ordering::SeqCst), self.shared.by_tcp.load(Ordering::SeqCst))
    }

    /// The most questions of all kinds that waited for their answer at once.
    pub(crate) fn most_at_once(&self) -> usize {
        self.shared.most.load(Ordering::SeqCst)
    }
}

impl Drop for Nameserver {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes both threads.
        let _ = std::net::TcpStream::connect(self.addr);
        let _ = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.send_to(&[], self.addr));
    }
}

impl Shared {
    fn serve_udp(self: &Arc<Self>, socket: &UdpSocket) {
        let mut packet = [0; 1500];
        loop {
            let (len, from) = socket.recv_from(&mut packet).unwrap();
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let query = packet[..len].to_vec();
            let (shared, socket) = (Arc::clone(self), socket.try_clone().unwrap());
            std::thread::spawn(move || shared.answer_udp(&query, &socket, from));
        }
    }

    fn answer_udp(&self, query: &[u8], socket: &UdpSocket, from: SocketAddr) {
        let waiting = self.waiting.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(waiting, Ordering::SeqCst);
        let answer = self.counted(query);
        if let Some(Answer::Address(_, delay)) = answer {
            std::thread::sleep(delay);
        }
        // Before the answer, after which there may be the next question.
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        if let Some(Answer::WrongPort(wrong, _)) = answer {
            let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            other.send_to(&message(query, ANSWER, &[wrong]), from).unwrap();
        }
        for reply in replies(query, answer) {
            socket.send_to(&reply, from).unwrap();
        }
    }

    fn serve_tcp(&self, listener: &TcpListener) {
        for stream in listener.incoming() {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let mut stream = stream.unwrap();
            // Both queries of a look-up come on one connection.
            let mut len = [0; 2];
            while stream.read_exact(&mut len).is_ok() {
                let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
                stream.read_exact(&mut query).unwrap();
                self.by_tcp.fetch_add(1, Ordering::SeqCst);
                let answer = match self.counted(&query) {
                    None => message(&query, ANSWER, &[]),
                    Some(Answer::Truncated(addresses)) => message(&query, ANSWER, &addresses),
                    Some(_) => break,
                };
                let mut framed = u16::try_from(answer.len()).unwrap().to_be_bytes().to_vec();
                framed.extend(answer);
                // The proxy may have given up on it.
                if stream.write_all(&framed).is_err() {
                    break;
                }
            }
        }
    }

    /// How to answer, if the question is for addresses of IPv4.
    fn counted(&self, query: &[u8]) -> Option<Answer> {
        let kind = question(query).iter().rev().nth(2).copied().map(u16::from);
        (kind == Some(A)).then(|| {
            self.queries.fetch_add(1, Ordering::SeqCst);
            self.answer.lock().unwrap().clone()
        })
    }
}

/// What is sent by UDP.
fn replies(query: &[u8], answer: Option<Answer>) -> Vec<Vec<u8>> {
    let with = |addresses: &[Ipv4Addr]| message(query, ANSWER, addresses);
    match answer {
        None => vec![with(&[])],
        Some(Answer::Silence) => vec![],
        Some(Answer::Address(ip, _) | Answer::WrongPort(_, ip)) => vec![with(&[ip])],
        Some(Answer::WrongId(wrong, right)) => {
            let mut other = with(&[wrong]);
            other[1] ^= 1;
            vec![other, with(&[right])]
        }
        Some(Answer::WrongName(wrong, right)) => {
            let mut other = with(&[wrong]);
            // The first letter of the question's first label.
            other[13] = if other[13] == b'x' { b'y' } else { b'x' };
            vec![other, with(&[right])]
        }
        Some(Answer::Truncated(_) | Answer::TruncatedForGood) => {
            vec![message(query, ANSWER | TRUNCATED, &[])]
        }
        Some(Answer::PointerLoop) => {
            let mut looped = with(&[Ipv4Addr::LOCALHOST]);
            let record = question(query).len() + 12;
            looped[record] = 0xc0;
            looped[record + 1] = u8::try_from(record).unwrap();
            vec![looped]
        }
        Some(Answer::CutOff(ip)) => {
            let whole = with(&[ip]);
            vec![whole[..whole.len() - 2].to_vec()]
        }
        Some(Answer::Zeros) => {
            let mut zeros = query[..2].to_vec();
            zeros.resize(1200, 0);
            vec![zeros]
        }
        Some(Answer::Failure) => vec![message(query, ANSWER | SERVFAIL, &[])],
    }
}

/// The question of a query: name, type, class.
fn question(query: &[u8]) -> &[u8] {
    let mut end = 12;
    while query[end] != 0 {
        end += usize::from(query[end]) + 1;
    }
    &query[12..end + 5]
}

/// An answer to `query` with these addresses, good for no time at all.
fn message(query: &[u8], flags: u16, addresses: &[Ipv4Addr]) -> Vec<u8> {
    let mut message = query[..2].to_vec();
    let count = u16::try_from(addresses.len()).unwrap();
    for word in [flags, 1, count, 0, 0] {
        message.extend(word.to_be_bytes());
    }
    message.extend(question(query));
    for ip in addresses {
        // The question's name, type A, class IN, TTL 0, four bytes.
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        message.extend(ip.octets());
    }
    message
}
