//! The cluster as an arm of the scenarios.

use crate::cluster::{Cluster, agent};
use crate::plan::{self, Plan};
use crate::traffic::probe::Try;
use crate::traffic::stream::Stream;
use anyhow::{Context, Result};
use meshd_model::NodeName;
use meshd_model::status::Status;
use meshd_scenario::{Arm, ArmError, Outcome, Outside, Pod, Probe, ProbeKind, StreamReport, UnderlayReport};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

/// Probes under way at a time.
const PROBES_MAX: usize = 64;
/// How long a daemon may take to say how it is.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);
/// How long what a neighbour sent may take to arrive.
const ARRIVAL: Duration = Duration::from_millis(300);

/// A cluster of network namespaces with real processes.
pub struct NetnsArm {
    runtime: Arc<Runtime>,
    cluster: Cluster,
    begin: Instant,
    streams: Vec<Option<Stream>>,
}

impl NetnsArm {
    /// An arm round a cluster that lives on this runtime.
    #[must_use]
    pub fn new(runtime: Arc<Runtime>, cluster: Cluster) -> Self {
        Self {
            runtime,
            cluster,
            begin: Instant::now(),
            streams: Vec::new(),
        }
    }

    /// The cluster.
    pub fn cluster(&mut self) -> &mut Cluster {
        &mut self.cluster
    }

    /// The runtime.
    #[must_use]
    pub fn runtime(&self) -> Arc<Runtime> {
        self.runtime.clone()
    }

    /// Takes everything down in order, and says what is left nevertheless.
    pub fn shut_down(self, tell: &mut dyn FnMut(String)) -> Result<Vec<String>> {
        self.runtime.block_on(self.cluster.shut_down(tell))
    }

    fn send_probes(&self, probes: &[Probe]) -> Result<Vec<Outcome>> {
        let mut tries = Vec::with_capacity(probes.len());
        let places = Arc::new(Semaphore::new(PROBES_MAX));
        let _entered = self.runtime.enter();
        for probe in probes {
            let netns = self.cluster.netns(&probe.from)?;
            let single = Try::open(netns, probe.to, probe.kind, probe.payload, probe.timeout);
            let places = places.clone();
            tries.push(self.runtime.spawn(async move {
                let _place = places.acquire_owned().await;
                single.run().await
            }));
        }
        tries
            .into_iter()
            .map(|t| self.runtime.block_on(t).context("a probe's task"))
            .collect()
    }

    fn send_as_neighbour(&self, to: &Pod) -> Result<bool> {
        let node = self.cluster.node(&to.node)?;
        let through = Plan::mac(Plan::node(node.number).0);
        let sent: Result<Vec<_>> = to
            .addresses
            .iter()
            .map(|a| self.cluster.neighbour.send(*a, through))
            .collect();
        std::thread::sleep(ARRIVAL);
        let echo = &self.cluster.pod(&to.name)?.echo;
        Ok(sent?.iter().any(|payload| echo.heard(payload)))
    }
}

fn arm_error(error: anyhow::Error) -> ArmError {
    ArmError(format!("{error:#}"))
}

