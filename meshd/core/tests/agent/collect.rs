//! What goes without a DEL: by GC, and by itself.

use crate::world::{World, add, attachment, config, pod};
use meshd_core::{CniCall, CniEvent, Config, Event, Ipam, KubeEvent};
use meshd_model::cni::{Gc, code};
use meshd_model::{AttachmentId, LeasePhase, PodRef};
use std::time::Duration;

const GRACE: Duration = Duration::from_secs(60);

fn gc(valid: &[&str]) -> CniCall {
    CniCall::Gc(Gc {
        network: "meshd".into(),
        valid: valid.iter().map(|name| attachment(name)).collect(),
    })
}

fn with(names: &[&str]) -> World {
    let mut world = World::ready(0);
    for name in names {
        world.add(name).unwrap();
    }
    world
}

fn left(world: &World) -> Vec<&str> {
    world.leases.keys().map(|id| id.container_id.as_str()).collect()
}

/// The namespace goes, and with it both ends of the link.
fn remove_namespace(world: &mut World, name: &str) {
    world.kernel.gone.insert(format!("/run/netns/{name}"));
    let host_ifname = attachment(name).host_ifname();
    assert!(world.kernel.state.pod_links.remove(&host_ifname).is_some());
    world.observe();
    world.run();
}

#[test]
fn gc_removes_what_is_not_listed_and_nothing_that_is() {
    let mut world = with(&["a", "b", "c"]);
    assert_eq!(world.answer(gc(&["a", "c", "unknown"])), Ok(None));
    assert_eq!(left(&world), ["a", "c"]);
    assert_eq!(world.kernel.state.pod_links.len(), 2);
    world.forget_done();
    assert_eq!(world.answer(gc(&["a", "c"])), Ok(None));
    assert_eq!(world.done, [""; 0], "nothing more to do");
    assert_eq!(world.answer(gc(&[])), Ok(None));
    assert!(world.leases.is_empty() && world.kernel.state.pod_links.is_empty());
    world.assert_quiescent();
}

#[test]
fn gc_goes_on_past_failures_and_names_them_all() {
    let mut world = with(&["a", "b", "c", "d"]);
    for name in ["a", "c"] {
        world.kernel.refusing.insert(attachment(name).to_string());
    }
    let failed = world.answer(gc(&["d"])).unwrap_err();
    assert_eq!(failed.code, code::KERNEL);
    assert!(failed.msg.contains("2 of 3"), "{failed}");
    assert!(
        failed.details.contains("a/eth0") && failed.details.contains("c/eth0"),
        "{failed}"
    );
    assert!(!failed.details.contains("b/eth0"), "{failed}");
    assert_eq!(left(&world), ["a", "c", "d"]);
    world.kernel.refusing.clear();
    world.wait(Duration::from_secs(5));
    assert_eq!(left(&world), ["d"], "tried again in the background");
    world.assert_quiescent();
}

#[test]
fn gc_leaves_an_add_under_way_listed_or_not() {
    for listed in [&["new"][..], &[]] {
        for steps in 0..4 {
            let mut world = with(&["old"]);
            world.see_pod("new");
            let request = world.ask(CniCall::Add(add("new")));
            for _ in 0..steps {
                let _ = world.run_store() || world.run_kernel();
            }
            let under_way = !world.replies.contains_key(&request);
            let collected = world.ask(gc(listed));
            world.run();
            assert_eq!(world.replies[&collected], Ok(None));
            assert!(world.replies[&request].is_ok());
            let stays = under_way || !listed.is_empty();
            assert_eq!(
                left(&world),
                if stays { vec!["new"] } else { vec![] },
                "{steps} {listed:?}"
            );
            world.assert_quiescent();
        }
    }
}

#[test]
fn gc_of_one_network_leaves_those_of_another() {
    let mut world = World::ready(0);
    for (name, network) in [("one", "meshd"), ("two", "other"), ("old", "")] {
        world.see_pod(name);
        let mut add = add(name);
        add.network = network.into();
        world.answer(CniCall::Add(add)).unwrap();
    }
    assert_eq!(world.answer(gc(&[])), Ok(None));
    assert_eq!(left(&world), ["two"], "what names no network is of any");
}

