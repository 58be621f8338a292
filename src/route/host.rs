//! Which hosts requests may be for that come by a connection whose TLS has ended here.

use std::net::IpAddr;

use super::{Decision, Query, RouteTable};
use crate::peek::{ClientHello, Preface, ServerName};

impl RouteTable {
    /// Whether requests for `host` may come by a connection of the route `route` that began with `hello`. What was agreed on for
    /// one name is not for the names of another route (RFC 9110 §7.4).
    pub fn takes_host(
        &self,
        host: &str,
        hello: &ClientHello,
        (client, listener): (IpAddr, &str),
        route: &str,
    ) -> bool {
        if hello.server_name.as_ref().is_some_and(|name| *name.as_str() == *host) {
            return true;
        }
        let named = hello.server_name.is_some();
        let Ok(name) = ServerName::parse(host.as_bytes()) else { return !named };
        let asked =
            ClientHello { server_name: Some(name), alpn: hello.alpn.clone(), ..ClientHello::default() };
        let preface = Preface::Tls(Box::new(asked));
        match self.find(&Query { preface: &preface, client, listener }) {
            Decision::Route(found) => *found.config.name == *route,
            Decision::NoRoute(..) => !named,
        }
    }
}
