//! What a node publishes of itself, as annotations of its Node.

use meshd_model::{AnnotationProblem, NodeAnnotations, NodeName, NodeUid};
use std::collections::BTreeMap;

/// Every annotation of ours begins with this.
pub const PREFIX: &str = "meshd.dev/";
/// The WireGuard public key, base64.
pub const PUBLIC_KEY: &str = "meshd.dev/public-key";
/// UDP port of the device, decimal.
pub const LISTEN_PORT: &str = "meshd.dev/listen-port";
/// Underlay addresses, comma-separated.
pub const ENDPOINTS: &str = "meshd.dev/endpoints";
/// The node's own addresses, comma-separated.
pub const NODE_ADDRESSES: &str = "meshd.dev/node-addresses";
/// MTU of the overlay in bytes, decimal.
pub const MTU: &str = "meshd.dev/mtu";
/// Pod CIDRs or blocks, comma-separated.
pub const POD_CIDRS: &str = "meshd.dev/pod-cidrs";
/// Protocol version, decimal.
pub const PROTOCOL: &str = "meshd.dev/protocol-version";

/// What the annotations say.
///
/// # Errors
/// Any annotation of ours that is missing or does not parse.
pub fn decode(_annotations: &BTreeMap<String, String>) -> Result<NodeAnnotations, AnnotationProblem> {
    Err(AnnotationProblem::Absent)
}

/// The annotations that say it.
#[must_use]
pub fn encode(_node: &NodeAnnotations) -> BTreeMap<String, String> {
    BTreeMap::new()
}

/// Field manager of everything that meshd writes.
pub const FIELD_MANAGER: &str = "meshd";

/// The body of the server-side apply (`force=true`) that publishes. Its UID makes the API server refuse it where the
/// Node is gone or another one has its name.
#[must_use]
pub fn publish_body(name: &NodeName, uid: &NodeUid, node: &NodeAnnotations) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name, "uid": uid, "annotations": encode(node) },
    })
}
