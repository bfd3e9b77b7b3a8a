//! Scenarios, on each arm: the demo's, and what else is written as one.

use crate::arms::{Trouble, trial};
use crate::programs;
use crate::sandboxed::with_folder;
use libtest_mimic::Trial;
use meshd_lab::cluster::node::Mode;
use meshd_lab::scenario::{self, Order};
use meshd_scenario::{Proof, Report, Scenario};
use meshd_sim::Config;

/// Runs where the arm makes its own nodes and devices.
const ENDPOINTS: &str = include_str!("../scenarios/endpoints.yaml");

/// These, too.
const BEHIND_NAT: &str = include_str!("../scenarios/behind-nat.yaml");

const SECOND_INTERFACE: &str = include_str!("../scenarios/second-interface.yaml");

/// Runs on every arm.
pub(crate) const OUTSIDE: &str = include_str!("../scenarios/outside.yaml");

/// Of simulated runs.
const SEED: u64 = 1;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("sim", "first_light", || on_sim(Scenario::FIRST_LIGHT)),
        trial("netns", "first_light", || on_netns(Scenario::FIRST_LIGHT)),
        trial("sim", "first_light_on_ipv4_alone", || {
            on_sim(&with_families("ipv4"))
        }),
        trial("netns", "first_light_on_ipv4_alone", || {
            on_netns(&with_families("ipv4"))
        }),
        trial("sim", "first_light_on_ipv6_alone", || {
            on_sim(&with_families("ipv6"))
        }),
        trial("netns", "first_light_on_ipv6_alone", || {
            on_netns(&with_families("ipv6"))
        }),
        trial(
            "sim",
            "first_light_with_blocks_of_a_pool",
            || on_sim(&with_pool()),
        ),
        trial("netns", "first_light_with_blocks_of_a_pool", || {
            on_netns(&with_pool())
        }),
        trial("sim", "endpoints", || on_sim(ENDPOINTS)),
        trial("netns", "endpoints", || on_netns(ENDPOINTS)),
        trial("sim", "second_interface", || on_sim(SECOND_INTERFACE)),
        trial("netns", "second_interface", || on_netns(SECOND_INTERFACE)),
        trial("sim", "behind_nat", || on_sim(BEHIND_NAT)),
        trial("netns", "behind_nat", || on_netns(BEHIND_NAT)),
        trial("sim", "outside", || on_sim(OUTSIDE)),
        trial("netns", "outside", || on_netns(OUTSIDE)),
    ]
}

/// First light in a cluster whose nodes, pods and services have addresses of one family.
fn with_families(family: &str) -> String {
    format!("families: [{family}]\n{}", Scenario::FIRST_LIGHT)
}

/// First light in a cluster whose nodes claim blocks of the pod CIDRs for themselves.
fn with_pool() -> String {
    format!("pool: true\n{}", Scenario::FIRST_LIGHT)
}

/// Runs a scenario with real processes.
pub(crate) fn on_netns(scenario: &str) -> Result<(), Trouble> {
    let order = Order {
        scenario: scenario.to_owned(),
        nodes: None,
        binaries: programs::find()?,
        mode: Mode::Userspace,
    };
    let parsed = parse(scenario)?;
    with_folder(|folder| {
        let report = scenario::run(&order, folder, &mut drop)?;
        judge(&report)?;
        print_outages(&report);
        table_of(&parsed, &report)
    })
}

/// What there is to measure on a real kernel besides that it holds.
fn print_outages(report: &Report) {
    let measured = |p: &&Proof| {
        matches!(
            p.step.as_str(),
            "restart-device" | "change-addresses" | "behind-nat"
        )
    };
    for proof in report.proofs.iter().filter(measured) {
        println!("{}: {:?}", proof.step, proof.numbers);
    }
}

/// Runs it in the simulator.
pub(crate) fn on_sim(scenario: &str) -> Result<(), Trouble> {
    let scenario = parse(scenario)?;
    let simulated = meshd_sim::run_scenario(&scenario, Config::new(scenario.nodes, SEED), &mut |_| {});
    if let Some(violation) = &simulated.violation {
        return Err(Trouble::Failed(format!(
            "an invariant was violated: {violation:?}"
        )));
    }
    judge(&simulated.report)?;
    table_of(&scenario, &simulated.report)
}

fn parse(scenario: &str) -> Result<Scenario, Trouble> {
    Scenario::parse(scenario).map_err(|e| Trouble::Failed(e.to_string()))
}

/// Two nodes behind different NATs do not reach each other.
fn table_of(scenario: &Scenario, report: &Report) -> Result<(), Trouble> {
    if scenario.behind_nat.len() > 1 {
        return Ok(());
    }
    table_is_true(report)
}

/// After everyone has reached everyone, each node has shaken hands with each other and carried bytes.
pub(crate) fn table_is_true(report: &Report) -> Result<(), Trouble> {
    let peers = report.nodes.len() - 1;
    let wrong = report.nodes.iter().find(|row| {
        row.peers != peers
            || row.handshakes != peers
            || row.rx_bytes == 0
            || row.tx_bytes == 0
            || row.pods == 0
    });
    match wrong {
        Some(row) => Err(Trouble::Failed(format!("the table of nodes says {row:?}"))),
        None => Ok(()),
    }
}

/// Every proof must hold.
pub(crate) fn judge(report: &Report) -> Result<(), Trouble> {
    if report.held {
        return Ok(());
    }
    let mut why: Vec<String> = report
        .proofs
        .iter()
        .filter(|p| !p.held)
        .map(|p| format!("{} ({}): {} {:?}", p.name, p.step, p.detail, p.numbers))
        .collect();
    why.extend(report.not_run.iter().map(|step| format!("{step} was not run")));
    Err(Trouble::Failed(why.join("\n")))
}
