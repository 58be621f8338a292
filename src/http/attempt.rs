//! One attempt at having a request answered by a backend.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Version};

use super::client::Link;
use super::failure::{Failure, Fault};
use super::flow::{Flow, FlowError};
use super::forward::Outgoing;
use super::h1::framing::Framing;
use super::h1::message::{Announced, ResponseHead, end_of_head, write_request};
use super::limits::Deadlines;
use super::reply::Reply;
use super::sink::{Coding, Sink};
use super::source::Source;
use super::spool::Room;
use super::wire::Wire;
use crate::net::{Moment, Timer};

/// The largest head of an answer, in bytes, and the most fields in it: a backend is not trusted with memory either.
const MAX_HEAD: usize = 64 * 1024;
const MAX_FIELDS: usize = 200;
/// Answers on the way to the answer that are passed on; more are no help to anybody.
const MAX_INFORMED: u32 = 32;
/// Bytes of a request's body that wait for its backend.
const REQUEST_WINDOW: usize = 64 * 1024;

/// A request on its way, of which the answer has not begun.
pub(super) struct Attempt<'a> {
    source: &'a mut Source,
    up: Flow,
    sink: Sink,
    answer: Answer,
    /// The backend takes no more of the request; its answer may be there nevertheless.
    deaf: bool,
    limit: Option<u64>,
    is_head: bool,
    method: http::Method,
    informed: u32,
    /// The backend was asked whether to go on, and has not said so.
    unasked: bool,
}

/// Where the answer comes from.
enum Answer {
    H1(Rc<Wire>, usize),
    H2(Pin<Box<h2::client::ResponseFuture>>),
}

/// The answer of a backend, of which the body is to come.
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Source,
    pub(super) framing: Framing,
    /// The connection, and whether it can be used again.
    pub(super) wire: Option<(Rc<Wire>, bool)>,
    /// What is left of the request.
    pub(super) up: Flow,
    pub(super) sink: Sink,
    pub(super) deaf: bool,
}

impl<'a> Attempt<'a> {
    /// Sends the head.
    pub(super) fn begin(
        link: Link,
        outgoing: &Outgoing,
        source: &'a mut Source,
        limit: Option<u64>,
        now: Moment,
    ) -> Result<Self, Failure> {
        let (sink, answer) = match link {
            Link::H1(wire) => {
                let announced = match source.length() {
                    Some(0) if !outgoing.had_length => None,
                    Some(length) => Some(Announced::Length(length)),
                    None => outgoing.length.map(Announced::Length).or(Some(Announced::Chunked)),
                };
                let coding =
                    if announced == Some(Announced::Chunked) { Coding::Chunked } else { Coding::Plain };
                wire.with_out(|out| {
                    write_request(out, (&outgoing.method, &outgoing.target), &outgoing.headers, announced);
                });
                (Sink::H1(Rc::clone(&wire), coding), Answer::H1(wire, 0))
            }
            Link::H2(mut session) => {
                let ends = source.is_done();
                let request = outgoing.for_h2()?;
                let (response, stream) =
                    session.send_request(request, ends).map_err(|error| Failure::upstream_h2(error, true))?;
                let sink = if ends { Sink::Closed } else { Sink::H2(Box::new(stream), Bytes::new()) };
                (sink, Answer::H2(Box::pin(response)))
            }
        };
        Ok(Self {
            is_head: outgoing.method == http::Method::HEAD,
            method: outgoing.method.clone(),
            source,
            up: Flow::new(Room::memory(REQUEST_WINDOW), now),
            sink,
            answer,
            deaf: false,
            limit,
            informed: 0,
            unasked: outgoing.headers.contains_key(http::header::EXPECT),
        })
    }

    /// Sends the body and waits for the head of the answer, passing on what is told before.
    pub(super) async fn answered(
        mut self,
        reply: &mut Reply,
        deadlines: &Deadlines,
        timer: &mut Timer<'_>,
    ) -> Result<Answered, Failure> {
        let head = poll_fn(|cx| self.poll(cx, reply, deadlines, timer)).await?;
        self.finish(head)
    }