#[test]
fn gc_removes_interfaces_whose_leases_were_damaged() {
    let mut world = with(&["a", "b"]);
    world.leases.clear();
    world.damaged = vec!["a.lease".into(), "b.lease".into()];
    world.restart();
    world.run();
    world.sync(0);
    assert_eq!(
        world.kernel.state.pod_links.len(),
        2,
        "they may be of running pods"
    );
    assert_eq!(world.answer(gc(&["b"])), Ok(None));
    let there: Vec<_> = world.kernel.state.pod_links.keys().cloned().collect();
    assert_eq!(there, [attachment("b").host_ifname()]);
    world.assert_quiescent();
}

#[test]
fn gc_is_answered_in_time_and_its_deletions_go_on() {
    let mut world = with(&["a"]);
    let request = world.ask(gc(&[]));
    world.run_store();
    // The kernel does not answer.
    let (at, _) = world.agent.poll_timeout().unwrap();
    world.now = world.now + at.since(world.now.boot);
    world.timeout();
    let late = world.replies[&request].clone().unwrap_err();
    assert!(late.details.contains("a/eth0 was not done in time"), "{late}");
    world.run();
    assert!(world.leases.is_empty());

    let mut world = with(&["a"]);
    let request = world.ask(gc(&[]));
    world.tell(Event::Cni(CniEvent::Gone(request)));
    world.run();
    assert!(world.leases.is_empty() && !world.replies.contains_key(&request));
    world.assert_quiescent();
}

#[test]
fn gc_before_the_leases_are_loaded_waits_for_them() {
    let mut world = with(&["a", "b"]);
    world.restart();
    let request = world.ask(gc(&["a"]));
    assert!(!world.replies.contains_key(&request));
    world.run();
    world.sync(0);
    assert_eq!(world.replies[&request], Ok(None));
    assert_eq!(left(&world), ["a"]);
}

#[test]
fn a_namespace_that_is_gone_frees_its_addresses_after_the_grace() {
    let mut world = with(&["a", "b"]);
    remove_namespace(&mut world, "a");
    world.wait(GRACE - Duration::from_secs(2));
    assert_eq!(left(&world), ["a", "b"], "the runtime may still send its DEL");
    world.wait(Duration::from_secs(4));
    assert_eq!(left(&world), ["b"]);
    assert_eq!(
        world
            .agent
            .numbers(world.now)
            .counters
            .collected
            .values()
            .sum::<u64>(),
        1
    );
    assert_eq!(world.del("a"), Ok(()), "a DEL that comes after all");
    world.assert_quiescent();
}

/// Of a pod whose sandbox was made again, the old attachment goes and the new one stays.
#[test]
fn a_sandbox_that_is_made_again_keeps_its_attachment() {
    let mut world = with(&["a"]);
    let mut again = add("a");
    again.id.container_id = "a2".into();
    again.netns = "/run/netns/a2".into();
    world.answer(CniCall::Add(again)).unwrap();
    remove_namespace(&mut world, "a");
    world.wait(GRACE * 20);
    assert_eq!(left(&world), ["a2"]);
}

/// The runtime has lost its state, and namespaces and links stay: nobody will send a DEL of the sandbox before.
#[test]
fn a_sandbox_in_whose_place_another_was_made_has_ten_times_the_grace() {
    let mut world = with(&["a", "b"]);
    let mut again = add("a");
    again.id.container_id = "a2".into();
    again.netns = "/run/netns/a2".into();
    world.answer(CniCall::Add(again)).unwrap();
    world.wait(GRACE * 9);
    assert_eq!(
        left(&world),
        ["a", "a2", "b"],
        "the runtime may still send its DEL"
    );
    world.wait(GRACE * 2);
    assert_eq!(left(&world), ["a2", "b"]);
    world.wait(GRACE * 30);
    assert_eq!(left(&world), ["a2", "b"]);
    world.assert_quiescent();
}

#[test]
fn a_sandbox_whose_successor_is_gone_again_and_a_further_interface_are_left() {
    let mut world = with(&["a"]);
    let mut again = add("a");
    again.id.container_id = "a2".into();
    again.netns = "/run/netns/a2".into();
    world.answer(CniCall::Add(again)).unwrap();
    let mut further = add("a");
    further.id.ifname = "net1".into();
    world.answer(CniCall::Add(further)).unwrap();
    world.wait(GRACE);
    world.del("a2").unwrap();
    world.wait(GRACE * 30);
    assert_eq!(left(&world), ["a", "a"]);
}

