//! Runs a scenario on an arm.

use crate::arm::{Arm, ArmError, Pod};
use crate::report::{NodeRow, Progress, Proof, Report, RoundTrips};
use crate::scenario::Scenario;
use crate::step::Step;
use crate::time::micros;
use meshd_model::NodeName;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long the kernel may take to delete the links of pods whose DEL was answered.
const LINGER: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// Runs every step of the scenario on the arm, tells what it does, and reports what it proved. A step that cannot
/// be carried out ends the run; an expectation that is not met does not.
pub fn run(scenario: &Scenario, arm: &mut dyn Arm, progress: &mut dyn FnMut(Progress<'_>)) -> Report {
    let begin = arm.elapsed();
    let mut run = Run {
        nodes: arm.nodes(),
        arm,
        progress,
        step: String::new(),
        pods: Vec::new(),
        stopped: BTreeSet::new(),
        round_trips: BTreeMap::new(),
        table: None,
    };
    let mut proofs = Vec::new();
    let mut not_run = Vec::new();
    for (index, step) in scenario.steps.iter().enumerate() {
        run.begin(index + 1, scenario.steps.len(), step);
        if index == 0
            && let Some(manifests) = &scenario.manifests
        {
            let applied = run.arm.apply(manifests);
            proofs.extend(applied.err().map(|e| run.failed("the manifests are created", e)));
        }
        if proofs
            .last()
            .is_some_and(|p: &Proof| p.numbers.contains_key(NOT_CARRIED_OUT))
        {
            not_run.push(step.name());
            continue;
        }
        let proof = run
            .step(step)
            .unwrap_or_else(|e| Some(run.failed("the step can be carried out", e)));
        let Some(proof) = proof else { continue };
        (run.progress)(Progress::Proof(&proof));
        proofs.push(proof);
    }
    let nodes = run.table.take().unwrap_or_else(|| run.rows());
    Report {
        scenario: scenario.name.clone(),
        arm: run.arm.name().to_owned(),
        held: not_run.is_empty() && proofs.iter().all(|p| p.held),
        proofs,
        not_run,
        nodes,
        duration_us: micros(run.arm.elapsed().saturating_sub(begin)),
    }
}

/// Marks, among a proof's numbers, that its step ended the run.
const NOT_CARRIED_OUT: &str = "not_carried_out";

/// A run in progress.
pub(crate) struct Run<'a> {
    pub(crate) arm: &'a mut dyn Arm,
    progress: &'a mut dyn FnMut(Progress<'_>),
    pub(crate) nodes: Vec<NodeName>,
    /// Pods that were added and not deleted.
    pub(crate) pods: Vec<Pod>,
    /// Nodes whose agent was killed and not started.
    pub(crate) stopped: BTreeSet<NodeName>,
    /// Of answered probes, in microseconds, by the sender's node.
    pub(crate) round_trips: BTreeMap<NodeName, Vec<u64>>,
    step: String,
    table: Option<Vec<NodeRow>>,
}

