//! Days on which processes die, files are gone and strangers knock: with real processes on the netns arm.

mod kills;
mod pods;
mod recording;
mod socket;
mod state;

pub(crate) use pods::nothing_is_left;
pub(crate) use socket::helper;

use crate::arms::{Trouble, trial};
use crate::{programs, sandboxed, scenarios};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use meshd_lab::plan::both;
use meshd_lab::sandbox::{Entry, Inside, Reporter};
use meshd_lab::{NetnsArm, scenario};
use meshd_model::NodeName;
use meshd_scenario::{Arm, ArmError, Outcome, Pod, Probe, ProbeKind, Site};
use std::time::{Duration, Instant};

/// Runs on every arm.
const BAD_DAYS: &str = include_str!("../../scenarios/bad-days.yaml");
/// How long anything may take to be well again.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn entries() -> Vec<Entry> {
    let entry = |name, run| Entry { name, run };
    vec![
        entry("kills", kills::inside),
        entry("lost_pods", pods::inside),
        entry("recording", recording::inside),
        entry("strangers", socket::inside),
        entry("read_only", state::inside),
    ]
}

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("netns", "bad_days", || scenarios::on_netns(BAD_DAYS)),
        trial("sim", "bad_days", || scenarios::on_sim(BAD_DAYS)),
        trial("netns", "daemons_and_devices_are_killed_again_and_again", || {
            on_lab("kills")
        }),
        trial("netns", "a_pod_that_cannot_be_attached_leaves_nothing", || {
            on_lab("lost_pods")
        }),
        trial("netns", "the_recording_replays_and_holds_no_secret", || {
            on_lab("recording")
        }),
        trial("netns", "strangers_at_the_local_socket_reach_nothing", || {
            on_lab("strangers")
        }),
        trial(
            "netns",
            "a_state_folder_that_is_read_only_costs_new_pods_only",
            || on_lab("read_only"),
        ),
    ]
}

fn on_lab(entry: &str) -> Result<(), Trouble> {
    let binaries = programs::find()?;
    // Beside words for programs, an entry may say what it left out.
    sandboxed::run(entry, &binaries, |message| {
        if let Some(note) = message.as_str() {
            println!("{note}");
        }
    })
}

/// Brings a cluster up, lets the body try it, takes it down, and finds nothing left on the nodes.
pub(crate) fn with_cluster(
    inside: Inside,
    nodes: usize,
    body: impl FnOnce(&mut NetnsArm) -> Result<()>,
) -> Result<()> {
    let reporter: Reporter = inside.reporter;
    let binaries = serde_json::from_value(inside.input).context("the programs' paths")?;
    let mut arm = scenario::start(nodes, both(), &binaries, reporter)?;
    for node in arm.nodes() {
        arm.wait_ready(&node, PATIENCE)?;
    }
    body(&mut arm)?;
    let seen = arm.underlay()?;
    ensure!(
        seen.offenders.is_empty(),
        "seen on the underlay: {}",
        seen.offenders.join("; ")
    );
    ensure!(seen.drops == 0, "the capture lost {} packets", seen.drops);
    let left = arm.shut_down(&mut drop)?;
    ensure!(left.is_empty(), "left on the nodes: {}", left.join("; "));
    Ok(())
}

pub(crate) fn node(number: usize) -> NodeName {
    meshd_lab::plan::Plan::node_name(number)
}

/// Tries until every pod reaches every other, in both families.
fn everyone_reaches_everyone(arm: &mut dyn Arm, pods: &[Pod]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let probes: Vec<Probe> = pods
        .iter()
        .flat_map(|from| {
            pods.iter()
                .filter(move |to| *to != from)
                .map(move |to| (from, to))
        })
        .flat_map(|(from, to)| to.addresses.iter().map(move |address| probe(from, *address)))
        .collect();
    loop {
        let outcomes = arm.probe(&probes)?;
        let failed = probes
            .iter()
            .zip(&outcomes)
            .find(|(_, o)| !matches!(o, Outcome::Answered(_)));
        let Some((probe, outcome)) = failed else {
            return Ok(());
        };
        ensure!(
            Instant::now() < deadline,
            "{} does not reach {}: {outcome:?}",
            probe.from.name(),
            probe.to
        );
    }
}

fn probe(from: &Pod, to: std::net::IpAddr) -> Probe {
    Probe {
        from: Site::Pod(from.clone()),
        to,
        kind: ProbeKind::Udp,
        payload: 300,
        timeout: Duration::from_secs(1),
    }
}

/// An arm's error where anyhow's is wanted is one already; this names what was tried.
fn tried<T>(what: &str, outcome: Result<T, ArmError>) -> Result<T> {
    outcome.with_context(|| what.to_owned())
}
