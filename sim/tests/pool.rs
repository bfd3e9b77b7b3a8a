//! IPAM's pool mode: nodes claim their blocks for themselves, all at one moment, through outages, more as they fill and
//! fewer as they empty; that no address is held twice, and each lies in a block of its node, is checked at every lease.

mod common;

use common::*;
use ipnetwork::IpNetwork;
use meshd_apiserver::Request;
use meshd_core::Pool;
use meshd_model::block;
use meshd_model::net::Family;
use meshd_scenario::Arm;
use meshd_sim::{Config, SimArm};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const BLOCKS: &str = "/apis/meshd.dev/v1alpha1/ipblocks";
/// Addresses of a /28 that pods may have, and of a /29.
const IN_28: usize = 13;
const IN_29: usize = 5;

fn config(nodes: usize, seed: u64, v4: &str, size: u8) -> Config {
    let mut config = Config::new(nodes, seed);
    config.families = BTreeSet::from([Family::V4]);
    config.pod_cidrs[0] = v4.parse().unwrap();
    config.pool = Some(Pool {
        block_sizes: BTreeMap::from([(Family::V4, size)]),
        return_after: s(30),
        rest: s(10),
    });
    config
}

/// Every block that has an object, and whose it is.
fn blocks(arm: &mut SimArm) -> BTreeMap<IpNetwork, String> {
    let list = arm.sim_mut().admin(Request::get(BLOCKS)).unwrap();
    let items = list["items"].as_array().unwrap();
    let read = |item: &Value| {
        let name = item["metadata"]["name"].as_str().unwrap();
        (
            block::parse(name).unwrap(),
            item["spec"]["node"].as_str().unwrap().to_owned(),
        )
    };
    items.iter().map(read).collect()
}

fn count_of(arm: &mut SimArm, node: usize) -> usize {
    let name = arm.nodes()[node].to_string();
    blocks(arm).values().filter(|owner| **owner == name).count()
}

/// What the agents say of themselves agrees with the objects.
#[track_caller]
fn agree(arm: &mut SimArm) {
    let held = blocks(arm);
    let mut said = BTreeMap::new();
    for node in arm.nodes() {
        for cidr in arm.status(&node).unwrap().pod_cidrs {
            let before = said.insert(cidr, node.to_string());
            assert_eq!(before, None, "{cidr} is of two nodes");
        }
    }
    assert_eq!(said, held);
}

#[test]
fn a_hundred_nodes_that_start_at_once_all_get_blocks_of_their_own() {
    // 128 blocks for 100 nodes: the last have few left to find.
    let mut arm = SimArm::new(config(100, 1, "10.128.0.0/21", 28));
    all_ready(&mut arm);
    arm.wait(s(5));
    let of: BTreeSet<String> = blocks(&mut arm).into_values().collect();
    assert_eq!((of.len(), blocks(&mut arm).len()), (100, 100));
    agree(&mut arm);
    println!("ready after {:?}", arm.elapsed());
}

#[test]
fn both_families_and_pods_that_reach_each_other() {
    let mut config = Config::new(5, 3);
    config.pool = Some(Pool {
        block_sizes: BTreeMap::from([(Family::V4, 26), (Family::V6, 122)]),
        return_after: s(600),
        rest: s(60),
    });
    let (mut arm, pods) = cluster(config, 2);
    assert!(pods.iter().all(|p| p.addresses.len() == 2));
    all_reach(&mut arm, &pods, s(10));
    assert_eq!(blocks(&mut arm).len(), 10);
}

fn fill_and_empty(seed: u64) {
    // 16 blocks for 8 nodes, 5 pods a block.
    let mut arm = SimArm::new(config(8, seed, "10.128.0.0/25", 29));
    all_ready(&mut arm);
    let node = arm.nodes()[0].clone();
    let first = arm.status(&node).unwrap().pod_cidrs;
    let mut pods: Vec<_> = (0..4 * IN_29)
        .map(|n| arm.add_pod(&node, &format!("p{n}")).unwrap())
        .collect();
    assert!(count_of(&mut arm, 0) >= 4);
    all_reach(&mut arm, &pods[..3], s(10));
    // An outage and a restart in between change nothing of who has what.
    arm.set_api_server(false).unwrap();
    arm.kill_agent(&node).unwrap();
    arm.start_agent(&node).unwrap();
    arm.wait(s(3));
    arm.set_api_server(true).unwrap();
    arm.wait_ready(&node, s(60)).unwrap();
    agree(&mut arm);
    assert_eq!(
        arm.status(&node).unwrap().pod_cidrs[0],
        first[0],
        "the first stays the first"
    );
    for pod in pods.drain(..) {
        arm.delete_pod(&pod).unwrap();
    }
    // Empty for 30 s, then one after the other rests for 10 s.
    arm.wait(s(200));
    assert_eq!(arm.status(&node).unwrap().pod_cidrs, first);
    assert_eq!(count_of(&mut arm, 0), 1);
    agree(&mut arm);
    // Another node has use for them.
    let other = arm.nodes()[5].clone();
    for n in 0..5 * IN_29 {
        arm.add_pod(&other, &format!("q{n}")).unwrap();
    }
    agree(&mut arm);
    assert_eq!(arm.sim().violation(), None);
}

