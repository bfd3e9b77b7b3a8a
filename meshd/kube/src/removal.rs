//! What taking meshd off a cluster asks of the API server; each request is tried once.

use crate::client::chain;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use meshd_model::NodeName;
use meshd_translate::FIELD_MANAGER;
use std::collections::BTreeMap;
use std::time::Duration;

/// Prefix of the annotations that are meshd's.
const PREFIX: &str = "meshd.dev/";
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pods of one node that are asked for: there are two.
const PODS: u32 = 50;

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct RemovalError {
    what: String,
    reason: String,
}

/// How far a DaemonSet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Nodes that shall run one of its pods.
    pub wanted: i32,
    /// Nodes whose pod is ready.
    pub ready: i32,
}

impl Progress {
    /// Whether all are. A DaemonSet that nobody has counted yet wants none, and is not done.
    #[must_use]
    pub fn is_done(self) -> bool {
        self.wanted > 0 && self.ready >= self.wanted
    }
}

/// Names of the pods with this label selector that are on the node still.
pub async fn pods_on(
    client: &Client,
    namespace: &str,
    selector: &str,
    node: &NodeName,
) -> Result<Vec<String>, RemovalError> {
    let api: Api<PartialObjectMeta<Pod>> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default()
        .labels(selector)
        .fields(&format!("spec.nodeName={node}"))
        .limit(PODS);
    let listed = within(
        format!("list pods {selector} of Node {node}"),
        api.list_metadata(&params),
    )
    .await?;
    Ok(listed
        .items
        .into_iter()
        .filter_map(|pod| pod.metadata.name)
        .collect())
}

/// Nodes with a pod of this label selector that is not ready.
pub async fn unready_nodes(
    client: &Client,
    namespace: &str,
    selector: &str,
) -> Result<Vec<String>, RemovalError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default().labels(selector);
    let listed = within(format!("list pods {selector}"), api.list(&params)).await?;
    let is_ready = |pod: &Pod| {
        let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
        conditions
            .into_iter()
            .any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let unready = listed.items.into_iter().filter(|pod| !is_ready(pod));
    let mut nodes: Vec<_> = unready.filter_map(|pod| pod.spec?.node_name).collect();
    nodes.sort();
    Ok(nodes)
}

/// Whether there is such a DaemonSet.
pub async fn has_daemon_set(client: &Client, namespace: &str, name: &str) -> Result<bool, RemovalError> {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let found = within(
        format!("read DaemonSet {namespace}/{name}"),
        api.get_metadata_opt(name),
    );
    Ok(found.await?.is_some())
}

/// Takes meshd's annotations off the Node; gives their keys. A Node that is gone has none.
pub async fn clear_annotations(client: &Client, node: &NodeName) -> Result<Vec<String>, RemovalError> {
    let api: Api<Node> = Api::all(client.clone());
    let found = within(format!("read Node {node}"), api.get_metadata_opt(&node.0)).await?;
    let annotations = found
        .and_then(|node| node.metadata.annotations)
        .unwrap_or_default();
    let ours: BTreeMap<_, Option<()>> = annotations
        .into_keys()
        .filter(|key| key.starts_with(PREFIX))
        .map(|key| (key, None))
        .collect();
    if ours.is_empty() {
        return Ok(Vec::new());
    }
    let patch = serde_json::json!({ "metadata": { "annotations": ours } });
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let patch = Patch::Merge(&patch);
    let patched = api.patch_metadata(&node.0, &params, &patch);
    within(format!("remove annotations of Node {node}"), patched).await?;
    Ok(ours.into_keys().collect())
}

/// How far a DaemonSet is.
pub async fn progress(client: &Client, namespace: &str, name: &str) -> Result<Progress, RemovalError> {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let set = within(format!("read DaemonSet {namespace}/{name}"), api.get(name)).await?;
    let none = Progress { wanted: 0, ready: 0 };
    Ok(match set.status {
        Some(status) if status.observed_generation >= set.metadata.generation => Progress {
            wanted: status.desired_number_scheduled,
            ready: status.number_ready,
        },
        _ => none,
    })
}

async fn within<T>(what: String, request: impl Future<Output = kube::Result<T>>) -> Result<T, RemovalError> {
    let reason = match tokio::time::timeout(PATIENCE, request).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) => chain(&error),
        Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
    };
    Err(RemovalError { what, reason })
}
