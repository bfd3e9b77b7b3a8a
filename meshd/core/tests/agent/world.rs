//! One agent and the world around it. Each driver carries its actions out in order; a test may hold a driver back,
//! and let its outcomes come one by one.

use crate::kernel::{Kernel, failure};
use ipnetwork::IpNetwork;
use meshd_core::{
    Action, ActionId, CniAction, CniCall, CniEvent, Config, Endpoints, Event, Identity, Ipam, KernelAction,
    KernelEvent, KernelOp, KubeAction, KubeEvent, METADATA, NodeAgent, Outside, PodEvent, RequestId,
    StoreAction, StoreEvent,
};
use meshd_model::cni::{Add, Added, Check, CniError, Wants};
use meshd_model::kernel::{Firewall, Mark, UnderlayAddress};
use meshd_model::status::Problem;
use meshd_model::{
    AnnotationProblem, AttachmentId, Block, Kept, KeptKey, KeyHandle, Lease, NodeAnnotations, NodeMeta, Now,
    OwnNode, PodRef, PublicKey, Wall,
};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

pub(crate) const SEED: u64 = 7;

pub(crate) struct World {
    pub agent: NodeAgent,
    pub now: Now,
    pub kernel: Kernel,
    pub leases: BTreeMap<AttachmentId, Lease>,
    pub damaged: Vec<String>,
    /// Records of kept addresses.
    pub kept: BTreeMap<KeptKey, Kept>,
    /// Nothing is done about them.
    pub kept_held: bool,
    /// The store fails everything with this.
    pub store_failing: Option<i32>,
    pub own: Option<OwnNode>,
    /// The API server takes no writes.
    pub kube_down: bool,
    /// Objects of blocks at the API server.
    /// What was told of pods.
    pub events: Vec<PodEvent>,
    pub blocks: BTreeMap<IpNetwork, Block>,
    /// Objects of blocks that were made.
    pub blocks_made: u64,
    pub kernel_queue: VecDeque<KernelAction>,
    pub store_queue: VecDeque<StoreAction>,
    pub kube_queue: VecDeque<KubeAction>,
    pub replies: BTreeMap<RequestId, Result<Option<Added>, CniError>>,
    /// Every kernel and store action and publication, oldest first.
    pub done: Vec<String>,
    /// What the agent was told, and what it did.
    pub inputs: Vec<(Now, Option<Event>)>,
    pub outputs: Vec<Action>,
    config: Config,
    next_request: u64,
}

pub(crate) fn key(n: u8) -> PublicKey {
    PublicKey([n; 32])
}

pub(crate) fn config() -> Config {
    Config {
        node: "node-0".into(),
        identity: Identity {
            handle: KeyHandle(1),
            public_key: key(200),
        },
        cluster_pod_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/48".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
        node_mask_sizes: std::collections::BTreeMap::new(),
        node_cidrs: Vec::new(),
        device: "meshd0".into(),
        listen_port: 51820,
        endpoints: Endpoints::InternalIp,
        keepalive: None,
        mark: Mark {
            value: 0x0002_0000,
            mask: 0x0002_0000,
        },
        route_table: 5182,
        rule_priority: 500,
        mtu: None,
        resync: Duration::from_secs(30),
        address_rest: Duration::from_secs(30),
        outside: Outside::default(),
        allow_unnamed_pods: false,
        ipam: Ipam::default(),
    }
}

/// Node `n` as it publishes itself: 10.244.n.0/24, fd00:244:0:n::/64, 172.18.0.(n+2).
pub(crate) fn annotations(n: u8) -> NodeAnnotations {
    NodeAnnotations {
        public_key: key(n),
        listen_port: 51820,
        endpoints: vec![format!("172.18.0.{}", n + 2).parse().unwrap()],
        node_addresses: vec![format!("172.18.0.{}", n + 2).parse().unwrap()],
        mtu: 1440,
        pod_cidrs: vec![
            format!("10.244.{n}.0/24").parse().unwrap(),
            format!("fd00:244:0:{n:x}::/64").parse().unwrap(),
        ],
        protocol_version: 1,
    }
}

