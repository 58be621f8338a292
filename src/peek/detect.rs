//! One incremental detector for everything that may arrive on a port.

use super::client_hello::{ClientHello, HelloError, HelloReader};
use super::{
    PatternId, Patterns, Preface, Protocol, amqp, dns, http, ldap, mail, mqtt, openvpn, postgres, rdp, redis,
    socks, ssh, xmpp,
};
use crate::net::Opening;

/// The bytes by which a TLS connection is known for good: a handshake record of major version 3. From there
/// on bad bytes are a bad hello and never another protocol.
const TLS: [&[u8]; 1] = [&[22, 3]];

/// What is looked for beside TLS. Three rules make the verdict one of the bytes and not of how they were cut:
///
/// - once a detector has said `Is` or `No`, more bytes change nothing;
/// - no bytes are `Is` for two of them, so that one that needs more never holds back another's `Is`;
/// - none takes a first byte of 22, nor what a PROXY header begins with.
///
/// Servers of MySQL, FTP and ManageSieve speak first, and their clients have nothing to say before.
pub(super) const DETECTORS: [Detection; 16] = [
    Detection::of(Protocol::Http, http::step),
    Detection::of(Protocol::H2c, http::h2c),
    Detection::of(Protocol::Ssh, ssh::step),
    Detection::of(Protocol::Postgres, postgres::step),
    Detection::of(Protocol::Smtp, mail::smtp),
    Detection::of(Protocol::Imap, mail::imap),
    Detection::of(Protocol::Pop3, mail::pop3),
    Detection::of(Protocol::Ldap, ldap::step),
    Detection::of(Protocol::Xmpp, xmpp::step),
    Detection::of(Protocol::Mqtt, mqtt::step),
    Detection::of(Protocol::Amqp, amqp::step),
    Detection::of(Protocol::Redis, redis::step),
    Detection::of(Protocol::Dns, dns::step),
    Detection::of(Protocol::Openvpn, openvpn::step),
    Detection::of(Protocol::Rdp, rdp::step),
    Detection::of(Protocol::Socks, socks::step),
];

/// A protocol, and how its first bytes are known.
#[derive(Clone, Copy)]
pub(super) struct Detection {
    pub(super) protocol: Protocol,
    pub(super) step: fn(&[u8]) -> Step,
}

/// One step of a detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    NeedMore,
    Is,
    No,
}

impl Detection {
    const fn of(protocol: Protocol, step: fn(&[u8]) -> Step) -> Self {
        Self { protocol, step }
    }
}

impl Step {
    /// What it is once enough was there to see whether it `is`.
    pub(super) fn of(is: Option<bool>) -> Self {
        match is {
            None => Self::NeedMore,
            Some(true) => Self::Is,
            Some(false) => Self::No,
        }
    }
}

/// Finds out what a connection is from its first bytes, however they are cut.
#[derive(Clone, Debug)]
pub struct Detector<'t> {
    max_hello: usize,
    ja4: bool,
    patterns: Patterns<'t>,
    tls: Option<HelloReader>,
}

impl<'t> Detector<'t> {
    /// A detector that lets a ClientHello take up to `max_hello` bytes on the wire.
    pub fn new(max_hello: usize) -> Self {
        Self { max_hello, ja4: false, patterns: Patterns::default(), tls: None }
    }

    /// Whether the fingerprint of a ClientHello is wanted too.
    pub fn with_ja4(mut self, wanted: bool) -> Self {
        self.ja4 = wanted;
        self
    }

    /// The patterns that are looked for in what is no known protocol.
    pub fn with_patterns(mut self, patterns: Patterns<'t>) -> Self {
        self.patterns = patterns;
        self
    }

    /// Looks at `bytes`, all bytes of the connection so far. `Ok(None)` means that more are needed.
    ///
    /// Calls must pass the same bytes again, grown or not.
    ///
    /// # Errors
    /// When the bytes begin like TLS and are not a well-formed ClientHello, or are a PROXY header.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<Option<Preface>, HelloError> {
        if let Some(reader) = &mut self.tls {
            let assembled = reader.advance(bytes, self.max_hello)?;
            return Ok(assembled.map(|assembled| Preface::Tls(Box::new(assembled.hello))));
        }
        match begins_with(bytes, &TLS) {
            Step::Is => {
                self.tls = Some(HelloReader::default().with_ja4(self.ja4));
                return self.advance(bytes);
            }
            Step::NeedMore => return Ok(None),
            Step::No => {}
        }
        match Opening::of(bytes) {
            // A backend that trusts this proxy would believe it.
            Opening::Header => return Err(HelloError::ProxyHeader),
            Opening::NeedMore => return Ok(None),
            Opening::Other => {}
        }
        let mut undecided = false;
        for Detection { protocol, step } in DETECTORS {
            match step(bytes) {
                Step::Is => return Ok(Some(Preface::Other(protocol))),
                Step::NeedMore => undecided = true,
                Step::No => {}
            }
        }
        if undecided {
            return Ok(None);
        }
        Ok(self.patterns.first(bytes).ok().map(Preface::unknown))
    }

    /// What a connection is of which nothing comes after `bytes`, for which [`Self::advance`] wants more: a client that
    /// waits now has said what it has to say. `None` when that makes no difference: nothing has come, or what may
    /// become TLS or a PROXY header, which no route may get past by waiting.
    pub fn settle(&self, bytes: &[u8]) -> Option<Preface> {
        let held = bytes.is_empty()
            || self.tls.is_some()
            || begins_with(bytes, &TLS) != Step::No
            || Opening::of(bytes) != Opening::Other;
        (!held).then(|| Preface::unknown(self.patterns.settle(bytes)))
    }

    /// Whether a connection that begins with `bytes` is TLS for good, well-formed or not.
    pub fn begins_tls(bytes: &[u8]) -> bool {
        begins_with(bytes, &TLS) == Step::Is
    }
}

pub(super) fn begins_with(bytes: &[u8], prefixes: &[&[u8]]) -> Step {
    if prefixes.iter().any(|prefix| bytes.starts_with(prefix)) {
        Step::Is
    } else if prefixes.iter().any(|prefix| prefix.starts_with(bytes)) {
        Step::NeedMore
    } else {
        Step::No
    }
}

impl Preface {
    /// What is no known protocol, and may match a pattern.
    fn unknown(pattern: Option<PatternId>) -> Self {
        pattern.map_or(Self::Other(Protocol::Unknown), Self::Pattern)
    }

    /// The protocol; where TLS is begun within one, that one.
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::Tls(hello) => hello.within.unwrap_or(Protocol::Tls),
            Self::Startup(_) => Protocol::Postgres,
            Self::Pattern(_) => Protocol::Unknown,
            Self::Other(protocol) => *protocol,
        }
    }

    /// Whether what a client has sent, in `len` bytes, does nothing by itself however many servers get it: a hello without
    /// early data (RFC 8446 §8) and nothing behind it, or nothing at all.
    pub fn may_be_repeated(&self, len: usize) -> bool {
        match self {
            Self::Tls(hello) => !hello.early_data && hello.wire_len() == len,
            Self::Startup(_) | Self::Pattern(_) => false,
            Self::Other(_) => len == 0,
        }
    }

    /// The hello of a TLS connection.
    pub fn hello(&self) -> Option<&ClientHello> {
        match self {
            Self::Tls(hello) => Some(hello),
            Self::Startup(_) | Self::Pattern(_) | Self::Other(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
