//! Portcullis: a layer-4 TCP and TLS passthrough proxy that routes by SNI without decrypting.
//!
//! The way of a connection through the modules, from the top down; imports go the same way:
//!
//! - [`cli`] is the command line, one file a verb.
//! - [`server`] binds and builds what is shared, and takes other configurations; [`drain`] ends it; [`admin`]
//!   answers questions meanwhile and passes on what is asked for by [`control`]; [`handover`] passes sockets on to
//!   another process.
//! - [`worker`] is one data-plane thread with its sockets.
//! - [`conn`] is the life of a connection: accept, guard, peek, route, relay, one line in the log.
//! - [`snapshot`] is one generation of the configuration at work.
//! - [`probe`] asks backends what their clients see of their TLS, and finds what is wrong with it.
//! - [`service`] is what a supervisor is told, and whose rights the process keeps.
//! - [`http`] answers requests, or has them answered by backends.
//! - [`guard`] refuses by address, [`route`] chooses, [`upstream`] connects, [`telemetry`] tells.
//! - [`tls`] is TLS that ends here, with clients and with backends.
//! - [`config`] is what the user wrote, resolved.
//! - [`prelude`] is what is said before TLS inside other protocols.
//! - [`peek`] reads first bytes, [`net`] moves the others.

pub mod admin;
pub mod cli;
pub mod config;
pub mod conn;
pub mod control;
pub mod drain;
pub mod guard;
pub mod handover;
pub mod http;
pub mod net;
pub mod peek;
pub mod prelude;
pub mod probe;
pub mod route;
pub mod server;
pub mod service;
pub mod snapshot;
pub mod telemetry;
pub mod tls;
pub mod upstream;
pub mod worker;
