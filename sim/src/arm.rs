//! The simulator as an arm: scenarios run on it as they run on network namespaces.

use crate::config::Config;
use crate::sim::{Sim, Violation};
use crate::traffic::{DISCARD, Place};
use meshd_apiserver::Request;
use meshd_model::status::Status;
use meshd_model::{AttachmentId, NodeName, PodRef};
use meshd_scenario::{
    Arm, ArmError, Outcome, Outside, Pod, Probe, ProbeKind, Site, StreamReport, UnderlayReport,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// A simulated cluster that scenarios run on, with what a kubelet and a container runtime do on each node.
pub struct SimArm {
    pub(crate) sim: Sim,
    containers: BTreeMap<String, AttachmentId>,
    /// Pods to be deleted at the API server once it is back.
    orphans: Vec<String>,
    pub(crate) tries: u64,
}

impl From<Violation> for ArmError {
    fn from(violation: Violation) -> ArmError {
        ArmError(format!("an invariant was violated: {violation}"))
    }
}

pub(crate) fn error(message: String) -> ArmError {
    ArmError(message)
}

impl SimArm {
    /// A cluster whose agents run.
    #[must_use]
    pub fn new(config: Config) -> SimArm {
        SimArm::start(Sim::new(config))
    }

    /// Starts the agents of a cluster in which none runs yet.
    #[must_use]
    pub fn start(mut sim: Sim) -> SimArm {
        for node in 0..sim.nodes() {
            sim.start_agent(node);
        }
        SimArm::of(sim)
    }

    /// As [`Arm::add_pod`], of a pod with these annotations.
    ///
    /// # Errors
    /// As there.
    pub fn add_annotated_pod(
        &mut self,
        node: &NodeName,
        name: &str,
        annotations: &Value,
    ) -> Result<Pod, ArmError> {
        let number = self.node(node)?;
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "namespace": "default", "annotations": annotations },
            "spec": { "nodeName": node, "containers": [{ "name": "app", "image": "app" }] },
        });
        let created = self
            .sim
            .admin(Request::create("/api/v1/namespaces/default/pods", &object))
            .map_err(error)?;
        let uid = created
            .pointer("/metadata/uid")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let pod = PodRef {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            uid,
        };
        self.sim.nodes[number]
            .kernel
            .namespaces
            .insert(netns(name), Default::default());
        let (id, added) = self.add(number, name, &pod)?;
        self.containers.insert(name.to_owned(), id);
        let addresses = added.ips.iter().map(|(net, _)| net.ip()).collect();
        Ok(Pod {
            name: name.to_owned(),
            node: node.clone(),
            addresses,
        })
    }

    /// A cluster as it is.
    #[must_use]
    pub fn of(sim: Sim) -> SimArm {
        SimArm {
            sim,
            containers: BTreeMap::new(),
            orphans: Vec::new(),
            tries: 0,
        }
    }

    /// The cluster.
    #[must_use]
    pub fn sim(&self) -> &Sim {
        &self.sim
    }

    /// The cluster, to do things to it.
    pub fn sim_mut(&mut self) -> &mut Sim {
        &mut self.sim
    }

    /// How often ADD was called.
    #[must_use]
    pub fn tries(&self) -> u64 {
        self.tries
    }

    fn node(&self, name: &NodeName) -> Result<usize, ArmError> {
        let node = (0..self.sim.nodes()).find(|node| self.sim.name(*node) == name);
        node.ok_or_else(|| error(format!("there is no node {name}")))
    }

    fn place(&self, site: &Site) -> Result<(usize, Place), ArmError> {
        Ok(match site {
            Site::Node(name) => (self.node(name)?, Place::Node),
            Site::Pod(pod) => (self.node(&pod.node)?, Place::Pod(netns(&pod.name))),
        })
    }

    fn delete_object(&mut self, name: &str) -> Result<(), ArmError> {
        let request = Request::delete(format!("/api/v1/namespaces/default/pods/{name}"));
        self.sim.admin(request).map(|_| ()).map_err(error)
    }
}

pub(crate) fn netns(pod: &str) -> String {
    format!("/run/netns/{pod}")
}

