//! Servers that clients name: the server name of the hello is looked up while the client waits, what comes of it is
//! vetted, and a vetted address is what is connected to. It is not looked up again in between, so that whoever rules the
//! name cannot have one address vetted and another one connected to (DNS rebinding).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ipnet::IpNet;

use super::vet::{Why, vet};
use super::{ConnectError, OnDemand};
use crate::net::{OwnListeners, is_own};

/// Addresses of a name that are tried at most.
const TRIED: usize = 4;
/// Addresses that are looked at to find so many: of one that passes, the kernel is asked whose it is.
const LOOKED_AT: usize = 16;

/// How the servers that clients name are found.
#[derive(Debug)]
pub struct Forward {
    names: OnDemand,
    /// Networks that may be connected to although they are not the public's.
    internal: Vec<IpNet>,
    own: Arc<OwnListeners>,
    turn: AtomicUsize,
}

impl Forward {
    /// Asks `names`, and never leads to one of its `own` listeners.
    pub fn new(names: OnDemand, internal: Vec<IpNet>, own: Arc<OwnListeners>) -> Self {
        Self { names, internal, own, turn: AtomicUsize::new(0) }
    }

    /// Where the server `name` is to be tried at `port`, in this order.
    ///
    /// # Errors
    /// When it has no address, none that may be connected to, or nobody could say.
    pub(super) async fn find(&self, name: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
        let found = self.names.find(name).await.map_err(|error| {
            if error.is_negative() { ConnectError::NoEndpoint } else { ConnectError::Dns(error) }
        })?;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        chosen(&found, port, turn, |addr| self.vet(addr))
    }

    fn vet(&self, addr: SocketAddr) -> Result<(), Why> {
        let ip = addr.ip();
        vet(ip, &self.internal)?;
        let is_internal = self.internal.iter().any(|network| network.contains(&ip));
        if self.own.take(addr) || !is_internal && is_own(ip) { Err(Why::Own) } else { Ok(()) }
    }
}

/// Those of the `found` addresses that pass, both families by turns, in each beginning with the `turn`th. The others of an
/// answer do no harm: nobody connects to them. Were the whole answer refused, one record would keep all from a server.
fn chosen(
    found: &[IpAddr],
    port: u16,
    turn: usize,
    vet: impl Fn(SocketAddr) -> Result<(), Why>,
) -> Result<Vec<SocketAddr>, ConnectError> {
    let family = |v6: bool| {
        let mut of: Vec<IpAddr> = found.iter().copied().filter(|ip| ip.is_ipv6() == v6).collect();
        let begin = turn.checked_rem(of.len()).unwrap_or(0);
        of.rotate_left(begin);
        of.into_iter().enumerate().map(move |(place, ip)| ((place, !v6), ip))
    };
    let mut all: Vec<_> = family(true).chain(family(false)).collect();
    all.sort_by_key(|(order, _)| *order);
    let mut last = ConnectError::NoEndpoint;
    let mut passed = Vec::new();
    for (_, ip) in all.into_iter().take(LOOKED_AT) {
        let addr = SocketAddr::new(ip, port);
        match vet(addr) {
            Ok(()) => passed.push(addr),
            Err(why) => {
                tracing::debug!(%addr, %why, "a client may not be led there");
                last = ConnectError::Blocked(why);
            }
        }
        if passed.len() == TRIED {
            break;
        }
    }
    if passed.is_empty() { Err(last) } else { Ok(passed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(found: &[&str], turn: usize) -> Result<Vec<String>, ConnectError> {
        let found: Vec<_> = found.iter().map(|ip| ip.parse().unwrap()).collect();
        let chosen = chosen(&found, 443, turn, |addr| vet(addr.ip(), &[]))?;
        Ok(chosen.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn families_take_turns_and_so_do_their_addresses() {
        let both = ["1.0.0.1", "1.0.0.2", "1.0.0.3", "2600::1", "2600::2"];
        assert_eq!(
            choose(&both, 0).unwrap(),
            ["[2600::1]:443", "1.0.0.1:443", "[2600::2]:443", "1.0.0.2:443"]
        );
        assert_eq!(
            choose(&both, 4).unwrap(),
            ["[2600::1]:443", "1.0.0.2:443", "[2600::2]:443", "1.0.0.3:443"]
        );
        assert_eq!(choose(&["1.0.0.1"], usize::MAX).unwrap(), ["1.0.0.1:443"]);
    }

    #[test]
    fn what_does_not_pass_is_left_out_and_alone_it_is_refused() {
        assert_eq!(choose(&["10.0.0.1", "1.0.0.1", "::1", "127.0.0.1"], 0).unwrap(), ["1.0.0.1:443"]);
        assert!(matches!(choose(&["::ffff:127.0.0.1"], 0), Err(ConnectError::Blocked(Why::Embedding))));
        assert!(matches!(choose(&[], 3), Err(ConnectError::NoEndpoint)));
    }

    /// However many there are, few are looked at.
    #[test]
    fn an_answer_of_many_addresses_costs_no_more_than_one_of_some() {
        let many: Vec<IpAddr> = (0..=255).map(|last| IpAddr::from([1, 0, 0, last])).collect();
        let asked = std::cell::Cell::new(0);
        let refuse = |_| {
            asked.set(asked.get() + 1);
            Err(Why::Own)
        };
        assert!(matches!(chosen(&many, 443, 0, refuse), Err(ConnectError::Blocked(Why::Own))));
        assert_eq!(asked.get(), LOOKED_AT);
        assert_eq!(chosen(&many, 443, 7, |_| Ok(())).unwrap().len(), TRIED);
    }
}
