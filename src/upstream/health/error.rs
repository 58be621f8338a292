//! Why a check did not pass, in words.

use std::error::Error;
use std::fmt;
use std::io;

use rustix::io::Errno;

use super::Target;

/// Characters of what a peer said that are told.
const EXCERPT: usize = 80;
/// Characters of an error with its causes that are told.
const TOLD: usize = 300;

/// Why a check did not pass.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The time was over before this.
    #[error("no {0} in time")]
    Timeout(Step),
    /// It cannot be connected to.
    #[error("no connection")]
    Connect(#[source] io::Error),
    /// This machine could not: no descriptors, ports or memory left. That says nothing about the endpoint.
    #[error("no resources to check it")]
    Resource(#[source] io::Error),
    /// The connection ended before the answer was whole.
    #[error("the connection ended before the answer")]
    Lost(#[source] io::Error),
    /// The handshake failed, or the certificate is not good.
    #[error("no TLS")]
    Tls(#[source] io::Error),
    /// What came is not HTTP.
    #[error("no HTTP")]
    Http(#[source] hyper::Error),
    /// Something else came than the protocol has.
    #[error("expected {expected}, got {got}")]
    Unexpected {
        /// What the protocol has.
        expected: &'static str,
        /// What came.
        got: Excerpt,
    },
    /// It says itself that it cannot serve.
    #[error("it says {0}")]
    Unwell(Excerpt),
    /// Another status than those that are good.
    #[error("the status is {0}")]
    Status(u16),
    /// The body does not contain what it should.
    #[error("the body does not contain what it should")]
    Body,
}

/// What a check waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// That the connection is there.
    Connection,
    /// That TLS is agreed on.
    Handshake,
    /// That the answer is whole.
    Answer,
}

/// Some of what a peer said, in backticks: not too long, and without control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt(Box<str>);

impl CheckError {
    /// The words for the variants in metrics.
    pub const REASONS: [&str; 10] =
        ["timeout", "connect", "resource", "lost", "tls", "http", "unexpected", "unwell", "status", "body"];

    /// The word for it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::Connect(_) => "connect",
            Self::Resource(_) => "resource",
            Self::Lost(_) => "lost",
            Self::Tls(_) => "tls",
            Self::Http(_) => "http",
            Self::Unexpected { .. } => "unexpected",
            Self::Unwell(_) => "unwell",
            Self::Status(_) => "status",
            Self::Body => "body",
        }
    }

    /// The error and its causes in one line, bounded and without control characters.
    pub fn told(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // An `io::Error` that wraps another one says the same.
            if !text.ends_with(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            source = cause.source();
        }
        plain(&text, TOLD)
    }

    /// Whether it is of this machine's making.
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Resource(_))
    }

    /// Of a failed attempt to connect to `target`.
    pub(super) fn of_connect(error: io::Error, target: &Target) -> Self {
        let ours = match Errno::from_io_error(&error) {
            Some(
                Errno::MFILE
                | Errno::NFILE
                | Errno::NOBUFS
                | Errno::NOMEM
                | Errno::NOSPC
                | Errno::ADDRNOTAVAIL
                | Errno::ADDRINUSE,
            ) => true,
            // connect(2): a Unix socket whose queue is full says the same as a kernel without room.
            Some(Errno::AGAIN) => matches!(target, Target::Tcp(_)),
            _ => false,
        };
        if ours { Self::Resource(error) } else { Self::Connect(error) }
    }

    /// Of an HTTP exchange that failed.
    pub(super) fn of_http(error: hyper::Error) -> Self {
        if error.is_parse() || error.is_parse_too_large() {
            return Self::Http(error);
        }
        Self::Lost(io::Error::other(error))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connection => "connection",
            Self::Handshake => "TLS handshake",
            Self::Answer => "answer",
        })
    }
}

impl Excerpt {
    /// Of what was said.
    pub fn of(said: &[u8]) -> Self {
        // Four bytes a character at most.
        let some = said.get(..4 * EXCERPT + 4).unwrap_or(said);
        Self(plain(String::from_utf8_lossy(some).trim_end(), EXCERPT).into())
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("nothing") } else { write!(f, "`{}`", self.0) }
    }
}

/// `text` without control characters, and with `most` characters at most.
fn plain(text: &str, most: usize) -> String {
    let mut plain = String::new();
    for c in text.chars().take(most) {
        if c.is_control() { plain.extend(c.escape_default()) } else { plain.push(c) }
    }
    if text.chars().nth(most).is_some() {
        plain.push('…');
    }
    plain
}
