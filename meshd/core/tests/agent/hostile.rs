//! What a node may write on its Node, true or not, and what comes of it on the others.

use crate::world::{World, annotations, config, key, node, own_node};
use meshd_core::KubeEvent;
use meshd_model::net::Family;
use meshd_model::{AnnotationProblem, NodeMeta};

/// Node 2 claims these pod CIDRs and node addresses; returns what it got, and what is said of it.
fn claim(pod_cidrs: &[&str], node_addresses: &[&str]) -> (Vec<String>, Vec<String>) {
    let mut world = World::ready(2);
    let mut liar = node(2);
    let published = liar.annotations.as_mut().unwrap();
    published.pod_cidrs = pod_cidrs.iter().map(|t| t.parse().unwrap()).collect();
    published.node_addresses = node_addresses.iter().map(|t| t.parse().unwrap()).collect();
    world.kube(KubeEvent::NodeApplied(liar));
    world.assert_quiescent();
    assert_eq!(
        world.allowed(1),
        ["10.244.1.0/24", "172.18.0.3/32", "fd00:244:0:1::/64"],
        "node 1 is not harmed"
    );
    assert!(world.agent.is_ready());
    let said = world
        .problems()
        .into_iter()
        .filter(|p| p.subject == "node/node-2")
        .map(|p| p.message);
    (world.allowed(2), said.collect())
}

#[test]
fn what_a_peer_may_not_claim() {
    for (cidr, why) in [
        ("0.0.0.0/0", "outside of the cluster's pod CIDRs"),
        ("::/0", "outside of the cluster's pod CIDRs"),
        ("10.244.0.0/16", "a whole pod CIDR of the cluster"),
        ("10.96.0.0/12", "outside of the cluster's pod CIDRs"),
        ("10.96.0.0/24", "outside of the cluster's pod CIDRs"),
        ("10.244.1.0/24", "the older node node-1 has a part"),
        ("10.244.1.128/25", "the older node node-1 has a part"),
        ("10.244.0.0/23", "wider than a node's pod CIDR, which is a /24"),
        ("10.244.0.0/17", "wider than a node's pod CIDR, which is a /24"),
        ("10.244.128.0/17", "wider than a node's pod CIDR, which is a /24"),
        ("fd00:244:8000::/49", "outside of the cluster's pod CIDRs"),
        (
            "fd00:244:0:8000::/49",
            "wider than a node's pod CIDR, which is a /64",
        ),
        ("10.244.0.0/24", "the older node node-0 has a part"),
        ("fd00:244::/64", "the older node node-0 has a part"),
    ] {
        let (got, said) = claim(&["10.244.2.0/24", cidr], &["172.18.0.4"]);
        assert_eq!(got, ["10.244.2.0/24", "172.18.0.4/32"], "{cidr}");
        assert!(
            said.len() == 1 && said[0].contains(cidr) && said[0].contains(why),
            "{cidr}: {said:?}"
        );
    }
}

#[test]
fn what_addresses_a_peer_may_not_claim() {
    for (address, why) in [
        ("0.0.0.0", "not an address that other nodes can reach"),
        ("127.0.0.1", "not an address that other nodes can reach"),
        ("169.254.1.1", "not an address that other nodes can reach"),
        ("fe80::1", "not an address that other nodes can reach"),
        ("ff02::1", "not an address that other nodes can reach"),
        ("10.96.0.1", "within the service CIDR"),
        ("10.244.7.7", "within the cluster's pod CIDR"),
        ("172.18.0.2", "an address of this node"),
        ("172.18.0.3", "the older node node-1 has a part"),
    ] {
        let (got, said) = claim(&["10.244.2.0/24"], &["172.18.0.4", address]);
        assert_eq!(got, ["10.244.2.0/24", "172.18.0.4/32"], "{address}");
        assert!(
            said.len() == 1 && said[0].contains(address) && said[0].contains(why),
            "{address}: {said:?}"
        );
    }
}

