//! Peers and routes: order, roaming, failures, other hands.

use crate::kernel::ENODEV;
use crate::world::{World, config, key, node};
use meshd_core::{Config, KubeEvent};
use meshd_model::kernel::{Route, RouteTarget, TABLE_MAIN};
use meshd_model::{Now, Wall};
use std::net::SocketAddr;
use std::time::Duration;

fn at(now: Now, ago: u64) -> Option<Wall> {
    Some(Wall(now.wall.0 - ago * 1_000_000_000))
}

#[test]
fn a_peer_goes_after_its_routes() {
    let mut world = World::ready(2);
    world.forget_done();
    world.kube(KubeEvent::NodeDeleted("node-1".into()));
    world.run();
    assert_eq!(world.done.len(), 5);
    assert_eq!(world.done[4], "remove peer 1");
    world.assert_quiescent();
}

#[test]
fn a_peer_that_roamed_is_no_difference() {
    let mut world = World::ready(1);
    let elsewhere: SocketAddr = "203.0.113.9:4444".parse().unwrap();
    let peer = world.kernel.state.peers.get_mut(&key(1)).unwrap();
    peer.endpoint = Some(elsewhere);
    peer.last_handshake = at(world.now, 20);
    world.assert_quiescent();

    // A change of something else leaves it where it was heard.
    let mut narrower = node(1);
    narrower.annotations.as_mut().unwrap().pod_cidrs.pop();
    world.kube(KubeEvent::NodeApplied(narrower.clone()));
    world.assert_quiescent();
    assert_eq!(world.kernel.state.peers[&key(1)].endpoint, Some(elsewhere));

    // A new published endpoint counts.
    narrower.annotations.as_mut().unwrap().endpoints = vec!["172.18.0.99".parse().unwrap()];
    world.kube(KubeEvent::NodeApplied(narrower));
    world.assert_quiescent();
    assert_eq!(
        world.kernel.state.peers[&key(1)].endpoint,
        Some("172.18.0.99:51820".parse().unwrap())
    );
}

#[test]
fn where_a_peer_was_heard_counts_for_as_long_as_its_session_lives() {
    let mut world = World::ready(1);
    let published = world.kernel.state.peers[&key(1)].endpoint;
    let elsewhere = Some("203.0.113.9:4444".parse().unwrap());
    let peer = world.kernel.state.peers.get_mut(&key(1)).unwrap();
    peer.endpoint = elsewhere;
    peer.last_handshake = at(world.now, 0);
    // No handshake for as long as a session can live, and an observation can be old.
    world.wait(Duration::from_secs(290));
    assert_eq!(world.kernel.state.peers[&key(1)].endpoint, elsewhere);
    world.wait(Duration::from_secs(60));
    assert_eq!(world.kernel.state.peers[&key(1)].endpoint, published);
    world.assert_quiescent();
}

#[test]
fn where_a_peer_was_heard_since_the_last_observation_is_not_undone() {
    let mut world = World::ready(1);
    // It roams, and nobody has observed that when something else of it changes.
    let elsewhere: SocketAddr = "203.0.113.9:4444".parse().unwrap();
    let peer = world.kernel.state.peers.get_mut(&key(1)).unwrap();
    peer.endpoint = Some(elsewhere);
    peer.last_handshake = at(world.now, 5);
    let mut narrower = node(1);
    narrower.annotations.as_mut().unwrap().pod_cidrs.pop();
    world.kube(KubeEvent::NodeApplied(narrower));
    world.run();
    assert_eq!(world.allowed(1).len(), 2);
    assert_eq!(world.kernel.state.peers[&key(1)].endpoint, Some(elsewhere));
    world.assert_quiescent();
}

#[test]
fn a_node_behind_nat_keeps_every_peer_alive() {
    let mut world = World::new(Config {
        keepalive: Some(25),
        ..config()
    });
    world.sync(2);
    let peers = world.kernel.state.peers.values();
    assert_eq!(peers.map(|p| p.keepalive).collect::<Vec<_>>(), [Some(25); 2]);
    world.assert_quiescent();
}

