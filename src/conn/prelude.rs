//! What a connection begins with: its first bytes, or where TLS begins within another protocol, all that is said up to there; and the
//! same played to its backend.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::context::Context;
use super::peek::{First, Limits, PeekError, read_more, read_preface};
use super::record::ConnRecord;
use super::termination::{Cause, Stage, Termination};
use crate::net::{Direction, Meter, Scratch, Socket, Timer};
use crate::peek::{HelloError, Patterns, Preface, Protocol};
use crate::prelude::{Prelude, Replay, ReplayError, Then};
use crate::snapshot::Beginnings;

/// What a connection turned out to be.
pub(super) struct Opened {
    pub(super) preface: Preface,
    /// What its backend is to be played before it gets the hello.
    pub(super) replay: Option<Box<Replay>>,
    /// Whether it is a request to cancel a query of another connection.
    pub(super) cancels: bool,
}

/// A backend that did not come to the point where the hello is sent.
#[derive(Debug)]
pub(super) enum PlayError {
    Timeout,
    Closed,
    Replay(ReplayError),
}

impl Opened {
    fn plain(preface: Preface) -> Self {
        Self { preface, replay: None, cancels: false }
    }
}

/// Finds out what the connection is, and speaks with the client up to its ClientHello.
pub(super) async fn open(
    stream: &mut Socket,
    first: First<'_, '_>,
    beginnings: &Beginnings,
    (limits, patterns): (Limits, Patterns<'_>),
    record: &ConnRecord,
    cx: &Context,
    timer: &mut Timer<'_>,
) -> Result<Opened, PeekError> {
    let First { bytes, held } = first;
    let preface = match beginnings.server_first {
        Some((protocol, Duration::ZERO)) => Preface::Other(protocol),
        _ => read_preface(stream, First { bytes, held }, &cx.scratch, (limits, patterns), timer).await?,
    };
    let (preface, limits) = match (preface, beginnings.server_first) {
        (Preface::Other(Protocol::Silent), Some((protocol, _))) => {
            (Preface::Other(protocol), limits.greeted_at(timer.now()))
        }
        (preface, _) => (preface, limits),
    };
    let Preface::Other(protocol) = preface else { return Ok(Opened::plain(preface)) };
    match beginnings.prelude(protocol) {
        Some(prelude) => {
            let first = First { bytes, held };
            // In a box of its own, which connections without a prelude do not have to carry.
            Box::pin(lead(prelude, stream, first, limits, record, cx, timer)).await
        }
        None => Ok(Opened::plain(preface)),
    }
}

/// Speaks with the client until it begins TLS, or says what else it wants.
async fn lead(
    mut prelude: Prelude,
    stream: &mut Socket,
    first: First<'_, '_>,
    limits: Limits,
    record: &ConnRecord,
    cx: &Context,
    timer: &mut Timer<'_>,
) -> Result<Opened, PeekError> {
    let First { bytes, held } = first;
    let mut words = prelude.opening();
    let then = loop {
        let heard = prelude.advance(bytes);
        let heard = heard.map_err(|error| PeekError::Prelude(prelude.protocol(), error))?;
        if let Some(heard) = heard {
            record.meter().read(Direction::Up, heard.len);
            bytes.drain(..heard.len);
            words.extend(heard.reply);
            match heard.then {
                Then::GoOn => continue,
                then => break then,
            }
        }
        if !held.grow_to(bytes.capacity()) {
            return Err(PeekError::NoRoom);
        }
        say(stream, &mut words, limits, record, timer).await?;
        let room = crate::prelude::MAX_BYTES.saturating_sub(bytes.len());
        let read = timer.timeout_at(limits.hello_by, read_more(stream, bytes, &cx.scratch, room)).await;
        read.unwrap_or(Err(PeekError::Timeout))?;
    };
    say(stream, &mut words, limits, record, timer).await?;
    match then {
        Then::GoOn | Then::Close => Err(PeekError::Left),
        Then::Clear(startup) => Ok(Opened::plain(Preface::Startup(startup))),
        Then::Cancel => Ok(Opened { cancels: true, ..Opened::plain(Preface::Other(prelude.protocol())) }),
        Then::StartTls => hello(&prelude, stream, First { bytes, held }, limits, &cx.scratch, timer).await,
    }
}

/// The hello that must come now.
async fn hello(
    prelude: &Prelude,
    stream: &mut Socket,
    first: First<'_, '_>,
    limits: Limits,
    scratch: &Scratch,
    timer: &mut Timer<'_>,
) -> Result<Opened, PeekError> {
    let known = (limits.without_silence(), Patterns::default());
    let preface = read_preface(stream, first, scratch, known, timer).await?;
    let Preface::Tls(mut hello) = preface else { return Err(PeekError::Hello(HelloError::NotHandshake)) };
    hello.within = Some(prelude.protocol());
    if hello.server_name.is_none() {
        hello.server_name = prelude.server_name().cloned();
    }
    Ok(Opened { replay: Some(Box::new(prelude.replay())), ..Opened::plain(Preface::Tls(hello)) })
}

/// Tells the client these `words`, of which none are left then.
async fn say(
    stream: &mut Socket,
    words: &mut Vec<u8>,
    limits: Limits,
    record: &ConnRecord,
    timer: &mut Timer<'_>,
) -> Result<(), PeekError> {
    if !words.is_empty() {
        let said = timer.timeout_at(limits.hello_by, stream.write_all(words)).await;
        said.ok_or(PeekError::Timeout)?.map_err(|_| PeekError::Reset)?;
        record.meter().written(Direction::Down, words.len(), false);
        words.clear();
    }
    Ok(())
}

/// Plays the prelude to a backend, which has begun to take what is said first and is sent what is `left` of that, and sends the
/// `hello` after it.
pub(super) async fn play(
    mut replay: Box<Replay>,
    stream: &mut Socket,
    (left, hello): (&[u8], &[u8]),
    deadline: Duration,
    scratch: &Scratch,
    timer: &mut Timer<'_>,
) -> Result<(), PlayError> {
    let until = timer.now() + deadline;
    let played = async {
        stream.write_all(left).await?;
        let mut bytes = Vec::new();
        loop {
            if let Some(told) = replay.advance(&bytes)? {
                bytes.drain(..told.len);
                stream.write_all(&told.reply).await?;
                if told.ready {
                    return stream.write_all(hello).await.map_err(PlayError::from);
                }
                continue;
            }
            let room = crate::prelude::MAX_BYTES.saturating_sub(bytes.len());
            read_more(stream, &mut bytes, scratch, room).await.map_err(|_| PlayError::Closed)?;
        }
    };
    timer.timeout_at(until, played).await.unwrap_or(Err(PlayError::Timeout))
}

impl From<io::Error> for PlayError {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

impl From<ReplayError> for PlayError {
    fn from(error: ReplayError) -> Self {
        Self::Replay(error)
    }
}

impl From<&PlayError> for Termination {
    fn from(error: &PlayError) -> Self {
        let (cause, reason) = match error {
            PlayError::Timeout => (Cause::UpstreamTimeout, "prelude_timeout"),
            PlayError::Closed => (Cause::Upstream, "prelude_closed"),
            PlayError::Replay(ReplayError::Refused) => (Cause::Upstream, "prelude_refused"),
            PlayError::Replay(ReplayError::Syntax) => (Cause::Upstream, "prelude_syntax"),
            PlayError::Replay(ReplayError::Injection) => (Cause::Upstream, "prelude_injection"),
        };
        Self { cause, stage: Stage::Connect, reason: Some(reason) }
    }
}
