//! The step about the world outside of the cluster.

use crate::arm::{ArmError, Pod, Probe, ProbeKind, Site};
use crate::engine::Run;
use crate::reach::can_speak;
use crate::report::Proof;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// How long a probe waits that ought to be answered.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a probe waits that ought not to be answered.
const IMPATIENCE: Duration = Duration::from_millis(400);
/// Bytes.
const PAYLOAD: usize = 512;

impl Run<'_> {
    pub(crate) fn world_outside(&mut self, within: Duration) -> Result<Proof, ArmError> {
        let outside = self.arm.outside()?;
        let mut wrong = Vec::new();
        let (mut tried, mut refused) = (0, 0);
        for node in self.nodes.clone() {
            self.doing(format!("pods of {node} and the world outside"));
            let pods: Vec<Pod> = self.pods.iter().filter(|p| p.node == node).cloned().collect();
            let before = self.arm.underlay()?.outside;
            let probes = self.probes_outside(&pods, &outside.reached, PATIENCE);
            tried += probes.len() as u64;
            let reached = self.reach(probes, within)?;
            if !reached.all() {
                wrong.push(
                    reached
                        .failed
                        .unwrap_or_else(|| format!("there is no pod on {node} to try")),
                );
            }
            let seen = senders(&before, &self.arm.underlay()?.outside);
            let own = self.addresses_beside(&node, &pods);
            if seen != own {
                wrong.push(format!("outside, pods of {node} are {seen:?}, not {own:?}"));
            }

            let before = self.arm.underlay()?.outside;
            let probes = self.probes_outside(&pods, &outside.refused, IMPATIENCE);
            refused += probes.len() as u64;
            wrong.extend(self.lose(&probes, Duration::ZERO)?.failed);
            let seen = senders(&before, &self.arm.underlay()?.outside);
            if !seen.is_empty() {
                wrong.push(format!("what pods of {node} are refused was reached by {seen:?}"));
            }
        }
        if wrong.is_empty() {
            wrong.extend(self.refused_would_answer(&outside.refused, within)?);
        }
        let numbers = [("probes", tried), ("refused", refused)];
        let name = "every pod reaches the world outside with its node's address, and not what it is refused";
        Ok(self.proof(name, wrong.is_empty(), &numbers, wrong.join("; ")))
    }

    /// The control: the nodes themselves reach what their pods are refused. Otherwise why.
    fn refused_would_answer(
        &mut self,
        refused: &[IpAddr],
        within: Duration,
    ) -> Result<Option<String>, ArmError> {
        let spoken = |a: &&IpAddr| self.pods.iter().any(|p| can_speak(&Site::Pod(p.clone()), **a));
        let mut probes = Vec::new();
        for to in refused.iter().filter(spoken) {
            let from = self.nodes.iter().map(|n| Site::Node(n.clone()));
            probes.extend(from.map(|from| probe(from, *to, ProbeKind::Udp)));
        }
        let reached = self.reach(probes, within)?;
        if reached.all() {
            return Ok(None);
        }
        let why = reached
            .failed
            .unwrap_or_else(|| "there is nothing that they are refused".to_owned());
        Ok(Some(format!(
            "void: not even the nodes reach what their pods are refused: {why}"
        )))
    }

    fn probes_outside(&self, pods: &[Pod], to: &[IpAddr], timeout: Duration) -> Vec<Probe> {
        let kinds = BTreeSet::from([ProbeKind::Icmp, ProbeKind::Udp, self.with_payload()]);
        let sites = pods.iter().map(|p| Site::Pod(p.clone()));
        let pairs = sites.flat_map(|from| to.iter().map(move |to| (from.clone(), *to)));
        pairs
            .filter(|(from, to)| can_speak(from, *to))
            .flat_map(|(from, to)| kinds.iter().map(move |kind| probe(from.clone(), to, *kind)))
            .map(|probe| Probe { timeout, ..probe })
            .collect()
    }

    /// The node's own addresses of the families that these pods have.
    fn addresses_beside(&self, node: &meshd_model::NodeName, pods: &[Pod]) -> BTreeSet<IpAddr> {
        let spoken = |a: &IpAddr| pods.iter().any(|p| can_speak(&Site::Pod(p.clone()), *a));
        self.arm.node_addresses(node).into_iter().filter(spoken).collect()
    }
}

fn probe(from: Site, to: IpAddr, kind: ProbeKind) -> Probe {
    Probe {
        from,
        to,
        kind,
        payload: PAYLOAD,
        timeout: PATIENCE,
    }
}

/// Who has sent since.
fn senders(before: &BTreeMap<IpAddr, u64>, after: &BTreeMap<IpAddr, u64>) -> BTreeSet<IpAddr> {
    let more =
        |(address, count): &(&IpAddr, &u64)| before.get(address).copied().unwrap_or_default() < **count;
    after.iter().filter(more).map(|(address, _)| *address).collect()
}
