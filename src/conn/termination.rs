//! How a connection ended: who ended it, where on its way, and in a word why.

use std::io;

use super::peek::PeekError;
use super::proxy::HeaderError;
use super::refuse::alert;
use crate::guard::{Reason, Rejection};
use crate::net::{Direction, Fault, RelayEnd, Side};
use crate::route::NoRoute;
use crate::tls::HandshakeError;
use crate::upstream::ConnectError;

/// Who or what ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Both sides were done.
    Done,
    /// The client: it closed, reset, or sent what makes no sense.
    Client,
    /// The backend: it refused or reset.
    Upstream,
    /// The client let a deadline pass.
    ClientTimeout,
    /// The backend let a deadline pass.
    UpstreamTimeout,
    /// A limit on its address.
    Limit,
    /// The configuration says so.
    Policy,
    /// This machine ran out of something.
    Resource,
    /// It was open when the time to drain was over.
    Drained,
    /// It was dropped without an end: by a second signal, or with its worker.
    Forced,
    /// A defect of this program.
    Internal,
}

/// Where on its way a connection was when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Accepted, nothing read.
    Accept,
    /// The header of the proxy before it was awaited.
    Proxy,
    /// Its first bytes were awaited.
    Peek,
    /// A route was chosen, or none.
    Route,
    /// TLS that ends here was being agreed on.
    Handshake,
    /// A backend was being connected to.
    Connect,
    /// Bytes were passing.
    Relay,
    /// Answering requests.
    Http,
}

/// The end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Termination {
    /// Who ended it.
    pub cause: Cause,
    /// Where.
    pub stage: Stage,
    /// Why, in a word of a fixed list; `None` when there is nothing to add.
    pub reason: Option<&'static str>,
}

impl Termination {
    /// The reasons of connections that a limit, a policy or a route refused.
    pub(super) const REJECTIONS: [&str; 17] = [
        "acl",
        "banned",
        "rate_limit",
        "connection_limit",
        "before_hello",
        "proxy_missing",
        "proxy_header",
        "proxy_timeout",
        "loop",
        "unknown_sni",
        "no_sni",
        "no_alpn",
        "unknown_protocol",
        "rejected",
        "cancels_nothing",
        "no_certificate",
        "handshakes",
    ];
    /// It was sent to https.
    pub const REDIRECTED: Self = Self::new(Cause::Done, Stage::Route, "redirected");
    /// It asks for the end of a query of nobody.
    pub(super) const CANCELS_NOTHING: Self = Self::new(Cause::Policy, Stage::Route, "cancels_nothing");
    /// There is no certificate for the name that it asks for.
    pub(super) const NO_CERTIFICATE: Self = Self::new(Cause::Policy, Stage::Handshake, "no_certificate");
    /// As many handshakes are under way as may be.
    pub(super) const TOO_MANY_HANDSHAKES: Self = Self::new(Cause::Resource, Stage::Handshake, "handshakes");
    /// The handshake was not over in time.
    pub(super) const HANDSHAKE_TIMEOUT: Self =
        Self::new(Cause::ClientTimeout, Stage::Handshake, HandshakeError::TIMEOUT);
    /// An authority has seen that the name is ours.
    pub(super) const CHALLENGED: Self = Self::new(Cause::Done, Stage::Handshake, "acme_challenge");
    /// A route refuses it.
    pub const REJECTED: Self = Self::new(Cause::Policy, Stage::Route, "rejected");

    const fn new(cause: Cause, stage: Stage, reason: &'static str) -> Self {
        Self { cause, stage, reason: Some(reason) }
    }

    /// What a client of TLS is told that no route takes for this reason.
    pub(super) fn alert(&self) -> u8 {
        if self.reason == Some(NoRoute::NoAlpn.as_str()) {
            alert::NO_APPLICATION_PROTOCOL
        } else {
            alert::UNRECOGNIZED_NAME
        }
    }

    /// The event loop could not watch the client's socket.
    pub(super) fn unwatched() -> Self {
        PeekError::Unwatched.into()
    }

    /// The connection was closed at `stage` because somebody asked for that.
    pub(super) fn closed(stage: Stage) -> Self {
        Self::new(Cause::Forced, stage, "closed")
    }

    /// The connection was closed since its backend went down.
    pub(super) fn backend_down(stage: Stage) -> Self {
        Self::new(Cause::Upstream, stage, "backend_down")
    }

    /// A list or a limit refused it at `stage`.
    pub(super) fn limited(rejection: &Rejection, stage: Stage) -> Self {
        Self::refused(rejection.reason(), stage)
    }

    fn refused(reason: Reason, stage: Stage) -> Self {
        let cause = match reason {
            Reason::Acl => Cause::Policy,
            Reason::Banned | Reason::RateLimit | Reason::ConnLimit | Reason::BeforeHello => Cause::Limit,
        };
        Self::new(cause, stage, reason.as_str())
    }

    /// The connection was dropped at `stage` without an end of its own; `drained`: because the time to
    /// drain was over.
    pub(super) fn dropped(stage: Stage, drained: bool) -> Self {
        if std::thread::panicking() {
            return Self::new(Cause::Internal, stage, "panic");
        }
        Self { cause: if drained { Cause::Drained } else { Cause::Forced }, stage, reason: None }
    }
}

impl From<PeekError> for Termination {
    fn from(error: PeekError) -> Self {
        let cause = match &error {
            PeekError::Timeout => Cause::ClientTimeout,
            PeekError::Closed
            | PeekError::Reset
            | PeekError::Hello(_)
            | PeekError::Prelude(..)
            | PeekError::Left => Cause::Client,
            PeekError::Unwatched | PeekError::NoRoom => Cause::Resource,
        };
        Self::new(cause, Stage::Peek, error.reason())
    }
}

