//! Allow and deny lists by network.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::Limits;
use crate::net::canonical;

/// Networks that may or may not connect; the longest prefix that contains an address decides.
///
/// Prefixes are laid out flat once, as the ranges between which the decision changes: a lookup is a binary search
/// in one array, and 100,000 prefixes take 1 MB (IPv4) or 3.4 MB (IPv6).
#[derive(Debug, Default)]
pub struct Acl {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
    only_allowed: bool,
}

/// Where in the address space what is decided changes; the first range begins behind the unlisted start.
#[derive(Debug, Default)]
struct Ranges<A> {
    starts: Box<[A]>,
    verdicts: Box<[Verdict]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Unlisted,
    Allowed,
    /// Greater than `Allowed`: when the same network is both, it is denied.
    Denied,
}

/// A network as its first and last address.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: u128,
    last: u128,
    prefix_len: u8,
    verdict: Verdict,
}

impl Acl {
    /// With an empty `allow` everything is allowed that `deny` does not name; otherwise only what `allow`
    /// names.
    pub fn new(allow: &[IpNet], deny: &[IpNet]) -> Self {
        Self::from_lists(allow.iter(), deny.iter(), !allow.is_empty())
    }

    /// The lists of `limits`, those of its files as they were read.
    pub fn of(limits: &Limits) -> Self {
        let allow = limits.allow.iter().chain(limits.allow_files.iter().flat_map(|file| &*file.networks));
        let deny = limits.deny.iter().chain(limits.deny_files.iter().flat_map(|file| &*file.networks));
        // An empty file of what is allowed allows nobody.
        Self::from_lists(allow, deny, !limits.allow.is_empty() || !limits.allow_files.is_empty())
    }