impl Run<'_> {
    fn begin(&mut self, number: usize, of: usize, step: &Step) {
        self.step = step.name();
        (self.progress)(Progress::Step {
            number,
            of,
            name: &self.step,
        });
    }

    pub(crate) fn doing(&mut self, what: String) {
        (self.progress)(Progress::Doing(what));
    }

    pub(crate) fn proof(&self, name: &str, held: bool, numbers: &[(&str, u64)], detail: String) -> Proof {
        let numbers = numbers.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
        Proof {
            step: self.step.clone(),
            name: name.to_owned(),
            held,
            numbers,
            detail,
        }
    }

    fn failed(&self, name: &str, error: ArmError) -> Proof {
        self.proof(name, false, &[(NOT_CARRIED_OUT, 1)], error.0)
    }

    /// The node of this number, from 1.
    pub(crate) fn node(&self, number: usize) -> Result<NodeName, ArmError> {
        let node = number.checked_sub(1).and_then(|i| self.nodes.get(i));
        let missing = || {
            ArmError(format!(
                "there is no node {number}: this cluster has {}",
                self.nodes.len()
            ))
        };
        node.cloned().ok_or_else(missing)
    }

    fn step(&mut self, step: &Step) -> Result<Option<Proof>, ArmError> {
        match step {
            Step::ControlMarker {} => self.arm.send_control_marker().map(|()| None),
            Step::WaitReady { within } => self.wait_ready(within.0).map(Some),
            Step::AddPods { per_node } => self.add_pods(*per_node).map(Some),
            Step::EveryoneReachesEveryone {
                within,
                payload,
                at_most,
            } => self
                .everyone_reaches_everyone(within.0, *payload, *at_most)
                .map(Some),
            Step::NodesAndPods { within, at_most } => self.nodes_and_pods(within.0, *at_most).map(Some),
            Step::KillAgentUnderStream {
                node,
                interval,
                before,
                down,
                after,
            } => {
                let times = [interval.0, before.0, down.0, after.0];
                self.kill_agent_under_stream(*node, times).map(Some)
            }
            Step::DamageAnnotation {
                node,
                annotation,
                value,
                within,
            } => self
                .spoil_annotation(*node, annotation, Some(value), within.0)
                .map(Some),
            Step::RemoveAnnotation {
                node,
                annotation,
                within,
            } => self.spoil_annotation(*node, annotation, None, within.0).map(Some),
            Step::RestoreAgent { node, within } => self.restore_agent(*node, within.0).map(Some),
            Step::RecreateNode { node, within } => self.recreate_node(*node, within.0).map(Some),
            Step::RestartDevice { node, within, after } => {
                self.restart_device(*node, within.0, after.0).map(Some)
            }
            Step::ChangeAddresses {
                node,
                published,
                within,
            } => self.change_addresses(*node, published.0, within.0).map(Some),
            Step::SecondInterface { within } => self.second_interface(within.0).map(Some),
            Step::BehindNat {
                node,
                control,
                silence,
                within,
            } => self.behind_nat([*node, *control], silence.0, within.0).map(Some),
            Step::WorldOutside { within } => self.world_outside(within.0).map(Some),
            Step::NeighbourPlaintext {} => self.neighbour_plaintext().map(Some),
            Step::ApiServerAway { r#for, node, within } => {
                self.api_server_away(*node, r#for.0, within.0).map(Some)
            }
            Step::DeletePods {} => self.delete_pods().map(Some),
            Step::UnderlayIsEncrypted {} => self.underlay_is_encrypted().map(Some),
            Step::NoResidue {} => self.no_residue().map(Some),
            Step::Wait { r#for } => {
                self.arm.wait(r#for.0);
                Ok(None)
            }
        }
    }

    fn wait_ready(&mut self, within: Duration) -> Result<Proof, ArmError> {
        let begin = self.arm.elapsed();
        for node in self.nodes.clone() {
            self.doing(format!("waiting until {node} is ready"));
            let left = within.saturating_sub(self.arm.elapsed().saturating_sub(begin));
            self.arm.wait_ready(&node, left)?;
        }
        let took = micros(self.arm.elapsed().saturating_sub(begin));
        let numbers = [("nodes", self.nodes.len() as u64), ("microseconds", took)];
        Ok(self.proof("every node is ready", true, &numbers, String::new()))
    }

    fn add_pods(&mut self, per_node: usize) -> Result<Proof, ArmError> {
        let before = self.pods.len();
        for (index, node) in self.nodes.clone().iter().enumerate() {
            for pod in 1..=per_node {
                let name = self.unused_name(index + 1, pod);
                self.doing(format!("adding pod {name} on {node}"));
                let pod = self.arm.add_pod(node, &name)?;
                self.pods.push(pod);
            }
        }
        let mut seen = BTreeSet::new();
        let twice = self
            .pods
            .iter()
            .flat_map(|p| &p.addresses)
            .find(|a| !seen.insert(**a));
        let bare = self.pods.iter().find(|p| p.addresses.is_empty());
        let detail = match (twice, bare) {
            (Some(address), _) => format!("{address} was handed out twice"),
            (_, Some(pod)) => format!("{} has no address", pod.name),
            _ => String::new(),
        };
        let numbers = [
            ("pods", (self.pods.len() - before) as u64),
            ("addresses", seen.len() as u64),
        ];
        Ok(self.proof(
            "every pod is attached with addresses of its own",
            detail.is_empty(),
            &numbers,
            detail,
        ))
    }

    fn unused_name(&self, node: usize, pod: usize) -> String {
        let taken: BTreeSet<&str> = self.pods.iter().map(|p| p.name.as_str()).collect();
        let mut name = format!("p{node}-{pod}");
        let mut next = pod;
        while taken.contains(name.as_str()) {
            next += 1;
            name = format!("p{node}-{next}");
        }
        name
    }

    fn delete_pods(&mut self) -> Result<Proof, ArmError> {
        self.table = Some(self.rows());
        let pods = std::mem::take(&mut self.pods);
        for pod in &pods {
            self.doing(format!("deleting pod {} on {}", pod.name, pod.node));
            self.arm.delete_pod(pod)?;
        }
        let known = self.linger(|known| *known == 0, Self::known)?;
        let detail = if known == 0 {
            String::new()
        } else {
            format!("{known} attachments are still known")
        };
        let numbers = [("deleted", pods.len() as u64), ("left", known as u64)];
        Ok(self.proof("every pod is detached", known == 0, &numbers, detail))
    }

    /// How many attachments the nodes know.
    fn known(&mut self) -> Result<usize, ArmError> {
        let mut known = 0;
        for node in self.nodes.clone() {
            if !self.stopped.contains(&node) {
                known += self.arm.attachments(&node)?.len();
            }
        }
        Ok(known)
    }

    /// Looks until all is `well`, or what is deleted in the background must have been.
    fn linger<T>(
        &mut self,
        well: impl Fn(&T) -> bool,
        look: impl Fn(&mut Self) -> Result<T, ArmError>,
    ) -> Result<T, ArmError> {
        let began = self.arm.elapsed();
        loop {
            let seen = look(self)?;
            if well(&seen) || self.arm.elapsed().saturating_sub(began) > LINGER {
                return Ok(seen);
            }
            self.arm.wait(PAUSE);
        }
    }

    fn no_residue(&mut self) -> Result<Proof, ArmError> {
        let left = self.linger(Vec::is_empty, |run| run.arm.residue())?;
        let detail = left.iter().take(10).cloned().collect::<Vec<_>>().join("; ");
        let numbers = [("left", left.len() as u64)];
        Ok(self.proof(
            "nothing of the pods is left on any node",
            left.is_empty(),
            &numbers,
            detail,
        ))
    }

    fn rows(&mut self) -> Vec<NodeRow> {
        self.nodes
            .clone()
            .into_iter()
            .map(|node| self.row(node))
            .collect()
    }

    fn row(&mut self, node: NodeName) -> NodeRow {
        let mut row = NodeRow {
            addresses: self.arm.node_addresses(&node),
            pods: self.pods.iter().filter(|p| p.node == node).count(),
            peers: 0,
            handshakes: 0,
            rx_bytes: 0,
            tx_bytes: 0,
            round_trips: RoundTrips::of(self.round_trips.get(&node).cloned().unwrap_or_default()),
            problem: None,
            node,
        };
        match self.arm.status(&row.node) {
            Ok(status) => {
                row.peers = status.peers.len();
                row.handshakes = status.peers.iter().filter(|p| p.last_handshake.is_some()).count();
                row.rx_bytes = status.peers.iter().map(|p| p.rx_bytes).sum();
                row.tx_bytes = status.peers.iter().map(|p| p.tx_bytes).sum();
            }
            Err(error) => row.problem = Some(error.0),
        }
        row
    }
}
