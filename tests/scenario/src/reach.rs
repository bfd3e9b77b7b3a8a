//! Who reaches whom: the probes of a step, tried until they are answered or time is up.

use crate::arm::{ArmError, Outcome, Pod, Probe, ProbeKind, Site};
use crate::engine::Run;
use crate::report::Proof;
use crate::time::micros;
use meshd_model::NodeName;
use std::net::IpAddr;
use std::time::Duration;

/// Between two rounds of probes.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a probe waits that ought to be answered.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a probe waits that ought not to be answered.
const IMPATIENCE: Duration = Duration::from_millis(400);
/// Probes that are handed to the arm at once.
const BATCH: usize = 256;

/// What came of a set of probes.
pub(crate) struct Reached {
    tried: usize,
    answered: usize,
    rounds: u64,
    took: Duration,
    /// The first that was not answered at the end.
    pub(crate) failed: Option<String>,
}

impl Reached {
    pub(crate) fn all(&self) -> bool {
        self.tried > 0 && self.answered == self.tried
    }

    pub(crate) fn none(&self) -> bool {
        self.tried > 0 && self.answered == 0
    }

    fn numbers(&self) -> [(&'static str, u64); 4] {
        [
            ("probes", self.tried as u64),
            ("answered", self.answered as u64),
            ("rounds", self.rounds),
            ("microseconds", micros(self.took)),
        ]
    }

    fn why(&self) -> String {
        let nothing = if self.tried == 0 {
            "there was no one to try"
        } else {
            ""
        };
        self.failed.clone().unwrap_or_else(|| nothing.to_owned())
    }
}

impl Run<'_> {
    /// Sends the probes, again those that were not answered, until all were or time is up.
    pub(crate) fn reach(&mut self, mut pending: Vec<Probe>, within: Duration) -> Result<Reached, ArmError> {
        let begin = self.arm.elapsed();
        let tried = pending.len();
        let mut rounds = 0;
        loop {
            rounds += 1;
            let outcomes = self.probe(&pending)?;
            let mut failed = None;
            pending = pending
                .into_iter()
                .zip(outcomes)
                .filter_map(|(probe, outcome)| {
                    let Outcome::Answered(time) = outcome else {
                        failed.get_or_insert_with(|| describe(&probe, &outcome));
                        return Some(probe);
                    };
                    self.round_trips
                        .entry(probe.from.node().clone())
                        .or_default()
                        .push(micros(time));
                    None
                })
                .collect();
            let took = self.arm.elapsed().saturating_sub(begin);
            if pending.is_empty() || took >= within {
                return Ok(Reached {
                    tried,
                    answered: tried - pending.len(),
                    rounds,
                    took,
                    failed,
                });
            }
            self.arm.wait(PAUSE);
        }
    }

    /// Sends the probes, all of them each time, until none is answered or time is up.
    pub(crate) fn lose(&mut self, probes: &[Probe], within: Duration) -> Result<Reached, ArmError> {
        let begin = self.arm.elapsed();
        let mut rounds = 0;
        loop {
            rounds += 1;
            let outcomes = self.probe(probes)?;
            // A garbled answer is one, too: something was reached.
            let is_answer = |o: &&Outcome| matches!(o, Outcome::Answered(_) | Outcome::Garbled(_));
            let answered = outcomes.iter().filter(is_answer).count();
            let failed = probes
                .iter()
                .zip(&outcomes)
                .find(|(_, o)| is_answer(o))
                .map(|(p, o)| describe(p, o));
            let took = self.arm.elapsed().saturating_sub(begin);
            if answered == 0 || took >= within {
                return Ok(Reached {
                    tried: probes.len(),
                    answered,
                    rounds,
                    took,
                    failed,
                });
            }
            self.arm.wait(PAUSE);
        }
    }

    fn probe(&mut self, probes: &[Probe]) -> Result<Vec<Outcome>, ArmError> {
        let mut outcomes = Vec::with_capacity(probes.len());
        for batch in probes.chunks(BATCH) {
            outcomes.extend(self.arm.probe(batch)?);
        }
        Ok(outcomes)
    }