impl From<HeaderError> for Termination {
    fn from(error: HeaderError) -> Self {
        let ended = match error {
            HeaderError::Timeout => Self::new(Cause::ClientTimeout, Stage::Proxy, error.reason()),
            HeaderError::Loop => Self::new(Cause::Policy, Stage::Proxy, error.reason()),
            HeaderError::Header(_) => Self::new(Cause::Client, Stage::Proxy, error.reason()),
            HeaderError::Read(error) => error.into(),
            HeaderError::Refused(_, rejection) => Self::limited(&rejection, Stage::Proxy),
        };
        Self { stage: Stage::Proxy, ..ended }
    }
}

impl From<NoRoute> for Termination {
    fn from(why: NoRoute) -> Self {
        Self::new(Cause::Policy, Stage::Route, why.as_str())
    }
}

impl From<&ConnectError> for Termination {
    fn from(error: &ConnectError) -> Self {
        let cause = match error {
            ConnectError::NoEndpoint
            | ConnectError::Refused(_)
            | ConnectError::Certificate(_)
            | ConnectError::Handshake(_)
            | ConnectError::RetryBudget
            | ConnectError::Full => Cause::Upstream,
            ConnectError::Timeout
            | ConnectError::Unanswered
            | ConnectError::HandshakeTimeout
            | ConnectError::Dns(_)
            | ConnectError::QueueTimeout => Cause::UpstreamTimeout,
            ConnectError::Gone => Cause::Client,
            ConnectError::Family | ConnectError::Loop | ConnectError::Blocked(_) => Cause::Policy,
            ConnectError::Resource(_) => Cause::Resource,
        };
        Self::new(cause, Stage::Connect, error.reason())
    }
}

impl From<&RelayEnd> for Termination {
    fn from(end: &RelayEnd) -> Self {
        match end {
            RelayEnd::Done => Self { cause: Cause::Done, stage: Stage::Relay, reason: None },
            RelayEnd::Fault(fault) => fault.into(),
            // Who does not take what is there is to blame; else who may still send and does not: once the
            // client is done that is the backend.
            RelayEnd::Idle { stalled: Some(Direction::Up), .. } => {
                Self::new(Cause::UpstreamTimeout, Stage::Relay, "stalled")
            }
            RelayEnd::Idle { stalled: Some(Direction::Down), .. } => {
                Self::new(Cause::ClientTimeout, Stage::Relay, "stalled")
            }
            RelayEnd::Idle { half_closed: Some(Direction::Up), .. } => {
                Self::new(Cause::UpstreamTimeout, Stage::Relay, "half_closed")
            }
            RelayEnd::Idle { half_closed: Some(Direction::Down), .. } => {
                Self::new(Cause::ClientTimeout, Stage::Relay, "half_closed")
            }
            RelayEnd::Idle { half_closed: None, .. } => Self::new(Cause::ClientTimeout, Stage::Relay, "idle"),
        }
    }
}

impl From<&Fault> for Termination {
    fn from(fault: &Fault) -> Self {
        let unanswered = matches!(
            fault.error.kind(),
            io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
        );
        let broken = match fault.error.kind() {
            // TLS that was cut off, or that is none any more.
            io::ErrorKind::UnexpectedEof => Some("truncated"),
            // A server of TLS 1.3 judges the certificate that it is shown only once it is spoken to.
            io::ErrorKind::InvalidData if is_alert(&fault.error) => Some("alert"),
            io::ErrorKind::InvalidData => Some("bad_record"),
            _ => None,
        };
        if let Some(reason) = broken {
            let cause = if fault.side == Side::Downstream { Cause::Client } else { Cause::Upstream };
            return Self::new(cause, Stage::Relay, reason);
        }
        let (cause, reason) = match (fault.side, unanswered) {
            (Side::Downstream, false) => (Cause::Client, "reset"),
            (Side::Downstream, true) => (Cause::ClientTimeout, "unanswered"),
            (Side::Upstream, false) => (Cause::Upstream, "reset"),
            (Side::Upstream, true) => (Cause::UpstreamTimeout, "unanswered"),
        };
        Self::new(cause, Stage::Relay, reason)
    }
}

/// Whether the peer has said that it ends the session, and not in peace.
fn is_alert(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::AlertReceived(_)))
}

impl Cause {
    /// The word for it in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::ClientTimeout => "client_timeout",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::Limit => "limit",
            Self::Policy => "policy",
            Self::Resource => "resource",
            Self::Drained => "drained",
            Self::Forced => "forced",
            Self::Internal => "internal",
        }
    }
}

impl Stage {
    /// The word for it in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Proxy => "proxy",
            Self::Peek => "peek",
            Self::Route => "route",
            Self::Handshake => "handshake",
            Self::Connect => "connect",
            Self::Relay => "relay",
            Self::Http => "http",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rejection_has_a_counter() {
        let limits = Reason::ALL.map(|reason| Termination::refused(reason, Stage::Accept));
        let policies = [NoRoute::UnknownSni, NoRoute::NoSni, NoRoute::NoAlpn, NoRoute::UnknownProtocol]
            .map(Termination::from);
        let headers = HeaderError::REFUSED.map(Termination::from);
        let all: Vec<_> = limits.into_iter().chain(policies).chain(headers).collect();
        let all: Vec<_> =
            all.into_iter().chain([Termination::REJECTED, Termination::CANCELS_NOTHING]).collect();
        let all: Vec<_> =
            all.into_iter().chain([Termination::NO_CERTIFICATE, Termination::TOO_MANY_HANDSHAKES]).collect();
        assert_eq!(all.len(), Termination::REJECTIONS.len());
        for termination in all {
            assert!(Termination::REJECTIONS.contains(&termination.reason.unwrap()), "{termination:?}");
        }
    }
}
