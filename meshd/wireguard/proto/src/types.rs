//! What goes into a device and what comes out of it.

use crate::PresharedKey;
use ipnetwork::IpNetwork;
use meshd_model::{PublicKey, Wall};
use std::net::{IpAddr, SocketAddr};

/// A change of a peer, or a new one. What is None stays as it is.
#[derive(Clone, Default)]
pub struct PeerConfig {
    /// Where to send until the peer is heard from elsewhere.
    pub endpoint: Option<SocketAddr>,
    /// Forget the allowed IPs that the peer had, before those below are added.
    pub replace_allowed_ips: bool,
    /// Prefixes to route to the peer and accept from it; one that another peer had moves.
    pub allowed_ips: Vec<IpNetwork>,
    /// Prefixes to take from it.
    pub remove_allowed_ips: Vec<IpNetwork>,
    /// Seconds between keepalives; 0 for none.
    pub keepalive: Option<u16>,
    /// All zero for none.
    pub preshared_key: Option<PresharedKey>,
}

/// A peer as it stands.
#[derive(Clone)]
pub struct PeerStats {
    /// Its key.
    pub public_key: PublicKey,
    /// None where there is none.
    pub preshared_key: Option<PresharedKey>,
    /// Where it was last heard, or as configured.
    pub endpoint: Option<SocketAddr>,
    /// Canonical, sorted.
    pub allowed_ips: Vec<IpNetwork>,
    /// Seconds between keepalives; 0 for none.
    pub keepalive: u16,
    /// When the last handshake was completed.
    pub last_handshake: Option<Wall>,
    /// Bytes received in valid messages, headers of WireGuard included.
    pub rx_bytes: u64,
    /// Bytes sent, headers of WireGuard included.
    pub tx_bytes: u64,
}

/// Where a peer is, and which own address it speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The peer's end.
    pub remote: SocketAddr,
    /// The own address that its last datagram came to: answers leave from there, or a peer that was told of one address of a
    /// node with several would hear from another. None leaves the choice to the system.
    pub local: Option<IpAddr>,
}

impl From<SocketAddr> for Path {
    fn from(remote: SocketAddr) -> Self {
        Self { remote, local: None }
    }
}

/// A datagram to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Which own address it leaves from; None leaves the choice to the system.
    pub src: Option<IpAddr>,
    /// Where to.
    pub dst: SocketAddr,
    /// The UDP payload.
    pub bytes: Vec<u8>,
}

/// Why an input led to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum DropReason {
    /// The device has no private key.
    #[error("the device has no private key")]
    NoPrivateKey,
    /// Not an IP packet, or shorter than its header says.
    #[error("not an IP packet")]
    NotIp,
    /// No peer's allowed IPs cover the destination.
    #[error("no peer has the destination in its allowed IPs")]
    NoRoute,
    /// The peer has no endpoint, and has not been heard from.
    #[error("the peer has no endpoint yet")]
    NoEndpoint,
    /// The queue for packets that wait for a handshake, or for whoever polls, is full.
    #[error("a queue is full")]
    QueueFull,
    /// Not a WireGuard message.
    #[error("not a WireGuard message")]
    Malformed,
    /// No session or handshake has the receiver index.
    #[error("no session has this receiver index")]
    UnknownIndex,
    /// No peer has the key.
    #[error("no peer has this public key")]
    UnknownPeer,
    /// The message does not authenticate.
    #[error("the message does not authenticate")]
    Unauthentic,
    /// Seen before, or older than the replay window.
    #[error("replayed, or older than the replay window")]
    Replay,
    /// The session is too old, or its counter used up.
    #[error("the session has expired")]
    Expired,
    /// The device is under load: a cookie reply was sent instead, or nothing.
    #[error("under load")]
    UnderLoad,
    /// The peer may not send from this source.
    #[error("the source is not in the peer's allowed IPs")]
    SourceNotAllowed,
    /// The datagram came out of the tunnel. For the driver to tell: see its sockets.
    #[error("the datagram came out of the tunnel itself")]
    Looped,
}