pub(crate) fn node(n: u8) -> NodeMeta {
    NodeMeta {
        name: format!("node-{n}").as_str().into(),
        uid: format!("uid-{n:03}").as_str().into(),
        created: 1000 + i64::from(n),
        annotations: Ok(annotations(n)),
    }
}

pub(crate) fn own_node() -> OwnNode {
    OwnNode {
        name: "node-0".into(),
        uid: "uid-000".into(),
        created: 1000,
        pod_cidrs: vec!["10.244.0.0/24".parse().unwrap(), "fd00:244::/64".parse().unwrap()],
        internal_ips: vec!["172.18.0.2".parse().unwrap()],
        network_unavailable: false,
        published: Err(AnnotationProblem::Absent),
    }
}

pub(crate) fn pod(name: &str) -> PodRef {
    PodRef {
        namespace: "default".into(),
        name: name.into(),
        uid: format!("uid-{name}"),
    }
}

pub(crate) fn attachment(container: &str) -> AttachmentId {
    AttachmentId {
        container_id: container.into(),
        ifname: "eth0".into(),
    }
}

pub(crate) fn add(name: &str) -> Add {
    Add {
        id: attachment(name),
        netns: format!("/run/netns/{name}"),
        pod: Some(pod(name)),
        wants: Wants::default(),
        token: 0,
        network: String::new(),
    }
}

impl World {
    /// A fresh node; nothing has happened yet but the first actions.
    pub(crate) fn new(config: Config) -> Self {
        let now = Now {
            wall: Wall(1_700_000_000_000_000_000),
            ..Now::default()
        } + Duration::from_secs(100);
        let mut kernel = Kernel {
            closed: Some(Firewall {
                pod_cidrs: config.cluster_pod_cidrs.iter().copied().collect(),
                device: config.device.clone(),
                mark: config.mark,
                outside: meshd_model::kernel::Outside {
                    masquerade: true,
                    refused: config
                        .service_cidrs
                        .iter()
                        .copied()
                        .chain(METADATA.map(Into::into))
                        .collect(),
                },
            }),
            ..Kernel::default()
        };
        kernel.state.underlay = vec![UnderlayAddress {
            address: "172.18.0.2".parse().unwrap(),
            ifname: "eth0".into(),
            mtu: 1500,
            default_route: true,
            passing: false,
        }];
        let mut world = Self {
            agent: NodeAgent::new(config.clone(), SEED, now),
            now,
            kernel,
            leases: BTreeMap::new(),
            damaged: Vec::new(),
            kept: BTreeMap::new(),
            kept_held: false,
            store_failing: None,
            own: Some(own_node()),
            kube_down: false,
            events: Vec::new(),
            blocks: BTreeMap::new(),
            blocks_made: 0,
            kernel_queue: VecDeque::new(),
            store_queue: VecDeque::new(),
            kube_queue: VecDeque::new(),
            replies: BTreeMap::new(),
            done: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            config,
            next_request: 0,
        };
        world.collect();
        world
    }

    /// A node of a cluster with `peers` others, in steady state.
    pub(crate) fn ready(peers: u8) -> Self {
        let mut world = Self::new(config());
        world.sync(peers);
        assert!(world.agent.is_ready(), "{:#?}", world.problems());
        world
    }

    /// The API server shows itself: own Node, others, no pods.
    pub(crate) fn sync(&mut self, peers: u8) {
        self.tell_own();
        self.kube(KubeEvent::NodesReset);
        for n in 1..=peers {
            self.kube(KubeEvent::NodeApplied(node(n)));
        }
        self.kube(KubeEvent::NodesSynced);
        self.kube(KubeEvent::PodsReset);
        self.kube(KubeEvent::PodsSynced);
        if self.config.ipam.pool.is_some() {
            self.list_blocks();
        }
        self.run();
    }

