//! Sockets and addresses: what the kernel gives, and nothing about routes or configuration.

mod addr;

pub use addr::{AddrError, ClientKey, ListenAddr, UpstreamAddr};
