//! Where nodes are reached: devices that lose their sessions, addresses that change, NAT, one family, narrow links.

mod common;

use common::*;
use meshd_model::net::Family;
use meshd_scenario::{Arm, Outcome, Pod, ProbeKind, Scenario, Site};
use meshd_sim::{Config, Fault, FaultKind, OpKind, Sim, SimArm};
use std::collections::BTreeSet;
use std::time::Duration;

/// Thirty nodes with sessions between all of them. The device of one is restarted: how long what each of the others
/// sends to it is lost, and how many handshakes that takes.
fn restarted(greets: bool) -> (Duration, u64) {
    let (mut arm, pods) = cluster(Config::new(30, 3), 1);
    all_reach(&mut arm, &pods, s(10));
    arm.sim_mut().observe(0);
    if !greets {
        let fault = Fault {
            op: OpKind::Greet,
            kind: FaultKind::Lie,
            times: u32::MAX,
        };
        arm.sim_mut().add_fault(0, fault);
    }
    // Nothing is sent from the node: it would begin a handshake.
    let streams: Vec<usize> = pods[1..]
        .iter()
        .map(|from| arm.start_stream(from, &pods[0], ms(20)).unwrap())
        .collect();
    arm.wait(s(1));
    let before = arm.sim().handshakes();
    arm.sim_mut().restart_device(0);
    arm.wait(s(20));
    let handshakes = arm.sim().handshakes() - before;
    let reports = streams.into_iter().map(|stream| arm.stop_stream(stream).unwrap());
    let worst = reports.map(|r| r.sent - r.received).max().unwrap();
    (ms(20) * u32::try_from(worst).unwrap(), handshakes)
}

#[test]
fn a_lost_device_heals_within_a_second_and_without_a_storm() {
    let (outage, handshakes) = restarted(true);
    assert!(outage > ms(50) && outage <= s(1), "{outage:?}");
    assert!(
        (29..=35).contains(&handshakes),
        "{handshakes} handshakes for 29 peers"
    );
}

#[test]
fn without_greetings_the_others_take_fifteen_seconds_to_notice() {
    let (outage, _) = restarted(false);
    assert!(outage > s(10), "the control: {outage:?}");
}

#[test]
fn addresses_that_change_are_published_and_followed() {
    let text = "
name: moved
steps:
- do: wait-ready
- do: add-pods
  per-node: 1
- do: everyone-reaches-everyone
- do: nodes-and-pods
- do: change-addresses
  node: 2
  published: 1s
  within: 2s
- do: everyone-reaches-everyone
- do: nodes-and-pods
- do: change-addresses
  node: 2
  published: 1s
- do: change-addresses
  node: 1
  published: 1s
- do: everyone-reaches-everyone
- do: nodes-and-pods
- do: restart-device
  node: 1
  within: 1s
";
    holds(text, &mut SimArm::new(Config::new(3, 9)));
}

/// A node behind NAT: whether a pod elsewhere reaches its pod after nothing was sent for five minutes, and how long
/// after its NAT has forgotten everything.
fn behind_nat(keepalive: Option<u16>) -> (bool, Option<Duration>) {
    let mut sim = Sim::new(Config::new(3, 4));
    sim.set_nat(1, s(60), keepalive);
    let (mut arm, pods) = start(sim, 1);
    // What is inside begins.
    let outward: Vec<_> = [&pods[0], &pods[2]]
        .iter()
        .flat_map(|to| to.addresses.iter().map(|a| ping(&pods[1], *a)))
        .collect();
    assert!(arm.probe(&outward).unwrap().iter().all(is_answered));
    assert!(between(&mut arm, &pods[0], &pods[1]).iter().all(is_answered));
    arm.wait(s(300));
    let idle = between(&mut arm, &pods[2], &pods[1]).iter().all(is_answered);
    arm.sim_mut().restart_nat(1);
    let began = arm.elapsed();
    let mut again = None;
    while again.is_none() && arm.elapsed() - began < s(120) {
        if between(&mut arm, &pods[0], &pods[1]).iter().all(is_answered) {
            again = Some(arm.elapsed() - began);
        }
        arm.wait(ms(200));
    }
    // Its agents' observations and restarts leave the endpoints where they were heard.
    arm.kill_agent(&"node-1".into()).unwrap();
    arm.start_agent(&"node-1".into()).unwrap();
    arm.wait_ready(&"node-1".into(), s(30)).unwrap();
    if keepalive.is_some() {
        assert!(between(&mut arm, &pods[0], &pods[1]).iter().all(is_answered));
    }
    assert_eq!(arm.sim().violation(), None);
    (idle, again)
}