    /// kill -9 of the agent, and its start; the kernel and the store stay.
    pub(crate) fn restart(&mut self) {
        self.kernel_queue.clear();
        self.store_queue.clear();
        self.kube_queue.clear();
        self.agent = NodeAgent::new(self.config.clone(), SEED, self.now);
        self.inputs.clear();
        self.outputs.clear();
        self.collect();
    }

    pub(crate) fn tell(&mut self, event: Event) {
        self.inputs.push((self.now, Some(event.clone())));
        self.agent.handle_event(self.now, event);
        self.collect();
    }

    pub(crate) fn kube(&mut self, event: KubeEvent) {
        self.tell(Event::Kube(event));
    }

    pub(crate) fn tell_own(&mut self) {
        if let Some(own) = self.own.clone() {
            self.kube(KubeEvent::OwnNode(own));
        }
    }

    pub(crate) fn observe(&mut self) {
        let state = Box::new(self.kernel.state.clone());
        self.tell(Event::Kernel(KernelEvent::Observed(state)));
    }

    pub(crate) fn see_pod(&mut self, name: &str) {
        self.kube(KubeEvent::PodApplied(pod(name).into()));
        self.run();
    }

    fn collect(&mut self) {
        while let Some(action) = self.agent.poll_action() {
            self.outputs.push(action.clone());
            match action {
                Action::Kernel(action) => self.kernel_queue.push_back(action),
                Action::Store(action) => self.store_queue.push_back(action),
                Action::Kube(action) => self.kube_queue.push_back(action),
                Action::Cni(CniAction::Reply { id, result }) => {
                    let before = self.replies.insert(id, result);
                    assert!(before.is_none(), "{id:?} was answered twice");
                }
            }
        }
    }

    /// Carries everything out until nothing is left to do.
    pub(crate) fn run(&mut self) {
        for _ in 0..20_000 {
            if !(self.run_kernel() || self.run_store() || self.run_kube()) {
                return;
            }
        }
        panic!(
            "the agent does not come to rest: {:#?}",
            self.done.iter().rev().take(12).collect::<Vec<_>>()
        );
    }

    pub(crate) fn run_kernel(&mut self) -> bool {
        let Some(KernelAction { id, op }) = self.kernel_queue.pop_front() else {
            return false;
        };
        self.done.push(describe(&op));
        let outcome = match self.kernel.carry_out(&op) {
            Err(failure) => KernelEvent::Failed { id, failure },
            Ok(()) if op == KernelOp::Observe => KernelEvent::Observed(Box::new(self.kernel.state.clone())),
            Ok(()) => KernelEvent::Applied(id),
        };
        self.tell(Event::Kernel(outcome));
        true
    }

    pub(crate) fn run_store(&mut self) -> bool {
        let is_kept = |a: &StoreAction| matches!(a, StoreAction::Keep { .. } | StoreAction::Unkeep { .. });
        let held = self.kept_held;
        let next = self.store_queue.iter().position(|a| !(held && is_kept(a)));
        let Some(action) = next.and_then(|at| self.store_queue.remove(at)) else {
            return false;
        };
        let outcome = match (action, self.store_failing) {
            (StoreAction::Load { id }, Some(errno)) => StoreEvent::Failed {
                id,
                failure: failure(errno),
            },
            (StoreAction::Load { .. }, None) => StoreEvent::Loaded {
                leases: self.leases.values().cloned().collect(),
                damaged: self.damaged.clone(),
                kept: self.kept.values().cloned().collect(),
                damaged_kept: Vec::new(),
            },
            (
                StoreAction::Put { id, .. }
                | StoreAction::Remove { id, .. }
                | StoreAction::Keep { id, .. }
                | StoreAction::Unkeep { id, .. },
                Some(errno),
            ) => StoreEvent::Failed {
                id,
                failure: failure(errno),
            },
            (StoreAction::Keep { id, kept }, None) => {
                self.done.push(format!("keep {}", kept.key));
                self.kept.insert(kept.key.clone(), kept);
                StoreEvent::Applied(id)
            }
            (StoreAction::Unkeep { id, key }, None) => {
                self.done.push(format!("unkeep {key}"));
                self.kept.remove(&key);
                StoreEvent::Applied(id)
            }
            (StoreAction::Put { id, lease }, None) => {
                self.done.push(format!("put {} {:?}", lease.id, lease.phase));
                self.leases.insert(lease.id.clone(), lease);
                StoreEvent::Applied(id)
            }
            (StoreAction::Remove { id, attachment }, None) => {
                self.done.push(format!("forget {attachment}"));
                self.leases.remove(&attachment);
                StoreEvent::Applied(id)
            }
        };
        self.tell(Event::Store(outcome));
        true
    }

