//! What the backends of passthrough routes show of their TLS, and what is wrong with it.
//!
//! The proxy does not decrypt, so it cannot see what its clients see; it asks for itself. [`Plan`] is which handshakes are
//! made (pure), [`run`] makes them, [`lint`] finds what is wrong with what was [`Seen`] (pure), `report` is that for people
//! and programs, [`Watch`] does it again and again.

mod lint;
mod metrics;
mod plan;
mod report;
mod round;
mod watch;

#[cfg(test)]
mod tests;

pub use lint::{Covered, Finding, Findings, RouteRef, What, lint};
pub use plan::{Aim, Plan, Scope};
pub use report::{findings_to_json, seen_to_json, table};
pub use round::{Facts, Failure, Seen, run};
pub use watch::Watch;
