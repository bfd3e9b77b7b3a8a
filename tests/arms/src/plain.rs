//! The lab's capture and probes, without meshd: they see what is there.

use crate::arms::trial;
use crate::sandboxed::run;
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use meshd_lab::capture::Capture;
use meshd_lab::netns::Netns;
use meshd_lab::plan::Plan;
use meshd_lab::sandbox::{Entry, Inside};
use meshd_lab::traffic::echo::Echo;
use meshd_lab::traffic::neighbour::Neighbour;
use meshd_lab::traffic::probe::Try;
use meshd_lab::traffic::stream::Stream;
use meshd_lab::underlay::Underlay;
use meshd_scenario::{Outcome, ProbeKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

pub(crate) const ENTRY: Entry = Entry {
    name: "plain",
    run: plain,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("netns", "probes_and_capture_see_what_is_there", || {
        run(ENTRY.name, &(), drop)
    })]
}

/// Without meshd, two machines reach each other in plaintext, and the capture says so.
fn plain(inside: Inside) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(plain_async(&inside))
}

async fn plain_async(inside: &Inside) -> Result<()> {
    let underlay = Underlay::create().await?;
    let capture = Capture::start(underlay.bridge_index().await?, &Plan::cluster_pod_cidrs())?;
    let mut machines = Vec::new();
    for number in 1..=2 {
        let netns = Netns::create(&Plan::node_name(number).0)?;
        inside.reporter.namespace();
        let (v4, v6) = Plan::node(number);
        underlay.plug(&netns, v4, &[v4.into(), v6.into()]).await?;
        machines.push(netns);
    }
    let echo = Echo::start(&machines[1])?;
    probes_are_answered(&machines[0]).await?;
    let seen = capture.report()?;
    ensure!(
        seen.markers >= 6 && seen.drops == 0,
        "plaintext was not seen: {seen:?}"
    );
    ensure!(seen.control_markers == 0 && seen.pod_addresses == 0, "{seen:?}");
    neighbour_is_heard(&underlay, &echo, &capture).await?;
    pods_are_seen(&machines[0], &capture)
}

async fn probes_are_answered(from: &Netns) -> Result<()> {
    let (v4, v6) = Plan::node(2);
    for kind in [ProbeKind::Icmp, ProbeKind::Udp, ProbeKind::Tcp] {
        for to in [IpAddr::from(v4), IpAddr::from(v6)] {
            let outcome = Try::open(from, to, kind, 1200, Duration::from_secs(2))
                .run()
                .await;
            ensure!(
                matches!(outcome, Outcome::Answered(_)),
                "{kind:?} to {to}: {outcome:?}"
            );
        }
    }
    let nobody = IpAddr::from(Plan::node(99).0);
    let outcome = Try::open(from, nobody, ProbeKind::Udp, 64, Duration::from_millis(300))
        .run()
        .await;
    ensure!(!matches!(outcome, Outcome::Answered(_)), "nobody has answered");
    let stream = Stream::start(from, v4.into(), Duration::from_millis(2))?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let report = stream.stop().await?;
    ensure!(report.sent > 10 && report.received == report.sent, "{report:?}");
    Ok(())
}

async fn neighbour_is_heard(underlay: &Underlay, echo: &Echo, capture: &Capture) -> Result<()> {
    let netns = Netns::create("neighbour")?;
    let (v4, v6) = Plan::neighbour();
    underlay.plug(&netns, v4, &[v4.into(), v6.into()]).await?;
    let neighbour = Neighbour::new(netns);
    neighbour.send_marker()?;
    let (v4, v6) = Plan::node(2);
    for to in [IpAddr::from(v4), IpAddr::from(v6)] {
        let payload = neighbour.send(to, Plan::mac(v4))?;
        for _ in 0..100 {
            if echo.heard(&payload) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ensure!(
            echo.heard(&payload),
            "the neighbour was not heard at {to}: its silence would prove nothing"
        );
    }
    let seen = capture.report()?;
    ensure!(seen.control_markers >= 3, "the neighbour was not seen: {seen:?}");
    Ok(())
}

fn pods_are_seen(from: &Netns, capture: &Capture) -> Result<()> {
    let pod = Plan::pod_cidrs(7)[0].ip();
    from.run(move || UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", SocketAddr::new(pod, 9)))??;
    let mut seen = capture.report()?;
    for _ in 0..100 {
        if seen.pod_addresses > 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
        seen = capture.report()?;
    }
    ensure!(
        seen.pod_addresses > 0,
        "a packet to {pod} in clear was not seen: {seen:?}"
    );
    judge_offenders(&seen.offenders)
}

fn judge_offenders(offenders: &[String]) -> Result<()> {
    ensure!(!offenders.is_empty(), "the offenders are not named");
    Ok(())
}
