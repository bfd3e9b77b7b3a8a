//! Which addresses and names everything in the lab has.

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use meshd_model::NodeName;
use meshd_model::attachment::MacAddr;
use meshd_model::net::Family;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The bridge that is the underlay.
pub const BRIDGE: &str = "underlay";
/// Name of a node's interface on the underlay.
pub const UPLINK: &str = "eth0";
/// Name of its second one, where it has it.
pub const SECOND: &str = "eth1";
/// Name of the WireGuard interface.
pub const DEVICE: &str = "meshd0";
/// UDP port of every node's device.
pub const LISTEN_PORT: u16 = 51820;
/// Where the API server listens, on the bridge's address.
pub const API_PORT: u16 = 6443;
/// Echo servers, UDP and TCP (RFC 862).
pub const ECHO_PORT: u16 = 7;
/// The machine outside of the cluster; its MAC is made from it.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 251);
/// Most nodes of a lab: they share one /24 of the underlay.
pub const NODES_MAX: usize = 200;

/// Families of a lab's nodes, pods and services.
pub type Families = BTreeSet<Family>;

/// Those of the addresses that are of these families.
#[must_use]
pub fn used(families: &Families, addresses: impl IntoIterator<Item = IpAddr>) -> Vec<IpAddr> {
    let used = |a: &IpAddr| families.contains(&Family::of(*a));
    addresses.into_iter().filter(used).collect()
}

/// Both.
#[must_use]
pub fn both() -> Families {
    Families::from([Family::V4, Family::V6])
}

/// Those of the prefixes that are of these families.
#[must_use]
pub fn of_families(families: &Families, prefixes: [IpNetwork; 2]) -> Vec<IpNetwork> {
    let used = |p: &IpNetwork| families.contains(&Family::of(p.network()));
    prefixes.into_iter().filter(used).collect()
}

/// The addresses of one lab: node `i` counts from 1.
pub struct Plan;

