//! What happens to a cluster over time: scaling, restarts, upgrades, drains, nodes that go and come.

use super::Cluster;
use super::traffic::{everyone_reaches_everyone, nothing_in_the_clear, one_each, under_traffic, undisturbed};
use anyhow::{Context, Result, bail, ensure};
use meshd_kubernetes_arm::{Image, NAMESPACE, wait_for};
use meshd_model::NodeName;
use meshd_model::key::PublicKey;
use meshd_scenario::{Arm, Pod};
use std::time::Duration;

/// How long something may take to be as it was, on a machine that does much else.
const AGAIN: Duration = Duration::from_secs(90);
const ROLLOUT: &str = "--timeout=180s";
/// Pods of the Deployment when it is large.
const MANY: usize = 60;
const FEW: usize = 2;
/// How long a node may be away whose device is deleted and started again.
const DEVICE_AWAY: Duration = Duration::from_secs(10);
/// How long a node is cut off from the API server.
const CUT_OFF: Duration = Duration::from_secs(10);
const MANY_PODS: &str = include_str!("many.yaml");

/// 2, 60 and 2 pods again; then none: every address is one pod's, and no lease and no interface is left.
pub(super) fn scale(cluster: &mut Cluster) -> Result<()> {
    let arm = &mut cluster.arm;
    arm.lab().apply(MANY_PODS)?;
    for count in [FEW, MANY, FEW] {
        let replicas = format!("--replicas={count}");
        arm.lab()
            .kubectl(&["-n", NAMESPACE, "scale", "deployment/many", &replicas])?;
        wait_for(&format!("{count} pods"), 2 * AGAIN, || {
            let pods = arm.lab().get(&["pods", "-n", NAMESPACE, "-l", "app=many"])?;
            let pods = pods["items"].as_array().cloned().unwrap_or_default();
            let ready = pods.iter().filter(|p| p["status"]["phase"] == "Running").count();
            Ok((ready == count && pods.len() == count).then_some(()))
        })?;
        let mut known = 0;
        for node in arm.nodes() {
            known += arm.attachments(&node)?.len();
        }
        ensure!(known >= count, "{known} attachments are known for {count} pods");
        let left = arm.residue()?;
        ensure!(left.is_empty(), "with {count} pods: {}", left.join("; "));
    }
    arm.lab().kubectl(&[
        "-n",
        NAMESPACE,
        "delete",
        "deployment/many",
        "--cascade=foreground",
        "--timeout=90s",
    ])?;
    let left = arm.residue()?;
    ensure!(left.is_empty(), "after the last pod: {}", left.join("; "));
    Ok(())
}

/// A node is deleted and joins again under its name: perhaps with other pod CIDRs, and always reachable.
pub(super) fn join_again(cluster: &mut Cluster) -> Result<()> {
    let node = NodeName("n2".to_owned());
    let beside: Vec<_> = ["n1", "n3"]
        .map(|n| (NodeName(n.to_owned()), format!("beside-{n}")))
        .into();
    let pods = cluster.arm.add_pods(&beside)?;
    undisturbed(cluster, &pods, |cluster| {
        cluster.arm.recreate_node(&node).map_err(anyhow::Error::new)?;
        cluster
            .arm
            .lab()
            .kubectl(&["wait", &format!("node/{node}"), "--for=condition=Ready", ROLLOUT])?;
        Ok(())
    })?;
    cluster.arm.wait_ready(&node, AGAIN)?;
    let new = cluster.arm.add_pods(&[(node, "again-n2".to_owned())])?;
    let all = [pods, new].concat();
    everyone_reaches_everyone(&mut cluster.arm, &all, AGAIN)?;
    cluster.arm.delete_pods(&all)
}