#[test]
fn a_node_that_fills_claims_more_and_gives_back_what_is_empty() {
    for seed in 1..6 {
        fill_and_empty(seed);
    }
}

#[test]
fn a_node_that_is_gone_leaves_its_blocks_and_one_made_again_has_new_ones() {
    let mut arm = SimArm::new(config(3, 7, "10.128.0.0/26", 28));
    all_ready(&mut arm);
    let [one, two, three] = [0, 1, 2].map(|n| arm.nodes()[n].clone());
    let pod = arm.add_pod(&two, "kept").unwrap();
    let of_two = arm.status(&two).unwrap().pod_cidrs[0];
    arm.recreate_node(&two).unwrap();
    arm.wait_ready(&two, s(60)).unwrap();
    arm.wait(s(15));
    // The pod that runs has its address still, so the node has its block again.
    assert_eq!(blocks(&mut arm).get(&of_two), Some(&two.to_string()));
    assert!(
        arm.status(&two)
            .unwrap()
            .attachments
            .iter()
            .any(|a| a.addresses == pod.addresses)
    );
    agree(&mut arm);
    // And for good: its blocks rest, then the others have them.
    arm.kill_agent(&three).unwrap();
    arm.sim_mut()
        .admin(Request::delete(format!("/api/v1/nodes/{three}")))
        .unwrap();
    assert_eq!(count_of(&mut arm, 2), 0);
    arm.wait(s(12));
    let taken = blocks(&mut arm).len();
    for n in 0..(4 - taken + 1) * IN_28 {
        arm.add_pod(&one, &format!("p{n}")).unwrap();
    }
    assert_eq!(blocks(&mut arm).len(), 4);
}

#[test]
fn what_is_kept_outlives_a_node_that_is_registered_again_and_stops_nobody() {
    for gone_for in [s(1), s(30)] {
        let mut arm = SimArm::new(config(2, 11, "10.128.0.0/26", 28));
        all_ready(&mut arm);
        let node = arm.nodes()[1].clone();
        let keeps = json!({ "meshd.dev/keep-address": "true" });
        let before = arm.add_annotated_pod(&node, "web-0", &keeps).unwrap();
        arm.delete_pod(&before).unwrap();
        arm.sim_mut()
            .admin(Request::delete(format!("/api/v1/nodes/{node}")))
            .unwrap();
        arm.wait(gone_for);
        arm.sim_mut().create_node(1).unwrap();
        arm.wait_ready(&node, s(60)).unwrap();
        agree(&mut arm);
        arm.add_pod(&node, "other").unwrap();
        let again = arm.add_annotated_pod(&node, "web-0", &keeps).unwrap();
        assert_eq!(again.addresses, before.addresses, "gone for {gone_for:?}");
    }
}

#[test]
fn too_few_blocks_are_said_to_be_too_few_and_hurt_nobody_who_has_one() {
    let mut arm = SimArm::new(config(5, 9, "10.128.0.0/26", 28));
    arm.wait(s(30));
    let ready: Vec<bool> = (0..5).map(|n| arm.sim().is_ready(n)).collect();
    assert_eq!(ready.iter().filter(|r| **r).count(), 4, "{ready:?}");
    let without = arm.nodes()[ready.iter().position(|r| !r).unwrap()].clone();
    let said = problems(&mut arm, &without);
    assert!(
        said.contains("hold 4 IPv4 blocks: 4 are taken (0 of them by this node)"),
        "{said}"
    );
    // A node with one goes: its block rests, then the one without has it.
    let gone = arm.nodes()[ready.iter().position(|r| *r).unwrap()].clone();
    arm.kill_agent(&gone).unwrap();
    arm.sim_mut()
        .admin(Request::delete(format!("/api/v1/nodes/{gone}")))
        .unwrap();
    arm.wait(s(8));
    assert!(arm.wait_ready(&without, s(1)).is_err(), "the block rests");
    arm.wait_ready(&without, s(60)).unwrap();
    let kept: Vec<_> = arm.nodes().into_iter().filter(|n| *n != gone).collect();
    let pods: Vec<_> = kept
        .iter()
        .map(|n| arm.add_pod(n, &format!("on-{n}")).unwrap())
        .collect();
    all_reach(&mut arm, &pods, s(20));
}

#[test]
fn blocks_are_nobodys_twice_while_the_api_server_comes_and_goes() {
    for seed in 20..26 {
        let mut arm = SimArm::new(config(12, seed, "10.128.0.0/25", 29));
        for step in 0..12_u64 {
            arm.wait(ms(300 + 170 * ((seed + step) % 7)));
            arm.set_api_server(step % 2 == 1).unwrap();
            let node = arm.nodes()[usize::try_from((seed + step) % 12).unwrap()].clone();
            if step % 3 == 0 {
                arm.kill_agent(&node).unwrap();
                arm.wait(ms(40));
                arm.start_agent(&node).unwrap();
            }
        }
        arm.set_api_server(true).unwrap();
        all_ready(&mut arm);
        arm.wait(s(120));
        agree(&mut arm);
        let pods = add_pods(&mut arm, 2);
        all_reach(&mut arm, &pods[..6], s(20));
        assert_eq!(arm.sim().violation(), None, "seed {seed}");
    }
}
