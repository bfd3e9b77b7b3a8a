//! Agents killed at random moments, by many seeds: no address is held twice, nothing leaves in the clear, no pod is
//! forgotten; and when the killing ends, all is well and can be taken down without residue.

mod common;

use common::*;
use meshd_scenario::Arm;
use meshd_sim::{Config, SimArm};
use std::time::Duration;

/// SplitMix64: the moments.
struct Moments(u64);

impl Moments {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ (z >> 27)) % bound
    }
}

/// Kills a node's agent within the next moments, a few times, and leaves it running.
fn kill_soon(arm: &mut SimArm, moments: &mut Moments) {
    for node in 0..3 {
        let mut at = 0;
        for _ in 0..moments.below(4) {
            // Microseconds matter: an ADD takes about three milliseconds.
            at += moments.below(4_000);
            arm.sim_mut().kill_agent_in(node, Duration::from_micros(at));
            at += 1 + moments.below(2_000);
            arm.sim_mut().start_agent_in(node, Duration::from_micros(at));
        }
    }
}

/// How often ADD had to be tried again because its agent was killed.
fn survives(seed: u64) -> u64 {
    let mut moments = Moments(seed);
    let mut arm = SimArm::new(Config::new(3, seed));
    kill_soon(&mut arm, &mut moments);
    let mut pods = Vec::new();
    for n in 0..3 {
        for node in arm.nodes() {
            kill_soon(&mut arm, &mut moments);
            pods.push(arm.add_pod(&node, &format!("{node}-{n}")).unwrap());
        }
    }
    let again = arm.tries() - pods.len() as u64;
    for _ in 0..3 {
        kill_soon(&mut arm, &mut moments);
        let pod = pods.swap_remove(usize::try_from(moments.below(pods.len() as u64)).unwrap());
        arm.delete_pod(&pod).unwrap();
    }
    arm.wait(s(1));
    all_ready(&mut arm);
    all_reach(&mut arm, &pods, s(30));
    for node in arm.nodes() {
        let known = arm.attachments(&node).unwrap().len();
        assert_eq!(
            known,
            pods.iter().filter(|p| p.node == node).count(),
            "{node} knows its pods"
        );
    }
    for pod in pods {
        kill_soon(&mut arm, &mut moments);
        arm.delete_pod(&pod).unwrap();
    }
    arm.wait(s(1));
    all_ready(&mut arm);
    assert_eq!(arm.residue().unwrap(), Vec::<String>::new());
    assert_eq!(arm.sim().violation(), None);
    again
}

#[test]
fn agents_killed_at_any_moment_lose_and_leak_nothing() {
    let mut again = 0;
    for seed in 0..20 {
        println!("seed {seed}");
        again += survives(seed);
    }
    assert!(
        again > 20,
        "only {again} ADDs were interrupted: the killing proves little"
    );
}
