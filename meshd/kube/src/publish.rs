//! The writer of the own Node's annotations.

use crate::client::chain;
use crate::clients::Clients;
use crate::link::{Closed, Link};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::core::PartialObjectMeta;
use meshd_core::{Failure, KubeAction, KubeEvent};
use meshd_model::{NodeAnnotations, NodeName, NodeUid};
use meshd_translate::{FIELD_MANAGER, publish_body};
use std::time::Duration;
use tokio::sync::mpsc;

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
        let KubeAction::Publish { id, uid, annotations } = action;
        // Tried again with another client: to apply the same twice is to apply it once.
        let written = loop {
            let api = Api::all(clients.current());
            tokio::select! {
                written = write(&api, &node, &uid, &annotations) => break written,
                () = clients.renewed() => {}
            }
        };
        match written {
            Ok(()) => link.tell(KubeEvent::Applied(id)).await?,
            Err(error) => {
                let what = format!("publish annotations on Node {node}");
                let message = format!("{what}: {}{}", chain(&error), advice(&error));
                if !matches!(error, WriteError::Api(kube::Error::Api(_))) {
                    link.unreachable(&what, &error).await?;
                }
                let failure = Failure { errno: None, message };
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

async fn write(
    api: &Api<PartialObjectMeta<Node>>,
    node: &NodeName,
    uid: &NodeUid,
    annotations: &NodeAnnotations,
) -> Result<(), WriteError> {
    let body = publish_body(node, uid, annotations);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&body);
    let written = tokio::time::timeout(PATCH_TIMEOUT, api.patch(&node.0, &params, &patch)).await;
    written.map_err(|_| WriteError::Slow)?.map_err(WriteError::Api)?;
    Ok(())
}

/// What to do about a refusal.
fn advice(error: &WriteError) -> &'static str {
    let WriteError::Api(kube::Error::Api(status)) = error else {
        return "";
    };
    match status.code {
        401 | 403 => "; let meshd's service account patch its Node: see deploy/",
        409 | 422 if status.message.contains("uid") => {
            "; the Node is gone or was created anew: the new one follows"
        }
        _ => "",
    }
}