#[test]
fn a_node_behind_nat_stays_reachable_by_its_keepalives() {
    let (idle, again) = behind_nat(Some(25));
    assert!(idle, "after five minutes without traffic");
    let again = again.expect("after its NAT has forgotten it");
    assert!(again <= s(26), "{again:?}");
}

#[test]
fn without_keepalives_the_nat_forgets_a_node() {
    let (idle, _) = behind_nat(None);
    assert!(!idle, "the control");
}

#[test]
fn one_family_is_enough() {
    for family in [Family::V4, Family::V6] {
        let mut config = Config::new(3, 2);
        config.families = BTreeSet::from([family]);
        let mut arm = SimArm::new(config);
        let report = holds(Scenario::FIRST_LIGHT, &mut arm);
        assert!(report.proofs.len() > 10);
        for node in 0..3 {
            let status = arm.sim().status(node).unwrap();
            assert_eq!(status.overlay_addresses.len(), 1);
            assert!(status.overlay_addresses.iter().all(|a| Family::of(*a) == family));
            assert_eq!(status.problems, []);
        }
    }
}

#[test]
fn packets_fit_the_narrower_of_two_underlays() {
    let mut sim = Sim::new(Config::new(3, 6));
    sim.set_underlay_mtu(2, 1400);
    let (mut arm, pods) = start(sim, 1);
    all_reach(&mut arm, &pods, s(5));
    arm.wait(s(1));
    let sent = |arm: &mut SimArm, to: &Pod, payload: usize| {
        let probes: Vec<_> = to
            .addresses
            .iter()
            .map(|a| meshd_scenario::Probe {
                from: Site::Pod(pods[0].clone()),
                to: *a,
                kind: ProbeKind::Udp,
                payload,
                timeout: s(1),
            })
            .collect();
        arm.probe(&probes).unwrap()
    };
    // 1400 less 80 is 1320: 48 bytes of headers at most, 28 at least.
    assert!(sent(&mut arm, &pods[2], 1272).iter().all(is_answered));
    let refused = sent(&mut arm, &pods[2], 1293);
    assert!(
        refused
            .iter()
            .all(|o| matches!(o, Outcome::Refused(why) if why.contains("too long"))),
        "the sender is told, nothing is lost in silence: {refused:?}"
    );
    assert!(
        sent(&mut arm, &pods[1], 1372).iter().all(is_answered),
        "others are not held back"
    );
    // The link widens, later, while pods run.
    arm.sim_mut().set_underlay_mtu(2, 1500);
    arm.wait(s(2));
    assert!(sent(&mut arm, &pods[2], 1300).iter().all(is_answered));
}

#[test]
fn all_nodes_start_at_once_after_a_reboot() {
    let (mut arm, pods) = cluster(Config::new(30, 8), 1);
    all_reach(&mut arm, &pods, s(10));
    for node in 0..30 {
        arm.sim_mut().reboot(node);
    }
    arm.wait(s(1));
    let before = (arm.sim().handshakes(), arm.elapsed());
    for node in 0..30 {
        arm.sim_mut().start_agent(node);
    }
    all_ready(&mut arm);
    let took = arm.elapsed() - before.1;
    assert!(took < s(5), "{took:?}");
    assert_eq!(
        arm.sim().handshakes(),
        before.0,
        "nobody speaks before there is something to say"
    );
    let mut again = Vec::new();
    for pod in &pods {
        again.push(arm.add_pod(&pod.node, &format!("{}-again", pod.name)).unwrap());
    }
    all_reach(&mut arm, &again, s(10));
    let made = arm.sim().handshakes() - before.0;
    assert!(made <= 30 * 29, "{made} handshakes for {} pairs", 30 * 29 / 2);
}
