//! The words for protocols, where not each of them makes sense.

use std::fmt;

use serde_json::Value;

use super::decode::{Problem, Text, word};
use super::schema::words;
use crate::peek::Protocol;

/// What `protocol` of a route holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProtocolWord {
    Is(Protocol),
    Any,
}

/// A protocol that a `[[test]]` can speak: not TLS, which has a hello.
#[derive(Clone, Copy, Debug)]
pub(super) struct TestProtocol(pub(super) Protocol);

/// A protocol whose servers speak first.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerFirstWord(pub(super) Protocol);

/// A protocol within which TLS can be begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct WithinWord(pub(super) Protocol);

impl fmt::Display for ProtocolWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(protocol) => protocol.fmt(f),
            Self::Any => f.write_str("any"),
        }
    }
}

impl Text for ProtocolWord {
    const EXPECTED: &'static str = "the name of a protocol";

    fn constraints() -> Value {
        words(protocol_words().map(|(word, _)| word))
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        word(text, &protocol_words().collect::<Vec<_>>())
    }
}

fn protocol_words() -> impl Iterator<Item = (&'static str, ProtocolWord)> {
    let each = Protocol::ALL.into_iter().map(|protocol| (protocol.as_str(), ProtocolWord::Is(protocol)));
    each.chain([("any", ProtocolWord::Any)])
}

/// Words for some of the protocols.
macro_rules! some_protocols {
    ($type:ident, $expected:literal, $which:expr) => {
        impl Text for $type {
            const EXPECTED: &'static str = $expected;

            fn constraints() -> Value {
                words(Protocol::ALL.into_iter().filter($which).map(Protocol::as_str))
            }

            fn parse(text: &str) -> Result<Self, Problem> {
                let some = Protocol::ALL.into_iter().filter($which);
                let some: Vec<_> = some.map(|protocol| (protocol.as_str(), protocol)).collect();
                word(text, &some).map(Self)
            }
        }
    };
}

some_protocols!(TestProtocol, "the name of a protocol", |protocol| *protocol != Protocol::Tls);
some_protocols!(ServerFirstWord, "the name of a protocol whose servers speak first", |protocol| protocol
    .is_server_first());
some_protocols!(WithinWord, "the name of a protocol within which TLS can be begun", |protocol| protocol
    .has_starttls());
