//! The cluster: everything of a lab, inside its sandbox.

pub mod agent;
pub mod api;
pub mod cni;
pub mod node;
pub mod pod;
pub mod relay;
mod residue;

use crate::Binaries;
use crate::capture::Capture;
use crate::kubernetes::Kubernetes;
use crate::nat::Nat;
use crate::netns::Netns;
use crate::plan::{Families, NODES_MAX, Plan};
use crate::sandbox::Reporter;
use crate::state;
use crate::traffic::echo::Echo;
use crate::traffic::neighbour::Neighbour;
use crate::underlay::Underlay;
use anyhow::{Context, Result, bail};
use api::Api;
use cni::Invocation;
use meshd_model::NodeName;
use meshd_scenario::{Pod, Site};
use node::{Mode, Node, Setup};
use pod::{PodSite, Sandbox};
use residue::{Former, stray_namespaces};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two questions to a daemon.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a runtime tries ADD again, unless it is told otherwise.
const ADD_PATIENCE: Duration = Duration::from_secs(15);

/// A cluster that runs.
pub struct Cluster {
    /// Where the API server's objects are written.
    pub kubernetes: Kubernetes,
    /// What the nodes see of the API server.
    pub api: Api,
    /// How long a runtime tries again when ADD says "try again later", as a kubelet would.
    pub add_patience: Duration,
    pub(crate) nodes: Vec<Node>,
    pub(crate) families: Families,
    pub(crate) pods: BTreeMap<String, PodSite>,
    pub(crate) capture: Capture,
    pub(crate) neighbour: Neighbour,
    /// The machine outside of the cluster: its echo servers answer as long as it is there.
    _outside: (Netns, Echo),
    /// Of the nodes that are behind one.
    nats: BTreeMap<NodeName, Nat>,
    binaries: Binaries,
    underlay: Underlay,
    reporter: Reporter,
    containers: u64,
    /// Of pods that are gone: what must not be found any more.
    former: Former,
    /// Sandboxes of failed ADDs that are still to be taken down.
    abandoned: Vec<Sandbox>,
    /// Pods whose objects could not be deleted while the API server was away.
    orphans: Vec<String>,
}

impl Cluster {
    /// Makes the underlay, the API server and the nodes, and starts a `meshd-wg` and a daemon on each. `tell` is told
    /// what is being done.
    pub async fn up(
        nodes: usize,
        families: Families,
        binaries: &Binaries,
        api: Api,
        kubernetes: Option<Kubernetes>,
        reporter: Reporter,
        tell: &mut dyn FnMut(String),
    ) -> Result<Self> {
        let setups = vec![Setup::default(); nodes];
        Self::up_with(&setups, families, binaries, api, kubernetes, reporter, tell).await
    }

    /// The same, with a node for each of the set-ups; `meshd-wg` runs only where its mode asks for it.
    pub async fn up_with(
        setups: &[Setup],
        families: Families,
        binaries: &Binaries,
        mut api: Api,
        kubernetes: Option<Kubernetes>,
        reporter: Reporter,
        tell: &mut dyn FnMut(String),
    ) -> Result<Self> {
        let nodes = setups.len();
        if !(1..=NODES_MAX).contains(&nodes) {
            bail!("a lab has 1 to {NODES_MAX} nodes, not {nodes}");
        }
        tell("making the underlay".to_owned());
        let underlay = Underlay::create().await?;
        let capture = Capture::start(underlay.bridge_index().await?, &Plan::cluster_pod_cidrs())?;
        let neighbour = Self::plug_neighbour(&underlay, reporter).await?;
        let outside = underlay.plug_outside(Netns::create("outside")?).await?;
        reporter.namespace();
        api.start(&families).await?;
        let kubernetes = match kubernetes {
            Some(kubernetes) => kubernetes,
            None => Kubernetes::embedded(&families)?,
        };
        let mut cluster = Self {
            kubernetes,
            api,
            add_patience: ADD_PATIENCE,
            nodes: Vec::new(),
            families,
            pods: BTreeMap::new(),
            capture,
            neighbour,
            _outside: outside,
            nats: BTreeMap::new(),
            binaries: binaries.clone(),
            underlay,
            reporter,
            containers: 0,
            former: Former::default(),
            abandoned: Vec::new(),
            orphans: Vec::new(),
        };
        for (number, setup) in (1..).zip(setups) {
            tell(format!("starting {}", Plan::node_name(number)));
            cluster.add_node(number, setup.clone()).await?;
        }
        Ok(cluster)
    }

    async fn plug_neighbour(underlay: &Underlay, reporter: Reporter) -> Result<Neighbour> {
        let netns = Netns::create("neighbour")?;
        reporter.namespace();
        let (v4, v6) = Plan::neighbour();
        underlay.plug(&netns, v4, &[v4.into(), v6.into()]).await?;
        Ok(Neighbour::new(netns))
    }

