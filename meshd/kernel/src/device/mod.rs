//! The WireGuard interface, the kernel's own or a userspace process's, and its peers.

mod genetlink;
mod interface;
mod kernel;
mod swap;
mod uapi;

use crate::config::{DeviceChoice, DriverConfig, KeySource};
use crate::error::{Context, OpError, Result};
use meshd_model::PublicKey;
use meshd_model::kernel::{Device, DeviceKind, Peer, PeerState};
use nlink::netlink::link::WireguardLink;
use nlink::{Connection, Route};
use std::collections::{BTreeMap, BTreeSet};
use zeroize::Zeroizing;

pub(crate) use interface::{forwards, global};
pub(crate) use uapi::Client as UapiClient;

/// What WireGuard itself says of the device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tunnel {
    pub(crate) public_key: Option<PublicKey>,
    pub(crate) listen_port: u16,
    pub(crate) fwmark: u32,
    pub(crate) peers: BTreeMap<PublicKey, PeerState>,
}

/// A peer of which nothing is known yet.
const EMPTY: PeerState = PeerState {
    endpoint: None,
    allowed_ips: BTreeSet::new(),
    keepalive: None,
    last_handshake: None,
    rx_bytes: 0,
    tx_bytes: 0,
};

/// What of the device differs from what it shall be. Only that is written: to write a port again would bind the
/// socket anew.
#[derive(Default)]
struct Change {
    private_key: Option<Zeroizing<[u8; 32]>>,
    listen_port: Option<u16>,
    fwmark: Option<u32>,
}

impl Change {
    fn is_empty(&self) -> bool {
        self.private_key.is_none() && self.listen_port.is_none() && self.fwmark.is_none()
    }
}

/// Makes the interface so.
pub(crate) async fn set(
    conn: &Connection<Route>,
    config: &DriverConfig,
    keys: &dyn KeySource,
    device: &Device,
) -> Result<()> {
    if device.name != config.device {
        let message = format!(
            "the driver was started for device {}, not {}",
            config.device, device.name
        );
        return Err(OpError::new(libc::EINVAL, message));
    }
    let kind = match make(conn, config).await? {
        Found::AsChosen(kind) => kind,
        Found::Other(kind) => swap::run(conn, config, keys, device, kind).await?,
    };
    let now = tunnel(config, kind).await?;
    let change = Change {
        private_key: match now.public_key == Some(device.public_key) {
            true => None,
            false => Some(private_key(keys, device)?),
        },
        listen_port: (now.listen_port != device.listen_port).then_some(device.listen_port),
        fwmark: (now.fwmark != device.fwmark).then_some(device.fwmark),
    };
    if !change.is_empty() {
        match kind {
            DeviceKind::Kernel => kernel::set_device(&config.device, &change)?,
            DeviceKind::Userspace => uapi::Client::new(config).set_device(&change).await?,
        }
    }
    interface::configure(conn, device).await
}

/// Makes the peer so.
pub(crate) async fn set_peer(conn: &Connection<Route>, config: &DriverConfig, peer: &Peer) -> Result<()> {
    match kind(conn, config).await? {
        DeviceKind::Kernel => kernel::set_peer(&config.device, peer),
        DeviceKind::Userspace => uapi::Client::new(config).set_peer(peer).await,
    }
}

/// Has the device send to the peer at once. WireGuard does so when a keepalive that was off is turned on, in the kernel
/// as in userspace, and makes the handshake first where there is no session; so the keepalive is changed and put back.
pub(crate) async fn greet(
    conn: &Connection<Route>,
    config: &DriverConfig,
    peer: PublicKey,
    keepalive: Option<u16>,
) -> Result<()> {
    let steps = match keepalive {
        None | Some(0) => [1, 0],
        Some(seconds) => [0, seconds],
    };
    match kind(conn, config).await? {
        DeviceKind::Kernel => kernel::set_keepalive(&config.device, peer, steps),
        DeviceKind::Userspace => uapi::Client::new(config).set_keepalive(peer, steps).await,
    }
}

/// Takes key and peers from a userspace device.
pub(crate) async fn clear(config: &DriverConfig) -> Result<()> {
    uapi::Client::new(config).clear().await
}

