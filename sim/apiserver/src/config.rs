//! What a server is told once, at its start.

use std::net::IpAddr;
use std::time::Duration;

/// Configuration of a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// UIDs are drawn from it, nothing else.
    pub seed: u64,
    /// Who gives new Nodes their pod CIDRs; nobody where this is None.
    pub node_ipam: Option<NodeIpam>,
    /// How many events are kept for watches that come back and for lists that are continued.
    pub history: usize,
    /// How many frames, after its initial ones, may wait for a watch before it is ended.
    pub watch_queue: usize,
    /// How often a watch that asked for bookmarks is sent one.
    pub bookmark_interval: Duration,
    /// When a watch that gave no `timeoutSeconds` ends.
    pub watch_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 0,
            node_ipam: None,
            history: 10_000,
            watch_queue: 10_000,
            bookmark_interval: Duration::from_secs(60),
            watch_timeout: Duration::from_secs(30 * 60),
        }
    }
}

/// The controller manager's node IPAM (`--allocate-node-cidrs`): one block of each cluster CIDR a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIpam {
    /// The cluster's pod CIDRs with the mask size of a node's block in each (`--cluster-cidr`,
    /// `--node-cidr-mask-size-ipv4`, `-ipv6`), in the order in which a Node names its own.
    pub cluster_cidrs: Vec<NodeCidrs>,
}

/// One cluster CIDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeCidrs {
    /// First address.
    pub network: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// Prefix length of a node's block.
    pub node_prefix: u8,
}
