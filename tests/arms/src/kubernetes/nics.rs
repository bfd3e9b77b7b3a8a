//! Nodes with two interfaces, whose tunnels use the second.

use super::Cluster;
use super::traffic::{everyone_reaches_everyone, nothing_in_the_clear, one_each, undisturbed};
use anyhow::{Context, Result, bail, ensure};
use meshd_kubernetes_arm::Lab;
use meshd_scenario::Arm;
use std::time::Duration;

const AGAIN: Duration = Duration::from_secs(60);
/// Counts from zero what each interface lets out of the tunnel.
const COUNT: &str = "add table inet counting; delete table inet counting; add table inet counting; \
    add chain inet counting out { type filter hook postrouting priority 300; }; \
    add rule inet counting out oifname eth0 udp dport 51820 counter; \
    add rule inet counting out oifname eth1 udp dport 51820 counter";
/// With its carrier the interface loses its address and routes; whoever manages the node's network gives them back.
const DOWN_AND_UP: &str = r#"
    set -e
    address=$(ip -6 -oneline address show dev eth0 scope global | awk '{print $4}')
    gateway=$(ip -6 route show default | awk '{print $3}')
    ip link set eth0 down
    ip -oneline link show dev eth0 | grep -q 'state DOWN'
    sleep 1
    ip link set eth0 up
    ip -6 address replace "$address" dev eth0 nodad
    ip -6 route replace default via "$gateway""#;

/// Endpoints are those of the second interface: packets between nodes leave by it alone, also while the first is down,
/// and after that.
pub(super) fn second(cluster: &mut Cluster) -> Result<()> {
    let pods = one_each(cluster, "nic")?;
    everyone_reaches_everyone(&mut cluster.arm, &pods, AGAIN)?;
    count(cluster.arm.lab())?;
    undisturbed(cluster, &pods, |cluster| {
        let nodes = cluster.arm.nodes();
        cluster
            .arm
            .lab()
            .node(&nodes[0], &["sh", "-c", DOWN_AND_UP])
            .map(drop)
    })
    .context("the first interface went down and up")?;
    everyone_reaches_everyone(&mut cluster.arm, &pods, AGAIN)?;
    let left = counted(cluster.arm.lab())?;
    let by_second = left.iter().all(|(first, second)| *first == 0 && *second > 0);
    ensure!(
        by_second,
        "by the first and the second interface of each node left {left:?}"
    );
    println!("    by the first and the second interface of each node left {left:?}");
    nothing_in_the_clear(&mut cluster.arm)?;
    cluster.arm.delete_pods(&pods)
}

fn count(lab: &Lab) -> Result<()> {
    lab.nodes()
        .iter()
        .try_for_each(|node| lab.node(node, &["nft", COUNT]).map(drop))
}

/// Packets of the tunnel that left each node by its first and by its second interface.
fn counted(lab: &Lab) -> Result<Vec<(u64, u64)>> {
    let of_node = |node| {
        let text = lab.node(node, &["nft", "-j", "list", "table", "inet", "counting"])?;
        let table: serde_json::Value = serde_json::from_str(&text).context("nft gave no JSON")?;
        let objects = table["nftables"].as_array().into_iter().flatten();
        let exprs = objects.filter_map(|o| o["rule"]["expr"].as_array()).flatten();
        let counts: Vec<u64> = exprs.filter_map(|e| e["counter"]["packets"].as_u64()).collect();
        match counts[..] {
            [first, second] => Ok((first, second)),
            _ => bail!("the rules that count on {node} say {text}"),
        }
    };
    lab.nodes().iter().map(of_node).collect()
}
