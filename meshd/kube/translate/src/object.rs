//! Nodes and pods.

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meshd_model::{NodeMeta, OwnNode, PodRef};

/// Why an object of the API server cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {reason}")]
pub struct ObjectProblem {
    /// Kind and name, as far as they are known.
    pub object: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A Node of the metadata watch.
///
/// # Errors
/// Where the object has no name or UID.
pub fn node_meta(_meta: &ObjectMeta) -> Result<NodeMeta, ObjectProblem> {
    unreachable!()
}

/// The own Node, whole.
///
/// # Errors
/// Where the object has no name or UID, or a pod CIDR or an address does not parse.
pub fn own_node(_node: &Node) -> Result<OwnNode, ObjectProblem> {
    unreachable!()
}

/// Which pod it is.
///
/// # Errors
/// Where the object has no name, namespace or UID.
pub fn pod_ref(_pod: &Pod) -> Result<PodRef, ObjectProblem> {
    unreachable!()
}

/// Whether the pod is one that the node's CNI serves: bound to `node`, not finished, not in the host's network.
#[must_use]
pub fn counts(_pod: &Pod, _node: &str) -> bool {
    false
}
