//! What users run: Deployments, DaemonSets, Services of every kind, names, probes, exec, logs.

use super::Cluster;
use super::traffic::{everyone_reaches_everyone, nothing_in_the_clear, probes_between, reach};
use anyhow::{Context, Result, ensure};
use meshd_kubernetes_arm::{Family, KubernetesArm, NAMESPACE, wait_for};
use meshd_lab::netns::Netns;
use meshd_lab::plan::Plan;
use meshd_scenario::{Arm, Pod, Site};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

const MANIFESTS: &str = include_str!("workloads.yaml");
/// How long everything may take to run.
const ROLLOUT: &str = "--timeout=120s";
const SOON: Duration = Duration::from_secs(30);
const REQUEST: Duration = Duration::from_secs(3);
/// Requests to one Service.
const REQUESTS: usize = 20;
/// Replicas of the Deployment, on some of the nodes; the DaemonSet has one a node.
const REPLICAS: usize = 4;
const HOST_PORT: u16 = 18081;
const HOST_NETWORK_PORT: u16 = 18080;

/// A Deployment and a DaemonSet run, and are reached in every way that Kubernetes has.
pub(super) fn run(cluster: &mut Cluster) -> Result<()> {
    let arm = &mut cluster.arm;
    let manifests = match arm.lab().family() {
        Family::Dual => MANIFESTS.to_owned(),
        Family::Ipv6 => MANIFESTS.replace("RequireDualStack", "SingleStack"),
    };
    arm.lab().apply(&manifests)?;
    for workload in ["deployment/web", "daemonset/each", "daemonset/host"] {
        kubectl(arm, &["rollout", "status", workload, ROLLOUT])?;
    }
    kubectl(arm, &["wait", "pod/client", "--for=condition=Ready", ROLLOUT])?;
    let web = pods(arm, "app=web")?;
    let each = pods(arm, "app=each")?;
    ensure!(web.len() == REPLICAS && each.len() == arm.nodes().len());

    let mut entered = Vec::new();
    for name in &each {
        entered.push(arm.enter_pod(NAMESPACE, name)?);
    }
    everyone_reaches_everyone(arm, &entered, SOON)?;
    cluster_ips(arm, &web)?;
    names(arm)?;
    node_ports(arm)?;
    host_ports(arm, &entered)?;
    host_network(arm, &entered)?;
    kubelets(arm, &web)?;
    nothing_in_the_clear(arm)?;

    entered.iter().for_each(|pod| arm.leave_pod(&pod.name));
    kubectl(
        arm,
        &[
            "delete",
            "deployment,daemonset,service,pod",
            "--all",
            "--timeout=120s",
        ],
    )?;
    let left = arm.residue()?;
    ensure!(left.is_empty(), "left on the nodes: {}", left.join("; "));
    Ok(())
}

fn kubectl(arm: &KubernetesArm, arguments: &[&str]) -> Result<String> {
    arm.lab().kubectl(&[&["-n", NAMESPACE], arguments].concat())
}

fn pods(arm: &KubernetesArm, selector: &str) -> Result<Vec<String>> {
    let names = kubectl(
        arm,
        &[
            "get",
            "pods",
            "-l",
            selector,
            "-o",
            "jsonpath={.items[*].metadata.name}",
        ],
    )?;
    Ok(names.split_whitespace().map(str::to_owned).collect())
}

fn service(arm: &KubernetesArm, name: &str, path: &str) -> Result<Vec<String>> {
    let text = kubectl(
        arm,
        &["get", "service", name, "-o", &format!("jsonpath={{{path}}}")],
    )?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// Requests from the client's pod, one after the other; what each answered.
fn ask(arm: &KubernetesArm, url: &str, times: usize) -> Result<Vec<String>> {
    let script = format!("for i in $(seq {times}); do curl -sS --fail -m 5 {url} && echo || exit 1; done");
    let said = kubectl(arm, &["exec", "client", "--", "sh", "-c", &script])
        .with_context(|| format!("ask {url} {times} times from a pod"))?;
    Ok(said.lines().map(str::to_owned).collect())
}

fn cluster_ips(arm: &KubernetesArm, web: &[String]) -> Result<()> {
    let addresses = service(arm, "web", ".spec.clusterIPs[*]")?;
    ensure!(
        addresses.len() == families(arm).len(),
        "the Service has {addresses:?}"
    );
    for address in addresses {
        let url = format!("http://{}/hostname", host(address.parse()?));
        let answers = ask(arm, &url, REQUESTS)?;
        let distinct: BTreeSet<&String> = answers.iter().collect();
        ensure!(
            answers.len() == REQUESTS && distinct.len() > 1,
            "{url} from a pod: {answers:?}"
        );
        ensure!(
            distinct.iter().all(|name| web.contains(name)),
            "{url}: {distinct:?} are not {web:?}"
        );
        for node in arm.nodes() {
            let said = arm.lab().node(&node, &["curl", "-sS", "--fail", "-m", "5", &url]);
            let said = said.with_context(|| format!("ask {url} on {node}"))?;
            ensure!(web.contains(&said), "{url} on {node}: {said}");
        }
    }
    Ok(())
}

/// The cluster's families, as options of curl.
fn families(arm: &KubernetesArm) -> &'static [&'static str] {
    match arm.lab().family() {
        Family::Dual => &["-4", "-6"],
        Family::Ipv6 => &["-6"],
    }
}

