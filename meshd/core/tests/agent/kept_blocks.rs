//! Addresses that are kept, of blocks whose objects are gone.

use crate::blocks::{net, pool};
use crate::kept::{has, pass, start, stop};
use crate::world::{World, add};
use ipnetwork::IpNetwork;
use meshd_core::{CniCall, KubeEvent};
use meshd_model::AnnotationProblem;
use meshd_model::net::Family;
use std::time::Duration;

/// A node whose one pod is away, with what is kept for it.
fn away() -> (World, Vec<String>, Vec<IpNetwork>) {
    let mut world = World::pooled(pool());
    let had = has(&start(&mut world, "c1").unwrap());
    stop(&mut world, "c1");
    let before = world.pod_cidrs();
    (world, had, before)
}

fn lose(world: &mut World, cidrs: &[IpNetwork]) {
    for cidr in cidrs {
        world.blocks.remove(cidr);
        world.kube(KubeEvent::BlockDeleted(*cidr));
    }
}

#[test]
fn are_claimed_again_where_another_hand_deleted_them() {
    let (mut world, had, before) = away();
    world.kube_down = true;
    lose(&mut world, &before);
    world.run();
    world.see_pod("early");
    let early = world.ask(CniCall::Add(add("early")));
    world.run();
    assert!(!world.replies.contains_key(&early), "the block is nobody's");
    world.kube_down = false;
    pass(&mut world, Duration::from_secs(5));
    assert!(world.replies[&early].is_ok());
    assert!(world.agent.is_ready(), "{:#?}", world.problems());
    assert_eq!(world.pod_cidrs(), before);
    assert!(before.iter().all(|c| world.blocks.contains_key(c)));
    world.add("other").unwrap();
    assert_eq!(has(&start(&mut world, "c2").unwrap()), had);
    world.assert_quiescent();
}

#[test]
fn are_claimed_again_by_a_node_that_is_registered_again() {
    let (mut world, had, before) = away();
    let mut own = world.own.take().unwrap();
    world.kube(KubeEvent::OwnNodeDeleted);
    lose(&mut world, &before);
    pass(&mut world, Duration::from_secs(120));
    own.uid = "uid-again".into();
    own.published = Err(AnnotationProblem::Absent);
    world.own = Some(own);
    world.tell_own();
    world.run();
    assert!(world.agent.is_ready(), "{:#?}", world.problems());
    world.add("other").unwrap();
    assert_eq!(has(&start(&mut world, "c2").unwrap()), had);
    world.assert_quiescent();
}

#[test]
fn are_claimed_again_at_a_start() {
    let (mut world, had, before) = away();
    let second = net("10.244.0.96/28");
    let own = world.own.as_ref().unwrap().uid.clone();
    for cidr in &before {
        world.blocks.remove(cidr);
    }
    // One of the node's that nothing is kept of.
    if !before.contains(&second) {
        world.put_block(second, Some(own));
    }
    world.restart();
    world.sync(0);
    assert!(world.agent.is_ready(), "{:#?}", world.problems());
    assert!(before.iter().all(|c| world.pod_cidrs().contains(c)));
    assert_eq!(has(&start(&mut world, "c2").unwrap()), had);
}

#[test]
fn are_given_up_where_another_node_is_faster() {
    let (mut world, had, before) = away();
    let v4 = before[0];
    world.kube_down = true;
    lose(&mut world, &[v4]);
    world.run();
    world.take_block(&v4.to_string(), "uid-other");
    world.kube_down = false;
    pass(&mut world, Duration::from_secs(10));
    assert!(world.agent.is_ready(), "{:#?}", world.problems());
    assert_eq!(world.own_blocks(Family::V4).len(), 1);
    assert!(world.complains("kept/default/web-0@eth0", "not this node's any more"));
    let others = has(&start(&mut world, "c2").unwrap());
    assert_ne!(others[0], had[0]);
}
