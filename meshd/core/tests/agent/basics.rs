//! A node comes up, takes pods, and gives them back.

use crate::world::{World, config, own_node};
use meshd_core::{CniCall, KubeEvent};
use meshd_model::LeasePhase;
use meshd_model::kernel::DeviceKind;

#[test]
fn a_node_comes_up_fail_closed_first() {
    let mut world = World::new(config());
    assert!(world.complains(
        "node/node-0",
        "no pod can be added yet: the leases are not loaded"
    ));
    world.sync(1);
    assert_eq!(
        world.done,
        [
            "observe",
            "firewall",
            "route unreachable 10.244.0.0/16 metric 4294967294",
            "route unreachable fd00:244::/48 metric 4294967294",
            "route unreachable 172.18.0.3/32 metric 4294967294 table 5182",
            "device meshd0 mtu 1440",
            "rule 10.244.0.0/24",
            "rule fd00:244::/64",
            "peer 1 endpoint 172.18.0.3:51820",
            "observe",
            "route 10.244.1.0/24 dev meshd0 src 10.244.0.1 metric 50 mtu 1440",
            "route fd00:244:0:1::/64 dev meshd0 src fd00:244::1 metric 50 mtu 1440",
            "route 172.18.0.3/32 dev meshd0 src 10.244.0.1 metric 50 mtu 1440 table 5182",
            "publish done",
        ]
    );
    assert_eq!(
        world.allowed(1),
        ["10.244.1.0/24", "172.18.0.3/32", "fd00:244:0:1::/64"]
    );
    let published = world.own.as_ref().unwrap().published.as_ref().unwrap();
    assert_eq!(published.pod_cidrs, own_node().pod_cidrs);
    assert_eq!(published.mtu, 1440);
    let status = world.agent.status(world.now);
    assert!(status.ready && status.device == Some(DeviceKind::Userspace));
    assert_eq!(status.peers.len(), 1);
    assert_eq!(world.problems(), []);
    world.assert_quiescent();
}

#[test]
fn a_pod_comes_and_goes() {
    let mut world = World::ready(1);
    world.forget_done();
    let added = world.add("web").unwrap();
    assert_eq!(
        world.done,
        ["put web/eth0 Adding", "attach web/eth0", "put web/eth0 Ready"]
    );
    let shown: Vec<_> = added.ips.iter().map(|(a, g)| format!("{a} via {g}")).collect();
    assert_eq!(
        shown,
        ["10.244.0.2/32 via 169.254.1.1", "fd00:244::2/128 via fe80::1"]
    );
    assert_eq!(added.mtu, 1440);
    assert_eq!(world.check("web", &added), Ok(()));
    assert_eq!(world.leases.values().next().unwrap().phase, LeasePhase::Ready);
    world.assert_quiescent();

    world.forget_done();
    assert_eq!(world.del("web"), Ok(()));
    assert_eq!(
        world.done,
        [
            "put web/eth0 Deleting",
            "detach web/eth0",
            "remove link web/eth0",
            "forget web/eth0"
        ]
    );
    assert!(world.leases.is_empty() && world.kernel.state.pod_links.is_empty());
    assert_eq!(world.del("web"), Ok(()), "DEL is idempotent");
    world.assert_quiescent();
}

#[test]
fn an_add_that_waits_for_its_pod_goes_on_when_it_is_seen() {
    let mut world = World::ready(0);
    let request = world.ask(CniCall::Add(crate::world::add("late")));
    world.run();
    assert!(!world.replies.contains_key(&request));
    world.kube(KubeEvent::PodApplied(crate::world::pod("late").into()));
    world.run();
    assert!(world.replies[&request].is_ok());
}
