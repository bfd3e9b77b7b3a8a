//! A restart of the daemon changes no packet's fate.

use crate::world::{World, add, key, node};
use meshd_core::{CniCall, KernelAction, KernelOp, KubeEvent};
use meshd_model::LeasePhase;
use meshd_model::cni::{Gc, code};
use meshd_model::kernel::DeviceState;
use std::time::Duration;

const GRACE: Duration = Duration::from_secs(60);

#[test]
fn a_restart_finds_everything_as_it_left_it() {
    let mut world = World::ready(3);
    let added = world.add("web").unwrap();
    world.run();
    let before = world.kernel.state.clone();
    world.forget_done();
    world.restart();
    world.sync(3);
    assert_eq!(world.done, ["observe"]);
    assert_eq!(world.kernel.state, before);
    assert_eq!(world.check("web", &added), Ok(()));
    assert!(world.agent.is_ready());
    let second = world.add("second").unwrap();
    assert_ne!(second.ips, added.ips);
}

#[test]
fn a_device_that_comes_back_after_long_is_set_up_at_once() {
    let mut world = World::ready(2);
    let there = world.kernel.state.device.clone().unwrap();
    // Its process was killed: the interface is there, and nobody answers for it.
    let deaf = DeviceState {
        public_key: None,
        listen_port: 0,
        fwmark: 0,
        ..there.clone()
    };
    world.kernel.state.device = Some(deaf.clone());
    world.kernel.state.peers.clear();
    world.kernel.failing = Some(("SetDevice".into(), 111));
    world.observe();
    world.run();
    world.wait(Duration::from_secs(600));
    assert!(!world.agent.is_ready());

    world.kernel.failing = None;
    world.kernel.state.device = Some(DeviceState {
        listen_port: 40_000,
        ..deaf
    });
    world.observe();
    world.run();
    assert_eq!(world.kernel.state.device, Some(there));
    assert_eq!(world.kernel.state.peers.len(), 2);
    assert!(world.agent.is_ready());
}

#[test]
fn a_node_that_is_made_to_forward_nothing_is_mended() {
    let mut world = World::ready(1);
    world.kernel.state.device.as_mut().unwrap().forwards = false;
    world.forget_done();
    world.observe();
    world.run();
    assert!(
        world.done.iter().any(|d| d.contains("device")),
        "{:?}",
        world.done
    );
    assert!(world.kernel.state.device.as_ref().unwrap().forwards);
    world.assert_quiescent();
}

#[test]
fn a_restart_without_the_api_server_tears_nothing_down() {
    let mut world = World::ready(3);
    world.add("web").unwrap();
    world.add("old").unwrap();
    let before = world.kernel.state.clone();
    world.forget_done();
    world.restart();
    world.kube(KubeEvent::Unreachable {
        message: "connection refused".into(),
    });
    world.run();
    world.wait(Duration::from_secs(300));
    assert!(world.done.iter().all(|d| d == "observe"), "{:?}", world.done);
    assert_eq!(world.kernel.state, before);
    assert!(!world.agent.is_ready());
    assert!(world.complains("api-server", "connection refused"));
    assert_eq!(world.del("old"), Ok(()), "DEL needs no API server");
    assert_eq!(world.kernel.state.pod_links.len(), 1);

    // Node 3 is gone when the API server is back.
    world.sync(2);
    world.assert_quiescent();
    assert!(world.agent.is_ready());
    assert!(!world.kernel.state.peers.contains_key(&key(3)));
    assert!(!world.routes().iter().any(|r| r.contains("10.244.3.0/24")));
    assert!(world.routes().iter().any(|r| r.contains("10.244.2.0/24")));
}

#[test]
fn what_is_stale_goes_after_the_first_sync_and_not_before() {
    let mut world = World::ready(2);
    world.add("orphan").unwrap();
    world.leases.clear();
    world.restart();
    world.run();
    world.tell_own();
    world.kube(KubeEvent::NodesReset);
    world.kube(KubeEvent::NodeApplied(node(1)));
    world.run();
    assert!(world.kernel.state.peers.contains_key(&key(2)) && world.kernel.state.pod_links.len() == 1);
    world.kube(KubeEvent::NodesSynced);
    world.assert_quiescent();
    assert!(!world.kernel.state.peers.contains_key(&key(2)));
}

