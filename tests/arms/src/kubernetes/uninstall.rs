//! Helm takes all of meshd off every node, and can put it back.

use super::Cluster;
use super::traffic::{everyone_reaches_everyone, one_each};
use anyhow::{Result, ensure};
use meshd_kubernetes_arm::Lab;
use meshd_model::NodeName;
use std::time::Duration;

const NAMESPACE: &str = "kube-system";
/// How long pods may take to reach each other, on a machine that does much else.
const AGAIN: Duration = Duration::from_secs(90);
/// Prints what is there of meshd: interfaces, addresses, rules, routes, firewall, files; one line each.
const LOOK: &str = r"
    ip -oneline link | grep -E 'meshd|mshp'
    for family in -4 -6; do
        ip $family rule | grep -vE 'lookup (local|main|default)'
        ip $family route show table all | grep -E '10\.244\.|fd00:244:|meshd|1090'
        ip $family neigh show proxy | grep -E 'meshd|mshp'
    done
    nft list ruleset | grep -i meshd
    find /etc/cni/net.d /opt/cni/bin /var/lib /run -maxdepth 1 -iname '*meshd*'
    find /run/wireguard
    true";

fn there(lab: &Lab, node: &NodeName) -> Result<Vec<String>> {
    let seen = lab.node(node, &["sh", "-c", &format!("{{ {LOOK}\n}} 2>/dev/null")])?;
    let mut lines: Vec<String> = seen
        .lines()
        .map(|line| format!("{node}: {}", line.trim()))
        .collect();
    let object = lab.get(&["node", &node.0])?;
    let annotations = object["metadata"]["annotations"]
        .as_object()
        .cloned()
        .unwrap_or_default();
    let ours = annotations.keys().filter(|key| key.starts_with("meshd.dev/"));
    lines.extend(ours.map(|key| format!("{node}: annotation {key}")));
    Ok(lines)
}

fn everywhere(lab: &Lab) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for node in lab.nodes() {
        lines.extend(there(lab, node)?);
    }
    Ok(lines)
}

/// Uninstalled while pods run: nothing is left on the nodes nor at the API server; installed again, all is as it was.
pub(super) fn run(cluster: &mut Cluster) -> Result<()> {
    let lab = cluster.arm.lab();
    for node in lab.nodes() {
        let count = there(lab, node)?.len();
        ensure!(
            count > 10,
            "{node} should be full of meshd, and {count} lines are found: the look is broken"
        );
    }
    lab.verb(&[
        "helm",
        "uninstall",
        "meshd",
        "--namespace",
        NAMESPACE,
        "--timeout=170s",
    ])?;
    let left = everywhere(lab)?;
    ensure!(left.is_empty(), "after the uninstallation:\n{}", left.join("\n"));
    let kinds = "daemonset,job,pod,configmap,serviceaccount,role,rolebinding,clusterrole,clusterrolebinding,\
                 validatingadmissionpolicy,validatingadmissionpolicybinding";
    let objects = lab.kubectl(&["get", kinds, "-n", NAMESPACE, "-o", "name"])?;
    // Pods that have just done their work may still be ending.
    let objects: Vec<_> = objects
        .lines()
        .filter(|name| name.contains("meshd") && !name.starts_with("pod/meshd-uninstall"))
        .collect();
    ensure!(objects.is_empty(), "at the API server: {}", objects.join(", "));

    lab.install(&cluster.image)?;
    // Its pod had lost its network.
    lab.kubectl(&["rollout", "restart", "-n", NAMESPACE, "deployment/coredns"])?;
    lab.kubectl(&[
        "rollout",
        "status",
        "-n",
        NAMESPACE,
        "deployment/coredns",
        "--timeout=120s",
    ])?;
    let pods = one_each(cluster, "again")?;
    everyone_reaches_everyone(&mut cluster.arm, &pods, AGAIN)?;
    cluster.arm.delete_pods(&pods)
}
