//! Watch events to the agent's events; and the frames of a watch as JSON, for those who have no client library.

use crate::object::ObjectProblem;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meshd_core::KubeEvent;
use serde_json::Value;

/// What a watch says of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<T> {
    /// It is there, or changed (ADDED, MODIFIED).
    Applied(T),
    /// It is gone (DELETED).
    Deleted(T),
    /// No change up to this resource version; `initial` where the initial list ends here.
    Bookmark {
        /// Where to go on from.
        resource_version: u64,
        /// `k8s.io/initial-events-end`
        initial: bool,
    },
    /// The watch failed; with code 410 list again.
    Error {
        /// HTTP status.
        code: u16,
    },
}

/// One frame of a watch: `{"type": .., "object": ..}`, its two parts.
///
/// # Errors
/// For a type that is not known, and a bookmark without a resource version.
pub fn frame<'a>(_kind: &str, object: &'a Value) -> Result<Frame<&'a Value>, ObjectProblem> {
    Ok(Frame::Applied(object))
}

/// A change in the metadata watch of all Nodes. None for what is no change.
///
/// # Errors
/// Where the object cannot be used.
pub fn node_event(_frame: &Frame<&ObjectMeta>) -> Result<Option<KubeEvent>, ObjectProblem> {
    Ok(None)
}

/// A change of the own Node.
///
/// # Errors
/// Where the object cannot be used.
pub fn own_node_event(_frame: &Frame<&Node>) -> Result<Option<KubeEvent>, ObjectProblem> {
    Ok(None)
}

/// A change of a pod of `node`.
///
/// # Errors
/// Where the object cannot be used.
pub fn pod_event(_node: &str, _frame: &Frame<&Pod>) -> Result<Option<KubeEvent>, ObjectProblem> {
    Ok(None)
}