#[test]
fn a_route_carries_the_smaller_mtu_of_both_ends() {
    let mut world = World::ready(2);
    let of = |world: &World, n: u8| -> Vec<String> {
        let part = [
            format!("10.244.{n}.0/24"),
            format!("fd00:244:0:{n}::/64"),
            format!("172.18.0.{}/32", n + 2),
        ];
        let routes = world.routes();
        let of_node = routes.iter().filter(|r| part.iter().any(|p| r.starts_with(p)));
        let mtu = |r: &String| {
            r.split("mtu ")
                .nth(1)
                .unwrap()
                .split(' ')
                .next()
                .unwrap()
                .to_owned()
        };
        of_node.map(mtu).collect()
    };
    let publish = |world: &mut World, mtu: u16| {
        let mut peer = node(1);
        peer.annotations.as_mut().unwrap().mtu = mtu;
        world.kube(KubeEvent::NodeApplied(peer));
        world.assert_quiescent();
    };
    publish(&mut world, 1340);
    assert_eq!(of(&world, 1), ["1340"; 3]);
    assert_eq!(of(&world, 2), ["1440"; 3], "another peer's routes stay");
    publish(&mut world, 9000);
    assert_eq!(
        of(&world, 1),
        ["1440"; 3],
        "never more than the own device carries"
    );
    // Less than a family needs: it gets what it needs (in the order of the kernel's listing).
    publish(&mut world, 100);
    let mut small = of(&world, 1);
    small.sort();
    assert_eq!(small, ["1280", "576", "576"]);
}

#[test]
fn a_device_that_was_restarted_greets_the_peers_that_hold_a_session() {
    let mut world = World::ready(3);
    for (n, ago) in [(1, Some(20)), (2, None), (3, Some(400))] {
        world.kernel.state.peers.get_mut(&key(n)).unwrap().last_handshake =
            ago.and_then(|ago| at(world.now, ago));
    }
    world.observe();
    world.kernel.state.device = None;
    world.kernel.state.peers.clear();
    world.observe();
    world.run();
    assert_eq!(world.kernel.state.peers.len(), 3);
    assert_eq!(world.kernel.greeted, [], "not all in the moment of the restart");
    world.wait(Duration::from_millis(300));
    assert_eq!(
        world.kernel.greeted,
        [key(1)],
        "one has no session, and one's is long dead"
    );
    world.wait(Duration::from_secs(600));
    assert_eq!(world.kernel.greeted, [key(1)], "once");
    world.assert_quiescent();
}

#[test]
fn a_peer_that_comes_back_is_greeted_unless_it_has_a_session_again() {
    for has_a_new_one in [false, true] {
        let mut world = World::ready(2);
        world.kernel.state.peers.get_mut(&key(1)).unwrap().last_handshake = at(world.now, 5);
        world.observe();
        world.kube(KubeEvent::NodeDeleted("node-1".into()));
        world.run();
        world.kube(KubeEvent::NodeApplied(node(1)));
        world.run();
        if has_a_new_one {
            world.kernel.state.peers.get_mut(&key(1)).unwrap().last_handshake = at(world.now, 0);
            world.observe();
        }
        world.wait(Duration::from_secs(1));
        assert_eq!(world.kernel.greeted.len(), usize::from(!has_a_new_one));
        world.assert_quiescent();
    }
}

#[test]
fn a_greeting_that_fails_is_tried_again_and_given_up_in_the_end() {
    let mut world = World::ready(1);
    world.kernel.state.peers.get_mut(&key(1)).unwrap().last_handshake = at(world.now, 5);
    world.observe();
    world.kernel.state.peers.clear();
    world.kernel.failing = Some(("Greet".into(), ENODEV));
    world.observe();
    world.run();
    world.wait(Duration::from_secs(30));
    assert_eq!(world.kernel.greeted, []);
    assert!(world.agent.is_ready(), "a peer without a greeting is a peer");
    world.kernel.failing = None;
    world.wait(Duration::from_secs(60));
    assert_eq!(world.kernel.greeted, [key(1)]);
    world.assert_quiescent();
}

