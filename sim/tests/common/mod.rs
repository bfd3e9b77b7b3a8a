//! What the simulator's tests share.
#![allow(dead_code, reason = "each test uses a part of it")]

use meshd_model::NodeName;
use meshd_scenario::{Arm, Outcome, Pod, Probe, ProbeKind, Report, Scenario, Site, run};
use meshd_sim::{Config, Sim, SimArm};
use std::net::IpAddr;
use std::time::Duration;

/// Seconds.
pub(crate) const fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Milliseconds.
pub(crate) const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A cluster whose agents are ready, with as many pods on each node.
pub(crate) fn cluster(config: Config, pods: usize) -> (SimArm, Vec<Pod>) {
    let mut arm = SimArm::new(config);
    all_ready(&mut arm);
    let pods = add_pods(&mut arm, pods);
    (arm, pods)
}

/// The same of a cluster whose agents were not started.
pub(crate) fn start(sim: Sim, pods: usize) -> (SimArm, Vec<Pod>) {
    let mut arm = SimArm::start(sim);
    all_ready(&mut arm);
    let pods = add_pods(&mut arm, pods);
    (arm, pods)
}

/// Every proof of the scenario holds, and no invariant was violated.
#[track_caller]
pub(crate) fn holds(text: &str, arm: &mut SimArm) -> Report {
    let report = run(&Scenario::parse(text).unwrap(), arm, &mut |_| {});
    assert_eq!(arm.sim().violation(), None);
    assert!(
        report.held,
        "{:#?}",
        report.proofs.iter().filter(|p| !p.held).collect::<Vec<_>>()
    );
    report
}

#[track_caller]
pub(crate) fn all_ready(arm: &mut SimArm) {
    for node in arm.nodes() {
        arm.wait_ready(&node, s(120)).unwrap();
    }
}

#[track_caller]
pub(crate) fn add_pods(arm: &mut SimArm, each: usize) -> Vec<Pod> {
    let mut pods = Vec::new();
    for node in arm.nodes() {
        for n in 1..=each {
            pods.push(arm.add_pod(&node, &format!("{node}-{n}")).unwrap());
        }
    }
    pods
}

/// One probe for each ordered pair and family.
pub(crate) fn pairs(pods: &[Pod]) -> Vec<Probe> {
    let pairs = pods
        .iter()
        .flat_map(|a| pods.iter().filter(move |b| b.name != a.name).map(move |b| (a, b)));
    pairs
        .flat_map(|(a, b)| b.addresses.iter().map(|to| ping(a, *to)))
        .collect()
}

pub(crate) fn ping(from: &Pod, to: IpAddr) -> Probe {
    Probe {
        from: Site::Pod(from.clone()),
        to,
        kind: ProbeKind::Icmp,
        payload: 64,
        timeout: s(1),
    }
}

/// Outcomes of probes from one pod to another, one in each family.
pub(crate) fn between(arm: &mut SimArm, from: &Pod, to: &Pod) -> Vec<Outcome> {
    let probes: Vec<_> = to.addresses.iter().map(|a| ping(from, *a)).collect();
    arm.probe(&probes).unwrap()
}

pub(crate) fn is_answered(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Answered(_))
}

/// Every pod reaches every other, sooner or later.
#[track_caller]
pub(crate) fn all_reach(arm: &mut SimArm, pods: &[Pod], within: Duration) {
    let begin = arm.elapsed();
    let mut pending = pairs(pods);
    assert!(!pending.is_empty());
    loop {
        let outcomes = arm.probe(&pending).unwrap();
        let late = arm.elapsed() - begin >= within;
        if let Some(at) = outcomes.iter().position(|o| !is_answered(o)).filter(|_| late) {
            panic!("after {within:?}: {:?}: {:?}", pending[at], outcomes[at]);
        }
        let kept = pending
            .into_iter()
            .zip(&outcomes)
            .filter(|(_, o)| !is_answered(o));
        pending = kept.map(|(probe, _)| probe).collect();
        if pending.is_empty() {
            return;
        }
        arm.wait(ms(500));
    }
}

/// What a node's agent says is wrong.
pub(crate) fn problems(arm: &mut SimArm, node: &NodeName) -> String {
    let status = arm.status(node).unwrap();
    let lines = status
        .problems
        .iter()
        .map(|p| format!("{}: {} ({})\n", p.subject, p.message, p.remedy));
    lines.collect()
}
