//! Addresses that are kept for a pod while it is away.

use crate::world::{World, add, attachment, config, pod};
use meshd_core::{CniCall, CniEvent, Event, Ipam, KubeEvent};
use meshd_model::cni::{Add, Added, CniError, code};
use meshd_model::{LeasePhase, PodMeta, PodRef, PodWants};
use std::time::Duration;

pub(crate) fn has(added: &Added) -> Vec<String> {
    added.ips.iter().map(|(net, _)| net.ip().to_string()).collect()
}

/// A sandbox of pod `web-0`, of the given incarnation.
pub(crate) fn sandbox(world: &mut World, container: &str, uid: &str, wants: PodWants) -> Add {
    let pod = PodRef {
        uid: uid.into(),
        ..pod("web-0")
    };
    world.kube(KubeEvent::PodApplied(PodMeta {
        pod: pod.clone(),
        wants,
        mirror: String::new(),
    }));
    Add {
        pod: Some(pod),
        ..add(container)
    }
}

pub(crate) fn keep() -> PodWants {
    PodWants {
        keep: true,
        ..PodWants::default()
    }
}

pub(crate) fn start(world: &mut World, container: &str) -> Result<Added, CniError> {
    let add = sandbox(world, container, container, keep());
    world.answer(CniCall::Add(add)).map(Option::unwrap)
}

pub(crate) fn stop(world: &mut World, container: &str) {
    world.answer(CniCall::Del(attachment(container))).unwrap();
    world.run();
    assert!(!world.leases.contains_key(&attachment(container)));
}

fn other(world: &mut World, name: &str) -> Result<Added, CniError> {
    world.see_pod(name);
    world.answer(CniCall::Add(add(name))).map(Option::unwrap)
}

pub(crate) fn pass(world: &mut World, time: Duration) {
    world.wait(time);
    world.run();
}

fn short(keep: Duration) -> World {
    let ipam = Ipam {
        keep,
        ..Ipam::default()
    };
    let mut world = World::new(meshd_core::Config { ipam, ..config() });
    world.sync(0);
    world
}

#[test]
fn the_next_pod_of_the_name_has_them_and_nobody_else_meanwhile() {
    let mut world = World::ready(0);
    let had = has(&start(&mut world, "c1").unwrap());
    stop(&mut world, "c1");
    // Long after they would have rested, and with all others of the /24 given.
    pass(&mut world, Duration::from_secs(600));
    for n in 0..252 {
        let added = has(&other(&mut world, &format!("other-{n}")).unwrap());
        assert!(!added.iter().any(|a| had.contains(a)), "{added:?}");
    }
    let mut thief = add("thief");
    thief.wants.ips = vec![had[0].parse().unwrap()];
    world.see_pod("thief");
    let refused = world.answer(CniCall::Add(thief)).unwrap_err();
    assert!(refused.msg.ends_with("is in use"), "{refused}");
    assert_eq!(has(&start(&mut world, "c2").unwrap()), had);
    world.assert_quiescent();
}

#[test]
fn they_outlive_the_daemon_and_the_boot() {
    let mut world = World::ready(0);
    let had = has(&start(&mut world, "c1").unwrap());
    world.restart();
    world.sync(0);
    stop(&mut world, "c1");
    world.restart();
    world.sync(0);
    let stranger = has(&other(&mut world, "stranger").unwrap());
    assert!(!stranger.iter().any(|a| had.contains(a)), "{stranger:?}");
    assert_eq!(has(&start(&mut world, "c2").unwrap()), had);
    // The machine fails while the pod runs: its leases and links are gone.
    world.leases.clear();
    world.kernel.state.pod_links.clear();
    world.restart();
    world.sync(0);
    let stranger = has(&other(&mut world, "stranger-2").unwrap());
    assert!(!stranger.iter().any(|a| had.contains(a)), "{stranger:?}");
    assert_eq!(has(&start(&mut world, "c3").unwrap()), had);
    world.assert_quiescent();
}

