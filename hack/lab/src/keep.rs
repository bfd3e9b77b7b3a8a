//! A lab that stays up and is spoken to: one JSON object on a line each way, over a socket in the caller's folder.

use crate::Binaries;
use crate::cluster::api::Api;
use crate::cluster::pod::PodSite;
use crate::cluster::{Cluster, agent};
use crate::kubernetes::Kubernetes;
use crate::plan::{self, Plan};
use crate::sandbox::{Entry, HOST, Inside, Reporter};
use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use meshd_model::NodeName;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// To be among the entries of a program that keeps a lab.
pub const ENTRY: Entry = Entry {
    name: "lab",
    run: inside,
};
/// Name of the control socket in the caller's folder.
pub const SOCKET: &str = "control.sock";
/// Longest request or answer, in bytes.
const LINE_MAX: u64 = 4 << 20;
/// How long nodes may take to be ready.
const READY: Duration = Duration::from_secs(30);

/// What is to be kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// How many nodes.
    pub nodes: usize,
    /// The programs to run.
    pub binaries: Binaries,
    /// Reaches the user's own API server through the relay; the embedded one if there is none.
    pub kubeconfig: Option<Value>,
}

/// What the caller is told on the way up.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// What is being done.
    Doing(String),
    /// The lab is up.
    Up,
}

/// What can be asked of a lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// What there is.
    Status,
    /// Adds a pod.
    PodAdd {
        /// Where.
        node: String,
        /// Its name; one that is free, if none is given.
        name: Option<String>,
    },
    /// Deletes a pod.
    PodDel {
        /// Which.
        name: String,
    },
    /// Takes everything down.
    Down,
}

/// The answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// What there is.
    Status(LabStatus),
    /// The pod that was added.
    Pod(PodLine),
    /// It is done.
    Done,
    /// Everything is down; what is left nevertheless.
    Down(Vec<String>),
    /// It did not succeed.
    Error(String),
}

/// What a lab consists of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabStatus {
    /// Where the nodes reach the API server.
    pub api_server: String,
    /// Whether that is the user's own.
    pub own_api_server: bool,
    /// Its nodes.
    pub nodes: Vec<NodeLine>,
    /// Its pods.
    pub pods: Vec<PodLine>,
}

/// A node of a lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeLine {
    /// Its name.
    pub name: String,
    /// On the underlay.
    pub addresses: Vec<IpAddr>,
    /// Whether its daemon says that it is ready.
    pub ready: bool,
    /// Peers that its daemon knows.
    pub peers: usize,
    /// What its daemon says is wrong, or why it says nothing.
    pub problems: Vec<String>,
    /// Where its network namespace is mounted, inside.
    pub netns: PathBuf,
}

/// A pod of a lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodLine {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub node: String,
    /// What it was given.
    pub addresses: Vec<IpAddr>,
    /// Where its network namespace is mounted, inside.
    pub netns: PathBuf,
}

/// Asks a lab whose folder is given.
pub fn ask(folder: &Path, request: &Request) -> Result<Response> {
    let path = folder.join(SOCKET);
    let mut stream = UnixStream::connect(&path)
        .with_context(|| format!("connect to the lab at {}: does it still run?", path.display()))?;
    write_line(&mut stream, request).context("ask the lab")?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_MAX))
        .read_line(&mut line)
        .context("read the lab's answer")?;
    match serde_json::from_str(&line).context("the lab's answer is not understood")? {
        Response::Error(error) => bail!("{error}"),
        response => Ok(response),
    }
}

fn write_line(stream: &mut UnixStream, message: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string(message)?;
    text.push('\n');
    Ok(stream.write_all(text.as_bytes())?)
}

fn inside(inside: Inside) -> Result<()> {
    let order: Order = serde_json::from_value(inside.input).context("the order is not understood")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start a tokio runtime")?;
    runtime.block_on(keep(order, inside.reporter))
}

