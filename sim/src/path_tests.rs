//! The packet's way, on kernels filled by hand: what the agents rely on holds without them.

use crate::config::{self, Config};
use crate::kernel::ops::{Fault, FaultKind, OpKind};
use crate::node::private_key;
use crate::sim::{Sim, WIREGUARD_PORT};
use crate::traffic::{DISCARD, Place};
use ipnetwork::IpNetwork;
use meshd_core::KernelOp;
use meshd_model::attachment::MacAddr;
use meshd_model::kernel::{
    Device, Firewall, Mark, Outside, Peer, PodLink, Route, RouteTarget, Rule, TABLE_MAIN, UNREACHABLE_METRIC,
};
use meshd_model::{AttachmentId, KeyHandle};
use meshd_scenario::{Outcome, ProbeKind};
use std::net::IpAddr;
use std::time::Duration;

const TABLE: u32 = 5109;
const MARK: Mark = Mark {
    value: 0x1000_0000,
    mask: 0x1000_0000,
};

fn pod_nets(node: usize) -> Vec<IpNetwork> {
    let nets = [format!("10.128.{node}.0/24"), format!("fd00:10:244:{node}::/64")];
    nets.into_iter().map(|net| net.parse().unwrap()).collect()
}

fn nth(net: IpNetwork, n: usize) -> IpAddr {
    net.iter().nth(n).unwrap()
}

fn pod(node: usize) -> Place {
    Place::Pod(format!("/run/netns/p{node}"))
}

fn addresses(node: usize, n: usize) -> Vec<IpAddr> {
    pod_nets(node).into_iter().map(|net| nth(net, n)).collect()
}

/// The operations that an agent gives to a node that has one peer and one pod.
fn operations(sim: &Sim, node: usize, other: usize) -> Vec<KernelOp> {
    let key = |node: usize| private_key(sim.config.seed, node as u64).public_key();
    let overlay = addresses(node, 1);
    let own = |v4: bool| overlay.iter().copied().find(|a| a.is_ipv4() == v4).unwrap();
    let mut allowed = pod_nets(other);
    allowed.extend(sim.nodes[other].addresses.iter().map(|a| IpNetwork::from(*a)));
    let mut ops = vec![
        KernelOp::SetFirewall(Firewall {
            pod_cidrs: config::pod_cidrs().into(),
            device: "meshd0".into(),
            mark: MARK,
            outside: Outside {
                masquerade: true,
                refused: sim
                    .config
                    .refused_outside()
                    .into_iter()
                    .map(IpNetwork::from)
                    .collect(),
            },
        }),
        KernelOp::SetDevice(Device {
            name: "meshd0".into(),
            key: KeyHandle(1),
            public_key: key(node),
            listen_port: WIREGUARD_PORT,
            fwmark: MARK.value,
            mtu: 1420,
            addresses: overlay.iter().copied().collect(),
        }),
        KernelOp::SetPeer(Peer {
            public_key: key(other),
            endpoint: Some((sim.nodes[other].addresses[0], WIREGUARD_PORT).into()),
            allowed_ips: allowed.iter().copied().collect(),
            keepalive: None,
        }),
    ];
    for net in allowed {
        let src = own(net.is_ipv4());
        let target = RouteTarget::Device {
            name: "meshd0".into(),
            src,
            mtu: 1420,
        };
        let table = if pod_nets(other).contains(&net) {
            TABLE_MAIN
        } else {
            TABLE
        };
        ops.push(KernelOp::SetRoute(Route {
            dst: net,
            table,
            metric: 0,
            target,
        }));
    }
    for dst in config::pod_cidrs() {
        let route = Route {
            dst,
            table: TABLE_MAIN,
            metric: UNREACHABLE_METRIC,
            target: RouteTarget::Unreachable,
        };
        ops.push(KernelOp::SetRoute(route));
        ops.push(KernelOp::SetRule(Rule {
            from: dst,
            unless_mark: MARK,
            table: TABLE,
            priority: TABLE,
        }));
    }
    ops.push(KernelOp::AttachPod(PodLink {
        id: AttachmentId {
            container_id: format!("p{node}"),
            ifname: "eth0".into(),
        },
        netns: format!("/run/netns/p{node}"),
        host_ifname: format!("mshp{node}"),
        host_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mac: MacAddr([2, 0, 0, 0, 0, 2]),
        addresses: addresses(node, 2),
        host_addresses: overlay,
        mtu: 1420,
        secondary: false,
    }));
    ops
}

fn pair(faults: &[Fault]) -> Sim {
    let mut sim = Sim::unregistered(Config::new(2, 1));
    for (node, other) in [(0, 1), (1, 0)] {
        let kernel = &mut sim.nodes[node].kernel;
        kernel.keys.insert(KeyHandle(1), private_key(1, node as u64));
        kernel
            .namespaces
            .insert(format!("/run/netns/p{node}"), Default::default());
        kernel.faults.extend(faults);
        for op in operations(&sim, node, other) {
            let stamp = sim.stamp();
            assert_eq!(sim.nodes[node].kernel.apply(stamp, &op), Ok(None), "{op:?}");
        }
        sim.pump_tunnel(node);
    }
    sim
}

