//! Why a request was not answered as it should be.

use http::StatusCode;

use super::source::SourceError;
use crate::upstream::ConnectError;

/// Why a request was not answered as it should be, and how its client is told where it can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// What the client is told; `None` when there is nobody to tell.
    pub(super) status: Option<StatusCode>,
    /// The word for it in logs and metrics.
    pub(super) reason: &'static str,
    /// Whose fault it is.
    pub(super) side: Side,
    /// Whether another attempt may repair it: nothing was heard from the backend, and nothing of a body is gone.
    pub(super) retry: bool,
    /// Whether that is so for what cannot be repeated, too: the backend did nothing of it.
    pub(super) unprocessed: bool,
}

/// Whose fault something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Backend,
    Ours,
}

/// What a backend does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It ended the connection without an answer.
    Closed,
    /// It reset the connection.
    Reset,
    /// Its answer is none.
    Malformed,
    /// Its head is too large.
    HeadTooLarge,
    /// It tells too much before its answer.
    TooManyInterim,
    /// It switches to a protocol that nobody asked for.
    UnaskedUpgrade,
    /// It said nothing in time.
    Timeout,
}

impl Failure {
    const fn new(status: Option<StatusCode>, reason: &'static str, side: Side) -> Self {
        Self { status, reason, side, retry: false, unprocessed: false }
    }

    /// The client is gone.
    pub(super) const GONE: Self = Self::new(None, "client_gone", Side::Client);
    /// The body of the request is too large.
    pub(super) const TOO_LARGE: Self =
        Self::new(Some(StatusCode::PAYLOAD_TOO_LARGE), "body_too_large", Side::Client);
    /// The body of the request did not come in time.
    pub(super) const BODY_TIMEOUT: Self =
        Self::new(Some(StatusCode::REQUEST_TIMEOUT), "body_timeout", Side::Client);
    /// The request cannot be passed on.
    pub(super) const MALFORMED: Self = Self::new(Some(StatusCode::BAD_REQUEST), "malformed", Side::Client);
    /// A file could not be read to its end.
    pub(super) const FILE: Self = Self::new(None, "file", Side::Ours);
    /// The client does not take its answer.
    pub(super) const WRITE_TIMEOUT: Self = Self::new(None, "write_timeout", Side::Client);
    /// Something of the configuration cannot be filled in.
    pub(super) const UNFIT: Self = Self::new(Some(StatusCode::BAD_REQUEST), "unfit_value", Side::Client);

    /// What is asked for is refused.
    pub(super) const fn refused(status: StatusCode, reason: &'static str) -> Self {
        Self::new(Some(status), reason, Side::Client)
    }

    /// The client did not send what it announced.
    pub(super) fn client(error: SourceError) -> Self {
        match error {
            SourceError::Chunk(_) | SourceError::Broken => {
                Self::new(Some(StatusCode::BAD_REQUEST), "malformed_body", Side::Client)
            }
            SourceError::Short => Self::new(Some(StatusCode::BAD_REQUEST), "short_body", Side::Client),
            SourceError::Io(_) | SourceError::H2(_) => Self::GONE,
        }
    }

    /// The backend did something wrong before its answer began.
    pub(super) fn backend(fault: Fault, retry: bool) -> Self {
        let (status, reason) = match fault {
            Fault::Closed => (StatusCode::BAD_GATEWAY, "backend_closed"),
            Fault::Reset => (StatusCode::BAD_GATEWAY, "backend_reset"),
            Fault::Malformed => (StatusCode::BAD_GATEWAY, "backend_malformed"),
            Fault::HeadTooLarge => (StatusCode::BAD_GATEWAY, "backend_head_too_large"),
            Fault::TooManyInterim => (StatusCode::BAD_GATEWAY, "backend_interim"),
            Fault::UnaskedUpgrade => (StatusCode::BAD_GATEWAY, "backend_upgrade"),
            Fault::Timeout => (StatusCode::GATEWAY_TIMEOUT, "backend_timeout"),
        };
        Self { retry, ..Self::new(Some(status), reason, Side::Backend) }
    }

    /// The stream or session with the backend failed; nothing of a body is gone where `retry` says so.
    pub(super) fn upstream_h2(error: h2::Error, retry: bool) -> Self {
        // What it says that it did not process may be sent again (RFC 9113 §8.7).
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        let unprocessed = error.is_remote() && (refused || error.is_go_away());
        Self { unprocessed, ..Self::backend(Fault::Reset, retry) }
    }

    /// The body of an answer broke off.
    pub(super) fn broken_off() -> Self {
        Self::new(None, "backend_broken_off", Side::Backend)
    }

    /// No backend could be had.
    pub(super) fn connect(error: &ConnectError) -> Self {
        let (status, side) = match error {
            ConnectError::Timeout | ConnectError::Unanswered | ConnectError::HandshakeTimeout => {
                (StatusCode::GATEWAY_TIMEOUT, Side::Backend)
            }
            ConnectError::Refused(_)
            | ConnectError::Certificate(_)
            | ConnectError::Handshake(_)
            | ConnectError::Dns(_)
            | ConnectError::Family => (StatusCode::BAD_GATEWAY, Side::Backend),
            ConnectError::Loop => (StatusCode::LOOP_DETECTED, Side::Ours),
            ConnectError::Blocked(_) => (StatusCode::BAD_GATEWAY, Side::Ours),
            ConnectError::NoEndpoint
            | ConnectError::RetryBudget
            | ConnectError::Full
            | ConnectError::QueueTimeout => (StatusCode::SERVICE_UNAVAILABLE, Side::Backend),
            ConnectError::Resource(_) => (StatusCode::SERVICE_UNAVAILABLE, Side::Ours),
            ConnectError::Gone => return Self::GONE,
        };
        Self::new(Some(status), error.reason(), side)
    }
}