/// kubelet, containerd and meshd, each restarted and killed while pods talk.
pub(super) fn restarts(cluster: &mut Cluster) -> Result<()> {
    let pods = one_each(cluster, "restart")?;
    let node = NodeName("n1".to_owned());
    for service in ["kubelet", "containerd"] {
        for how in ["restart", "kill"] {
            undisturbed(cluster, &pods, |cluster| {
                cluster.arm.lab().service(&node, service, how)?;
                if how == "kill" {
                    cluster.arm.lab().service(&node, service, "start")?;
                }
                new_pod_starts(cluster, &node)
            })
            .with_context(|| format!("{how} of {service}"))?;
        }
    }
    undisturbed(cluster, &pods, |cluster| {
        let selector = [
            "-l",
            "app.kubernetes.io/name=meshd",
            "--field-selector",
            "spec.nodeName=n1",
        ];
        let delete = [&["-n", "kube-system", "delete", "pod"], selector.as_slice()].concat();
        cluster.arm.lab().kubectl(&delete)?;
        new_pod_starts(cluster, &node)
    })
    .context("restart of meshd")?;
    undisturbed(cluster, &pods, |cluster| {
        cluster.arm.kill(&node, "meshd")?;
        new_pod_starts(cluster, &node)
    })
    .context("kill -9 of meshd")?;
    everyone_reaches_everyone(&mut cluster.arm, &pods, AGAIN)?;
    cluster.arm.delete_pods(&pods)
}

/// A pod can be started on the node, and deleted.
fn new_pod_starts(cluster: &mut Cluster, node: &NodeName) -> Result<()> {
    let new = cluster.arm.add_pods(&[(node.clone(), "new".to_owned())])?;
    cluster.arm.delete_pods(&new)
}

/// A rolling upgrade to another image and the rollback: nothing is lost while both versions are in the mesh.
pub(super) fn upgrade(cluster: &mut Cluster) -> Result<()> {
    let before = nodes_not_ready(cluster)?;
    let next = Image::build("arm-next", cluster.folder.path())?;
    cluster.arm.lab().load(&next)?;
    let now = cluster.image.clone();
    let pods = one_each(cluster, "upgrade")?;
    for (what, image) in [("upgrade", next), ("rollback", now)] {
        undisturbed(cluster, &pods, |cluster| cluster.arm.lab().upgrade(&image, &[]))
            .with_context(|| format!("the {what}"))?;
        new_pods_are_reached(cluster, &pods, &format!("after-{what}"))?;
    }
    let after = nodes_not_ready(cluster)?;
    ensure!(after == before, "a node became NotReady meanwhile: {after}");
    cluster.arm.delete_pods(&pods)
}

/// What Kubernetes tells of nodes that became NotReady, which takes their pods out of their Services.
fn nodes_not_ready(cluster: &mut Cluster) -> Result<String> {
    let fields = "custom-columns=NODE:.involvedObject.name,LAST:.lastTimestamp,COUNT:.count";
    let only = [
        "--field-selector",
        "reason=NodeNotReady",
        "--no-headers",
        "-o",
        fields,
    ];
    cluster
        .arm
        .lab()
        .kubectl(&[&["get", "events", "-A"], only.as_slice()].concat())
}

/// A new pod on every node, in the middle of others.
fn new_pods_are_reached(cluster: &mut Cluster, pods: &[Pod], prefix: &str) -> Result<()> {
    let new = one_each(cluster, prefix)?;
    everyone_reaches_everyone(&mut cluster.arm, &[pods, &new].concat(), AGAIN).context(prefix.to_owned())?;
    cluster.arm.delete_pods(&new)
}

/// Values of a release that runs are changed and changed back: the tunnel's mode; and where the API server is, which the
/// kubelet's own kubeconfig says, on a node that has lost its kube-proxy.
pub(super) fn values_changed(cluster: &mut Cluster) -> Result<()> {
    let node = NodeName("n1".to_owned());
    let pods = one_each(cluster, "values")?;
    let lab = cluster.arm.lab();
    lab.service(&node, "kube-proxy", "stop")?;
    let outcome = without_kube_proxy(cluster, &node, &pods);
    cluster.arm.lab().service(&node, "kube-proxy", "start")?;
    outcome?;
    cluster.arm.delete_pods(&pods)
}

