//! Whatever happens, in whatever order: nothing panics, allowed IPs stay disjoint, no address is held twice, a
//! snapshot goes on as the agent would have, and in the end everything settles.

use crate::world::{World, add, annotations, attachment, key, node, own_node};
use meshd_core::{CniCall, CniEvent, Event, KubeEvent, NodeAgent, RequestId};
use meshd_model::cni::Check;
use meshd_model::{AnnotationProblem, NodeMeta, OwnNode};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::time::Duration;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// A node says something, true or not.
    Node {
        n: u8,
        incarnation: u8,
        key: u8,
        claims: u8,
        endpoint: u8,
    },
    NodeBroken(u8),
    NodeDeleted(u8),
    Relist(Vec<u8>),
    Own {
        kind: u8,
    },
    PodSeen(u8),
    PodGone(u8),
    Away,
    Add(u8),
    Del(u8),
    Check(u8),
    Gone(u64),
    /// Drivers carry out one action each.
    Kernel,
    Store,
    Kube,
    RunAll,
    Wait(u16),
    /// The kernel is changed by another hand, then observed.
    Interfere(u8),
    /// Drivers begin to fail, or stop failing.
    KernelFails(Option<u8>),
    StoreFails(bool),
    KubeFails(bool),
    NetnsGone(u8),
    /// kill -9 and a new start; what was asked of the drivers was done, or not.
    Restart {
        done: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let n = 1u8..6;
    let p = 0u8..5;
    prop_oneof![
        4 => (n.clone(), 0u8..2, 0u8..8, 0u8..10, 0u8..4).prop_map(|(n, incarnation, key, claims, endpoint)| {
            Step::Node { n, incarnation, key, claims, endpoint }
        }),
        1 => n.clone().prop_map(Step::NodeBroken),
        1 => n.clone().prop_map(Step::NodeDeleted),
        1 => prop::collection::vec(n, 0..4).prop_map(Step::Relist),
        1 => (0u8..5).prop_map(|kind| Step::Own { kind }),
        3 => p.clone().prop_map(Step::PodSeen),
        1 => p.clone().prop_map(Step::PodGone),
        1 => Just(Step::Away),
        6 => p.clone().prop_map(Step::Add),
        4 => p.clone().prop_map(Step::Del),
        1 => p.clone().prop_map(Step::Check),
        1 => (0u64..30).prop_map(Step::Gone),
        8 => Just(Step::Kernel),
        8 => Just(Step::Store),
        2 => Just(Step::Kube),
        3 => Just(Step::RunAll),
        3 => (0u16..60_000).prop_map(Step::Wait),
        2 => (0u8..8).prop_map(Step::Interfere),
        1 => prop::option::of(0u8..7).prop_map(Step::KernelFails),
        1 => any::<bool>().prop_map(Step::StoreFails),
        1 => any::<bool>().prop_map(Step::KubeFails),
        1 => p.prop_map(Step::NetnsGone),
        1 => any::<bool>().prop_map(|done| Step::Restart { done }),
    ]
}

fn liar(n: u8, incarnation: u8, key_of: u8, claims: u8, endpoint: u8) -> NodeMeta {
    let mut published = annotations(n);
    let claimed = [
        "10.244.0.0/24",
        "10.244.1.0/24",
        "10.244.2.128/25",
        "10.244.2.0/23",
        "0.0.0.0/0",
        "fd00:244:0:3::/64",
    ];
    if let Some(prefix) = claimed.get(usize::from(claims)) {
        published.pod_cidrs.push(prefix.parse().unwrap());
    }
    if claims == 6 {
        published.pod_cidrs.clear();
        published.node_addresses.clear();
    }
    if claims == 7 {
        published.node_addresses.push("172.18.0.2".parse().unwrap());
        published.node_addresses.push("172.18.0.4".parse().unwrap());
    }
    published.public_key = match key_of {
        0 => key(200),
        1..=5 => key(key_of),
        _ => key(n + 50 * incarnation),
    };
    match endpoint {
        1 => published.endpoints.push("fc00::9".parse().unwrap()),
        2 => published.endpoints = vec!["fc00::9".parse().unwrap()],
        3 => published.listen_port = 4000,
        _ => {}
    }
    let uid = format!("uid-{n}-{incarnation}");
    NodeMeta {
        uid: uid.as_str().into(),
        created: 1000 + i64::from(incarnation) * 10 - i64::from(n) * i64::from(claims % 2),
        annotations: Ok(published),
        ..node(n)
    }
}

