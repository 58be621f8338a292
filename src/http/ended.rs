//! How a connection of HTTP came to its end.

use super::failure::{Failure, Side};

/// How a connection of HTTP came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// After its last answer, or between two requests.
    Done,
    /// No further request came in time.
    Idle,
    /// The client is gone.
    Gone,
    /// This process takes no more requests.
    Drained,
    /// What came is no request, for this reason.
    Refused(&'static str),
    /// An answer broke off, for this reason.
    Broken {
        /// The word for it.
        reason: &'static str,
        /// Whether its backend is to blame.
        by_backend: bool,
    },
}

impl Ended {
    /// The word for it, where there is one.
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Done | Self::Gone => None,
            Self::Idle => Some("keep_alive"),
            Self::Drained => Some("drained"),
            Self::Refused(reason) => Some(reason),
            Self::Broken { reason, .. } => Some(reason),
        }
    }
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Broken { reason: failure.reason, by_backend: failure.side == Side::Backend }
    }
}
