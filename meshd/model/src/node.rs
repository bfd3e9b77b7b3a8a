//! Nodes as meshd sees them: what a node publishes of itself, and what the API server says of it.

use crate::key::PublicKey;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr};

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
    };
}

text_id! {
    /// `Node.metadata.name`.
    NodeName
}
text_id! {
    /// `Node.metadata.uid`: tells a node from one re-created under its name.
    NodeUid
}

/// The version of what is published; a peer with another major one is reported, not guessed at.
pub const PROTOCOL_VERSION: u16 = 1;

/// What a node publishes of itself under `meshd.dev/` on its Node object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAnnotations {
    /// The WireGuard public key of the node's device.
    pub public_key: PublicKey,
    /// UDP port of the device.
    pub listen_port: u16,
    /// Underlay addresses at which the device is reached, in order of preference; at least one.
    pub endpoints: Vec<IpAddr>,
    /// The node's own addresses, which its peers' pods reach inside the tunnel.
    pub node_addresses: Vec<IpAddr>,
    /// MTU of the overlay on this node, in bytes.
    pub mtu: u16,
    /// Pod CIDRs or blocks, canonical.
    pub pod_cidrs: Vec<IpNetwork>,
    /// [`PROTOCOL_VERSION`] of the writer.
    pub protocol_version: u16,
}

/// Why a Node's annotations make no peer. Texts in it are cut to a bounded length by whoever makes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum AnnotationProblem {
    /// Nothing under `meshd.dev/` yet.
    #[error("the Node has no meshd.dev annotations: meshd does not run there yet, or may not write them")]
    Absent,
    /// Some are there, this one is not.
    #[error("annotation {key} is missing")]
    Missing {
        /// Full annotation key.
        key: String,
    },
    /// Its text does not parse.
    #[error("annotation {key} is {value:?}: {reason}")]
    Malformed {
        /// Full annotation key.
        key: String,
        /// The text, cut short.
        value: String,
        /// What it should have been.
        reason: String,
    },
    /// Written by a version that this one cannot read.
    #[error("annotations have protocol version {found}, this meshd speaks {PROTOCOL_VERSION}")]
    Version {
        /// What was found.
        found: u16,
    },
}

/// A Node of the metadata watch (`PartialObjectMetadata`), translated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeMeta {
    /// `metadata.name`
    pub name: NodeName,
    /// `metadata.uid`
    pub uid: NodeUid,
    /// `metadata.creationTimestamp`, seconds since 1970.
    pub created: i64,
    /// What it published, or why that is no use.
    pub annotations: Result<NodeAnnotations, AnnotationProblem>,
}

/// The daemon's own Node, whole, translated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnNode {
    /// `metadata.name`
    pub name: NodeName,
    /// `metadata.uid`
    pub uid: NodeUid,
    /// `metadata.creationTimestamp`, seconds since 1970.
    pub created: i64,
    /// `spec.podCIDRs`; empty until the controller manager has given some.
    pub pod_cidrs: Vec<IpNetwork>,
    /// `status.addresses` of type InternalIP, in order.
    pub internal_ips: Vec<IpAddr>,
    /// Whether `status.conditions` has NetworkUnavailable, and not as False.
    pub network_unavailable: bool,
    /// What is published of us now.
    pub published: Result<NodeAnnotations, AnnotationProblem>,
}
