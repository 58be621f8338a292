//! Portcullis: a layer-4 TCP and TLS passthrough proxy that routes by SNI without decrypting.

pub mod config;
pub mod conn;
pub mod guard;
pub mod net;
pub mod peek;
pub mod route;
pub mod snapshot;
pub mod telemetry;
pub mod upstream;
