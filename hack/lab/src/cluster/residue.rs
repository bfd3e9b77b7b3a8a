//! What is left of pods that were deleted.

use super::Cluster;
use super::pod::PodSite;
use crate::state;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Of pods that are gone: what must not be found any more.
#[derive(Default)]
pub(super) struct Former {
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) interfaces: BTreeSet<String>,
}

/// How long the kernel may take to delete the links of pods whose DEL was answered.
const LINGER: Duration = Duration::from_secs(3);

impl Cluster {
    /// What is left of pods that were deleted: on the nodes, in their stores, and of their namespaces.
    /// Links are deleted after DEL was answered: what is there is looked at again for a while.
    pub async fn residue(&mut self) -> Result<Vec<String>> {
        let began = Instant::now();
        loop {
            let left = self.residue_now().await?;
            if left.is_empty() || began.elapsed() > LINGER {
                return Ok(left);
            }
            tokio::time::sleep(LINGER / 50).await;
        }
    }

    /// A daemon that is stopped keeps the lease of a link that was being deleted, for its next start.
    pub(super) async fn wait_for_deletions(&self) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < LINGER {
            let leases: Result<Vec<_>> = self.nodes.iter().map(super::Node::leases).collect();
            if leases?.iter().all(Vec::is_empty) {
                break;
            }
            tokio::time::sleep(LINGER / 50).await;
        }
        Ok(())
    }

    async fn residue_now(&mut self) -> Result<Vec<String>> {
        self.settle().await?;
        let mut found = Vec::new();
        let there: BTreeSet<IpAddr> = self
            .pods()
            .flat_map(|p| p.pod.addresses.iter().copied())
            .collect();
        let gone: BTreeSet<IpAddr> = self.former.addresses.difference(&there).copied().collect();
        for node in &self.nodes {
            let lines = state::lines(&node.netns).await?;
            found.extend(
                lines
                    .iter()
                    .filter(|l| self.is_residue(l, &gone))
                    .map(|l| format!("{}: {l}", node.name)),
            );
            let guards = state::guards(&node.netns, &gone, &self.former.interfaces).await?;
            found.extend(guards.into_iter().map(|l| format!("{}: {l}", node.name)));
            if self.pods.values().all(|p| p.pod.node != node.name) {
                found.extend(node.leases()?);
            }
        }
        found.extend(stray_namespaces(&self.pods)?);
        Ok(found)
    }

    /// Whether a line of a node's state belongs to a pod that is gone.
    fn is_residue(&self, line: &str, gone: &BTreeSet<IpAddr>) -> bool {
        let words = || line.split(' ');
        let interface = words().any(|w| self.former.interfaces.contains(w));
        interface
            || words().any(|w| {
                w.split('/')
                    .next()
                    .and_then(|a| a.parse().ok())
                    .is_some_and(|a| gone.contains(&a))
            })
    }
}

/// Pods' namespaces that belong to no pod.
pub(super) fn stray_namespaces(pods: &BTreeMap<String, PodSite>) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(crate::netns::FOLDER).context("list the network namespaces")?;
    let names = entries
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned());
    Ok(names
        .filter(|n| n.starts_with("cni-") && pods.values().all(|p| p.sandbox.netns.name() != n))
        .map(|n| format!("network namespace {n}"))
        .collect())
}