    pub(crate) fn everyone_reaches_everyone(
        &mut self,
        within: Duration,
        payload: usize,
        at_most: usize,
    ) -> Result<Proof, ArmError> {
        let all = self.pods.len() * self.pods.len().saturating_sub(1);
        let chosen = choose_pairs(self.pods.len(), at_most);
        let pairs: Vec<(Pod, Pod)> = chosen
            .iter()
            .map(|&(a, b)| (self.pods[a].clone(), self.pods[b].clone()))
            .collect();
        let kinds = [ProbeKind::Icmp, self.with_payload()];
        let probes = pairs
            .iter()
            .flat_map(|(a, b)| kinds.map(|k| between(a, b, k, payload)))
            .flatten()
            .collect();
        self.doing(format!(
            "{} of {all} pairs of pods, by ICMP and {}",
            pairs.len(),
            kinds[1]
        ));
        let reached = self.reach(probes, within)?;
        let name = if pairs.len() == all {
            "every pod reaches every other pod"
        } else {
            "every pod of the sample reaches the other"
        };
        let mut numbers = vec![
            ("pods", self.pods.len() as u64),
            ("pairs", pairs.len() as u64),
            ("all_pairs", all as u64),
        ];
        numbers.extend(reached.numbers());
        Ok(self.proof(
            name,
            reached.all(),
            &numbers,
            sampled(pairs.len(), all, reached.why()),
        ))
    }

    pub(crate) fn nodes_and_pods(&mut self, within: Duration, at_most: usize) -> Result<Proof, ArmError> {
        let addresses: Vec<(NodeName, Vec<IpAddr>)> = self
            .nodes
            .iter()
            .map(|n| (n.clone(), self.arm.node_addresses(n)))
            .collect();
        let all = 2 * self.nodes.len() * self.pods.len();
        let mut pairs: Vec<Vec<Probe>> = Vec::new();
        for (index, pod) in choose_members(self.nodes.len() * self.pods.len(), at_most / 2)
            .into_iter()
            .map(|i| (i % self.nodes.len(), &self.pods[i / self.nodes.len()]))
        {
            let (node, own) = &addresses[index];
            pairs.push(
                pod.addresses
                    .iter()
                    .map(|a| ping(Site::Node(node.clone()), *a))
                    .collect(),
            );
            pairs.push(own.iter().map(|a| ping(Site::Pod(pod.clone()), *a)).collect());
        }
        let tried = pairs.len();
        self.doing(format!("{tried} of {all} pairs of a node and a pod, by ICMP"));
        let reached = self.reach(pairs.into_iter().flatten().collect(), within)?;
        let mut numbers = vec![("pairs", tried as u64), ("all_pairs", all as u64)];
        numbers.extend(reached.numbers());
        let name = "every node reaches every pod, and every pod every node's own addresses";
        Ok(self.proof(name, reached.all(), &numbers, sampled(tried, all, reached.why())))
    }

    /// Probes to the pods of a node, from pods and nodes elsewhere.
    pub(crate) fn probes_to(&self, node: &NodeName) -> Vec<Probe> {
        let there: Vec<&Pod> = self.pods.iter().filter(|p| p.node == *node).collect();
        let elsewhere = self.pods.iter().filter(|p| p.node != *node);
        let from_pods = elsewhere.map(|p| Site::Pod(p.clone()));
        let from_nodes = self
            .nodes
            .iter()
            .filter(|n| *n != node)
            .map(|n| Site::Node(n.clone()));
        let sites = from_pods.take(32).chain(from_nodes.take(32));
        sites
            .flat_map(|from| {
                there.iter().take(2).flat_map(move |to| {
                    to.addresses.iter().map({
                        let from = from.clone();
                        move |a| (from.clone(), *a)
                    })
                })
            })
            .filter(|(from, to)| can_speak(from, *to))
            .map(|(from, to)| Probe {
                timeout: IMPATIENCE,
                ..ping(from, to)
            })
            .collect()
    }

    /// Probes among the pods of the other nodes: the control beside a node that is not reached.
    pub(crate) fn probes_beside(&self, node: &NodeName) -> Vec<Probe> {
        let others: Vec<&Pod> = self.pods.iter().filter(|p| p.node != *node).take(8).collect();
        let pairs = others
            .iter()
            .flat_map(|a| others.iter().map(move |b| (a, b)))
            .filter(|(a, b)| a.node != b.node);
        pairs
            .flat_map(|(a, b)| between(a, b, ProbeKind::Icmp, 64))
            .collect()
    }

    pub(crate) fn with_payload(&self) -> ProbeKind {
        if self.arm.can(ProbeKind::Tcp) {
            ProbeKind::Tcp
        } else {
            ProbeKind::Udp
        }
    }
}

