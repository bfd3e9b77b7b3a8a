//! What runtimes ask, and how it can go wrong.

use crate::world::{World, add, attachment, config, own_node};
use meshd_core::{CniCall, CniEvent, Config, Event, KubeEvent};
use meshd_model::LeasePhase;
use meshd_model::cni::{Add, code};
use std::time::Duration;

#[test]
fn what_is_asked_must_make_sense() {
    let mut world = World::ready(0);
    let bad = [
        ("", "eth0", "/run/netns/a"),
        ("../x", "eth0", "/run/netns/a"),
        ("a/b", "eth0", "/run/netns/a"),
        ("a", "", "/run/netns/a"),
        ("a", "lo", "/run/netns/a"),
        ("a", "..", "/run/netns/a"),
        ("a", "eth/0", "/run/netns/a"),
        ("a", "sixteen-bytes-xx", "/run/netns/a"),
        ("a", "eth0", ""),
        ("a", "eth0", "run/netns/a"),
        ("a", "eth0", "/run/net\0ns"),
    ];
    for (container, ifname, netns) in bad {
        let mut add = add("a");
        add.id.container_id = container.into();
        add.id.ifname = ifname.into();
        add.netns = netns.into();
        assert_eq!(
            world.answer(CniCall::Add(add)).unwrap_err().code,
            code::ENVIRONMENT,
            "{container} {ifname} {netns}"
        );
    }
    let mut long = add("a");
    long.id.container_id = "a".repeat(257);
    assert_eq!(
        world.answer(CniCall::Add(long)).unwrap_err().code,
        code::ENVIRONMENT
    );
    assert_eq!(
        world.answer(CniCall::Del(attachment(""))),
        Ok(None),
        "DEL of what cannot be is done"
    );
    world.assert_quiescent();
}

#[test]
fn a_second_add_changes_nothing() {
    let mut world = World::ready(0);
    let added = world.add("web").unwrap();
    world.forget_done();
    assert_eq!(world.add("web").unwrap_err().code, code::EXISTS);
    assert_eq!(world.done, [] as [&str; 0]);
    assert_eq!(world.check("web", &added), Ok(()));

    world.see_pod("two");
    let first = world.ask(CniCall::Add(add("two")));
    let second = world.ask(CniCall::Add(add("two")));
    assert_eq!(world.replies[&second].as_ref().unwrap_err().code, code::TRY_AGAIN);
    world.run();
    assert!(world.replies[&first].is_ok());

    let waiting = world.ask(CniCall::Add(add("unseen")));
    let rival = world.ask(CniCall::Add(add("unseen")));
    assert_eq!(world.replies[&rival].as_ref().unwrap_err().code, code::TRY_AGAIN);
    assert!(!world.replies.contains_key(&waiting));
}

#[test]
fn a_namespace_that_is_gone_and_a_name_that_is_taken() {
    let mut world = World::ready(0);
    world.kernel.gone.insert("/run/netns/web".into());
    let gone = world.add("web").unwrap_err();
    assert_eq!(gone.code, code::NETNS);
    assert!(gone.msg.contains("/run/netns/web"), "{gone}");
    world.kernel.taken.insert("/run/netns/two:eth0".into());
    let taken = world.add("two").unwrap_err();
    assert_eq!(taken.code, code::CONFIG);
    assert!(taken.msg.contains("eth0"), "{taken}");
    world.kernel.failing = Some(("AttachPod".into(), 12));
    assert_eq!(world.add("three").unwrap_err().code, code::KERNEL);
    assert!(world.leases.is_empty(), "all of it was rolled back");
    world.kernel.failing = None;
    world.assert_quiescent();
    assert_eq!(world.problems(), []);
}

#[test]
fn a_caller_that_goes_away_leaves_nothing_behind() {
    // After each number of steps.
    for steps in 0..3 {
        let mut world = World::ready(0);
        world.see_pod("web");
        let request = world.ask(CniCall::Add(add("web")));
        for _ in 0..steps {
            assert!(world.run_store() || world.run_kernel());
        }
        world.tell(Event::Cni(CniEvent::Gone(request)));
        world.run();
        assert!(!world.replies.contains_key(&request));
        assert!(
            world.leases.is_empty() && world.kernel.state.pod_links.is_empty(),
            "after {steps} steps"
        );
        world.assert_quiescent();
    }
}

