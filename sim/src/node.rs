//! A node: its agent and what the daemon round it does: carrying actions out, bringing outcomes back.

use crate::client::Client;
use crate::kernel::Kernel;
use crate::random::{self, Random};
use crate::sim::{Sim, What};
use crate::trace::Kind;
use meshd_core::{
    Action, CniAction, CniCall, CniEvent, Config as AgentConfig, Event, Identity, KernelAction, KernelEvent,
    NodeAgent, RequestId, StoreAction, StoreEvent,
};
use meshd_model::cni::{Added, CniError};
use meshd_model::{AttachmentId, Boot, Kept, KeptKey, KeyHandle, Lease, NodeName};
use meshd_wireguard_proto::PrivateKey;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;
use zeroize::Zeroizing;

/// Actions that an agent may want at once: more means that it does not come to rest.
const ACTIONS_MAX: usize = 1_000_000;
/// The node's key.
const HANDLE: KeyHandle = KeyHandle(1);

/// The answer to a CNI request.
pub type CniResult = Result<Option<Added>, CniError>;

/// A node.
pub(crate) struct Node {
    pub(crate) name: NodeName,
    pub(crate) addresses: Vec<IpAddr>,
    /// None while it is killed.
    pub(crate) agent: Option<NodeAgent>,
    /// Counts starts and kills: what was under way for an earlier run of the daemon does not reach the next.
    pub(crate) epoch: u64,
    pub(crate) kernel: Kernel,
    /// Operations that wait for the kernel: they die with the daemon.
    driver: VecDeque<KernelAction>,
    /// Outlives the daemon.
    pub(crate) store: BTreeMap<AttachmentId, Lease>,
    /// Records of kept addresses, which outlive a boot.
    pub(crate) kept: BTreeMap<KeptKey, Kept>,
    pub(crate) client: Client,
    /// Which key the node has, by number: two nodes may be given the same.
    pub(crate) key: u64,
    /// How often it was given other addresses.
    pub(crate) moves: u32,
    /// What its agent is told of [`AgentConfig::keepalive`].
    pub(crate) keepalive: Option<u16>,
    agent_timer: Option<u64>,
    pub(crate) tunnel_timer: Option<u64>,
    requests: u64,
    replies: BTreeMap<RequestId, CniResult>,
}

impl Node {
    pub(crate) fn new(name: NodeName, addresses: Vec<IpAddr>, kernel: Kernel, key: u64) -> Node {
        let client = Client::new(&name.0, Random::new(0, "", &[]));
        Node {
            name,
            addresses,
            agent: None,
            epoch: 0,
            kernel,
            driver: VecDeque::new(),
            store: BTreeMap::new(),
            kept: BTreeMap::new(),
            client,
            key,
            moves: 0,
            keepalive: None,
            agent_timer: None,
            tunnel_timer: None,
            requests: 0,
            replies: BTreeMap::new(),
        }
    }
}

/// The private key of this number.
pub(crate) fn private_key(seed: u64, number: u64) -> PrivateKey {
    PrivateKey::from_bytes(Zeroizing::new(random::derive(seed, "key", &[number])))
}

impl Sim {
    /// Starts a node's agent, as its daemon does: from nothing but the key, the store and what it will observe.
    /// Nothing happens if it runs.
    pub fn start_agent(&mut self, node: usize) {
        if self.nodes[node].agent.is_some() {
            return;
        }
        let stamp = self.stamp();
        let config = self.agent_config(node);
        let (seed, now) = (self.config.seed, self.now);
        let it = &mut self.nodes[node];
        it.epoch += 1;
        it.kernel.keys.insert(HANDLE, private_key(seed, it.key));
        let numbers = [node as u64, it.epoch];
        it.client = Client::new(&it.name.0, Random::new(seed, "client", &numbers));
        it.agent = Some(NodeAgent::new(
            config,
            Random::new(seed, "agent", &numbers).next(),
            stamp,
        ));
        self.trace.bytes(now, node, Kind::Start, &[]);
        self.begin_client(node);
        self.pump_agent(node);
    }

    /// kill -9: the agent and all that it had not yet had done are gone; what was under way may be done or not.
    /// Nothing happens if it does not run.
    pub fn kill_agent(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        if it.agent.take().is_none() {
            return;
        }
        it.epoch += 1;
        it.driver.clear();
        it.agent_timer = None;
        self.trace.bytes(self.now, node, Kind::Kill, &[]);
    }

    fn agent_config(&self, node: usize) -> AgentConfig {
        let it = &self.nodes[node];
        AgentConfig {
            node: it.name.clone(),
            identity: Identity {
                handle: HANDLE,
                public_key: private_key(self.config.seed, it.key).public_key(),
            },
            keepalive: it.keepalive,
            ..crate::make::agent(&self.config)
        }
    }

    /// Hands an event to the agent and carries out what it wants; nothing without an agent.
    pub(crate) fn agent_event(&mut self, node: usize, event: Event) {
        let stamp = self.stamp();
        let Some(agent) = &mut self.nodes[node].agent else {
            return;
        };
        self.trace.value(self.now, node, Kind::Event, &event);
        agent.handle_event(stamp, event);
        self.pump_agent(node);
    }

    pub(crate) fn on_agent_timer(&mut self, node: usize) {
        let stamp = self.stamp();
        let it = &mut self.nodes[node];
        it.agent_timer = None;
        let Some(agent) = &mut it.agent else { return };
        if agent.poll_timeout().is_some_and(|(due, _)| due <= stamp.boot) {
            self.trace.bytes(self.now, node, Kind::Timer, &[]);
            agent.handle_timeout(stamp);
        }
        self.pump_agent(node);
    }

