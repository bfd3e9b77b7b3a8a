//! Bad days in simulated clusters: first nothing unsafe happens, then all heals and gets well.

mod common;

use common::*;
use meshd_apiserver::Request;
use meshd_model::NodeName;
use meshd_scenario::{Arm, Pod};
use meshd_sim::{Config, EIO, Fault, FaultKind, Link, OpKind, Sim, SimArm};
use serde_json::json;

fn of_node(pods: &[Pod], node: &str) -> Pod {
    pods.iter().find(|p| p.node.0 == node).unwrap().clone()
}

#[test]
fn the_api_server_is_absent_at_the_start() {
    let mut sim = Sim::new(Config::new(3, 1));
    sim.set_api_server(false);
    let mut arm = SimArm::start(sim);
    arm.wait(s(120));
    let node = NodeName::from("node-1");
    let refused = arm.wait_ready(&node, s(1)).unwrap_err();
    assert!(refused.0.contains("node-1 is not ready"), "{refused}");
    assert!(
        problems(&mut arm, &node).contains("API server") || problems(&mut arm, &node).contains("api-server")
    );
    arm.set_api_server(true).unwrap();
    all_ready(&mut arm);
    let pods = add_pods(&mut arm, 1);
    all_reach(&mut arm, &pods, s(10));
}

#[test]
fn the_api_server_is_lost_for_minutes() {
    let text = "
name: api-server-lost
steps:
- do: wait-ready
- do: add-pods
  per-node: 2
- do: everyone-reaches-everyone
- do: api-server-away
  node: 2
  for: 5m
  within: 60s
- do: everyone-reaches-everyone
- do: delete-pods
- do: no-residue
";
    holds(text, &mut SimArm::new(Config::new(3, 5)));
}

#[test]
fn a_node_is_created_again_under_its_name() {
    let text = "
name: recreated
steps:
- do: wait-ready
- do: add-pods
  per-node: 1
- do: everyone-reaches-everyone
- do: recreate-node
  node: 2
- do: everyone-reaches-everyone
";
    holds(text, &mut SimArm::new(Config::new(3, 5)));
}

#[test]
fn a_machine_is_replaced_under_its_name_with_another_key() {
    let (mut arm, mut pods) = cluster(Config::new(3, 1), 1);
    all_reach(&mut arm, &pods, s(5));
    arm.sim_mut().reinstall(1, 77).unwrap();
    pods.retain(|p| p.node.0 != "node-2");
    all_reach(&mut arm, &pods, s(5));
    arm.sim_mut().start_agent(1);
    all_ready(&mut arm);
    pods.push(arm.add_pod(&"node-2".into(), "again").unwrap());
    all_reach(&mut arm, &pods, s(10));
    let status = arm.status(&"node-1".into()).unwrap();
    assert_eq!(status.peers.len(), 2, "the old key is gone: {:?}", status.peers);
}

#[test]
fn two_nodes_have_one_key() {
    let mut sim = Sim::new(Config::new(3, 1));
    sim.set_key(2, 1);
    let mut arm = SimArm::start(sim);
    arm.wait(s(30));
    let told = problems(&mut arm, &"node-1".into());
    assert!(told.contains("node-2") && told.contains("node-3"), "{told}");
    let status = arm.status(&"node-1".into()).unwrap();
    assert_eq!(
        status.peers.len(),
        1,
        "one of them is believed, on every node the same"
    );
    // The clone gets a key of its own.
    arm.kill_agent(&"node-3".into()).unwrap();
    arm.sim_mut().set_key(2, 99);
    arm.start_agent(&"node-3".into()).unwrap();
    all_ready(&mut arm);
    let pods = add_pods(&mut arm, 1);
    all_reach(&mut arm, &pods, s(10));
}

