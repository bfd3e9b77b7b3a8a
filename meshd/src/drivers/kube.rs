//! The API server.

use super::Port;
use crate::settings::Settings;
use crate::settings::value::IpamMode;
use meshd_core::{KubeAction, KubeEvent};
use meshd_kube::{Access, ClientError, Server};
use meshd_model::NodeName;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc, watch};

/// Events that may wait for the loop: a large cluster's list comes in one go.
const EVENTS: usize = 1024;
/// Actions that may wait for the API server: there are few resources to write.
const ACTIONS: usize = 16;

/// Starts the driver. That the API server does not answer is no failure: the driver tells the agent, and tries again.
/// Each time it is notified through `moved`, it connects anew: the node has lost an address.
pub async fn start_kube(
    settings: &Settings,
    moved: Arc<Notify>,
) -> Result<Port<KubeEvent, KubeAction>, ClientError> {
    let access = access(settings);
    let client = meshd_kube::connect(&access).await?;
    let node = NodeName(settings.node_name.clone().unwrap_or_default());
    let blocks = settings.ipam.mode == IpamMode::Pool;
    let (actions, requests) = mpsc::channel(ACTIONS);
    let (outcomes, events) = mpsc::channel(EVENTS);
    let (renew, clients) = watch::channel(client);
    tokio::spawn(meshd_kube::run_with(clients, node, blocks, outcomes, requests));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = moved.notified() => {}
                () = renew.closed() => return,
            }
            match meshd_kube::connect(&access).await {
                Ok(client) => drop(renew.send(client)),
                Err(error) => tracing::warn!(%error, "cannot connect anew to the API server"),
            }
        }
    });
    Ok(Port::new("kube", events, actions))
}

/// How the API server is reached; the settings have been validated.
#[must_use]
pub fn access(settings: &Settings) -> Access {
    if let Some(path) = &settings.kubeconfig {
        return Access::Kubeconfig(path.clone());
    }
    let server = match (&settings.api_server, &settings.api_server_from) {
        (Some(server), _) => Server::At(server.clone()),
        (None, Some(path)) => Server::Of(path.clone()),
        (None, None) => Server::Environment,
    };
    Access::ServiceAccount {
        folder: settings.service_account_dir.clone(),
        server,
    }
}