    pub(super) fn from_lists<'n>(
        allow: impl Iterator<Item = &'n IpNet>,
        deny: impl Iterator<Item = &'n IpNet>,
        only_allowed: bool,
    ) -> Self {
        let listed = allow.map(|net| (net, Verdict::Allowed)).chain(deny.map(|net| (net, Verdict::Denied)));
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (net, verdict) in listed {
            let span = |first, last| Span { first, last, prefix_len: net.prefix_len(), verdict };
            match net {
                IpNet::V4(net) => {
                    v4.push(span(net.network().to_bits().into(), net.broadcast().to_bits().into()));
                }
                IpNet::V6(net) => v6.push(span(net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        let v4 = flatten(v4);
        // What begins behind the last IPv4 address is not IPv4.
        let starts = v4.iter().map_while(|(start, _)| u32::try_from(*start).ok()).collect::<Box<[_]>>();
        let verdicts = v4.iter().take(starts.len()).map(|(_, verdict)| *verdict).collect();
        let (v6_starts, v6_verdicts) = flatten(v6).into_iter().unzip::<_, _, Vec<_>, Vec<_>>();
        Self {
            v4: Ranges { starts, verdicts },
            v6: Ranges { starts: v6_starts.into(), verdicts: v6_verdicts.into() },
            only_allowed,
        }
    }

    /// Whether `client` may connect. An IPv4 address in IPv6 form is that IPv4 address.
    pub fn allows(&self, client: IpAddr) -> bool {
        match self.verdict(client) {
            Verdict::Allowed => true,
            Verdict::Denied => false,
            Verdict::Unlisted => !self.only_allowed,
        }
    }

    fn verdict(&self, client: IpAddr) -> Verdict {
        match canonical(client) {
            IpAddr::V4(ip) => self.v4.verdict(ip.to_bits()),
            IpAddr::V6(ip) => self.v6.verdict(ip.to_bits()),
        }
    }
}

impl<A: Ord> Ranges<A> {
    fn verdict(&self, address: A) -> Verdict {
        let behind = self.starts.partition_point(|start| *start <= address);
        let index = behind.checked_sub(1);
        index.and_then(|index| self.verdicts.get(index)).map_or(Verdict::Unlisted, |verdict| *verdict)
    }
}

/// The starts of ranges with what holds from there on: networks nest or are apart, so those that are open at an
/// address form a stack, of which the innermost decides.
fn flatten(mut spans: Vec<Span>) -> Vec<(u128, Verdict)> {
    spans.sort_unstable_by_key(|span| (span.first, span.prefix_len, span.verdict));
    let mut flat = Flat::default();
    let mut open: Vec<Span> = Vec::new();
    for span in spans {
        flat.close(&mut open, |last| last < span.first);
        flat.begin(span.first, span.verdict);
        open.push(span);
    }
    flat.close(&mut open, |_| true);
    flat.0
}

#[derive(Default)]
struct Flat(Vec<(u128, Verdict)>);

impl Flat {
    /// Ends the innermost networks whose last address `is_over`.
    fn close(&mut self, open: &mut Vec<Span>, is_over: impl Fn(u128) -> bool) {
        while let Some(span) = open.pop_if(|span| is_over(span.last)) {
            if let Some(next) = span.last.checked_add(1) {
                self.begin(next, open.last().map_or(Verdict::Unlisted, |outer| outer.verdict));
            }
        }
    }

    fn begin(&mut self, start: u128, verdict: Verdict) {
        let _ = self.0.pop_if(|(last, _)| *last == start);
        if self.0.last().map_or(Verdict::Unlisted, |(_, before)| *before) != verdict {
            self.0.push((start, verdict));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

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
            ("64:ff9b::10.1.0.1", true),
            ("64:ff9b::10.1.2.1", false),
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

    #[test]
    fn the_ends_of_the_address_space() {
        let acl = acl(&["0.0.0.0/0", "::/0"], &["255.255.255.255/32", "0.0.0.0/32", "ffff::/16"]);
        for (ip, allowed) in [
            ("0.0.0.0", false),
            ("0.0.0.1", true),
            ("255.255.255.254", true),
            ("255.255.255.255", false),
            ("::1", true),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false),
        ] {
            assert_eq!(acl.allows(ip.parse().unwrap()), allowed, "{ip}");
        }
    }

    #[test]
    fn a_network_that_is_on_both_lists_is_denied() {
        let acl = acl(&["10.0.0.0/8", "11.0.0.0/8"], &["10.0.0.0/8"]);
        assert!(!acl.allows("10.1.1.1".parse().unwrap()) && acl.allows("11.1.1.1".parse().unwrap()));
    }

    /// The prefix lengths that are searched one by one, the longest first.
    fn by_search(nets: &[(IpNet, bool)], ip: IpAddr, only_allowed: bool) -> bool {
        let containing = nets.iter().filter(|(net, _)| net.contains(&ip));
        let longest = containing.max_by_key(|(net, allowed)| (net.prefix_len(), !allowed));
        longest.map_or(!only_allowed, |(_, allowed)| *allowed)
    }

    proptest! {
        /// The same as by looking at every network, for lists over few addresses so that they nest.
        #[test]
        fn ranges_say_what_the_networks_say(
            nets in prop::collection::vec((any::<u8>(), 0u8..=8, any::<bool>(), any::<bool>()), 0..40),
        ) {
            let nets: Vec<(IpNet, bool)> = nets
                .into_iter()
                .map(|(bits, len, v6, allowed)| {
                    let ip: IpAddr = if v6 {
                        Ipv6Addr::from_bits(u128::from(bits) << 120).into()
                    } else {
                        Ipv4Addr::from_bits(u32::from(bits) << 24).into()
                    };
                    (IpNet::new(ip, len).unwrap().trunc(), allowed)
                })
                .collect();
            let of = |wanted| -> Vec<_> {
                nets.iter().filter(|(_, allowed)| *allowed == wanted).map(|(net, _)| *net).collect()
            };
            let (allow, deny) = (of(true), of(false));
            let acl = Acl::new(&allow, &deny);
            for bits in 0..=255u8 {
                let v4 = IpAddr::V4(Ipv4Addr::from_bits((u32::from(bits) << 24) | 7));
                let v6 = IpAddr::V6(Ipv6Addr::from_bits((u128::from(bits) << 120) | 7));
                for ip in [v4, v6] {
                    prop_assert_eq!(acl.allows(ip), by_search(&nets, ip, !allow.is_empty()), "{}", ip);
                }
            }
        }
    }

    #[test]
    fn a_hundred_thousand_prefixes_take_a_few_megabytes() {
        let v4 = (0..100_000u32).map(|n| IpNet::new(Ipv4Addr::from_bits(n << 14).into(), 24).unwrap());
        let v6 = (0..100_000u128).map(|n| IpNet::new(Ipv6Addr::from_bits(n << 96).into(), 48).unwrap());
        let nets: Vec<IpNet> = v4.chain(v6).collect();
        let acl = Acl::new(&[], &nets);
        let bytes = acl.v4.starts.len() * 5 + acl.v6.starts.len() * 17;
        assert!((2_000_000..8_000_000).contains(&bytes), "{bytes}");
        assert!(!acl.allows("0.1.64.9".parse().unwrap()) && acl.allows("0.1.65.9".parse().unwrap()));
    }
}