#[test]
fn hostile_annotations_take_nothing_from_anyone() {
    let (mut arm, pods) = cluster(Config::new(3, 1), 1);
    all_reach(&mut arm, &pods, s(5));
    let first = arm.status(&"node-1".into()).unwrap();
    let own_key = first.public_key.to_string();
    let own_cidr = first.pod_cidrs[0].to_string();
    let claims = [
        ("meshd.dev/pod-cidrs", own_cidr.clone()),
        ("meshd.dev/pod-cidrs", "10.128.0.0/10".to_owned()),
        ("meshd.dev/pod-cidrs", "10.96.0.0/16".to_owned()),
        ("meshd.dev/pod-cidrs", "0.0.0.0/0,::/0".to_owned()),
        ("meshd.dev/pod-cidrs", format!("{own_cidr},").repeat(4000)),
        ("meshd.dev/public-key", own_key),
        ("meshd.dev/public-key", "A".repeat(200_000)),
        ("meshd.dev/endpoints", "127.0.0.1".to_owned()),
        ("meshd.dev/endpoints", "0.0.0.0,::".to_owned()),
        (
            "meshd.dev/node-addresses",
            "192.168.0.16,fd00:192:168::10".to_owned(),
        ),
        ("meshd.dev/mtu", "1".to_owned()),
        ("meshd.dev/listen-port", "0".to_owned()),
        ("meshd.dev/protocol-version", "65535".to_owned()),
    ];
    // Timestamps count seconds: the rogues are younger.
    arm.wait(s(2));
    for (number, (key, value)) in claims.into_iter().enumerate() {
        println!("{key}: {}", &value[..value.len().min(60)]);
        create_rogue(&mut arm, number, key, &value);
        arm.wait(s(2));
        for node in arm.nodes() {
            let status = arm.status(&node).unwrap();
            let members = status
                .peers
                .iter()
                .filter(|p| p.node.0.starts_with("node-"))
                .count();
            assert_eq!(
                members,
                2,
                "{key} {}: {:?}",
                &value[..value.len().min(60)],
                status.peers
            );
        }
        all_reach(&mut arm, &pods, s(5));
        arm.sim_mut()
            .admin(Request::delete(format!("/api/v1/nodes/rogue-{number}")))
            .unwrap();
    }
    arm.wait(s(120));
    all_reach(&mut arm, &pods, s(5));
}

/// A Node, younger than all others, whose annotations are sound but for one.
fn create_rogue(arm: &mut SimArm, number: usize, key: &str, value: &str) {
    let mut annotations = json!({
        "meshd.dev/public-key": "cm9ndWUgcm9ndWUgcm9ndWUgcm9ndWUgcm9ndWUgcmc=",
        "meshd.dev/listen-port": "51820",
        "meshd.dev/endpoints": "192.168.9.9",
        "meshd.dev/node-addresses": "192.168.9.9",
        "meshd.dev/mtu": "1420",
        "meshd.dev/pod-cidrs": "10.129.99.0/24",
        "meshd.dev/protocol-version": "1",
    });
    annotations[key] = json!(value);
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": format!("rogue-{number}"), "annotations": annotations },
    });
    arm.sim_mut()
        .admin(Request::create("/api/v1/nodes", &node))
        .unwrap();
}

#[test]
fn a_node_without_pod_cidrs_waits_and_says_so() {
    let mut config = Config::new(3, 1);
    config.node_ipam = false;
    let mut arm = SimArm::new(config);
    arm.wait(s(10));
    let node = NodeName::from("node-1");
    assert!(arm.wait_ready(&node, s(1)).is_err());
    let told = problems(&mut arm, &node);
    assert!(told.contains("podCIDR"), "{told}");
    for n in 1..=3 {
        let cidrs = json!([format!("10.128.{n}.0/24"), format!("fd00:10:244:{n}::/64")]);
        let patch = json!({ "spec": { "podCIDR": cidrs[0], "podCIDRs": cidrs } });
        arm.sim_mut()
            .admin(Request::merge_patch(format!("/api/v1/nodes/node-{n}"), &patch))
            .unwrap();
    }
    all_ready(&mut arm);
    let pods = add_pods(&mut arm, 1);
    all_reach(&mut arm, &pods, s(5));
}