#[test]
fn an_add_past_its_deadline_is_answered_and_undone() {
    let mut world = World::ready(0);
    world.see_pod("web");
    let request = world.ask(CniCall::Add(add("web")));
    world.run_store();
    // The kernel does not answer.
    let (at, _) = world.agent.poll_timeout().unwrap();
    world.now = world.now + at.since(world.now.boot);
    world.timeout();
    assert_eq!(
        world.replies[&request].as_ref().unwrap_err().code,
        code::TRY_AGAIN
    );
    world.run();
    assert!(world.leases.is_empty() && world.kernel.state.pod_links.is_empty());
    world.assert_quiescent();
}

#[test]
fn a_del_overtakes_an_add() {
    for steps in 0..3 {
        let mut world = World::ready(0);
        world.see_pod("web");
        let adding = world.ask(CniCall::Add(add("web")));
        for _ in 0..steps {
            assert!(world.run_store() || world.run_kernel());
        }
        assert_eq!(world.del("web"), Ok(()));
        assert_eq!(world.replies[&adding].as_ref().unwrap_err().code, code::TRY_AGAIN);
        assert!(world.leases.is_empty() && world.kernel.state.pod_links.is_empty());
        world.assert_quiescent();
    }
    let mut world = World::ready(0);
    let waiting = world.ask(CniCall::Add(add("unseen")));
    assert_eq!(world.del("unseen"), Ok(()));
    assert!(world.replies[&waiting].is_err());
}

#[test]
fn two_dels_are_both_answered() {
    let mut world = World::ready(0);
    world.add("web").unwrap();
    let first = world.ask(CniCall::Del(attachment("web")));
    let second = world.ask(CniCall::Del(attachment("web")));
    world.run();
    assert_eq!(
        (&world.replies[&first], &world.replies[&second]),
        (&Ok(None), &Ok(None))
    );
}

#[test]
fn a_link_that_cannot_be_taken_down_keeps_its_addresses() {
    let mut world = World::ready(0);
    let added = world.add("web").unwrap();
    world.kernel.failing = Some(("DetachPod".into(), 16));
    assert_eq!(world.del("web").unwrap_err().code, code::KERNEL);
    assert!(world.complains("attachment/web/eth0", "failed"));
    assert_eq!(world.add("web").unwrap_err().code, code::TRY_AGAIN);
    assert_ne!(world.add("other").unwrap().ips, added.ips);
    world.kernel.failing = None;
    world.wait(Duration::from_secs(5));
    assert_eq!(world.leases.len(), 1);
    assert_eq!(world.problems(), []);
}

#[test]
fn check_says_what_differs() {
    let mut world = World::ready(0);
    let added = world.add("web").unwrap();
    let mut wrong = added.clone();
    wrong.ips.pop();
    let told = world.check("web", &wrong).unwrap_err();
    assert!(
        told.code == code::DIFFERS && told.msg.contains("prevResult"),
        "{told}"
    );
    assert_eq!(
        world.check("other", &added).unwrap_err().code,
        code::UNKNOWN_CONTAINER
    );
    world.kernel.failing = Some(("AttachPod".into(), 12));
    world
        .kernel
        .state
        .pod_links
        .values_mut()
        .for_each(|l| l.mtu = 1300);
    world.observe();
    let told = world.check("web", &added).unwrap_err();
    assert!(
        told.code == code::DIFFERS && told.msg.contains("MTU 1300"),
        "{told}"
    );
    world.kernel.failing = None;
    world.wait(Duration::from_secs(5));
    assert_eq!(world.check("web", &added), Ok(()));
}

#[test]
fn a_full_node_says_how_full_and_waits_for_what_rests() {
    let mut world = World::new(Config {
        address_rest: Duration::from_secs(5),
        ..config()
    });
    world.own = Some(meshd_model::OwnNode {
        pod_cidrs: vec!["10.244.0.0/29".parse().unwrap()],
        ..own_node()
    });
    world.sync(0);
    let count = (0..).take_while(|i| world.add(&format!("p{i}")).is_ok()).count();
    assert_eq!(count, 5, "8 less network, overlay and broadcast address");
    let full = world.add("more").unwrap_err();
    assert_eq!(full.code, code::EXHAUSTED);
    assert!(full.msg.contains("hold 5, 5 are in use"), "{full}");

    assert_eq!(world.del("p0"), Ok(()));
    world.kube(KubeEvent::PodApplied(crate::world::pod("more").into()));
    let request = world.ask(CniCall::Add(add("more")));
    world.run();
    assert!(!world.replies.contains_key(&request), "p0's address rests");
    world.wait(Duration::from_secs(5));
    assert!(world.replies[&request].is_ok());
}

