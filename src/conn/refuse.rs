//! Refusing a connection: in the client's protocol, by its end, or not at all.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use super::record::ConnRecord;
use crate::config::RejectWith;
use crate::net::{Direction, Meter, Scratch, Socket, Timer, hide_close, reset_on_close};

/// How long, and for how many reads, a refused client may go on sending. Closing while its bytes come in
/// would reset the connection and take the alert away before it is read.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 16);

/// Alert descriptions (RFC 8446 §6).
pub(super) mod alert {
    pub(in crate::conn) const UNEXPECTED_MESSAGE: u8 = 10;
    pub(in crate::conn) const ILLEGAL_PARAMETER: u8 = 47;
    pub(in crate::conn) const DECODE_ERROR: u8 = 50;
    pub(in crate::conn) const INTERNAL_ERROR: u8 = 80;
    pub(in crate::conn) const UNRECOGNIZED_NAME: u8 = 112;
}

/// What a refused client gets to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A fatal TLS alert with this description, then the end of the stream.
    Alert(u8),
    /// The end of the stream.
    Close,
    /// A reset.
    Reset,
    /// Nothing.
    Drop,
}

impl Refusal {
    /// What `with` means for a client that speaks TLS, or does not.
    pub(super) fn new(with: RejectWith, tls: bool) -> Self {
        match with {
            RejectWith::Alert if tls => Self::Alert(alert::UNRECOGNIZED_NAME),
            RejectWith::Alert | RejectWith::Close => Self::Close,
            RejectWith::Reset => Self::Reset,
            RejectWith::Drop => Self::Drop,
        }
    }
}

/// Refuses the connection; takes at most a second.
pub(super) async fn refuse(
    stream: Socket,
    refusal: Refusal,
    record: &ConnRecord,
    scratch: &Scratch,
    timer: &mut Timer<'_>,
) {
    match refusal {
        Refusal::Alert(description) => {
            // A record of type alert, version 1.2 as before any negotiation, level fatal (RFC 8446 §5.1).
            let alert = [21, 3, 3, 0, 2, 2, description];
            let until = timer.now() + LINGER.0;
            let _ = timer.timeout_at(until, say_and_linger(stream, &alert, record, scratch)).await;
        }
        Refusal::Close => {}
        Refusal::Reset => reset_on_close(&stream),
        Refusal::Drop => hide_close(&stream, record.peer()),
    }
}

async fn say_and_linger(
    mut stream: Socket,
    alert: &[u8],
    record: &ConnRecord,
    scratch: &Scratch,
) -> io::Result<()> {
    let meter = record.meter();
    stream.write_all(alert).await?;
    meter.written(Direction::Down, alert.len(), false);
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