fn probe(sim: &mut Sim, node: usize, place: Place, to: IpAddr, kind: ProbeKind, length: usize) -> Outcome {
    let token = sim.send_probe(node, place, to, kind, length);
    sim.run_for(Duration::from_secs(1)).unwrap();
    sim.forget_probe(token)
}

#[track_caller]
fn answered(outcome: &Outcome) {
    assert!(matches!(outcome, Outcome::Answered(_)), "{outcome:?}");
}

#[test]
fn pods_and_nodes_reach_each_other_through_the_tunnel() {
    let mut sim = pair(&[]);
    for kind in [ProbeKind::Icmp, ProbeKind::Udp] {
        for to in addresses(1, 2) {
            answered(&probe(&mut sim, 0, pod(0), to, kind, 500));
            answered(&probe(&mut sim, 0, Place::Node, to, kind, 500));
        }
        for to in sim.nodes[1]
            .addresses
            .clone()
            .into_iter()
            .chain(sim.nodes[0].addresses.clone())
        {
            answered(&probe(&mut sim, 0, pod(0), to, kind, 500));
        }
        for to in addresses(0, 2) {
            answered(&probe(&mut sim, 0, Place::Node, to, kind, 500));
            answered(&probe(&mut sim, 1, pod(1), to, kind, 500));
        }
    }
    assert!(sim.capture.seen.wireguard > 30, "{:?}", sim.capture.seen);
    assert_eq!((sim.capture.seen.pod_addresses, sim.capture.seen.markers), (0, 0));
    assert!(sim.handshakes >= 1);
}

#[test]
fn a_pod_that_lies_about_its_address_sends_nothing() {
    let mut sim = pair(&[]);
    let other = addresses(1, 2)[0];
    let forged = crate::packet::udp((addresses(1, 3)[0], 1).into(), (other, 7).into(), b"forged").unwrap();
    let before = sim.capture.seen.packets;
    sim.send_from(0, &pod(0), forged).unwrap();
    sim.run_for(Duration::from_secs(1)).unwrap();
    assert_eq!(sim.capture.seen.packets, before);
}

#[test]
fn what_has_no_route_is_refused_and_what_is_too_long_too() {
    let mut sim = pair(&[]);
    for to in addresses(9, 2) {
        let refused = Outcome::Refused("no route to host".to_owned());
        assert_eq!(probe(&mut sim, 0, pod(0), to, ProbeKind::Icmp, 100), refused);
        assert_eq!(probe(&mut sim, 0, Place::Node, to, ProbeKind::Udp, 100), refused);
    }
    let too_long = Outcome::Refused("message too long".to_owned());
    assert_eq!(
        probe(&mut sim, 0, pod(0), addresses(1, 2)[0], ProbeKind::Udp, 1400),
        too_long
    );
}

#[test]
fn a_neighbour_reaches_a_pod_only_where_the_firewall_lies() {
    for (faults, wanted) in [
        (vec![], false),
        (
            vec![Fault {
                op: OpKind::SetFirewall,
                kind: FaultKind::Lie,
                times: 1,
            }],
            true,
        ),
    ] {
        let mut sim = pair(&faults);
        let token = sim.neighbour_sends(1, addresses(1, 2)[0], 7).unwrap();
        let _ = sim.run_for(Duration::from_secs(1));
        assert_eq!(sim.arrived(token), wanted);
    }
}

#[test]
fn plaintext_on_the_underlay_ends_the_run() {
    let lies = [OpKind::SetFirewall, OpKind::SetRoute].map(|op| Fault {
        op,
        kind: FaultKind::Lie,
        times: 100,
    });
    let mut sim = pair(&lies);
    let token = sim.send_probe(0, pod(0), addresses(1, 2)[0], ProbeKind::Udp, 100);
    let violation = sim.run_for(Duration::from_secs(1)).unwrap_err();
    assert_eq!(violation.node, Some("node-1".into()));
    assert!(
        violation
            .what
            .contains("a pod's address and its payload in the clear"),
        "{violation}"
    );
    sim.forget_probe(token);
}

#[test]
fn a_nat_in_front_of_a_node_hides_nothing() {
    let mut sim = pair(&[Fault {
        op: OpKind::SetFirewall,
        kind: FaultKind::Lie,
        times: 100,
    }]);
    sim.set_nat(0, Duration::from_secs(30), None);
    // Without its firewall the node does not translate what the pod sends. The NAT would, and this end may see a marker.
    let outside = sim.config.reached_outside()[0];
    sim.send_probe(0, pod(0), outside, ProbeKind::Udp, 100);
    let violation = sim.run_for(Duration::from_secs(1)).unwrap_err();
    assert_eq!(violation.node, Some("node-1".into()));
}