#[test]
fn more_claims_than_fit_are_cut_off() {
    let cidrs: Vec<_> = (0..80).map(|i| format!("10.244.{}.0/24", i + 100)).collect();
    let (got, said) = claim(&cidrs.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    assert_eq!(got.len(), 64);
    assert_eq!(said, ["it claims 80 pod CIDRs: only the first 64 count"]);
}

#[test]
fn an_older_node_gets_what_is_ours_and_we_say_so() {
    let mut world = World::ready(1);
    let mut elder = NodeMeta {
        created: 1,
        ..node(2)
    };
    elder.annotations.as_mut().unwrap().pod_cidrs = vec!["10.244.0.0/24".parse().unwrap()];
    world.kube(KubeEvent::NodeApplied(elder.clone()));
    world.assert_quiescent();
    assert_eq!(world.allowed(2), ["10.244.0.0/24", "172.18.0.4/32"]);
    assert!(!world.agent.is_ready());
    assert!(world.complains(
        "node/node-0",
        "the older node node-2 claims the own pod CIDR 10.244.0.0/24"
    ));
    let refused = world.add("web").unwrap_err();
    assert!(refused.msg.contains("node-2"), "{refused}");
    world.kube(KubeEvent::NodeDeleted(elder.name));
    world.assert_quiescent();
    assert!(world.agent.is_ready() && world.add("web").is_ok());
}

#[test]
fn our_own_key_at_another_node_is_refused_whoever_is_older() {
    for created in [1, 5000] {
        let mut world = World::ready(1);
        let mut thief = NodeMeta { created, ..node(2) };
        thief.annotations.as_mut().unwrap().public_key = key(200);
        world.kube(KubeEvent::NodeApplied(thief));
        world.assert_quiescent();
        assert!(!world.kernel.state.peers.contains_key(&key(200)));
        assert!(world.complains("node/node-2", "this node's own key"));
        assert!(!world.routes().iter().any(|r| r.contains("10.244.2.0/24")));
    }
}

#[test]
fn of_two_nodes_with_one_key_the_older_has_it() {
    let mut world = World::ready(2);
    let mut twin = node(3);
    twin.annotations.as_mut().unwrap().public_key = key(1);
    world.kube(KubeEvent::NodeApplied(twin));
    world.assert_quiescent();
    assert_eq!(
        world.allowed(1),
        ["10.244.1.0/24", "172.18.0.3/32", "fd00:244:0:1::/64"]
    );
    assert!(world.complains("node/node-3", "the key of the older node node-1"));
    assert!(!world.routes().iter().any(|r| r.contains("10.244.3.0/24")));
    world.kube(KubeEvent::NodeDeleted("node-1".into()));
    world.assert_quiescent();
    assert_eq!(
        world.allowed(1),
        ["10.244.3.0/24", "172.18.0.5/32", "fd00:244:0:3::/64"]
    );
    assert_eq!(world.problems(), []);
}

#[test]
fn a_node_made_again_under_its_name_replaces_its_peer_at_once() {
    let mut world = World::ready(2);
    world.forget_done();
    let mut again = NodeMeta {
        uid: "uid-again".into(),
        created: 9000,
        ..node(1)
    };
    again.annotations.as_mut().unwrap().public_key = key(101);
    world.kube(KubeEvent::NodeApplied(again));
    world.assert_quiescent();
    assert!(!world.kernel.state.peers.contains_key(&key(1)));
    assert_eq!(
        world.allowed(101),
        ["10.244.1.0/24", "172.18.0.3/32", "fd00:244:0:1::/64"]
    );
    assert!(
        !world.done.iter().any(|d| d.contains("route")),
        "the routes stay: {:?}",
        world.done
    );
    assert_eq!(world.problems(), []);
}

#[test]
fn a_node_without_a_usable_key_is_unreachable_not_unencrypted() {
    let malformed = AnnotationProblem::Malformed {
        key: "meshd.dev/public-key".into(),
        value: "x".into(),
        reason: "no key".into(),
    };
    for (problem, said) in [
        (
            AnnotationProblem::Absent,
            "node/node-1 has no key: unreachable, not unencrypted",
        ),
        (malformed, "public-key is \"x\""),
    ] {
        let mut world = World::ready(2);
        world.forget_done();
        world.kube(KubeEvent::NodeApplied(NodeMeta {
            annotations: Err(problem),
            ..node(1)
        }));
        world.assert_quiescent();
        assert!(world.complains("node/node-1", said), "{:?}", world.problems());
        assert!(!world.kernel.state.peers.contains_key(&key(1)));
        assert_eq!(
            world.done,
            [
                "remove route 10.244.1.0/24 dev meshd0 src 10.244.0.1 metric 50 mtu 1440",
                "remove route fd00:244:0:1::/64 dev meshd0 src fd00:244::1 metric 50 mtu 1440",
                "remove route 172.18.0.3/32 dev meshd0 src 10.244.0.1 metric 50 mtu 1440 table 5182",
                "remove peer 1",
            ]
        );
        assert!(
            world
                .routes()
                .iter()
                .any(|r| r.starts_with("unreachable 10.244.0.0/16"))
        );
        // Its own address is still its, whatever happens to others, for as long as there is this Node.
        let refuses = |world: &World| {
            let route = "unreachable 172.18.0.3/32 metric 4294967294 table 5182";
            world.routes().iter().any(|r| r == route)
        };
        assert!(refuses(&world));
        let mut heir = node(3);
        heir.annotations.as_mut().unwrap().node_addresses = vec!["172.18.0.3".parse().unwrap()];
        world.kube(KubeEvent::NodeApplied(heir));
        world.run();
        assert!(world.allowed(3).contains(&"172.18.0.3/32".to_owned()));
        world.kube(KubeEvent::NodeDeleted("node-3".into()));
        world.kernel.state.underlay[0].address = "172.18.0.200".parse().unwrap();
        world.observe();
        world.assert_quiescent();
        assert!(refuses(&world));
        world.kube(KubeEvent::NodeDeleted("node-1".into()));
        world.assert_quiescent();
        assert!(!refuses(&world));
    }
}

#[test]
fn the_own_nodes_address_is_refused_to_no_pod() {
    // Nor one that another has claimed and now is ours.
    let mut world = World::ready(2);
    assert_eq!(own_refusals(&world), 0);
    world.kernel.state.underlay[0].address = "172.18.0.4".parse().unwrap();
    world.observe();
    world.assert_quiescent();
    assert_eq!(own_refusals(&world), 0);
}

/// Refusals of this node's addresses.
fn own_refusals(world: &World) -> usize {
    let own = &world.kernel.state.underlay[0].address.to_string();
    let mine = |r: &&String| {
        r.starts_with(&format!("unreachable {own}/32")) || r.starts_with("unreachable 172.18.0.2/")
    };
    world.routes().iter().filter(mine).count()
}

#[test]
fn seniority_is_the_same_on_both_sides() {
    // Node 2 claims what node 1 has; seen from node 0, then from node 1 itself.
    let overlap = "10.244.1.0/24";
    let mut world = World::ready(1);
    let mut liar = node(2);
    liar.annotations
        .as_mut()
        .unwrap()
        .pod_cidrs
        .push(overlap.parse().unwrap());
    world.kube(KubeEvent::NodeApplied(liar.clone()));
    world.run();
    assert!(world.allowed(1).contains(&overlap.to_owned()));

    let mut victim = World::new(meshd_core::Config {
        node: "node-1".into(),
        ..config()
    });
    let mut own = own_node();
    let of_node_1 = annotations(1);
    (own.name, own.uid, own.created) = ("node-1".into(), "uid-001".into(), 1001);
    (own.pod_cidrs, own.internal_ips) = (of_node_1.pod_cidrs, of_node_1.node_addresses);
    victim.own = Some(own);
    victim.kube(KubeEvent::NodeApplied(liar));
    victim.sync(0);
    victim.kube(KubeEvent::NodesReset);
    victim.kube(KubeEvent::NodeApplied(node(2)));
    victim.kube(KubeEvent::NodesSynced);
    victim.run();
    assert!(!victim.allowed(2).contains(&overlap.to_owned()));
    assert!(victim.agent.is_ready());
}

#[test]
fn what_endpoints_a_peer_may_not_have() {
    for (endpoint, why) in [
        ("172.18.0.2", "an address of this node"),
        ("127.0.0.1", "not an address that other nodes can reach"),
        ("169.254.1.1", "not an address that other nodes can reach"),
        ("10.244.1.9", "within the cluster's pod CIDR"),
        ("10.96.0.1", "within the service CIDR"),
    ] {
        let mut world = World::ready(2);
        let mut liar = node(2);
        liar.annotations.as_mut().unwrap().endpoints = vec![endpoint.parse().unwrap()];
        world.kube(KubeEvent::NodeApplied(liar.clone()));
        world.assert_quiescent();
        let said = format!("it claims endpoint {endpoint}: it ");
        assert!(
            world.complains("node/node-2", &said) && world.complains("node/node-2", why),
            "{endpoint}"
        );
        assert!(!world.kernel.state.peers.contains_key(&key(2)), "{endpoint}");

        // With another one beside it, that one is used.
        let good = "172.18.0.4".parse().unwrap();
        liar.annotations.as_mut().unwrap().endpoints.push(good);
        world.kube(KubeEvent::NodeApplied(liar));
        world.assert_quiescent();
        let peer = &world.kernel.state.peers[&key(2)];
        assert_eq!(peer.endpoint.unwrap().ip(), good);
    }
}

#[test]
fn a_peer_claims_no_address_outside_of_the_nodes_own() {
    let mut config = config();
    config.node_cidrs = vec!["172.18.0.0/24".parse().unwrap()];
    config.node_mask_sizes = [(Family::V4, 25)].into();
    let mut world = World::new(config);
    world.sync(2);
    assert!(world.complains(
        "node/node-2",
        "10.244.2.0/24: it is wider than a node's pod CIDR, which is a /25"
    ));
    assert_eq!(world.allowed(2), ["172.18.0.4/32", "fd00:244:0:2::/64"]);
    let mut liar = node(2);
    liar.annotations
        .as_mut()
        .unwrap()
        .node_addresses
        .push("8.8.8.8".parse().unwrap());
    world.kube(KubeEvent::NodeApplied(liar));
    world.assert_quiescent();
    assert!(world.complains("node/node-2", "it claims 8.8.8.8: it lies outside of node_cidrs"));
    assert_eq!(world.allowed(2), ["172.18.0.4/32", "fd00:244:0:2::/64"]);
}
