//! Passing a request on to a backend, and its answer back.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderMap, Method, StatusCode};

use super::attempt::{Answered, Attempt};
use super::client::{self, Leash, Wish};
use super::connection::Connection;
use super::failure::{Failure, Fault};
use super::fields::is_offered;
use super::flow::{Flow, FlowError};
use super::h1::framing::{Framing, announced};
use super::limits::Deadlines;
use super::record::Exchange;
use super::reply::{Length, Reply};
use super::sink::Sink;
use super::site::{Destination, Site};
use super::source::Source;
use super::spool::Room;
use super::tunnel;
use crate::net::Timer;

/// Bytes of an answer that wait for a slow client while its backend has been let go, or goes on: in memory and on the disk.
const ANSWER_MEMORY: usize = 256 * 1024;
const ANSWER_DISK: u64 = 1 << 30;
/// The same, in memory, of an answer that is to be passed on as it comes.
const STREAM_MEMORY: usize = 64 * 1024;
/// How often a request is sent at the most.
const ATTEMPTS: u32 = 3;

/// A request as a backend gets it.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) scheme: &'static str,
    /// The host that is asked for, where no field says so.
    pub(super) host: Box<str>,
    /// Whether it is the backend's own that is asked for.
    pub(super) host_of_backend: bool,
    /// The path with its query.
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    /// The length of its body, as it was announced.
    pub(super) length: Option<u64>,
    /// Whether it was announced.
    pub(super) had_length: bool,
    /// The protocols that the client would switch to.
    pub(super) upgrade: bool,
}

/// What a request is passed on with.
pub(super) struct Passing<'a> {
    pub(super) site: &'a Site,
    pub(super) destination: &'a Destination,
    pub(super) outgoing: Outgoing,
    pub(super) deadlines: Deadlines,
    /// What becomes of the head of the answer.
    pub(super) change: &'a Change<'a>,
}

/// What becomes of the head of an answer, of which backend and by which host that was asked for.
type Change<'a> = dyn Fn(StatusCode, (&str, &str), &mut HeaderMap) -> Result<(), Failure> + 'a;

impl Passing<'_> {
    /// Passes it on, and its answer back.
    ///
    /// # Errors
    /// When there is no answer of a backend; `reply` has not begun then if the failure has a status.
    pub(super) async fn run(
        mut self,
        source: &mut Source,
        reply: &mut Reply,
        exchange: &mut Exchange<'_>,
        cx: &Connection,
        timer: &mut Timer<'_>,
    ) -> Result<(), Failure> {
        let idempotent = self.outgoing.method.is_idempotent();
        let mut wish = Wish { reuse: !self.outgoing.upgrade, fresh: !idempotent || !source.is_done() };
        loop {
            let mut leash = match Box::pin(client::lease(self.destination, wish, cx, timer)).await {
                Ok(leash) => leash,
                Err(failed) => {
                    exchange.backend = failed.endpoint;
                    return Err(Failure::connect(&failed.error));
                }
            };
            exchange.attempts += 1;
            exchange.backend = Some(Arc::clone(leash.lease.endpoint()));
            exchange.reused = leash.reused;
            self.site.metrics.sent(leash.reused);
            if self.outgoing.host_of_backend {
                let host = http::HeaderValue::try_from(&*leash.key.endpoint.name);
                self.outgoing.headers.insert(http::header::HOST, host.map_err(|_| Failure::UNFIT)?);
            }
            match self.attempt(&mut leash, source, reply, timer).await {
                Ok(answered) => {
                    leash.lease.answered();
                    return Box::pin(self.answer(answered, leash, source, reply, exchange, cx, timer)).await;
                }
                Err(failure) => {
                    if !leash.reused && failure.side == super::failure::Side::Backend {
                        leash.lease.unanswered();
                    }
                    let repeatable = idempotent || failure.unprocessed;
                    let again = failure.retry && repeatable && exchange.attempts < ATTEMPTS;
                    if !again {
                        return Err(failure);
                    }
                    self.site.metrics.retries.increment(1);
                    // What waits may all have been closed at once.
                    wish.reuse = false;
                }
            }
        }
    }

    async fn attempt(
        &self,
        leash: &mut Leash,
        source: &mut Source,
        reply: &mut Reply,
        timer: &mut Timer<'_>,
    ) -> Result<Answered, Failure> {
        let link = match &leash.link {
            client::Link::H1(wire) => client::Link::H1(std::rc::Rc::clone(wire)),
            client::Link::H2(session) => client::Link::H2(session.clone()),
        };
        let limit = self.site.config.limits.max_body;
        let attempt = Attempt::begin(link, &self.outgoing, source, limit, timer.now())?;
        Box::pin(attempt.answered(reply, &self.deadlines, timer)).await
    }

    /// Passes the answer on.
    #[expect(clippy::too_many_arguments, reason = "both ends of an exchange, and what is told of it")]
    async fn answer(
        &self,
        answered: Answered,
        leash: Leash,
        source: &mut Source,
        reply: &mut Reply,
        exchange: &mut Exchange<'_>,
        cx: &Connection,
        timer: &mut Timer<'_>,
    ) -> Result<(), Failure> {
        exchange.answered = Some(exchange.elapsed());
        let backend = Arc::clone(&leash.key.endpoint.name);
        let host = self.outgoing.headers.get(http::header::HOST);
        let asked = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
        let Answered { status, mut headers, body, framing, wire, up, sink, deaf } = answered;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let asked_for = self.outgoing.upgrade && is_offered(&headers, &self.outgoing.headers);
            let Some((wire, _)) = wire.filter(|_| asked_for) else {
                return Err(Failure::backend(Fault::UnaskedUpgrade, false));
            };
            (self.change)(status, (&backend, asked), &mut headers)?;
            exchange.status = Some(status);
            exchange.upgraded = true;
            let lasting = tunnel::run(wire, headers, reply, self.destination.idle, cx, timer);
            (exchange.bytes_in, exchange.bytes_out) = Box::pin(lasting).await?;
            return Ok(());
        }
        let length = length_of(framing, &mut headers);
        let room = room_for(&headers, reply, cx);
        (self.change)(status, (&backend, asked), &mut headers)?;
        exchange.status = Some(status);
        let down = reply.begin(status, headers, length).map_err(|_| Failure::GONE)?;
        let mut exchanging = Exchanging {
            source,
            up,
            sink,
            deaf,
            body,
            down,
            flow: Flow::new(room, timer.now()),
            wire,
            leash: Some(leash),
            is_shared: self.destination.is_shared(),
            limit: self.site.config.limits.max_body,
        };
        let result = poll_fn(|task| exchanging.poll(task, &self.deadlines, cx, timer)).await;
        exchange.bytes_in = exchanging.up.taken;
        exchange.bytes_out = exchanging.flow.taken;
        if result.is_err() {
            exchanging.down.break_off();
            reply.close();
        }
        result
    }
}

