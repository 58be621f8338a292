//! Sockets and addresses: what the kernel gives, and nothing about routes or configuration.

mod addr;
mod connect;
mod listener;
mod own;
mod pipe;
mod proxy_protocol;
mod reactor;
mod relay;
mod socket;
mod sockopt;
mod timer;

pub use addr::{AddrError, ListenAddr, UpstreamAddr, canonical};
pub use connect::{Place, connect, probe_transparent};
pub use listener::{AcceptedSocket, Listener, adopt, bind, probe};
pub use own::{OwnListeners, is_own};
pub use pipe::{Filled, Pipe};
pub use proxy_protocol::{
    AnnouncedTls, Announcement, Hops, InstanceId, Opening, ProxyHeader, ProxyHeaderError, ProxyVersion,
};
pub use reactor::Reactor;
pub use relay::{
    Bucket, Conduit, Direction, Fault, IdleLimits, Meter, Relay, RelayEnd, Scratch, Side, Throttle,
};
pub use socket::Socket;
pub use sockopt::{BACKLOG, hide_close, reset_on_close};
pub use timer::{Moment, Timer, Timers};
