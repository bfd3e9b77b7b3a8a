//! One node with the kernel's WireGuard, which `auto` chose, and one with `meshd-wg`: handshakes from either side,
//! loss and disorder on the underlay, SCTP, and what the daemons keep of their keys.

use super::lab::{PATIENCE, Prover, device_of, reaches, with_cluster};
use super::memory;
use super::traffic::{Counted, Numbered, sctp_end, sctp_messages, sctp_server};
use anyhow::{Context, Result, ensure};
use meshd_lab::NetnsArm;
use meshd_lab::cluster::node::Mode;
use meshd_lab::sandbox::Inside;
use meshd_model::kernel::DeviceKind;
use meshd_scenario::{Arm, Pod, Site};
use nlink::netlink::tc::NetemConfig;
use nlink::netlink::{Connection, Route};
use nlink::{Percent, TcHandle};
use std::net::SocketAddr;
use std::time::Duration;

/// Between two datagrams.
const INTERVAL: Duration = Duration::from_millis(20);
/// How long streams run under loss.
const STREAM: Duration = Duration::from_secs(10);
/// SCTP messages a direction and family.
const MESSAGES: u64 = 20;

pub(super) const NAME: &str = "mixed";

pub(super) fn inside(inside: Inside) -> Result<()> {
    with_cluster(
        NAME,
        inside,
        &[Mode::Auto, Mode::Userspace],
        |arm, pods, prover| {
            kinds(arm, prover)?;
            handshakes(arm, pods, prover)?;
            sctp(arm, pods, prover)?;
            loss(arm, pods, prover)?;
            memory::prove(arm, prover)
        },
    )
}

/// Mode `auto` takes the kernel's WireGuard where the kernel has it.
fn kinds(arm: &mut NetnsArm, prover: Prover) -> Result<()> {
    let nodes = arm.nodes();
    let kinds = [device_of(arm, &nodes[0])?, device_of(arm, &nodes[1])?];
    prover.proof(
        "mode auto takes the kernel's WireGuard, mode userspace takes meshd-wg",
        kinds == [Some(DeviceKind::Kernel), Some(DeviceKind::Userspace)],
        &[],
        format!("{kinds:?}"),
    );
    Ok(())
}

/// The first packet, so the first handshake, comes from either side.
fn handshakes(arm: &mut NetnsArm, pods: &[Pod], prover: Prover) -> Result<()> {
    let [in_kernel, in_userspace] = pods else {
        anyhow::bail!("two pods are wanted");
    };
    prover.doing("the kernel's side begins");
    let mut answered = reaches(arm, in_kernel, in_userspace, 100_000)?;
    // Without a session, and with nobody to take one up but the pod that sends.
    prover.doing("meshd-wg's side begins");
    let node = arm.nodes()[1].clone();
    arm.cluster().node_mut(&node)?.kill_device()?;
    arm.cluster().node_mut(&node)?.start_device()?;
    arm.wait_ready(&node, PATIENCE)?;
    answered += reaches(arm, in_userspace, in_kernel, 100_000)?;
    answered += reaches(arm, in_kernel, in_userspace, 100_000)?;
    prover.proof(
        "the kernel's WireGuard and meshd-wg carry pods' traffic, whichever begins",
        answered == 18,
        &[("answered", answered)],
        "",
    );
    Ok(())
}

fn sctp(arm: &mut NetnsArm, pods: &[Pod], prover: Prover) -> Result<()> {
    let mut carried = 0;
    let mut port = 7000;
    for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
        for address in &to.addresses {
            prover.doing(format!("SCTP from {} to {address}", from.name));
            // An association that is being closed has its port for a while.
            port += 1;
            let server = sctp_server(
                arm.cluster().netns(&Site::Pod(to.clone()))?,
                address.is_ipv4(),
                port,
            )?;
            let client = arm.cluster().netns(&Site::Pod(from.clone()))?;
            carried += sctp_messages(client, SocketAddr::new(*address, port), MESSAGES)?;
            sctp_end(server)?;
        }
    }
    prover.proof(
        "SCTP passes between pods of different nodes, in both families and directions",
        carried == 4 * MESSAGES,
        &[("messages", carried)],
        "",
    );
    Ok(())
}

/// Loss, disorder and duplicates on the underlay, both ways. WireGuard sends nothing again: some is lost, but what
/// arrives is what was sent, and once.
fn loss(arm: &mut NetnsArm, pods: &[Pod], prover: Prover) -> Result<()> {
    prover.doing("a control stream, while nothing happens to the underlay");
    let control = streams(arm, pods, Duration::from_secs(3))?;
    let runtime = arm.runtime();
    let netlink = {
        let _entered = runtime.enter();
        Connection::<Route>::new().context("open netlink")?
    };
    for node in arm.nodes() {
        let worse = NetemConfig::new()
            .delay(Duration::from_millis(40))
            .jitter(Duration::from_millis(35))
            .loss(Percent::new(5.0))
            .duplicate(Percent::new(5.0))
            .build();
        runtime
            .block_on(netlink.add_qdisc(node.0.as_str(), worse))
            .with_context(|| format!("make the underlay of {node} worse: is the module sch_netem loaded?"))?;
    }
    prover.doing("streams under loss, disorder and duplicates");
    let rough = streams(arm, pods, STREAM)?;
    prover.doing("TCP under loss, disorder and duplicates");
    let tcp = reaches(arm, &pods[0], &pods[1], 50_000)? + reaches(arm, &pods[1], &pods[0], 50_000)?;
    for node in arm.nodes() {
        let better = netlink.del_qdisc(node.0.as_str(), TcHandle::ROOT);
        runtime.block_on(better).context("mend the underlay")?;
    }
    let sum = |of: fn(&Counted) -> u64| rough.iter().map(of).sum::<u64>();
    let control_lost: u64 = control.iter().map(Counted::lost).sum();
    let (sent, lost) = (sum(|c| c.sent), sum(Counted::lost));
    let is_right = sum(|c| c.wrong) == 0 && sum(|c| c.twice) == 0;
    // Four crossings of a lossy port, there and back: 0.95 to the fourth power arrives, 81 percent.
    let is_rough = lost > 0 && sum(|c| c.late) > 0 && lost * 2 < sent;
    prover.proof(
        "under loss, disorder and duplicates on the underlay what arrives is right and comes once, and TCP passes",
        is_right && is_rough && control_lost == 0 && tcp == 12,
        &[
            ("sent", sent),
            ("lost", lost),
            ("out_of_order", sum(|c| c.late)),
            ("wrong", sum(|c| c.wrong)),
            ("twice", sum(|c| c.twice)),
            ("tcp_and_probes", tcp),
            ("control_lost", control_lost),
        ],
        if is_rough { "" } else { "void: the underlay was not as bad as it was made" },
    );
    Ok(())
}

/// One stream each way, beside each other.
fn streams(arm: &mut NetnsArm, pods: &[Pod], time: Duration) -> Result<Vec<Counted>> {
    let mut running = Vec::new();
    for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
        let netns = arm.cluster().netns(&Site::Pod(from.clone()))?;
        running.push(Numbered::start(netns, to.addresses[0], INTERVAL)?);
    }
    std::thread::sleep(time);
    let counted = running
        .into_iter()
        .map(Numbered::stop)
        .collect::<Result<Vec<_>>>()?;
    ensure!(
        counted.iter().all(|c| c.received > 0),
        "a stream got no answer: {counted:?}"
    );
    Ok(counted)
}
