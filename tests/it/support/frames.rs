//! A peer of HTTP/2 that says whatever it is told, frame by frame (RFC 9113 §4): also what no library would.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::SOON;
use super::client::connect;

/// Kinds of frames.
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
/// Flags: of the end of a stream (of settings and pings: that they answer), and of the end of a head.
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
/// A head that is the whole request.
pub(crate) const WHOLE: u8 = END_STREAM | END_HEADERS;

/// What a client begins with, beside its settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// What became of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// An answer of this status, whole.
    Answer(u16),
    /// It was reset for this reason.
    Reset(u32),
    /// The connection was ended for this reason.
    GoAway(u32),
    /// The connection was closed.
    Closed,
}

/// A connection in clear.
#[derive(Debug)]
pub(crate) struct Frames {
    pub(crate) stream: TcpStream,
    read: Vec<u8>,
}

/// A frame as it is sent.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field that no table keeps (RFC 7541 §6.2.2).
pub(crate) fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0][..], &string(name), &string(value)].concat()
}

/// A field that becomes the first of the table, which `0xbe` stands for (RFC 7541 §6.2.1).
pub(crate) fn kept_field(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0x40][..], &string(name), &string(value)].concat()
}

fn string(bytes: &[u8]) -> Vec<u8> {
    let mut coded = Vec::new();
    if bytes.len() < 127 {
        coded.push(bytes.len() as u8);
    } else {
        coded.push(127);
        let mut left = bytes.len() - 127;
        while left >= 128 {
            coded.push((left % 128) as u8 | 128);
            left /= 128;
        }
        coded.push(left as u8);
    }
    [coded, bytes.to_vec()].concat()
}

/// The head of a request for `x.test`.
pub(crate) fn head(method: &str, path: &str) -> Vec<u8> {
    let fields = [(":method", method), (":scheme", "http"), (":authority", "x.test"), (":path", path)];
    fields.iter().flat_map(|(name, value)| field(name.as_bytes(), value.as_bytes())).collect()
}

/// The same with one more field.
pub(crate) fn head_with(name: &str, value: &str) -> Vec<u8> {
    [head("GET", "/"), field(name.as_bytes(), value.as_bytes())].concat()
}

impl Frame {
    /// The number that it ends with, or that a reset is for.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    fn is_answer(&self) -> bool {
        self.flags & END_STREAM != 0
    }

    /// The status of an answer, which comes first in its head.
    pub(crate) fn status(&self) -> u16 {
        match self.payload[0] {
            indexed @ 0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
            0x48 => digits(&self.payload[2..2 + usize::from(self.payload[1] & 0x7f)]),
            other => panic!("no status: {other:#x}"),
        }
    }
}

/// Three digits of Huffman's code for HPACK: 0 to 2 have five bits, the others six.
fn digits(coded: &[u8]) -> u16 {
    let bits: Vec<u16> =
        coded.iter().flat_map(|byte| (0..8).rev().map(move |bit| u16::from(byte >> bit & 1))).collect();
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let take = |n: usize| bits[at..at + n].iter().fold(0, |value, bit| value * 2 + bit);
        let (digit, n) = if take(5) < 3 { (take(5), 5) } else { (take(6) - 0x19 + 3, 6) };
        number = number * 10 + digit;
        at += n;
    }
    number
}

impl Frames {
    /// A client that has said its preface.
    pub(crate) fn to(addr: SocketAddr) -> Self {
        Self::with_settings(addr, &[])
    }

    /// The same with settings of its own.
    pub(crate) fn with_settings(addr: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut frames = Self::over(connect(addr));
        let settings: Vec<u8> = settings
            .iter()
            .flat_map(|(key, value)| [&key.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        frames.send(&[PREFACE, &frame(SETTINGS, 0, 0, &settings)].concat());
        frames
    }

    /// A server for a client that was accepted; its settings are told.
    pub(crate) fn serving(stream: TcpStream) -> Self {
        let mut frames = Self::over(stream);
        frames.stream.read_exact(&mut [0; PREFACE.len()]).unwrap();
        frames.send(&frame(SETTINGS, 0, 0, &[]));
        frames
    }

    /// The same connection, for another thread to read it.
    pub(crate) fn over_clone(other: &Self) -> Self {
        Self::over(other.stream.try_clone().unwrap())
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        Self { stream, read: Vec::new() }
    }

    /// Sends these; whether they were taken.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// The next frame; `None` at the end, however it comes.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(head) = self.read.first_chunk::<9>() {
                let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
                if self.read.len() >= 9 + length {
                    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                    let (kind, flags) = (head[3], head[4]);
                    let payload = self.read.drain(..9 + length).skip(9).collect();
                    return Some(Frame { kind, flags, stream, payload });
                }
            }
            let mut part = [0; 16384];
            match self.stream.read(&mut part) {
                Ok(0) => return None,
                Ok(n) => self.read.extend_from_slice(&part[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("nothing comes"),
                Err(_) => return None,
            }
        }
    }

    /// The next frame of a kind.
    pub(crate) fn next_of(&mut self, kind: u8) -> Option<Frame> {
        std::iter::from_fn(|| self.next()).find(|frame| frame.kind == kind)
    }

    /// What becomes of a stream.
    pub(crate) fn seen(&mut self, stream: u32) -> Seen {
        let mut status = 0;
        while let Some(frame) = self.next() {
            match frame.kind {
                GOAWAY => return Seen::GoAway(frame.code()),
                RST_STREAM if frame.stream == stream => return Seen::Reset(frame.code()),
                HEADERS | DATA if frame.stream == stream => {
                    if frame.kind == HEADERS && status == 0 {
                        status = frame.status();
                    }
                    if frame.is_answer() {
                        return Seen::Answer(status);
                    }
                }
                _ => {}
            }
        }
        Seen::Closed
    }

    /// Whether a ping is answered; if not, the connection is over.
    pub(crate) fn pings(&mut self) -> bool {
        const OURS: &[u8] = b"are you?";
        self.send(&frame(PING, 0, 0, OURS));
        while let Some(frame) = self.next() {
            match frame.kind {
                PING if frame.payload == OURS => return true,
                GOAWAY => return false,
                _ => {}
            }
        }
        false
    }
}