#[test]
fn the_firewall_holds_where_the_routes_lie() {
    let mut sim = pair(&[Fault {
        op: OpKind::SetRoute,
        kind: FaultKind::Lie,
        times: 100,
    }]);
    let outcome = probe(&mut sim, 0, pod(0), addresses(1, 2)[0], ProbeKind::Udp, 100);
    assert_eq!(outcome, Outcome::Silent);
}

#[test]
fn a_pod_reaches_the_world_outside_as_its_node_and_not_what_is_refused() {
    let mut sim = pair(&[]);
    for kind in [ProbeKind::Icmp, ProbeKind::Udp] {
        for to in sim.config.reached_outside() {
            answered(&probe(&mut sim, 0, pod(0), to, kind, 500));
        }
        for to in sim.config.refused_outside() {
            assert_eq!(probe(&mut sim, 0, pod(0), to, kind, 500), Outcome::Silent);
        }
    }
    let seen: Vec<IpAddr> = sim.capture.seen.outside.keys().copied().collect();
    assert_eq!(seen, sim.nodes[0].addresses);
    for to in sim.config.refused_outside() {
        answered(&probe(&mut sim, 0, Place::Node, to, ProbeKind::Udp, 500));
    }
    assert_eq!((sim.capture.seen.pod_addresses, sim.capture.seen.markers), (0, 0));
}

#[test]
fn an_error_from_outside_comes_home_to_the_pod() {
    let mut sim = pair(&[]);
    for (to, src) in sim.config.reached_outside().into_iter().zip(addresses(0, 2)) {
        let closed = crate::packet::udp((src, 1).into(), (to, 99).into(), b"closed").unwrap();
        sim.send_from(0, &pod(0), closed).unwrap();
        let before = sim.trace.records();
        sim.run_for(Duration::from_secs(1)).unwrap();
        // At the machine outside, on the wire back, and in the pod.
        assert_eq!(sim.trace.records() - before, 3);
    }
}

#[test]
fn a_node_is_no_way_to_the_world_outside_for_others() {
    let mut sim = pair(&[]);
    let to = sim.config.reached_outside()[0];
    let before = sim.capture.seen.packets;
    let src = sim.nodes[1].addresses[0];
    let bytes = crate::packet::udp((src, 1).into(), (to, 7).into(), b"transit").unwrap();
    sim.input(0, bytes, &crate::path::Source::Tunnel);
    sim.run_for(Duration::from_secs(1)).unwrap();
    assert_eq!(sim.capture.seen.packets, before);
}

#[test]
fn the_control_marker_is_seen_and_is_no_violation() {
    let mut sim = pair(&[]);
    let to = sim.nodes[0].addresses[0];
    sim.neighbour_sends(0, to, DISCARD);
    sim.run_for(Duration::from_secs(1)).unwrap();
    assert_eq!(sim.capture.seen.control_markers, 1);
}

#[test]
fn an_address_held_twice_ends_the_run() {
    let mut sim = pair(&[]);
    let mut ops = operations(&sim, 1, 0);
    let Some(KernelOp::AttachPod(link)) = ops.pop() else {
        panic!("the last operation attaches a pod")
    };
    sim.check_kernel(1, &KernelOp::AttachPod(link.clone()));
    assert_eq!(sim.violation(), None);
    let stolen = PodLink {
        addresses: addresses(0, 2),
        ..link
    };
    sim.check_kernel(1, &KernelOp::AttachPod(stolen));
    let violation = sim.violation().unwrap();
    assert!(
        violation
            .what
            .contains("is held by p1/eth0 here and by p0/eth0 on node-1"),
        "{violation}"
    );
}

#[test]
fn allowed_ips_that_overlap_end_the_run() {
    for (net, overlaps) in [
        ("10.128.0.128/25", false),
        ("10.128.1.128/25", true),
        ("10.128.0.0/16", true),
        ("0.0.0.0/0", true),
        ("10.128.2.0/24", false),
        ("fd00:10:244:1::7/128", true),
        ("fd00:10:244:2::/64", false),
    ] {
        let mut sim = pair(&[]);
        let peer = Peer {
            public_key: private_key(1, 9).public_key(),
            endpoint: Some("192.168.0.99:51820".parse().unwrap()),
            allowed_ips: [net.parse().unwrap()].into(),
            keepalive: None,
        };
        let op = KernelOp::SetPeer(peer);
        let stamp = sim.stamp();
        sim.nodes[0].kernel.apply(stamp, &op).unwrap();
        sim.check_kernel(0, &op);
        assert_eq!(sim.violation().is_some(), overlaps, "{net}");
    }
}
