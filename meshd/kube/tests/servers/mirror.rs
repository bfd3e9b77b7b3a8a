//! What an agent knows by its events, and nothing else: a mirror of what the API server holds.

use crate::server::Server;
use ipnetwork::IpNetwork;
use meshd_core::{ActionId, BlockOp, Failure, KubeAction, KubeEvent, PodEvent, Resource};
use meshd_model::{Block, NodeAnnotations, NodeMeta, NodeUid, OwnNode, PodMeta, PodRef, PublicKey, Wall};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) nodes: BTreeMap<String, NodeMeta>,
    pub(crate) pods: BTreeMap<String, PodRef>,
    pub(crate) blocks: BTreeMap<IpNetwork, Block>,
    /// None until anything was told.
    pub(crate) own: Option<Option<OwnNode>>,
    pub(crate) reachable: bool,
    /// How many lists of Nodes were complete.
    pub(crate) node_lists: u32,
    pub(crate) pod_lists: u32,
    pub(crate) block_lists: u32,
    /// How often the server was told to be unreachable.
    pub(crate) outages: u32,
    pub(crate) outcomes: BTreeMap<u64, Result<(), Failure>>,
    /// Objects that a list in progress has named.
    listed_nodes: Option<BTreeMap<String, NodeMeta>>,
    listed_pods: Option<BTreeMap<String, PodRef>>,
    listed_blocks: Option<BTreeMap<IpNetwork, Block>>,
}

pub(crate) struct Mirror {
    pub(crate) known: Known,
    events: mpsc::Receiver<KubeEvent>,
    actions: mpsc::Sender<KubeAction>,
    task: JoinHandle<()>,
    published: u64,
}

impl Mirror {
    /// Runs the driver for a node. The channels are small, so that waiting for room happens.
    pub(crate) async fn of(server: &Server, node: &str) -> Self {
        Self::with(server.client().await, node)
    }

    /// The same of a node in IPAM's pool mode.
    pub(crate) async fn of_pool(server: &Server, node: &str) -> Self {
        Self::start(server.client().await, node, true)
    }

    /// The same with a client of one's own.
    pub(crate) fn with(client: kube::Client, node: &str) -> Self {
        Self::start(client, node, false)
    }

    fn start(client: kube::Client, node: &str, blocks: bool) -> Self {
        let (tx, events) = mpsc::channel(2);
        let (actions, rx) = mpsc::channel(2);
        let node = node.into();
        let task = tokio::spawn(async move {
            let (_sender, clients) = watch::channel(client);
            meshd_kube::run_with(clients, node, blocks, tx, rx).await;
        });
        Self {
            known: Known::default(),
            events,
            actions,
            task,
            published: 0,
        }
    }

    /// Takes events until the condition holds.
    #[track_caller]
    pub(crate) fn until<'a>(
        &'a mut self,
        what: &'a str,
        condition: impl Fn(&Known) -> bool + 'a,
    ) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let deadline = Instant::now() + PATIENCE;
            while !condition(&self.known) {
                let event = tokio::time::timeout_at(deadline, self.events.recv()).await;
                match event {
                    Ok(Some(event)) => self.known.take(event),
                    Ok(None) => panic!("{caller}: the driver ended while waiting for: {what}"),
                    Err(_) => panic!("{caller}: waited in vain for: {what}\nknown: {:#?}", self.known),
                }
            }
        }
    }

    /// Takes events for a while.
    pub(crate) async fn rest(&mut self, time: Duration) {
        self.rest_until(time, |_| false).await;
    }

    /// Takes events for a while, or until the condition holds.
    pub(crate) async fn rest_until(&mut self, time: Duration, condition: impl Fn(&Known) -> bool) {
        let deadline = Instant::now() + time;
        while !condition(&self.known)
            && let Ok(Some(event)) = tokio::time::timeout_at(deadline, self.events.recv()).await
        {
            self.known.take(event);
        }
    }

    /// Waits until all three watches have listed.
    pub(crate) async fn synced(&mut self) {
        let synced = |k: &Known| k.node_lists > 0 && k.pod_lists > 0 && k.own.is_some();
        self.until("the first lists", synced).await;
    }

    /// Publishes, and waits for what comes of it.
    pub(crate) async fn publish(&mut self, uid: &str, annotations: &NodeAnnotations) -> Result<(), Failure> {
        self.published += 1;
        let generation = self.published;
        let id = ActionId {
            resource: Resource::Annotations,
            generation,
        };
        let action = KubeAction::Publish {
            id,
            uid: NodeUid(uid.into()),
            annotations: annotations.clone(),
        };
        self.carry_out(generation, action).await
    }

    /// Sets the condition NetworkUnavailable to False, at 2026-01-02T03:04:05Z.
    pub(crate) async fn clear_network(&mut self, uid: &str) -> Result<(), Failure> {
        self.published += 1;
        let generation = self.published;
        let id = ActionId {
            resource: Resource::NetworkCondition,
            generation,
        };
        let action = KubeAction::ClearNetworkUnavailable {
            id,
            uid: NodeUid(uid.into()),
            at: Wall(1_767_323_045 * 1_000_000_000 + 678),
        };
        self.carry_out(generation, action).await
    }

    /// Tells of a pod at 2026-01-02T03:04:05Z, and waits for what comes of it.
    pub(crate) async fn tell(&mut self, event: PodEvent) -> Result<(), Failure> {
        self.published += 1;
        let generation = self.published;
        let resource = Resource::PodEvent(event.pod.clone(), event.reason);
        let id = ActionId { resource, generation };
        let at = Wall(1_767_323_045 * 1_000_000_000 + 678);
        self.carry_out(generation, KubeAction::PodEvent { id, event, at })
            .await
    }

    /// Changes a block's object, and waits for what comes of it.
    pub(crate) async fn block(&mut self, cidr: IpNetwork, op: BlockOp) -> Result<(), Failure> {
        self.published += 1;
        let generation = self.published;
        let resource = Resource::Block(cidr);
        let id = ActionId { resource, generation };
        self.carry_out(generation, KubeAction::Block { id, cidr, op })
            .await
    }

    async fn carry_out(&mut self, generation: u64, action: KubeAction) -> Result<(), Failure> {
        self.actions.send(action).await.unwrap();
        self.until("an outcome", |k| k.outcomes.contains_key(&generation))
            .await;
        self.known.outcomes[&generation].clone()
    }

    /// The driver ends when its agent is gone.
    pub(crate) async fn ends_with_its_agent(self) {
        drop((self.events, self.actions));
        let end = tokio::time::timeout(PATIENCE, self.task).await;
        end.expect("the driver did not end").unwrap();
    }
}