fn without_kube_proxy(cluster: &mut Cluster, node: &NodeName, pods: &[Pod]) -> Result<()> {
    let tables = "delete table ip kube-proxy; delete table ip6 kube-proxy";
    cluster.arm.lab().node(node, &["nft", tables])?;
    let by_service = "curl --insecure --silent --max-time 2 https://10.96.0.1/readyz || echo unreachable";
    let said = cluster.arm.lab().node(node, &["sh", "-c", by_service])?;
    ensure!(
        said.trim() == "unreachable",
        "void: the Service of the API server says {said}"
    );
    let changed = [
        "config.wireguard.mode=userspace",
        "apiServer.host=",
        "apiServer.kubeconfig=/etc/kubernetes/kubelet.kubeconfig",
    ];
    let image = cluster.image.clone();
    for (what, values) in [("changed", changed.as_slice()), ("changed-back", [].as_slice())] {
        undisturbed(cluster, pods, |cluster| cluster.arm.lab().upgrade(&image, values))
            .with_context(|| format!("values {what}"))?;
        for node in cluster.arm.nodes() {
            cluster.arm.wait_ready(&node, AGAIN)?;
        }
        new_pods_are_reached(cluster, pods, &format!("values-{what}"))?;
    }
    Ok(())
}

/// The pod that carries a node's packets is deleted: the node is reached again soon, by the connections that there were,
/// and nothing leaves it in the clear.
pub(super) fn device_deleted(cluster: &mut Cluster) -> Result<()> {
    let pods = one_each(cluster, "device")?;
    let (tally, ()) = under_traffic(cluster, &pods, |cluster| {
        let delete = [
            "-n",
            "kube-system",
            "delete",
            "pod",
            "-l",
            "app.kubernetes.io/name=meshd-wg",
        ];
        let on_n1 = ["--field-selector", "spec.nodeName=n1"];
        cluster.arm.lab().kubectl(&[delete.as_slice(), &on_n1].concat())?;
        everyone_reaches_everyone(&mut cluster.arm, &pods, AGAIN)
    })?;
    let away = tally.away();
    println!("    n1 was away for {away:?}");
    ensure!(
        tally.lost > 0,
        "void: nothing was lost, so nothing was deleted: {tally:?}"
    );
    ensure!(
        away < DEVICE_AWAY && tally.broken.is_empty(),
        "away for {away:?}: {tally:?}"
    );
    nothing_in_the_clear(&mut cluster.arm)?;
    cluster.arm.delete_pods(&pods)
}

/// A drained node keeps its network and nothing of the pods that left; uncordoned, it takes pods again.
pub(super) fn drain(cluster: &mut Cluster) -> Result<()> {
    let lab = cluster.arm.lab();
    lab.apply(MANY_PODS)?;
    lab.kubectl(&["-n", NAMESPACE, "scale", "deployment/many", "--replicas=6"])?;
    lab.kubectl(&["-n", NAMESPACE, "rollout", "status", "deployment/many", ROLLOUT])?;
    let on_n2 = || lab.get(&["pods", "-n", NAMESPACE, "--field-selector", "spec.nodeName=n2"]);
    let before = on_n2()?["items"].as_array().map_or(0, Vec::len);
    ensure!(before > 0, "void: the drained node had no pod");
    lab.kubectl(&[
        "drain",
        "n2",
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--force",
        ROLLOUT,
    ])?;
    let after = on_n2()?["items"].as_array().map_or(0, Vec::len);
    lab.kubectl(&["-n", NAMESPACE, "rollout", "status", "deployment/many", ROLLOUT])?;
    let node = NodeName("n2".to_owned());
    let known = cluster.arm.attachments(&node)?;
    let ready = cluster.arm.status(&node)?.ready;
    let left = cluster.arm.residue()?;
    cluster.arm.lab().kubectl(&["uncordon", "n2"])?;
    ensure!(
        after == 0 && known.is_empty() && left.is_empty(),
        "{after} pods, {known:?}, {left:?} after the drain"
    );
    ensure!(ready, "meshd of the drained node is not ready");
    new_pod_starts(cluster, &node)?;
    let delete = [
        "-n",
        NAMESPACE,
        "delete",
        "deployment/many",
        "--cascade=foreground",
        "--timeout=90s",
    ];
    cluster.arm.lab().kubectl(&delete).map(drop)
}

