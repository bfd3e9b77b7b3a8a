//! Changes what carries the tunnel of a live node: from the kernel's WireGuard to a userspace process, or back.
//!
//! Both have the same name, and one UDP port, so there cannot be two at work at a time. The new one is made beside the
//! old under another name, with key, mark and peers; then the port, the name, the addresses and the routes go over in
//! one go, and the old one is deleted last, because that takes longest. What is lost is what is on its way in these
//! milliseconds, and what peers send under sessions of the old device until the new one has shaken hands with them,
//! which it does at once with all that have such a session.
//!
//! A kernel before Linux 6.2 renames an interface only while it is down, and an interface that goes down loses its
//! routes: they are noted before, and set again after. Behind them lie unreachable routes, in the main table for all pods
//! and in the pods' own for each node's address, which are no interface's and stay: so nothing leaves unencrypted in
//! between.

use super::{Change, Tunnel, interface, kernel, kind_of, private_key, uapi};
use crate::config::{DriverConfig, KeySource};
use crate::error::{Context, OpError, Result};
use crate::foreign::Foreign;
use crate::{observe, route};
use meshd_model::kernel::{
    Device, DeviceKind, Peer, PeerState, Route as OwnRoute, RouteTarget, aside_name, standby_name,
};
use meshd_model::{PublicKey, Wall};
use nlink::netlink::link::WireguardLink;
use nlink::netlink::messages::LinkMessage;
use nlink::{Connection, Route};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// WireGuard's Reject-After-Time: a session whose handshake is older is dead.
const SESSION_LIFE: Duration = Duration::from_secs(180);

/// From the device that is there, of the kind `from`, to one of the other kind.
pub(super) async fn run(
    conn: &Connection<Route>,
    config: &DriverConfig,
    keys: &dyn KeySource,
    device: &Device,
    from: DeviceKind,
) -> Result<DeviceKind> {
    let name = config.device.as_str();
    let to = match from {
        DeviceKind::Kernel => DeviceKind::Userspace,
        DeviceKind::Userspace => DeviceKind::Kernel,
    };
    let old = find(conn, name).await?.ok_or_else(|| gone(name))?;
    clean(conn, config).await?;
    // A process that is gone knows no peers; the agent sets them afterwards.
    let before = super::tunnel(config, from).await.unwrap_or_default();
    let new = prepare(conn, config, keys, device, to).await?;
    give_peers(config, to, &before, device).await?;
    let routes = routes_through(conn, name).await?;

    let began = Instant::now();
    if from == DeviceKind::Userspace {
        let another = Change {
            listen_port: Some(0),
            ..Change::default()
        };
        // A process that is gone holds no port.
        let released = uapi::Client::new(config).set_device(&another).await;
        if let Err(e) = released {
            tracing::warn!(device = name, "{e}");
        }
    }
    exchange(conn, config, &old, &new).await?;
    // From here on the interface of this name is the new one: whatever fails is tried again by the agent as on any
    // other device.
    let port = Change {
        listen_port: Some(device.listen_port),
        ..Change::default()
    };
    match to {
        DeviceKind::Kernel => kernel::set_device(name, &port)?,
        DeviceKind::Userspace => uapi::Client::new(config).set_device(&port).await?,
    }
    interface::configure(conn, device).await?;
    let mut foreign = Foreign::default();
    for wanted in &routes {
        route::set(conn, &mut foreign, wanted).await?;
    }
    let took = began.elapsed();
    greet_all(conn, config, &before).await;
    let deleted = conn.del_link_by_index(old.ifindex()).await;
    crate::error::gone_is_done(deleted).doing(|| format!("delete the former interface {name}"))?;
    tracing::info!(
        device = name,
        from = ?from,
        to = ?to,
        peers = before.peers.len(),
        routes = routes.len(),
        milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        "another device carries the tunnel"
    );
    Ok(to)
}

/// Deletes what a change that was interrupted has left. A standby of a userspace process stays: it is the process's.
pub(super) async fn clean(conn: &Connection<Route>, config: &DriverConfig) -> Result<()> {
    let aside = aside_name(&config.device);
    let deleted = conn.del_link_if_exists(aside.as_str()).await;
    deleted.doing(|| format!("delete the former interface {aside}"))?;
    let standby = standby_name(&config.device);
    if let Some(link) = find(conn, &standby).await?
        && kind_of(link.kind()) == DeviceKind::Kernel
    {
        let deleted = conn.del_link_if_exists(standby.as_str()).await;
        deleted.doing(|| format!("delete the unused interface {standby}"))?;
    }
    Ok(())
}