impl Arm for NetnsArm {
    fn name(&self) -> &'static str {
        "netns"
    }

    fn nodes(&self) -> Vec<NodeName> {
        self.cluster.nodes.iter().map(|n| n.name.clone()).collect()
    }

    fn node_addresses(&self, node: &NodeName) -> Vec<IpAddr> {
        let Ok(node) = self.cluster.node(node) else {
            return Vec::new();
        };
        node.addresses.clone()
    }

    fn can(&self, _kind: ProbeKind) -> bool {
        true
    }

    fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    fn wait(&mut self, time: Duration) {
        std::thread::sleep(time);
    }

    fn wait_ready(&mut self, node: &NodeName, within: Duration) -> Result<(), ArmError> {
        self.cluster.wait_ready(node, within).map_err(arm_error)
    }

    fn status(&mut self, node: &NodeName) -> Result<Status, ArmError> {
        let node = self.cluster.node(node).map_err(arm_error)?;
        agent::status(&node.paths().socket, STATUS_PATIENCE).map_err(arm_error)
    }

    fn apply(&mut self, manifests: &str) -> Result<(), ArmError> {
        let objects = crate::kubernetes::documents(manifests).map_err(arm_error)?;
        for object in objects {
            let applied = self.runtime.block_on(self.cluster.kubernetes.apply(&object));
            applied.map_err(arm_error)?;
        }
        Ok(())
    }

    fn add_pod(&mut self, node: &NodeName, name: &str) -> Result<Pod, ArmError> {
        self.runtime
            .block_on(self.cluster.add_pod(node, name))
            .map_err(arm_error)
    }

    fn delete_pod(&mut self, pod: &Pod) -> Result<(), ArmError> {
        self.runtime
            .block_on(self.cluster.delete_pod(&pod.name))
            .map_err(arm_error)
    }

    fn probe(&mut self, probes: &[Probe]) -> Result<Vec<Outcome>, ArmError> {
        self.send_probes(probes).map_err(arm_error)
    }

    fn start_stream(&mut self, from: &Pod, to: &Pod, interval: Duration) -> Result<usize, ArmError> {
        let start = || {
            let netns = &self.cluster.pod(&from.name)?.sandbox.netns;
            let to = *to
                .addresses
                .first()
                .with_context(|| format!("pod {} has no address", to.name))?;
            let _entered = self.runtime.enter();
            Stream::start(netns, to, interval)
        };
        let stream = start().map_err(arm_error)?;
        self.streams.push(Some(stream));
        Ok(self.streams.len() - 1)
    }

    fn stop_stream(&mut self, stream: usize) -> Result<StreamReport, ArmError> {
        let found = self.streams.get_mut(stream).and_then(Option::take);
        let found = found.ok_or_else(|| ArmError(format!("there is no stream {stream}")))?;
        self.runtime.block_on(found.stop()).map_err(arm_error)
    }

    fn kill_agent(&mut self, node: &NodeName) -> Result<(), ArmError> {
        self.cluster
            .node_mut(node)
            .and_then(|n| n.kill_agent())
            .map_err(arm_error)
    }

    fn start_agent(&mut self, node: &NodeName) -> Result<(), ArmError> {
        self.cluster
            .node_mut(node)
            .and_then(|n| n.start_agent())
            .map_err(arm_error)
    }

    fn attachments(&mut self, node: &NodeName) -> Result<Vec<String>, ArmError> {
        Ok(self
            .status(node)?
            .attachments
            .into_iter()
            .map(|a| a.container_id)
            .collect())
    }

    fn annotate(&mut self, node: &NodeName, annotations: &[(&str, Option<&str>)]) -> Result<(), ArmError> {
        let written = self
            .runtime
            .block_on(self.cluster.kubernetes.annotate(node, annotations));
        written.map_err(arm_error)
    }

    fn set_api_server(&mut self, up: bool) -> Result<(), ArmError> {
        self.runtime
            .block_on(self.cluster.set_api_server(up))
            .map_err(arm_error)
    }

    fn recreate_node(&mut self, node: &NodeName) -> Result<(), ArmError> {
        self.runtime
            .block_on(self.cluster.recreate_node(node))
            .map_err(arm_error)
    }

    fn restart_device(&mut self, node: &NodeName) -> Result<(), ArmError> {
        let restart = |node: &mut crate::cluster::node::Node| {
            node.kill_device()?;
            node.start_device()
        };
        self.cluster.node_mut(node).and_then(restart).map_err(arm_error)
    }

    fn change_addresses(&mut self, node: &NodeName) -> Result<(), ArmError> {
        self.runtime
            .block_on(self.cluster.change_addresses(node))
            .map_err(arm_error)
    }

    fn second_interface(&self, node: &NodeName) -> Vec<IpAddr> {
        match self.cluster.node(node) {
            Ok(node) if node.has_second_interface() => {
                Plan::second_addresses(&self.cluster.families, node.number)
            }
            _ => Vec::new(),
        }
    }

    fn restart_nat(&mut self, node: &NodeName) -> Result<(), ArmError> {
        self.runtime
            .block_on(self.cluster.restart_nat(node))
            .map_err(arm_error)
    }

    fn endpoints(&mut self, node: &NodeName) -> Result<Vec<IpAddr>, ArmError> {
        let annotations = self.runtime.block_on(self.cluster.kubernetes.annotations(node));
        let annotations = annotations.map_err(arm_error)?;
        let text = annotations.get("meshd.dev/endpoints").and_then(|v| v.as_str());
        meshd_scenario::addresses(text.unwrap_or_default())
    }

    fn outside(&self) -> Result<Outside, ArmError> {
        let refused = Plan::excepted().into_iter().chain(Plan::metadata());
        Ok(Outside {
            reached: plan::used(&self.cluster.families, Plan::outside()),
            refused: plan::used(&self.cluster.families, refused),
        })
    }

    fn neighbour_sends(&mut self, to: &Pod) -> Result<bool, ArmError> {
        self.send_as_neighbour(to).map_err(arm_error)
    }

    fn send_control_marker(&mut self) -> Result<(), ArmError> {
        self.cluster.neighbour.send_marker().map_err(arm_error)
    }

    fn underlay(&mut self) -> Result<UnderlayReport, ArmError> {
        self.cluster.capture.report().map_err(arm_error)
    }

    fn residue(&mut self) -> Result<Vec<String>, ArmError> {
        self.runtime.block_on(self.cluster.residue()).map_err(arm_error)
    }
}