    /// Whether a part of the request's body was taken from the client.
    fn has_begun_body(&self) -> bool {
        self.up.taken > 0
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        reply: &mut Reply,
        deadlines: &Deadlines,
        timer: &mut Timer<'_>,
    ) -> Poll<Result<Head, Failure>> {
        loop {
            if !self.up.is_done() && !self.deaf {
                let flow = self.up.poll(cx, (self.source, &mut self.sink), self.limit, timer.now());
                match flow {
                    Poll::Ready(Err(FlowError::Sink(_))) => self.deaf = true,
                    Poll::Ready(Err(FlowError::Source(error))) => {
                        return Poll::Ready(Err(Failure::client(error)));
                    }
                    Poll::Ready(Err(FlowError::Spool(_))) => return Poll::Ready(Err(Failure::FILE)),
                    Poll::Ready(Err(FlowError::TooLarge)) => return Poll::Ready(Err(Failure::TOO_LARGE)),
                    Poll::Ready(Ok(())) | Poll::Pending => {}
                }
            }
            let retry = !self.has_begun_body();
            match self.answer.poll(cx, retry) {
                Poll::Ready(Ok(head)) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
                    return Poll::Ready(Ok(head));
                }
                Poll::Ready(Ok(head)) if head.status.is_informational() => {
                    self.informed += 1;
                    self.unasked &= head.status != StatusCode::CONTINUE;
                    if self.informed > MAX_INFORMED {
                        return Poll::Ready(Err(Failure::backend(Fault::TooManyInterim, false)));
                    }
                    inform(reply, &head)?;
                    continue;
                }
                Poll::Ready(result) => return Poll::Ready(result),
                Poll::Pending => {}
            }
            // What waits to be told goes on with the next call.
            let _ = reply.poll_flush(cx).map_err(|_| Failure::GONE)?;
            if reply.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(Failure::GONE));
            }
            return deadlines.poll_request(cx, &self.up, &self.sink, timer).map(Err);
        }
    }

    fn finish(self, head: Head) -> Result<Answered, Failure> {
        let Head { status, headers, version, keep_alive, body } = head;
        let malformed = |_| Failure::backend(Fault::Malformed, false);
        let (framing, body, wire) = match (self.answer, body) {
            (Answer::H1(wire, _), _) => {
                let framing =
                    Framing::of_response(&self.method, status, version, &headers).map_err(malformed)?;
                // Who answers instead of asking for the body may take it, which came nevertheless, for the next request.
                let reusable = keep_alive && framing != Framing::UntilClose && !self.unasked;
                (framing, Source::of(&wire, framing), Some((wire, reusable)))
            }
            (Answer::H2(_), body) => {
                let nothing =
                    self.is_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
                let length = headers
                    .get(http::header::CONTENT_LENGTH)
                    .and_then(|value| value.to_str().ok()?.parse().ok());
                let framing = match (nothing, length) {
                    (true, _) => Framing::None,
                    (false, Some(length)) => Framing::Length(length),
                    (false, None) => Framing::Chunked,
                };
                let body = body.map_or(Source::Done, |body| Source::H2(Box::new(body)));
                (framing, if nothing { Source::Done } else { body }, None)
            }
        };
        Ok(Answered { status, headers, body, framing, wire, up: self.up, sink: self.sink, deaf: self.deaf })
    }
}

/// A head of an answer.
pub(super) struct Head {
    status: StatusCode,
    headers: HeaderMap,
    version: Version,
    keep_alive: bool,
    body: Option<h2::RecvStream>,
}

impl From<ResponseHead> for Head {
    fn from(head: ResponseHead) -> Self {
        let keep_alive = head.keeps_alive();
        let ResponseHead { status, version, headers } = head;
        Self { status, headers, version, keep_alive, body: None }
    }
}