#[test]
fn they_are_free_when_their_time_is_over_also_over_restarts() {
    let mut world = short(Duration::from_secs(1000));
    let had = has(&start(&mut world, "c1").unwrap());
    // While the pod runs no time passes.
    pass(&mut world, Duration::from_secs(5000));
    stop(&mut world, "c1");
    pass(&mut world, Duration::from_secs(600));
    world.restart();
    world.sync(0);
    assert_eq!(world.kept.len(), 1);
    pass(&mut world, Duration::from_secs(300));
    assert_eq!(world.kept.len(), 1, "a restart does not shorten it");
    pass(&mut world, Duration::from_secs(200));
    assert!(world.kept.is_empty(), "a restart does not prolong it");
    // It is as free as any other address that was used: the one that is named can be given.
    let mut named = add("named");
    named.wants.ips = vec![had[0].parse().unwrap()];
    world.see_pod("named");
    assert!(world.answer(CniCall::Add(named)).is_ok());
    world.assert_quiescent();
}

#[test]
fn add_is_answered_once_the_record_is_written_and_fails_if_it_is_not() {
    let mut world = World::ready(0);
    world.kept_held = true;
    let first = sandbox(&mut world, "c1", "c1", keep());
    let request = world.ask(CniCall::Add(first));
    world.run();
    assert!(!world.replies.contains_key(&request));
    let phase = world.leases[&attachment("c1")].phase;
    assert_eq!(phase, LeasePhase::Adding, "a repetition is not answered either");
    // Others do not wait.
    assert!(other(&mut world, "other").is_ok());
    world.kept_held = false;
    world.run();
    assert!(world.replies[&request].is_ok());
    assert_eq!(world.kept.len(), 1);

    let mut world = World::ready(0);
    world.kept_held = true;
    let second = sandbox(&mut world, "c1", "c1", keep());
    let request = world.ask(CniCall::Add(second));
    world.run();
    world.kept_held = false;
    world.store_failing = Some(28);
    world.run_store();
    world.store_failing = None;
    world.run();
    let told = world.replies[&request].clone().unwrap_err();
    assert_eq!(told.code, code::IO, "{told}");
    world.run();
    assert!(world.leases.is_empty() && world.kept.is_empty());
    assert!(start(&mut world, "c2").is_ok(), "the next may try at once");
    world.assert_quiescent();
}

#[test]
fn a_sandbox_that_still_has_them_is_waited_for() {
    let mut world = World::ready(0);
    let had = has(&start(&mut world, "c1").unwrap());
    let next = sandbox(&mut world, "c2", "c2", keep());
    let request = world.ask(CniCall::Add(next.clone()));
    world.run();
    assert!(!world.replies.contains_key(&request));
    stop(&mut world, "c1");
    assert_eq!(
        has(world.replies[&request].as_ref().unwrap().as_ref().unwrap()),
        had
    );
    let third = sandbox(&mut world, "c3", "c3", keep());
    let request = world.ask(CniCall::Add(third));
    pass(&mut world, Duration::from_secs(60));
    let told = world.replies[&request].clone().unwrap_err();
    assert_eq!(told.code, code::TRY_AGAIN, "{told}");
    assert!(told.msg.contains("c2"), "{told}");
    world.assert_quiescent();
}

#[test]
fn named_ones_go_first_and_a_pod_that_keeps_none_lets_them_go() {
    let mut world = World::ready(0);
    let had = has(&start(&mut world, "c1").unwrap());
    stop(&mut world, "c1");
    let wants = PodWants {
        ips: vec!["10.244.0.77".parse().unwrap()],
        ..keep()
    };
    let named = sandbox(&mut world, "c2", "c2", wants);
    let added = world.answer(CniCall::Add(named)).unwrap().unwrap();
    assert_eq!(has(&added), ["10.244.0.77".to_owned(), had[1].clone()]);
    stop(&mut world, "c2");
    assert_eq!(has(&start(&mut world, "c3").unwrap()), has(&added));
    stop(&mut world, "c3");
    let plain = sandbox(&mut world, "c4", "c4", PodWants::default());
    let plain = world.answer(CniCall::Add(plain)).unwrap().unwrap();
    assert!(!has(&plain).contains(&had[1]), "it rests");
    world.run();
    assert!(world.kept.is_empty());
    stop(&mut world, "c4");
    world.assert_quiescent();
}

