//! meshd on a node of the cluster: its socket, its process.

use crate::lab::Lab;
use anyhow::{Context, Result, bail};
use meshd_lab::cluster::agent;
use meshd_model::NodeName;
use meshd_model::status::Status;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

const SOCKET: &str = "run/meshd/meshd.sock";

/// What `meshctl status` shows on the node.
pub(crate) fn status(lab: &Lab, node: &NodeName, within: Duration) -> Result<Status> {
    agent::status(&lab.root(node)?.join(SOCKET), within)
}

/// The processes of the node's own network namespace that have this name, as this machine numbers them.
pub(crate) fn processes(lab: &Lab, node: &NodeName, name: &str) -> Result<Vec<Pid>> {
    let path = lab.netns(&node.0);
    let inode = fs::metadata(&path)
        .with_context(|| format!("look at {}", path.display()))?
        .ino();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list the processes")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        // A process may be gone by now.
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let netns = fs::metadata(entry.path().join("ns/net")).map_or(0, |m| m.ino());
        if comm.trim_end() == name && netns == inode {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

/// kill -9 of the node's processes of this name; an error if there is none.
pub(crate) fn kill_all(lab: &Lab, node: &NodeName, name: &str) -> Result<()> {
    let found = processes(lab, node, name)?;
    if found.is_empty() {
        bail!("no {name} runs on {node}");
    }
    for pid in found {
        kill(pid, Signal::SIGKILL).with_context(|| format!("kill {name} ({pid}) of {node}"))?;
    }
    Ok(())
}