impl Arm for SimArm {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn nodes(&self) -> Vec<NodeName> {
        (0..self.sim.nodes())
            .map(|node| self.sim.name(node).clone())
            .collect()
    }

    fn node_addresses(&self, node: &NodeName) -> Vec<IpAddr> {
        self.node(node)
            .map(|node| self.sim.nodes[node].addresses.clone())
            .unwrap_or_default()
    }

    fn can(&self, kind: ProbeKind) -> bool {
        kind != ProbeKind::Tcp
    }

    fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    fn wait(&mut self, time: Duration) {
        // A violation stays: the next call that can fail tells it.
        let _ = self.sim.run_for(time);
    }

    fn wait_ready(&mut self, node: &NodeName, within: Duration) -> Result<(), ArmError> {
        let number = self.node(node)?;
        if self.sim.run_until(within, |sim| sim.is_ready(number))? {
            return Ok(());
        }
        let problems = self.sim.status(number).map(|s| s.problems).unwrap_or_default();
        let problems: Vec<String> = problems
            .into_iter()
            .map(|p| format!("{}: {}", p.subject, p.message))
            .collect();
        Err(error(format!(
            "{node} is not ready after {within:?}: {}",
            problems.join("; ")
        )))
    }

    fn status(&mut self, node: &NodeName) -> Result<Status, ArmError> {
        let number = self.node(node)?;
        // Counters are as old as the agent's last observation.
        self.sim.observe(number);
        self.sim
            .status(number)
            .ok_or_else(|| error(format!("no agent runs on {node}")))
    }

    fn apply(&mut self, manifests: &str) -> Result<(), ArmError> {
        let now = self.sim.api_time();
        let loaded = self.sim.cluster.server.load_yaml(now, manifests);
        self.sim.pump_api();
        loaded.map(|_| ()).map_err(|e| error(e.to_string()))
    }

    fn add_pod(&mut self, node: &NodeName, name: &str) -> Result<Pod, ArmError> {
        self.add_annotated_pod(node, name, &json!({}))
    }

    fn delete_pod(&mut self, pod: &Pod) -> Result<(), ArmError> {
        let node = self.node(&pod.node)?;
        let unknown = || error(format!("there is no pod {}", pod.name));
        let id = self.containers.remove(&pod.name).ok_or_else(unknown)?;
        self.del(node, &id)?;
        self.sim.nodes[node].kernel.remove_namespace(&netns(&pod.name));
        if self.sim.cluster.up {
            return self.delete_object(&pod.name);
        }
        self.orphans.push(pod.name.clone());
        Ok(())
    }

    fn probe(&mut self, probes: &[Probe]) -> Result<Vec<Outcome>, ArmError> {
        let mut tokens = Vec::with_capacity(probes.len());
        for probe in probes {
            let (node, place) = self.place(&probe.from)?;
            tokens.push(
                self.sim
                    .send_probe(node, place, probe.to, probe.kind, probe.payload),
            );
        }
        let patience = probes.iter().map(|p| p.timeout).max().unwrap_or_default();
        let mut answered = 0;
        self.sim.run_until(patience, |sim| {
            while tokens
                .get(answered)
                .is_some_and(|token| sim.outcome(*token).is_some())
            {
                answered += 1;
            }
            answered == tokens.len()
        })?;
        Ok(tokens
            .into_iter()
            .map(|token| self.sim.forget_probe(token))
            .collect())
    }

    fn start_stream(&mut self, from: &Pod, to: &Pod, interval: Duration) -> Result<usize, ArmError> {
        let (node, place) = self.place(&Site::Pod(from.clone()))?;
        let to = to
            .addresses
            .first()
            .ok_or_else(|| error(format!("{} has no address", to.name)))?;
        Ok(self.sim.start_stream(node, place, *to, interval))
    }

    fn stop_stream(&mut self, stream: usize) -> Result<StreamReport, ArmError> {
        self.sim.stop_stream(stream);
        self.sim.run_for(Duration::from_secs(1))?;
        self.sim
            .stream(stream)
            .ok_or_else(|| error(format!("there is no stream {stream}")))
    }

    fn kill_agent(&mut self, node: &NodeName) -> Result<(), ArmError> {
        let node = self.node(node)?;
        self.sim.kill_agent(node);
        Ok(())
    }

