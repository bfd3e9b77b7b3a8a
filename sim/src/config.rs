//! What a simulated cluster is made of.

use crate::underlay::Link;
use ipnetwork::IpNetwork;
use meshd_core::{METADATA, Outside, Pool};
use meshd_model::net::Family;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// The largest cluster: what the underlay's IPv4 prefix numbers.
pub const NODES_MAX: usize = 4000;

/// Configuration of a simulated cluster. Two runs of the same configuration are the same run.
#[derive(Clone, Debug)]
pub struct Config {
    /// How many nodes, named `node-1` and on.
    pub nodes: usize,
    /// All chance derives from it: keys, jitter, loss.
    pub seed: u64,
    /// Families of nodes, pods and services: both, or one.
    pub families: BTreeSet<Family>,
    /// How the underlay's links behave, until they are told otherwise.
    pub link: Link,
    /// One way between a node and the API server.
    pub api_latency: Duration,
    /// How long one kernel operation takes.
    pub kernel_latency: Duration,
    /// How long the lease store takes until what it wrote is durable.
    pub store_latency: Duration,
    /// How often agents observe their kernel again.
    pub resync: Duration,
    /// Whether Nodes are given pod CIDRs when they are created, as the controller manager does.
    pub node_ipam: bool,
    /// IPAM's pool mode: nodes claim blocks of this size for themselves, and Nodes are given no pod CIDRs.
    pub pool: Option<Pool>,
    /// The cluster's pod CIDRs, of which those of its families count; parts of the ones that it begins with.
    pub pod_cidrs: [IpNetwork; 2],
    /// Whether nodes have a second interface on the underlay, at whose addresses they are to be reached.
    pub second_interface: bool,
    /// What pods reach outside of the cluster, as the agents are told.
    pub outside: Outside,
    /// Whether a text of the trace is kept, for people.
    pub keep_trace: bool,
}

impl Config {
    /// A cluster of so many nodes.
    #[must_use]
    pub fn new(nodes: usize, seed: u64) -> Config {
        Config {
            nodes: nodes.min(NODES_MAX),
            seed,
            families: BTreeSet::from([Family::V4, Family::V6]),
            link: Link::default(),
            api_latency: Duration::from_micros(500),
            kernel_latency: Duration::from_micros(20),
            store_latency: Duration::from_millis(1),
            resync: Duration::from_secs(60),
            node_ipam: true,
            pool: None,
            pod_cidrs: pod_cidrs(),
            second_interface: false,
            outside: Outside {
                except: EXCEPTED.map(IpNetwork::from).into(),
                ..Outside::default()
            },
            keep_trace: false,
        }
    }

    /// Those of these prefixes that are of the cluster's families.
    pub(crate) fn of_families(&self, nets: [IpNetwork; 2]) -> Vec<IpNetwork> {
        let used = |net: &IpNetwork| self.families.contains(&Family::of(net.network()));
        nets.into_iter().filter(used).collect()
    }

    /// Those of these addresses that are.
    fn used(&self, addresses: impl IntoIterator<Item = IpAddr>) -> Vec<IpAddr> {
        let used = |a: &IpAddr| self.families.contains(&Family::of(*a));
        addresses.into_iter().filter(used).collect()
    }

    /// Addresses of the machine outside of the cluster that pods may reach.
    pub(crate) fn reached_outside(&self) -> Vec<IpAddr> {
        self.used(OUTSIDE)
    }

    /// Its other addresses: the declared exceptions, and where clouds tell a machine about itself.
    pub(crate) fn refused_outside(&self) -> Vec<IpAddr> {
        self.used(EXCEPTED.into_iter().chain(METADATA))
    }

    /// The addresses of the node's second interface; none without one.
    pub(crate) fn second_addresses(&self, node: usize) -> Vec<IpAddr> {
        if !self.second_interface {
            return Vec::new();
        }
        let host = u16::try_from(node).unwrap_or(u16::MAX) + 0x10;
        let v4 = Ipv4Addr::from_bits(Ipv4Addr::new(172, 20, 0, 0).to_bits() + u32::from(host));
        let v6 = Ipv6Addr::new(0xfd00, 0x172, 0x20, 0, 0, 0, 0, host);
        self.used([v4.into(), v6.into()])
    }

    /// The underlay addresses of the host on this port, after it was given others so many times.
    pub(crate) fn underlay_addresses(&self, port: usize, moves: u32) -> Vec<IpAddr> {
        self.used(underlay_addresses(port, moves))
    }
}

/// The pod CIDRs of a cluster that is told no others.
pub(crate) fn pod_cidrs() -> [IpNetwork; 2] {
    ["10.128.0.0/10", "fd00:10:244::/48"]
        .map(|net| net.parse().expect("a pod CIDR of the simulator is a prefix"))
}

/// Prefix lengths of a node's part of them.
pub(crate) const NODE_PREFIXES: [u8; 2] = [24, 64];

/// The cluster's service CIDRs.
pub(crate) fn service_cidrs() -> [IpNetwork; 2] {
    ["10.96.0.0/16", "fd00:10:96::/112"]
        .map(|net| net.parse().expect("a service CIDR of the simulator is a prefix"))
}

/// The underlay's prefixes.
pub(crate) fn underlay_cidrs() -> [IpNetwork; 2] {
    ["192.168.0.0/16", "fd00:192:168::/64"]
        .map(|net| net.parse().expect("the simulator's underlay is a prefix"))
}

/// The prefixes of the nodes' second interfaces.
pub(crate) fn second_cidrs() -> [IpNetwork; 2] {
    ["172.20.0.0/16", "fd00:172:20::/64"]
        .map(|net| net.parse().expect("the simulator's second underlay is a prefix"))
}

/// A machine outside of the cluster, behind the underlay's router (RFC 5737, RFC 3849).
const OUTSIDE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];
/// The same machine, where pods are not to reach it.
const EXCEPTED: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 2)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
];

/// Addresses of a host lie so far apart from its former ones: more than [`NODES_MAX`].
const MOVE: u32 = 0x1000;
/// How many moves the underlay's prefix has room for; then a host comes back to its first addresses.
const MOVES: u32 = 8;

fn underlay_addresses(port: usize, moves: u32) -> Vec<IpAddr> {
    let host = u32::try_from(port).unwrap_or(u32::MAX) + 0x10 + moves % MOVES * MOVE;
    let v4 = Ipv4Addr::from_bits(Ipv4Addr::new(192, 168, 0, 0).to_bits() + host);
    let v6 = Ipv6Addr::new(0xfd00, 0x192, 0x168, 0, 0, 0, 0, 0);
    vec![
        v4.into(),
        Ipv6Addr::from_bits(v6.to_bits() + u128::from(host)).into(),
    ]
}
