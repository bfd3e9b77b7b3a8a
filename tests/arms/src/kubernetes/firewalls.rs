//! Another tool's firewall on the nodes, loaded again and again while pods talk.

use super::traffic::{everyone_reaches_everyone, nothing_in_the_clear, one_each, under_traffic, undisturbed};
use super::{Cluster, Unable};
use anyhow::{Context, Result, ensure};
use meshd_lab::netns::Netns;
use meshd_model::NodeName;
use meshd_scenario::{Arm, Pod, Site};
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

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
/// Says whether a daemon's table is held by its socket: another tool cannot delete it then.
const HELD: &str = r#"
    nft list table inet meshd >/dev/null || exit 1
    nft --check delete table inet meshd 2>/dev/null || echo held"#;
/// Takes out of it what lets connections and pods pass.
const DROP_ALL: &str = "flush chain ip filter FORWARD; flush chain ip6 filter FORWARD";
/// How long pods of a node may be away by that.
const DROPPED: Duration = Duration::from_secs(5);
/// Where the machine outside listens.
const PORT: u16 = 8091;
/// Between two datagrams to it.
const PAUSE: Duration = Duration::from_millis(2);
/// How long a silence outside may be before it asks whether it is over.
const LISTEN: Duration = Duration::from_millis(100);
/// Not the marker: it is in the clear on purpose.
const GREETING: &[u8] = b"from a pod to the world outside";

/// Nothing of what pods send each other is lost, and nothing leaves a node in the clear or with a pod's address.
pub(super) fn reloaded(cluster: &mut Cluster) -> Result<()> {
    let nodes = cluster.arm.nodes();
    let held = cluster.arm.lab().node(&nodes[0], &["sh", "-c", HELD])?;
    if held.trim() != "held" {
        let why = "a table that another tool's flush passes over needs Linux 6.9";
        return Err(Unable(why.to_owned()).into());
    }
    let pods = one_each(cluster, "wall")?;
    let outside = Outside::listen(cluster)?;
    let talked = undisturbed(cluster, &pods, |cluster| {
        while_it_is_reloaded(cluster, &pods, &outside)
    });
    // What belongs to no connection yet is dropped until meshd has noticed.
    let reached = talked
        .and_then(|()| everyone_reaches_everyone(&mut cluster.arm, &pods, AGAIN))
        .and_then(|()| passes_again(cluster, &pods));
    // On every node, whatever happens on one.
    let mended: Vec<_> = nodes.iter().map(|node| mend(cluster, node)).collect();
    reached?;
    mended.into_iter().collect::<Result<()>>()?;
    nothing_in_the_clear(&mut cluster.arm)?;
    cluster.arm.delete_pods(&pods)
}

/// Takes the other tool's rules away. Those of kube-proxy are gone as well, and it does not look for them.
fn mend(cluster: &Cluster, node: &NodeName) -> Result<()> {
    cluster.arm.lab().node(node, &["nft", "flush ruleset"])?;
    cluster.arm.lab().service(node, "kube-proxy", "restart")
}

/// On all nodes at once; the pods keep talking to the world outside, each datagram as a connection of its own.
fn while_it_is_reloaded(cluster: &mut Cluster, pods: &[Pod], outside: &Outside) -> Result<()> {
    let (lab, to) = (cluster.arm.lab(), cluster.arm.neighbour_addresses());
    let of_pods = pods.iter().map(|pod| cluster.arm.netns(&Site::Pod(pod.clone())));
    let of_pods: Vec<&Netns> = of_pods.collect::<Result<_>>()?;
    let over = &AtomicBool::new(false);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let listener = scope.spawn(|| outside.hear_until(over));
        let senders: Vec<_> = of_pods
            .into_iter()
            .map(|netns| scope.spawn(move || greet(netns, to, over)))
            .collect();
        let reloads: Vec<_> = pods
            .iter()
            .map(|pod| scope.spawn(move || lab.node(&pod.node, &["sh", "-c", RELOADS])))
            .collect();
        let reloads: Vec<_> = reloads.into_iter().map(|reload| reload.join()).collect();
        over.store(true, Ordering::Release);
        for sender in senders {
            sender.join().expect("no panic")?;
        }
        listener.join().expect("no panic");
        let mut reloads = reloads.into_iter().map(|reload| reload.expect("no panic"));
        reloads.try_for_each(|reload| reload.map(drop))
    })?;
    outside.heard_nodes_only(cluster, began + began.elapsed() / 2)
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
        tally.lost > 0,
        "void: nothing was lost, so nothing was dropped: {tally:?}"
    );
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

/// What a machine outside hears: from which address, and when.
struct Outside {
    socket: UdpSocket,
    heard: Mutex<Vec<(Instant, IpAddr)>>,
}

impl Outside {
    fn listen(cluster: &Cluster) -> Result<Self> {
        let neighbour = cluster.arm.neighbour().netns();
        let socket = neighbour.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT)))?;
        let socket = socket.context("listen outside")?;
        socket.set_read_timeout(Some(LISTEN)).context("listen outside")?;
        Ok(Self {
            socket,
            heard: Mutex::default(),
        })
    }

    /// All the time, because the socket holds the datagrams of a tenth of a second.
    fn hear_until(&self, over: &AtomicBool) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = [0; 64];
        loop {
            match self.socket.recv_from(&mut buffer) {
                Ok((_, from)) => heard.push((Instant::now(), from.ip().to_canonical())),
                Err(_) if over.load(Ordering::Acquire) => return,
                Err(_) => {}
            }
        }
    }

    /// It has heard the nodes' addresses only; over each family, and since then.
    fn heard_nodes_only(&self, cluster: &Cluster, since: Instant) -> Result<()> {
        let nodes: Vec<NodeName> = cluster.arm.nodes();
        let own: Vec<IpAddr> = nodes.iter().flat_map(|n| cluster.arm.node_addresses(n)).collect();
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        for to in cluster.arm.neighbour_addresses() {
            let late = heard.iter().filter(|(at, _)| *at > since);
            let any = late.filter(|(_, from)| from.is_ipv4() == to.is_ipv4()).count();
            ensure!(
                any > 0,
                "void: outside, at {to}, nothing was heard while it was reloaded"
            );
        }
        let other = heard.iter().find(|(_, from)| !own.contains(from));
        ensure!(other.is_none(), "outside, {other:?} was heard, which is no node");
        println!(
            "    outside, {} datagrams were heard, all from nodes",
            heard.len()
        );
        Ok(())
    }
}