impl Known {
    fn take(&mut self, event: KubeEvent) {
        if !matches!(event, KubeEvent::Unreachable { .. } | KubeEvent::Failed { .. }) {
            self.reachable = true;
        }
        match event {
            KubeEvent::NodesReset => self.listed_nodes = Some(BTreeMap::new()),
            KubeEvent::NodeApplied(node) => {
                let nodes = self.listed_nodes.as_mut().unwrap_or(&mut self.nodes);
                nodes.insert(node.name.0.clone(), node);
            }
            KubeEvent::NodeDeleted(name) => drop(self.nodes.remove(&name.0)),
            KubeEvent::NodesSynced => {
                self.nodes = self.listed_nodes.take().expect("Synced without Reset");
                self.node_lists += 1;
            }
            KubeEvent::OwnNode(node) => self.own = Some(Some(node)),
            KubeEvent::OwnNodeDeleted => self.own = Some(None),
            KubeEvent::PodsReset => self.listed_pods = Some(BTreeMap::new()),
            KubeEvent::PodApplied(PodMeta { pod, .. }) => {
                let pods = self.listed_pods.as_mut().unwrap_or(&mut self.pods);
                pods.insert(pod.name.clone(), pod);
            }
            KubeEvent::PodDeleted(pod) => drop(self.pods.remove(&pod.name)),
            KubeEvent::PodsSynced => {
                self.pods = self.listed_pods.take().expect("Synced without Reset");
                self.pod_lists += 1;
            }
            KubeEvent::BlocksReset => self.listed_blocks = Some(BTreeMap::new()),
            KubeEvent::BlockApplied(block) => {
                let blocks = self.listed_blocks.as_mut().unwrap_or(&mut self.blocks);
                blocks.insert(block.cidr, block);
            }
            KubeEvent::BlockDeleted(cidr) => drop(self.blocks.remove(&cidr)),
            KubeEvent::BlocksSynced => {
                self.blocks = self.listed_blocks.take().expect("Synced without Reset");
                self.block_lists += 1;
            }
            KubeEvent::Unreachable { message } => {
                assert!(!message.is_empty() && message.len() < 1000, "{message}");
                self.reachable = false;
                self.outages += 1;
            }
            KubeEvent::Applied(id) => drop(self.outcomes.insert(id.generation, Ok(()))),
            KubeEvent::Failed { id, failure } => drop(self.outcomes.insert(id.generation, Err(failure))),
        }
    }

    /// What a node published, if it is of use.
    pub(crate) fn published(&self, node: &str) -> Option<&NodeAnnotations> {
        self.nodes.get(node)?.annotations.as_ref().ok()
    }

    pub(crate) fn is_network_denied(&self) -> bool {
        let own = self.own.as_ref().and_then(Option::as_ref);
        own.is_some_and(|node| node.network_unavailable)
    }

    pub(crate) fn uid(&self, node: &str) -> Option<&str> {
        self.nodes.get(node).map(|n| n.uid.0.as_str())
    }

    pub(crate) fn own_uid(&self) -> Option<&str> {
        self.own.as_ref()?.as_ref().map(|n| n.uid.0.as_str())
    }
}

/// Annotations that are told apart by their key.
pub(crate) fn annotations(key: u8) -> NodeAnnotations {
    NodeAnnotations {
        public_key: PublicKey([key; 32]),
        listen_port: 51820,
        endpoints: vec![[192, 0, 2, key].into()],
        node_addresses: vec![[192, 0, 2, key].into()],
        mtu: 1420,
        pod_cidrs: vec![
            "10.244.7.0/24".parse().unwrap(),
            "fd00:244:0:7::/64".parse().unwrap(),
        ],
        protocol_version: 1,
    }
}
