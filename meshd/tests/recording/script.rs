//! An agent that is driven by a script, with drivers that do at once what they are asked, and recorded.

#![allow(unreachable_pub, dead_code)]

use meshd::record::{Options, Recorder};
use meshd_core::{
    Action, CniCall, CniEvent, Config, Endpoints, Event, Identity, KernelAction, KernelEvent, KernelOp,
    KubeEvent, NodeAgent, Outside, RequestId, StoreAction, StoreEvent,
};
use meshd_model::cni::{Add, Wants};
use meshd_model::kernel::{
    DeviceKind, DeviceState, KernelState, Mark, PeerState, PodLinkState, UnderlayAddress,
};
use meshd_model::{
    AnnotationProblem, AttachmentId, Boot, KeyHandle, NodeAnnotations, NodeMeta, Now, OwnNode, PodRef,
    PublicKey, Wall,
};
use std::collections::VecDeque;
use std::time::Duration;

/// An agent, its recorder, and drivers that do at once what they are asked.
pub struct Script {
    agent: NodeAgent,
    pub recorder: Recorder,
    now: Now,
    kernel: KernelState,
    events: VecDeque<Event>,
    requests: u64,
}

pub fn config(public_key: PublicKey) -> Config {
    Config {
        node: "node-0".into(),
        identity: Identity {
            handle: KeyHandle(1),
            public_key,
        },
        cluster_pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        node_mask_sizes: std::collections::BTreeMap::new(),
        node_cidrs: Vec::new(),
        device: "meshd0".into(),
        listen_port: 51820,
        endpoints: Endpoints::InternalIp,
        keepalive: None,
        mark: Mark {
            value: 0x1000_0000,
            mask: 0x1000_0000,
        },
        route_table: 1090,
        rule_priority: 1090,
        mtu: None,
        resync: Duration::from_secs(30),
        address_rest: Duration::from_secs(1),
        outside: Outside::default(),
        allow_unnamed_pods: false,
        ipam: meshd_core::Ipam::default(),
    }
}

pub fn start(options: Options, public_key: PublicKey) -> Script {
    let now = Now {
        boot: Boot(1_000_000_000),
        wall: Wall(1_700_000_000_000_000_000),
    };
    let config = config(public_key);
    let agent = NodeAgent::new(config.clone(), 7, now);
    let recorder = Recorder::start(options, config, &agent, now).unwrap();
    let mut script = Script {
        agent,
        recorder,
        now,
        kernel: KernelState {
            underlay: vec![UnderlayAddress {
                address: "192.0.2.100".parse().unwrap(),
                ifname: "eth0".into(),
                mtu: 1500,
                default_route: true,
                passing: false,
            }],
            ..KernelState::default()
        },
        events: VecDeque::new(),
        requests: 0,
    };
    script.settle();
    script
}

pub fn node(n: u8) -> NodeMeta {
    NodeMeta {
        name: format!("node-{n}").as_str().into(),
        uid: format!("uid-{n}").as_str().into(),
        created: i64::from(n),
        annotations: Ok(NodeAnnotations {
            public_key: PublicKey([n; 32]),
            listen_port: 51820,
            endpoints: vec![format!("192.0.2.{n}").parse().unwrap()],
            node_addresses: vec![format!("192.0.2.{n}").parse().unwrap()],
            mtu: 1420,
            pod_cidrs: vec![format!("10.244.{n}.0/24").parse().unwrap()],
            protocol_version: 1,
        }),
    }
}

pub fn own_node() -> OwnNode {
    OwnNode {
        name: "node-0".into(),
        uid: "uid-0".into(),
        created: 0,
        pod_cidrs: vec!["10.244.0.0/24".parse().unwrap()],
        internal_ips: vec!["192.0.2.100".parse().unwrap()],
        network_unavailable: false,
        published: Err(AnnotationProblem::Absent),
    }
}

fn pod(name: &str) -> PodRef {
    PodRef {
        namespace: "default".into(),
        name: name.into(),
        uid: format!("uid-{name}"),
    }
}

impl Script {
    pub fn tell(&mut self, event: Event) {
        self.events.push_back(event);
        for _ in 0..10_000 {
            let Some(event) = self.events.pop_front() else {
                return;
            };
            self.recorder.event(self.now, &event);
            self.agent.handle_event(self.now, event);
            self.settle();
        }
        panic!("the agent does not come to rest");
    }

    /// Records what the agent wants, and answers it.
    fn settle(&mut self) {
        while let Some(action) = self.agent.poll_action() {
            self.recorder.action(&action);
            let answer = self.answer(action);
            self.events.extend(answer);
        }
        self.recorder.settle(&self.agent);
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some((at, _)) = self.agent.poll_timeout().filter(|(at, _)| *at <= end.boot) {
            self.now = self.now + at.since(self.now.boot);
            self.recorder.timeout(self.now);
            self.agent.handle_timeout(self.now);
            self.settle();
            if let Some(event) = self.events.pop_front() {
                self.tell(event);
            }
        }
        self.now = self.now + end.boot.since(self.now.boot);
    }

