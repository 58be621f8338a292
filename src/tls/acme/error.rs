//! Why there is no certificate.

use std::io;
use std::path::PathBuf;

use instant_acme::{Error, Problem};

use super::client::ClientError;

/// Why an order, or what it needs, came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum AcmeError {
    /// The authority's server does not answer, or not as it should.
    #[error("the authority's server cannot be used")]
    Server(#[source] Error),
    /// The authority does not want to.
    #[error("the authority refuses")]
    Refused(Box<Problem>),
    /// The authority looked, and does not see that the name is ours.
    #[error("the authority does not see that the name is ours")]
    NotShown(Box<Problem>),
    /// The authority wants to be shown in another way.
    #[error("the authority does not offer `{0}`")]
    NoChallenge(&'static str),
    /// The command that publishes records failed.
    #[error("the command that publishes records failed")]
    Hook(#[source] HookError),
    /// What is to be shown cannot be: it is more at once than there ever is.
    #[error("too many challenges are pending")]
    TooManyPending,
    /// The authority took its time.
    #[error("the order was not done in time")]
    Slow,
    /// What the authority sent is not what was ordered.
    #[error("the certificate that came is not what was ordered: {0}")]
    Wrong(&'static str),
    /// A key or a certificate could not be made.
    #[error("a key or a certificate cannot be made")]
    Key(#[source] rcgen::Error),
    /// A certificate could not be prepared for handshakes.
    #[error("a certificate cannot be used")]
    Tls(#[source] rustls::Error),
    /// The secret of the account elsewhere cannot be read.
    #[error("the key of the external account cannot be read")]
    Secret(#[source] io::Error),
    /// What there is cannot be stored.
    #[error("cannot use {0}")]
    Storage(PathBuf, #[source] io::Error),
}

/// Why the command that publishes records failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HookError {
    /// It could not be started.
    #[error("it cannot be started")]
    Start(#[source] io::Error),
    /// It ended with this code, or by a signal, after it had said so much.
    #[error("it ended with {code:?}: {said}")]
    Failed {
        /// Its code; `None` for a signal.
        code: Option<i32>,
        /// The end of what it wrote to standard error.
        said: String,
    },
    /// It did not end in time.
    #[error("it did not end in time")]
    Slow,
}

impl AcmeError {
    /// Whether it says nothing about the name: all others would fare the same.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Server(_) | Self::Secret(_) | Self::Storage(..) => true,
            Self::Refused(problem) => {
                problem.status.is_some_and(|status| status >= 500) || self.account_is_gone()
            }
            Self::NotShown(_)
            | Self::NoChallenge(_)
            | Self::Hook(_)
            | Self::TooManyPending
            | Self::Slow
            | Self::Wrong(_)
            | Self::Key(_)
            | Self::Tls(_) => false,
        }
    }

    /// Whether the authority does not know the account.
    pub(super) fn account_is_gone(&self) -> bool {
        self.is("accountDoesNotExist")
    }

    /// Whether the authority says this (RFC 8555 §6.7).
    pub(super) fn is(&self, kind: &str) -> bool {
        let told = self.problem().and_then(|problem| problem.r#type.as_deref());
        told.and_then(|told| told.strip_prefix("urn:ietf:params:acme:error:")) == Some(kind)
    }

    /// What the authority said.
    pub(super) fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) | Self::NotShown(problem) => Some(problem),
            _ => None,
        }
    }

    /// How it is counted.
    pub(super) fn result(&self) -> &'static str {
        match self {
            Self::Refused(_) | Self::NotShown(_) | Self::NoChallenge(_) => "refused",
            _ => "failed",
        }
    }
}

impl From<Error> for AcmeError {
    fn from(error: Error) -> Self {
        match error {
            Error::Api(problem) => Self::Refused(Box::new(problem)),
            Error::Timeout(_) => Self::Slow,
            error => Self::Server(error),
        }
    }
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Self {
        Self::Other(Box::new(error))
    }
}
