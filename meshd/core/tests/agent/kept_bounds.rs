//! How much can be kept, of whom, and who gives up first.

use crate::kept::{has, keep, pass};
use crate::world::{World, add, attachment, pod};
use meshd_core::{CniCall, KubeEvent};
use meshd_model::cni::{Added, CniError, code};
use meshd_model::{PodMeta, PodRef, PodWants};
use std::collections::BTreeMap;
use std::time::Duration;

/// ADD of a pod of this namespace.
fn start(world: &mut World, namespace: &str, name: &str, wants: PodWants) -> Result<Added, CniError> {
    let pod = PodRef {
        namespace: namespace.into(),
        ..pod(name)
    };
    world.kube(KubeEvent::PodApplied(PodMeta {
        pod: pod.clone(),
        wants,
        mirror: String::new(),
    }));
    let mut add = add(&format!("{namespace}-{name}"));
    add.pod = Some(pod);
    world.answer(CniCall::Add(add)).map(Option::unwrap)
}

fn stop(world: &mut World, namespace: &str, name: &str) {
    let id = attachment(&format!("{namespace}-{name}"));
    world.answer(CniCall::Del(id)).unwrap();
    world.run();
}

/// Pods that keep their addresses come and go, one after the other.
fn away(world: &mut World, namespace: &str, count: usize) {
    for n in 0..count {
        start(world, namespace, &format!("p{n}"), keep()).unwrap();
        stop(world, namespace, &format!("p{n}"));
        pass(world, Duration::from_secs(1));
    }
}

fn kept(world: &World) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for key in world.kept.keys() {
        *counts.entry(key.namespace.clone()).or_default() += 1;
    }
    counts
}

#[test]
fn a_namespace_keeps_half_of_a_nodes_addresses_for_pods_that_are_away_and_all_three_quarters() {
    let mut world = World::ready(0);
    away(&mut world, "db", 1);
    away(&mut world, "greedy", 140);
    let counts = kept(&world);
    assert_eq!((counts["db"], counts["greedy"]), (1, 126));
    assert!(world.complains("kept/greedy/p0@eth0", "more were kept here"));
    let last = PodRef {
        namespace: "greedy".into(),
        ..pod("p139")
    };
    assert!(world.kept.keys().any(|k| k.pod == last.name));
    away(&mut world, "third", 90);
    let counts = kept(&world);
    assert_eq!(counts.values().sum::<usize>(), 190);
    assert_eq!(
        (counts["db"], counts["third"]),
        (1, 90),
        "who has the most gives up"
    );
    // Also what is loaded is bounded.
    world.restart();
    world.sync(0);
    assert_eq!(kept(&world), counts);
    world.assert_quiescent();
}

#[test]
fn the_namespace_with_the_most_gives_up_before_an_add_is_refused() {
    let mut world = World::ready(0);
    away(&mut world, "db", 2);
    away(&mut world, "greedy", 5);
    pass(&mut world, Duration::from_secs(60));
    for n in 0..246 + 3 {
        start(&mut world, "default", &format!("o{n}"), PodWants::default()).unwrap();
    }
    world.run();
    let counts = kept(&world);
    assert_eq!((counts["db"], counts["greedy"]), (2, 2));
    assert!(world.complains("kept/greedy/p2@eth0", "the node had no others left"));
    let again = has(&start(&mut world, "greedy", "p4", keep()).unwrap());
    stop(&mut world, "greedy", "p4");
    // They rest first, as all that were freed do.
    for n in 0..3 {
        start(&mut world, "default", &format!("q{n}"), PodWants::default()).unwrap();
    }
    let full = start(&mut world, "default", "full", PodWants::default()).unwrap_err();
    assert_eq!(full.code, code::EXHAUSTED, "{full}");
    pass(&mut world, Duration::from_secs(31));
    let last = has(&start(&mut world, "default", "full", PodWants::default()).unwrap());
    assert_eq!(last[0], again[0]);
    world.run();
    assert!(world.kept.is_empty());
    world.assert_quiescent();
}