fn sampled(tried: usize, all: usize, why: String) -> String {
    match (tried == all, why.is_empty()) {
        (true, _) => why,
        (false, true) => format!("sampled {tried} of {all} pairs"),
        (false, false) => format!("sampled {tried} of {all} pairs; {why}"),
    }
}

pub(crate) fn can_speak(from: &Site, to: IpAddr) -> bool {
    match from {
        Site::Pod(pod) => pod.addresses.iter().any(|a| a.is_ipv4() == to.is_ipv4()),
        Site::Node(_) => true,
    }
}

fn ping(from: Site, to: IpAddr) -> Probe {
    Probe {
        from,
        to,
        kind: ProbeKind::Icmp,
        payload: 64,
        timeout: PATIENCE,
    }
}

/// One probe for each family that both pods have.
pub(crate) fn between(from: &Pod, to: &Pod, kind: ProbeKind, payload: usize) -> Vec<Probe> {
    let from_site = Site::Pod(from.clone());
    let addresses = to.addresses.iter().filter(|a| can_speak(&from_site, **a));
    addresses
        .map(|a| Probe {
            from: from_site.clone(),
            to: *a,
            kind,
            payload,
            timeout: PATIENCE,
        })
        .collect()
}

fn describe(probe: &Probe, outcome: &Outcome) -> String {
    format!(
        "{} to {} by {}: {outcome:?}",
        probe.from.name(),
        probe.to,
        probe.kind
    )
}

/// Ordered pairs of `n`: all of them, or `at_most`, in which each member sends and receives if that many allow it.
fn choose_pairs(n: usize, at_most: usize) -> Vec<(usize, usize)> {
    let all = n * n.saturating_sub(1);
    if all <= at_most {
        return (0..n)
            .flat_map(|a| (0..n).filter(move |b| *b != a).map(move |b| (a, b)))
            .collect();
    }
    // Rings of growing stride: the k-th gives each member one more to send to and one more to hear from. The
    // strides run through the ring in golden steps, so that near and far are both among the first.
    let step = coprime_near_golden(n - 1);
    let strides = (0..n - 1).map(|k| 1 + (k + 1) * step % (n - 1));
    strides
        .flat_map(|stride| (0..n).map(move |a| (a, (a + stride) % n)))
        .take(at_most)
        .collect()
}

/// Numbers below `n`: all of them, or `at_most`, spread.
fn choose_members(n: usize, at_most: usize) -> Vec<usize> {
    if n <= at_most {
        return (0..n).collect();
    }
    let step = coprime_near_golden(n);
    (0..at_most).map(|k| k * step % n).collect()
}

/// A number without a common divisor with `n`, near `n` over the golden ratio: its multiples spread evenly.
fn coprime_near_golden(n: usize) -> usize {
    let mut step = (n * 618 / 1000).max(1);
    while gcd(step, n) != 1 {
        step += 1;
    }
    step
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_sample_has_no_pair_twice_and_leaves_no_one_out() {
        for (n, at_most) in [
            (0, 10),
            (1, 10),
            (2, 10),
            (6, 30),
            (7, 30),
            (100, 1000),
            (600, 1000),
            (601, 1201),
        ] {
            let pairs = choose_pairs(n, at_most);
            let set: BTreeSet<_> = pairs.iter().collect();
            assert_eq!(set.len(), pairs.len(), "{n}: a pair twice");
            assert!(
                pairs.iter().all(|(a, b)| a != b && *a < n && *b < n),
                "{n}: no pair"
            );
            assert_eq!(pairs.len(), at_most.min(n * n.saturating_sub(1)), "{n}");
            if n > 1 && at_most >= n {
                assert_eq!(
                    pairs.iter().map(|p| p.0).collect::<BTreeSet<_>>().len(),
                    n,
                    "{n}: someone never sends"
                );
                assert_eq!(
                    pairs.iter().map(|p| p.1).collect::<BTreeSet<_>>().len(),
                    n,
                    "{n}: someone never hears"
                );
            }
        }
    }

    #[test]
    fn a_sample_of_members_has_none_twice() {
        for (n, at_most) in [(0, 5), (5, 5), (180_000, 500), (6, 4)] {
            let members = choose_members(n, at_most);
            assert_eq!(members.iter().collect::<BTreeSet<_>>().len(), n.min(at_most));
        }
    }
}