/// The state folder was lost, and the pods run on.
#[test]
fn links_without_a_lease_have_a_grace_and_a_store_that_comes_back_explains_them() {
    for (up, grace) in [(true, GRACE * 10), (false, GRACE)] {
        let mut world = World::ready(0);
        let added = world.add("web").unwrap();
        world.leases.clear();
        world.kernel.state.pod_links.values_mut().for_each(|l| l.up = up);
        world.restart();
        world.sync(0);
        let link = format!("link/{}", crate::world::attachment("web").host_ifname());
        assert!(
            world.complains(&link, "no lease explains"),
            "{:?}",
            world.problems()
        );
        world.wait(grace - Duration::from_secs(1));
        assert_eq!(
            world.kernel.state.pod_links.len(),
            1,
            "it may be of a running pod"
        );
        assert_ne!(world.add("other").unwrap().ips, added.ips);
        world.wait(Duration::from_secs(2));
        assert_eq!(world.kernel.state.pod_links.len(), 1, "the other's");
        assert_eq!(world.problems(), []);
        world.assert_quiescent();
    }
    let mut world = World::ready(0);
    let added = world.add("web").unwrap();
    let leases = std::mem::take(&mut world.leases);
    world.restart();
    world.sync(0);
    world.leases = leases;
    world.restart();
    world.sync(0);
    world.see_pod("web");
    world.wait(GRACE * 20);
    assert_eq!(world.check("web", &added), Ok(()));
}

/// A link's deletion runs in the background, and hits whatever has its name by then.
#[test]
fn an_add_waits_for_the_deletion_of_an_orphan_of_its_name() {
    for by_gc in [false, true] {
        let mut world = World::ready(0);
        world.add("web").unwrap();
        world.leases.clear();
        world.restart();
        world.sync(0);
        world.see_pod("web");
        if by_gc {
            let (network, valid) = (String::new(), Vec::new());
            world.ask(CniCall::Gc(Gc { network, valid }));
        } else {
            world.now = world.now + GRACE * 10;
            world.timeout();
        }
        let deletion = |a: &KernelAction| matches!(a.op, KernelOp::RemovePodLink(_) | KernelOp::DetachPod(_));
        assert!(
            world.kernel_queue.iter().any(deletion),
            "{:?}",
            world.kernel_queue
        );
        let request = world.ask(CniCall::Add(add("web")));
        assert!(!world.replies.contains_key(&request), "{:?}", world.replies);
        assert!(world.leases.is_empty() && world.store_queue.is_empty());
        world.run();
        assert!(world.replies[&request].is_ok(), "{:?}", world.replies[&request]);
        assert_eq!(world.kernel.state.pod_links.len(), 1);
        world.assert_quiescent();
    }
}

#[test]
fn an_address_of_an_unexplained_interface_is_not_handed_out() {
    let mut world = World::ready(0);
    let orphan = world.add("orphan").unwrap();
    world.leases.clear();
    world.damaged = vec!["lease orphan: not JSON; kept as orphan.damaged".into()];
    world.restart();
    world.sync(0);
    assert!(world.complains("store", "orphan.damaged"));
    assert_eq!(world.kernel.state.pod_links.len(), 1, "its pod may be running");
    let added = world.add("web").unwrap();
    assert_ne!(added.ips, orphan.ips);
    // DEL finds the interface by its name.
    assert_eq!(world.del("orphan"), Ok(()));
    assert_eq!(world.kernel.state.pod_links.len(), 1);
    world.assert_quiescent();
}

#[test]
fn a_half_done_add_is_finished_by_its_retry_or_undone_by_del() {
    for finish in [true, false] {
        let mut world = World::ready(0);
        let first = world.add("web").unwrap();
        world
            .leases
            .values_mut()
            .for_each(|l| l.phase = LeasePhase::Adding);
        world.restart();
        world.sync(0);
        assert!(world.complains("attachment/web/eth0", "cut off"));
        let other = world.add("other").unwrap();
        assert_ne!(other.ips, first.ips, "its addresses are reserved");
        if finish {
            assert_eq!(world.add("web").unwrap(), first);
            assert_eq!(world.check("web", &first), Ok(()));
        } else {
            assert_eq!(world.del("web"), Ok(()));
            assert!(!world.leases.contains_key(&crate::world::attachment("web")));
        }
        world.assert_quiescent();
    }
}

