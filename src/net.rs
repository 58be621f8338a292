//! Sockets and addresses: what the kernel gives, and nothing about routes or configuration.

mod addr;
mod listener;
mod pipe;
mod relay;
mod sockopt;
mod stream;
mod timer;

pub use addr::{AddrError, ClientKey, ListenAddr, UpstreamAddr};
pub use listener::{AcceptedSocket, Listener, bind, probe};
pub use pipe::{Filled, Pipe};
pub use relay::{Conduit, Direction, Fault, IdleLimits, Meter, Relay, RelayEnd, Scratch, Side};
pub use sockopt::{BACKLOG, hide_close, reset_on_close};
pub use stream::{Place, Upstream, connect};
pub use timer::{Moment, Timer, Timers};
