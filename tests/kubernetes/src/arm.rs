//! The cluster as an arm of the scenarios.

use crate::lab::{Lab, wait_for};
use crate::pods::{NAMESPACE, PodSite};
use crate::wire::Wire;
use crate::{agent, pods, residue};
use anyhow::{Context, Result, bail};
use meshd_lab::netns::Netns;
use meshd_lab::plan::Plan;
use meshd_lab::traffic::echo::Echo;
use meshd_lab::traffic::neighbour::Neighbour;
use meshd_lab::traffic::probe::Try;
use meshd_lab::traffic::stream::Stream;
use meshd_lab::underlay::lead_to_metadata;
use meshd_model::NodeName;
use meshd_model::attachment::MacAddr;
use meshd_model::status::Status;
use meshd_scenario::{
    Arm, ArmError, Outcome, Outside, Pod, Probe, ProbeKind, Site, StreamReport, UnderlayReport,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Probes under way at a time.
const PROBES_MAX: usize = 64;
/// How long a daemon may take to say how it is.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);
/// How long what a neighbour sent may take to arrive.
const ARRIVAL: Duration = Duration::from_millis(300);
/// How long a Node may take to be there again, with pod CIDRs.
const NODE_PATIENCE: Duration = Duration::from_secs(60);

/// A cluster with real kubelets, in which meshd is installed.
pub struct KubernetesArm {
    lab: Lab,
    runtime: Runtime,
    begin: Instant,
    wire: Wire,
    /// The nodes' own.
    addresses: BTreeMap<NodeName, Vec<IpAddr>>,
    machines: BTreeMap<NodeName, (Netns, Echo)>,
    pods: BTreeMap<String, PodSite>,
    streams: Vec<Option<Stream>>,
    /// Addresses of pods that are gone.
    former: BTreeSet<IpAddr>,
}

impl KubernetesArm {
    /// An arm round a cluster in which meshd is installed.
    pub fn new(lab: Lab) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("start a tokio runtime")?;
        lab.apply(&format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}"
        ))?;
        let wire = Wire::tap(&lab, &runtime)?;
        let addresses = lab
            .nodes()
            .iter()
            .map(|n| Ok((n.clone(), internal_ips(&lab, n)?)));
        let addresses = addresses.collect::<Result<_>>()?;
        let mut arm = Self {
            lab,
            addresses,
            runtime,
            begin: Instant::now(),
            wire,
            machines: BTreeMap::new(),
            pods: BTreeMap::new(),
            streams: Vec::new(),
            former: BTreeSet::new(),
        };
        arm.enter_nodes()?;
        Ok(arm)
    }

    /// The cluster.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Takes the cluster down; an error names what is left.
    pub fn shut_down(self) -> Result<()> {
        let Self { lab, .. } = self;
        lab.down()
    }

    /// Enters every node's namespace; again after a reboot, which makes new ones.
    pub fn enter_nodes(&mut self) -> Result<()> {
        self.machines.clear();
        for node in self.lab.nodes() {
            let netns = Netns::open(&node.0, &self.lab.netns(&node.0))?;
            let _entered = self.runtime.enter();
            let echo = Echo::start(&netns)?;
            let own = self.addresses.get(node).map_or(&[][..], Vec::as_slice);
            self.runtime.block_on(lead_to_metadata(&netns.netlink()?, own))?;
            self.machines.insert(node.clone(), (netns, echo));
        }
        Ok(())
    }

    /// Lets go of all namespaces of nodes: before a reboot.
    pub fn leave_nodes(&mut self) {
        self.machines.clear();
    }

    /// Waits until a pod runs that something else has made (a Deployment, say), and starts echo servers in it.
    pub fn enter_pod(&mut self, namespace: &str, name: &str) -> Result<Pod> {
        let site = PodSite::enter(&self.lab, &self.runtime, namespace, name)?;
        let pod = site.pod.clone();
        self.pods.insert(name.to_owned(), site);
        Ok(pod)
    }

    /// Lets go of a pod that goes on, or goes away, by itself.
    pub fn leave_pod(&mut self, name: &str) {
        if let Some(site) = self.pods.remove(name) {
            self.former.extend(site.pod.addresses);
        }
    }

    /// Adds pods side by side: each a node, and a name.
    pub fn add_pods(&mut self, wanted: &[(NodeName, String)]) -> Result<Vec<Pod>> {
        let items: Vec<_> = wanted
            .iter()
            .map(|(node, name)| pods::manifest(node, name))
            .collect();
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items});
        self.lab.apply(&list.to_string())?;
        wanted
            .iter()
            .map(|(_, name)| self.enter_pod(NAMESPACE, name))
            .collect()
    }

    /// Deletes pods of this arm side by side.
    pub fn delete_pods(&mut self, pods: &[Pod]) -> Result<()> {
        let mut arguments = vec![
            "delete",
            "pod",
            "-n",
            NAMESPACE,
            "--ignore-not-found",
            "--timeout=90s",
        ];
        for pod in pods {
            self.leave_pod(&pod.name);
            arguments.push(&pod.name);
        }
        self.lab.kubectl(&arguments).map(drop)
    }

    /// Deletes all that is in the arm's namespace, and forgets what was seen: so that the next trial does not suffer
    /// from one that failed.
    pub fn clear(&mut self) {
        self.pods.clear();
        self.streams.clear();
        let arguments = [
            "delete",
            "deployment,daemonset,service,pod",
            "--all",
            "-n",
            NAMESPACE,
            "--timeout=90s",
        ];
        // What stays is found by the next trial.
        let _ = self.lab.kubectl(&arguments);
        self.former.clear();
    }

    /// A machine on the nodes' wire that is no node.
    #[must_use]
    pub fn neighbour(&self) -> &Neighbour {
        &self.wire.neighbour
    }

    /// Its addresses.
    #[must_use]
    pub fn neighbour_addresses(&self) -> &[IpAddr] {
        &self.wire.addresses
    }

    /// kill -9 of all of a node's processes of this name that are in its own network namespace.
    pub fn kill(&self, node: &NodeName, process: &str) -> Result<()> {
        agent::kill_all(&self.lab, node, process)
    }

    /// The namespace of a pod that was entered, or of a node.
    pub fn netns(&self, site: &Site) -> Result<&Netns> {
        match site {
            Site::Node(node) => {
                let machine = self.machines.get(node);
                machine
                    .map(|m| &m.0)
                    .with_context(|| format!("there is no node {node}"))
            }
            Site::Pod(pod) => Ok(&self.pod(&pod.name)?.netns),
        }
    }

    /// What every pod and node shares its sockets with.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    fn pod(&self, name: &str) -> Result<&PodSite> {
        let found = self.pods.get(name);
        found.with_context(|| format!("there is no pod {name}"))
    }

    fn send_probes(&self, probes: &[Probe]) -> Result<Vec<Outcome>> {
        let mut tries = Vec::with_capacity(probes.len());
        let places = Arc::new(Semaphore::new(PROBES_MAX));
        let _entered = self.runtime.enter();
        for probe in probes {
            let netns = self.netns(&probe.from)?;
            let single = Try::open(netns, probe.to, probe.kind, probe.payload, probe.timeout);
            let places = places.clone();
            tries.push(self.runtime.spawn(async move {
                let _place = places.acquire_owned().await;
                single.run().await
            }));
        }
        let wait = |t: JoinHandle<Outcome>| self.runtime.block_on(t).context("a probe's task");
        tries.into_iter().map(wait).collect()
    }

    fn send_as_neighbour(&self, to: &Pod) -> Result<bool> {
        let through = self.mac(&to.node)?;
        let sent: Result<Vec<_>> = to
            .addresses
            .iter()
            .map(|a| self.wire.neighbour.send(*a, through))
            .collect();
        std::thread::sleep(ARRIVAL);
        let echo = &self.pod(&to.name)?.echo;
        Ok(sent?.iter().any(|payload| echo.heard(payload)))
    }

    fn mac(&self, node: &NodeName) -> Result<MacAddr> {
        let text = self.lab.node(node, &["cat", "/sys/class/net/eth0/address"])?;
        let octets: Result<Vec<u8>, _> = text
            .trim()
            .split(':')
            .map(|o| u8::from_str_radix(o, 16))
            .collect();
        let octets = octets.ok().and_then(|o| <[u8; 6]>::try_from(o).ok());
        octets
            .map(MacAddr)
            .with_context(|| format!("{text} is no MAC address"))
    }

    fn add(&mut self, node: &NodeName, name: &str) -> Result<Pod> {
        self.lab.apply(&pods::manifest(node, name).to_string())?;
        self.enter_pod(NAMESPACE, name)
    }

    fn delete(&mut self, name: &str) -> Result<()> {
        // First: a namespace lives as long as anybody is in it.
        self.leave_pod(name);
        let arguments = [
            "delete",
            "pod",
            "-n",
            NAMESPACE,
            name,
            "--ignore-not-found",
            "--timeout=60s",
        ];
        self.lab.kubectl(&arguments).map(drop)
    }

    /// As somebody would who holds the node's token: nobody else may, not even the administrator.
    fn write_annotations(&self, node: &NodeName, annotations: &[(&str, Option<&str>)]) -> Result<()> {
        let uid = self.lab.field(&["node", &node.0], ".metadata.uid")?;
        let mut arguments = vec!["create", "token", "meshd", "-n", "kube-system"];
        arguments.extend(["--bound-object-kind=Node", "--bound-object-name", &node.0]);
        arguments.extend(["--bound-object-uid", &uid]);
        let token = self.lab.kubectl(&arguments)?;
        let config = self.lab.kubectl(&["config", "view", "--raw", "-o", "json"])?;
        let config: serde_json::Value = serde_json::from_str(&config).context("kubectl's configuration")?;
        let changes: serde_json::Map<_, _> = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).into()))
            .collect();
        let patch = serde_json::json!({"metadata": {"annotations": changes}}).to_string();
        let server = config["clusters"][0]["cluster"]["server"]
            .as_str()
            .unwrap_or_default();
        // Not kubectl: it reads what it patches, and the token may not.
        let header = format!("Authorization: Bearer {}", token.trim());
        let url = format!("{server}/api/v1/nodes/{node}");
        let mut arguments = vec![
            "underlay",
            "curl",
            "-sS",
            "--fail-with-body",
            "--insecure",
            "-X",
            "PATCH",
        ];
        arguments.extend([
            "-H",
            &header,
            "-H",
            "Content-Type: application/merge-patch+json",
            "-d",
            &patch,
            &url,
        ]);
        self.lab.verb(&arguments).map(drop)
    }

    fn join_again(&self, node: &NodeName) -> Result<()> {
        let before = self.lab.field(&["node", &node.0], ".metadata.uid")?;
        self.lab.kubectl(&["delete", "node", &node.0])?;
        // A kubelet registers its node once, when it starts.
        self.lab.service(node, "kubelet", "restart")?;
        wait_for(&format!("{node} to join again"), NODE_PATIENCE, || {
            let object = self.lab.get(&["node", &node.0])?;
            let another = object["metadata"]["uid"]
                .as_str()
                .is_some_and(|uid| uid != before);
            Ok((another && object["spec"]["podCIDRs"].is_array()).then_some(()))
        })
    }
}