impl Plan {
    /// The bridge's own addresses.
    #[must_use]
    pub fn bridge() -> (Ipv4Addr, Ipv6Addr) {
        (
            Ipv4Addr::new(10, 200, 0, 1),
            Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, 1),
        )
    }

    /// A node's addresses on the underlay.
    #[must_use]
    pub fn node(i: usize) -> (Ipv4Addr, Ipv6Addr) {
        let host = u16::try_from(10 + i).expect("NODES_MAX fits");
        let [_, low] = host.to_be_bytes();
        (
            Ipv4Addr::new(10, 200, 0, low),
            Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, host),
        )
    }

    /// A node's addresses on the underlay, of these families, after it was given others so many times.
    #[must_use]
    pub fn node_addresses(families: &Families, i: usize, moves: u8) -> Vec<IpAddr> {
        let (v4, v6) = Self::node(i);
        let [a, b, _, d] = v4.octets();
        let mut words = v6.segments();
        words[6] = moves.into();
        let all = [
            IpAddr::from(Ipv4Addr::new(a, b, moves, d)),
            IpAddr::from(Ipv6Addr::from(words)),
        ];
        used(families, all)
    }

    /// The addresses of a node's second interface, of these families.
    #[must_use]
    pub fn second_addresses(families: &Families, i: usize) -> Vec<IpAddr> {
        let (v4, v6) = Self::node(i);
        let all = [
            IpAddr::from(Ipv4Addr::new(10, 201, 0, v4.octets()[3])),
            IpAddr::from(Ipv6Addr::new(0xfd00, 0x201, 0, 0, 0, 0, 0, v6.segments()[7])),
        ];
        used(families, all)
    }

    /// The addresses of the router in front of a node behind a NAT, on the node's side.
    #[must_use]
    pub fn nat_gateway(i: usize) -> (Ipv4Addr, Ipv6Addr) {
        let i = u8::try_from(i).expect("NODES_MAX fits");
        (
            Ipv4Addr::new(192, 168, i, 1),
            Ipv6Addr::new(0xfd00, 0x192, 0x168, i.into(), 0, 0, 0, 1),
        )
    }

    /// The addresses of such a node, of these families.
    #[must_use]
    pub fn addresses_behind_nat(families: &Families, i: usize) -> Vec<IpAddr> {
        let (v4, v6) = Self::nat_gateway(i);
        let all = [
            IpAddr::from(Ipv4Addr::from_bits(v4.to_bits() + 1)),
            IpAddr::from(Ipv6Addr::from_bits(v6.to_bits() + 1)),
        ];
        used(families, all)
    }

    /// The addresses of the neighbour that belongs to nobody.
    #[must_use]
    pub fn neighbour() -> (Ipv4Addr, Ipv6Addr) {
        (
            Ipv4Addr::new(10, 200, 0, 250),
            Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, 0x250),
        )
    }

    /// A machine outside of the cluster: where pods may reach it.
    #[must_use]
    pub fn outside() -> [IpAddr; 2] {
        [
            OUTSIDE.into(),
            Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, 0x251).into(),
        ]
    }

    /// The same machine: where pods are not to reach it, as the nodes' configuration says.
    #[must_use]
    pub fn excepted() -> [IpAddr; 2] {
        [
            Ipv4Addr::new(10, 200, 0, 252).into(),
            Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, 0x252).into(),
        ]
    }

    /// The same machine, in the place of the service where a cloud tells a machine about itself.
    #[must_use]
    pub fn metadata() -> [IpAddr; 2] {
        [
            Ipv4Addr::new(169, 254, 169, 254).into(),
            Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254).into(),
        ]
    }

    /// MAC of the interface with the given address on the underlay.
    #[must_use]
    pub fn mac(address: Ipv4Addr) -> MacAddr {
        MacAddr([0x02, 0, 0, 0, 0, address.octets()[3]])
    }

    /// A node's name.
    #[must_use]
    pub fn node_name(i: usize) -> NodeName {
        NodeName(format!("node-{i}"))
    }

    /// A node's pod CIDRs.
    #[must_use]
    pub fn pod_cidrs(i: usize) -> [IpNetwork; 2] {
        let i = u8::try_from(i).expect("NODES_MAX fits");
        let v4 = Ipv4Network::new(Ipv4Addr::new(10, 244, i, 0), 24).expect("24 is a prefix length");
        let v6 = Ipv6Network::new(Ipv6Addr::new(0xfd00, 0x244, 0, u16::from(i), 0, 0, 0, 0), 64)
            .expect("64 is a prefix length");
        [v4.into(), v6.into()]
    }

    /// The cluster's pod CIDRs.
    #[must_use]
    pub fn cluster_pod_cidrs() -> [IpNetwork; 2] {
        let v4 = Ipv4Network::new(Ipv4Addr::new(10, 244, 0, 0), 16).expect("16 is a prefix length");
        let v6 = Ipv6Network::new(Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 0), 48)
            .expect("48 is a prefix length");
        [v4.into(), v6.into()]
    }

    /// The cluster's service CIDRs.
    #[must_use]
    pub fn service_cidrs() -> [IpNetwork; 2] {
        let v4 = Ipv4Network::new(Ipv4Addr::new(10, 96, 0, 0), 12).expect("12 is a prefix length");
        let v6 = Ipv6Network::new(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0), 108)
            .expect("108 is a prefix length");
        [v4.into(), v6.into()]
    }

    /// Where nodes reach the API server: over IPv4 where there is any.
    #[must_use]
    pub fn api_server(families: &Families) -> SocketAddr {
        let (v4, v6) = Self::bridge();
        let address = if families.contains(&Family::V4) {
            IpAddr::V4(v4)
        } else {
            IpAddr::V6(v6)
        };
        SocketAddr::new(address, API_PORT)
    }
}
