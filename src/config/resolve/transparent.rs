//! Connections to backends from the client's own address: to which backends they can be.

use std::net::IpAddr;

use ipnet::IpNet;

use super::super::decode::At;
use super::super::error::{ConfigError, ErrorKind};
use super::super::file::Route;
use super::super::source::Place;
use super::super::{ListenerConfig, Origin};
use super::Output;
use crate::net::{ListenAddr, UpstreamAddr};

/// The families that the clients of a route can have.
#[derive(Clone, Copy, Debug)]
struct Families {
    v4: bool,
    v6: bool,
}

/// Where `transparent` is switched on, which `given` says of backends of `route`; backends that no client of the route could reach so are reported.
pub(super) fn resolve(
    prefix: &str,
    to: &[(UpstreamAddr, Place)],
    (given, route): (Option<&At<bool>>, &Route),
    listeners: &[ListenerConfig],
    out: &mut Output,
) -> Option<Origin> {
    let on = given.filter(|at| at.value);
    out.note(format!("{prefix}.transparent"), on.is_some().to_string(), given.map(|at| &at.place));
    let on = on?;
    let families = Families::of(route, listeners);
    for (addr, place) in to {
        let (message, hint) = match addr {
            UpstreamAddr::Unix(_) => (
                "a Unix socket cannot be connected to from a client's address",
                "remove `transparent`, or write `proxy_protocol = \"v2\"` instead, which tells the address",
            ),
            UpstreamAddr::Ip(socket) if !families.has(socket.ip()) => (
                "the backend is of another family than all clients of the route",
                "write an address of the clients' family, or `proxy_protocol = \"v2\"` instead of `transparent`",
            ),
            UpstreamAddr::Ip(_)
            | UpstreamAddr::Name { .. }
            | UpstreamAddr::Service(_)
            | UpstreamAddr::ServerName(_) => continue,
        };
        let error = ConfigError::new(ErrorKind::Conflict, message).at(place);
        out.report(error.also(&on.place, "`transparent` is here").hint(hint));
    }
    Some(on.place.origin())
}

impl Families {
    /// By the listeners of the route, and the networks that it is for.
    fn of(route: &Route, listeners: &[ListenerConfig]) -> Self {
        let names = route.listener.values();
        let own = listeners
            .iter()
            .filter(|listener| names.is_empty() || names.iter().any(|name| *name.value.0 == *listener.name));
        let mut heard = Self { v4: false, v6: false };
        for listener in own {
            // A proxy may name a client of either family.
            let any = !listener.proxy_protocol.is_empty();
            let v4 = |bind: &ListenAddr| bind.dual_stack() || bind.socket().is_ipv4();
            heard.v4 |= any || listener.bind.iter().any(v4);
            heard.v6 |= any || listener.bind.iter().any(|bind| bind.socket().is_ipv6());
        }
        let from = route.from.values();
        let v4 = from.iter().any(|net| matches!(net.value, IpNet::V4(_)));
        let v6 = from.iter().any(|net| matches!(net.value, IpNet::V6(_)));
        Self { v4: heard.v4 && (from.is_empty() || v4), v6: heard.v6 && (from.is_empty() || v6) }
    }

    fn has(self, ip: IpAddr) -> bool {
        // A route without clients needs no backend that they could reach.
        let none = !self.v4 && !self.v6;
        none || if ip.is_ipv4() { self.v4 } else { self.v6 }
    }
}
