//! Another tool's firewall on the nodes, loaded again and again while pods talk.

use super::Cluster;
use super::traffic::{everyone_reaches_everyone, one_each, under_traffic, undisturbed};
use anyhow::{Context, Result, ensure};
use meshd_lab::netns::Netns;
use meshd_model::NodeName;
use meshd_scenario::{Arm, Pod, Site};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const AGAIN: Duration = Duration::from_secs(60);
/// Loads the firewall of a node as `nft -f /etc/nftables.conf` and `firewall-cmd --reload` do: all that is there goes, and
/// what the file has comes, in one transaction. In turn one that lets everything pass, and one that drops what is forwarded
/// and belongs to no connection; at the end the latter is in force.
const RELOADS: &str = r#"
    rules() {
        echo flush ruleset
        for family in ip ip6; do
            echo "table $family filter {"
            echo "    chain INPUT { type filter hook input priority 0; policy accept; }"
            echo "    chain FORWARD { type filter hook forward priority 0; policy $1; ct state established,related accept; }"
            echo "}"
        done
    }
    rules accept >/run/other-tool.accept
    rules drop >/run/other-tool.drop
    for round in $(seq 25); do
        for policy in accept drop; do
            nft -f /run/other-tool.$policy || exit 1
            sleep 0.1
        done
    done"#;
/// Takes out of it what lets connections and pods pass.
const DROP_ALL: &str = "flush chain ip filter FORWARD; flush chain ip6 filter FORWARD";
/// How long pods of a node may be away by that.
const DROPPED: Duration = Duration::from_secs(5);
/// Where the machine outside listens.
const PORT: u16 = 8091;
/// Between two datagrams to it.
const PAUSE: Duration = Duration::from_millis(2);
/// Not the marker: it is in the clear on purpose.
const GREETING: &[u8] = b"from a pod to the world outside";

/// Nothing of what pods send each other is lost, and nothing leaves a node in the clear or with a pod's address.
pub(super) fn reloaded(cluster: &mut Cluster) -> Result<()> {
    let nodes = cluster.arm.nodes();
    let pods = one_each(cluster, "wall")?;
    let outside = Outside::listen(cluster)?;
    let talked = undisturbed(cluster, &pods, |cluster| while_it_is_reloaded(cluster, &pods));
    // What belongs to no connection yet is dropped until meshd has noticed.
    let reached = talked
        .and_then(|()| everyone_reaches_everyone(&mut cluster.arm, &pods, AGAIN))
        .and_then(|()| passes_again(cluster, &pods));
    for node in &nodes {
        cluster.arm.lab().node(node, &["nft", "flush ruleset"])?;
        // Its rules are gone as well, and it does not look for them.
        cluster.arm.lab().service(node, "kube-proxy", "restart")?;
    }
    reached?;
    let seen = cluster.arm.underlay()?;
    ensure!(
        seen.pod_addresses == 0 && seen.markers == 0,
        "in the clear: {}",
        seen.offenders.join("; ")
    );
    outside.heard_nodes_only(cluster)?;
    cluster.arm.delete_pods(&pods)
}

/// On all nodes at once; the pods keep talking to the world outside, each datagram as a connection of its own.
fn while_it_is_reloaded(cluster: &mut Cluster, pods: &[Pod]) -> Result<()> {
    let (lab, to) = (cluster.arm.lab(), cluster.arm.neighbour_addresses());
    let of_pods = pods.iter().map(|pod| cluster.arm.netns(&Site::Pod(pod.clone())));
    let of_pods: Vec<&Netns> = of_pods.collect::<Result<_>>()?;
    let over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let senders: Vec<_> = of_pods
            .into_iter()
            .map(|netns| scope.spawn(move || greet(netns, to, over)))
            .collect();
        let reloads: Vec<_> = pods
            .iter()
            .map(|pod| scope.spawn(move || lab.node(&pod.node, &["sh", "-c", RELOADS])))
            .collect();
        let reloads: Vec<_> = reloads.into_iter().map(|r| r.join().expect("no panic")).collect();
        over.store(true, Ordering::Release);
        for sender in senders {
            sender.join().expect("no panic")?;
        }
        reloads.into_iter().try_for_each(|reload| reload.map(drop))
    })
}

/// Where the firewall of a node drops all that is forwarded, it is let pass again soon.
fn passes_again(cluster: &mut Cluster, pods: &[Pod]) -> Result<()> {
    let (tally, ()) = under_traffic(cluster, pods, |cluster| {
        cluster.arm.lab().node(&pods[0].node, &["nft", DROP_ALL])?;
        everyone_reaches_everyone(&mut cluster.arm, pods, AGAIN)
    })?;
    let away = tally.away();
    println!("    away for {away:?} where connections were dropped, too");
    ensure!(
        away < DROPPED && tally.broken.is_empty(),
        "away for {away:?}: {tally:?}"
    );
    Ok(())
}

/// From a pod to the world outside, until it is over.
fn greet(netns: &Netns, to: &[IpAddr], over: &AtomicBool) -> Result<()> {
    while !over.load(Ordering::Acquire) {
        let to = to.to_vec();
        netns.run(move || -> std::io::Result<()> {
            for to in to {
                let socket = UdpSocket::bind(match to {
                    IpAddr::V4(_) => "0.0.0.0:0",
                    IpAddr::V6(_) => "[::]:0",
                })?;
                // The own node's firewall may refuse it.
                let _ = socket.send_to(GREETING, (to, PORT));
            }
            Ok(())
        })??;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// What a machine outside hears.
struct Outside(UdpSocket);

impl Outside {
    fn listen(cluster: &Cluster) -> Result<Self> {
        let neighbour = cluster.arm.neighbour().netns();
        let socket = neighbour.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT)))?;
        let socket = socket.context("listen outside")?;
        socket.set_nonblocking(true).context("listen outside")?;
        Ok(Self(socket))
    }

    /// It has heard something, over each family, and from the nodes' addresses only.
    fn heard_nodes_only(&self, cluster: &Cluster) -> Result<()> {
        let nodes: Vec<NodeName> = cluster.arm.nodes();
        let own: Vec<IpAddr> = nodes.iter().flat_map(|n| cluster.arm.node_addresses(n)).collect();
        let mut heard = Vec::new();
        let mut buffer = [0; 64];
        while let Ok((_, from)) = self.0.recv_from(&mut buffer) {
            heard.push(SocketAddr::ip(&from).to_canonical());
        }
        for to in cluster.arm.neighbour_addresses() {
            let any = heard.iter().any(|from| from.is_ipv4() == to.is_ipv4());
            ensure!(any, "void: outside, at {to}, nothing was heard");
        }
        let other = heard.iter().find(|from| !own.contains(from));
        ensure!(other.is_none(), "outside, {other:?} was heard, which is no node");
        Ok(())
    }
}
