//! The writer: the own Node's annotations, its condition NetworkUnavailable, and objects of blocks.

use crate::blocks;
use crate::client::chain;
use crate::clients::Clients;
use crate::link::{Closed, Link};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use meshd_core::{BlockOp, Failure, KubeAction, KubeEvent, PodEvent};
use meshd_model::{NodeName, Wall};
use meshd_translate::object::NETWORK_UNAVAILABLE;
use meshd_translate::{CONDITION_MANAGER, FIELD_MANAGER, network_body, pod_event_body, publish_body};
use std::time::Duration;
use tokio::sync::mpsc;

/// File exists, as Linux numbers it.
const EEXIST: i32 = 17;
/// How long the API server may take for a patch.
const PATCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Carries actions out, one at a time and in order, each tried once: the agent decides whether and when to try again.
pub(crate) async fn publish(
    mut clients: Clients,
    node: NodeName,
    mut actions: mpsc::Receiver<KubeAction>,
    link: &Link,
) -> Result<(), Closed> {
    while let Some(action) = actions.recv().await {
        let what = what(&action, &node);
        // Tried again with another client: to do either twice is to do it once.
        let written = loop {
            let client = clients.current();
            tokio::select! {
                written = write(client, &node, &action) => break written,
                () = clients.renewed() => {}
            }
        };
        let id = action.id().clone();
        match written {
            Ok(()) => link.tell(KubeEvent::Applied(id)).await?,
            Err(error) => {
                let message = format!("{what}: {}{}", chain(&error), advice(&error));
                if !matches!(error, WriteError::Api(kube::Error::Api(_))) {
                    link.unreachable(&what, &error).await?;
                }
                let errno = errno(&error, &action);
                let failure = Failure { errno, message };
                link.fail(KubeEvent::Failed { id, failure }).await?;
            }
        }
    }
    Err(Closed)
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Api(kube::Error),
    #[error("the API server took longer than {} s", PATCH_TIMEOUT.as_secs())]
    Slow,
}

fn what(action: &KubeAction, node: &NodeName) -> String {
    match action {
        KubeAction::Publish { .. } => format!("publish annotations on Node {node}"),
        KubeAction::ClearNetworkUnavailable { .. } => {
            format!("set the condition {NETWORK_UNAVAILABLE} of Node {node} to False")
        }
        KubeAction::Block { cidr, op, .. } => blocks::what(*cidr, op),
        KubeAction::PodEvent { event, .. } => format!("create an Event on Pod {}", event.pod),
    }
}

/// What the server makes of the Node is learned from the watch.
async fn write(client: Client, node: &NodeName, action: &KubeAction) -> Result<(), WriteError> {
    if let KubeAction::Block { cidr, op, .. } = action {
        return sent(blocks::write(&client, node, *cidr, op)).await;
    }
    if let KubeAction::PodEvent { event, at, .. } = action {
        return tell(client, node, event, *at).await;
    }
    let api: Api<PartialObjectMeta<Node>> = Api::all(client);
    match action {
        KubeAction::Publish { uid, annotations, .. } => {
            let body = publish_body(node, uid, annotations);
            let params = PatchParams::apply(FIELD_MANAGER).force();
            sent(api.patch(&node.0, &params, &Patch::Apply(&body))).await
        }
        KubeAction::ClearNetworkUnavailable { uid, at, .. } => {
            let body = network_body(uid, *at);
            let params = PatchParams {
                field_manager: Some(CONDITION_MANAGER.into()),
                ..PatchParams::default()
            };
            sent(api.patch_status(&node.0, &params, &Patch::Strategic(&body))).await
        }
        KubeAction::Block { .. } | KubeAction::PodEvent { .. } => Ok(()),
    }
}

/// Creates an Event on a pod.
async fn tell(client: Client, node: &NodeName, event: &PodEvent, at: Wall) -> Result<(), WriteError> {
    let api: Api<Event> = Api::namespaced(client, &event.pod.namespace);
    let body = pod_event_body(node, event, at);
    let typed = serde_json::from_value(body).map_err(|e| WriteError::Api(kube::Error::SerdeError(e)))?;
    sent(api.create(&PostParams::default(), &typed)).await
}

async fn sent<T>(request: impl Future<Output = kube::Result<T>>) -> Result<(), WriteError> {
    let answered = tokio::time::timeout(PATCH_TIMEOUT, request).await;
    answered.map_err(|_| WriteError::Slow)?.map_err(WriteError::Api)?;
    Ok(())
}

/// What the agent tells outcomes apart by: somebody has the block already.
fn errno(error: &WriteError, action: &KubeAction) -> Option<i32> {
    let WriteError::Api(kube::Error::Api(status)) = error else {
        return None;
    };
    let is_claim = matches!(
        action,
        KubeAction::Block {
            op: BlockOp::Claim { .. },
            ..
        }
    );
    (is_claim && status.code == 409 && status.reason == "AlreadyExists").then_some(EEXIST)
}

/// What to do about a refusal.
fn advice(error: &WriteError) -> &'static str {
    let WriteError::Api(kube::Error::Api(status)) = error else {
        return "";
    };
    match status.code {
        404 if status.message.contains("could not find the requested resource") => {
            "; install the CustomResourceDefinition of IPBlocks: see deploy/"
        }
        401 | 403 if status.message.contains("events") => {
            "; let meshd's service account create events: see deploy/"
        }
        401 | 403 => "; let meshd's service account patch its Node: see deploy/",
        409 | 422 if status.message.contains("uid") => {
            "; the Node is gone or was created anew: the new one follows"
        }
        _ => "",
    }
}