fn own(kind: u8) -> OwnNode {
    let own = own_node();
    match kind {
        0 => OwnNode {
            pod_cidrs: Vec::new(),
            ..own
        },
        1 => OwnNode {
            uid: "uid-again".into(),
            created: 3000,
            ..own
        },
        2 => OwnNode {
            pod_cidrs: vec!["10.244.66.0/24".parse().unwrap()],
            ..own
        },
        3 => OwnNode {
            internal_ips: Vec::new(),
            ..own
        },
        _ => own,
    }
}

const FAILING: [&str; 8] = [
    "SetFirewall",
    "SetDevice",
    "SetPeer",
    "RemovePeer",
    "SetRoute",
    "AttachPod",
    "DetachPod",
    "RemovePodLink",
];

impl World {
    fn take(&mut self, step: Step) {
        match step {
            Step::Node {
                n,
                incarnation,
                key,
                claims,
                endpoint,
            } => {
                self.kube(KubeEvent::NodeApplied(liar(
                    n,
                    incarnation,
                    key,
                    claims,
                    endpoint,
                )));
            }
            Step::NodeBroken(n) => {
                let broken = NodeMeta {
                    annotations: Err(AnnotationProblem::Absent),
                    ..node(n)
                };
                self.kube(KubeEvent::NodeApplied(broken));
            }
            Step::NodeDeleted(n) => self.kube(KubeEvent::NodeDeleted(node(n).name)),
            Step::Relist(nodes) => {
                self.kube(KubeEvent::NodesReset);
                for n in nodes {
                    self.kube(KubeEvent::NodeApplied(node(n)));
                }
                self.kube(KubeEvent::NodesSynced);
                self.kube(KubeEvent::PodsReset);
                self.kube(KubeEvent::PodsSynced);
            }
            Step::Own { kind: 4 } => self.kube(KubeEvent::OwnNodeDeleted),
            Step::Own { kind } => {
                self.own = Some(own(kind));
                self.tell_own();
            }
            Step::PodSeen(p) => self.kube(KubeEvent::PodApplied(crate::world::pod(&name(p)).into())),
            Step::PodGone(p) => self.kube(KubeEvent::PodDeleted(crate::world::pod(&name(p)))),
            Step::Away => self.kube(KubeEvent::Unreachable {
                message: "away".into(),
            }),
            Step::Add(p) => drop(self.ask(CniCall::Add(add(&name(p))))),
            Step::Del(p) => drop(self.ask(CniCall::Del(attachment(&name(p))))),
            Step::Check(p) => {
                let check = Check {
                    id: attachment(&name(p)),
                    netns: String::new(),
                    addresses: Vec::new(),
                    mac: None,
                    mtu: None,
                    routes: Vec::new(),
                    host: None,
                };
                self.ask(CniCall::Check(check));
            }
            Step::Gone(n) => self.tell(Event::Cni(CniEvent::Gone(RequestId(n)))),
            Step::Kernel => drop(self.run_kernel()),
            Step::Store => drop(self.run_store()),
            Step::Kube => drop(self.run_kube()),
            Step::RunAll => self.run(),
            Step::Wait(ms) => self.wait(Duration::from_millis(ms.into())),
            Step::Interfere(kind) => self.interfere(kind),
            Step::KernelFails(what) => {
                self.kernel.failing = what.map(|i| (FAILING[usize::from(i)].to_owned(), 16));
            }
            Step::StoreFails(fails) => self.store_failing = fails.then_some(28),
            Step::KubeFails(fails) => self.kube_down = fails,
            Step::NetnsGone(p) => drop(self.kernel.gone.insert(format!("/run/netns/{}", name(p)))),
            Step::Restart { done } => {
                while done && (self.run_kernel() || self.run_store()) {}
                self.restart();
            }
        }
    }

