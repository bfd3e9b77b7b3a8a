//! What pods that are gone have left on their nodes.

use crate::lab::Lab;
use crate::{agent, pods};
use anyhow::{Context, Result};
use meshd_lab::netns::Netns;
use meshd_lab::state;
use meshd_model::NodeName;
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Host ends of pods' interfaces begin so.
const INTERFACE: &str = "interface mshp";
/// kube-proxy removes chains of endpoints that are gone no sooner than at the next change of a Service.
const KUBE_PROXY: &str = "nftables kube-proxy/";
/// A kubelet may delete a pod's object before its runtime has taken its sandbox down.
const SETTLE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(500);
const STATUS_PATIENCE: Duration = Duration::from_secs(5);

/// Everything that belongs to no attachment of a node's agent: leases, interfaces, namespaces; and whatever holds one
/// of the addresses of pods that are gone. One line each.
pub(crate) fn find(lab: &Lab, runtime: &Runtime, gone: &BTreeSet<IpAddr>) -> Result<Vec<String>> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let mut found = Vec::new();
        for node in lab.nodes() {
            found.extend(of_node(lab, runtime, node, gone).with_context(|| format!("look at {node}"))?);
        }
        if found.is_empty() || Instant::now() > deadline {
            return Ok(found);
        }
        std::thread::sleep(PAUSE);
    }
}

fn of_node(lab: &Lab, runtime: &Runtime, node: &NodeName, gone: &BTreeSet<IpAddr>) -> Result<Vec<String>> {
    let attachments = agent::status(lab, node, STATUS_PATIENCE)?.attachments;
    let held: BTreeSet<IpAddr> = attachments
        .iter()
        .flat_map(|a| a.addresses.iter().copied())
        .collect();
    let gone: BTreeSet<IpAddr> = gone.difference(&held).copied().collect();
    let netns = Netns::open(&node.0, &lab.netns(&node.0))?;
    let lines = runtime.block_on(state::lines(&netns))?;
    let mut found: Vec<String> = lines.iter().filter(|l| names_one(l, &gone)).cloned().collect();
    let guards = runtime.block_on(state::guards(&netns, &gone, &BTreeSet::new()))?;
    found.extend(guards.into_iter().filter(|l| !l.starts_with(KUBE_PROXY)));
    let interfaces = lines.iter().filter(|l| l.starts_with(INTERFACE)).count();
    let leases = leases(&lab.root(node)?.join("var/lib/meshd"))?;
    let namespaces = pods::namespaces(lab, node)?.len();
    for (what, count) in [
        ("interfaces", interfaces),
        ("leases", leases),
        ("namespaces", namespaces),
    ] {
        if count != attachments.len() {
            found.push(format!("{count} {what} for {} attachments", attachments.len()));
        }
    }
    Ok(found.into_iter().map(|l| format!("{node}: {l}")).collect())
}

/// Whether one of the words of a line is one of the addresses.
fn names_one(line: &str, gone: &BTreeSet<IpAddr>) -> bool {
    line.split(' ').any(|word| {
        let address = word.split('/').next().and_then(|a| a.parse().ok());
        address.is_some_and(|a| gone.contains(&a))
    })
}

fn leases(folder: &Path) -> Result<usize> {
    let mut count = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)
            .with_context(|| format!("list {}", folder.display()))?
            .flatten()
        {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "lease") {
                count += 1;
            }
        }
    }
    Ok(count)
}
