//! A state folder that cannot be written.

use super::{everyone_reaches_everyone, node, tried, with_cluster};
use anyhow::{Context, Result, ensure};
use meshd_lab::sandbox::Inside;
use meshd_scenario::Arm;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::path::Path;
use std::time::{Duration, Instant};

pub(super) fn inside(inside: Inside) -> Result<()> {
    with_cluster(inside, 2, |arm| {
        let pods = vec![
            tried("ADD", arm.add_pod(&node(1), "a"))?,
            tried("ADD", arm.add_pod(&node(2), "b"))?,
        ];
        everyone_reaches_everyone(arm, &pods)?;
        let state = arm.cluster().node(&node(1))?.paths().state.clone();
        read_only(&state)?;
        let refused = arm.add_pod(&node(1), "c");
        let error = refused
            .err()
            .context("a pod was added whose lease cannot be kept")?
            .to_string();
        ensure!(
            error.contains("lease") || error.contains("store"),
            "the error does not say why: {error}"
        );
        everyone_reaches_everyone(arm, &pods)?;
        umount2(&state, MntFlags::MNT_DETACH).context("make the state folder writable")?;
        let runtime = arm.runtime();
        runtime.block_on(arm.cluster().kubernetes.delete_pod("c"))?;
        let d = add_again(arm)?;
        everyone_reaches_everyone(arm, &[pods[0].clone(), pods[1].clone(), d])
    })
}

/// A bind mount of the folder onto itself can be read-only alone.
fn read_only(folder: &Path) -> Result<()> {
    let none = None::<&str>;
    mount(Some(folder), folder, none, MsFlags::MS_BIND, none).context("bind the state folder")?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, folder, none, flags, none).context("make the state folder read-only")
}

/// The daemon tries the store again by itself.
fn add_again(arm: &mut dyn Arm) -> Result<meshd_scenario::Pod> {
    let deadline = Instant::now() + super::PATIENCE;
    for attempt in 0.. {
        match arm.add_pod(&node(1), &format!("d-{attempt}")) {
            Ok(pod) => return Ok(pod),
            Err(error) => ensure!(Instant::now() < deadline, "with a writable folder: {error}"),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    unreachable!("the deadline ends the loop")
}
