//! What the agent is told once, at its start.

use ipnetwork::IpNetwork;
use meshd_model::kernel::Mark;
use meshd_model::net::Family;
use meshd_model::{KeyHandle, NodeName, PublicKey};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Configuration of one node's agent. Part of every recording, so it holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The Node this agent runs on.
    pub node: NodeName,
    /// The node's key.
    pub identity: Identity,
    /// The cluster's pod CIDRs, all of them, either or both families: mandatory, at least one. The fail-closed
    /// rules cover them.
    pub cluster_pod_cidrs: Vec<IpNetwork>,
    /// The cluster's service CIDRs: no peer may claim any part of them.
    pub service_cidrs: Vec<IpNetwork>,
    /// The shortest prefix that a peer's pod CIDR may have, for each family; that of the own Node's where none is
    /// given.
    pub node_mask_sizes: BTreeMap<Family, u8>,
    /// Where the addresses of nodes are; peers may claim no others. Anywhere if it is empty.
    pub node_cidrs: Vec<IpNetwork>,
    /// Name of the WireGuard interface.
    pub device: String,
    /// UDP port of the WireGuard interface.
    pub listen_port: u16,
    /// Which underlay addresses are published as endpoints.
    pub endpoints: Endpoints,
    /// Seconds between keepalives to every peer, for a node behind NAT: its peers reach it only while the NAT knows it.
    #[serde(default)]
    pub keepalive: Option<u16>,
    /// Mark of the device's own packets.
    pub mark: Mark,
    /// Routing table for the peers' own addresses, asked for pod traffic only.
    pub route_table: u32,
    /// Priority of the rules that lead there.
    pub rule_priority: u32,
    /// Overlay MTU in bytes; measured from the underlay where none is given.
    pub mtu: Option<u16>,
    /// How often the kernel is observed again.
    pub resync: Duration,
    /// How long a freed address rests before it is handed out again.
    pub address_rest: Duration,
    /// What pods reach outside of the cluster.
    pub outside: Outside,
    /// Whether ADD succeeds for a container of which the runtime names no pod.
    pub allow_unnamed_pods: bool,
    /// How pods' addresses are managed.
    #[serde(default)]
    pub ipam: Ipam,
}

/// How pods' addresses are managed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ipam {
    /// Where the node's pod CIDRs come from: blocks that it claims for itself, or else its Node's spec.podCIDRs.
    pub pool: Option<Pool>,
    /// Addresses that a pod gets only by asking for them.
    pub reserved: Vec<IpNetwork>,
    /// How long an attachment has to look abandoned until it is taken down without a DEL; never, if it is zero.
    pub collect_after: Duration,
    /// How long the addresses of a pod that is to keep them are kept without it.
    pub keep: Duration,
}

impl Default for Ipam {
    fn default() -> Self {
        Self {
            pool: None,
            reserved: Vec::new(),
            collect_after: Duration::from_secs(60),
            keep: Duration::from_secs(24 * 3600),
        }
    }
}

/// IPAM's pool mode: the cluster's pod CIDRs are cut into blocks, and nodes claim those.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Prefix length of a block, for each family that the cluster has pod CIDRs of.
    pub block_sizes: BTreeMap<Family, u8>,
    /// How long a block is empty before it is given back.
    pub return_after: Duration,
    /// How long a freed block rests before it is claimed again.
    pub rest: Duration,
}

/// The world outside of the cluster, as pods see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    /// Whether what pods send there leaves with the node's address.
    pub masquerade: bool,
    /// Destinations there that pods do not reach: nothing leaves for them, translated or not.
    pub except: Vec<IpNetwork>,
    /// Whether pods reach the [cloud's metadata](METADATA).
    pub metadata: bool,
}

impl Default for Outside {
    fn default() -> Self {
        Self {
            masquerade: true,
            except: Vec::new(),
            metadata: false,
        }
    }
}

/// Where clouds tell a machine about itself, and give it credentials: 169.254.169.254 on nearly all, fd00:ec2::254 on
/// AWS (EC2's IMDS over IPv6), fd20:ce::254 on Google's, 100.100.100.200 on Alibaba's. What a pod reads there is the
/// node's, not its own.
pub const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// The node's key as the agent knows it: a handle and the public half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Names the private key to the drivers.
    pub handle: KeyHandle,
    /// The public key.
    pub public_key: PublicKey,
}

/// Where peers reach the node's device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoints {
    /// The Node's addresses of type InternalIP.
    InternalIp,
    /// Addresses of this interface.
    Interface(String),
    /// Addresses of the node within this prefix.
    Cidr(IpNetwork),
}