/// The new device under its other name, with key and mark, and no port yet.
async fn prepare(
    conn: &Connection<Route>,
    config: &DriverConfig,
    keys: &dyn KeySource,
    device: &Device,
    to: DeviceKind,
) -> Result<LinkMessage> {
    let standby = standby_name(&config.device);
    let identity = Change {
        private_key: Some(private_key(keys, device)?),
        listen_port: None,
        fwmark: Some(device.fwmark),
    };
    if to == DeviceKind::Kernel {
        // What a process left that is gone: one that runs holds the interface of the device's own name.
        let deleted = conn.del_link_if_exists(standby.as_str()).await;
        deleted.doing(|| format!("delete the unused interface {standby}"))?;
        let made = conn.add_link(WireguardLink::new(&standby)).await;
        made.doing(|| format!("create WireGuard interface {standby}"))
            .map_err(|e: OpError| {
                e.remedy("load the kernel module wireguard, or choose the userspace device")
            })?;
        kernel::set_device(&standby, &identity)?;
    }
    let link = find(conn, &standby).await?.ok_or_else(|| {
        let message = format!(
            "the kernel's WireGuard carries {name} and the configuration wants the userspace device: start \
             `meshd-wg {name}`, which makes {standby} beside it; until then all stays as it is",
            name = config.device,
        );
        OpError::new(libc::ENODEV, message)
    })?;
    if to == DeviceKind::Userspace {
        uapi::Client::new(config).set_device(&identity).await?;
    }
    let mtu = conn
        .set_link_mtu_by_index(link.ifindex(), u32::from(device.mtu))
        .await;
    mtu.doing(|| format!("set the MTU of {standby} to {}", device.mtu))?;
    Ok(link)
}

async fn give_peers(config: &DriverConfig, to: DeviceKind, before: &Tunnel, device: &Device) -> Result<()> {
    let standby = standby_name(&config.device);
    for peer in before.peers.iter().map(as_wanted) {
        debug_assert_ne!(peer.public_key, device.public_key);
        match to {
            DeviceKind::Kernel => kernel::set_peer(&standby, &peer)?,
            DeviceKind::Userspace => uapi::Client::new(config).set_peer(&peer).await?,
        }
    }
    Ok(())
}

fn as_wanted((key, state): (&PublicKey, &PeerState)) -> Peer {
    Peer {
        public_key: *key,
        endpoint: state.endpoint,
        allowed_ips: state.allowed_ips.clone(),
        keepalive: state.keepalive,
    }
}

/// The old one goes down and aside, the new one takes its name.
async fn exchange(
    conn: &Connection<Route>,
    config: &DriverConfig,
    old: &LinkMessage,
    new: &LinkMessage,
) -> Result<()> {
    let name = config.device.as_str();
    let aside = aside_name(name);
    let down = conn.set_link_down_by_index(old.ifindex()).await;
    down.doing(|| format!("set {name} down"))?;
    let moved = conn.set_link_name_by_index(old.ifindex(), &aside).await;
    moved.doing(|| format!("rename {name} to {aside}"))?;
    let named = conn.set_link_name_by_index(new.ifindex(), name).await;
    if let Err(e) = named {
        // Then the old one goes on.
        let _ = conn.set_link_name_by_index(old.ifindex(), name).await;
        let _ = conn.set_link_up_by_index(old.ifindex()).await;
        return Err(e).doing(|| format!("rename {} to {name}", standby_name(name)));
    }
    Ok(())
}

/// Shakes hands with the peers that hold a session: it is with a device that is no more. Not with all: where nobody has
/// spoken for long nobody waits, and handshakes with a thousand peers at once would hold up those that do.
async fn greet_all(conn: &Connection<Route>, config: &DriverConfig, before: &Tunnel) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = Wall(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
    for (key, state) in before.peers.iter().filter(|(_, state)| holds_session(state, now)) {
        // Without it they notice too, later.
        if let Err(e) = super::greet(conn, config, *key, state.keepalive).await {
            tracing::warn!(device = config.device, "{e}");
        }
    }
}

fn holds_session(peer: &PeerState, now: Wall) -> bool {
    peer.last_handshake.is_some_and(|at| now.since(at) < SESSION_LIFE)
}

async fn routes_through(conn: &Connection<Route>, name: &str) -> Result<Vec<OwnRoute>> {
    let mut routes = observe::own_routes(conn).await?;
    routes.retain(|r| matches!(&r.target, RouteTarget::Device { name: through, .. } if through == name));
    Ok(routes)
}

async fn find(conn: &Connection<Route>, name: &str) -> Result<Option<LinkMessage>> {
    let link = conn.get_link_by_name(name).await;
    link.doing(|| format!("look for {name}"))
}

fn gone(name: &str) -> OpError {
    OpError::new(libc::ENODEV, format!("interface {name} is gone"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_peer_whose_session_can_still_live_is_greeted() {
        let now = Wall(1_700_000_000_000_000_000);
        for (ago, greeted) in [
            (Some(0), true),
            (Some(179), true),
            (Some(180), false),
            (None, false),
        ] {
            let peer = PeerState {
                endpoint: None,
                allowed_ips: std::collections::BTreeSet::new(),
                keepalive: None,
                last_handshake: ago.map(|ago: u64| Wall(now.0 - ago * 1_000_000_000)),
                rx_bytes: 0,
                tx_bytes: 0,
            };
            assert_eq!(holds_session(&peer, now), greeted, "{ago:?}");
        }
    }
}