#[test]
fn an_underlay_that_loses_doubles_and_reorders_delays_and_does_no_harm() {
    for seed in 0..5 {
        let mut config = Config::new(4, seed);
        config.link = Link {
            jitter: ms(2),
            ..Link::default()
        };
        let (mut arm, pods) = cluster(config, 1);
        let bad = Link {
            loss: 100_000,
            duplication: 50_000,
            reordering: 100_000,
            jitter: ms(20),
            ..Link::default()
        };
        arm.sim_mut().set_links(bad);
        all_reach(&mut arm, &pods, s(60));
        let stream = arm.start_stream(&pods[0], &pods[3], ms(10)).unwrap();
        arm.wait(s(200));
        let report = arm.stop_stream(stream).unwrap();
        // A datagram there and its echo back: four of five survive.
        let share = report.received * 100 / report.sent;
        assert!((75..88).contains(&share), "seed {seed}: {share} of 100");
        arm.sim_mut().heal();
        all_reach(&mut arm, &pods, s(10));
        let probes = pairs(&pods);
        let outcomes = arm.probe(&probes).unwrap();
        assert!(
            outcomes.iter().all(is_answered),
            "healed, and probes are still lost"
        );
    }
}

#[test]
fn a_node_cut_off_for_minutes_comes_back() {
    let (mut arm, pods) = cluster(Config::new(3, 1), 1);
    all_reach(&mut arm, &pods, s(5));
    arm.sim_mut().partition(&[2]);
    let (here, cut) = (of_node(&pods, "node-1"), of_node(&pods, "node-3"));
    arm.wait(s(300));
    assert!(!between(&mut arm, &here, &cut).iter().any(is_answered));
    assert!(
        between(&mut arm, &here, &of_node(&pods, "node-2"))
            .iter()
            .all(is_answered)
    );
    arm.sim_mut().heal();
    all_reach(&mut arm, &pods, s(20));
}

#[test]
fn a_kernel_that_refuses_for_a_while_is_asked_again() {
    let ops = [
        OpKind::SetFirewall,
        OpKind::SetDevice,
        OpKind::SetPeer,
        OpKind::SetRoute,
        OpKind::SetRule,
        OpKind::AttachPod,
    ];
    for op in ops {
        let mut sim = Sim::new(Config::new(3, 1));
        sim.add_fault(
            0,
            Fault {
                op,
                kind: FaultKind::Fail(EIO),
                times: 3,
            },
        );
        let (mut arm, pods) = start(sim, 1);
        all_reach(&mut arm, &pods, s(60));
    }
}

#[test]
fn a_kernel_that_lies_about_its_firewall_is_caught() {
    let mut sim = Sim::new(Config::new(3, 1));
    sim.add_fault(
        0,
        Fault {
            op: OpKind::SetFirewall,
            kind: FaultKind::Lie,
            times: u32::MAX,
        },
    );
    let mut arm = SimArm::start(sim);
    arm.wait(s(5));
    // Either the agent has seen through it, and attaches nothing, or the check catches what it attaches.
    let added = arm.add_pod(&"node-1".into(), "p1");
    let caught = arm
        .sim()
        .violation()
        .is_some_and(|v| v.what.contains("before the firewall was in force"));
    assert!(added.is_err(), "{added:?}");
    assert!(caught || !arm.sim().is_ready(0));
}

#[test]
fn a_cloud_that_says_the_network_is_unavailable_is_answered_once_it_is_there() {
    let mut sim = Sim::new(Config::new(2, 1));
    let conditions = json!([
        {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"},
        {"type": "Ready", "status": "True", "reason": "KubeletReady"},
    ]);
    let status = json!({"status": {"conditions": conditions}});
    let path = "/api/v1/nodes/node-1/status";
    sim.admin(Request::merge_patch(path, &status)).unwrap();
    let mut arm = SimArm::start(sim);
    all_ready(&mut arm);
    arm.wait(s(5));
    let node = arm.sim_mut().admin(Request::get("/api/v1/nodes/node-1")).unwrap();
    let after = &node["status"]["conditions"];
    assert_eq!(
        (&after[0]["status"], &after[0]["reason"], &after[1]),
        (&json!("False"), &json!("MeshdIsUp"), &conditions[1]),
        "{after:#}"
    );
    let other = arm.sim_mut().admin(Request::get("/api/v1/nodes/node-2")).unwrap();
    assert_eq!(
        other["status"].get("conditions"),
        None,
        "where it was not, it is not made"
    );
}
