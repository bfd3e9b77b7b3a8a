//! Nodes and pods.

use crate::annotations::{decode, quoted};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meshd_model::net::canonical;
use meshd_model::{NodeMeta, NodeName, NodeUid, OwnNode, PodRef};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The condition of a Node that says that it has no network yet (`NodeNetworkUnavailable`).
pub const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";
/// A pod with this annotation is the mirror of a static pod (`ConfigMirrorAnnotationKey` of the kubelet).
const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";
/// The static pod's own UID (`ConfigHashAnnotationKey`).
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Longest UID of a static pod: a kubelet's hash has 32 digits, a UUID of a manifest 36 characters.
const UID_MAX: usize = 64;

/// Why an object of the API server cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {reason}")]
pub struct ObjectProblem {
    /// Kind and name, as far as they are known.
    pub object: String,
    /// What is wrong with it.
    pub reason: String,
}

impl ObjectProblem {
    pub(crate) fn new(kind: &str, meta: &ObjectMeta, reason: impl Into<String>) -> Self {
        let name = quoted(meta.name.as_deref().unwrap_or("without a name"));
        ObjectProblem {
            object: format!("{kind} {name}"),
            reason: reason.into(),
        }
    }
}

/// A Node of the metadata watch.
///
/// # Errors
/// Where the object has no name, UID or creation time. Annotations that are no use are not an error here: they are
/// part of what is known of the Node.
pub fn node_meta(meta: &ObjectMeta) -> Result<NodeMeta, ObjectProblem> {
    let empty = BTreeMap::new();
    Ok(NodeMeta {
        name: NodeName(text("Node", meta, "metadata.name", meta.name.as_deref())?),
        uid: NodeUid(text("Node", meta, "metadata.uid", meta.uid.as_deref())?),
        created: created(meta)?,
        annotations: decode(meta.annotations.as_ref().unwrap_or(&empty)),
    })
}

/// The own Node, whole.
///
/// # Errors
/// Where the object has no name, UID or creation time, or a pod CIDR or an internal address does not parse.
pub fn own_node(node: &Node) -> Result<OwnNode, ObjectProblem> {
    let known = node_meta(&node.metadata)?;
    Ok(OwnNode {
        pod_cidrs: pod_cidrs(node)?,
        internal_ips: internal_ips(node)?,
        network_unavailable: network_unavailable(node),
        name: known.name,
        uid: known.uid,
        created: known.created,
        published: known.annotations,
    })
}

/// `spec.podCIDRs`, or `spec.podCIDR` where only that is set, as canonical prefixes.
fn pod_cidrs(node: &Node) -> Result<Vec<IpNetwork>, ObjectProblem> {
    let Some(spec) = &node.spec else {
        return Ok(Vec::new());
    };
    let (field, texts) = match (spec.pod_cidrs.as_deref(), &spec.pod_cidr) {
        (None | Some([]), Some(one)) if !one.is_empty() => ("spec.podCIDR", std::slice::from_ref(one)),
        (many, _) => ("spec.podCIDRs", many.unwrap_or_default()),
    };
    let parse = |text: &String| match text.parse::<IpNetwork>() {
        Ok(net) if text.contains('/') => Ok(canonical(net)),
        _ => {
            let reason = format!("{field} has {:?}, which is no prefix", quoted(text));
            Err(ObjectProblem::new("Node", &node.metadata, reason))
        }
    };
    texts.iter().map(parse).collect()
}

fn internal_ips(node: &Node) -> Result<Vec<IpAddr>, ObjectProblem> {
    let status = node.status.as_ref();
    let addresses = status.and_then(|s| s.addresses.as_deref()).unwrap_or_default();
    let internal = addresses.iter().filter(|a| a.type_ == "InternalIP");
    let parse = |text: &String| {
        text.parse::<IpAddr>().map_err(|_| {
            let reason = format!(
                "status.addresses has InternalIP {:?}, which is no address",
                quoted(text)
            );
            ObjectProblem::new("Node", &node.metadata, reason)
        })
    };
    internal.map(|a| parse(&a.address)).collect()
}

fn network_unavailable(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref());
    let mut conditions = conditions.unwrap_or_default().iter();
    conditions.any(|c| c.type_ == NETWORK_UNAVAILABLE && c.status != "False")
}

/// Which pod it is, by the UID that its runtime knows it by. Of a static pod the API server has a mirror, which the
/// kubelet makes with a UID of its own; the runtime is told the hash of the manifest.
///
/// # Errors
/// Where the object has no name, namespace or UID.
pub fn pod_ref(pod: &Pod) -> Result<PodRef, ObjectProblem> {
    let meta = &pod.metadata;
    let annotation = |key| meta.annotations.as_ref().and_then(|a| a.get(key));
    // Whoever may write the pod may write the annotation: what no kubelet writes is not remembered as a UID.
    let is_uid = |text: &&String| {
        (1..=UID_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
    };
    let static_uid = annotation(CONFIG_MIRROR)
        .and(annotation(CONFIG_HASH))
        .filter(is_uid);
    Ok(PodRef {
        namespace: text("Pod", meta, "metadata.namespace", meta.namespace.as_deref())?,
        name: text("Pod", meta, "metadata.name", meta.name.as_deref())?,
        uid: match static_uid {
            Some(uid) => text("Pod", meta, CONFIG_HASH, Some(uid))?,
            None => text("Pod", meta, "metadata.uid", meta.uid.as_deref())?,
        },
    })
}

/// Whether the pod is one that the node's CNI serves: bound to `node`, not finished, not in the host's network. A
/// pod that is being deleted counts until it is gone: its runtime may still add and delete sandboxes.
#[must_use]
pub fn counts(pod: &Pod, node: &str) -> bool {
    let Some(spec) = &pod.spec else {
        return false;
    };
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    spec.node_name.as_deref() == Some(node)
        && !spec.host_network.unwrap_or(false)
        && !matches!(phase, Some("Succeeded" | "Failed"))
}

fn text(kind: &str, meta: &ObjectMeta, field: &str, value: Option<&str>) -> Result<String, ObjectProblem> {
    match value {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(ObjectProblem::new(kind, meta, format!("{field} is missing"))),
    }
}

fn created(meta: &ObjectMeta) -> Result<i64, ObjectProblem> {
    let stamp = meta.creation_timestamp.as_ref();
    let missing = || ObjectProblem::new("Node", meta, "metadata.creationTimestamp is missing");
    Ok(stamp.ok_or_else(missing)?.0.as_second())
}
