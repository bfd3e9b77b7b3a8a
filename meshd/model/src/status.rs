//! What `meshctl status` shows.

use crate::kernel::DeviceKind;
use crate::key::PublicKey;
use crate::node::NodeName;
use crate::time::Wall;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// The daemon's state for people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Agent version.
    pub version: String,
    /// This node.
    pub node: NodeName,
    /// Whether ADD can succeed.
    pub ready: bool,
    /// Own WireGuard public key.
    pub public_key: PublicKey,
    /// What carries the tunnel; none until it was observed.
    pub device: Option<DeviceKind>,
    /// UDP port.
    pub listen_port: u16,
    /// MTU of the overlay, in bytes; none until the underlay is known.
    pub mtu: Option<u16>,
    /// Own pod CIDRs.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Own overlay addresses.
    pub overlay_addresses: Vec<IpAddr>,
    /// One a remote node that publishes a usable key, by node name.
    pub peers: Vec<PeerStatus>,
    /// Attachments, by container.
    pub attachments: Vec<AttachmentStatus>,
    /// What is wrong, most urgent first.
    pub problems: Vec<Problem>,
}

/// A remote node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub node: NodeName,
    /// Its key.
    pub public_key: PublicKey,
    /// Where it was last heard, or as published.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake was completed.
    pub last_handshake: Option<Wall>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// What is routed to it.
    pub allowed_ips: Vec<IpNetwork>,
}

/// An attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentStatus {
    /// `CNI_CONTAINERID`
    pub container_id: String,
    /// `CNI_IFNAME`
    pub ifname: String,
    /// `namespace/name` of the pod, where known.
    pub pod: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Where it stands.
    pub phase: crate::attachment::LeasePhase,
}

/// One thing that is wrong, in a line, and what to do about it, in another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// What it is about: `node/worker-3`, `store`, `api-server`, ...
    pub subject: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
}
