//! Which routes a name may lead to, whoever asks for it.

use std::net::{IpAddr, Ipv4Addr};

use super::{Decision, Query, RouteId, RouteTable, Verdict};
use crate::peek::{Alpn, ClientHello, Preface, ServerName};

impl RouteTable {
    /// The routes that may take a hello for `name` with these offers on the listener: those that take it from clients of
    /// some addresses or fingerprints, and the one that takes it from all others, if there is one.
    pub fn may_take(&self, name: &ServerName, alpn: &[&[u8]], listener: &str) -> Vec<RouteId> {
        let preface = Preface::Tls(Box::new(ClientHello {
            server_name: Some(name.clone()),
            alpn: Alpn::from_names(alpn.iter().copied()),
            ..ClientHello::default()
        }));
        // Nobody has this address.
        let client = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let mut some = Vec::new();
        let query = Query { preface: &preface, client, listener };
        let decision = self.find_traced(&query, |step| {
            if let Some((route, Verdict::From | Verdict::Ja4)) = step.outcome {
                some.push(route.id);
            }
        });
        if let Decision::Route(route) = decision {
            some.push(route.id);
        }
        some
    }
}
