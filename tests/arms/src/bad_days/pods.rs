//! Pods whose namespace is gone, or whose interface name is taken.

use super::{node, tried, with_cluster};
use anyhow::{Context, Result, ensure};
use meshd_lab::NetnsArm;
use meshd_lab::netns::Netns;
use meshd_lab::sandbox::Inside;
use meshd_scenario::Arm;
use nlink::netlink::link::VethLink;
use std::path::Path;

pub(super) fn inside(inside: Inside) -> Result<()> {
    with_cluster(inside, 1, |arm| {
        no_namespace(arm)?;
        name_is_taken(arm)?;
        namespace_goes_before_del(arm)?;
        let left = arm.residue()?;
        ensure!(left.is_empty(), "left: {}", left.join("; "));
        ensure!(
            tried("status", arm.attachments(&node(1)))?.is_empty(),
            "the daemon still knows a pod"
        );
        Ok(())
    })
}

/// What a runtime is told, trying again for as long as it is told to.
fn failing_add(arm: &mut NetnsArm, name: &str, netns: &Path) -> Result<String> {
    let runtime = arm.runtime();
    let uid = runtime.block_on(arm.cluster().kubernetes.create_pod(&node(1), name))?;
    let deadline = std::time::Instant::now() + super::PATIENCE;
    let error = loop {
        let invocation = arm
            .cluster()
            .invocation(&node(1), name, netns, Some((name, &uid)))?;
        let outcome = invocation.run("ADD");
        let error = outcome
            .err()
            .with_context(|| format!("ADD of {name} has succeeded"))?;
        let error = format!("{error:#}");
        if !error.contains("error 11:") || std::time::Instant::now() > deadline {
            break error;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    arm.cluster()
        .invocation(&node(1), name, netns, Some((name, &uid)))?
        .run("DEL")?;
    runtime.block_on(arm.cluster().kubernetes.delete_pod(name))?;
    nothing_is_left(arm, name)?;
    Ok(error)
}

/// Soon, that is: DEL is answered when the pod is cut off, and its link and lease go after.
pub(crate) fn nothing_is_left(arm: &mut NetnsArm, after: &str) -> Result<()> {
    let deadline = std::time::Instant::now() + super::PATIENCE;
    loop {
        let runtime = arm.runtime();
        let cluster = arm.cluster();
        let lines = runtime.block_on(meshd_lab::state::lines(&cluster.node(&node(1))?.netns))?;
        let links = lines.iter().filter(|l| l.starts_with("interface mshp"));
        let mut left: Vec<_> = links.cloned().collect();
        left.extend(cluster.node(&node(1))?.leases()?);
        if left.is_empty() {
            return Ok(());
        }
        ensure!(std::time::Instant::now() < deadline, "after {after}: {left:?}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn no_namespace(arm: &mut NetnsArm) -> Result<()> {
    let error = failing_add(arm, "nowhere", Path::new("/run/netns/never-was"))?;
    ensure!(
        error.contains("/run/netns/never-was"),
        "the error does not name the path: {error}"
    );
    let plain = Path::new("/run/netns/plain-file");
    std::fs::write(plain, "")?;
    let error = failing_add(arm, "no-namespace", plain)?;
    std::fs::remove_file(plain)?;
    ensure!(
        error.contains("/run/netns/plain-file"),
        "the error does not name the path: {error}"
    );
    Ok(())
}

fn name_is_taken(arm: &mut NetnsArm) -> Result<()> {
    let netns = Netns::create("cni-taken")?;
    let runtime = arm.runtime();
    runtime.block_on(async {
        netns
            .netlink()?
            .add_link(VethLink::new("eth0", "other"))
            .await
            .map_err(anyhow::Error::from)
    })?;
    let error = failing_add(arm, "taken", netns.path())?;
    ensure!(
        error.contains("eth0"),
        "the error does not name the interface: {error}"
    );
    let lines = runtime.block_on(meshd_lab::state::lines(&netns))?;
    ensure!(
        lines.contains("interface eth0"),
        "the interface that was there is gone: {lines:?}"
    );
    Ok(())
}

/// The runtime has removed the namespace; DEL succeeds all the same, also a second time.
fn namespace_goes_before_del(arm: &mut NetnsArm) -> Result<()> {
    let netns = Netns::create("cni-goes")?;
    let runtime = arm.runtime();
    let uid = runtime.block_on(arm.cluster().kubernetes.create_pod(&node(1), "goes"))?;
    let path = netns.path().to_owned();
    let deadline = std::time::Instant::now() + super::PATIENCE;
    loop {
        match arm
            .cluster()
            .invocation(&node(1), "goes", &path, Some(("goes", &uid)))?
            .run("ADD")
        {
            Ok(_) => break,
            Err(error) if std::time::Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(20)),
        }
    }
    drop(netns);
    for _ in 0..2 {
        arm.cluster()
            .invocation(&node(1), "goes", &path, Some(("goes", &uid)))?
            .run("DEL")?;
        nothing_is_left(arm, "goes")?;
    }
    runtime.block_on(arm.cluster().kubernetes.delete_pod("goes"))
}
