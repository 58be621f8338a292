//! Running as a service: whose rights the process keeps.

mod identity;

pub use identity::take_on;