    async fn add_node(&mut self, number: usize, setup: Setup) -> Result<()> {
        let name = Plan::node_name(number);
        let netns = Netns::create(&name.0)?;
        self.reporter.namespace();
        let families = &self.families;
        let (mode, addresses) = (setup.mode, setup.addresses(families, number));
        if let Some(nat) = &setup.nat {
            let router = Netns::create(&format!("nat-{number}"))?;
            self.reporter.namespace();
            let nat = Nat::plug(&self.underlay, router, &netns, number, families, nat.forgets.0);
            self.nats.insert(name.clone(), nat.await?);
        } else {
            let mac = Plan::node(number).0;
            self.underlay.plug(&netns, mac, &addresses).await?;
        }
        if setup.second_interface {
            let second = Plan::second_addresses(families, number);
            self.underlay.plug_second(&netns, &second).await?;
        }
        self.kubernetes
            .create_node(&name, &setup.pod_cidrs(families, number), &addresses)
            .await?;
        let mut node = Node::create(
            number,
            setup,
            netns,
            families,
            &self.binaries,
            &self.api.kubeconfig(&name, families).to_string(),
        )
        .await?;
        if mode == Mode::Userspace {
            node.start_device()?;
        }
        node.start_agent()?;
        self.nodes.push(node);
        Ok(())
    }

    /// A node by name.
    pub fn node(&self, name: &NodeName) -> Result<&Node> {
        let found = self.nodes.iter().find(|n| n.name == *name);
        found.with_context(|| format!("there is no node {name}"))
    }

    /// The same, to change it.
    pub fn node_mut(&mut self, name: &NodeName) -> Result<&mut Node> {
        let found = self.nodes.iter_mut().find(|n| n.name == *name);
        found.with_context(|| format!("there is no node {name}"))
    }

    /// The namespace of a pod or a node.
    pub fn netns(&self, site: &Site) -> Result<&Netns> {
        match site {
            Site::Node(name) => Ok(&self.node(name)?.netns),
            Site::Pod(pod) => Ok(&self.pod(&pod.name)?.sandbox.netns),
        }
    }

