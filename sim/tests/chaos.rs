//! Everything at once, drawn by a seed: pods come and go while agents die, links lose, nodes are cut off, kernels
//! refuse and the API server goes away. First safety under faults; then all heals, and must get well.
//!
//! `SEEDS` below are few; a failure prints its seed, and the same seed is the same run.

mod common;

use common::*;
use meshd_scenario::{Arm, Pod};
use meshd_sim::{Config, EIO, Fault, FaultKind, Link, OpKind, SimArm};

const SEEDS: std::ops::Range<u64> = 100..112;
const NODES: u64 = 5;
const STEPS: usize = 40;

struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ (z >> 27)) % bound
    }

    fn node(&mut self) -> usize {
        usize::try_from(self.below(NODES)).unwrap()
    }
}

/// One thing goes wrong, or right again.
fn trouble(arm: &mut SimArm, dice: &mut Dice) -> String {
    let node = dice.node();
    let sim = arm.sim_mut();
    match dice.below(9) {
        0 => {
            sim.kill_agent_in(node, ms(dice.below(50)));
            sim.start_agent_in(node, ms(50 + dice.below(20_000)));
            format!("agent {node} dies")
        }
        1 => {
            let loss = u32::try_from(dice.below(300_000)).unwrap();
            sim.set_links(Link {
                loss,
                duplication: loss / 4,
                reordering: loss / 2,
                jitter: ms(5),
                ..Link::default()
            });
            format!("links lose {loss} of a million")
        }
        2 => {
            sim.partition(&[node]);
            format!("node {node} is cut off")
        }
        3 => {
            sim.partition(&[]);
            "no one is cut off".to_owned()
        }
        4 => {
            arm.set_api_server(false).unwrap();
            "the API server goes".to_owned()
        }
        5 | 6 => {
            arm.set_api_server(true).unwrap();
            "the API server comes".to_owned()
        }
        7 => {
            let ops = [
                OpKind::SetPeer,
                OpKind::SetRoute,
                OpKind::AttachPod,
                OpKind::DetachPod,
                OpKind::RemovePeer,
            ];
            let op = ops[usize::try_from(dice.below(5)).unwrap()];
            let times = u32::try_from(1 + dice.below(4)).unwrap();
            sim.add_fault(
                node,
                Fault {
                    op,
                    kind: FaultKind::Fail(EIO),
                    times,
                },
            );
            format!("{op:?} of node {node} fails {times} times")
        }
        _ => {
            sim.observe(node);
            format!("the kernel of node {node} is looked at")
        }
    }
}

fn churn(arm: &mut SimArm, dice: &mut Dice, pods: &mut Vec<Pod>, step: usize) {
    if dice.below(3) == 0 && pods.len() > 3 {
        let pod = pods.swap_remove(usize::try_from(dice.below(pods.len() as u64)).unwrap());
        arm.delete_pod(&pod)
            .unwrap_or_else(|e| panic!("DEL of {}: {e}", pod.name));
        return;
    }
    let node = arm.nodes()[dice.node()].clone();
    // While the API server is away, or the node's agent has not heard of the pod, ADD is refused: it is tried again
    // for two minutes, and may fail. What it began must be gone in the end.
    if let Ok(pod) = arm.add_pod(&node, &format!("{node}-s{step}")) {
        pods.push(pod);
    }
}

fn survives(seed: u64) {
    let mut dice = Dice(seed);
    let (mut arm, mut pods) = cluster(Config::new(usize::try_from(NODES).unwrap(), seed), 1);
    let mut told = Vec::new();
    for step in 0..STEPS {
        told.push(trouble(&mut arm, &mut dice));
        if dice.below(2) == 0 {
            churn(&mut arm, &mut dice, &mut pods, step);
        }
        // Traffic, so that there are sessions to break; what comes of it is not asked.
        let probes = pairs(&pods);
        arm.probe(&probes).unwrap();
        arm.wait(ms(dice.below(5_000)));
        assert_eq!(arm.sim().violation(), None, "seed {seed}: {told:#?}");
    }
    arm.set_api_server(true).unwrap();
    arm.sim_mut().heal();
    arm.wait(s(60));
    for node in arm.nodes() {
        arm.start_agent(&node).unwrap();
    }
    all_ready(&mut arm);
    println!("seed {seed}: {} pods, {told:?}", pods.len());
    all_reach(&mut arm, &pods, s(60));
    for pod in pods {
        arm.delete_pod(&pod).unwrap();
    }
    assert_eq!(arm.sim().violation(), None);
    for node in arm.nodes() {
        assert_eq!(
            arm.attachments(&node).unwrap(),
            Vec::<String>::new(),
            "seed {seed}: {node} knows pods that are gone"
        );
    }
}

#[test]
fn what_goes_wrong_at_once_gets_well() {
    for seed in SEEDS {
        survives(seed);
    }
}
