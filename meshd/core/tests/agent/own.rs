//! This node: pod CIDRs, endpoints, MTU, what it publishes, and the API server that is away.

use crate::world::{World, add, attachment, config, key, node, own_node};
use meshd_core::{CniCall, Config, Endpoints, KubeEvent};
use meshd_model::cni::code;
use meshd_model::kernel::UnderlayAddress;
use meshd_model::{AnnotationProblem, NodeMeta};
use std::time::Duration;

fn publications(world: &World) -> usize {
    world.done.iter().filter(|d| d.starts_with("publish")).count()
}

#[test]
fn a_node_without_pod_cidrs_waits_and_says_so() {
    let mut world = World::new(config());
    world.own.as_mut().unwrap().pod_cidrs.clear();
    world.sync(1);
    assert!(!world.agent.is_ready());
    assert!(world.complains("node/node-0", "no podCIDRs"));
    assert_eq!(world.add("web").unwrap_err().code, code::TRY_AGAIN);
    assert_eq!(publications(&world), 0);
    assert!(world.kernel.state.firewall.is_some(), "closed all the same");
    world.own = Some(own_node());
    world.tell_own();
    world.run();
    assert!(world.agent.is_ready() && world.add("web").is_ok());
}

#[test]
fn pod_cidrs_outside_of_the_clusters_are_refused() {
    let mut world = World::new(config());
    world.own.as_mut().unwrap().pod_cidrs =
        vec!["10.250.0.0/24".parse().unwrap(), "10.244.9.0/31".parse().unwrap()];
    world.sync(0);
    assert!(!world.agent.is_ready());
    assert!(world.complains(
        "node/node-0",
        "10.250.0.0/24 of this node is not used: it lies outside"
    ));
    assert!(world.complains(
        "node/node-0",
        "10.244.9.0/31 of this node is not used: it holds fewer"
    ));
}

#[test]
fn a_node_that_loses_its_pod_cidrs_keeps_its_pods_and_takes_no_more() {
    let mut world = World::ready(1);
    world.add("web").unwrap();
    let before = world.kernel.state.clone();
    world.own.as_mut().unwrap().pod_cidrs.clear();
    world.tell_own();
    world.assert_quiescent();
    assert_eq!(world.kernel.state, before);
    assert!(!world.agent.is_ready());
    world.kube(KubeEvent::OwnNodeDeleted);
    world.assert_quiescent();
    assert_eq!(world.kernel.state, before);
    assert!(world.complains("node/node-0", "gone from the API server"));
}

#[test]
fn new_pod_cidrs_move_the_overlay_addresses() {
    let mut world = World::ready(1);
    let added = world.add("web").unwrap();
    let own = world.own.as_mut().unwrap();
    own.uid = "uid-again".into();
    own.pod_cidrs = vec!["10.244.77.0/24".parse().unwrap()];
    own.published = Err(AnnotationProblem::Absent);
    world.tell_own();
    world.assert_quiescent();
    let device = world.kernel.state.device.as_ref().unwrap();
    assert_eq!(device.addresses, ["10.244.77.1".parse().unwrap()].into());
    assert!(
        world
            .routes()
            .iter()
            .any(|r| r == "10.244.1.0/24 dev meshd0 src 10.244.77.1 metric 50 mtu 1440")
    );
    assert!(
        !world.routes().iter().any(|r| r.contains("fd00:244:0:1::/64")),
        "no own address in that family"
    );
    let rules: Vec<_> = world
        .kernel
        .state
        .rules
        .iter()
        .map(|r| r.from.to_string())
        .collect();
    assert_eq!(rules, ["10.244.77.0/24"]);
    assert_eq!(
        world
            .own
            .as_ref()
            .unwrap()
            .published
            .as_ref()
            .unwrap()
            .pod_cidrs
            .len(),
        1
    );
    assert_eq!(world.check("web", &added), Ok(()), "a lease outlives its CIDR");
    assert_eq!(world.add("new").unwrap().ips[0].0.to_string(), "10.244.77.2/32");
}

