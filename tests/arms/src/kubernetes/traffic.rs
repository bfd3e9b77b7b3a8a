//! Pods that talk while something happens, and whether everyone reaches everyone.

use super::Cluster;
use anyhow::{Context, Result, bail, ensure};
use meshd_kubernetes_arm::{KubernetesArm, wait_for};
use meshd_lab::traffic::connection::Connection;
use meshd_model::NodeName;
use meshd_scenario::{Arm, Outcome, Pod, Probe, ProbeKind, Site};
use std::time::Duration;

/// Between two datagrams of a stream, and two messages of a connection.
const INTERVAL: Duration = Duration::from_millis(10);
/// How long the control goes on, in which nothing happens.
const CONTROL: Duration = Duration::from_secs(4);
const KINDS: [ProbeKind; 3] = [ProbeKind::Icmp, ProbeKind::Udp, ProbeKind::Tcp];
const PAYLOAD: usize = 512;
/// How long one probe waits for its answer.
const ANSWER: Duration = Duration::from_secs(2);

/// A pod on every node, added for one trial.
pub(super) fn one_each(cluster: &mut Cluster, prefix: &str) -> Result<Vec<Pod>> {
    let nodes = cluster.arm.nodes();
    let wanted: Vec<(NodeName, String)> = nodes
        .into_iter()
        .map(|node| (node.clone(), format!("{prefix}-{node}")))
        .collect();
    cluster.arm.add_pods(&wanted)
}

/// What was sent and lost while something happened, or while nothing did.
#[derive(Debug, Default)]
pub(super) struct Tally {
    sent: u64,
    /// Datagrams.
    pub(super) lost: u64,
    messages: u64,
    /// Connections that ended before their time, and why.
    pub(super) broken: Vec<String>,
}

impl Tally {
    /// How long a node was away, if it was one of three: two of three streams pass it.
    pub(super) fn away(&self) -> Duration {
        INTERVAL.saturating_mul(u32::try_from(self.lost / 2).unwrap_or(u32::MAX))
    }
}

