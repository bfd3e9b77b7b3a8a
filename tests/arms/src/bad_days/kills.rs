//! kill -9 of daemons in the middle of ADD and DEL, and of devices.

use super::{everyone_reaches_everyone, node, tried, with_cluster};
use anyhow::{Result, ensure};
use meshd_lab::sandbox::Inside;
use meshd_lab::{NetnsArm, state};
use meshd_scenario::{Arm, Pod};
use std::collections::BTreeSet;
use std::time::Duration;

/// How often a daemon is killed.
const ROUNDS: u64 = 12;

pub(super) fn inside(inside: Inside) -> Result<()> {
    with_cluster(inside, 2, |arm| {
        let stays = vec![
            tried("ADD", arm.add_pod(&node(1), "stays-1"))?,
            tried("ADD", arm.add_pod(&node(2), "stays-2"))?,
        ];
        everyone_reaches_everyone(arm, &stays)?;
        residue_would_be_seen(arm, &stays[0])?;
        daemon_loop(arm, &stays)?;
        device_loop(arm, &stays)
    })
}

/// The control of "nothing is left": while the pod is there, each kind of thing is found.
fn residue_would_be_seen(arm: &mut NetnsArm, pod: &Pod) -> Result<()> {
    let runtime = arm.runtime();
    let node = arm.cluster().node(&pod.node)?;
    let addresses = pod.addresses.iter().copied().collect();
    let guards = runtime.block_on(state::guards(&node.netns, &addresses, &BTreeSet::new()))?;
    ensure!(!guards.is_empty(), "no guard of {} was found", pod.name);
    let lines = runtime.block_on(state::lines(&node.netns))?;
    let count = |what: &str| lines.iter().filter(|l| l.starts_with(what)).count();
    ensure!(
        count("interface mshp") == 1,
        "no interface of {} was found: {lines:?}",
        pod.name
    );
    for address in &pod.addresses {
        ensure!(
            count(&format!("route {address}/")) > 0,
            "no route to {address} was found: {lines:?}"
        );
    }
    ensure!(
        count("rule ") > 6 && count("nftables table inet meshd") == 1,
        "{lines:?}"
    );
    ensure!(node.leases()?.len() == 1, "no lease of {} was found", pod.name);
    Ok(())
}

/// Each round kills the daemon a little later in an ADD and a DEL, which a runtime tries again.
fn daemon_loop(arm: &mut NetnsArm, stays: &[Pod]) -> Result<()> {
    let mut pods = stays.to_vec();
    for round in 0..ROUNDS {
        let victim = node(usize::try_from(round % 2)? + 1);
        let name = format!("round-{round}");
        let killed = kill_during(arm, &victim, Duration::from_millis(round * 3), &name)?;
        pods.extend(killed);
        no_address_twice(&pods)?;
    }
    everyone_reaches_everyone(arm, &pods)?;
    let runtime = arm.runtime();
    runtime.block_on(arm.cluster().settle())?;
    for number in 1..=2 {
        let known: BTreeSet<_> = arm.attachments(&node(number))?.into_iter().collect();
        let there: BTreeSet<_> = arm
            .cluster()
            .pods()
            .filter(|p| p.pod.node == node(number))
            .map(|p| p.sandbox.container_id.clone())
            .collect();
        ensure!(
            known == there,
            "the daemon of {} knows {known:?}, there are {there:?}",
            node(number)
        );
    }
    for pod in pods.drain(stays.len()..) {
        tried("DEL", arm.delete_pod(&pod))?;
    }
    let left = arm.residue()?;
    ensure!(left.is_empty(), "left of deleted pods: {}", left.join("; "));
    everyone_reaches_everyone(arm, stays)
}

/// Begins an ADD, kills the daemon after a while, starts it again; the ADD is tried again until it succeeds.
fn kill_during(
    arm: &mut NetnsArm,
    victim: &meshd_model::NodeName,
    after: Duration,
    name: &str,
) -> Result<Option<Pod>> {
    let pid = arm.cluster().node(victim)?.agent_pid()?;
    let killer = std::thread::spawn(move || {
        std::thread::sleep(after);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
    });
    // While the daemon is dead, a runtime is told to try again later; later is when it lives again.
    let patience = std::mem::take(&mut arm.cluster().add_patience);
    let first = arm.add_pod(victim, name);
    arm.cluster().add_patience = patience;
    killer
        .join()
        .map_err(|_| anyhow::anyhow!("the killer's thread"))??;
    arm.cluster().node_mut(victim)?.kill_agent()?;
    arm.start_agent(victim)?;
    match first {
        Ok(pod) => Ok(Some(pod)),
        // A runtime that got no result runs DEL, when it can, and ADD with a new sandbox.
        Err(_) => {
            arm.wait_ready(victim, super::PATIENCE)?;
            Ok(Some(tried(
                "the second ADD",
                arm.add_pod(victim, &format!("{name}-again")),
            )?))
        }
    }
}

fn no_address_twice(pods: &[Pod]) -> Result<()> {
    let mut seen = BTreeSet::new();
    let twice = pods.iter().flat_map(|p| &p.addresses).find(|a| !seen.insert(**a));
    ensure!(twice.is_none(), "{twice:?} was handed out twice");
    Ok(())
}

/// The device's process is killed and started again, as whoever supervises it would: the daemon gives it its key and
/// its peers back.
fn device_loop(arm: &mut NetnsArm, stays: &[Pod]) -> Result<()> {
    for round in 0..3 {
        let victim = node(round % 2 + 1);
        arm.cluster().node_mut(&victim)?.kill_device()?;
        arm.cluster().node_mut(&victim)?.start_device()?;
        everyone_reaches_everyone(arm, stays)?;
    }
    Ok(())
}
