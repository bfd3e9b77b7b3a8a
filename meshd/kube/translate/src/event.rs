//! Watch events to the agent's events; and lists and watch frames as JSON, for those who have no client library.

use crate::annotations::quoted;
use crate::object::{ObjectProblem, counts, node_meta, own_node, pod_ref};
use crate::pod::pod_meta;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meshd_core::KubeEvent;
use meshd_model::NodeName;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What a watch says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<T> {
    /// The object is there, or changed (ADDED, MODIFIED; an item of a list).
    Applied(T),
    /// The object is gone (DELETED).
    Deleted(T),
    /// No change up to this resource version; `initial` where the list that a watch begins with ends here.
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

/// One frame of a watch, from its `type` and `object`.
///
/// # Errors
/// For a type that is not known, and a bookmark without a resource version.
pub fn frame<'a>(kind: &str, object: &'a Value) -> Result<Frame<&'a Value>, ObjectProblem> {
    let metadata = &object["metadata"];
    match kind {
        "ADDED" | "MODIFIED" => Ok(Frame::Applied(object)),
        "DELETED" => Ok(Frame::Deleted(object)),
        "BOOKMARK" => {
            let version = metadata["resourceVersion"].as_str().and_then(|v| v.parse().ok());
            let missing = || problem("bookmark", "metadata.resourceVersion is no number");
            Ok(Frame::Bookmark {
                resource_version: version.ok_or_else(missing)?,
                initial: metadata["annotations"]["k8s.io/initial-events-end"] == "true",
            })
        }
        "ERROR" => {
            let code = object["code"].as_u64().and_then(|c| u16::try_from(c).ok());
            Ok(Frame::Error {
                code: code.unwrap_or(500),
            })
        }
        _ => Err(problem("watch event", "its type is not known")),
    }
}

impl Frame<&Value> {
    /// The frame with its object as a type of the API.
    ///
    /// # Errors
    /// Where the object is not of that type.
    pub fn decode<T: DeserializeOwned>(self) -> Result<Frame<T>, ObjectProblem> {
        self.map(|object| decode_value(object, object)).transpose()
    }

    /// The frame with its object's metadata.
    ///
    /// # Errors
    /// Where that is no metadata.
    pub fn decode_meta(self) -> Result<Frame<ObjectMeta>, ObjectProblem> {
        self.map(|object| decode_value(object, &object["metadata"]))
            .transpose()
    }
}

fn decode_value<T: DeserializeOwned>(object: &Value, part: &Value) -> Result<T, ObjectProblem> {
    let name = object["metadata"]["name"]
        .as_str()
        .unwrap_or("object without a name");
    T::deserialize(part).map_err(|e| problem(&quoted(name), &e.to_string()))
}

impl<T> Frame<T> {
    /// The same frame of a reference.
    pub fn as_ref(&self) -> Frame<&T> {
        match self {
            Frame::Applied(object) => Frame::Applied(object),
            Frame::Deleted(object) => Frame::Deleted(object),
            Frame::Bookmark {
                resource_version,
                initial,
            } => Frame::Bookmark {
                resource_version: *resource_version,
                initial: *initial,
            },
            Frame::Error { code } => Frame::Error { code: *code },
        }
    }

    /// The same frame of another object.
    pub fn map<U>(self, map: impl FnOnce(T) -> U) -> Frame<U> {
        match self {
            Frame::Applied(object) => Frame::Applied(map(object)),
            Frame::Deleted(object) => Frame::Deleted(map(object)),
            Frame::Bookmark {
                resource_version,
                initial,
            } => Frame::Bookmark {
                resource_version,
                initial,
            },
            Frame::Error { code } => Frame::Error { code },
        }
    }
}

impl<T, E> Frame<Result<T, E>> {
    fn transpose(self) -> Result<Frame<T>, E> {
        Ok(match self {
            Frame::Applied(object) => Frame::Applied(object?),
            Frame::Deleted(object) => Frame::Deleted(object?),
            Frame::Bookmark {
                resource_version,
                initial,
            } => Frame::Bookmark {
                resource_version,
                initial,
            },
            Frame::Error { code } => Frame::Error { code },
        })
    }
}

/// A change in the metadata watch of all Nodes. None for a bookmark or an error: they change no Node.
///
/// # Errors
/// Where the object cannot be used.
pub fn node_event(frame: Frame<&ObjectMeta>) -> Result<Option<KubeEvent>, ObjectProblem> {
    match frame {
        Frame::Applied(meta) => Ok(Some(KubeEvent::NodeApplied(node_meta(meta)?))),
        Frame::Deleted(meta) => Ok(Some(KubeEvent::NodeDeleted(node_name(meta)?))),
        Frame::Bookmark { .. } | Frame::Error { .. } => Ok(None),
    }
}

/// A change of the own Node.
///
/// # Errors
/// Where the object cannot be used.
pub fn own_node_event(frame: Frame<&Node>) -> Result<Option<KubeEvent>, ObjectProblem> {
    match frame {
        Frame::Applied(node) => Ok(Some(KubeEvent::OwnNode(own_node(node)?))),
        Frame::Deleted(_) => Ok(Some(KubeEvent::OwnNodeDeleted)),
        Frame::Bookmark { .. } | Frame::Error { .. } => Ok(None),
    }
}

/// A change of a pod of `node`. A pod that does not count, or no more, is a pod that is gone.
///
/// # Errors
/// Where the object cannot be used.
pub fn pod_event(node: &str, frame: Frame<&Pod>) -> Result<Option<KubeEvent>, ObjectProblem> {
    match frame {
        Frame::Applied(pod) if counts(pod, node) => Ok(Some(KubeEvent::PodApplied(pod_meta(pod)?))),
        Frame::Applied(pod) | Frame::Deleted(pod) => Ok(Some(KubeEvent::PodDeleted(pod_ref(pod)?))),
        Frame::Bookmark { .. } | Frame::Error { .. } => Ok(None),
    }
}

fn node_name(meta: &ObjectMeta) -> Result<NodeName, ObjectProblem> {
    match meta.name.as_deref() {
        Some(name) if !name.is_empty() => Ok(name.into()),
        _ => Err(ObjectProblem::new("Node", meta, "metadata.name is missing")),
    }
}

fn problem(object: &str, reason: &str) -> ObjectProblem {
    ObjectProblem {
        object: object.into(),
        reason: reason.into(),
    }
}