#[test]
fn annotations_that_another_hand_changes_are_mended_ever_more_slowly() {
    let mut world = World::ready(0);
    assert_eq!(publications(&world), 1);
    let undo = |world: &mut World| {
        world.own.as_mut().unwrap().published = Err(AnnotationProblem::Absent);
        world.tell_own();
        world.run();
    };
    undo(&mut world);
    assert_eq!(publications(&world), 2, "the first time at once");
    for _ in 0..3 {
        undo(&mut world);
    }
    assert_eq!(publications(&world), 2);
    world.wait(Duration::from_secs(5));
    assert_eq!(publications(&world), 3);
    assert!(world.complains("node/node-0", "another hand has changed"));
    assert!(world.own.as_ref().unwrap().published.is_ok());
}

#[test]
fn a_publication_that_fails_is_tried_again_and_shown() {
    let mut world = World::new(config());
    world.kube_down = true;
    world.sync(0);
    assert_eq!(
        world.agent.not_ready().as_deref(),
        Some("the node's key has not been published: no other node could reach its pods")
    );
    world.see_pod("early");
    assert_eq!(world.add("early").unwrap_err().code, code::TRY_AGAIN);
    assert_eq!(world.agent.cni_status().unwrap_err().code, code::NOT_AVAILABLE);
    assert!(world.complains("api-server", "failed once"));
    world.wait(Duration::from_secs(10));
    assert!(publications(&world) > 3);
    assert!(publications(&world) < 8, "with back-off");
    world.kube_down = false;
    world.wait(Duration::from_secs(60));
    assert!(world.own.as_ref().unwrap().published.is_ok());
    assert_eq!(world.problems(), []);
    assert!(world.add("early").is_ok());
    // From now on it changes nothing that the API server is away, or that another hand takes the annotations off.
    world.kube_down = true;
    world.own.as_mut().unwrap().published = Err(AnnotationProblem::Absent);
    world.tell_own();
    world.wait(Duration::from_secs(60));
    assert!(world.agent.is_ready());
    // A Node that is made again is another one.
    world.own.as_mut().unwrap().uid = "uid-again".into();
    world.tell_own();
    world.wait(Duration::from_secs(60));
    assert!(!world.agent.is_ready());
    // What an agent that was started again finds published is enough.
    world.kube_down = false;
    world.wait(Duration::from_secs(60));
    world.kube_down = true;
    world.restart();
    world.run();
    assert!(!world.agent.is_ready(), "it has seen nothing");
    world.sync(0);
    assert!(world.agent.is_ready());
    // But not what was published of another key.
    world.restart();
    world.own.as_mut().unwrap().published.as_mut().unwrap().public_key = key(9);
    world.sync(0);
    assert!(!world.agent.is_ready());
}

#[test]
fn a_lost_api_server_changes_nothing_for_pods_that_were_seen() {
    let mut world = World::ready(1);
    world.see_pod("seen");
    world.add("old").unwrap();
    world.kube(KubeEvent::Unreachable {
        message: "timed out".into(),
    });
    world.wait(Duration::from_secs(300));
    assert!(world.agent.is_ready());
    assert!(world.complains("api-server", "timed out"));
    assert!(world.answer(CniCall::Add(add("seen"))).is_ok());
    assert_eq!(world.del("old"), Ok(()));

    let request = world.ask(CniCall::Add(add("unseen")));
    world.wait(Duration::from_secs(9));
    assert!(!world.replies.contains_key(&request));
    world.wait(Duration::from_secs(1));
    let refused = world.replies[&request].clone().unwrap_err();
    assert_eq!(refused.code, code::TRY_AGAIN);
    assert!(refused.details.contains("timed out"), "{refused}");
    world.tell_own();
    assert_eq!(world.problems(), []);
}

