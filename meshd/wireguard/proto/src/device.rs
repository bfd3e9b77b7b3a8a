//! The device: what its driver calls.

use crate::{PresharedKey, PrivateKey};
use ipnetwork::IpNetwork;
use meshd_model::{Boot, Now, PublicKey, Wall};
use std::net::SocketAddr;
use zeroize::Zeroizing;

/// A WireGuard interface without its IO.
///
/// Whoever drives it: call [`handle_datagram`](Self::handle_datagram) for each UDP datagram received,
/// [`handle_packet`](Self::handle_packet) for each IP packet to be sent through the tunnel, and
/// [`handle_timeout`](Self::handle_timeout) when the time of [`poll_timeout`](Self::poll_timeout) has come. After
/// any of these, and after a change of configuration, call [`poll_transmit`](Self::poll_transmit) and
/// [`poll_packet`](Self::poll_packet) until they give nothing, then `poll_timeout` again. Several inputs may be
/// handled before the outputs are polled, as many as fit the bounds of the queues (4,096 each; what is beyond is
/// dropped). `now` never runs backwards in its boot part.
///
/// The same seed and the same inputs give the same outputs.
pub struct Device {
    private_key: Option<PrivateKey>,
}

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

/// A datagram to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
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
}

impl Device {
    /// A device without peers. `seed` comes from the operating system, or in a simulation from its own seed; all
    /// ephemeral keys and indices derive from it. Without a private key it drops everything.
    #[must_use]
    pub fn new(private_key: Option<PrivateKey>, _seed: Zeroizing<[u8; 32]>, _now: Now) -> Self {
        Self { private_key }
    }

    /// Changes the key. Sessions end; a peer that has the new key's public half is removed.
    pub fn set_private_key(&mut self, _now: Now, key: Option<PrivateKey>) {
        self.private_key = key;
    }

    /// The private key, for whoever must answer `wg show`.
    #[must_use]
    pub fn private_key(&self) -> Option<&PrivateKey> {
        self.private_key.as_ref()
    }

    /// The public key.
    #[must_use]
    pub fn public_key(&self) -> Option<PublicKey> {
        self.private_key.as_ref().map(PrivateKey::public_key)
    }

    /// MTU of the tunnel, in bytes: packets are padded to 16 bytes, but not beyond it. 1420 until it is set.
    pub fn set_mtu(&mut self, _mtu: u16) {}

    /// Adds a peer, or changes one. The device's own key makes no peer, and nothing happens.
    pub fn set_peer(&mut self, _now: Now, _key: PublicKey, _config: PeerConfig) {}

    /// Removes a peer with its allowed IPs and sessions; whether it was there.
    pub fn remove_peer(&mut self, _key: &PublicKey) -> bool {
        false
    }

    /// All peers, by key.
    pub fn peers(&self) -> impl Iterator<Item = PeerStats> {
        std::iter::empty()
    }

    /// One peer.
    #[must_use]
    pub fn peer(&self, _key: &PublicKey) -> Option<PeerStats> {
        None
    }

    /// Takes in a UDP datagram; it is decrypted in place.
    ///
    /// # Errors
    /// Why it was dropped; for counting, there is nothing to be done about it.
    pub fn handle_datagram(
        &mut self,
        _now: Now,
        _from: SocketAddr,
        _datagram: &mut [u8],
    ) -> Result<(), DropReason> {
        Err(DropReason::NoPrivateKey)
    }

    /// Takes in an IP packet to be sent to the peer whose allowed IPs cover its destination; it is sent, or waits
    /// for a handshake.
    ///
    /// # Errors
    /// Why it was dropped; `NoRoute` and `NoEndpoint` could be told to the sender by ICMP.
    pub fn handle_packet(&mut self, _now: Now, _packet: &[u8]) -> Result<(), DropReason> {
        Err(DropReason::NoPrivateKey)
    }

    /// Does what has come due.
    pub fn handle_timeout(&mut self, _now: Now) {}

    /// The next datagram to be sent.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        None
    }

    /// The next IP packet that a peer sent, from one of its allowed IPs.
    pub fn poll_packet(&mut self) -> Option<Vec<u8>> {
        None
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) next; may be early, is never late.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Boot> {
        None
    }
}
