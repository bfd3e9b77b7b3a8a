//! What `ipnetwork` leaves out: prefixes in canonical form, containment across families, the first host.

use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// The prefix with its host bits cleared.
#[must_use]
pub fn canonical(net: IpNetwork) -> IpNetwork {
    IpNetwork::new(net.network(), net.prefix()).expect("the prefix length of a valid network is valid")
}

/// The /32 or /128 of one address.
#[must_use]
pub fn host(address: IpAddr) -> IpNetwork {
    IpNetwork::from(address)
}

/// Whether `inner` lies within `outer` (equal counts); false across families.
#[must_use]
pub fn contains(outer: IpNetwork, inner: IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

/// Whether two prefixes share an address.
#[must_use]
pub fn overlaps(a: IpNetwork, b: IpNetwork) -> bool {
    contains(a, b) || contains(b, a)
}

/// The node's own overlay address in one of its pod CIDRs: the one after the network address, which is left
/// alone because in IPv6 it is the subnet-router anycast address (RFC 4291, section 2.6.1). None for a prefix
/// that holds fewer than four addresses: it could hold no pod.
#[must_use]
pub fn overlay_address(pod_cidr: IpNetwork) -> Option<IpAddr> {
    match pod_cidr {
        IpNetwork::V4(n) if n.prefix() <= 30 => Some(Ipv4Addr::from_bits(n.network().to_bits() + 1).into()),
        IpNetwork::V6(n) if n.prefix() <= 126 => Some(Ipv6Addr::from_bits(n.network().to_bits() + 1).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn prefixes_contain_and_overlap_within_a_family() {
        assert!(contains(net("10.0.0.0/8"), net("10.1.0.0/16")));
        assert!(!contains(net("10.1.0.0/16"), net("10.0.0.0/8")));
        assert!(overlaps(net("10.1.0.0/16"), net("10.0.0.0/8")));
        assert!(!overlaps(net("0.0.0.0/0"), net("::/0")));
        assert_eq!(canonical(net("10.1.2.3/16")), net("10.1.0.0/16"));
    }

    #[test]
    fn the_overlay_address_is_the_first_host() {
        assert_eq!(
            overlay_address(net("10.244.1.0/24")),
            Some("10.244.1.1".parse().unwrap())
        );
        assert_eq!(
            overlay_address(net("fd00:244:0:1::/64")),
            Some("fd00:244:0:1::1".parse().unwrap())
        );
        assert_eq!(overlay_address(net("10.0.0.0/31")), None);
    }
}