    pub(crate) fn run_kube(&mut self) -> bool {
        let Some(action) = self.kube_queue.pop_front() else {
            return false;
        };
        if let KubeAction::PodEvent { id, event, .. } = action {
            return self.run_event(id, event);
        }
        let (KubeAction::Publish { id, uid, .. } | KubeAction::ClearNetworkUnavailable { id, uid, .. }) =
            action.clone()
        else {
            self.run_block(action);
            return true;
        };
        let own = self.own.as_mut().filter(|own| own.uid == uid && !self.kube_down);
        let written = own.is_some();
        let what = match action {
            KubeAction::Publish { annotations, .. } => {
                own.into_iter()
                    .for_each(|own| own.published = Ok(annotations.clone()));
                "publish"
            }
            KubeAction::ClearNetworkUnavailable { .. } => {
                own.into_iter().for_each(|own| own.network_unavailable = false);
                "clear NetworkUnavailable"
            }
            KubeAction::Block { .. } | KubeAction::PodEvent { .. } => unreachable!("carried out above"),
        };
        self.done
            .push(format!("{what} {}", if written { "done" } else { "failed" }));
        let outcome: fn(ActionId) -> KubeEvent = if written {
            KubeEvent::Applied
        } else {
            |id| KubeEvent::Failed {
                id,
                failure: failure(111),
            }
        };
        self.kube(outcome(id));
        true
    }

    fn run_event(&mut self, id: ActionId, event: PodEvent) -> bool {
        if self.kube_down {
            let failure = failure(111);
            self.kube(KubeEvent::Failed { id, failure });
        } else {
            self.events.push(event);
            self.kube(KubeEvent::Applied(id));
        }
        true
    }

