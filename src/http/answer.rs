//! Answers that are made here.

use std::future::poll_fn;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, DATE};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::failure::Failure;
use super::handle;
use super::page;
use super::record::Exchange;
use super::reply::{Length, Reply};
use crate::net::Timer;

/// An answer, whole.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Content {
    /// One without a body.
    pub(super) fn new(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), body: Bytes::new() }
    }

    /// One of plain text.
    pub(super) fn text(status: StatusCode, text: &[u8]) -> Self {
        let mut content = Self::new(status);
        content.headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        content.body = Bytes::copy_from_slice(text);
        content
    }

    /// The page of an error.
    pub(super) fn page(status: StatusCode, accept: Option<&HeaderValue>, id: &str) -> Self {
        let (content_type, body) = page::page(status, accept, id);
        let mut content = Self::new(status);
        content.headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        content.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            handle::allow(&mut content.headers);
        }
        content.body = body;
        content
    }

    /// Says when it was made.
    pub(super) fn date(&mut self) {
        if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(SystemTime::now())) {
            self.headers.insert(DATE, date);
        }
    }

    /// Sends it; to HEAD without its body.
    pub(super) async fn send(
        mut self,
        reply: &mut Reply,
        is_head: bool,
        exchange: &mut Exchange<'_>,
        write: Duration,
        timer: &mut Timer<'_>,
    ) -> Result<(), Failure> {
        exchange.status = Some(self.status);
        self.date();
        let bare = self.status == StatusCode::NO_CONTENT || self.status == StatusCode::NOT_MODIFIED;
        let length = if bare {
            Length::Nothing
        } else if is_head {
            self.headers.insert(http::header::CONTENT_LENGTH, self.body.len().into());
            Length::Nothing
        } else {
            Length::Known(self.body.len() as u64)
        };
        let has_body = length != Length::Nothing && !self.body.is_empty();
        let mut sink = reply.begin(self.status, self.headers, length).map_err(|_| Failure::GONE)?;
        let sending = async {
            if has_body {
                poll_fn(|cx| sink.poll_ready(cx)).await?;
                exchange.bytes_out = self.body.len() as u64;
                sink.send(self.body);
                poll_fn(|cx| sink.poll_ready(cx)).await?;
                sink.finish(None)?;
            }
            poll_fn(|cx| sink.poll_flushed(cx)).await
        };
        let until = timer.now() + write;
        match timer.timeout_at(until, sending).await {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) => Err(Failure::GONE),
            None => Err(Failure::WRITE_TIMEOUT),
        }
    }
}

/// Sends the page of an error.
pub(super) async fn error(
    reply: &mut Reply,
    (status, is_head): (StatusCode, bool),
    accept: Option<&HeaderValue>,
    exchange: &mut Exchange<'_>,
    write: Duration,
    timer: &mut Timer<'_>,
) -> Result<(), Failure> {
    let content = Content::page(status, accept, &exchange.id);
    content.send(reply, is_head, exchange, write, timer).await
}
