//! Steps about where a node is reached: its device, its addresses.

use crate::arm::{ArmError, Probe, ProbeKind};
use crate::engine::Run;
use crate::reach::{Reached, between};
use crate::report::Proof;
use crate::time::micros;
use meshd_model::NodeName;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// Between two packets of a stream, so many of which that are lost are the time that was lost.
const INTERVAL: Duration = Duration::from_millis(10);
/// How long a stream runs before something happens.
const BEFORE: Duration = Duration::from_secs(1);
/// Between two looks at what is published.
const PAUSE: Duration = Duration::from_millis(10);

impl Run<'_> {
    /// The stream runs towards the node only: nothing is sent there that would make its new device begin a handshake.
    pub(crate) fn restart_device(
        &mut self,
        number: usize,
        within: Duration,
        after: Duration,
    ) -> Result<Proof, ArmError> {
        let node = self.node(number)?;
        let ((here, there), control) = self.stream_pairs(&node)?;
        // The agent knows of the sessions that it has looked at, like after a resync.
        let streams = [
            self.arm.start_stream(&there, &here, INTERVAL)?,
            self.arm.start_stream(&control.0, &control.1, INTERVAL)?,
        ];
        self.arm.wait(BEFORE);
        self.arm.status(&node)?;
        self.doing(format!("the device of {node} is killed and started again"));
        self.arm.restart_device(&node)?;
        self.arm.wait(after);
        let [event, control] = [
            self.arm.stop_stream(streams[0])?,
            self.arm.stop_stream(streams[1])?,
        ];
        let lost = event.sent - event.received.min(event.sent);
        let outage = INTERVAL.saturating_mul(u32::try_from(lost).unwrap_or(u32::MAX));
        let detail = if control.sent == 0 || control.received < control.sent {
            "void: the control stream, to which nothing happened, lost packets too".to_owned()
        } else if lost == 0 {
            "void: nothing was lost, so nothing has happened".to_owned()
        } else if outage > within {
            format!("nothing arrived for about {outage:?}")
        } else {
            String::new()
        };
        let numbers = [
            ("sent", event.sent),
            ("lost", lost),
            ("outage_microseconds", micros(outage)),
            ("control_lost", control.sent - control.received.min(control.sent)),
        ];
        let name = "a device that is killed and started again is reached again soon";
        Ok(self.proof(name, detail.is_empty(), &numbers, detail))
    }

    pub(crate) fn change_addresses(
        &mut self,
        number: usize,
        published: Duration,
        within: Duration,
    ) -> Result<Proof, ArmError> {
        let node = self.node(number)?;
        let before: BTreeSet<_> = self.arm.endpoints(&node)?.into_iter().collect();
        self.doing(format!("{node} is given other addresses"));
        let begin = self.arm.elapsed();
        self.arm.change_addresses(&node)?;
        let wanted: BTreeSet<_> = self.arm.node_addresses(&node).into_iter().collect();
        let took = loop {
            let there: BTreeSet<_> = self.arm.endpoints(&node)?.into_iter().collect();
            let took = self.arm.elapsed().saturating_sub(begin);
            if there == wanted || took > within {
                break took;
            }
            self.arm.wait(PAUSE);
        };
        let reached = self.reach(self.probes_to(&node), within)?;
        let all = micros(self.arm.elapsed().saturating_sub(begin));
        let detail = if wanted == before || wanted.is_empty() {
            "void: the addresses are what they were".to_owned()
        } else if took > published {
            format!("the new addresses were not published for {took:?}")
        } else if !reached.all() {
            reached
                .failed
                .clone()
                .unwrap_or_else(|| format!("there is no pod on {node} to try"))
        } else {
            String::new()
        };
        let numbers = [
            ("addresses", wanted.len() as u64),
            ("published_microseconds", micros(took)),
            ("reached_microseconds", all),
        ];
        let name = "a node whose addresses change publishes them and is reached again";
        Ok(self.proof(name, detail.is_empty(), &numbers, detail))
    }

    /// Where a peer is said to be is where it was heard last: what it sends comes from there.
    pub(crate) fn second_interface(&mut self, within: Duration) -> Result<Proof, ArmError> {
        let begin = self.arm.elapsed();
        let mut wanted = BTreeMap::new();
        for node in &self.nodes {
            let addresses: BTreeSet<_> = self.arm.second_interface(node).into_iter().collect();
            wanted.insert(node.clone(), addresses);
        }
        let bare = wanted.iter().find(|(_, addresses)| addresses.is_empty());
        let mut wrong = bare.map(|(node, _)| format!("void: {node} has no second interface"));
        while wrong.is_none() {
            wrong = self.reached_elsewhere(&wanted)?;
            if wrong.is_none() || self.arm.elapsed().saturating_sub(begin) > within {
                break;
            }
            wrong = None;
            self.arm.wait(PAUSE);
        }
        let numbers = [("nodes", wanted.len() as u64)];
        let name = "every node is reached at its second interface, as it is configured to be";
        Ok(self.proof(name, wrong.is_none(), &numbers, wrong.unwrap_or_default()))
    }

    /// Which node publishes others, or is reached at another.
    fn reached_elsewhere(
        &mut self,
        wanted: &BTreeMap<NodeName, BTreeSet<IpAddr>>,
    ) -> Result<Option<String>, ArmError> {
        for (node, addresses) in wanted {
            let published: BTreeSet<_> = self.arm.endpoints(node)?.into_iter().collect();
            if published != *addresses {
                return Ok(Some(format!("{node} publishes {published:?}, not {addresses:?}")));
            }
            for peer in self.arm.status(node)?.peers {
                let at = peer.endpoint.map(|e| e.ip());
                let right = at.is_some_and(|at| wanted.get(&peer.node).is_some_and(|w| w.contains(&at)));
                if !right || peer.last_handshake.is_none() {
                    return Ok(Some(format!("{node} reaches {} at {at:?}", peer.node)));
                }
            }
        }
        Ok(None)
    }

    pub(crate) fn behind_nat(
        &mut self,
        numbers: [usize; 2],
        silence: Duration,
        within: Duration,
    ) -> Result<Proof, ArmError> {
        let [node, control] = [self.node(numbers[0])?, self.node(numbers[1])?];
        let plain = |of: &NodeName| *of != node && *of != control;
        let mut wrong = None;
        // What is inside begins: only it knows the way.
        for inside in [&node, &control] {
            let is_inside = |of: &NodeName| of == inside;
            let outward = self.reach(self.pings(is_inside, plain), within)?;
            let inward = self.reach(self.pings(plain, is_inside), within)?;
            wrong = wrong.or(outward.failed).or(inward.failed);
        }
        self.doing(format!("{silence:?} of silence"));
        self.arm.wait(silence);
        let probes = self.pings(plain, |of| *of == node);
        let tried = probes.len() as u64;
        let kept = self.reach(probes.clone(), Duration::ZERO)?;
        let forgotten = self.lose(&self.pings(plain, |of| *of == control), Duration::ZERO)?;
        let found = self.reach(self.pings(|of| *of == control, plain), within)?;
        self.doing(format!("the NAT of {node} forgets everything"));
        self.arm.restart_nat(&node)?;
        let begin = self.arm.elapsed();
        let again = self.reach(probes, within)?;
        let took = micros(self.arm.elapsed().saturating_sub(begin));
        let why = |reached: Reached| {
            reached
                .failed
                .unwrap_or_else(|| "there is no pod to try".to_owned())
        };
        let detail = if let Some(wrong) = wrong {
            format!("void: before the silence: {wrong}")
        } else if !forgotten.none() {
            format!("void: {control} was not forgotten: {}", why(forgotten))
        } else if !found.all() {
            format!("void: {control} is cut off: {}", why(found))
        } else if !kept.all() {
            format!("after the silence: {}", why(kept))
        } else if !again.all() {
            format!("after its NAT has forgotten: {}", why(again))
        } else {
            String::new()
        };
        let numbers = [
            ("probes", tried),
            ("silence_microseconds", micros(silence)),
            ("reached_again_microseconds", took),
        ];
        let name = "a node behind NAT is reached while its keepalives last, and only then";
        Ok(self.proof(name, detail.is_empty(), &numbers, detail))
    }

    /// Pings from the pods of some nodes to those of others, in each family.
    fn pings(&self, from: impl Fn(&NodeName) -> bool, to: impl Fn(&NodeName) -> bool) -> Vec<Probe> {
        let mut probes = Vec::new();
        for a in self.pods.iter().filter(|p| from(&p.node)) {
            for b in self.pods.iter().filter(|p| to(&p.node)) {
                probes.extend(between(a, b, ProbeKind::Icmp, 64));
            }
        }
        probes
    }
}
