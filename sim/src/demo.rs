//! The built-in scenario on a simulated cluster: what `meshctl sim` runs.

use crate::arm::SimArm;
use crate::config::{Config, NODES_MAX};
use crate::sim::{Sim, Violation};
use meshd_core::Pool;
use meshd_model::net::Family;
use meshd_scenario::{Progress, Report, Scenario, Span, Step, run};
use serde::Serialize;
use std::collections::BTreeSet;
use std::time::Duration;

/// What a simulated run has to say. The same arguments give the same report, to the byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SimReport {
    /// Hash (SHA-256) of the canonical event trace.
    pub trace: String,
    /// Events in it.
    pub events: u64,
    /// Packets put on the underlay.
    pub packets: u64,
    /// WireGuard handshakes answered.
    pub handshakes: u64,
    /// Objects and changes that the API server told to the nodes.
    pub watch_events: u64,
    /// How often an invariant was checked.
    pub invariant_checks: u64,
    /// Nodes simulated.
    pub nodes: usize,
    /// What all chance came from.
    pub seed: u64,
    /// Simulated time, in microseconds.
    pub simulated_us: u64,
    /// What ought never to be, where it was: it ended the run.
    pub violation: Option<Violation>,
    /// What the scenario proved.
    pub report: Report,
}

impl SimReport {
    /// Whether everything is as it ought to be.
    #[must_use]
    pub fn held(&self) -> bool {
        self.violation.is_none() && self.report.held
    }
}

/// Why a demo cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DemoError {
    /// The scenario needs more nodes, or the underlay has no room.
    #[error("{0} nodes cannot be simulated: give 3 to {NODES_MAX}")]
    Nodes(usize),
}

/// Runs the built-in scenario on so many nodes, for at least this long in simulated time, and tells what it does.
///
/// # Errors
/// For fewer nodes than the scenario names.
pub fn run_demo(
    nodes: usize,
    seed: u64,
    duration: Option<Duration>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<SimReport, DemoError> {
    let mut scenario = Scenario::first_light();
    if !(scenario.nodes..=NODES_MAX).contains(&nodes) {
        return Err(DemoError::Nodes(nodes));
    }
    scenario.nodes = nodes;
    if let Some(duration) = duration {
        lengthen(&mut scenario, duration);
    }
    Ok(run_scenario(&scenario, Config::new(nodes, seed), progress))
}

/// The cluster rests before its pods are deleted, and they must all still reach each other.
fn lengthen(scenario: &mut Scenario, duration: Duration) {
    let last = scenario
        .steps
        .iter()
        .rposition(|s| matches!(s, Step::EveryoneReachesEveryone { .. }));
    scenario.steps.insert(
        last.unwrap_or_default(),
        Step::Wait {
            r#for: Span(duration),
        },
    );
}

/// Runs a scenario on a simulated cluster of the scenario's families.
pub fn run_scenario(
    scenario: &Scenario,
    config: Config,
    progress: &mut dyn FnMut(Progress<'_>),
) -> SimReport {
    let seed = config.seed;
    let families = scenario.families.clone();
    let mut sim = Sim::new(Config {
        families,
        second_interface: scenario.second_interface,
        pool: scenario.pool.then(|| pool(&scenario.families)),
        ..config
    });
    for nat in &scenario.behind_nat {
        sim.set_nat(nat.node - 1, nat.forgets.0, nat.keepalive);
    }
    let mut arm = SimArm::start(sim);
    let report = run(scenario, &mut arm, progress);
    let sim = arm.sim();
    SimReport {
        trace: sim.trace(),
        events: sim.trace.records(),
        packets: sim.capture.seen.packets,
        handshakes: sim.handshakes,
        watch_events: sim.cluster.watch_events,
        invariant_checks: sim.checks,
        nodes: sim.nodes(),
        seed,
        simulated_us: meshd_scenario::time::micros(sim.elapsed()),
        violation: sim.violation().cloned(),
        report,
    }
}

/// The pool mode as the daemon has it by default.
fn pool(families: &BTreeSet<Family>) -> Pool {
    let size = |family: &Family| match family {
        Family::V4 => 26,
        Family::V6 => 122,
    };
    Pool {
        block_sizes: families.iter().map(|f| (*f, size(f))).collect(),
        return_after: Duration::from_secs(600),
        rest: Duration::from_secs(60),
    }
}