impl Answer {
    /// The next head; a failure may be repaired by another attempt where `retry` says so and nothing was heard.
    fn poll(&mut self, cx: &mut Context<'_>, retry: bool) -> Poll<Result<Head, Failure>> {
        match self {
            Self::H1(wire, looked) => poll_h1(wire, looked, cx, retry),
            Self::H2(response) => poll_h2(response, cx, retry),
        }
    }
}

fn poll_h1(
    wire: &Wire,
    looked: &mut usize,
    cx: &mut Context<'_>,
    retry: bool,
) -> Poll<Result<Head, Failure>> {
    let backend = |fault, retry| Poll::Ready(Err(Failure::backend(fault, retry)));
    loop {
        let head = wire.with_read(|read| {
            let end = end_of_head(read, looked.saturating_sub(3));
            *looked = read.len();
            end.map(|end| read.split_to(end).freeze())
        });
        if let Some(head) = head {
            *looked = 0;
            return match ResponseHead::parse(&head, MAX_FIELDS) {
                Ok(head) => Poll::Ready(Ok(head.into())),
                Err(_) => backend(Fault::Malformed, false),
            };
        }
        if *looked > MAX_HEAD {
            return backend(Fault::HeadTooLarge, false);
        }
        match wire.poll_fill(cx) {
            Poll::Ready(Ok(0)) => return backend(Fault::Closed, retry && *looked == 0),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(_)) => return backend(Fault::Reset, retry && *looked == 0),
            Poll::Pending => return Poll::Pending,
        }
    }
}

fn poll_h2(
    response: &mut Pin<Box<h2::client::ResponseFuture>>,
    cx: &mut Context<'_>,
    retry: bool,
) -> Poll<Result<Head, Failure>> {
    if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
        let (parts, ()) = interim.into_parts();
        return Poll::Ready(Ok(Head {
            status: parts.status,
            headers: parts.headers,
            version: parts.version,
            keep_alive: true,
            body: None,
        }));
    }
    response.as_mut().poll(cx).map(|result| match result {
        Ok(response) => {
            let (parts, body) = response.into_parts();
            Ok(Head {
                status: parts.status,
                headers: parts.headers,
                version: parts.version,
                keep_alive: true,
                body: Some(body),
            })
        }
        Err(error) => Err(Failure::upstream_h2(error, retry)),
    })
}

/// Passes on what is told before the answer; what it says of the connection is not for the client.
fn inform(reply: &mut Reply, head: &Head) -> Result<(), Failure> {
    let mut headers = head.headers.clone();
    let malformed = |_| Failure::backend(Fault::Malformed, false);
    super::fields::forwardable(&mut headers, super::fields::Message::Response).map_err(malformed)?;
    // RFC 9110 §8.6.
    headers.remove(http::header::CONTENT_LENGTH);
    reply.inform(head.status, &headers).map_err(|_| Failure::GONE)
}

impl Outgoing {
    /// The request as HTTP/2 has it.
    fn for_h2(&self) -> Result<Request<()>, Failure> {
        let mut headers = self.headers.clone();
        // What is said of a connection there is none of in HTTP/2 (RFC 9113 §8.2.2).
        headers.remove(http::header::CONNECTION);
        headers.remove(http::header::UPGRADE);
        let authority = headers.remove(http::header::HOST);
        let authority = authority.as_ref().and_then(|host| host.to_str().ok()).unwrap_or(&self.host);
        let uri = http::Uri::builder()
            .scheme(self.scheme)
            .authority(authority)
            .path_and_query(&*self.target)
            .build();
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri.map_err(|_| Failure::MALFORMED)?;
        *request.version_mut() = Version::HTTP_2;
        if let Some(length) = self.length {
            headers.insert(http::header::CONTENT_LENGTH, length.into());
        }
        *request.headers_mut() = headers;
        Ok(request)
    }
}