/// Runtimes that send no UID: two pods of one name may be two pods.
#[test]
fn a_sandbox_of_a_pod_without_uid_is_not_replaced() {
    let mut world = World::ready(0);
    world.see_pod("a");
    for name in ["a", "a2"] {
        let mut nameless = add(name);
        nameless.pod = add("a").pod.map(|pod| PodRef {
            uid: String::new(),
            ..pod
        });
        world.answer(CniCall::Add(nameless)).unwrap();
    }
    world.wait(GRACE * 30);
    assert_eq!(left(&world), ["a", "a2"]);
}

#[test]
fn a_pod_that_is_gone_has_ten_times_the_grace_and_only_a_server_that_is_there_says_so() {
    let mut world = with(&["a", "b"]);
    world.kube(KubeEvent::PodDeleted(pod("a")));
    world.wait(GRACE * 9);
    assert_eq!(
        left(&world),
        ["a", "b"],
        "the kubelet may be about to take it down"
    );
    let message = "connection refused".to_owned();
    world.kube(KubeEvent::Unreachable { message });
    world.wait(GRACE * 20);
    assert_eq!(left(&world), ["a", "b"], "nobody says that the pod is still gone");
    // A list that has not ended says nothing.
    world.kube(KubeEvent::PodsReset);
    world.kube(KubeEvent::PodApplied(pod("b").into()));
    world.kube(KubeEvent::PodsSynced);
    world.wait(GRACE * 9);
    assert_eq!(left(&world), ["a", "b"], "the grace begins anew");
    world.wait(GRACE * 3);
    assert_eq!(left(&world), ["b"]);
    world.assert_quiescent();
}

#[test]
fn a_pod_that_comes_back_is_not_abandoned() {
    let mut world = with(&["a"]);
    world.kube(KubeEvent::PodDeleted(pod("a")));
    world.wait(GRACE * 5);
    world.see_pod("a");
    world.wait(GRACE * 30);
    assert_eq!(left(&world), ["a"]);
    assert_eq!(world.agent.numbers(world.now).counters.collected.len(), 0);
}

#[test]
fn an_add_that_was_cut_off_and_is_not_sent_again_is_undone() {
    let mut world = World::ready(0);
    world.see_pod("a");
    world.ask(CniCall::Add(add("a")));
    world.run_store();
    world.run_kernel();
    world.restart();
    world.run();
    world.sync(0);
    world.wait(GRACE - Duration::from_secs(5));
    assert_eq!(
        world.leases.values().map(|l| l.phase).collect::<Vec<_>>(),
        [LeasePhase::Adding]
    );
    world.wait(Duration::from_secs(10));
    assert!(world.leases.is_empty() && world.kernel.state.pod_links.is_empty());
    world.assert_quiescent();
}

/// A path that was removed is not a namespace that is gone: the link is still there.
#[test]
fn a_link_that_is_there_is_not_abandoned() {
    let mut world = with(&["a"]);
    world.kernel.gone.insert("/run/netns/a".into());
    let link = attachment("a").host_ifname();
    world.kernel.state.pod_links.get_mut(&link).unwrap().mtu = 1300;
    world.observe();
    world.run();
    assert!(world.complains("attachment/a/eth0", "namespace"));
    world.wait(GRACE * 30);
    assert_eq!(left(&world), ["a"]);
}

#[test]
fn collection_can_be_switched_off_and_containers_without_a_pod_go_by_their_namespace() {
    let ipam = |collect_after| Ipam {
        collect_after,
        ..Ipam::default()
    };
    for (grace, stays) in [(Duration::ZERO, true), (GRACE, false)] {
        let mut world = World::new(Config {
            ipam: ipam(grace),
            allow_unnamed_pods: true,
            ..config()
        });
        world.sync(0);
        let mut unnamed = add("x");
        unnamed.pod = None;
        world.answer(CniCall::Add(unnamed)).unwrap();
        world.wait(GRACE * 30);
        assert_eq!(left(&world), ["x"], "no pod of it can be gone");
        remove_namespace(&mut world, "x");
        world.wait(GRACE * 30);
        assert_eq!(
            world.leases.contains_key(&AttachmentId { ..attachment("x") }),
            stays
        );
    }
}