    /// A pod by name.
    pub fn pod(&self, name: &str) -> Result<&PodSite> {
        self.pods
            .get(name)
            .with_context(|| format!("there is no pod {name}"))
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &PodSite> {
        self.pods.values()
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Waits until the node's daemon says that it is ready.
    pub fn wait_ready(&mut self, name: &NodeName, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            self.node_mut(name)?.check()?;
            let socket = &self.node(name)?.paths().socket;
            let problem = match agent::status(socket, Duration::from_secs(1)) {
                Ok(status) if status.ready => return Ok(()),
                Ok(status) => status
                    .problems
                    .iter()
                    .map(|p| format!("{}: {}", p.subject, p.message))
                    .collect(),
                Err(error) => vec![format!("{error:#}")],
            };
            if Instant::now() > deadline {
                bail!("{name} is not ready after {within:?}: {}", problem.join("; "));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Creates the pod at the API server and runs ADD. Where that fails, the pod is deleted, and its sandbox is taken
    /// down, now or later, as a runtime does.
    pub async fn add_pod(&mut self, node: &NodeName, name: &str) -> Result<Pod> {
        if self.pods.contains_key(name) {
            bail!("there is a pod {name} already");
        }
        // Before anything is made that would have to be taken down.
        self.node(node)?;
        if self.nodes.iter().any(|n| n.name.0 == name) {
            bail!("{name} is the name of a node: give the pod another");
        }
        let uid = self.kubernetes.create_pod(node, name).await?;
        self.containers += 1;
        let (netns, echo) = pod::sandbox(&format!("cni-{name}-{}", self.containers)).await?;
        self.reporter.namespace();
        let sandbox = Sandbox {
            pod: name.to_owned(),
            uid,
            node: node.clone(),
            container_id: container_id(self.containers),
            netns,
        };
        let added = add(&sandbox.invocation(self, None)?, self.add_patience);
        let added = added.and_then(|result| Ok((cni::addresses(&result)?, result)));
        let (addresses, result) = match added {
            Ok(added) => added,
            Err(error) => {
                self.abandoned.push(sandbox);
                let _ = self.settle().await;
                return Err(error);
            }
        };
        let pod = Pod {
            name: name.to_owned(),
            node: node.clone(),
            addresses,
        };
        let site = PodSite {
            pod: pod.clone(),
            sandbox,
            echo,
            result,
        };
        self.pods.insert(name.to_owned(), site);
        Ok(pod)
    }

    /// Takes down what failed ADDs have left to be taken down.
    pub async fn settle(&mut self) -> Result<()> {
        while let Some(sandbox) = self.abandoned.last() {
            sandbox.invocation(self, None)?.run("DEL")?;
            let name = sandbox.pod.clone();
            self.abandoned.pop();
            self.delete_object(name).await?;
        }
        Ok(())
    }

    async fn delete_object(&mut self, pod: String) -> Result<()> {
        if self.api.is_up() {
            return self.kubernetes.delete_pod(&pod).await;
        }
        self.orphans.push(pod);
        Ok(())
    }

    /// A call of the plugin with parameters of the caller's own, as a runtime that has lost its way would make it.
    pub fn invocation<'a>(
        &'a self,
        node: &NodeName,
        container_id: &'a str,
        netns: &'a Path,
        pod: Option<(&'a str, &'a str)>,
    ) -> Result<Invocation<'a>> {
        Ok(Invocation {
            plugin: &self.binaries.meshd_cni,
            node: self.node(node)?,
            container_id,
            netns,
            pod,
            previous: None,
        })
    }

    /// Runs DEL, removes the pod's namespace and deletes its object.
    pub async fn delete_pod(&mut self, name: &str) -> Result<()> {
        let site = self.pod(name)?;
        site.sandbox.invocation(self, Some(&site.result))?.run("DEL")?;
        if let Some(site) = self.pods.remove(name) {
            self.former.addresses.extend(site.pod.addresses.iter().copied());
            self.former.interfaces.extend(cni::host_interfaces(&site.result));
        }
        self.delete_object(name.to_owned()).await
    }

    /// Stops or restarts the embedded API server.
    pub async fn set_api_server(&mut self, up: bool) -> Result<()> {
        self.api.set_up(up, &self.families).await?;
        if up {
            for name in std::mem::take(&mut self.orphans) {
                self.kubernetes.delete_pod(&name).await?;
            }
        }
        Ok(())
    }

    /// Deletes a Node and creates it again under its name.
    pub async fn recreate_node(&mut self, name: &NodeName) -> Result<()> {
        let node = self.node(name)?;
        let (cidrs, addresses) = (
            node.setup.pod_cidrs(&self.families, node.number),
            node.addresses.clone(),
        );
        self.kubernetes.delete_node(name).await?;
        self.kubernetes.create_node(name, &cidrs, &addresses).await
    }

    /// Gives a node other addresses on the underlay, and writes them to its Node as its kubelet does.
    pub async fn change_addresses(&mut self, name: &NodeName) -> Result<()> {
        let families = self.families.clone();
        let node = self.node_mut(name)?;
        if node.is_behind_nat() {
            bail!("{name} is behind a NAT, where it has but one address");
        }
        node.moves = node.moves.wrapping_add(1);
        let new = Plan::node_addresses(&families, node.number, node.moves);
        let old = std::mem::replace(&mut node.addresses, new.clone());
        let node = self.node(name)?;
        let before = state::lines(&node.netns).await?;
        self.underlay.readdress(&node.netns, &old, &new).await?;
        let after = state::lines(&node.netns).await?;
        self.node_mut(name)?.uplink_changed(&before, &after);
        self.kubernetes.set_addresses(name, &new).await
    }

    /// The NAT of a node forgets what it has translated.
    pub async fn restart_nat(&self, name: &NodeName) -> Result<()> {
        let nat = self.nats.get(name);
        nat.with_context(|| format!("{name} is behind no NAT"))?
            .restart()
            .await
    }

    /// Deletes every pod, stops meshd on every node with its own clean-up, and says what is left nevertheless.
    pub async fn shut_down(mut self, tell: &mut dyn FnMut(String)) -> Result<Vec<String>> {
        let names: Vec<String> = self.pods.keys().cloned().collect();
        for name in names {
            tell(format!("deleting pod {name}"));
            self.delete_pod(&name).await?;
        }
        self.settle().await?;
        self.wait_for_deletions().await?;
        let mut found = Vec::new();
        for node in &mut self.nodes {
            tell(format!("shutting {} down", node.name));
            node.shut_down()?;
            found.extend(node.remains().await?);
        }
        for node in std::mem::take(&mut self.nodes) {
            self.kubernetes.delete_node(&node.name).await?;
            let nat = self.nats.get(&node.name);
            self.underlay.unplug(nat.map_or(&node.netns, Nat::router)).await?;
        }
        found.extend(stray_namespaces(&self.pods)?);
        Ok(found)
    }
}

/// As long as a runtime's, and another from its first digits on.
fn container_id(number: u64) -> String {
    let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{spread:016x}{number:048x}")
}

/// ADD, again while it says "try again later", as a kubelet would.
fn add(invocation: &Invocation<'_>, within: Duration) -> Result<serde_json::Value> {
    let deadline = Instant::now() + within;
    loop {
        match invocation.run("ADD") {
            Err(error) if format!("{error:#}").contains("error 11:") && Instant::now() < deadline => {
                std::thread::sleep(PAUSE * 5);
            }
            outcome => return outcome,
        }
    }
}
