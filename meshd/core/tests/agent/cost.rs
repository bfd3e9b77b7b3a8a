//! What an event costs, counted.

use crate::world::{World, annotations};
use meshd_core::KubeEvent;
use meshd_model::{NodeMeta, PublicKey};

fn big_node(n: u16) -> NodeMeta {
    let [high, low] = n.to_be_bytes();
    let mut published = annotations(0);
    let mut bytes = [1; 32];
    bytes[..2].copy_from_slice(&[high, low]);
    published.public_key = PublicKey(bytes);
    published.endpoints = vec![format!("172.19.{high}.{low}").parse().unwrap()];
    published.node_addresses = published.endpoints.clone();
    published.pod_cidrs = vec![
        format!("10.244.{}.{}/26", n / 4 + 1, n % 4 * 64).parse().unwrap(),
        format!("fd00:244:0:{n:x}::/64").parse().unwrap(),
    ];
    NodeMeta {
        name: format!("big-{n}").as_str().into(),
        uid: format!("uid-{n}").as_str().into(),
        created: 2000 + i64::from(n),
        annotations: Ok(published),
    }
}

#[test]
fn one_peers_change_costs_the_same_among_ten_and_a_thousand() {
    let costs = [10, 1000].map(|nodes| {
        let mut world = World::ready(0);
        for n in 1..=nodes {
            world.kube(KubeEvent::NodeApplied(big_node(n)));
        }
        world.run();
        assert_eq!(world.kernel.state.peers.len(), usize::from(nodes));
        world.forget_done();
        let before = world.agent.reconciled_keys();
        let mut moved = big_node(5);
        moved.annotations.as_mut().unwrap().endpoints = vec!["172.20.0.1".parse().unwrap()];
        world.kube(KubeEvent::NodeApplied(moved));
        world.run();
        assert_eq!(world.outputs.len(), 1, "{:?}", world.done);

        world.kube(KubeEvent::NodeDeleted("big-7".into()));
        world.run();
        assert_eq!(world.outputs.len(), 6, "{:?}", world.done);

        let cost = world.agent.reconciled_keys() - before;
        (cost, world.outputs.len())
    });
    assert_eq!(costs[0], costs[1]);
    assert!(costs[0].0 < 30, "{costs:?}");
}
