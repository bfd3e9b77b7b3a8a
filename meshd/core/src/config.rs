//! What the agent is told once, at its start.

use ipnetwork::IpNetwork;
use meshd_model::kernel::Mark;
use meshd_model::{KeyHandle, NodeName, PublicKey};
use serde::{Deserialize, Serialize};
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
    /// Name of the WireGuard interface.
    pub device: String,
    /// UDP port of the WireGuard interface.
    pub listen_port: u16,
    /// Which underlay addresses are published as endpoints.
    pub endpoints: Endpoints,
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
    /// Whether ADD succeeds for a container of which the runtime names no pod.
    pub allow_unnamed_pods: bool,
}

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
