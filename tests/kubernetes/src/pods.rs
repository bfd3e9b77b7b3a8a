//! Pods of the cluster, entered from outside: their network namespaces, and echo servers in them.

use crate::lab::{Lab, wait_for};
use anyhow::{Context, Result, bail};
use meshd_lab::netns::Netns;
use meshd_lab::traffic::echo::Echo;
use meshd_model::NodeName;
use meshd_scenario::Pod;
use serde_json::{Value, json};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Where the arm's pods are.
pub const NAMESPACE: &str = "meshd-arm";
/// Waits, and does nothing else.
pub(crate) const PAUSE_IMAGE: &str = "meshd.dev/pause:1";
/// How long a pod may take to run, on a machine that does much else.
const RUNNING: Duration = Duration::from_secs(90);

/// A pod that was entered.
pub struct PodSite {
    /// What scenarios know of it.
    pub pod: Pod,
    /// Its network namespace.
    pub netns: Netns,
    /// Echo servers in it.
    pub echo: Echo,
}

impl PodSite {
    /// Waits until the pod runs, and enters it.
    pub fn enter(lab: &Lab, runtime: &Runtime, namespace: &str, name: &str) -> Result<Self> {
        let pod = running(lab, namespace, name)?;
        let shown = || format!("enter pod {namespace}/{name}");
        let path = find_netns(lab, runtime, &pod).with_context(shown)?;
        let netns = Netns::open(name, &path).with_context(shown)?;
        let _entered = runtime.enter();
        let echo = Echo::start(&netns).with_context(shown)?;
        Ok(Self { pod, netns, echo })
    }
}

/// A pod that only waits, on a node of its own choice.
pub(crate) fn manifest(node: &NodeName, name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "nodeName": node.0,
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "pause", "image": PAUSE_IMAGE, "imagePullPolicy": "Never"}],
        },
    })
}

/// Waits until the pod runs.
fn running(lab: &Lab, namespace: &str, name: &str) -> Result<Pod> {
    let mut seen = String::new();
    let waited = wait_for(&format!("pod {namespace}/{name} to run"), RUNNING, || {
        let object = lab.get(&["pod", "-n", namespace, name])?;
        seen = object["status"].to_string();
        let addresses = addresses(&object);
        let node = object["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
        let runs = object["status"]["phase"] == "Running" && !addresses.is_empty();
        Ok(runs.then(|| Pod {
            name: name.to_owned(),
            node: NodeName(node),
            addresses,
        }))
    });
    waited.with_context(|| format!("its status: {seen}; its events: {}", events(lab, namespace, name)))
}

fn events(lab: &Lab, namespace: &str, name: &str) -> String {
    let selector = format!("involvedObject.name={name}");
    let output = "jsonpath={range .items[*]}{.reason}: {.message}; {end}";
    lab.kubectl(&[
        "get",
        "events",
        "-n",
        namespace,
        "--field-selector",
        &selector,
        "-o",
        output,
    ])
    .unwrap_or_else(|error| format!("{error:#}"))
}

/// A pod's addresses, of both families.
pub(crate) fn addresses(pod: &Value) -> Vec<IpAddr> {
    let all = pod["status"]["podIPs"].as_array().into_iter().flatten();
    all.filter_map(|ip| ip["ip"].as_str()?.parse().ok()).collect()
}

/// Network namespaces of the pods on a node, as paths seen from here.
pub(crate) fn namespaces(lab: &Lab, node: &NodeName) -> Result<Vec<PathBuf>> {
    let folder = lab.root(node)?.join("run/netns");
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("list {}", folder.display()))?,
    };
    Ok(entries.flatten().map(|e| e.path()).collect())
}

/// The one that has the pod's address: asked of the kernel, neither of the runtime nor of meshd.
fn find_netns(lab: &Lab, runtime: &Runtime, pod: &Pod) -> Result<PathBuf> {
    for path in namespaces(lab, &pod.node)? {
        // One that is just being removed is not the pod's.
        let Ok(netns) = Netns::open("look", &path) else {
            continue;
        };
        let held =
            runtime.block_on(async { Ok::<_, anyhow::Error>(netns.netlink()?.get_addresses().await?) })?;
        let mut held = held.iter().filter_map(|a| a.local().or(a.address()));
        if held.any(|a| pod.addresses.contains(a)) {
            return Ok(path);
        }
    }
    bail!(
        "no network namespace of {} has one of {:?}",
        pod.node,
        pod.addresses
    )
}
