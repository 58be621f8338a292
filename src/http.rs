//! Requests of HTTP: read, looked up, answered here or by a backend.
//!
//! `serve` speaks with a client (`h1`, `h2`); each request is one call of `handle`, which finds its rule in a [`Site`] and
//! has it answered: by `forward` (a backend), `files`, or `answer` (a redirect, a fixed answer, the page of an error). What is
//! decided without a connection is pure: `target`, `rules`, `fields`, `rewrite`, `template`, `page`, and heads and chunks
//! below `h1`.
//!
//! Reading and writing are our own, over `httparse` and `h2`: nothing else tells a client early hints, leaves no buffer with
//! an idle connection, and lets each byte be answered for.

use std::rc::Rc;

use bytes::Bytes;

use crate::tls::End;

mod answer;
mod attempt;
mod client;
mod connection;
pub mod disk;
mod ended;
mod failure;
pub mod fields;
pub mod files;
mod flow;
mod forward;
pub mod h1;
mod h2;
mod handle;
mod kept;
mod limits;
mod local;
mod metrics;
pub mod page;
pub mod path;
mod policies;
mod proxy;
mod rate;
mod record;
mod reply;
pub mod rewrite;
pub mod rules;
mod sink;
mod site;
mod source;
mod split;
mod spool;
pub mod target;
pub mod template;
mod tunnel;
mod wire;

pub use connection::{Connection, Thread};
pub use ended::Ended;
pub use handle::admit;
pub use record::Line;
pub use site::Site;
pub use wire::Count;

/// What a client of HTTP/2 begins with (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves the requests of a connection of which `said` was read already, until it ends. What is spoken is what was agreed on
/// by ALPN; in clear, what the client begins with.
pub async fn serve(end: End, said: &[u8], connection: Connection) -> Ended {
    let is_h2 = match end.alpn() {
        Some(name) => name == b"h2",
        None => !connection.tls && said.starts_with(PREFACE),
    };
    if is_h2 {
        return Box::pin(h2::serve(end, Bytes::copy_from_slice(said), Rc::new(connection))).await;
    }
    let count = Rc::clone(&connection.count);
    let wire = wire::Wire::new(end, said, &connection.thread.scratch, Some(count));
    Box::pin(h1::serve(Rc::new(wire), &connection)).await
}
