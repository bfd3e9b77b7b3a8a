//! What a node may claim. Prefixes and addresses of peers come from annotations that anyone who may write a Node
//! can forge, so each is checked by itself: a bad one is refused and reported, the others count.

use crate::Config;
use ipnetwork::IpNetwork;
use meshd_model::net::{Family, canonical, contains, host, overlaps};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
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
    /// Where nodes' addresses are, canonical; anywhere if it is empty.
    nodes: Vec<IpNetwork>,
    /// The shortest prefix of a node's pod CIDR, as configured.
    configured: BTreeMap<Family, u8>,
    /// The shortest prefix of the own node's pod CIDRs.
    measured: BTreeMap<Family, u8>,
    /// Addresses of this node.
    own: BTreeSet<IpAddr>,
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
    pub(crate) fn new(config: &Config) -> Self {
        let all = |nets: &[IpNetwork]| nets.iter().copied().map(canonical).collect();
        Self {
            pods: all(&config.cluster_pod_cidrs),
            services: all(&config.service_cidrs),
            nodes: all(&config.node_cidrs),
            configured: match &config.ipam.pool {
                Some(pool) => pool.block_sizes.clone(),
                None => config.node_mask_sizes.clone(),
            },
            measured: BTreeMap::new(),
            own: BTreeSet::new(),
        }
    }

    /// Takes in what this node has: its addresses and its pod CIDRs. Whether that changes what others may claim.
    pub(crate) fn set_own(&mut self, addresses: BTreeSet<IpAddr>, cidrs: &[IpNetwork]) -> bool {
        let mut measured = BTreeMap::new();
        for cidr in cidrs {
            let length = measured.entry(Family::of(cidr.ip())).or_insert(cidr.prefix());
            *length = cidr.prefix().min(*length);
        }
        let changed = addresses != self.own || measured != self.measured;
        self.own = addresses;
        self.measured = measured;
        changed
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

    /// A pod CIDR of another node: no wider than a node's is. It may be the whole of a cluster CIDR only where that is
    /// of a single node's size, which is how clusters are configured that list each node's CIDR.
    pub(crate) fn peer_pod_cidr(&self, prefix: IpNetwork) -> Result<IpNetwork, Refused> {
        let prefix = self.pod_cidr(prefix)?;
        let node_size = if prefix.is_ipv4() { 24 } else { 64 };
        if prefix.prefix() < node_size && self.pods.contains(&prefix) {
            return Err(Refused::new(prefix, "it is a whole pod CIDR of the cluster"));
        }
        let family = Family::of(prefix.ip());
        let least = self
            .configured
            .get(&family)
            .or_else(|| self.measured.get(&family));
        if let Some(least) = least.filter(|least| prefix.prefix() < **least) {
            return Err(Refused::new(
                prefix,
                format!("it is wider than a node's pod CIDR, which is a /{least}"),
            ));
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

    /// An address that a node may claim as its own, of whichever node.
    pub(crate) fn claimable(&self, address: IpAddr) -> Result<IpAddr, Refused> {
        let address = self.node_address(address)?;
        if !self.nodes.is_empty() && !self.nodes.iter().any(|n| contains(*n, host(address))) {
            return Err(Refused::new(address, "it lies outside of node_cidrs"));
        }
        Ok(address)
    }

    /// A node address of another node.
    pub(crate) fn peer_address(&self, address: IpAddr) -> Result<IpAddr, Refused> {
        self.not_own(self.claimable(address)?)
    }

    /// Where another node is reached: that may be outside of the nodes' own CIDRs, behind a translator.
    pub(crate) fn peer_endpoint(&self, address: IpAddr) -> Result<IpAddr, Refused> {
        let checked = self.node_address(address).and_then(|a| self.not_own(a));
        checked.map_err(|refused| Refused::new(format!("endpoint {}", refused.what), refused.why))
    }

    fn not_own(&self, address: IpAddr) -> Result<IpAddr, Refused> {
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

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn bounds() -> Bounds {
        let mut bounds = Bounds {
            pods: vec![net("10.244.0.0/16"), net("192.168.7.0/24"), net("fd00:244::/48")],
            services: vec![net("10.96.0.0/12"), net("10.244.255.0/24")],
            nodes: Vec::new(),
            configured: BTreeMap::new(),
            measured: BTreeMap::new(),
            own: BTreeSet::new(),
        };
        let own = BTreeSet::from(["172.18.0.2".parse().unwrap()]);
        assert!(bounds.set_own(own.clone(), &[]) && !bounds.set_own(own, &[]));
        bounds
    }

    #[test]
    fn no_peers_pod_cidr_is_wider_than_a_nodes() {
        let takes = |bounds: &Bounds, prefix: &str| bounds.peer_pod_cidr(net(prefix)).is_ok();
        let mut bounds = bounds();
        assert!(
            takes(&bounds, "10.244.0.0/17") && takes(&bounds, "fd00:244::/56"),
            "nothing is known yet"
        );
        assert!(bounds.set_own(
            bounds.own.clone(),
            &[
                net("10.244.1.0/24"),
                net("10.244.8.0/22"),
                net("fd00:244:0:1::/64")
            ]
        ));
        for (prefix, good) in [
            ("10.244.0.0/17", false),
            ("10.244.16.0/21", false),
            ("10.244.16.0/22", true),
            ("10.244.16.0/24", true),
            ("10.244.16.1/32", true),
            ("fd00:244:0:8::/63", false),
            ("fd00:244:0:8::/64", true),
        ] {
            assert_eq!(takes(&bounds, prefix), good, "{prefix}");
        }
        let refused = bounds.peer_pod_cidr(net("10.244.0.0/17")).unwrap_err();
        assert_eq!(refused.why, "it is wider than a node's pod CIDR, which is a /22");
        bounds.configured = BTreeMap::from([(Family::V4, 17)]);
        assert!(takes(&bounds, "10.244.0.0/17") && !takes(&bounds, "fd00:244:0:8::/63"));
        bounds.configured = BTreeMap::from([(Family::V4, 25)]);
        assert!(!takes(&bounds, "10.244.16.0/24"));
    }

    #[test]
    fn node_addresses_lie_where_nodes_are_and_endpoints_anywhere() {
        let mut bounds = bounds();
        bounds.nodes = vec![net("172.18.0.0/16"), net("fc00::/64")];
        let claims = |a: &str| bounds.peer_address(a.parse().unwrap()).is_ok();
        assert!(claims("172.18.0.3") && claims("fc00::3"));
        assert!(!claims("8.8.8.8") && !claims("2001:4860:4860::8888") && !claims("172.18.0.2"));
        let reached = |a: &str| bounds.peer_endpoint(a.parse().unwrap());
        assert!(reached("198.51.100.7").is_ok());
        let own = reached("172.18.0.2").unwrap_err();
        assert_eq!(
            (own.what.as_str(), own.why.as_str()),
            ("endpoint 172.18.0.2", "it is an address of this node")
        );
        for bad in ["127.0.0.1", "10.244.3.4", "10.96.0.1", "fe80::1", "ff02::1"] {
            assert!(reached(bad).is_err(), "{bad}");
        }
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