#[test]
fn what_is_not_the_nodes_any_more_is_dropped_and_told() {
    let mut world = World::ready(0);
    start(&mut world, "c1").unwrap();
    stop(&mut world, "c1");
    if let Some(own) = &mut world.own {
        own.pod_cidrs[0] = "10.244.9.0/24".parse().unwrap();
    }
    world.tell_own();
    world.run();
    assert!(world.kept.is_empty());
    let lost = |p: &meshd_model::status::Problem| p.subject == "kept/default/web-0@eth0";
    assert!(world.problems().iter().any(lost), "{:#?}", world.problems());
    let anew = has(&start(&mut world, "c2").unwrap());
    assert!(anew[0].starts_with("10.244.9."), "{anew:?}");
    assert!(!world.problems().iter().any(lost));
}

#[test]
fn a_lease_of_another_pod_voids_a_record() {
    let mut world = World::ready(0);
    start(&mut world, "c1").unwrap();
    stop(&mut world, "c1");
    let had = world.kept.values().next().unwrap().addresses.clone();
    other(&mut world, "other").unwrap();
    if let Some(lease) = world.leases.get_mut(&attachment("other")) {
        lease.addresses.clone_from(&had);
    }
    world.restart();
    world.sync(0);
    assert!(world.kept.is_empty());
    let others = has(&start(&mut world, "c2").unwrap());
    assert!(!others.contains(&had[0].to_string()), "{others:?}");
}

#[test]
fn the_caller_may_go_away_while_the_record_is_written() {
    let mut world = World::ready(0);
    world.kept_held = true;
    let first = sandbox(&mut world, "c1", "c1", keep());
    let request = world.ask(CniCall::Add(first));
    world.run();
    world.tell(Event::Cni(CniEvent::Gone(request)));
    world.kept_held = false;
    world.run();
    assert!(world.leases.is_empty());
    assert!(start(&mut world, "c2").is_ok());
    world.assert_quiescent();
}

/// The runtime has lost its state: it makes sandboxes of the same pod, and sends no DEL of the one before. Each ADD that
/// waits in vain has a container of its own.
#[test]
fn a_living_pod_has_them_again_though_nobody_deletes_its_sandbox() {
    let mut world = World::ready(0);
    let first = sandbox(&mut world, "c1", "same", keep());
    let had = has(&world.answer(CniCall::Add(first)).unwrap().unwrap());
    let mut waited = Duration::ZERO;
    let mut tries = 0;
    let again = loop {
        tries += 1;
        let container = format!("again-{tries}");
        let add = sandbox(&mut world, &container, "same", keep());
        let request = world.ask(CniCall::Add(add));
        pass(&mut world, Duration::from_secs(25));
        waited += Duration::from_secs(25);
        match world.replies[&request].clone() {
            Ok(added) => break added.unwrap(),
            Err(told) => assert_eq!(told.code, code::TRY_AGAIN, "{told}"),
        }
        assert!(waited < Duration::from_secs(660), "it waits for ever");
    };
    assert!(waited > Duration::from_secs(590), "{waited:?}");
    assert_eq!(has(&again), had);
    assert!(!world.leases.contains_key(&attachment("c1")));
    world.assert_quiescent();
}

#[test]
fn a_sandbox_that_another_was_tried_in_place_of_for_a_while_is_left() {
    let mut world = World::ready(0);
    let first = sandbox(&mut world, "c1", "same", keep());
    world.answer(CniCall::Add(first)).unwrap();
    let second = sandbox(&mut world, "c2", "same", keep());
    world.ask(CniCall::Add(second));
    pass(&mut world, Duration::from_secs(3600));
    assert!(world.leases.contains_key(&attachment("c1")));
}
