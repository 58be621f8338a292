//! The PROXY header that a trusted proxy sends first: whose connection it is.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use tracing::debug;

use super::context::{Context, ListenerContext};
use super::limited::{self, Entering};
use super::peek::{First, Limits, PeekError, read_more};
use super::record::ConnRecord;
use super::refuse::{Refusal, refuse};
use super::termination::Termination;
use crate::guard::{ConnPermit, Rejection};
use crate::net::{Hops, ProxyHeader, ProxyHeaderError, Socket, Timer};

/// Why a connection ended before it was known whose it is, or because of whose it is.
#[derive(Debug)]
pub(super) enum HeaderError {
    /// No whole header in time.
    Timeout,
    /// Something else, or a header that is none.
    Header(ProxyHeaderError),
    /// The connection ended or failed before.
    Read(PeekError),
    /// It has been here before, or at too many others.
    Loop,
    /// The client that it names may not connect, and is told so in this way.
    Refused(Refusal, Rejection),
}

/// What the header of a trusted proxy tells of a connection, beside the client.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// What the client connected to.
    pub(super) destination: Option<SocketAddr>,
    /// What the connection has come through.
    pub(super) hops: Hops,
}

impl HeaderError {
    /// One for each reason that is counted as a refusal and is no other's.
    #[cfg(test)]
    pub(super) const REFUSED: [Self; 4] = [
        Self::Header(ProxyHeaderError::Missing),
        Self::Header(ProxyHeaderError::Line),
        Self::Timeout,
        Self::Loop,
    ];

    /// The word for it in logs and metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Timeout => "proxy_timeout",
            Self::Header(ProxyHeaderError::Missing) => "proxy_missing",
            Self::Header(
                ProxyHeaderError::TooLong
                | ProxyHeaderError::Line
                | ProxyHeaderError::Kind
                | ProxyHeaderError::Addresses
                | ProxyHeaderError::Tlvs
                | ProxyHeaderError::Checksum,
            ) => "proxy_header",
            Self::Read(error) => error.reason(),
            Self::Loop => "loop",
            Self::Refused(_, rejection) => rejection.reason().as_str(),
        }
    }
}

/// Reads the header of a trusted proxy into the `first` bytes, of which then what follows it is left, and counts the connection
/// for the client that it names.
pub(super) async fn identify(
    stream: &mut Socket,
    first: First<'_, '_>,
    limits: Limits,
    (record, entering): (&mut ConnRecord, Entering<'_>),
    cx: &Context,
    timer: &mut Timer<'_>,
) -> Result<Told, HeaderError> {
    record.awaits_header();
    let First { bytes: said, held } = first;
    let header = read_header(stream, First { bytes: said, held }, limits, cx, timer).await?;
    said.drain(..header.len);
    // From now on it is told of as the client's, also when that is refused.
    record.named(header.ends.map(|(client, _)| client));
    if header.hops.is_loop(cx.shared.instance) {
        return Err(HeaderError::Loop);
    }
    let listener = entering.listener;
    let take = |permit: &mut ConnPermit, client: IpAddr| {
        let guard = cx.shared.guard.load();
        match header.ends {
            Some(_) => permit.count_for(&guard, client, &listener.name, Instant::now()),
            None => permit.count_for_nobody(&guard, client, Instant::now()),
        }
    };
    let entered = limited::enter(entering, take, record, cx, timer).await;
    entered.map_err(|(refusal, rejection)| HeaderError::Refused(refusal, rejection))?;
    record.identified();
    Ok(Told { destination: header.ends.map(|(_, destination)| destination), hops: header.hops })
}

async fn read_header(
    stream: &mut Socket,
    first: First<'_, '_>,
    limits: Limits,
    cx: &Context,
    timer: &mut Timer<'_>,
) -> Result<ProxyHeader, HeaderError> {
    let First { bytes: said, held } = first;
    loop {
        // As much as a hello may have behind it.
        let room = (ProxyHeader::MAX + limits.max_hello).saturating_sub(said.len());
        match timer.timeout_at(limits.hello_by, read_more(stream, said, &cx.scratch, room)).await {
            Some(read) => read.map_err(HeaderError::Read)?,
            None => return Err(HeaderError::Timeout),
        }
        if let Some(header) = ProxyHeader::read(said).map_err(HeaderError::Header)? {
            return Ok(header);
        }
        if !held.grow_to(said.capacity()) {
            return Err(HeaderError::Read(PeekError::NoRoom));
        }
    }
}

/// Ends a connection that `error` keeps from being served.
pub(super) async fn turn_away(
    stream: Socket,
    error: HeaderError,
    listener: &ListenerContext,
    record: &mut ConnRecord,
    cx: &Context,
    timer: &mut Timer<'_>,
) -> Termination {
    let refusal = match &error {
        HeaderError::Read(error) => {
            listener.metrics.hello_failed(error);
            if error.is_refused() {
                record.refused();
            }
            return HeaderError::Read(*error).into();
        }
        // Counted where it was refused.
        HeaderError::Refused(refusal, _) => {
            refuse(stream, refusal.clone(), record, &cx.scratch, timer).await;
            return error.into();
        }
        HeaderError::Header(error) => {
            debug!(proxy = %record.client(), %error, "a trusted proxy did not send a PROXY header");
            Refusal::Close
        }
        HeaderError::Timeout | HeaderError::Loop => Refusal::Close,
    };
    record.refused();
    listener.metrics.rejected(Some(error.reason()));
    refuse(stream, refusal, record, &cx.scratch, timer).await;
    error.into()
}
