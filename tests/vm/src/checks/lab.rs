//! What the checks that are no scenarios have in common: a cluster in a sandbox, and proofs.

use crate::console::Console;
use anyhow::{Context, Result, bail, ensure};
use meshd_lab::cluster::node::{Mode, Setup};
use meshd_lab::sandbox::{Inside, Reporter, Sandbox, StartError};
use meshd_lab::scenario::{self, Event};
use meshd_lab::{Binaries, NetnsArm};
use meshd_model::NodeName;
use meshd_model::kernel::DeviceKind;
use meshd_scenario::{Arm, Outcome, Pod, Probe, ProbeKind, Proof, Site};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long anything may take: this processor is slow.
pub(super) const PATIENCE: Duration = Duration::from_secs(240);

/// Runs an entry in a sandbox and hands its proofs to the console: whether all hold, and nothing is left.
pub(super) fn run(entry: &str, binaries: &Binaries, folder: &Path, console: &mut Console) -> Result<bool> {
    let mut sandbox = match Sandbox::start(entry, binaries, folder) {
        Ok(sandbox) => sandbox,
        Err(StartError::Refused(refusal)) => bail!("the VM's kernel refuses: {refusal}"),
        Err(StartError::Failed(error)) => return Err(error),
    };
    let mut held = true;
    let mut proofs = 0;
    while let Some(message) = sandbox.message() {
        let event: Event = serde_json::from_value(message).context("a message of the sandbox")?;
        if let Event::Proof(proof) = &event {
            held &= proof.held;
            proofs += 1;
        }
        console.event(entry, &event);
    }
    let ended = sandbox.finish();
    if let Some(failure) = ended.failure {
        bail!(failure);
    }
    ensure!(
        ended.remains.is_empty(),
        "left on the machine: {}",
        ended.remains.join("; ")
    );
    ensure!(proofs > 0, "nothing was proved");
    Ok(held)
}

/// Proofs of one entry.
#[derive(Clone, Copy)]
pub(super) struct Prover {
    pub(super) step: &'static str,
    pub(super) reporter: Reporter,
}

impl Prover {
    pub(super) fn doing(&self, what: impl Into<String>) {
        self.reporter.send(&Event::Doing(what.into()));
    }

    pub(super) fn proof(&self, name: &str, held: bool, numbers: &[(&str, u64)], detail: impl Into<String>) {
        self.reporter.send(&Event::Proof(Proof {
            step: self.step.to_owned(),
            name: name.to_owned(),
            held,
            numbers: numbers.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect(),
            detail: detail.into(),
        }));
    }
}

/// Brings a cluster up with one pod on each node, lets the body try it, takes it down; finds nothing in the clear and
/// nothing left on the nodes.
pub(super) fn with_cluster(
    step: &'static str,
    inside: Inside,
    modes: &[Mode],
    body: impl FnOnce(&mut NetnsArm, &[Pod], Prover) -> Result<()>,
) -> Result<()> {
    let prover = Prover {
        step,
        reporter: inside.reporter,
    };
    let binaries = serde_json::from_value(inside.input).context("the programs' paths")?;
    prover.doing("bringing a cluster up");
    let setups: Vec<Setup> = modes.iter().copied().map(Setup::from).collect();
    let mut arm = scenario::start_with(&setups, meshd_lab::plan::both(), &binaries, inside.reporter)?;
    arm.cluster().add_patience = PATIENCE;
    let mut pods = Vec::new();
    for node in arm.nodes() {
        arm.wait_ready(&node, PATIENCE)?;
        pods.push(arm.add_pod(&node, &format!("pod-{}", node.0))?);
    }
    arm.send_control_marker()?;
    body(&mut arm, &pods, prover)?;
    let seen = arm.underlay()?;
    prover.proof(
        "the underlay carried WireGuard, and nothing of a pod in the clear",
        seen.offenders.is_empty()
            && seen.drops == 0
            && seen.wireguard > 0
            && seen.control_markers > 0
            && seen.pod_addresses == 0
            && seen.markers == 0,
        &[
            ("packets", seen.packets),
            ("wireguard", seen.wireguard),
            ("pod_addresses", seen.pod_addresses),
            ("markers", seen.markers),
            ("control_markers", seen.control_markers),
            ("drops", seen.drops),
        ],
        seen.offenders.join("; "),
    );
    let left = arm.shut_down(&mut drop)?;
    prover.proof(
        "after shutdown nothing is left on a node",
        left.is_empty(),
        &[("left", left.len() as u64)],
        left.join("; "),
    );
    Ok(())
}

/// What carries a node's tunnel, as its daemon sees it.
pub(super) fn device_of(arm: &mut NetnsArm, node: &NodeName) -> Result<Option<DeviceKind>> {
    Ok(arm.status(node)?.device)
}

/// Waits until it is that.
pub(super) fn wait_for_device(arm: &mut NetnsArm, node: &NodeName, wanted: DeviceKind) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = arm.status(node).map(|s| s.device).ok().flatten();
        if seen == Some(wanted) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "the device of {node} is {seen:?} after {PATIENCE:?}, not {wanted:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Tries until the pod reaches the other in both families by all means; gives how many probes were answered.
pub(super) fn reaches(arm: &mut NetnsArm, from: &Pod, to: &Pod, payload: usize) -> Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    let mut probes = Vec::new();
    for address in &to.addresses {
        for kind in [ProbeKind::Icmp, ProbeKind::Udp, ProbeKind::Tcp] {
            // A datagram fits into one packet, or it would be another test.
            let payload = if kind == ProbeKind::Tcp { payload } else { 1000 };
            probes.push(Probe {
                from: Site::Pod(from.clone()),
                to: *address,
                kind,
                payload,
                timeout: Duration::from_secs(20),
            });
        }
    }
    let count = probes.len() as u64;
    loop {
        let outcomes = arm.probe(&probes)?;
        let garbled = outcomes.iter().find(|o| matches!(o, Outcome::Garbled(_)));
        ensure!(garbled.is_none(), "{} to {}: {garbled:?}", from.name, to.name);
        probes = probes
            .into_iter()
            .zip(&outcomes)
            .filter(|(_, o)| !matches!(o, Outcome::Answered(_)))
            .map(|(p, _)| p)
            .collect();
        if probes.is_empty() {
            return Ok(count);
        }
        ensure!(
            Instant::now() < deadline,
            "{} does not reach {}: {outcomes:?}",
            from.name,
            to.name
        );
    }
}
