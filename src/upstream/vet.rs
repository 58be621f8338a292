//! Which addresses a name that a client chose may lead to: servers of the public, and nothing else that this host reaches.
//! Pure; the table is that of IANA's registries of special-purpose addresses (RFC 6890), and more.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Why a client may not be led to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// `0.0.0.0/8`, `::`: this host.
    #[error("it stands for this host")]
    Unspecified,
    /// This host, by loopback.
    #[error("it is a loopback address")]
    Loopback,
    /// An address of this host.
    #[error("it is an address of this host")]
    Own,
    /// A network that anybody may use inside (RFC 1918, RFC 4193, RFC 3879).
    #[error("it is private")]
    Private,
    /// Shared by a carrier and its customers (RFC 6598).
    #[error("it is shared address space")]
    Shared,
    /// Of the link alone (RFC 3927, RFC 4291), which has what clouds tell their machines.
    #[error("it is link-local")]
    LinkLocal,
    /// What a cloud tells its machines at an address that looks public.
    #[error("it is a service of the cloud to this machine")]
    Metadata,
    /// A group (RFC 5771, RFC 4291).
    #[error("it is a multicast address")]
    Multicast,
    /// For texts (RFC 5737, RFC 3849, RFC 9637).
    #[error("it is for documentation")]
    Documentation,
    /// For laboratories (RFC 2544, RFC 5180).
    #[error("it is for benchmarks")]
    Benchmarking,
    /// Another one in IPv6 form, or a tunnel to it: whoever translates may reach what must not be reached.
    #[error("it stands for an IPv4 address")]
    Embedding,
    /// For protocols, for the future, or for nobody.
    #[error("it is reserved")]
    Reserved,
}

const fn v4(a: u8, b: u8, c: u8, d: u8, len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len)
}

/// The network of the first 64 bits `head`.
const fn v6(head: u64, len: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::from_bits((head as u128) << 64), len)
}

/// <https://www.iana.org/assignments/iana-ipv4-special-registry>, all of it: of what is said there to be reachable from
/// everywhere (anycast of protocols) nothing is a server of somebody's name.
const V4: [(Ipv4Net, Why); 19] = [
    (v4(0, 0, 0, 0, 8), Why::Unspecified),
    (v4(10, 0, 0, 0, 8), Why::Private),
    (v4(100, 64, 0, 0, 10), Why::Shared),
    (v4(127, 0, 0, 0, 8), Why::Loopback),
    // Azure's WireServer.
    (v4(168, 63, 129, 16, 32), Why::Metadata),
    (v4(169, 254, 0, 0, 16), Why::LinkLocal),
    (v4(172, 16, 0, 0, 12), Why::Private),
    // IETF protocol assignments (RFC 6890): DS-Lite, dummies, NAT64 discovery, PCP and TURN anycast.
    (v4(192, 0, 0, 0, 24), Why::Reserved),
    (v4(192, 0, 2, 0, 24), Why::Documentation),
    // AS112 (RFC 7535, RFC 7534), AMT (RFC 7450) and 6to4 relays (RFC 7526): anycast, perhaps of one's own network.
    (v4(192, 31, 196, 0, 24), Why::Reserved),
    (v4(192, 52, 193, 0, 24), Why::Reserved),
    (v4(192, 88, 99, 0, 24), Why::Reserved),
    (v4(192, 168, 0, 0, 16), Why::Private),
    (v4(192, 175, 48, 0, 24), Why::Reserved),
    (v4(198, 18, 0, 0, 15), Why::Benchmarking),
    (v4(198, 51, 100, 0, 24), Why::Documentation),
    (v4(203, 0, 113, 0, 24), Why::Documentation),
    (v4(224, 0, 0, 0, 4), Why::Multicast),
    // With the broadcast address.
    (v4(240, 0, 0, 0, 4), Why::Reserved),
];