fn names(arm: &KubernetesArm) -> Result<()> {
    // Since the pods are new: CoreDNS must have heard of them.
    let rollout = [
        "rollout",
        "status",
        "-n",
        "kube-system",
        "deployment/coredns",
        ROLLOUT,
    ];
    arm.lab().kubectl(&rollout).context("CoreDNS does not run")?;
    for name in ["web", &format!("web.{NAMESPACE}.svc.cluster.local")] {
        for family in families(arm) {
            let url = format!("{family} http://{name}/hostname");
            wait_for(&format!("the name {name}"), SOON, || ask(arm, &url, 3).map(Some))?;
        }
    }
    Ok(())
}

/// From a machine outside: every node answers with the policy Cluster; with Local, those with an endpoint, and they
/// see who asks.
fn node_ports(arm: &KubernetesArm) -> Result<()> {
    let outside = arm.neighbour().netns();
    let port = |name| -> Result<u16> { Ok(service(arm, name, ".spec.ports[0].nodePort")?.concat().parse()?) };
    let (anywhere, local) = (port("node-port")?, port("node-port-local")?);
    let holders = kubectl(
        arm,
        &[
            "get",
            "pods",
            "-l",
            "app=web",
            "-o",
            "jsonpath={.items[*].spec.nodeName}",
        ],
    )?;
    let holders: BTreeSet<&str> = holders.split_whitespace().collect();
    ensure!(
        holders.len() < arm.nodes().len(),
        "void: every node has an endpoint: {holders:?}"
    );
    for node in arm.nodes() {
        for address in arm.node_addresses(&node) {
            let asked = |port, path: &str| http_get(outside, SocketAddr::new(address, port), path);
            wait_for(&format!("the NodePort at {address}"), SOON, || {
                asked(anywhere, "/hostname").map(Some)
            })?;
            let shown = || format!("the NodePort with the policy Local at {address}");
            if holders.contains(node.0.as_str()) {
                let seen = asked(local, "/clientip").with_context(shown)?;
                let neighbour = Plan::neighbour();
                let expected: IpAddr = if address.is_ipv4() {
                    neighbour.0.into()
                } else {
                    neighbour.1.into()
                };
                let seen: SocketAddr = seen.parse().with_context(|| format!("{}: {seen}", shown()))?;
                ensure!(seen.ip().to_canonical() == expected, "{} saw {seen} ask", shown());
            } else {
                let answer = asked(local, "/hostname");
                ensure!(
                    answer.is_err(),
                    "{} answered without an endpoint: {answer:?}",
                    shown()
                );
            }
        }
    }
    Ok(())
}

fn host_ports(arm: &KubernetesArm, each: &[Pod]) -> Result<()> {
    for pod in each {
        for address in arm.node_addresses(&pod.node) {
            let at = SocketAddr::new(address, HOST_PORT);
            let said = http_get(arm.neighbour().netns(), at, "/hostname");
            let said = said.with_context(|| format!("the hostPort at {at}"))?;
            ensure!(
                said == pod.name,
                "the hostPort at {at}: {said} is not {}",
                pod.name
            );
        }
    }
    Ok(())
}

/// Pods in the host's network and pods of other nodes, both ways.
fn host_network(arm: &mut KubernetesArm, each: &[Pod]) -> Result<()> {
    for pod in each {
        for node in arm.nodes().into_iter().filter(|n| *n != pod.node) {
            for address in arm.node_addresses(&node) {
                let at = SocketAddr::new(address, HOST_NETWORK_PORT);
                let netns = arm.netns(&Site::Pod(pod.clone()))?;
                let said = http_get(netns, at, "/hostname");
                let said = said
                    .with_context(|| format!("{} asks the host-network pod of {node} at {at}", pod.name))?;
                ensure!(said == node.0, "the host-network pod of {node} says it is {said}");
            }
            reach(arm, probes_between(&Site::Node(node), &pod.addresses), SOON)?;
        }
    }
    Ok(())
}

/// Readiness and liveness by HTTP and TCP kept every pod Ready without a restart; exec and logs work.
fn kubelets(arm: &KubernetesArm, web: &[String]) -> Result<()> {
    let path = "jsonpath={.items[*].status.containerStatuses[0].restartCount}";
    let restarts = kubectl(arm, &["get", "pods", "-l", "app=web", "-o", path])?;
    ensure!(
        restarts.split_whitespace().all(|r| r == "0"),
        "restarts of the probed pods: {restarts}"
    );
    for name in web {
        let said = kubectl(arm, &["exec", name, "--", "hostname"])?;
        ensure!(said.trim() == name, "exec in {name} said {said}");
        let log = kubectl(arm, &["logs", name])?;
        ensure!(log.contains("Started HTTP server"), "the log of {name}: {log}");
    }
    Ok(())
}

fn host(address: IpAddr) -> String {
    match address {
        IpAddr::V4(a) => a.to_string(),
        IpAddr::V6(a) => format!("[{a}]"),
    }
}

/// One HTTP request from inside a namespace: the answer's body.
pub(super) fn http_get(netns: &Netns, at: SocketAddr, path: &str) -> Result<String> {
    let request = format!("GET {path} HTTP/1.0\r\nHost: {at}\r\n\r\n");
    let answer = netns.run(move || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&at, REQUEST)?;
        stream.set_read_timeout(Some(REQUEST))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?;
    let answer = answer.with_context(|| format!("ask {at}{path}"))?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("{at}{path}: no HTTP: {answer}"))?;
    ensure!(head.contains(" 200 "), "{at}{path}: {head}");
    Ok(body.trim().to_owned())
}
