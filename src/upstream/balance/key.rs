//! The keys that hashing goes by. They are the same in every process and every version: proxies beside each other must
//! send the same client to the same endpoint.

use std::net::IpAddr;

use siphasher::sip::SipHasher24;

use crate::net::canonical;

/// The second half of the key of SipHash-2-4 for sources ("source" in ASCII), and for names ("name").
const SOURCES: u64 = 0x736f_7572_6365;
const NAMES: u64 = 0x6e61_6d65;

/// The key of a client: SipHash-2-4 of its address, 4 bytes, or of the upper half of its IPv6 address, 8 bytes, since it has
/// that /64 to itself. An IPv4 address in IPv6 form is that IPv4 address.
///
/// The `seed` is the first half of the hash's key, the same in proxies that are to agree: who knows it can find addresses
/// that go to one endpoint.
pub fn source_key(ip: IpAddr, seed: u64) -> u64 {
    let hasher = SipHasher24::new_with_keys(seed, SOURCES);
    match canonical(ip) {
        IpAddr::V4(ip) => hasher.hash(&ip.octets()),
        IpAddr::V6(ip) => {
            let [a, b, c, d, e, f, g, h, ..] = ip.octets();
            hasher.hash(&[a, b, c, d, e, f, g, h])
        }
    }
}

/// The key of a name: SipHash-2-4 of its bytes as they are; small and capital letters differ.
pub fn name_key(name: &str) -> u64 {
    SipHasher24::new_with_keys(0, NAMES).hash(name.as_bytes())
}