#[test]
fn after_a_restart_a_living_session_is_left_where_it_is() {
    for (handshake_ago, left) in [(Some(60), true), (Some(181), false), (None, false)] {
        let mut world = World::ready(1);
        let elsewhere: SocketAddr = "203.0.113.9:4444".parse().unwrap();
        let peer = world.kernel.state.peers.get_mut(&key(1)).unwrap();
        peer.endpoint = Some(elsewhere);
        peer.last_handshake = handshake_ago.and_then(|ago| at(world.now, ago));
        world.restart();
        world.sync(1);
        let endpoint = world.kernel.state.peers[&key(1)].endpoint.unwrap();
        assert_eq!(endpoint == elsewhere, left, "{handshake_ago:?}");
        world.wait(Duration::from_secs(100));
        assert_eq!(world.kernel.state.peers[&key(1)].endpoint, Some(endpoint));
    }
}

#[test]
fn what_another_hand_breaks_is_mended() {
    let mut world = World::ready(2);
    world.add("web").unwrap();
    let good = world.kernel.state.clone();
    let state = &mut world.kernel.state;
    state.firewall = None;
    state.peers.remove(&key(1));
    state.peers.get_mut(&key(2)).unwrap().allowed_ips.clear();
    state.routes.pop_first();
    state.rules.clear();
    state.pod_links.values_mut().for_each(|l| l.guarded = false);
    state.routes.insert(Route {
        dst: "10.99.0.0/24".parse().unwrap(),
        table: TABLE_MAIN,
        metric: 50,
        target: RouteTarget::Unreachable,
    });
    world.forget_done();
    world.observe();
    world.run();
    assert_eq!(world.done[0], "firewall", "first of all");
    assert_eq!(world.kernel.state, good);
    world.assert_quiescent();
}

#[test]
fn a_device_that_is_gone_comes_back_with_its_peers_and_routes() {
    let mut world = World::ready(2);
    let good = world.kernel.state.clone();
    let state = &mut world.kernel.state;
    state.device = None;
    state.peers.clear();
    state.routes.retain(|r| r.target == RouteTarget::Unreachable);
    world.observe();
    assert!(!world.agent.is_ready());
    world.assert_quiescent();
    assert_eq!(world.kernel.state, good);
    assert!(world.agent.is_ready());
}

#[test]
fn a_failing_peer_is_retried_with_back_off_and_holds_up_nobody_else() {
    let mut world = World::ready(0);
    world.kernel.failing = Some(("SetPeer(Peer { public_key: AQEB".into(), ENODEV));
    world.forget_done();
    world.kube(KubeEvent::NodeApplied(node(1)));
    world.kube(KubeEvent::NodeApplied(node(2)));
    world.run();
    assert!(world.kernel.state.peers.contains_key(&key(2)));
    assert!(
        !world.routes().iter().any(|r| r.contains("10.244.1.0/24")),
        "no route before its peer"
    );
    assert!(world.complains(&format!("peer/{}", key(1)), "failed once"));
    world.wait(Duration::from_secs(60));
    let tries = world.done.iter().filter(|d| d.starts_with("peer 1")).count();
    assert!((5..10).contains(&tries), "{tries}");
    world.kernel.failing = None;
    world.wait(Duration::from_secs(120));
    assert_eq!(world.problems(), []);
    assert!(world.routes().iter().any(|r| r.contains("10.244.1.0/24")));
    world.assert_quiescent();
}