/// Streams of numbered datagrams and TCP connections between all pairs of the pods, first while nothing happens, then
/// while `event` does: no datagram is lost and no connection broken. Void if the control loses.
pub(super) fn undisturbed(
    cluster: &mut Cluster,
    pods: &[Pod],
    event: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<()> {
    let (control, ()) = under_traffic(cluster, pods, |_| {
        std::thread::sleep(CONTROL);
        Ok(())
    })?;
    ensure!(
        control.sent > 0 && control.lost == 0 && control.broken.is_empty(),
        "void: the control, in which nothing happens, gave {control:?}"
    );
    let (tally, ()) = under_traffic(cluster, pods, event)?;
    ensure!(
        tally.sent > 0 && tally.lost == 0 && tally.messages > 0 && tally.broken.is_empty(),
        "traffic was disturbed: {tally:?}; the control: {control:?}"
    );
    println!(
        "    {} datagrams and {} messages over TCP, none lost (control: {} and {})",
        tally.sent, tally.messages, control.sent, control.messages
    );
    Ok(())
}

/// Streams and connections between all pairs of the pods, while `event` happens.
pub(super) fn under_traffic<T>(
    cluster: &mut Cluster,
    pods: &[Pod],
    event: impl FnOnce(&mut Cluster) -> Result<T>,
) -> Result<(Tally, T)> {
    let mut streams = Vec::new();
    let mut connections = Vec::new();
    for (from, to) in pairs(pods) {
        streams.push(cluster.arm.start_stream(&from, &to, INTERVAL)?);
        for address in &to.addresses {
            let netns = cluster.arm.netns(&Site::Pod(from.clone()))?;
            let connect = Connection::start(netns, *address, INTERVAL);
            connections.push((
                format!("{} to {address}", from.name),
                cluster.arm.runtime().block_on(connect)?,
            ));
        }
    }
    let outcome = event(cluster);
    let mut tally = Tally::default();
    for stream in streams {
        let report = cluster.arm.stop_stream(stream)?;
        tally.sent += report.sent;
        tally.lost += report.sent - report.received.min(report.sent);
    }
    for (name, connection) in connections {
        let messages = cluster.arm.runtime().block_on(connection.stop())?;
        tally.messages += messages.exchanged;
        tally
            .broken
            .extend(messages.broken.map(|why| format!("{name}: {why}")));
    }
    Ok((tally, outcome?))
}

/// Each pod to the next.
fn pairs(pods: &[Pod]) -> Vec<(Pod, Pod)> {
    let next = pods.iter().cycle().skip(1);
    pods.iter()
        .zip(next)
        .map(|(a, b)| (a.clone(), b.clone()))
        .collect()
}

/// Every pod reaches every other, every node every pod, and every pod every node, in both families and every way of
/// probing, within a time.
pub(super) fn everyone_reaches_everyone(
    arm: &mut KubernetesArm,
    pods: &[Pod],
    within: Duration,
) -> Result<()> {
    let mut probes = Vec::new();
    for from in pods {
        for to in pods.iter().filter(|to| *to != from) {
            probes.extend(probes_between(&Site::Pod(from.clone()), &to.addresses));
        }
        for node in arm.nodes() {
            probes.extend(probes_between(
                &Site::Pod(from.clone()),
                &arm.node_addresses(&node),
            ));
            probes.extend(probes_between(&Site::Node(node), &from.addresses));
        }
    }
    reach(arm, probes, within)
}

/// All ways of probing some addresses.
pub(super) fn probes_between(from: &Site, to: &[std::net::IpAddr]) -> Vec<Probe> {
    let all = to
        .iter()
        .flat_map(|to| KINDS.iter().map(move |kind| (*to, *kind)));
    all.map(|(to, kind)| Probe {
        from: from.clone(),
        to,
        kind,
        payload: PAYLOAD,
        timeout: ANSWER,
    })
    .collect()
}

/// All of these are answered within a time; what failed is tried again.
pub(super) fn reach(arm: &mut KubernetesArm, probes: Vec<Probe>, within: Duration) -> Result<()> {
    ensure!(!probes.is_empty(), "there is nothing to probe");
    let count = probes.len();
    let mut left = probes;
    wait_for("every probe to be answered", within, || {
        let outcomes = arm.probe(&left)?;
        let tried = std::mem::take(&mut left).into_iter().zip(outcomes);
        let failed: Vec<_> = tried
            .filter(|(_, o)| !matches!(o, Outcome::Answered(_)))
            .collect();
        let Some((probe, outcome)) = failed.first() else {
            return Ok(Some(()));
        };
        let (from, to, kind) = (probe.from.name(), probe.to, probe.kind);
        let shown = format!(
            "{} of {count} failed, {from} to {to} by {kind}: {outcome:?}",
            failed.len()
        );
        left = failed.into_iter().map(|(probe, _)| probe).collect();
        bail!("{shown}")
    })
    .context("not everyone reaches everyone")
}

/// Of all that was captured since the cluster came up, nothing is a pod's. Void if the capture has lost packets, or does not
/// see what is sent in the clear on purpose.
pub(super) fn nothing_in_the_clear(arm: &mut KubernetesArm) -> Result<()> {
    arm.send_control_marker()?;
    let seen = arm.underlay()?;
    let counts = seen.control_markers > 0 && seen.drops == 0 && seen.wireguard > 0;
    ensure!(counts, "void: the capture says {seen:?}");
    ensure!(
        seen.pod_addresses == 0 && seen.markers == 0,
        "in the clear: {}",
        seen.offenders.join("; ")
    );
    println!(
        "    {} packets captured, {} of them WireGuard, none in the clear",
        seen.packets, seen.wireguard
    );
    Ok(())
}
