//! Refusing a connection: in the client's protocol, by its end, or not at all.

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use super::record::ConnRecord;
use super::termination::Termination;
use crate::config::RejectWith;
use crate::net::{Direction, Meter, Scratch, Timer, hide_close, reset_on_close};
use crate::peek::{Preface, Protocol};
use crate::prelude::{self, Why};
use crate::tls::End;

/// How long, and for how many reads, a refused client may go on sending. Closing while its bytes come in
/// would reset the connection and take what it is told away before it is read.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 16);

/// Alert descriptions (RFC 8446 §6).
pub(super) mod alert {
    pub(in crate::conn) const UNEXPECTED_MESSAGE: u8 = 10;
    pub(in crate::conn) const ILLEGAL_PARAMETER: u8 = 47;
    pub(in crate::conn) const DECODE_ERROR: u8 = 50;
    pub(in crate::conn) const INTERNAL_ERROR: u8 = 80;
    pub(in crate::conn) const UNRECOGNIZED_NAME: u8 = 112;
    pub(in crate::conn) const NO_APPLICATION_PROTOCOL: u8 = 120;
}

/// What a client of HTTP/1 is told when no backend can be reached (RFC 9110 §15.6.4), in two parts: to HEAD the answer ends
/// with its header.
mod unavailable {
    pub(super) const HEAD: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\n\
        Content-Length: 26\r\nConnection: close\r\n\r\n";
    pub(super) const WHOLE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\n\
        Content-Length: 26\r\nConnection: close\r\n\r\nno backend can be reached\n";
}

/// What a client of HTTP/1 is told where it is not served in clear.
const NOT_HERE: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 35\r\n\
    Connection: close\r\n\r\nnot served here without TLS: https?\n";

/// The same in HTTP/2: empty SETTINGS, as must be first of all, and GOAWAY, by which no stream was processed: clients know that
/// they may send their requests again elsewhere (RFC 9113 §3.4, §6.8). With NO_ERROR they go on by that; any other code
/// is an error of the whole session to many of them.
const GO_AWAY: &[u8] = &[
    0, 0, 0, 4, 0, 0, 0, 0, 0, // SETTINGS
    0, 0, 8, 7, 0, 0, 0, 0, 0, // GOAWAY
    0, 0, 0, 0, // the last stream processed: none
    0, 0, 0, 0, // NO_ERROR
];

/// What a refused client gets to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A fatal TLS alert with this description, then the end of the stream.
    Alert(u8),
    /// An answer in a protocol other than TLS, then the end of the stream.
    Answer(Cow<'static, [u8]>),
    /// The end of the stream.
    Close,
    /// A reset.
    Reset,
    /// Nothing.
    Drop,
}

impl Refusal {
    /// What `with` means for such a client that is refused for this reason: in clear with these words for what it said.
    pub(super) fn new(
        with: RejectWith,
        preface: &Preface,
        (words, said): (Why, &[u8]),
        why: Termination,
    ) -> Self {
        let tls = preface.hello().is_some();
        match with {
            RejectWith::Answer | RejectWith::Alert if tls => Self::Alert(why.alert()),
            RejectWith::Answer => Self::in_words(preface.protocol(), words, said),
            RejectWith::Alert | RejectWith::Close => Self::Close,
            RejectWith::Reset => Self::Reset,
            RejectWith::Drop => Self::Drop,
        }
    }

    /// What a client of the protocol that has `said` so much is told in clear.
    pub(super) fn in_words(protocol: Protocol, why: Why, said: &[u8]) -> Self {
        match protocol {
            Protocol::Http if why == Why::NoBackend => {
                let head = said.starts_with(b"HEAD ");
                Self::Answer(Cow::Borrowed(if head { unavailable::HEAD } else { unavailable::WHOLE }))
            }
            Protocol::Http => Self::Answer(Cow::Borrowed(NOT_HERE)),
            Protocol::H2c => Self::Answer(Cow::Borrowed(GO_AWAY)),
            protocol => match prelude::refusal(protocol, why, said) {
                words if words.is_empty() => Self::Close,
                words => Self::Answer(words),
            },
        }
    }

    /// What such a client that has `said` so much is told when no backend can be reached.
    pub(super) fn unavailable(preface: &Preface, said: &[u8]) -> Self {
        if preface.hello().is_some() {
            return Self::Alert(alert::INTERNAL_ERROR);
        }
        Self::in_words(preface.protocol(), Why::NoBackend, said)
    }
}

/// Refuses the connection; takes at most a second.
pub(super) async fn refuse(
    stream: impl Into<End>,
    refusal: Refusal,
    record: &ConnRecord,
    scratch: &Scratch,
    timer: &mut Timer<'_>,
) {
    let (stream, until) = (stream.into(), timer.now() + LINGER.0);
    match refusal {
        Refusal::Alert(description) => {
            // A record of type alert, version 1.2 as before any negotiation, level fatal (RFC 8446 §5.1).
            let alert = [21, 3, 3, 0, 2, 2, description];
            let _ = timer.timeout_at(until, say_and_linger(stream, &alert, record, scratch)).await;
        }
        Refusal::Answer(answer) => {
            let _ = timer.timeout_at(until, say_and_linger(stream, &answer, record, scratch)).await;
        }
        Refusal::Close => {}
        Refusal::Reset => reset_on_close(stream.socket()),
        Refusal::Drop => hide_close(stream.socket(), record.peer()),
    }
}

async fn say_and_linger(
    mut stream: End,
    words: &[u8],
    record: &ConnRecord,
    scratch: &Scratch,
) -> io::Result<()> {
    let meter = record.meter();
    stream.write_all(words).await?;
    stream.flush().await?;
    meter.written(Direction::Down, words.len(), false);
    stream.shutdown().await?;
    for _ in 0..LINGER.1 {
        let read = poll_fn(|cx| {
            scratch.with(|scratch| {
                let mut buf = ReadBuf::new(scratch);
                Pin::new(&mut stream).poll_read(cx, &mut buf).map_ok(|()| buf.filled().len())
            })
        });
        match read.await? {
            0 => break,
            n => meter.read(Direction::Up, n),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_told_is_that_of_the_body() {
        let body = unavailable::WHOLE.strip_prefix(unavailable::HEAD).unwrap();
        let told = format!("\r\nContent-Length: {}\r\n", body.len());
        assert!(String::from_utf8_lossy(unavailable::HEAD).contains(&told), "{told}");
    }
}
