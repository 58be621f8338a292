//! Allow and deny lists by network.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

/// Networks that may or may not connect; the longest prefix that contains an address decides.
#[derive(Debug, Default)]
pub struct Acl {
    v4: PrefixMap<Ipv4Net, bool>,
    v6: PrefixMap<Ipv6Net, bool>,
    only_allowed: bool,
}

impl Acl {
    /// With an empty `allow` everything is allowed that `deny` does not name; otherwise only what `allow`
    /// names.
    pub fn new(allow: &[IpNet], deny: &[IpNet]) -> Self {
        let mut acl = Self { only_allowed: !allow.is_empty(), ..Self::default() };
        let rules = deny.iter().map(|net| (net, false)).chain(allow.iter().map(|net| (net, true)));
        for (net, allowed) in rules {
            match net {
                IpNet::V4(net) => drop(acl.v4.insert(*net, allowed)),
                IpNet::V6(net) => drop(acl.v6.insert(*net, allowed)),
            }
        }
        acl
    }

    /// Whether `client` may connect. An IPv4-mapped address is its IPv4 address.
    pub fn allows(&self, client: IpAddr) -> bool {
        let rule = match client.to_canonical() {
            IpAddr::V4(ip) => self.v4.get_lpm(&Ipv4Net::from(ip)).map(|(_, allowed)| *allowed),
            IpAddr::V6(ip) => self.v6.get_lpm(&Ipv6Net::from(ip)).map(|(_, allowed)| *allowed),
        };
        rule.unwrap_or(!self.only_allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(allow: &[&str], deny: &[&str]) -> Acl {
        let parse = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>();
        Acl::new(&parse(allow), &parse(deny))
    }

    #[test]
    fn the_longest_prefix_decides() {
        let acl = acl(&["10.1.0.0/16", "2001:db8:1::/48"], &["10.0.0.0/8", "10.1.2.0/24", "2001:db8::/32"]);
        for (ip, allowed) in [
            ("10.1.0.1", true),
            ("10.1.2.1", false),
            ("10.2.0.1", false),
            ("192.0.2.1", false),
            ("2001:db8:1::9", true),
            ("2001:db8:2::9", false),
            ("::ffff:10.1.0.1", true),
        ] {
            assert_eq!(acl.allows(ip.parse().unwrap()), allowed, "{ip}");
        }
    }

    #[test]
    fn without_an_allow_list_all_but_the_denied_may() {
        let acl = acl(&[], &["192.0.2.0/24"]);
        assert!(acl.allows("198.51.100.1".parse().unwrap()));
        assert!(!acl.allows("192.0.2.200".parse().unwrap()));
        assert!(Acl::default().allows("::1".parse().unwrap()));
    }
}