/// Its caller heard nothing from the daemon that made it, and asks the next one.
#[test]
fn a_repeated_add_is_answered_once_the_node_is_known_again() {
    let mut world = World::ready(0);
    let mut web = add("web");
    web.token = 7;
    world.see_pod("web");
    let added = world.answer(CniCall::Add(web.clone()));
    world.restart();
    let early = world.ask(CniCall::Add(web.clone()));
    assert_eq!(world.replies[&early].as_ref().unwrap_err().code, code::TRY_AGAIN);
    world.run();
    let early = world.answer(CniCall::Add(web.clone())).unwrap_err();
    assert_eq!(early.code, code::TRY_AGAIN, "the MTU is not known: {early}");
    world.sync(0);
    world.see_pod("web");
    assert_eq!(world.answer(CniCall::Add(web)), added);
    world.assert_quiescent();
}

/// The runtime may ask for something else than the caller did whose daemon died.
#[test]
fn a_half_done_add_is_finished_as_its_retry_asks() {
    let mut world = World::ready(0);
    world.add("web").unwrap();
    let halve = |lease: &mut meshd_model::Lease| lease.phase = LeasePhase::Adding;
    world.leases.values_mut().for_each(halve);
    world.restart();
    world.sync(0);
    world.see_pod("web");
    let mut again = add("web");
    again.wants.secondary = true;
    again.network = "other".into();
    again.token = 9;
    let added = world.answer(CniCall::Add(again)).unwrap().unwrap();
    assert!(added.secondary);
    let lease = world.leases.values().next().unwrap();
    assert_eq!(
        (lease.secondary, lease.network.as_str(), lease.token),
        (true, "other", 9)
    );
}

#[test]
fn a_deletion_that_was_cut_off_goes_on() {
    let mut world = World::ready(0);
    world.add("web").unwrap();
    world
        .leases
        .values_mut()
        .for_each(|l| l.phase = LeasePhase::Deleting);
    world.restart();
    world.run();
    assert!(world.leases.is_empty() && world.kernel.state.pod_links.is_empty());
}

#[test]
fn a_link_that_is_gone_is_made_again_unless_its_namespace_is_gone_too() {
    for gone in [false, true] {
        let mut world = World::ready(0);
        world.add("web").unwrap();
        world.kernel.state.pod_links.clear();
        if gone {
            world.kernel.gone.insert("/run/netns/web".into());
        }
        world.forget_done();
        world.observe();
        world.run();
        assert_eq!(world.done, ["attach web/eth0"]);
        assert_eq!(world.kernel.state.pod_links.len(), usize::from(!gone));
        assert_eq!(
            world.complains("attachment/web/eth0", "namespace /run/netns/web is gone"),
            gone
        );
        world.assert_quiescent();
        assert_eq!(world.del("web"), Ok(()));
        assert_eq!(world.problems(), []);
    }
}

#[test]
fn two_leases_of_one_address_are_reported_and_neither_is_lost() {
    let mut world = World::ready(0);
    world.add("web").unwrap();
    let mut twin = world.leases.values().next().unwrap().clone();
    twin.id = crate::world::attachment("zwin");
    twin.host_ifname = "mshpzzzzzzzzzzz".into();
    world.kernel.state.pod_links.clear();
    world.kernel.gone.insert("/run/netns/zwin".into());
    twin.netns = "/run/netns/zwin".into();
    world.leases.insert(twin.id.clone(), twin);
    world.restart();
    world.sync(0);
    assert!(world.complains("attachment/zwin/eth0", "belongs to another attachment"));
    assert_eq!(world.del("zwin"), Ok(()));
    let next = world.add("next").unwrap();
    assert_ne!(
        next.ips[0].0.to_string(),
        "10.244.0.2/32",
        "the first holder keeps it"
    );
}

#[test]
fn leases_that_contradict_each_other_harm_nobody() {
    let mut world = World::ready(0);
    world.add("web").unwrap();
    let lease = world.leases.values().next().unwrap().clone();
    let mut same_link = lease.clone();
    same_link.id = crate::world::attachment("zwin");
    same_link.addresses = vec!["10.244.0.3".parse().unwrap()];
    let mut nobodys = lease;
    nobodys.id.container_id.clear();
    world.leases.insert(same_link.id.clone(), same_link);
    world.leases.insert(nobodys.id.clone(), nobodys);
    let before = world.kernel.state.clone();
    world.restart();
    world.sync(0);
    assert!(world.complains("store", "a second lease of zwin/eth0"));
    assert!(world.complains("store", "a lease of no container"));
    assert_eq!(world.kernel.state, before);
    assert_eq!(world.del("zwin"), Ok(()));
    assert_eq!(world.kernel.state, before, "the link is web's");
    let next = world.add("next").unwrap();
    assert_eq!(next.ips[0].0.to_string(), "10.244.0.4/32");
}