#[test]
fn requests_are_bounded() {
    let mut world = World::ready(0);
    for i in 0..1024 {
        world.ask(CniCall::Add(add(&format!("u{i}"))));
    }
    assert!(world.replies.is_empty());
    let refused = world.ask(CniCall::Add(add("more")));
    assert_eq!(
        world.replies[&refused].as_ref().unwrap_err().code,
        code::TRY_AGAIN
    );
    world.wait(Duration::from_secs(10));
    assert_eq!(world.replies.len(), 1025);
}

#[test]
fn no_pod_is_attached_while_the_firewall_is_gone() {
    let mut world = World::ready(0);
    world.see_pod("web");
    let request = world.ask(CniCall::Add(add("web")));
    world.kernel.failing = Some(("SetFirewall".into(), 1));
    world.kernel.state.firewall = None;
    world.observe();
    world.run();
    assert!(world.kernel.state.pod_links.is_empty() && !world.replies.contains_key(&request));
    world.kernel.failing = None;
    world.wait(Duration::from_secs(2));
    assert!(world.replies[&request].is_ok());
}

/// Carries all out but the deletion of links, which a real kernel does in the background.
fn run_but_deletions(world: &mut World) {
    loop {
        let is_deletion =
            |a: &meshd_core::KernelAction| matches!(a.op, meshd_core::KernelOp::RemovePodLink(_));
        let held: Vec<_> = world
            .kernel_queue
            .iter()
            .filter(|a| is_deletion(a))
            .cloned()
            .collect();
        world.kernel_queue.retain(|a| !is_deletion(a));
        let more = world.run_store() || world.run_kernel();
        world.kernel_queue.extend(held);
        if !more {
            return;
        }
    }
}

#[test]
fn a_del_is_answered_before_the_link_is_gone_and_its_addresses_are_free_after() {
    let mut world = World::ready(0);
    let added = world.add("web").unwrap();
    world.see_pod("other");
    let del = world.ask(CniCall::Del(attachment("web")));
    run_but_deletions(&mut world);
    assert_eq!(world.replies[&del], Ok(None));
    let link = world
        .kernel
        .state
        .pod_links
        .values()
        .next()
        .expect("the link is there yet");
    assert!(link.addresses.is_empty() && !link.guarded, "the pod is cut off");
    assert_eq!(world.leases[&attachment("web")].phase, LeasePhase::Deleting);

    let again = world.ask(CniCall::Del(attachment("web")));
    assert_eq!(world.replies[&again], Ok(None), "at once");
    let other = world.ask(CniCall::Add(add("other")));
    run_but_deletions(&mut world);
    let others = world.replies[&other].as_ref().unwrap().as_ref().unwrap();
    assert_ne!(others.ips, added.ips, "held until the link is gone");
    assert_eq!(world.leases.len(), 2);

    world.run();
    assert_eq!((world.leases.len(), world.kernel.state.pod_links.len()), (1, 1));
    world.assert_quiescent();
}

#[test]
fn an_add_waits_for_the_deletion_of_what_is_in_its_way() {
    let same_namespace = Add {
        netns: "/run/netns/web".into(),
        ..add("next")
    };
    for next in [add("web"), same_namespace] {
        let mut world = World::ready(0);
        world.add("web").unwrap();
        world.see_pod("next");
        world.ask(CniCall::Del(attachment("web")));
        run_but_deletions(&mut world);
        let waiting = world.ask(CniCall::Add(next.clone()));
        run_but_deletions(&mut world);
        assert!(!world.replies.contains_key(&waiting));
        world.run();
        assert!(world.replies[&waiting].is_ok(), "{:?}", world.replies[&waiting]);
        assert_eq!(world.leases.keys().collect::<Vec<_>>(), [&next.id]);
        world.assert_quiescent();
    }
}

#[test]
fn a_del_waits_while_too_many_links_are_being_deleted() {
    let mut world = World::new(config());
    world.own = Some(meshd_model::OwnNode {
        pod_cidrs: vec!["10.244.0.0/22".parse().unwrap()],
        ..own_node()
    });
    world.sync(0);
    for i in 0..257 {
        world.add(&format!("p{i}")).unwrap();
    }
    let dels: Vec<_> = (0..257)
        .map(|i| world.ask(CniCall::Del(attachment(&format!("p{i}")))))
        .collect();
    run_but_deletions(&mut world);
    let answered = |world: &World| dels.iter().filter(|d| world.replies.contains_key(d)).count();
    assert_eq!(answered(&world), 256);
    world.run();
    assert_eq!(answered(&world), 257);
    assert!(world.leases.is_empty());
    world.assert_quiescent();
}