/// How long the body of an answer is; its head says so only where none comes.
fn length_of(framing: Framing, headers: &mut HeaderMap) -> Length {
    match framing {
        Framing::None => {
            // Once, however often it was said (RFC 9110 §8.6).
            if let Some(length) = announced(headers) {
                headers.insert(http::header::CONTENT_LENGTH, length.into());
            }
            Length::Nothing
        }
        Framing::Length(length) => {
            headers.remove(http::header::CONTENT_LENGTH);
            Length::Known(length)
        }
        Framing::Chunked | Framing::UntilClose => Length::Unknown,
    }
}

/// How much of an answer may wait for its client.
fn room_for(headers: &HeaderMap, reply: &Reply, cx: &Connection) -> Room {
    if is_streaming(headers) {
        return Room::memory(reply.window(STREAM_MEMORY));
    }
    Room { memory: reply.window(ANSWER_MEMORY), disk: Some((cx.thread.disk.clone(), ANSWER_DISK)) }
}

/// Whether an answer is one of those whose pieces matter as they come.
fn is_streaming(headers: &HeaderMap) -> bool {
    let of_type = |value: &http::HeaderValue| {
        let value = value.as_bytes();
        value.starts_with(b"text/event-stream") || value.starts_with(b"application/grpc")
    };
    headers.get(http::header::CONTENT_TYPE).is_some_and(of_type)
        || headers.get("x-accel-buffering").is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"no"))
}

/// Both directions, once the answer has begun.
struct Exchanging<'a> {
    source: &'a mut Source,
    up: Flow,
    sink: Sink,
    deaf: bool,
    body: Source,
    down: Sink,
    flow: Flow,
    wire: Option<(std::rc::Rc<super::wire::Wire>, bool)>,
    leash: Option<Leash>,
    /// Whether its connection may serve others.
    is_shared: bool,
    limit: Option<u64>,
}

impl Exchanging<'_> {
    fn poll(
        &mut self,
        task: &mut Context<'_>,
        deadlines: &Deadlines,
        cx: &Connection,
        timer: &mut Timer<'_>,
    ) -> Poll<Result<(), Failure>> {
        let now = timer.now();
        if !self.up.is_done() && !self.deaf {
            match self.up.poll(task, (self.source, &mut self.sink), self.limit, now) {
                Poll::Ready(Err(FlowError::Sink(_))) => self.deaf = true,
                Poll::Ready(Err(FlowError::Source(error))) => {
                    return Poll::Ready(Err(Failure::client(error)));
                }
                Poll::Ready(Err(FlowError::Spool(_))) => return Poll::Ready(Err(Failure::FILE)),
                Poll::Ready(Err(FlowError::TooLarge)) => return Poll::Ready(Err(Failure::TOO_LARGE)),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        let flow = self.flow.poll(task, (&mut self.body, &mut self.down), None, now);
        if self.flow.has_all() && self.leash.is_some() {
            self.let_go(cx);
        }
        match flow {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(FlowError::Sink(_))) => Poll::Ready(Err(Failure::GONE)),
            Poll::Ready(Err(FlowError::Spool(_))) => Poll::Ready(Err(Failure::FILE)),
            Poll::Ready(Err(FlowError::Source(_) | FlowError::TooLarge)) => {
                Poll::Ready(Err(Failure::broken_off()))
            }
            Poll::Pending => deadlines.poll_answer(task, &self.flow, &self.down, timer).map(Err),
        }
    }

    /// The backend has said all: its connection is for others, while a slow client takes its time.
    fn let_go(&mut self, cx: &Connection) {
        let leash = self.leash.take();
        if let (Some(Leash { key, .. }), Some((wire, true))) = (leash, self.wire.take())
            && self.is_shared
            && self.up.is_done()
            && !self.deaf
            // What it says beyond its answer is for nobody.
            && !wire.has_read()
        {
            self.body = Source::Done;
            self.sink = Sink::Closed;
            cx.thread.kept.put(key, wire, &cx.thread.timers);
        }
    }
}
