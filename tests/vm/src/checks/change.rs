//! A live node changes from `meshd-wg` to the kernel's WireGuard and back, under streams of numbered datagrams in both
//! directions, beside a control between nodes that do not change.

use super::lab::{PATIENCE, Prover, reaches, wait_for_device, with_cluster};
use super::traffic::{Counted, Numbered};
use anyhow::{Context, Result};
use meshd_lab::NetnsArm;
use meshd_lab::cluster::node::Mode;
use meshd_lab::sandbox::Inside;
use meshd_model::NodeName;
use meshd_model::kernel::DeviceKind;
use meshd_scenario::{Arm, Pod, Site};
use std::time::{Duration, Instant};

/// Between two datagrams of a stream.
const INTERVAL: Duration = Duration::from_millis(50);
/// How long streams run before and after.
const BESIDE: Duration = Duration::from_secs(3);
/// What a handshake may take on this processor, from the first message to the first packet under the new session, with
/// the change itself: the longest that a stream may be interrupted. On a processor that is not translated, all of it is
/// some milliseconds.
const HANDSHAKE: Duration = Duration::from_millis(1500);

pub(super) const NAME: &str = "change";

pub(super) fn inside(inside: Inside) -> Result<()> {
    let modes = [Mode::Userspace, Mode::Userspace, Mode::Kernel];
    with_cluster(NAME, inside, &modes, |arm, pods, prover| {
        let changing = arm.nodes()[0].clone();
        reaches(arm, &pods[0], &pods[1], 1000)?;
        reaches(arm, &pods[1], &pods[2], 1000)?;
        reaches(arm, &pods[2], &pods[0], 1000)?;
        change(
            arm,
            pods,
            prover,
            "from meshd-wg to the kernel's WireGuard",
            |arm| {
                restart_as(arm, &changing, Mode::Kernel)?;
                wait_for_device(arm, &changing, DeviceKind::Kernel)?;
                // Its interface was deleted, so it has ended; this forgets it.
                arm.cluster().node_mut(&changing)?.kill_device()
            },
        )?;
        change(
            arm,
            pods,
            prover,
            "from the kernel's WireGuard to meshd-wg",
            |arm| {
                arm.cluster().node_mut(&changing)?.start_device()?;
                restart_as(arm, &changing, Mode::Userspace)?;
                wait_for_device(arm, &changing, DeviceKind::Userspace)
            },
        )
    })
}

/// The configuration is changed and the daemon is restarted: all that an operator does.
fn restart_as(arm: &mut NetnsArm, node: &NodeName, mode: Mode) -> Result<()> {
    let node = arm.cluster().node_mut(node)?;
    node.set_mode(mode)?;
    node.kill_agent()?;
    node.start_agent()
}

fn change(
    arm: &mut NetnsArm,
    pods: &[Pod],
    prover: Prover,
    what: &str,
    body: impl FnOnce(&mut NetnsArm) -> Result<()>,
) -> Result<()> {
    prover.doing(what);
    // From the node that changes, to it, and between the others.
    let pairs = [(0, 1), (2, 0), (1, 2)];
    let mut streams = Vec::new();
    for (from, to) in pairs {
        let netns = arm.cluster().netns(&Site::Pod(pods[from].clone()))?;
        streams.push(Numbered::start(netns, pods[to].addresses[0], INTERVAL)?);
    }
    std::thread::sleep(BESIDE);
    let began = Instant::now();
    body(arm)?;
    let took = began.elapsed();
    let node = arm.nodes()[0].clone();
    arm.wait_ready(&node, PATIENCE)?;
    std::thread::sleep(BESIDE);
    let counted = streams
        .into_iter()
        .map(Numbered::stop)
        .collect::<Result<Vec<_>>>()?;
    let [out, back, control] = &counted[..] else {
        anyhow::bail!("three streams were started");
    };
    let millis = |c: &Counted| c.window * INTERVAL.as_millis() as u64;
    let limit = u64::try_from(HANDSHAKE.as_millis())?;
    let is_right = counted.iter().all(|c| c.wrong == 0 && c.twice == 0);
    let is_short = millis(out) <= limit && millis(back) <= limit;
    prover.proof(
        &format!("a change {what} loses at most the packets of one handshake"),
        is_right && is_short && control.lost() == 0 && out.received > 0 && back.received > 0,
        &[
            ("sent_from", out.sent),
            ("lost_from", out.lost()),
            ("sent_to", back.sent),
            ("lost_to", back.lost()),
            ("interrupted_ms", millis(out).max(millis(back))),
            ("control_sent", control.sent),
            ("control_lost", control.lost()),
            ("whole_ms", u64::try_from(took.as_millis())?),
        ],
        match control.lost() {
            0 => "",
            _ => "void: the control stream lost packets too",
        },
    );
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0)] {
        reaches(arm, &pods[from], &pods[to], 1000).context("after the change")?;
    }
    Ok(())
}
