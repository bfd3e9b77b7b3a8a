//! The lease store alone, killed at each system call from its opening to its end: what is in it is of before or after a
//! change, in the order of the changes, and nothing is damaged or half there.

use crate::plugin::traced;
use crate::trace::Counts;
use anyhow::{Context, Result, bail};
use meshd_ipam_store::{FileStore, LeaseStore};
use meshd_model::attachment::MacAddr;
use meshd_model::{AttachmentId, Lease, LeasePhase};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The boots before and after the changes; with the same one, the leases stay.
const BOOTS: [&str; 2] = ["boot-1", "boot-2"];
/// A stop that is never reached.
const NEVER: u64 = u64::MAX;

/// What the child does until it is killed.
#[derive(clap::Args)]
pub(crate) struct Options {
    folder: PathBuf,
    boot: String,
}

fn lease(container: &str, version: u32) -> Lease {
    Lease {
        id: id(container),
        phase: LeasePhase::Ready,
        pod: None,
        netns: format!("/run/netns/{version}"),
        host_ifname: "mshp0123456789".to_owned(),
        host_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mac: MacAddr([2, 0, 0, 0, 0, 2]),
        addresses: Vec::new(),
        token: 0,
        secondary: false,
        network: String::new(),
    }
}

fn id(container: &str) -> AttachmentId {
    AttachmentId {
        container_id: container.to_owned(),
        ifname: "eth0".to_owned(),
    }
}

/// The store's contents after the first changes.
fn expected(changes: usize, is_same_boot: bool) -> Vec<Lease> {
    let mut leases = match is_same_boot {
        true => vec![lease("a", 1), lease("c", 1)],
        false => Vec::new(),
    };
    if changes >= 1 {
        leases.retain(|held| held.id.container_id != "a");
        leases.insert(0, lease("a", 2));
    }
    if changes >= 2 {
        leases.insert(1, lease("b", 1));
    }
    if changes >= 3 {
        leases.retain(|held| held.id.container_id != "c");
    }
    leases
}

/// The child: replaces one lease, adds one, removes one.
pub(crate) fn change(options: &Options) -> Result<()> {
    let mut store = FileStore::open(&options.folder, &options.boot)?;
    store.load()?;
    store.put(&lease("a", 2))?;
    store.put(&lease("b", 1))?;
    Ok(store.remove(&id("c"))?)
}

/// Takes every stop, with the same boot and with another; how many there are.
pub(crate) fn walk(place: &Path) -> Result<u64> {
    let mut all = 0;
    for boot in BOOTS {
        let stops = trial(place, boot, NEVER)?;
        for at in 1..=stops {
            trial(place, boot, at)
                .with_context(|| format!("the store, killed at stop {at} of {stops} in {boot}"))?;
        }
        all += stops;
    }
    Ok(all)
}

fn trial(place: &Path, boot: &str, at: u64) -> Result<u64> {
    let folder = place.join("store-alone");
    let mut store = FileStore::open(&folder, BOOTS[0])?;
    store.put(&lease("a", 1))?;
    store.put(&lease("c", 1))?;
    drop(store);
    let own = std::env::current_exe().context("find this program")?;
    let count = place.join("count");
    let traced = traced(&own, at, &count);
    let done = Command::new(&traced[0])
        .args(&traced[1..])
        .arg(own)
        .arg("store")
        .args([folder.as_os_str(), boot.as_ref()])
        .status()
        .context("start the tracer")?;
    if done.code().is_some_and(|code| code != 0) {
        bail!("the child ends with {done}");
    }
    let is_same_boot = boot == BOOTS[0];
    check(&folder, boot, is_same_boot, done.success())?;
    std::fs::remove_dir_all(&folder).context("remove the store")?;
    let count = std::fs::read_to_string(count).context("read the count of system calls")?;
    Ok(Counts::parse(&count)?.stops)
}

fn check(folder: &Path, boot: &str, is_same_boot: bool, is_done: bool) -> Result<()> {
    let mut store = FileStore::open(folder, boot)?;
    let loaded = store.load()?;
    if !loaded.damaged.is_empty() {
        bail!("damaged by a kill: {:?}", loaded.damaged);
    }
    let state = (0..=3).rfind(|changes| loaded.leases == expected(*changes, is_same_boot));
    match state {
        None => bail!("no state between two changes: {:?}", loaded.leases),
        Some(changes) if is_done && changes != 3 && is_same_boot => {
            bail!("done, and only {changes} of the changes are there")
        }
        Some(_) => {}
    }
    let files = std::fs::read_dir(folder.join("leases"))
        .context("list the leases")?
        .count();
    if files != loaded.leases.len() {
        bail!("{files} files for {} leases", loaded.leases.len());
    }
    Ok(())
}
