//! Objects of blocks, and claims, that are there to take everything from everybody.

use crate::blocks::{net, pool};
use crate::world::{World, node};
use meshd_core::KubeEvent;
use meshd_model::net::Family;

#[test]
fn an_object_wider_than_a_block_or_outside_of_the_pool_takes_nothing() {
    let mut world = World::new(pool());
    world.own.as_mut().unwrap().pod_cidrs.clear();
    for wide in [
        "10.244.0.0/24",
        "10.244.0.0/25",
        "10.0.0.0/8",
        "fd00:244::/48",
        "fd00:244::/64",
    ] {
        world.put_block(net(wide), Some("uid-other".into()));
    }
    world.sync(0);
    assert!(world.agent.is_ready(), "{:#?}", world.problems());
    world.take_block("0.0.0.0/0", "uid-other");
    for n in 0..30 {
        world.add(&format!("p{n}")).unwrap();
    }
    assert_eq!(world.own_blocks(Family::V4).len(), 3);
    world.assert_quiescent();
}

#[test]
fn what_an_older_node_claims_without_an_object_is_passed_over() {
    let mut world = World::new(pool());
    world.own.as_mut().unwrap().pod_cidrs.clear();
    let mut greedy = node(1);
    greedy.created = 1;
    let claimed: Vec<_> = (0..14).map(|n| net(&format!("10.244.0.{}/28", n * 16))).collect();
    greedy
        .annotations
        .as_mut()
        .unwrap()
        .pod_cidrs
        .clone_from(&claimed);
    world.kube(KubeEvent::NodeApplied(greedy));
    world.tell_own();
    world.kube(KubeEvent::NodesSynced);
    world.kube(KubeEvent::PodsSynced);
    world.list_blocks();
    world.run();
    assert!(world.agent.is_ready(), "{:#?}", world.problems());
    let own = world.own_blocks(Family::V4);
    assert!(own.len() == 1 && !claimed.contains(&own[0]), "{own:?}");
}