    fn pump_agent(&mut self, node: usize) {
        for count in 0.. {
            let Some(agent) = &mut self.nodes[node].agent else {
                return;
            };
            let Some(action) = agent.poll_action() else { break };
            if count >= ACTIONS_MAX {
                return self.violate(
                    Some(node),
                    format!("the agent wants more than {ACTIONS_MAX} things at once"),
                );
            }
            self.trace.value(self.now, node, Kind::Action, &action);
            self.carry_out(node, action);
        }
        let it = &mut self.nodes[node];
        let Some((due, _)) = it.agent.as_ref().and_then(NodeAgent::poll_timeout) else {
            return;
        };
        let at = due.0.saturating_sub(crate::sim::BOOT).max(self.now);
        if it.agent_timer.is_none_or(|timer| at < timer) {
            it.agent_timer = Some(at);
            let epoch = it.epoch;
            self.queue.push(at, What::AgentTimer { node, epoch });
        }
    }

    fn carry_out(&mut self, node: usize, action: Action) {
        let epoch = self.nodes[node].epoch;
        match action {
            Action::Kube(action) => self.kube_action(node, action),
            Action::Kernel(action) => {
                self.nodes[node].driver.push_back(action);
                if self.nodes[node].driver.len() == 1 {
                    self.push_kernel(node);
                }
            }
            Action::Store(action) => {
                // Durable half-way, told at the end: a kill between leaves a lease that nobody heard of.
                let half = Sim::nanos(self.config.store_latency) / 2;
                self.queue
                    .push(self.now + half, What::Store { node, epoch, action });
            }
            Action::Cni(CniAction::Reply { id, result }) => {
                if self.nodes[node].replies.insert(id, result).is_some() {
                    self.violate(Some(node), format!("request {id:?} was answered twice"));
                }
            }
        }
    }

    fn push_kernel(&mut self, node: usize) {
        let epoch = self.nodes[node].epoch;
        self.queue.push(
            self.now + Sim::nanos(self.config.kernel_latency),
            What::Kernel { node, epoch },
        );
    }

    /// The kernel has come to the next operation.
    pub(crate) fn on_kernel(&mut self, node: usize) {
        let stamp = self.stamp();
        let Some(action) = self.nodes[node].driver.pop_front() else {
            return;
        };
        if !self.nodes[node].driver.is_empty() {
            self.push_kernel(node);
        }
        let result = self.nodes[node].kernel.apply(stamp, &action.op);
        if result.is_ok() {
            self.check_kernel(node, &action.op);
        }
        let event = match result {
            Ok(None) => KernelEvent::Applied(action.id),
            Ok(Some(state)) => KernelEvent::Observed(state),
            Err(failure) => KernelEvent::Failed {
                id: action.id,
                failure,
            },
        };
        self.pump_tunnel(node);
        self.agent_event(node, Event::Kernel(event));
    }

    /// The store has come to an action: from now on it survives the daemon.
    pub(crate) fn on_store(&mut self, node: usize, epoch: u64, action: StoreAction) {
        let store = &mut self.nodes[node].store;
        let event = match action {
            StoreAction::Load { .. } => StoreEvent::Loaded {
                leases: store.values().cloned().collect(),
                damaged: Vec::new(),
                kept: self.nodes[node].kept.values().cloned().collect(),
                damaged_kept: Vec::new(),
            },
            StoreAction::Put { id, lease } => {
                store.insert(lease.id.clone(), lease.clone());
                self.check_lease(node, &lease);
                StoreEvent::Applied(id)
            }
            StoreAction::Remove { id, attachment } => {
                store.remove(&attachment);
                StoreEvent::Applied(id)
            }
            StoreAction::Keep { id, kept } => {
                self.nodes[node].kept.insert(kept.key.clone(), kept);
                StoreEvent::Applied(id)
            }
            StoreAction::Unkeep { id, key } => {
                self.nodes[node].kept.remove(&key);
                StoreEvent::Applied(id)
            }
        };
        let at = self.now + Sim::nanos(self.config.store_latency) / 2;
        self.queue.push(
            at,
            What::Agent {
                node,
                epoch,
                event: Box::new(Event::Store(event)),
            },
        );
    }

    /// A runtime calls the CNI plugin; the answer comes with [`Sim::reply`]. None while no agent runs: the plugin
    /// finds no one at the socket.
    pub fn cni(&mut self, node: usize, call: CniCall, within: Duration) -> Option<RequestId> {
        let deadline = Boot(self.stamp().boot.0 + Sim::nanos(within));
        let it = &mut self.nodes[node];
        it.agent.as_ref()?;
        it.requests += 1;
        let id = RequestId(it.requests);
        self.agent_event(
            node,
            Event::Cni(CniEvent::Request {
                id,
                deadline,
                call: Box::new(call),
            }),
        );
        Some(id)
    }

    /// Whether the answer to a CNI request is there.
    #[must_use]
    pub fn has_reply(&self, node: usize, id: RequestId) -> bool {
        self.nodes[node].replies.contains_key(&id)
    }

    /// Takes the answer to a CNI request, once it is there.
    pub fn reply(&mut self, node: usize, id: RequestId) -> Option<CniResult> {
        self.nodes[node].replies.remove(&id)
    }
}