#[test]
fn a_pod_must_be_this_incarnation_and_named() {
    let mut world = World::ready(0);
    world.see_pod("web");
    let mut other = add("web");
    other.pod.as_mut().unwrap().uid = "another".into();
    let request = world.ask(CniCall::Add(other));
    world.wait(Duration::from_secs(10));
    assert_eq!(
        world.replies[&request].as_ref().unwrap_err().code,
        code::TRY_AGAIN
    );
    let mut nameless_uid = add("web");
    nameless_uid.pod.as_mut().unwrap().uid.clear();
    assert!(world.answer(CniCall::Add(nameless_uid)).is_ok());
    let mut unnamed = add("tool");
    unnamed.pod = None;
    assert_eq!(
        world.answer(CniCall::Add(unnamed.clone())).unwrap_err().code,
        code::ENVIRONMENT
    );

    let mut world = World::new(Config {
        allow_unnamed_pods: true,
        ..config()
    });
    world.sync(0);
    assert!(world.answer(CniCall::Add(unnamed)).is_ok());
    assert_eq!(world.answer(CniCall::Del(attachment("tool"))), Ok(None));
}

#[test]
fn endpoints_and_mtu_follow_the_underlay() {
    let endpoints = Endpoints::Cidr("192.168.0.0/16".parse().unwrap());
    let mut world = World::new(Config {
        endpoints,
        ..config()
    });
    let address = |address: &str, ifname: &str, mtu| UnderlayAddress {
        address: address.parse().unwrap(),
        ifname: ifname.into(),
        mtu,
        default_route: false,
        passing: false,
    };
    world
        .kernel
        .state
        .underlay
        .push(address("192.168.5.5", "eth1", 9000));
    world.sync(1);
    let published = |world: &World| world.own.as_ref().unwrap().published.clone().unwrap();
    assert_eq!(
        published(&world).endpoints,
        ["192.168.5.5".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(published(&world).mtu, 8940);
    world.add("web").unwrap();

    // One that is passing is left out, and the Node's own comes before one that sorts before it.
    let stray = address("192.168.5.4", "eth1", 9000);
    let passing = UnderlayAddress {
        passing: true,
        ..address("192.168.5.3", "eth1", 9000)
    };
    world.kernel.state.underlay.extend([stray, passing]);
    world
        .own
        .as_mut()
        .unwrap()
        .internal_ips
        .push("192.168.5.5".parse().unwrap());
    world.tell_own();
    world.observe();
    world.assert_quiescent();
    let in_order = ["192.168.5.5", "192.168.5.4"].map(|a| a.parse::<std::net::IpAddr>().unwrap());
    assert_eq!(published(&world).endpoints, in_order);
    world.kernel.state.underlay.truncate(2);

    // The address moves, the link narrows: republished, and running pods follow.
    world.kernel.state.underlay[1] = address("192.168.6.6", "eth1", 1400);
    world.observe();
    world.assert_quiescent();
    assert_eq!(
        published(&world).endpoints,
        ["192.168.6.6".parse::<std::net::IpAddr>().unwrap()]
    );
    assert!(world.kernel.state.pod_links.values().all(|l| l.mtu == 1340));
    assert!(
        world
            .routes()
            .iter()
            .all(|r| r.contains("mtu 1340") || r.starts_with("unreachable"))
    );

    // Any IPv6 endpoint in the cluster costs 20 bytes more, for all alike.
    let mut six = node(1);
    six.annotations
        .as_mut()
        .unwrap()
        .endpoints
        .push("fc00::3".parse().unwrap());
    world.kube(KubeEvent::NodeApplied(six));
    world.assert_quiescent();
    assert_eq!(published(&world).mtu, 1320);

    // No address left: nothing false is published, and it is said.
    world.kernel.state.underlay.pop();
    world.observe();
    world.run();
    assert!(world.complains("node/node-0", "no address at which peers can reach it"));
}

#[test]
fn the_mtu_without_an_endpoint_on_an_interface_is_that_of_the_way_out() {
    // The InternalIP is a NAT's: no interface carries it. A container bridge and another tunnel say nothing.
    let mut world = World::new(config());
    let address = |address: &str, ifname: &str, mtu, default_route| UnderlayAddress {
        address: address.parse().unwrap(),
        ifname: ifname.into(),
        mtu,
        default_route,
        passing: false,
    };
    world.kernel.state.underlay = vec![
        address("172.17.0.1", "docker0", 1400, false),
        address("192.168.5.5", "eth0", 9000, true),
        address("100.64.0.7", "tailscale0", 1280, false),
    ];
    world.sync(0);
    let published = |world: &World| world.own.as_ref().unwrap().published.clone().unwrap();
    assert_eq!(published(&world).mtu, 8940);
    // Without a default route nothing tells them apart: the smallest is safe.
    world.kernel.state.underlay[1].default_route = false;
    world.kernel.state.underlay[2].mtu = 1380;
    world.observe();
    world.assert_quiescent();
    assert_eq!(published(&world).mtu, 1320);
}

#[test]
fn an_underlay_too_narrow_for_ipv6_is_reported() {
    let mut world = World::new(config());
    world.kernel.state.underlay[0].mtu = 1300;
    world.sync(0);
    assert_eq!(world.kernel.state.device.as_ref().unwrap().mtu, 1280);
    assert!(world.complains("node/node-0", "the underlay's MTU of 1300"));
}

#[test]
fn a_peer_without_a_common_family_is_reported() {
    let mut world = World::ready(0);
    let mut six = node(1);
    six.annotations.as_mut().unwrap().endpoints = vec!["fc00::3".parse().unwrap()];
    world.kube(KubeEvent::NodeApplied(six));
    world.assert_quiescent();
    assert!(world.complains("node/node-1", "no endpoint that this node can send to"));
    assert!(world.kernel.state.peers.is_empty());
    world.kube(KubeEvent::NodeApplied(NodeMeta { ..node(1) }));
    world.assert_quiescent();
    assert_eq!(world.kernel.state.peers.len(), 1);
}

fn clearings(world: &World) -> usize {
    let cleared = |d: &&String| d.starts_with("clear NetworkUnavailable");
    world.done.iter().filter(cleared).count()
}

#[test]
fn the_network_condition_is_cleared_once_pods_can_be_added() {
    let mut world = World::new(config());
    let own = world.own.as_mut().unwrap();
    own.network_unavailable = true;
    own.pod_cidrs.clear();
    world.sync(1);
    assert_eq!(clearings(&world), 0, "no pod can be added yet");
    world.own = Some(meshd_model::OwnNode {
        network_unavailable: true,
        ..own_node()
    });
    world.tell_own();
    world.run();
    assert!(world.agent.is_ready() && !world.own.as_ref().unwrap().network_unavailable);
    world.tell_own();
    world.run();
    assert_eq!(clearings(&world), 1);
    world.assert_quiescent();
}

#[test]
fn a_network_condition_that_nobody_set_is_left_alone() {
    let mut world = World::ready(1);
    world.tell_own();
    world.wait(Duration::from_secs(120));
    assert_eq!(clearings(&world), 0);
}

#[test]
fn the_network_condition_is_cleared_again_but_not_in_a_race() {
    let mut world = World::ready(1);
    for _ in 0..200 {
        world.own.as_mut().unwrap().network_unavailable = true;
        world.tell_own();
        world.run();
        world.wait(Duration::from_millis(500));
    }
    // 100 s: at once, then after 0.5, 1, 2, 4, 8, 16, 32 s and so on.
    assert!((5..=9).contains(&clearings(&world)), "{}", clearings(&world));
    assert!(world.complains(
        "node/node-0",
        "another hand sets the condition NetworkUnavailable"
    ));
    world.wait(Duration::from_secs(120));
    assert!(!world.own.as_ref().unwrap().network_unavailable);
}

#[test]
fn a_network_condition_that_cannot_be_written_is_tried_again() {
    let mut world = World::ready(1);
    world.kube_down = true;
    world.own.as_mut().unwrap().network_unavailable = true;
    world.tell_own();
    world.run();
    world.wait(Duration::from_secs(20));
    assert!(world.own.as_ref().unwrap().network_unavailable);
    assert!((2..20).contains(&clearings(&world)), "{}", clearings(&world));
    assert!(world.complains("api-server", "failed"));
    world.kube_down = false;
    world.wait(Duration::from_secs(61));
    assert!(!world.own.as_ref().unwrap().network_unavailable);
}