    fn interfere(&mut self, kind: u8) {
        // What was asked before must not meet a kernel that it was not asked of.
        while self.run_kernel() {}
        let state = &mut self.kernel.state;
        match kind {
            0 => state.firewall = None,
            1 => {
                state.device = None;
                state.peers.clear();
                state.routes.retain(|r| r.metric != 50);
            }
            2 => drop(state.routes.pop_first()),
            3 => drop(state.routes.pop_last()),
            4 => drop(state.rules.pop_first()),
            5 => drop(state.pod_links.pop_first()),
            6 => state.peers.values_mut().for_each(|p| p.allowed_ips.clear()),
            _ => state.underlay[0].mtu = if state.underlay[0].mtu == 1500 { 1400 } else { 1500 },
        }
        self.observe();
    }

    fn assert_invariants(&self) {
        self.kernel.assert_disjoint();
        let mut held = BTreeSet::new();
        for address in self.leases.values().flat_map(|l| &l.addresses) {
            assert!(held.insert(*address), "{address} is in two leases");
        }
    }

    /// Everything is well again and is given time.
    fn heal(&mut self) {
        self.kernel.failing = None;
        self.store_failing = None;
        self.kube_down = false;
        self.own = Some(own_node());
        self.sync(3);
        for name in (0..5).map(name) {
            self.kube(KubeEvent::PodDeleted(crate::world::pod(&name)));
        }
        self.wait(Duration::from_secs(400));
    }
}

fn name(p: u8) -> String {
    format!("p{p}")
}

fn snapshot(agent: &NodeAgent) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(agent, &mut bytes).unwrap();
    bytes
}

/// A few on every run; PROPTEST_CASES asks for more.
fn few_cases() -> ProptestConfig {
    const UNASKED: u32 = 256;
    let config = ProptestConfig::default();
    let cases = if config.cases == UNASKED { 48 } else { config.cases };
    ProptestConfig { cases, ..config }
}

proptest! {
    #![proptest_config(few_cases())]

    #[test]
    fn safety_first_then_everything_heals(steps in prop::collection::vec(step(), 0..80), synced in any::<bool>()) {
        let mut world = if synced { World::ready(3) } else { World::new(crate::world::config()) };
        for step in steps {
            world.take(step);
            world.assert_invariants();
        }
        world.heal();
        world.assert_invariants();
        world.assert_quiescent();
        prop_assert!(world.agent.is_ready(), "{:#?}", world.problems());
        prop_assert_eq!(world.kernel.state.peers.len(), 3);
        let expected = annotations(1).pod_cidrs.len() * 3 + 2 * 3 + 2;
        prop_assert_eq!(world.kernel.state.routes.len(), expected);
        for p in 0..5 {
            prop_assert_eq!(world.del(&name(p)), Ok(()));
        }
        prop_assert!(world.leases.is_empty() && world.kernel.state.pod_links.is_empty());
        prop_assert_eq!(world.problems(), []);
    }

    #[test]
    fn a_snapshot_goes_on_as_the_agent_did(
        before in prop::collection::vec(step(), 0..40),
        after in prop::collection::vec(step(), 0..40),
    ) {
        let mut world = World::ready(2);
        for step in before {
            world.take(step);
        }
        let bytes = snapshot(&world.agent);
        world.inputs.clear();
        world.outputs.clear();
        for step in after.into_iter().filter(|s| !matches!(s, Step::Restart { .. })) {
            world.take(step);
        }
        let mut replayed: NodeAgent = ciborium::from_reader(bytes.as_slice()).unwrap();
        let mut outputs = Vec::new();
        for (now, input) in std::mem::take(&mut world.inputs) {
            match input {
                Some(event) => replayed.handle_event(now, event),
                None => replayed.handle_timeout(now),
            }
            outputs.extend(std::iter::from_fn(|| replayed.poll_action()));
        }
        prop_assert_eq!(outputs, world.outputs);
        prop_assert_eq!(snapshot(&replayed), snapshot(&world.agent));
    }
}
