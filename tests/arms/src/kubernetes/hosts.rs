//! Nodes as people have them, with strict filters; and the world outside.

use super::Cluster;
use super::traffic::{everyone_reaches_everyone, one_each};
use anyhow::{Context, Result, ensure};
use meshd_lab::netns::Netns;
use meshd_model::NodeName;
use meshd_scenario::{Arm, Site};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

const AGAIN: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(5);

/// Pods reach a machine outside the cluster with their node's address, in both families.
pub(super) fn outside(cluster: &mut Cluster) -> Result<()> {
    let pods = one_each(cluster, "out")?;
    let listener = cluster
        .arm
        .neighbour()
        .netns()
        .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8090)))?;
    let listener = listener.context("listen outside")?;
    // Ends with the last connection, or with the process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let told = stream.and_then(|mut s| {
                let who = s.peer_addr()?;
                s.write_all(who.to_string().as_bytes())
            });
            if told.is_err() {
                return;
            }
        }
    });
    for pod in &pods {
        let own = cluster.arm.node_addresses(&pod.node);
        for to in cluster.arm.neighbour_addresses().to_vec() {
            let netns = cluster.arm.netns(&Site::Pod(pod.clone()))?;
            let seen = who_am_i(netns, SocketAddr::new(to, 8090))
                .with_context(|| format!("from {} on {} to {to}, outside the cluster", pod.name, pod.node))?;
            ensure!(
                own.contains(&seen),
                "outside, {} on {} is {seen}, not {own:?}",
                pod.name,
                pod.node
            );
        }
    }
    cluster.arm.delete_pods(&pods)
}

/// What the machine at this address sees as the sender.
fn who_am_i(netns: &Netns, at: SocketAddr) -> Result<IpAddr> {
    let said = netns.run(move || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    })??;
    let who: SocketAddr = said.parse().with_context(|| format!("{said} is no address"))?;
    Ok(who.ip().to_canonical())
}

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
