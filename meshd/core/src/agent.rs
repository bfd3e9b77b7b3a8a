//! The agent itself: takes events in, and hands them to the modules that know what follows.

use crate::action::Resource;
use crate::attach::gc::Collecting;
use crate::attach::kept::KeptTable;
use crate::attach::requests::{Requests, Stage};
use crate::attach::table::Attachments;
use crate::blocks::{Blocks, Change, as_owner};
use crate::bounds::Bounds;
use crate::counters::Counters;
use crate::event::{KernelEvent, KubeEvent, RequestId, StoreEvent};
use crate::jitter::Jitter;
use crate::network::NetworkCondition;
use crate::nodes::Nodes;
use crate::observed::Observed;
use crate::ops::Ops;
use crate::own::{Local, Own};
use crate::pod_events::PodEvents;
use crate::pods::Pods;
use crate::publish::Publisher;
use crate::timers::Timers;
use crate::{Action, Config, Event, TimerKind};
use meshd_model::net::Family;
use meshd_model::{Boot, Now, OwnNode};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// One node's agent.
///
/// Whoever drives it: call [`handle_event`](Self::handle_event) for each thing that happens, and
/// [`handle_timeout`](Self::handle_timeout) when the time of [`poll_timeout`](Self::poll_timeout) has come; after
/// either, call [`poll_action`](Self::poll_action) until it gives nothing, then `poll_timeout` again. `now` never
/// runs backwards in its boot part.
///
/// Kernel and store actions are carried out in the order given, and their outcomes come back in that order; only those of
/// `RemovePodLink`, `Keep` and `Unkeep` may be late.
///
/// The agent serialises whole: that is the snapshot at the head of each segment of a recording. Its maps have keys
/// that are no strings, so the format must allow that (CBOR does, JSON does not).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeAgent {
    pub(crate) config: Config,
    pub(crate) bounds: Bounds,
    pub(crate) jitter: Jitter,
    pub(crate) timers: Timers,
    pub(crate) ops: Ops,
    pub(crate) actions: VecDeque<Action>,
    pub(crate) dirty: BTreeSet<Resource>,
    /// How many keys were reconciled since the start.
    pub(crate) reconciled: u64,
    /// Whether the node was fail-closed, and the gate open, when everything was last marked.
    pub(crate) gates: (bool, bool),

    pub(crate) observed: Observed,
    pub(crate) observe_wanted: bool,
    pub(crate) own: Own,
    pub(crate) local: Local,
    /// Families in which this node can be reached.
    pub(crate) families: BTreeSet<Family>,
    pub(crate) nodes: Nodes,
    pub(crate) publisher: Publisher,
    pub(crate) network: NetworkCondition,
    pub(crate) pods: Pods,
    #[serde(default)]
    pub(crate) blocks: Blocks,
    pub(crate) attachments: Attachments,
    #[serde(default)]
    pub(crate) kept: KeptTable,
    pub(crate) requests: Requests,
    /// GCs that wait for their deletions.
    #[serde(default)]
    pub(crate) collecting: BTreeMap<RequestId, Collecting>,
    #[serde(default)]
    pub(crate) counters: Counters,
    #[serde(default)]
    pub(crate) pod_events: PodEvents,
    /// Why the API server cannot be reached.
    pub(crate) api_away: Option<String>,
}

impl NodeAgent {
    /// An agent that knows nothing yet; its first actions load the store and observe the kernel.
    #[must_use]
    pub fn new(config: Config, seed: u64, now: Now) -> Self {
        let mut agent = Self {
            bounds: Bounds::new(&config),
            jitter: Jitter::new(seed),
            timers: Timers::default(),
            ops: Ops::default(),
            actions: VecDeque::new(),
            dirty: BTreeSet::from([Resource::Store, Resource::Kernel]),
            reconciled: 0,
            gates: (false, false),
            observed: Observed::default(),
            observe_wanted: true,
            own: Own::default(),
            local: Local::default(),
            families: BTreeSet::new(),
            nodes: Nodes::default(),
            publisher: Publisher::default(),
            network: NetworkCondition::default(),
            pods: Pods::default(),
            blocks: Blocks::default(),
            attachments: Attachments::new(config.address_rest, &config.ipam.reserved),
            kept: KeptTable::default(),
            requests: Requests::new(),
            collecting: BTreeMap::new(),
            counters: Counters::default(),
            pod_events: PodEvents::default(),
            api_away: None,
            config,
        };
        agent.arm_resync(now.boot);
        agent.settle(now);
        agent
    }

    /// Takes in one event.
    pub fn handle_event(&mut self, now: Now, event: Event) {
        match event {
            Event::Kube(event) => self.handle_kube(now, event),
            Event::Kernel(event) => self.handle_kernel(now, event),
            Event::Store(event) => self.handle_store(now, event),
            Event::Cni(event) => self.handle_cni(now, event),
        }
        self.settle(now);
    }

    /// Does what has come due.
    pub fn handle_timeout(&mut self, now: Now) {
        // Each timer fires once a call, also where what it does sets it to a time that is past.
        let mut due = Vec::new();
        while let Some(kind) = self.timers.pop_due(now.boot) {
            due.push(kind);
        }
        for kind in due {
            match kind {
                TimerKind::Resync => {
                    self.arm_resync(now.boot);
                    self.want_observation();
                }
                TimerKind::Retry(resource) => self.mark(resource),
                TimerKind::Deadline(request) => self.expire(now, request),
                TimerKind::Rest => self.resume(now, Stage::Address),
                TimerKind::Collect => self.review_abandoned(now),
                TimerKind::Blocks => self.look_at_blocks(now),
                TimerKind::Kept => self.review_kept(now),
                TimerKind::Greet(key) => self.mark(Resource::Peer(key)),
            }
        }
        self.settle(now);
    }

