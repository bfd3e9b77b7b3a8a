//! What a node may claim. Prefixes and addresses of peers come from annotations that anyone who may write a Node
//! can forge, so each is checked by itself: a bad one is refused and reported, the others count.

use ipnetwork::IpNetwork;
use meshd_model::net::{canonical, contains, host, overlaps};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// At most this many pod CIDRs of a node are used, and as many node addresses.
pub(crate) const CLAIMS_MAX: usize = 64;
/// At most this many endpoint addresses are published.
pub(crate) const ENDPOINTS_MAX: usize = 8;

/// The ranges of the cluster and the node's own addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bounds {
    /// The cluster's pod CIDRs, canonical.
    pub(crate) pods: Vec<IpNetwork>,
    /// The cluster's service CIDRs, canonical.
    pub(crate) services: Vec<IpNetwork>,
    /// Addresses of this node.
    pub(crate) own: BTreeSet<IpAddr>,
}

/// Something that a node claims and does not get.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Refused {
    /// The prefix or address.
    pub(crate) what: String,
    /// Why.
    pub(crate) why: String,
}

impl Refused {
    pub(crate) fn new(what: impl ToString, why: impl Into<String>) -> Self {
        Self {
            what: what.to_string(),
            why: why.into(),
        }
    }
}

impl Bounds {
    pub(crate) fn new(pods: &[IpNetwork], services: &[IpNetwork]) -> Self {
        Self {
            pods: pods.iter().copied().map(canonical).collect(),
            services: services.iter().copied().map(canonical).collect(),
            own: BTreeSet::new(),
        }
    }

    /// A pod CIDR of any node.
    pub(crate) fn pod_cidr(&self, prefix: IpNetwork) -> Result<IpNetwork, Refused> {
        let prefix = canonical(prefix);
        if !self.pods.iter().any(|outer| contains(*outer, prefix)) {
            return Err(Refused::new(prefix, "it lies outside of the cluster's pod CIDRs"));
        }
        if let Some(service) = self.services.iter().find(|s| overlaps(**s, prefix)) {
            return Err(Refused::new(
                prefix,
                format!("it overlaps the service CIDR {service}"),
            ));
        }
        Ok(prefix)
    }

    /// A pod CIDR of another node: it may be the whole of a cluster CIDR only where that is of a single node's
    /// size, which is how clusters are configured that list each node's CIDR.
    pub(crate) fn peer_pod_cidr(&self, prefix: IpNetwork) -> Result<IpNetwork, Refused> {
        let prefix = self.pod_cidr(prefix)?;
        let node_size = if prefix.is_ipv4() { 24 } else { 64 };
        if prefix.prefix() < node_size && self.pods.contains(&prefix) {
            return Err(Refused::new(prefix, "it is a whole pod CIDR of the cluster"));
        }
        Ok(prefix)
    }

    /// An address of a node, of whichever: one that routes may lead to.
    pub(crate) fn node_address(&self, address: IpAddr) -> Result<IpAddr, Refused> {
        if !is_global_unicast(address) {
            return Err(Refused::new(
                address,
                "it is not an address that other nodes can reach",
            ));
        }
        if let Some(pods) = self.pods.iter().find(|p| contains(**p, host(address))) {
            return Err(Refused::new(
                address,
                format!("it lies within the cluster's pod CIDR {pods}"),
            ));
        }
        if let Some(service) = self.services.iter().find(|s| contains(**s, host(address))) {
            return Err(Refused::new(
                address,
                format!("it lies within the service CIDR {service}"),
            ));
        }
        Ok(address)
    }

    /// A node address of another node.
    pub(crate) fn peer_address(&self, address: IpAddr) -> Result<IpAddr, Refused> {
        let address = self.node_address(address)?;
        if self.own.contains(&address) {
            return Err(Refused::new(address, "it is an address of this node"));
        }
        Ok(address)
    }
}

/// Neither unspecified, loopback, multicast, broadcast nor link-local, nor IPv4 in an IPv6 dress.
fn is_global_unicast(address: IpAddr) -> bool {
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return false;
    }
    match address {
        IpAddr::V4(a) => !a.is_link_local() && !a.is_broadcast() && a.octets()[0] != 0,
        IpAddr::V6(a) => !a.is_unicast_link_local() && a.to_ipv4_mapped().is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds() -> Bounds {
        let net = |t: &str| t.parse().unwrap();
        let mut bounds = Bounds::new(
            &[net("10.244.0.0/16"), net("192.168.7.0/24"), net("fd00:244::/48")],
            &[net("10.96.0.0/12"), net("10.244.255.0/24")],
        );
        bounds.own.insert("172.18.0.2".parse().unwrap());
        bounds
    }

    #[test]
    fn pod_cidrs_of_peers() {
        for (prefix, good) in [
            ("10.244.1.0/24", true),
            ("10.244.1.7/24", true),
            ("192.168.7.0/24", true),
            ("fd00:244:0:1::/64", true),
            ("10.244.0.0/16", false),
            ("10.0.0.0/8", false),
            ("0.0.0.0/0", false),
            ("::/0", false),
            ("fd00:244::/48", false),
            ("10.96.0.0/24", false),
            ("10.244.255.0/25", false),
            ("10.244.254.0/23", false),
            ("172.18.0.0/24", false),
        ] {
            assert_eq!(
                bounds().peer_pod_cidr(prefix.parse().unwrap()).is_ok(),
                good,
                "{prefix}"
            );
        }
        assert!(bounds().pod_cidr("10.244.0.0/17".parse().unwrap()).is_ok());
    }

    #[test]
    fn node_addresses_of_peers() {
        for (address, good) in [
            ("172.18.0.3", true),
            ("fc00::3", true),
            ("172.18.0.2", false),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::", false),
            ("::1", false),
            ("fe80::1", false),
            ("ff02::1", false),
            ("::ffff:172.18.0.3", false),
            ("10.244.3.4", false),
            ("10.96.0.1", false),
        ] {
            assert_eq!(
                bounds().peer_address(address.parse().unwrap()).is_ok(),
                good,
                "{address}"
            );
        }
    }
}