    /// A node comes up, learns its peers and attaches a pod.
    pub fn life(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.tell(event);
        }
        self.tell(Event::Kube(KubeEvent::OwnNode(own_node())));
        self.tell(Event::Kube(KubeEvent::NodesReset));
        for n in 1..=5 {
            self.tell(Event::Kube(KubeEvent::NodeApplied(node(n))));
        }
        self.tell(Event::Kube(KubeEvent::NodesSynced));
        self.tell(Event::Kube(KubeEvent::PodsReset));
        self.tell(Event::Kube(KubeEvent::PodsSynced));
        assert!(
            self.agent.is_ready(),
            "{:#?}",
            self.agent.status(self.now).problems
        );
        self.wait(Duration::from_secs(60));
    }

    pub fn add_and_delete(&mut self, name: &str) {
        let id = AttachmentId {
            container_id: name.into(),
            ifname: "eth0".into(),
        };
        self.tell(Event::Kube(KubeEvent::PodApplied(pod(name).into())));
        for call in [
            CniCall::Add(Add {
                id: id.clone(),
                netns: format!("/run/netns/{name}"),
                pod: Some(pod(name)),
                wants: Wants::default(),
                token: 0,
                network: String::new(),
            }),
            CniCall::Del(id),
        ] {
            self.requests += 1;
            let deadline = self.now.boot + Duration::from_secs(10);
            let id = RequestId(self.requests);
            self.tell(Event::Cni(CniEvent::Request {
                id,
                deadline,
                call: Box::new(call),
            }));
        }
        self.tell(Event::Kube(KubeEvent::PodDeleted(pod(name))));
        self.wait(Duration::from_secs(2));
    }

    fn answer(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Kernel(KernelAction {
                op: KernelOp::Observe,
                ..
            }) => Some(Event::Kernel(KernelEvent::Observed(Box::new(
                self.kernel.clone(),
            )))),
            Action::Kernel(KernelAction { id, op }) => {
                carry_out(&mut self.kernel, op);
                Some(Event::Kernel(KernelEvent::Applied(id)))
            }
            Action::Kube(action) => Some(Event::Kube(KubeEvent::Applied(action.id().clone()))),
            Action::Store(StoreAction::Load { .. }) => Some(Event::Store(StoreEvent::Loaded {
                leases: Vec::new(),
                damaged: Vec::new(),
                kept: Vec::new(),
                damaged_kept: Vec::new(),
            })),
            Action::Store(
                StoreAction::Put { id, .. }
                | StoreAction::Remove { id, .. }
                | StoreAction::Keep { id, .. }
                | StoreAction::Unkeep { id, .. },
            ) => Some(Event::Store(StoreEvent::Applied(id))),
            Action::Cni(_) => None,
        }
    }
}

/// What a kernel would hold afterwards.
pub fn carry_out(kernel: &mut KernelState, op: KernelOp) {
    match op {
        KernelOp::Observe => {}
        KernelOp::SetFirewall(firewall) => kernel.firewall = Some(firewall),
        KernelOp::PassForward { .. } => {}
        KernelOp::SetDevice(device) => {
            kernel.device = Some(DeviceState {
                kind: DeviceKind::Userspace,
                public_key: Some(device.public_key),
                listen_port: device.listen_port,
                fwmark: device.fwmark,
                mtu: device.mtu,
                addresses: device.addresses,
                up: true,
                forwards: true,
                as_chosen: true,
            });
        }
        KernelOp::SetPeer(peer) => {
            let state = PeerState {
                endpoint: peer.endpoint,
                allowed_ips: peer.allowed_ips,
                keepalive: peer.keepalive,
                last_handshake: None,
                rx_bytes: 0,
                tx_bytes: 0,
            };
            kernel.peers.insert(peer.public_key, state);
        }
        KernelOp::RemovePeer(key) => drop(kernel.peers.remove(&key)),
        KernelOp::Greet { .. } => {}
        KernelOp::SetRoute(route) => drop(kernel.routes.insert(route)),
        KernelOp::RemoveRoute(route) => drop(kernel.routes.remove(&route)),
        KernelOp::SetRule(rule) => drop(kernel.rules.insert(rule)),
        KernelOp::RemoveRule(rule) => drop(kernel.rules.remove(&rule)),
        KernelOp::AttachPod(link) => {
            let state = PodLinkState {
                host_mac: link.host_mac,
                mtu: link.mtu,
                up: true,
                addresses: link.addresses.into_iter().collect(),
                guarded: true,
            };
            kernel.pod_links.insert(link.host_ifname, state);
        }
        KernelOp::DetachPod(link) => {
            if let Some(there) = kernel.pod_links.get_mut(&link.host_ifname) {
                there.addresses.clear();
                there.guarded = false;
            }
        }
        KernelOp::RemovePodLink(link) => drop(kernel.pod_links.remove(&link.host_ifname)),
    }
}