    /// Lets time pass, timers and all.
    pub(crate) fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..100_000 {
            match self.agent.poll_timeout() {
                Some((at, _)) if at <= end.boot => {
                    let passes = at.since(self.now.boot);
                    self.now = self.now + passes;
                    self.timeout();
                    self.run();
                }
                _ => {
                    self.now = self.now + end.boot.since(self.now.boot);
                    return;
                }
            }
        }
        panic!("the agent's timers do not come to rest");
    }

    pub(crate) fn timeout(&mut self) {
        self.inputs.push((self.now, None));
        self.agent.handle_timeout(self.now);
        self.collect();
    }

    /// Sends a request that the caller waits ten seconds for.
    pub(crate) fn ask(&mut self, call: CniCall) -> RequestId {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        let deadline = self.now.boot + Duration::from_secs(10);
        self.tell(Event::Cni(CniEvent::Request {
            id,
            deadline,
            call: Box::new(call),
        }));
        id
    }

    pub(crate) fn answer(&mut self, call: CniCall) -> Result<Option<Added>, CniError> {
        let id = self.ask(call);
        self.run();
        self.replies
            .get(&id)
            .cloned()
            .unwrap_or_else(|| panic!("{id:?} was not answered"))
    }

    /// ADD of a pod that the API server has shown.
    pub(crate) fn add(&mut self, name: &str) -> Result<Added, CniError> {
        self.kube(KubeEvent::PodApplied(pod(name).into()));
        self.answer(CniCall::Add(add(name))).map(Option::unwrap)
    }

    pub(crate) fn del(&mut self, name: &str) -> Result<(), CniError> {
        self.answer(CniCall::Del(attachment(name)))
            .map(|r| assert!(r.is_none()))
    }

    pub(crate) fn check(&mut self, name: &str, added: &Added) -> Result<(), CniError> {
        let addresses = added.ips.iter().map(|(a, _)| *a).collect();
        let check = Check {
            id: attachment(name),
            netns: format!("/run/netns/{name}"),
            addresses,
            mac: None,
            mtu: None,
            routes: Vec::new(),
            host: None,
        };
        self.answer(CniCall::Check(check)).map(|r| assert!(r.is_none()))
    }

    pub(crate) fn problems(&self) -> Vec<Problem> {
        self.agent.status(self.now).problems
    }

    /// Whether a problem line of this subject says this.
    pub(crate) fn complains(&self, subject: &str, of: &str) -> bool {
        self.problems()
            .iter()
            .any(|p| p.subject == subject && p.message.contains(of) && !p.remedy.is_empty())
    }

    /// What is done from here on.
    pub(crate) fn forget_done(&mut self) {
        self.done.clear();
        self.outputs.clear();
    }

    /// The kernel is as desired: observing it again leads to nothing.
    pub(crate) fn assert_quiescent(&mut self) {
        self.run();
        let before = self.outputs.len();
        self.observe();
        assert_eq!(self.outputs[before..], [], "replanning was not empty");
        self.kernel.assert_disjoint();
    }

    pub(crate) fn allowed(&self, n: u8) -> Vec<String> {
        let peer = self.kernel.state.peers.get(&key(n));
        peer.map(|p| p.allowed_ips.iter().map(ToString::to_string).collect())
            .unwrap_or_default()
    }

    /// The kernel's routes as an operator reads them.
    pub(crate) fn routes(&self) -> Vec<String> {
        self.kernel.state.routes.iter().map(route).collect()
    }
}

fn route(route: &meshd_model::kernel::Route) -> String {
    use meshd_model::kernel::RouteTarget;
    let table = if route.table == 254 {
        String::new()
    } else {
        format!(" table {}", route.table)
    };
    match &route.target {
        RouteTarget::Unreachable => format!("unreachable {} metric {}{table}", route.dst, route.metric),
        RouteTarget::Device { name, src, mtu } => {
            format!(
                "{} dev {name} src {src} metric {} mtu {mtu}{table}",
                route.dst, route.metric
            )
        }
    }
}

fn describe(op: &KernelOp) -> String {
    match op {
        KernelOp::Observe => "observe".into(),
        KernelOp::SetFirewall(_) => "firewall".into(),
        KernelOp::PassForward { device } => format!("pass forward {device}"),
        KernelOp::SetDevice(d) => format!("device {} mtu {}", d.name, d.mtu),
        KernelOp::SetPeer(p) => match p.endpoint {
            Some(endpoint) => format!("peer {} endpoint {endpoint}", p.public_key.0[0]),
            None => format!("peer {} where it is", p.public_key.0[0]),
        },
        KernelOp::Greet { peer, .. } => format!("greet {}", peer.0[0]),
        KernelOp::RemovePeer(k) => format!("remove peer {}", k.0[0]),
        KernelOp::SetRoute(r) => format!("route {}", route(r)),
        KernelOp::RemoveRoute(r) => format!("remove route {}", route(r)),
        KernelOp::SetRule(r) => format!("rule {}", r.from),
        KernelOp::RemoveRule(r) => format!("remove rule {}", r.from),
        KernelOp::AttachPod(l) => format!("attach {}", l.id),
        KernelOp::DetachPod(l) => format!("detach {}", l.id),
        KernelOp::RemovePodLink(l) => format!("remove link {}", l.id),
    }
}
