//! Active health checks: endpoints are asked now and then whether they serve, on the control runtime.
//!
//! [`Probe`] asks once. What is said and heard is in `greeting`, for protocols that can be told by a few bytes, in `tls`
//! and in `http`. [`Tally`] makes of many results whether an endpoint is up, [`watch`] does all of that for one endpoint,
//! and `checks` for all of a pool.

use super::Target;

mod agent;
mod checks;
mod dial;
mod error;
mod greeting;
mod http;
mod metrics;
mod probe;
mod tally;
mod tls;
mod watch;

#[cfg(test)]
mod tests;

pub use agent::{AgentReport, AgentState};
pub(super) use checks::Checks;
pub use dial::{dial, within};
pub use error::{CheckError, Excerpt, Step};
pub use metrics::HealthMetrics;
pub use probe::{Passed, Probe};
pub use tally::{Change, Tally};
pub use watch::{Checked, Report, State, share, watch};

/// Checks under way at once, of all upstreams together: each is a descriptor.
pub const CONCURRENT: usize = 64;
