//! HTTP/1.1 with clients (RFC 9112): one request after another.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::{EXPECT, USER_AGENT};
use http::{HeaderMap, StatusCode, Version};

use super::answer;
use super::connection::Connection;
use super::ended::Ended;
use super::failure::Failure;
use super::handle::{Incoming, handle};
use super::record::Exchange;
use super::reply::{H1Reply, Reply};
use super::source::{Piece, Source};
use super::target::Spoken;
use super::wire::Wire;
use crate::config::HttpLimits;
use crate::net::Timer;

pub mod chunked;
pub mod framing;
pub mod head;
pub(super) mod message;

use framing::Framing;
use message::{MessageError, RequestHead, end_of_head};

/// What is read of a body that nobody wants, in bytes and time, to have the connection for the next request.
const DRAINED: (u64, Duration) = (64 * 1024, Duration::from_secs(2));
/// How long, and for how many bytes, a client may go on sending after its last answer: closing while its bytes come in would
/// reset the connection and take the answer away before it is read.
const LINGER: (usize, Duration) = (256 * 1024, Duration::from_secs(1));

/// Why no request was read.
enum Stop {
    /// The connection ended between two requests, or is to.
    Over(Ended),
    /// What came is no request.
    Refused(StatusCode, &'static str),
}

/// Serves requests until the connection ends.
pub(super) async fn serve(wire: Rc<Wire>, cx: &Connection) -> Ended {
    let mut timer = cx.thread.timers.timer();
    let mut first = true;
    loop {
        let limits = (cx.site)().map_or(HttpLimits::DEFAULT, |site| site.config.limits.clone());
        let head = match next_head(&wire, cx, &limits, first, &mut timer).await {
            Ok(head) => head,
            Err(Stop::Over(ended)) => return ended,
            Err(Stop::Refused(status, reason)) => {
                return refuse(&wire, cx, status, reason, &mut timer).await;
            }
        };
        first = false;
        let (head, framing) = match read(&head, &limits) {
            Ok(read) => read,
            Err((status, reason)) => return refuse(&wire, cx, status, reason, &mut timer).await,
        };
        let ended = Box::pin(serve_one(&wire, head, framing, cx, &mut timer)).await;
        if let Some(ended) = ended {
            return ended;
        }
    }
}

/// The request that a head is of.
fn read(head: &Bytes, limits: &HttpLimits) -> Result<(RequestHead, Framing), (StatusCode, &'static str)> {
    let head = RequestHead::parse(head, limits.max_headers).map_err(|error| match error {
        MessageError::TooManyFields => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too_many_fields"),
        MessageError::Ambiguous(error) => (error.status(), error.reason()),
        MessageError::Malformed(_) | MessageError::Part(_) | MessageError::Partial => {
            (StatusCode::BAD_REQUEST, "malformed")
        }
    })?;
    if head.target.len() > limits.max_uri {
        return Err((StatusCode::URI_TOO_LONG, "uri_too_long"));
    }
    let framing = Framing::of_request(head.version, &head.headers)
        .map_err(|error| (StatusCode::BAD_REQUEST, error.reason()))?;
    Ok((head, framing))
}

/// Answers one request; gives why it is the last one, if it is.
async fn serve_one(
    wire: &Rc<Wire>,
    head: RequestHead,
    framing: Framing,
    cx: &Connection,
    timer: &mut Timer<'_>,
) -> Option<Ended> {
    let keep_alive = head.keeps_alive() && !cx.draining.is_cancelled();
    let expects = head.headers.contains_key(EXPECT);
    let mut source = Source::of(wire, framing);
    let had_body = !source.is_done();
    let RequestHead { method, target, version, headers } = head;
    let incoming = Incoming {
        method,
        version,
        uri: String::from_utf8_lossy(&target).into_owned(),
        headers,
        had_length: matches!(framing, Framing::Length(_)),
    };
    let spoken = if version == Version::HTTP_10 { Spoken::Http10 } else { Spoken::Http11 };
    let mut reply = Reply::H1(H1Reply { wire: Rc::clone(wire), version, keep_alive });
    let result = handle((&incoming, &mut source), spoken, &mut reply, cx, timer).await;
    let Reply::H1(H1Reply { keep_alive, .. }) = reply else { return Some(Ended::Done) };
    if let Err(failure) = result {
        // The answer broke off, or there is nobody to have one.
        wire.reset_on_close();
        return Some(failure.into());
    }
    let whole = source.is_done() || (!expects && drain(&mut source, timer).await);
    if keep_alive && whole {
        return None;
    }
    close(wire, had_body && !whole, timer).await;
    Some(Ended::Done)
}

/// Reads the rest of a body that nobody wants; whether it was short enough.
async fn drain(source: &mut Source, timer: &mut Timer<'_>) -> bool {
    let (most, time) = DRAINED;
    let until = timer.now() + time;
    let mut left = most;
    let reading = poll_fn(|cx| {
        loop {
            match source.poll(cx) {
                Poll::Ready(Ok(Piece::Data(data))) if (data.len() as u64) < left => left -= data.len() as u64,
                Poll::Ready(Ok(Piece::End | Piece::Trailers(_))) => return Poll::Ready(true),
                Poll::Ready(Ok(Piece::Data(_)) | Err(_)) => return Poll::Ready(false),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    timer.timeout_at(until, reading).await.unwrap_or(false)
}

/// The next head, whole.
async fn next_head(
    wire: &Wire,
    cx: &Connection,
    limits: &HttpLimits,
    first: bool,
    timer: &mut Timer<'_>,
) -> Result<Bytes, Stop> {
    if !wire.has_read() {
        wire.rest();
        let wait = if first { limits.header_timeout } else { limits.keep_alive };
        let until = timer.now() + wait;
        let mut drained = pin!(cx.draining.cancelled());
        let came = poll_fn(|task| {
            if let Poll::Ready(read) = wire.poll_fill(task) {
                return Poll::Ready(match read {
                    Ok(0) => Err(Ended::Done),
                    Ok(_) => Ok(()),
                    Err(_) => Err(Ended::Gone),
                });
            }
            drained.as_mut().poll(task).map(|()| Err(Ended::Drained))
        });
        match timer.timeout_at(until, came).await {
            Some(Ok(())) => {}
            Some(Err(ended)) => return Err(Stop::Over(ended)),
            None => return Err(Stop::Over(Ended::Idle)),
        }
    }
    let until = timer.now() + limits.header_timeout;
    let mut looked = 0;
    let reading = poll_fn(|task| {
        loop {
            if let Some(found) = look(wire, &mut looked, limits) {
                return Poll::Ready(found);
            }
            match wire.poll_fill(task) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Stop::Over(Ended::Gone))),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    let late = Err(Stop::Refused(StatusCode::REQUEST_TIMEOUT, "header_timeout"));
    timer.timeout_at(until, reading).await.unwrap_or(late)
}

/// Looks for a head in what was read; `None` when more is needed.
fn look(wire: &Wire, looked: &mut usize, limits: &HttpLimits) -> Option<Result<Bytes, Stop>> {
    wire.with_read(|read| {
        // Empty lines before a request are passed over (RFC 9112 §2.2).
        while *looked < 2 && read.starts_with(b"\r\n") {
            read.advance(2);
            *looked = 0;
        }
        let end = end_of_head(read, looked.saturating_sub(3));
        *looked = read.len();
        if end.unwrap_or(read.len()) > limits.max_header_size {
            let in_line = !read.iter().take(limits.max_uri).any(|byte| *byte == b'\n');
            let too_long = (StatusCode::URI_TOO_LONG, "uri_too_long");
            let too_large = (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large");
            let (status, reason) = if in_line { too_long } else { too_large };
            return Some(Err(Stop::Refused(status, reason)));
        }
        end.map(|end| Ok(read.split_to(end).freeze()))
    })
}

/// Answers what is no request, and closes.
async fn refuse(
    wire: &Rc<Wire>,
    cx: &Connection,
    status: StatusCode,
    reason: &'static str,
    timer: &mut Timer<'_>,
) -> Ended {
    let nothing = HeaderMap::new();
    let method = http::Method::default();
    let asked = ("", "");
    let agent = nothing.get(USER_AGENT);
    let mut exchange = Exchange::new(cx, (cx.site)(), (&method, Version::HTTP_11), asked, agent);
    exchange.failed(Failure::refused(status, reason));
    let version = Version::HTTP_11;
    let mut reply = Reply::H1(H1Reply { wire: Rc::clone(wire), version, keep_alive: false });
    let write = HttpLimits::DEFAULT.write_timeout;
    let written = answer::error(&mut reply, (status, false), None, &mut exchange, write, timer).await;
    drop(exchange);
    if written.is_ok() {
        close(wire, true, timer).await;
    }
    Ended::Refused(reason)
}

/// Ends the stream; where more may come of the client, not before that was read for a while.
async fn close(wire: &Wire, more: bool, timer: &mut Timer<'_>) {
    let (most, time) = LINGER;
    let until = timer.now() + time;
    let mut left = most;
    let closing = async {
        poll_fn(|task| wire.poll_shutdown(task)).await.ok()?;
        if !more {
            return Some(());
        }
        loop {
            wire.with_read(|read| read.clear());
            let n = poll_fn(|task| wire.poll_fill(task)).await.ok()?;
            left = left.checked_sub(n).filter(|_| n > 0)?;
        }
    };
    // However it comes out, it is closed.
    let _ = timer.timeout_at(until, closing).await;
}
