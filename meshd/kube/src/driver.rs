//! The driver: its watches and its writer, side by side.

use crate::clients::Clients;
use crate::link::{Closed, Link};
use crate::metadata::{BlockMetadata, NodeMetadata};
use crate::publish::publish;
use crate::watch::{Kind, Listing, boxed, config, follow};
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use meshd_core::{KubeAction, KubeEvent};
use meshd_model::NodeName;
use meshd_translate::{Frame, ObjectProblem, block_event, node_event, own_node_event, pod_event};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// As [`run_with`], with one client for good.
pub async fn run(
    client: Client,
    node: NodeName,
    events: mpsc::Sender<KubeEvent>,
    actions: mpsc::Receiver<KubeAction>,
) {
    // Kept to the end: a sender that is gone sends no other.
    let (_sender, clients) = watch::channel(client);
    run_with(clients, node, false, events, actions).await;
}

/// Watches on behalf of `node`'s agent, objects of blocks only if they are `blocks` of IPAM's pool mode, and carries its
/// actions out, until the agent takes no events or sends no actions any more. A client that is sent replaces the one in use, at once and everywhere.
///
/// Both channels are the caller's, and bounded. While `events` is full the watches wait and so do actions, whose
/// outcomes are events too; so whoever sends an action must not wait for room without taking events.
pub async fn run_with(
    clients: watch::Receiver<Client>,
    node: NodeName,
    blocks: bool,
    events: mpsc::Sender<KubeEvent>,
    actions: mpsc::Receiver<KubeAction>,
) {
    let clients = Clients::new(clients);
    let link = Link::new(events);
    let own = OwnNode {
        clients: clients.clone(),
        node: node.clone(),
        seen: false,
    };
    let nodes = Nodes {
        clients: clients.clone(),
    };
    let pods = Pods {
        clients: clients.clone(),
        node: node.clone(),
    };
    let ended: Result<(), Closed> = tokio::select! {
        ended = follow(own, &link, clients.clone()) => ended,
        ended = follow(nodes, &link, clients.clone()) => ended,
        ended = follow(pods, &link, clients.clone()) => ended,
        ended = async {
            match blocks {
                true => follow(Blocks { clients: clients.clone() }, &link, clients.clone()).await,
                false => std::future::pending().await,
            }
        } => ended,
        ended = publish(clients.clone(), node, actions, &link) => ended,
        () = link.closed() => Err(Closed),
    };
    tracing::debug!(?ended, "the Kubernetes driver ends");
}

/// All Nodes, metadata only: whole ones cost megabytes a second in a large cluster.
struct Nodes {
    clients: Clients,
}

impl Kind for Nodes {
    type Object = NodeMetadata;
    const NAME: &'static str = "Nodes";
    /// It is the one list that is as large as the cluster, and all nodes of a cluster may start at one moment.
    const START_SPREAD: Duration = Duration::from_millis(500);

    fn stream(&self, listing: Listing) -> BoxStream<'static, watcher::Result<Event<Self::Object>>> {
        let api: Api<Self::Object> = Api::all(self.clients.current());
        boxed(watcher(api, config(240, 290, listing)))
    }

    fn reset(&mut self) -> Option<KubeEvent> {
        Some(KubeEvent::NodesReset)
    }

    fn synced(&mut self) -> Option<KubeEvent> {
        Some(KubeEvent::NodesSynced)
    }

    fn change(
        &mut self,
        frame: Frame<&Self::Object>,
        _listed: bool,
    ) -> Result<Option<KubeEvent>, ObjectProblem> {
        node_event(frame.map(|node| &node.metadata))
    }
}

/// The own Node, whole. Its watch is the one that finds out whether the API server is there: it is short, and it
/// begins with a list again whenever anything failed.
struct OwnNode {
    clients: Clients,
    node: NodeName,
    /// Whether the list that is being read has it.
    seen: bool,
}

impl Kind for OwnNode {
    type Object = Node;
    const NAME: &'static str = "the own Node";

    fn stream(&self, listing: Listing) -> BoxStream<'static, watcher::Result<Event<Node>>> {
        let config = config(45, 60, listing).fields(&format!("metadata.name={}", self.node));
        let api: Api<Self::Object> = Api::all(self.clients.current());
        boxed(watcher(api, config))
    }

    fn reset(&mut self) -> Option<KubeEvent> {
        self.seen = false;
        None
    }

    fn synced(&mut self) -> Option<KubeEvent> {
        (!self.seen).then_some(KubeEvent::OwnNodeDeleted)
    }

    fn change(&mut self, frame: Frame<&Node>, _listed: bool) -> Result<Option<KubeEvent>, ObjectProblem> {
        self.seen = true;
        own_node_event(frame)
    }

    fn begins_anew(&self) -> bool {
        true
    }
}

/// All objects of blocks, metadata only, which is all that there is to know.
struct Blocks {
    clients: Clients,
}

impl Kind for Blocks {
    type Object = BlockMetadata;
    const NAME: &'static str = "IPBlocks";
    const START_SPREAD: Duration = Duration::from_millis(500);

    fn stream(&self, listing: Listing) -> BoxStream<'static, watcher::Result<Event<Self::Object>>> {
        let api: Api<Self::Object> = Api::all(self.clients.current());
        boxed(watcher(api, config(240, 290, listing)))
    }

    fn reset(&mut self) -> Option<KubeEvent> {
        Some(KubeEvent::BlocksReset)
    }

    fn synced(&mut self) -> Option<KubeEvent> {
        Some(KubeEvent::BlocksSynced)
    }

    fn change(
        &mut self,
        frame: Frame<&Self::Object>,
        _listed: bool,
    ) -> Result<Option<KubeEvent>, ObjectProblem> {
        block_event(frame.map(|block| &block.metadata))
    }
}

/// The pods that are bound to the own Node.
struct Pods {
    clients: Clients,
    node: NodeName,
}

impl Kind for Pods {
    type Object = Pod;
    const NAME: &'static str = "the node's pods";

    fn stream(&self, listing: Listing) -> BoxStream<'static, watcher::Result<Event<Pod>>> {
        let config = config(240, 290, listing).fields(&format!("spec.nodeName={}", self.node));
        let api: Api<Self::Object> = Api::all(self.clients.current());
        boxed(watcher(api, config))
    }

    fn reset(&mut self) -> Option<KubeEvent> {
        Some(KubeEvent::PodsReset)
    }

    fn synced(&mut self) -> Option<KubeEvent> {
        Some(KubeEvent::PodsSynced)
    }

    fn change(&mut self, frame: Frame<&Pod>, listed: bool) -> Result<Option<KubeEvent>, ObjectProblem> {
        let event = pod_event(&self.node.0, frame)?;
        // In a list, a pod that does not count is one that is not named.
        Ok(event.filter(|e| !listed || matches!(e, KubeEvent::PodApplied(_))))
    }
}
