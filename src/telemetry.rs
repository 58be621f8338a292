//! What is told to the outside: logs of the process, the access log, and the registry of metrics.

pub mod access_log;
pub mod logs;
mod queue;
mod registry;

pub use access_log::AccessLog;
pub use registry::{Family, Registry};
