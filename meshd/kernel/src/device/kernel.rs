//! The kernel's own WireGuard, over generic netlink. Kept thin: few machines that run the tests have the module.

use super::{Change, Tunnel};
use crate::error::{Context, Result, gone_is_done};
use ipnetwork::IpNetwork;
use meshd_model::kernel::{Peer, PeerState};
use meshd_model::{PublicKey, Wall};
use nlink::netlink::genl::wireguard::{AllowedIp, WgDeviceBuilder, WgPeer, WgPeerBuilder};
use nlink::{Connection, Wireguard};
use std::time::{SystemTime, UNIX_EPOCH};

async fn connect() -> Result<Connection<Wireguard>> {
    let conn = Connection::<Wireguard>::new_async().await;
    conn.doing(|| "talk to the kernel's WireGuard")
}

pub(super) async fn get(name: &str) -> Result<Tunnel> {
    let device = connect().await?.get_device_by_name(name).await;
    let device = device.doing(|| format!("read WireGuard interface {name}"))?;
    let set_key = |key: &[u8; 32]| *key != [0; 32];
    Ok(Tunnel {
        public_key: device.public_key.filter(set_key).map(PublicKey),
        listen_port: device.listen_port.unwrap_or(0),
        fwmark: device.fwmark.unwrap_or(0),
        peers: device
            .peers
            .iter()
            .map(|p| (PublicKey(p.public_key), state(p)))
            .collect(),
    })
}

fn state(peer: &WgPeer) -> PeerState {
    PeerState {
        endpoint: peer.endpoint,
        allowed_ips: peer
            .allowed_ips
            .iter()
            .filter_map(|ip| IpNetwork::new(ip.addr, ip.cidr).ok())
            .collect(),
        keepalive: peer.persistent_keepalive.filter(|seconds| *seconds != 0),
        last_handshake: peer.last_handshake.and_then(wall),
        rx_bytes: peer.rx_bytes,
        tx_bytes: peer.tx_bytes,
    }
}

/// No handshake yet is the epoch itself.
fn wall(time: SystemTime) -> Option<Wall> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    let nanos = u64::try_from(since.as_nanos()).ok()?;
    (nanos != 0).then_some(Wall(nanos))
}

pub(super) async fn set_device(name: &str, change: &Change) -> Result<()> {
    let configure = |mut device: WgDeviceBuilder| {
        if let Some(key) = &change.private_key {
            device = device.private_key(**key);
        }
        if let Some(port) = change.listen_port {
            device = device.listen_port(port);
        }
        if let Some(mark) = change.fwmark {
            device = device.fwmark(mark);
        }
        device
    };
    let set = connect().await?.set_device_by_name(name, configure).await;
    set.doing(|| format!("configure WireGuard interface {name}"))
}

pub(super) async fn set_peer(name: &str, peer: &Peer) -> Result<()> {
    let allowed = |ip: &IpNetwork| match ip {
        IpNetwork::V4(n) => AllowedIp::v4(n.network(), n.prefix()),
        IpNetwork::V6(n) => AllowedIp::v6(n.network(), n.prefix()),
    };
    let configure = |wanted: WgPeerBuilder| {
        let wanted = match peer.endpoint {
            Some(endpoint) => wanted.endpoint(endpoint),
            None => wanted,
        };
        wanted
            .persistent_keepalive(peer.keepalive.unwrap_or(0))
            .replace_allowed_ips()
            .allowed_ips(peer.allowed_ips.iter().map(allowed))
    };
    let set = connect()
        .await?
        .set_peer_by_name(name, peer.public_key.0, configure)
        .await;
    set.doing(|| format!("set peer {} of {name}", peer.public_key))
}

/// One after the other; nothing without the peer.
pub(super) async fn set_keepalive(name: &str, peer: PublicKey, steps: [u16; 2]) -> Result<()> {
    let conn = connect().await?;
    for seconds in steps {
        let configure = |wanted: WgPeerBuilder| wanted.update_only().persistent_keepalive(seconds);
        let set = conn.set_peer_by_name(name, peer.0, configure).await;
        set.doing(|| format!("set the keepalive of peer {peer} of {name} to {seconds}"))?;
    }
    Ok(())
}

pub(super) async fn remove_peer(name: &str, peer: PublicKey) -> Result<()> {
    let removed = connect().await?.del_peer_by_name(name, peer.0).await;
    gone_is_done(removed).doing(|| format!("remove peer {peer} of {name}"))
}
