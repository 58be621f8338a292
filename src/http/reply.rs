//! How a request is answered.

use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, Version};

use super::h1::message::{Announced, write_response};
use super::sink::{Coding, Sink, SinkError};
use super::wire::Wire;

/// Where the answer to a request goes.
#[derive(Debug)]
pub(super) enum Reply {
    /// By HTTP/1.1.
    H1(H1Reply),
    /// By HTTP/2.
    H2(Box<h2::server::SendResponse<Bytes>>),
}

/// Where an answer of HTTP/1.1 goes.
#[derive(Debug)]
pub(super) struct H1Reply {
    pub(super) wire: Rc<Wire>,
    /// The version of the request.
    pub(super) version: Version,
    /// Whether the connection is used for another request.
    pub(super) keep_alive: bool,
}

/// Bytes of an answer that wait for a slow client, where it may have many of them at once; a piece more may come.
const SHARED_WINDOW: usize = 16 * 1024;

/// How long the body of an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// There is none, whatever the head says: the answer to HEAD, 204, 304.
    Nothing,
    /// So many bytes.
    Known(u64),
    /// As many as come.
    Unknown,
}

impl Reply {
    /// Tells something on the way to the answer (1xx).
    pub(super) fn inform(&mut self, status: StatusCode, headers: &HeaderMap) -> Result<(), SinkError> {
        match self {
            // Who speaks 1.0 does not know them (RFC 9110 §15.2).
            Self::H1(reply) if reply.version == Version::HTTP_10 => {}
            Self::H1(reply) => {
                reply.wire.with_out(|out| write_response(out, status, headers, None, None));
            }
            Self::H2(send) => send.send_informational(response(status, headers.clone()))?,
        }
        Ok(())
    }

    /// Begins the answer; its body goes into what this gives.
    pub(super) fn begin(
        &mut self,
        status: StatusCode,
        mut headers: HeaderMap,
        length: Length,
    ) -> Result<Sink, SinkError> {
        match self {
            Self::H1(reply) => Ok(reply.begin(status, &headers, length)),
            Self::H2(send) => {
                if let Length::Known(length) = length {
                    headers.insert(http::header::CONTENT_LENGTH, length.into());
                }
                let ends = matches!(length, Length::Nothing | Length::Known(0));
                let stream = send.send_response(response(status, headers), ends)?;
                Ok(if ends { Sink::Closed } else { Sink::H2(Box::new(stream), Bytes::new()) })
            }
        }
    }

    /// How much of an answer may wait that would have so much for itself.
    pub(super) fn window(&self, most: usize) -> usize {
        match self {
            Self::H1(_) => most,
            Self::H2(_) => most.min(SHARED_WINDOW),
        }
    }

    /// Drives what was told so far.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SinkError>> {
        match self {
            Self::H1(reply) => reply.wire.poll_flush(cx).map_err(SinkError::from),
            Self::H2(_) => Poll::Ready(Ok(())),
        }
    }

    /// Ready when nobody waits for the answer any more.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H1(reply) => reply.wire.poll_gone(cx),
            Self::H2(send) => send.poll_reset(cx).map(drop),
        }
    }

    /// The connection is used for no other request.
    pub(super) fn close(&mut self) {
        if let Self::H1(reply) = self {
            reply.keep_alive = false;
        }
    }
}

impl H1Reply {
    fn begin(&mut self, status: StatusCode, headers: &HeaderMap, length: Length) -> Sink {
        let (announced, coding) = match length {
            Length::Nothing => (None, Coding::Plain),
            Length::Known(length) => (Some(Announced::Length(length)), Coding::Plain),
            Length::Unknown if self.version == Version::HTTP_10 => {
                self.keep_alive = false;
                (None, Coding::Plain)
            }
            Length::Unknown => (Some(Announced::Chunked), Coding::Chunked),
        };
        let connection = match (self.keep_alive, self.version) {
            (false, _) => Some("close"),
            (true, Version::HTTP_10) => Some("keep-alive"),
            (true, _) => None,
        };
        self.wire.with_out(|out| write_response(out, status, headers, announced, connection));
        Sink::H1(Rc::clone(&self.wire), coding)
    }
}

fn response(status: StatusCode, headers: HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
