//! Requests that are answered here: by a file, by what the configuration says, or by the way elsewhere.

use std::future::poll_fn;
use std::task::Poll;

use http::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Method, StatusCode};
use tracing::warn;

use super::answer::Content;
use super::connection::Connection;
use super::failure::Failure;
use super::files::{Asked, FileAnswer, FilesError};
use super::flow::{Flow, FlowError};
use super::handle::Taken;
use super::policies;
use super::record::Exchange;
use super::reply::{Length, Reply};
use super::source::Source;
use super::spool::Room;
use super::template::{Changes, Vars, expand};
use crate::config::{AnswerConfig, RedirectConfig};
use crate::net::Timer;

/// Bytes of a file that wait for a slow client.
const WINDOW: usize = 128 * 1024;

/// Where a client is sent.
pub(super) fn redirect(redirect: &RedirectConfig, taken: &Taken<'_>) -> Result<Content, Failure> {
    let location = expand(&redirect.to, &taken.vars).ok_or(Failure::UNFIT)?;
    let location = HeaderValue::try_from(location).map_err(|_| Failure::UNFIT)?;
    let mut content = Content::new(redirect.status);
    content.headers.insert(LOCATION, location);
    changed(content, taken)
}

/// An answer that is always the same.
pub(super) fn fixed(config: &AnswerConfig, taken: &Taken<'_>) -> Result<Content, Failure> {
    let content = match &config.body {
        Some(body) => {
            let body = expand(body, &taken.vars).ok_or(Failure::UNFIT)?;
            let mut content = Content::new(config.status);
            let content_type = HeaderValue::try_from(&*config.content_type).map_err(|_| Failure::UNFIT)?;
            content.headers.insert(CONTENT_TYPE, content_type);
            content.body = body.into();
            content
        }
        None if config.status.is_client_error() || config.status.is_server_error() => {
            Content::page(config.status, taken.vars.headers.get(ACCEPT), taken.vars.id)
        }
        None => Content::new(config.status),
    };
    changed(content, taken)
}

/// With what the rule changes in the heads of answers.
pub(super) fn changed(mut content: Content, taken: &Taken<'_>) -> Result<Content, Failure> {
    let changes = Changes::new(&taken.rule.response_headers, &taken.vars).ok_or(Failure::UNFIT)?;
    policies::after(taken, &mut content.headers);
    changes.apply(&mut content.headers);
    Ok(content)
}

/// Why no file answers.
fn unread(error: &FilesError) -> Failure {
    if let FilesError::Root(_) | FilesError::Read(_) | FilesError::Disk(_) = error {
        warn!(%error, source = std::error::Error::source(error).map(ToString::to_string), "no file");
    }
    Failure::refused(error.status(), "file")
}

/// Answers with a file, or with what a client is told of one.
pub(super) async fn file(
    taken: &Taken<'_>,
    reply: &mut Reply,
    exchange: &mut Exchange<'_>,
    cx: &Connection,
    timer: &mut Timer<'_>,
) -> Result<(), Failure> {
    let Vars { method, path, query, headers, .. } = taken.vars;
    let none = Failure::refused(StatusCode::NOT_FOUND, "no_rule");
    let files = taken.site.files(taken.index).ok_or(none)?;
    let asked = Asked { method, path, query, headers };
    let answer = files.answer(&cx.thread.disk, &asked).await.map_err(|error| unread(&error))?;
    let FileAnswer { status, headers, body } = answer;
    let mut content = changed(Content { headers, ..Content::new(status) }, taken)?;
    content.date();
    exchange.status = Some(status);
    let mut source = Source::from(body);
    let length = match source.length() {
        Some(length) if *taken.vars.method != Method::HEAD && status != StatusCode::NOT_MODIFIED => {
            content.headers.remove(http::header::CONTENT_LENGTH);
            Length::Known(length)
        }
        _ => Length::Nothing,
    };
    let mut sink = reply.begin(status, content.headers, length).map_err(|_| Failure::GONE)?;
    let mut flow = Flow::new(Room::memory(reply.window(WINDOW)), timer.now());
    let write = taken.site.config.limits.write_timeout;
    let sent = poll_fn(|cx| match flow.poll(cx, (&mut source, &mut sink), None, timer.now()) {
        Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
        Poll::Ready(Err(FlowError::Sink(_))) => Poll::Ready(Err(Failure::GONE)),
        Poll::Ready(Err(FlowError::Source(_) | FlowError::Spool(_) | FlowError::TooLarge)) => {
            Poll::Ready(Err(Failure::FILE))
        }
        Poll::Pending => timer.poll(cx, flow.gave + write).map(|()| Err(Failure::WRITE_TIMEOUT)),
    })
    .await;
    exchange.bytes_out = flow.taken;
    if sent.is_err() {
        sink.break_off();
    }
    sent
}