    fn start_agent(&mut self, node: &NodeName) -> Result<(), ArmError> {
        let node = self.node(node)?;
        self.sim.start_agent(node);
        Ok(())
    }

    fn attachments(&mut self, node: &NodeName) -> Result<Vec<String>, ArmError> {
        let status = self.status(node)?;
        Ok(status.attachments.into_iter().map(|a| a.container_id).collect())
    }

    fn annotate(&mut self, node: &NodeName, annotations: &[(&str, Option<&str>)]) -> Result<(), ArmError> {
        let annotations: Value = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect();
        let patch = json!({ "metadata": { "annotations": annotations } });
        let request = Request::merge_patch(format!("/api/v1/nodes/{node}"), &patch);
        self.sim.admin(request).map(|_| ()).map_err(error)
    }

    fn set_api_server(&mut self, up: bool) -> Result<(), ArmError> {
        self.sim.set_api_server(up);
        if up {
            for name in std::mem::take(&mut self.orphans) {
                self.delete_object(&name)?;
            }
        }
        Ok(())
    }

    fn recreate_node(&mut self, node: &NodeName) -> Result<(), ArmError> {
        let number = self.node(node)?;
        self.sim
            .admin(Request::delete(format!("/api/v1/nodes/{node}")))
            .map_err(error)?;
        self.sim.run_for(Duration::from_secs(1))?;
        self.sim.create_node(number).map_err(error)
    }

    fn restart_device(&mut self, node: &NodeName) -> Result<(), ArmError> {
        let node = self.node(node)?;
        self.sim.restart_device(node);
        Ok(())
    }

    fn change_addresses(&mut self, node: &NodeName) -> Result<(), ArmError> {
        let node = self.node(node)?;
        self.sim.change_addresses(node).map_err(error)
    }

    fn second_interface(&self, node: &NodeName) -> Vec<IpAddr> {
        let node = self.node(node);
        node.map_or(Vec::new(), |node| self.sim.config.second_addresses(node))
    }

    fn restart_nat(&mut self, node: &NodeName) -> Result<(), ArmError> {
        let node = self.node(node)?;
        self.sim.restart_nat(node);
        Ok(())
    }

    fn endpoints(&mut self, node: &NodeName) -> Result<Vec<IpAddr>, ArmError> {
        let object = self
            .sim
            .admin(Request::get(format!("/api/v1/nodes/{node}")))
            .map_err(error)?;
        let text = object.pointer("/metadata/annotations/meshd.dev~1endpoints");
        meshd_scenario::addresses(text.and_then(Value::as_str).unwrap_or_default())
    }

    fn outside(&self) -> Result<Outside, ArmError> {
        Ok(Outside {
            reached: self.sim.config.reached_outside(),
            refused: self.sim.config.refused_outside(),
        })
    }

    fn neighbour_sends(&mut self, to: &Pod) -> Result<bool, ArmError> {
        let node = self.node(&to.node)?;
        let sent = to
            .addresses
            .iter()
            .filter_map(|address| self.sim.neighbour_sends(node, *address, 7));
        let tokens: Vec<u64> = sent.collect();
        self.sim.run_for(Duration::from_secs(1))?;
        Ok(tokens.into_iter().any(|token| self.sim.arrived(token)))
    }

    fn send_control_marker(&mut self) -> Result<(), ArmError> {
        for address in self.sim.nodes[0].addresses.clone() {
            self.sim.neighbour_sends(0, address, DISCARD);
        }
        Ok(())
    }

    fn underlay(&mut self) -> Result<UnderlayReport, ArmError> {
        self.sim.run_for(Duration::ZERO)?;
        Ok(self.sim.capture.seen.clone())
    }

    fn residue(&mut self) -> Result<Vec<String>, ArmError> {
        let left = self.sim.nodes.iter().flat_map(|node| {
            let leases = node.store.keys().map(|id| format!("lease of {id}"));
            let all = node
                .kernel
                .residue()
                .into_iter()
                .chain(leases)
                .map(|what| format!("{}: {what}", node.name));
            all.collect::<Vec<_>>()
        });
        Ok(left.collect())
    }
}