/// A node that is cut off from the API server: its pods keep talking, its agent stays ready, also when it is killed.
pub(super) fn cut_off(cluster: &mut Cluster) -> Result<()> {
    let pods = one_each(cluster, "cut")?;
    let node = NodeName("n1".to_owned());
    let outcome = undisturbed(cluster, &pods, |cluster| {
        let rules = "add table inet cut; add chain inet cut out { type filter hook output priority 0; }; \
                     add rule inet cut out tcp dport 6443 drop";
        cluster.arm.lab().node(&node, &["nft", rules])?;
        std::thread::sleep(CUT_OFF);
        cluster.arm.kill(&node, "meshd")?;
        wait_for("the agent to come back knowing its pods", AGAIN, || {
            let status = cluster.arm.status(&node)?;
            Ok((!status.attachments.is_empty()).then_some(()))
        })
    });
    cluster.arm.lab().node(&node, &["nft", "delete table inet cut"])?;
    outcome?;
    cluster.arm.wait_ready(&node, AGAIN)?;
    cluster
        .arm
        .lab()
        .kubectl(&["wait", "node", "--all", "--for=condition=Ready", ROLLOUT])?;
    everyone_reaches_everyone(&mut cluster.arm, &pods, AGAIN)?;
    cluster.arm.delete_pods(&pods)
}

/// All nodes lose their power at once: pods come back, with a network, by the keys that the nodes had.
pub(super) fn reboot(cluster: &mut Cluster) -> Result<()> {
    let nodes = cluster.arm.nodes();
    let pods = one_each(cluster, "boot")?;
    let keys = keys(cluster)?;
    for pod in &pods {
        cluster.arm.leave_pod(&pod.name);
    }
    cluster.arm.leave_nodes();
    let mut arguments = vec!["reboot"];
    arguments.extend(nodes.iter().map(|n| n.0.as_str()));
    cluster.arm.lab().verb(&arguments)?;
    cluster.arm.enter_nodes()?;
    for node in &nodes {
        cluster.arm.wait_ready(node, AGAIN)?;
    }
    ensure!(self::keys(cluster)? == keys, "the nodes' keys changed");
    // A kubelet says what it last knew until it knows better: sandboxes are new when they have other namespaces.
    let mut again = Vec::new();
    for pod in &pods {
        let (lab, name) = (cluster.arm.lab(), pod.name.as_str());
        wait_for(&format!("{name} to be started again"), 2 * AGAIN, || {
            let restarts = lab.field(
                &["pod", "-n", NAMESPACE, name],
                ".status.containerStatuses[0].restartCount",
            )?;
            let running = lab.field(
                &["pod", "-n", NAMESPACE, name],
                ".status.containerStatuses[0].state.running",
            )?;
            Ok((restarts != "0" && !running.is_empty()).then_some(()))
        })?;
        again.push(cluster.arm.enter_pod(NAMESPACE, name)?);
    }
    everyone_reaches_everyone(&mut cluster.arm, &again, AGAIN)?;
    cluster.arm.delete_pods(&again)?;
    let left = cluster.arm.residue()?;
    if !left.is_empty() {
        bail!("left of the time before: {}", left.join("; "));
    }
    Ok(())
}

fn keys(cluster: &mut Cluster) -> Result<Vec<PublicKey>> {
    let nodes = cluster.arm.nodes();
    nodes
        .iter()
        .map(|node| Ok(cluster.arm.status(node)?.public_key))
        .collect()
}