fn internal_ips(lab: &Lab, node: &NodeName) -> Result<Vec<IpAddr>> {
    let path = r#".status.addresses[?(@.type=="InternalIP")].address"#;
    let texts = lab.field(&["node", &node.0], path)?;
    let all: Result<Vec<IpAddr>, _> = texts.split_whitespace().map(str::parse).collect();
    all.with_context(|| format!("the InternalIPs of {node} are {texts}"))
}

fn arm_error(error: anyhow::Error) -> ArmError {
    ArmError(format!("{error:#}"))
}

impl Arm for KubernetesArm {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn nodes(&self) -> Vec<NodeName> {
        self.lab.nodes().to_vec()
    }

    fn node_addresses(&self, node: &NodeName) -> Vec<IpAddr> {
        self.addresses.get(node).cloned().unwrap_or_default()
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
        let ready = wait_for(&format!("{node} to be ready"), within, || {
            let status = agent::status(&self.lab, node, STATUS_PATIENCE)?;
            let wrong: Vec<_> = status
                .problems
                .iter()
                .map(|p| format!("{}: {}", p.subject, p.message))
                .collect();
            if !status.ready && !wrong.is_empty() {
                bail!("{}", wrong.join("; "));
            }
            Ok(status.ready.then_some(()))
        });
        ready.map_err(arm_error)
    }

