//! Whether the node's own address lies among the pods': a configuration that would cut the node off.
//!
//! What carries a pod's address and is not encrypted is dropped, and stays dropped when the daemon has ended. Were the
//! nodes' own addresses among them, no node would reach another or the API server, and nobody the node. So this is asked
//! before anything of the node is touched.

use crate::drivers::access;
use crate::settings::Settings;
use ipnetwork::IpNetwork;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};

/// Stand for all that is far away, one of each family (RFC 5737, RFC 3849).
const FAR: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// Any will do: nothing is sent.
const PORT: u16 = 9;

/// The node's own address lies in a pod CIDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cluster_pod_cidrs has {prefix}, in which this node's own address {address} lies: what nodes send each other would be \
     dropped, and this node would reach nothing. Nothing of it was changed. Name the pods' addresses alone \
     (kube-controller-manager's --cluster-cidr), in which no node's address may lie"
)]
pub struct Inside {
    /// The node's own.
    pub address: IpAddr,
    /// Holds it.
    pub prefix: IpNetwork,
}

/// Refuses pod CIDRs that hold the address from which this node asks the API server, or the world. Where there is no way
/// there yet, nothing is known and nothing is refused.
pub async fn check(settings: &Settings) -> Result<(), Inside> {
    let far = FAR.map(|text| (text.to_owned(), PORT));
    let server = access(settings).server().await;
    if let Err(error) = &server {
        tracing::debug!(%error, "the API server's address is not known yet");
    }
    let targets: Vec<_> = server.into_iter().chain(far).collect();
    // A name is asked of a resolver, which may take its time.
    let own = tokio::task::spawn_blocking(move || targets.iter().flat_map(towards).collect::<Vec<_>>());
    own.await
        .unwrap_or_default()
        .into_iter()
        .try_for_each(|address| outside(&settings.cluster_pod_cidrs, address))
}

/// Addresses from which this node would send there. To connect a datagram socket sends nothing.
fn towards(target: &(String, u16)) -> Vec<IpAddr> {
    let from = |to: SocketAddr| {
        let any: SocketAddr = match to {
            SocketAddr::V4(_) => ([0; 4], 0).into(),
            SocketAddr::V6(_) => ([0; 16], 0).into(),
        };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let found = (target.0.as_str(), target.1).to_socket_addrs();
    found.into_iter().flatten().filter_map(from).collect()
}

fn outside(pods: &[IpNetwork], address: IpAddr) -> Result<(), Inside> {
    match pods.iter().find(|prefix| prefix.contains(address)) {
        Some(&prefix) => Err(Inside { address, prefix }),
        None => Ok(()),
    }
}
