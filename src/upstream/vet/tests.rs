use proptest::prelude::*;

use super::*;

fn refused(ip: &str) -> Option<Why> {
    vet(ip.parse().unwrap(), &[]).err()
}

/// Every entry of both registries as of 2025, by its first and its last address.
const REGISTERED: [(&str, &str, Why); 56] = [
    ("0.0.0.0", "0.255.255.255", Why::Unspecified),
    ("10.0.0.0", "10.255.255.255", Why::Private),
    ("100.64.0.0", "100.127.255.255", Why::Shared),
    ("127.0.0.0", "127.255.255.255", Why::Loopback),
    ("169.254.0.0", "169.254.255.255", Why::LinkLocal),
    ("172.16.0.0", "172.31.255.255", Why::Private),
    ("192.0.0.0", "192.0.0.255", Why::Reserved),
    ("192.0.0.0", "192.0.0.7", Why::Reserved),
    ("192.0.0.8", "192.0.0.8", Why::Reserved),
    ("192.0.0.9", "192.0.0.10", Why::Reserved),
    ("192.0.0.170", "192.0.0.171", Why::Reserved),
    ("192.0.2.0", "192.0.2.255", Why::Documentation),
    ("192.31.196.0", "192.31.196.255", Why::Reserved),
    ("192.52.193.0", "192.52.193.255", Why::Reserved),
    ("192.88.99.0", "192.88.99.255", Why::Reserved),
    ("192.168.0.0", "192.168.255.255", Why::Private),
    ("192.175.48.0", "192.175.48.255", Why::Reserved),
    ("198.18.0.0", "198.19.255.255", Why::Benchmarking),
    ("198.51.100.0", "198.51.100.255", Why::Documentation),
    ("203.0.113.0", "203.0.113.255", Why::Documentation),
    ("240.0.0.0", "255.255.255.254", Why::Reserved),
    ("255.255.255.255", "255.255.255.255", Why::Reserved),
    ("::1", "::1", Why::Loopback),
    ("::", "::", Why::Unspecified),
    ("::ffff:0.0.0.0", "::ffff:255.255.255.255", Why::Embedding),
    ("64:ff9b::", "64:ff9b::ffff:ffff", Why::Embedding),
    ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", Why::Embedding),
    ("100::", "100::ffff:ffff:ffff:ffff", Why::Reserved),
    ("100:0:0:1::", "100:0:0:1:ffff:ffff:ffff:ffff", Why::Reserved),
    ("2001::", "2001::ffff:ffff:ffff:ffff:ffff:ffff", Why::Embedding),
    ("2001:1::1", "2001:1::3", Why::Reserved),
    ("2001:2::", "2001:2:0:ffff:ffff:ffff:ffff:ffff", Why::Benchmarking),
    ("2001:3::", "2001:3:ffff:ffff:ffff:ffff:ffff:ffff", Why::Reserved),
    ("2001:4:112::", "2001:4:112:ffff:ffff:ffff:ffff:ffff", Why::Reserved),
    ("2001:10::", "2001:1f:ffff:ffff:ffff:ffff:ffff:ffff", Why::Reserved),
    ("2001:20::", "2001:2f:ffff:ffff:ffff:ffff:ffff:ffff", Why::Reserved),
    ("2001:30::", "2001:3f:ffff:ffff:ffff:ffff:ffff:ffff", Why::Reserved),
    ("2001:40::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", Why::Reserved),
    ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", Why::Documentation),
    ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Why::Embedding),
    ("2620:4f:8000::", "2620:4f:8000:ffff:ffff:ffff:ffff:ffff", Why::Reserved),
    ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", Why::Documentation),
    ("5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Why::Reserved),
    ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Why::Private),
    ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Why::LinkLocal),
    // Of other registries: multicast, what was site-local, what embeds IPv4 and is not registered, and what no network has.
    ("224.0.0.0", "239.255.255.255", Why::Multicast),
    ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Why::Multicast),
    ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Why::Private),
    ("::2", "::ffff:ffff", Why::Embedding),
    ("::ffff:0:0.0.0.0", "::ffff:0:255.255.255.255", Why::Embedding),
    ("200::", "3ff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Why::Reserved),
    ("4000::", "5eff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Why::Reserved),
    ("fe00::", "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Why::Reserved),
    // What clouds tell their machines.
    ("169.254.169.254", "169.254.170.2", Why::LinkLocal),
    ("fd00:ec2::254", "fd20:ce::254", Why::Private),
    ("168.63.129.16", "168.63.129.16", Why::Metadata),
];

#[test]
fn every_registered_network_is_refused_from_its_first_to_its_last_address() {
    for (first, last, why) in REGISTERED {
        assert_eq!((refused(first), refused(last)), (Some(why), Some(why)), "{first} to {last}");
    }
}

#[test]
fn what_lies_beside_them_is_public() {
    for ip in [
        "1.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "168.63.129.15",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "191.255.255.255",
        "192.0.1.0",
        "192.0.3.0",
        "192.88.98.255",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.99.255",
        "198.51.101.0",
        "203.0.112.255",
        "203.0.114.0",
        "223.255.255.255",
        "93.184.216.34",
        "2000::",
        "2001:200::",
        "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:db9::",
        "2003::",
        "2606:4700::1111",
        "2620:4f:7fff::",
        "3ffe:ffff::",
        "3fff:1000::",
        "2a00:1450:4001:800::200e",
    ] {
        assert_eq!(refused(ip), None, "{ip}");
    }
}

#[test]
fn internal_networks_are_allowed_and_never_another_form_of_them() {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
    let internal = nets(&["10.1.0.0/16", "fd00:1::/32", "127.0.0.0/8"]);
    for (ip, why) in [
        ("10.1.2.3", None),
        ("127.0.0.1", None),
        ("fd00:1::7", None),
        ("93.184.216.34", None),
        ("10.2.0.0", Some(Why::Private)),
        ("fd00:2::7", Some(Why::Private)),
        ("::ffff:10.1.2.3", Some(Why::Embedding)),
        ("::10.1.2.3", Some(Why::Embedding)),
        ("64:ff9b::10.1.2.3", Some(Why::Embedding)),
        ("2002:0a01:0203::1", Some(Why::Embedding)),
    ] {
        assert_eq!(vet(ip.parse().unwrap(), &internal).err(), why, "{ip}");
    }
    let with_nat64 = nets(&["10.1.0.0/16", "64:ff9b::/96", "2002::/16", "64:ff9b:1::/48", "::/0"]);
    for (ip, why) in [
        ("64:ff9b::93.184.216.34", None),
        ("64:ff9b::10.1.2.3", None),
        ("64:ff9b::10.2.0.0", Some(Why::Embedding)),
        ("64:ff9b::127.0.0.1", Some(Why::Embedding)),
        ("64:ff9b::169.254.169.254", Some(Why::Embedding)),
        ("64:ff9b:1::93.184.216.34", Some(Why::Embedding)),
        ("2002:5db8:d822::1", Some(Why::Embedding)),
        ("::ffff:10.1.2.3", Some(Why::Embedding)),
    ] {
        assert_eq!(vet(ip.parse().unwrap(), &with_nat64).err(), why, "{ip}");
    }
}

proptest! {
    /// The standard library's own idea of the same, as far as it has one.
    #[test]
    fn what_the_standard_library_calls_special_is_refused(v4 in any::<[u8; 4]>(), v6 in any::<[u8; 16]>()) {
        let v4 = Ipv4Addr::from(v4);
        let special = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_broadcast()
            || v4.is_documentation() || v4.is_multicast() || v4.is_unspecified();
        prop_assert!(!special || vet(v4.into(), &[]).is_err(), "{v4}");
        let mapped = [v4.to_ipv6_mapped(), v4.to_ipv6_compatible()];
        prop_assert!(mapped.iter().all(|ip| vet((*ip).into(), &[]).is_err()), "{v4}");
        let v6 = Ipv6Addr::from(v6);
        let special = v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unique_local() || v6.is_multicast();
        prop_assert!(!special || vet(v6.into(), &[]).is_err(), "{v6}");
        prop_assert!(v6.octets()[0] >> 5 == 1 || vet(v6.into(), &[]).is_err(), "{v6}");
    }
}