    fn status(&mut self, node: &NodeName) -> Result<Status, ArmError> {
        agent::status(&self.lab, node, STATUS_PATIENCE).map_err(arm_error)
    }

    fn apply(&mut self, manifests: &str) -> Result<(), ArmError> {
        self.lab.apply(manifests).map_err(arm_error)
    }

    fn add_pod(&mut self, node: &NodeName, name: &str) -> Result<Pod, ArmError> {
        self.add(node, name).map_err(arm_error)
    }

    fn delete_pod(&mut self, pod: &Pod) -> Result<(), ArmError> {
        self.delete(&pod.name).map_err(arm_error)
    }

    fn probe(&mut self, probes: &[Probe]) -> Result<Vec<Outcome>, ArmError> {
        self.send_probes(probes).map_err(arm_error)
    }

    fn start_stream(&mut self, from: &Pod, to: &Pod, interval: Duration) -> Result<usize, ArmError> {
        let start = || {
            let to = to.addresses.first();
            let to = *to.context("the pod that is sent to has no address")?;
            let _entered = self.runtime.enter();
            Stream::start(&self.pod(&from.name)?.netns, to, interval)
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

    /// The kubelet is stopped first: it would start the agent again at once.
    fn kill_agent(&mut self, node: &NodeName) -> Result<(), ArmError> {
        self.lab.service(node, "kubelet", "stop").map_err(arm_error)?;
        agent::kill_all(&self.lab, node, "meshd").map_err(arm_error)
    }

    fn start_agent(&mut self, node: &NodeName) -> Result<(), ArmError> {
        self.lab.service(node, "kubelet", "start").map_err(arm_error)
    }

    /// Of the arm's own pods: CoreDNS and others come and go by themselves.
    fn attachments(&mut self, node: &NodeName) -> Result<Vec<String>, ArmError> {
        let own = |pod: &String| pod.split('/').next() == Some(NAMESPACE);
        let all = self.status(node)?.attachments.into_iter();
        Ok(all
            .filter(|a| a.pod.as_ref().is_some_and(own))
            .map(|a| a.container_id)
            .collect())
    }

    fn annotate(&mut self, node: &NodeName, annotations: &[(&str, Option<&str>)]) -> Result<(), ArmError> {
        self.write_annotations(node, annotations).map_err(arm_error)
    }

    fn set_api_server(&mut self, up: bool) -> Result<(), ArmError> {
        let what = if up { "start" } else { "stop" };
        self.lab.verb(&["apiserver", what]).map(drop).map_err(arm_error)
    }

    fn recreate_node(&mut self, node: &NodeName) -> Result<(), ArmError> {
        self.join_again(node).map_err(arm_error)
    }

    fn outside(&self) -> Result<Outside, ArmError> {
        Ok(Outside {
            reached: Plan::outside().into(),
            refused: [Plan::excepted(), Plan::metadata()].concat(),
        })
    }

    fn neighbour_sends(&mut self, to: &Pod) -> Result<bool, ArmError> {
        self.send_as_neighbour(to).map_err(arm_error)
    }

    fn send_control_marker(&mut self) -> Result<(), ArmError> {
        self.wire.neighbour.send_marker().map_err(arm_error)
    }

    fn underlay(&mut self) -> Result<UnderlayReport, ArmError> {
        self.wire.capture.report().map_err(arm_error)
    }

    fn residue(&mut self) -> Result<Vec<String>, ArmError> {
        residue::find(&self.lab, &self.runtime, &self.former).map_err(arm_error)
    }
}
