//! Steps that break something, and say what must not come of it.

use crate::arm::{ArmError, Pod, StreamReport};
use crate::engine::Run;
use crate::report::Proof;
use crate::time::micros;
use meshd_model::NodeName;
use std::time::Duration;

/// How long a restarted agent may take until it is ready.
const READY: Duration = Duration::from_secs(30);
/// How long an agent may take to hear that its Node is another.
const SETTLE: Duration = Duration::from_secs(2);
/// Between two packets of the stream while the API server is away.
const INTERVAL: Duration = Duration::from_millis(10);

/// Who sends, and to whom.
pub(crate) type Pair = (Pod, Pod);

impl Run<'_> {
    pub(crate) fn kill_agent_under_stream(
        &mut self,
        number: usize,
        [interval, before, down, after]: [Duration; 4],
    ) -> Result<Proof, ArmError> {
        let node = self.node(number)?;
        let (event, control) = self.stream_pairs(&node)?;
        let mut known = self.arm.attachments(&node)?;
        let streams = [
            self.arm.start_stream(&event.0, &event.1, interval)?,
            self.arm.start_stream(&control.0, &control.1, interval)?,
        ];
        self.arm.wait(before);
        self.doing(format!("kill -9 of the agent of {node}, under a stream"));
        self.arm.kill_agent(&node)?;
        self.arm.wait(down);
        self.arm.start_agent(&node)?;
        self.doing(format!("the agent of {node} starts again"));
        self.arm.wait_ready(&node, READY)?;
        self.arm.wait(after);
        let [event, control] = [
            self.arm.stop_stream(streams[0])?,
            self.arm.stop_stream(streams[1])?,
        ];
        let mut again = self.arm.attachments(&node)?;
        known.sort();
        again.sort();
        let detail = judge_streams(&event, &control).or_else(|| {
            let differs = format!(
                "the agent knew {} before and {} after",
                known.join(", "),
                again.join(", ")
            );
            (known != again || known.is_empty()).then_some(differs)
        });
        let numbers = [
            ("sent", event.sent),
            ("lost", event.sent - event.received.min(event.sent)),
            ("control_sent", control.sent),
            ("control_lost", control.sent - control.received.min(control.sent)),
            ("pods_known_before", known.len() as u64),
            ("pods_known_after", again.len() as u64),
        ];
        let name = "kill -9 of an agent loses no packet, and it comes back knowing its pods";
        Ok(self.proof(name, detail.is_none(), &numbers, detail.unwrap_or_default()))
    }

    /// A pair of pods of which the first is on this node, and a pair of which none is: the control. With fewer than
    /// three nodes the control stays on the other node.
    pub(crate) fn stream_pairs(&self, node: &NodeName) -> Result<(Pair, Pair), ArmError> {
        let here = self.pods.iter().find(|p| p.node == *node);
        let others: Vec<&Pod> = self.pods.iter().filter(|p| p.node != *node).collect();
        let (Some(here), Some(first)) = (here, others.first()) else {
            return Err(ArmError(format!(
                "a stream needs a pod on {node} and one elsewhere: add pods first"
            )));
        };
        let beside = others.iter().find(|p| p.node != first.node).or(others.get(1));
        let Some(beside) = beside else {
            return Err(ArmError(
                "the control stream needs two pods on other nodes: add more".to_owned(),
            ));
        };
        Ok((
            (here.clone(), (*first).clone()),
            ((*first).clone(), (*beside).clone()),
        ))
    }

    /// `value` None removes the annotation.
    pub(crate) fn spoil_annotation(
        &mut self,
        number: usize,
        annotation: &str,
        value: Option<&str>,
        within: Duration,
    ) -> Result<Proof, ArmError> {
        let node = self.node(number)?;
        let before = self.arm.underlay()?;
        if self.stopped.insert(node.clone()) {
            self.arm.kill_agent(&node)?;
        }
        self.arm.annotate(&node, &[(annotation, value)])?;
        self.doing(format!(
            "{annotation} of {node} is {}",
            value.map_or("removed", |_| "damaged")
        ));
        let probes = self.probes_to(&node);
        let lost = self.lose(&probes, within)?;
        let beside = self.probes_beside(&node);
        let beside_reached = if beside.is_empty() {
            None
        } else {
            Some(self.reach(beside, within)?)
        };
        let after = self.arm.underlay()?;
        let in_clear = (after.pod_addresses + after.markers) - (before.pod_addresses + before.markers);
        let detail = match (&lost.failed, &beside_reached) {
            (Some(still), _) => format!("still reached: {still}"),
            (_, Some(beside)) if !beside.all() => {
                format!(
                    "void: the nodes beside are not reached either: {}",
                    beside.failed.clone().unwrap_or_default()
                )
            }
            _ if !lost.none() => format!("there is no pod on {node} to try"),
            _ if in_clear > 0 => after.offenders.join("; "),
            _ => String::new(),
        };
        let numbers = [("probes", probes.len() as u64), ("packets_in_clear", in_clear)];
        let what = if value.is_some() { "damaged" } else { "missing" };
        let name = format!("a node whose annotation is {what} is unreachable, and not reached in plaintext");
        Ok(self.proof(&name, detail.is_empty(), &numbers, detail))
    }

    pub(crate) fn restore_agent(&mut self, number: usize, within: Duration) -> Result<Proof, ArmError> {
        let node = self.node(number)?;
        if self.stopped.remove(&node) {
            self.arm.start_agent(&node)?;
        }
        self.doing(format!("the agent of {node} starts again and mends"));
        self.arm.wait_ready(&node, within)?;
        self.reachable_again(
            &node,
            within,
            "a node whose annotation is mended is reachable again",
        )
    }

    pub(crate) fn recreate_node(&mut self, number: usize, within: Duration) -> Result<Proof, ArmError> {
        let node = self.node(number)?;
        self.doing(format!("{node} is deleted and created again"));
        self.arm.recreate_node(&node)?;
        // As the cluster does: pods of a Node that is gone are deleted, others take their place, perhaps from
        // another pod CIDR.
        let (gone, kept) = std::mem::take(&mut self.pods)
            .into_iter()
            .partition(|p| p.node == node);
        self.pods = kept;
        self.arm.wait(SETTLE);
        self.arm.wait_ready(&node, within)?;
        let gone: Vec<Pod> = gone;
        for pod in gone {
            self.arm.delete_pod(&pod)?;
            let pod = self.arm.add_pod(&node, &pod.name)?;
            self.pods.push(pod);
        }
        self.reachable_again(
            &node,
            within,
            "a node created again under its name is reachable again",
        )
    }

    pub(crate) fn reachable_again(
        &mut self,
        node: &NodeName,
        within: Duration,
        name: &str,
    ) -> Result<Proof, ArmError> {
        let begin = self.arm.elapsed();
        let probes = self.probes_to(node);
        let tried = probes.len() as u64;
        let reached = self.reach(probes, within)?;
        let took = micros(self.arm.elapsed().saturating_sub(begin));
        let detail = reached.failed.clone().unwrap_or_default();
        Ok(self.proof(
            name,
            reached.all(),
            &[("probes", tried), ("microseconds", took)],
            detail,
        ))
    }

    pub(crate) fn neighbour_plaintext(&mut self) -> Result<Proof, ArmError> {
        let mut arrived = Vec::new();
        let mut tried = 0;
        for node in self.nodes.clone() {
            let Some(pod) = self.pods.iter().find(|p| p.node == node).cloned() else {
                continue;
            };
            self.doing(format!("a neighbour sends plaintext to {}", pod.name));
            tried += 1;
            if self.arm.neighbour_sends(&pod)? {
                arrived.push(pod.name);
            }
        }
        let detail = if arrived.is_empty() {
            String::new()
        } else {
            format!("it arrived at {}", arrived.join(", "))
        };
        let numbers = [("tried", tried), ("arrived", arrived.len() as u64)];
        let held = tried > 0 && arrived.is_empty();
        Ok(self.proof(
            "plaintext from a neighbour on the underlay reaches no pod",
            held,
            &numbers,
            detail,
        ))
    }

    pub(crate) fn api_server_away(
        &mut self,
        number: usize,
        away: Duration,
        within: Duration,
    ) -> Result<Proof, ArmError> {
        let node = self.node(number)?;
        let victim = self.pods.iter().position(|p| p.node == node);
        let victim = victim.ok_or_else(|| ArmError(format!("there is no pod on {node}: add pods first")))?;
        let victim = self.pods.remove(victim);
        let (_, (from, to)) = self.stream_pairs(&node)?;
        self.doing("the API server goes away".to_owned());
        self.arm.set_api_server(false)?;
        let stream = self.arm.start_stream(&from, &to, INTERVAL)?;
        self.arm.wait(away / 2);
        self.doing(format!(
            "DEL of {} on {node}, and kill -9 of its agent",
            victim.name
        ));
        self.arm.delete_pod(&victim)?;
        self.arm.kill_agent(&node)?;
        self.arm.start_agent(&node)?;
        self.arm.wait(away / 2);
        let without = self.reach(self.probes_to(&node), within)?;
        self.doing("the API server is back".to_owned());
        self.arm.set_api_server(true)?;
        self.arm.wait_ready(&node, within)?;
        let stream = self.arm.stop_stream(stream)?;
        let lost = stream.sent - stream.received.min(stream.sent);
        let detail = match &without.failed {
            Some(failed) => format!("without the API server: {failed}"),
            None if lost > 0 => format!("{lost} packets were lost"),
            None => String::new(),
        };
        let numbers = [("sent", stream.sent), ("lost", lost), ("deleted", 1)];
        let held = detail.is_empty() && without.all() && stream.sent > 0;
        Ok(self.proof(
            "traffic and DEL do without the API server",
            held,
            &numbers,
            detail,
        ))
    }

    pub(crate) fn underlay_is_encrypted(&mut self) -> Result<Proof, ArmError> {
        let seen = self.arm.underlay()?;
        let detail = if seen.control_markers == 0 {
            "void: the marker that was sent in the clear on purpose was not seen".to_owned()
        } else if seen.drops > 0 {
            format!("void: the capture lost {} packets", seen.drops)
        } else if seen.wireguard == 0 {
            "void: no WireGuard message was seen".to_owned()
        } else {
            seen.offenders.join("; ")
        };
        let held = detail.is_empty() && seen.pod_addresses == 0 && seen.markers == 0;
        let numbers = [
            ("packets", seen.packets),
            ("wireguard", seen.wireguard),
            ("pod_addresses", seen.pod_addresses),
            ("markers", seen.markers),
            ("control_markers", seen.control_markers),
            ("drops", seen.drops),
        ];
        Ok(self.proof(
            "the underlay carried WireGuard, and no pod packet in the clear",
            held,
            &numbers,
            detail,
        ))
    }
}

/// Why the streams prove nothing good.
fn judge_streams(event: &StreamReport, control: &StreamReport) -> Option<String> {
    if control.received < control.sent {
        return Some("void: the control stream, to which nothing happened, lost packets too".to_owned());
    }
    if event.sent == 0 || control.sent == 0 {
        return Some("void: nothing was sent".to_owned());
    }
    (event.received < event.sent)
        .then(|| format!("{} of {} were lost", event.sent - event.received, event.sent))
}
