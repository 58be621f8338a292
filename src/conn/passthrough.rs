//! Passing a connection through to a backend, untouched.

use std::error::Error;

use tokio::net::TcpStream;
use tracing::{debug, warn};

use super::context::{Context, Live};
use super::record::ConnRecord;
use super::refuse::{Refusal, alert, refuse};
use super::termination::{Cause, Stage, Termination};
use crate::guard::ConnPermit;
use crate::net::{IdleLimits, RelayEnd, Upstream, relay, reset_on_close};
use crate::route::RouteId;
use crate::snapshot::Snapshot;
use crate::upstream::{ConnectError, ConnectFailure};

/// A connection with its backend.
pub(super) struct Established {
    pub(super) ends: Ends,
    /// What the client has sent already.
    pub(super) prefix: Box<[u8]>,
    /// What it counts for, until dropped.
    pub(super) _counted: (ConnPermit, Live),
}

/// Both ends of a relay. Unless each has got all that there was, closing resets them: nobody must take a
/// broken stream for a whole one, least of all when the relay is dropped in the middle of it.
pub(super) struct Ends {
    client: TcpStream,
    upstream: Upstream,
    idle: IdleLimits,
    whole: bool,
}

/// Connects to a backend of the route, or tells the client that there is none.
pub(super) async fn connect(
    client: TcpStream,
    tls: bool,
    snapshot: &Snapshot,
    route: RouteId,
    record: &mut ConnRecord,
    cx: &Context,
) -> Result<Ends, Termination> {
    let Some(backends) = snapshot.live(route).and_then(|live| live.backends.as_ref()) else {
        // The table and what belongs to its routes are built from the same configuration.
        return Err(Termination { cause: Cause::Internal, stage: Stage::Route, reason: Some("no_backends") });
    };
    record.connecting();
    match backends.upstream.connect().await {
        Ok(connection) => {
            record.connected(connection.endpoint, connection.took);
            Ok(Ends { client, upstream: connection.stream, idle: backends.idle, whole: false })
        }
        Err(ConnectFailure { error, endpoint }) => {
            let source = error.source().map(ToString::to_string);
            match error {
                // Ours, and more than this connection will feel it.
                ConnectError::Resource(_) if cx.tells_trouble() => {
                    warn!(%error, source, endpoint = endpoint.as_deref(), "no connection to a backend");
                }
                _ => debug!(%error, source, endpoint = endpoint.as_deref(), "no connection to a backend"),
            }
            record.tried(endpoint);
            let refusal = if tls { Refusal::Alert(alert::INTERNAL_ERROR) } else { Refusal::Close };
            refuse(client, refusal, record, &cx.scratch).await;
            Err(Termination::from(&error))
        }
    }
}

/// Relays until the end. The connection is borrowed: moved in, it would take its room in the future twice.
pub(super) async fn run(established: &mut Established, record: &ConnRecord, cx: &Context) -> Termination {
    let prefix = std::mem::take(&mut established.prefix);
    let Ends { client, upstream, idle, whole } = &mut established.ends;
    let end = relay(client, upstream, prefix, &cx.scratch, idle, &record.meter()).await;
    *whole = match &end {
        RelayEnd::Done => true,
        RelayEnd::Fault(fault) => fault.delivered,
        RelayEnd::Idle { stalled, .. } => stalled.is_none(),
    };
    Termination::from(&end)
}

impl Drop for Ends {
    fn drop(&mut self) {
        if !self.whole {
            reset_on_close(&self.client);
            reset_on_close(&self.upstream);
        }
    }
}