#[test]
fn nothing_is_set_up_while_the_firewall_fails() {
    let mut world = World::new(config());
    world.kernel.failing = Some(("SetFirewall".into(), 1));
    world.sync(2);
    assert!(!world.agent.is_ready());
    assert!(world.complains("firewall", "failed"));
    assert!(world.kernel.state.device.is_none() && world.kernel.state.peers.is_empty());
    world.kernel.failing = None;
    world.wait(Duration::from_secs(5));
    assert!(world.agent.is_ready());
    world.assert_quiescent();
}

#[test]
fn an_outcome_that_nobody_awaits_changes_nothing() {
    use meshd_core::{ActionId, Event, KernelEvent, Resource};
    let mut world = World::ready(1);
    world.forget_done();
    for generation in [0, 1, 99] {
        for resource in [
            Resource::Firewall,
            Resource::Peer(key(1)),
            Resource::Peer(key(77)),
            Resource::Store,
        ] {
            let id = ActionId { resource, generation };
            world.tell(Event::Kernel(KernelEvent::Applied(id.clone())));
            let failure = crate::kernel::failure(5);
            world.tell(Event::Kernel(KernelEvent::Failed { id, failure }));
        }
    }
    assert_eq!(world.outputs, []);
    assert_eq!(world.problems(), []);
}

#[test]
fn a_relist_forgets_what_it_does_not_name() {
    let mut world = World::ready(3);
    world.kube(KubeEvent::NodesReset);
    world.kube(KubeEvent::NodeApplied(node(2)));
    world.run();
    assert_eq!(
        world.kernel.state.peers.len(),
        3,
        "kept until the list is complete"
    );
    world.kube(KubeEvent::NodesSynced);
    world.assert_quiescent();
    assert_eq!(world.kernel.state.peers.keys().collect::<Vec<_>>(), [&key(2)]);
}

#[test]
fn an_outcome_of_an_older_action_is_not_taken_for_the_awaited_one() {
    use meshd_core::{ActionId, Event, KernelEvent, Resource};
    let mut world = World::ready(1);
    let mut moved = node(1);
    moved.annotations.as_mut().unwrap().endpoints = vec!["172.18.0.99".parse().unwrap()];
    world.kube(KubeEvent::NodeApplied(moved));
    assert_eq!(world.kernel_queue.len(), 1);
    let old = |generation| ActionId {
        resource: Resource::Peer(key(1)),
        generation,
    };
    for generation in [1, 99] {
        let failure = crate::kernel::failure(5);
        world.tell(Event::Kernel(KernelEvent::Failed {
            id: old(generation),
            failure,
        }));
        world.tell(Event::Kernel(KernelEvent::Applied(old(generation))));
    }
    assert_eq!(world.problems(), []);
    assert_eq!(world.kernel_queue.len(), 1, "it is still awaited");
    world.assert_quiescent();
    assert_eq!(
        world.kernel.state.peers[&key(1)].endpoint,
        Some("172.18.0.99:51820".parse().unwrap())
    );
}

#[test]
fn a_part_of_a_prefix_changes_hands_without_a_moment_of_two_owners() {
    let part = "10.244.2.128/25";
    let mut world = World::ready(2);
    let mut greedy = node(1);
    greedy.annotations.as_mut().unwrap().public_key = key(9);
    let modest = greedy.clone();
    greedy
        .annotations
        .as_mut()
        .unwrap()
        .pod_cidrs
        .push(part.parse().unwrap());
    for (meta, owner) in [
        (greedy.clone(), key(9)),
        (modest.clone(), key(2)),
        (greedy, key(9)),
        (modest, key(2)),
    ] {
        world.kube(KubeEvent::NodeApplied(meta));
        while world.run_kernel() {
            world.kernel.assert_disjoint();
        }
        world.assert_quiescent();
        let holder = world.kernel.state.peers.iter().find(|(_, p)| {
            let mut overlapping = p.allowed_ips.iter();
            overlapping.any(|ip| meshd_model::net::overlaps(*ip, part.parse().unwrap()))
        });
        assert_eq!(holder.map(|(key, _)| *key), Some(owner));
    }
}