async fn keep(order: Order, reporter: Reporter) -> Result<()> {
    let mut tell = |what| reporter.send(&Event::Doing(what));
    let (api, kubernetes) = match order.kubeconfig {
        None => (Api::embedded(), None),
        Some(kubeconfig) => (
            Api::own(kubeconfig.clone()),
            Some(own_kubernetes(kubeconfig).await?),
        ),
    };
    let mut cluster = Cluster::up(
        order.nodes,
        plan::both(),
        &order.binaries,
        api,
        kubernetes,
        reporter,
        &mut tell,
    )
    .await?;
    for number in 1..=order.nodes {
        let name = Plan::node_name(number);
        tell(format!("waiting until {name} is ready"));
        if let Err(error) = cluster.wait_ready(&name, READY) {
            // Objects at the user's own API server are not to stay behind.
            let _ = cluster.shut_down(&mut tell).await;
            return Err(error);
        }
    }
    let path = Path::new(HOST).join(SOCKET);
    let listener = UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    reporter.send(&Event::Up);
    for stream in listener.incoming().flatten() {
        match hear(&stream) {
            Ok(Request::Down) => return down(cluster, stream, &mut tell).await,
            Ok(request) => {
                let response = respond(&mut cluster, request).await;
                answer(
                    stream,
                    &response.unwrap_or_else(|e| Response::Error(format!("{e:#}"))),
                );
            }
            Err(error) => answer(stream, &Response::Error(format!("{error:#}"))),
        }
    }
    Ok(())
}

async fn own_kubernetes(kubeconfig: Value) -> Result<Kubernetes> {
    let kubeconfig: Kubeconfig =
        serde_json::from_value(kubeconfig).context("the kubeconfig is not understood")?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .context("the kubeconfig cannot be used")?;
    Kubernetes::new(config)
}

fn hear(stream: &UnixStream) -> Result<Request> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_MAX)).read_line(&mut line)?;
    serde_json::from_str(&line).context("the request is not understood")
}

fn answer(mut stream: UnixStream, response: &Response) {
    let _ = stream.set_write_timeout(Some(Duration::from_secs(5)));
    // Whoever asked may be gone.
    let _ = write_line(&mut stream, response);
}

async fn down(cluster: Cluster, stream: UnixStream, tell: &mut dyn FnMut(String)) -> Result<()> {
    let outcome = cluster.shut_down(tell).await;
    let response = match &outcome {
        Ok(left) => Response::Down(left.clone()),
        Err(error) => Response::Error(format!("{error:#}")),
    };
    answer(stream, &response);
    outcome.map(drop)
}

async fn respond(cluster: &mut Cluster, request: Request) -> Result<Response> {
    match request {
        Request::Status => Ok(Response::Status(status(cluster))),
        Request::PodAdd { node, name } => {
            let name = name.unwrap_or_else(|| free_name(cluster));
            cluster.add_pod(&NodeName(node), &name).await?;
            Ok(Response::Pod(pod_line(cluster.pod(&name)?)))
        }
        Request::PodDel { name } => cluster.delete_pod(&name).await.map(|()| Response::Done),
        Request::Down => bail!("a lab goes down once"),
    }
}

fn free_name(cluster: &Cluster) -> String {
    let free = |n: &usize| cluster.pods().all(|p| p.pod.name != format!("pod-{n}"));
    let number = (1..).find(free).unwrap_or_default();
    format!("pod-{number}")
}

fn status(cluster: &Cluster) -> LabStatus {
    let nodes = cluster.nodes().iter().map(|node| {
        let said = agent::status(&node.paths().socket, Duration::from_secs(2));
        let problems = match &said {
            Ok(status) => status
                .problems
                .iter()
                .map(|p| format!("{}: {}", p.subject, p.message))
                .collect(),
            Err(error) => vec![format!("{error:#}")],
        };
        NodeLine {
            name: node.name.0.clone(),
            addresses: node.addresses.clone(),
            ready: said.as_ref().is_ok_and(|s| s.ready),
            peers: said.as_ref().map_or(0, |s| s.peers.len()),
            problems,
            netns: node.netns.path().to_owned(),
        }
    });
    LabStatus {
        api_server: Plan::api_server(&cluster.families).to_string(),
        own_api_server: matches!(cluster.api, Api::Own { .. }),
        nodes: nodes.collect(),
        pods: cluster.pods().map(pod_line).collect(),
    }
}

fn pod_line(site: &PodSite) -> PodLine {
    PodLine {
        name: site.pod.name.clone(),
        node: site.pod.node.0.clone(),
        addresses: site.pod.addresses.clone(),
        netns: site.sandbox.netns.path().to_owned(),
    }
}
