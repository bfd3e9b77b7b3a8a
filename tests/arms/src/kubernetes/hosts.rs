//! Nodes as people have them: with strict filters, MACs that another hand gives, a condition that a cloud sets.

use super::Cluster;
use super::traffic::{everyone_reaches_everyone, one_each};
use anyhow::{Context, Result, ensure};
use meshd_kubernetes_arm::wait_for;
use meshd_model::NodeName;
use meshd_scenario::Arm;
use std::time::Duration;

const AGAIN: Duration = Duration::from_secs(60);
/// Gives each new interface of a pod another MAC as soon as it is there, as a rule of udev's would, and prints its
/// number; another process of the node, which goes on until it is killed.
const OTHER_HAND: &str = r#"
    rm -f /run/other-hand
    setsid sh -c '
        seen=" "
        ip -oneline monitor link | while read -r index name rest; do
            name=${name%%[@:]*}
            case $name in mshp*|chance) ;; *) continue ;; esac
            case $seen in *" $index "*) continue ;; esac
            seen="$seen$index "
            mac=$(od -An -N5 -tx1 /dev/urandom | sed "s/^ */02 /; s/ /:/g")
            ip link set dev "$name" address "$mac" && echo "$name $mac" >>/run/other-hand
        done' >/dev/null 2>&1 &
    echo $!"#;

/// Strict reverse path filters everywhere, set by somebody else.
pub(super) fn rp_filter(cluster: &mut Cluster) -> Result<()> {
    let nodes = cluster.arm.nodes();
    set_rp_filter(cluster, &nodes, "1")?;
    let pods = one_each(cluster, "strict")?;
    let reached = everyone_reaches_everyone(&mut cluster.arm, &pods, AGAIN);
    set_rp_filter(cluster, &nodes, "0")?;
    reached?;
    cluster.arm.delete_pods(&pods)
}

fn set_rp_filter(cluster: &Cluster, nodes: &[NodeName], value: &str) -> Result<()> {
    for node in nodes {
        for scope in ["all", "default", "eth0"] {
            let setting = format!("net.ipv4.conf.{scope}.rp_filter={value}");
            cluster.arm.lab().node(node, &["sysctl", "-q", "-w", &setting])?;
        }
    }
    Ok(())
}

/// Another hand changes the MACs of pods' interfaces right after they are made: meshd sets them back, pods are reached.
pub(super) fn macs(cluster: &mut Cluster) -> Result<()> {
    let node = NodeName("n1".to_owned());
    let begun = cluster.arm.lab().node(&node, &["sh", "-c", OTHER_HAND])?;
    let changed = under_another_hand(cluster, &node);
    let group = format!("-{}", begun.trim());
    cluster.arm.lab().node(&node, &["kill", "--", &group])?;
    println!("    {} interfaces of pods were given another MAC", changed?);
    Ok(())
}

fn under_another_hand(cluster: &mut Cluster, node: &NodeName) -> Result<usize> {
    let changed = |cluster: &Cluster| -> Result<Vec<String>> {
        let said = cluster.arm.lab().node(node, &["cat", "/run/other-hand"])?;
        Ok(said.lines().map(str::to_owned).collect())
    };
    // It listens once it has changed this one.
    wait_for("the other hand to begin", AGAIN, || {
        let lab = cluster.arm.lab();
        let add = [
            "ip",
            "link",
            "add",
            "chance",
            "type",
            "veth",
            "peer",
            "name",
            "chance-far",
        ];
        lab.node(node, &add)?;
        let seen = changed(cluster);
        lab.node(node, &["ip", "link", "delete", "chance"])?;
        seen.map(Some)
    })?;
    let pods = one_each(cluster, "mac")?;
    everyone_reaches_everyone(&mut cluster.arm, &pods, AGAIN)?;
    let of_pods: Vec<String> = changed(cluster)?
        .into_iter()
        .filter(|line| line.starts_with("mshp"))
        .collect();
    ensure!(
        !of_pods.is_empty(),
        "void: no MAC of a pod's interface was changed"
    );
    // The other hand may have been the slower one.
    wait_for("the MACs to be set back", AGAIN, || {
        let links = cluster.arm.lab().node(node, &["ip", "-oneline", "link"])?;
        for line in &of_pods {
            let (name, mac) = line
                .split_once(' ')
                .with_context(|| format!("{line} names no MAC"))?;
            ensure!(
                links.contains(name) && !links.contains(mac),
                "{name} has the MAC {mac} of the other hand"
            );
        }
        Ok(Some(()))
    })?;
    cluster.arm.delete_pods(&pods)?;
    Ok(of_pods.len())
}

/// Somebody says of a Node that its network is unavailable, as clouds do when they make one: its agent says that it is not.
pub(super) fn network_unavailable(cluster: &mut Cluster) -> Result<()> {
    let lab = cluster.arm.lab();
    let condition = r#"{"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated", "message": "no route"}"#;
    let patch = format!(r#"{{"status": {{"conditions": [{condition}]}}}}"#);
    let path = r#".status.conditions[?(@.type=="NetworkUnavailable")].status"#;
    let output = format!("jsonpath={{{path}}}");
    let set = lab.kubectl(&[
        "patch",
        "node",
        "n2",
        "--subresource=status",
        "--patch",
        &patch,
        "--output",
        &output,
    ])?;
    ensure!(set == "True", "void: the condition that was set is {set:?}");
    wait_for("the agent to say that there is a network", AGAIN, || {
        Ok((lab.field(&["node", "n2"], path)? == "False").then_some(()))
    })?;
    // While it stands, the node has a taint, and no pod is scheduled there.
    wait_for("the node's taint to go", AGAIN, || {
        let taints = lab.field(&["node", "n2"], ".spec.taints[*].key")?;
        Ok((!taints.contains("network-unavailable")).then_some(()))
    })
}