/// NAT64's well-known prefix (RFC 6052 §2.1).
const NAT64: Ipv6Net = v6(0x0064_ff9b_0000_0000, 96);
/// All that is given out to networks (RFC 4291 §2.4).
const GLOBAL: Ipv6Net = v6(0x2000_0000_0000_0000, 3);

/// <https://www.iana.org/assignments/iana-ipv6-special-registry>, the first that matches; what is outside [`GLOBAL`] and
/// not among these is refused as well.
const V6: [(Ipv6Net, Why); 19] = [
    (Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128), Why::Unspecified),
    (Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128), Why::Loopback),
    // IPv4-compatible (RFC 4291 §2.5.5.1), -mapped (§2.5.5.2), and -translated (RFC 2765 §2.1).
    (Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 96), Why::Embedding),
    (Ipv6Net::new_assert(Ipv6Addr::from_bits(0xffff << 32), 96), Why::Embedding),
    (Ipv6Net::new_assert(Ipv6Addr::from_bits(0xffff << 48), 96), Why::Embedding),
    (NAT64, Why::Embedding),
    // NAT64 with a prefix of one's own (RFC 8215).
    (v6(0x0064_ff9b_0001_0000, 48), Why::Embedding),
    // Teredo (RFC 4380), benchmarks (RFC 5180), and what else the IETF has (RFC 2928).
    (v6(0x2001_0000_0000_0000, 32), Why::Embedding),
    (v6(0x2001_0002_0000_0000, 48), Why::Benchmarking),
    (v6(0x2001_0000_0000_0000, 23), Why::Reserved),
    (v6(0x2001_0db8_0000_0000, 32), Why::Documentation),
    // 6to4 (RFC 3056).
    (v6(0x2002_0000_0000_0000, 16), Why::Embedding),
    // AS112 (RFC 7534).
    (v6(0x2620_004f_8000_0000, 48), Why::Reserved),
    (v6(0x3fff_0000_0000_0000, 20), Why::Documentation),
    (v6(0xfc00_0000_0000_0000, 7), Why::Private),
    (v6(0xfe80_0000_0000_0000, 10), Why::LinkLocal),
    // Site-local (RFC 3879).
    (v6(0xfec0_0000_0000_0000, 10), Why::Private),
    (v6(0xff00_0000_0000_0000, 8), Why::Multicast),
    // Discarded (RFC 6666); with it the dummies of RFC 9780.
    (v6(0x0100_0000_0000_0000, 63), Why::Reserved),
];

/// Whether a client may be led to `ip`, also because it is of one of the `internal` networks. Those never allow what stands
/// for an IPv4 address, but for NAT64's well-known prefix, when that IPv4 address may be reached itself: networks without
/// IPv4 reach the public by it.
///
/// # Errors
/// Why it may not.
pub fn vet(ip: IpAddr, internal: &[IpNet]) -> Result<(), Why> {
    let why = match ip {
        IpAddr::V4(ip) => V4.iter().find(|(network, _)| network.contains(&ip)).map(|(_, why)| *why),
        IpAddr::V6(ip) => V6
            .iter()
            .find(|(network, _)| network.contains(&ip))
            .map(|(_, why)| *why)
            .or((!GLOBAL.contains(&ip)).then_some(Why::Reserved)),
    };
    let is_internal = internal.iter().any(|network| network.contains(&ip));
    match (why, ip) {
        (None, _) => Ok(()),
        (Some(why @ Why::Embedding), IpAddr::V6(v6)) if NAT64.contains(&v6) && is_internal => {
            let [.., a, b, c, d] = v6.octets();
            vet(Ipv4Addr::new(a, b, c, d).into(), internal).map_err(|_| why)
        }
        (Some(why @ Why::Embedding), _) => Err(why),
        (Some(_), _) if is_internal => Ok(()),
        (Some(why), _) => Err(why),
    }
}

#[cfg(test)]
mod tests;