    /// The next thing to be done.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) next, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Boot, TimerKind)> {
        self.timers.first()
    }

    /// Whether ADD can succeed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.why_not_ready().is_none()
    }

    /// What ADD lacks to succeed; None when [`Self::is_ready`].
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        self.why_not_ready()
    }

    /// How many keys were compared with the kernel since the start: the measure of what an event costs.
    #[must_use]
    pub fn reconciled_keys(&self) -> u64 {
        self.reconciled
    }

    fn arm_resync(&mut self, now: Boot) {
        let after = self.jitter.spread(self.config.resync);
        self.timers.set(TimerKind::Resync, now + after);
    }

    pub(crate) fn want_observation(&mut self) {
        self.observe_wanted = true;
        self.mark(Resource::Kernel);
    }

    fn handle_kube(&mut self, now: Now, event: KubeEvent) {
        if !matches!(event, KubeEvent::Unreachable { .. } | KubeEvent::Failed { .. }) {
            self.api_away = None;
        }
        match event {
            KubeEvent::NodesReset => self.nodes.reset(),
            // The own Node is known whole from its own watch.
            KubeEvent::NodeApplied(meta) if meta.name == self.config.node => {}
            KubeEvent::NodeApplied(meta) => {
                let touched = self.nodes.apply(meta, &self.bounds);
                self.nodes_changed(now, touched);
            }
            KubeEvent::NodeDeleted(name) => {
                let touched = self.nodes.delete(&name);
                self.nodes_changed(now, touched);
            }
            KubeEvent::NodesSynced => {
                let touched = self.nodes.synced();
                self.nodes_changed(now, touched);
            }
            KubeEvent::OwnNode(node) => self.own_node(now, node),
            KubeEvent::OwnNodeDeleted => {
                self.own.deleted = true;
                self.mark(Resource::Annotations);
            }
            KubeEvent::PodsReset => self.pods.reset(),
            KubeEvent::PodApplied(pod) => {
                self.pods.apply(pod);
                self.resume(now, Stage::Pod);
            }
            KubeEvent::PodDeleted(pod) => self.pods.delete(&pod),
            KubeEvent::PodsSynced => self.pods.synced(),
            KubeEvent::BlocksReset => self.block_event(now, Change::Reset),
            KubeEvent::BlockApplied(block) => self.block_event(now, Change::Applied(block)),
            KubeEvent::BlockDeleted(cidr) => self.block_event(now, Change::Deleted(cidr)),
            KubeEvent::BlocksSynced => self.block_event(now, Change::Synced),
            KubeEvent::Unreachable { message } => self.api_away = Some(message),
            KubeEvent::Applied(id) => self.outcome(now, &id, Ok(())),
            KubeEvent::Failed { id, failure } => self.outcome(now, &id, Err(failure)),
        }
    }

    fn handle_kernel(&mut self, now: Now, event: KernelEvent) {
        match event {
            KernelEvent::Observed(state) => {
                if state.device != self.observed.device {
                    // What failed on the device as it was, may not on the one that is there now: a device's process
                    // that is started after an hour is set up at once, whatever the back-off has come to.
                    self.ops.succeeded(&Resource::Device);
                }
                self.observed.replace(*state);
                self.observed.greetings.expire(now.wall);
                self.ops.end_any(&Resource::Kernel);
                self.ops.succeeded(&Resource::Kernel);
                self.mark(Resource::Kernel);
                self.refresh_local(now);
                self.reserve_unexplained(now);
                self.review_abandoned(now);
                self.mark_all();
            }
            KernelEvent::Applied(id) => self.outcome(now, &id, Ok(())),
            KernelEvent::Failed { id, failure } => self.outcome(now, &id, Err(failure)),
        }
    }

    fn handle_store(&mut self, now: Now, event: StoreEvent) {
        match event {
            StoreEvent::Loaded { .. } if self.attachments.is_loaded() => {}
            StoreEvent::Loaded {
                leases,
                damaged,
                kept,
                damaged_kept,
            } => {
                self.ops.end_any(&Resource::Store);
                self.ops.succeeded(&Resource::Store);
                self.attachments.load(leases, damaged);
                self.load_kept(now, kept, damaged_kept);
                self.reserve_unexplained(now);
                self.review_abandoned(now);
                self.refresh_blocks(now);
                self.mark_all();
                self.resume(now, Stage::Store);
            }
            StoreEvent::Applied(id) => self.outcome(now, &id, Ok(())),
            StoreEvent::Failed { id, failure } => self.outcome(now, &id, Err(failure)),
        }
    }

    fn own_node(&mut self, now: Now, node: OwnNode) {
        if node.name != self.config.node {
            return;
        }
        if self.own.node.as_ref().is_some_and(|n| n.uid != node.uid) {
            self.publisher.forget();
        }
        if self.own.node.as_ref().is_none_or(|n| n.uid != node.uid) {
            self.blocks.set_owner(&as_owner(&node));
        }
        self.own
            .apply(node, &self.bounds, self.config.ipam.pool.is_some());
        self.refresh_blocks(now);
        self.refresh_local(now);
        self.note_published(now.boot);
        self.blocks_published(now);
        self.mark(Resource::Annotations);
    }

    fn nodes_changed(&mut self, now: Now, touched: crate::nodes::Touched) {
        if touched == crate::nodes::Touched::default() {
            return;
        }
        self.touched(touched);
        self.refresh_local(now);
    }
}