/// Removes the peer. No device, no peer.
pub(crate) async fn remove_peer(
    conn: &Connection<Route>,
    config: &DriverConfig,
    peer: PublicKey,
) -> Result<()> {
    match kind(conn, config).await {
        Err(e) if e.errno == Some(libc::ENODEV) => Ok(()),
        Err(e) => Err(e),
        Ok(DeviceKind::Kernel) => kernel::remove_peer(&config.device, peer),
        Ok(DeviceKind::Userspace) => uapi::Client::new(config).remove_peer(peer).await,
    }
}

/// Asks WireGuard.
pub(crate) async fn tunnel(config: &DriverConfig, kind: DeviceKind) -> Result<Tunnel> {
    match kind {
        DeviceKind::Kernel => kernel::get(&config.device),
        DeviceKind::Userspace => uapi::Client::new(config).get().await,
    }
}

/// What an interface of this kind is.
pub(crate) fn kind_of(link_kind: Option<&str>) -> DeviceKind {
    match link_kind {
        Some("wireguard") => DeviceKind::Kernel,
        _ => DeviceKind::Userspace,
    }
}

async fn kind(conn: &Connection<Route>, config: &DriverConfig) -> Result<DeviceKind> {
    let name = config.device.as_str();
    let link = conn
        .get_link_by_name(name)
        .await
        .doing(|| format!("look for {name}"))?;
    link.map(|l| kind_of(l.kind())).ok_or_else(|| {
        OpError::new(
            libc::ENODEV,
            format!("there is no interface {name}: set the device first"),
        )
    })
}

/// Whether a device of this kind is what the configuration chose: either, where it leaves the choice.
pub(crate) fn is_as_chosen(kind: DeviceKind, choice: DeviceChoice) -> bool {
    !matches!(
        (kind, choice),
        (DeviceKind::Userspace, DeviceChoice::Kernel) | (DeviceKind::Kernel, DeviceChoice::Userspace)
    )
}

/// The device that is there now.
enum Found {
    /// Of a kind that the configuration allows.
    AsChosen(DeviceKind),
    /// Of the other.
    Other(DeviceKind),
}

/// Finds the interface, or makes it where the kernel can.
async fn make(conn: &Connection<Route>, config: &DriverConfig) -> Result<Found> {
    let name = config.device.as_str();
    let link = conn
        .get_link_by_name(name)
        .await
        .doing(|| format!("look for {name}"))?;
    if let Some(link) = link {
        let kind = kind_of(link.kind());
        return match (is_as_chosen(kind, config.choice), link.kind()) {
            (true, _) => swap::clean(conn, config).await.map(|()| Found::AsChosen(kind)),
            (false, Some("wireguard" | "tun")) => Ok(Found::Other(kind)),
            (false, _) => Err(mismatch(name)),
        };
    }
    match config.choice {
        DeviceChoice::Userspace => Err(missing(config)),
        choice => match conn.add_link(WireguardLink::new(name)).await {
            Ok(()) => Ok(Found::AsChosen(DeviceKind::Kernel)),
            Err(e) if e.is_not_supported() && choice == DeviceChoice::Auto => Err(missing(config)),
            Err(e) => Err(e)
                .doing(|| format!("create WireGuard interface {name}"))
                .map_err(|e: OpError| {
                    e.remedy("load the kernel module wireguard, or choose the userspace device")
                }),
        },
    }
}

fn mismatch(name: &str) -> OpError {
    let message = format!(
        "interface {name} is no WireGuard device, and the configuration wants the kernel's: delete it, or choose \
         another name"
    );
    OpError::new(libc::EEXIST, message)
}

fn missing(config: &DriverConfig) -> OpError {
    let name = &config.device;
    let message =
        format!("there is no interface {name} and the kernel has no WireGuard: start `meshd-wg {name}`");
    OpError::new(libc::ENODEV, message)
}

fn private_key(keys: &dyn KeySource, device: &Device) -> Result<Zeroizing<[u8; 32]>> {
    let key = keys.private_key(device.key);
    key.ok_or_else(|| {
        OpError::new(
            libc::ENOKEY,
            format!("there is no private key of generation {}", device.key.0),
        )
    })
}
