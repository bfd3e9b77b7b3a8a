//! One peer. An idle one is its configuration and counters; what its sessions need is made at its first packet and
//! dropped when its keys are wiped.

mod handshake;
mod timeouts;
mod transport;

use crate::cookie::{Jar, MacKeys};
use crate::crypto::Secret;
use crate::keypairs::Keypairs;
use crate::noise::{Identity, Initiator};
use crate::peers::{Indices, PeerId};
use crate::tai64n::Tai64n;
use crate::timers::Timers;
use crate::{DropReason, Path, PeerStats, PresharedKey, Transmit};
use chacha20::ChaCha20Rng;
use ipnetwork::IpNetwork;
use meshd_model::{Boot, Now, PublicKey, Wall};
use std::collections::VecDeque;

pub(crate) struct Peer {
    pub(crate) public_key: PublicKey,
    pub(crate) preshared_key: Option<PresharedKey>,
    pub(crate) endpoint: Option<Path>,
    /// Seconds; 0 for none.
    pub(crate) keepalive: u16,
    /// Sorted. The device's routing table has the same.
    pub(crate) allowed_ips: Vec<IpNetwork>,
    /// Stamp of the last initiation sent.
    sent_stamp: Tai64n,
    /// Greatest stamp received: an initiation with another is a replay. Outlives the sessions.
    received_stamp: Tai64n,
    last_handshake: Option<Wall>,
    rx_bytes: u64,
    tx_bytes: u64,
    active: Option<Box<Active>>,
    /// For when the device has a deadline noted for this peer: never later than the earliest of its timers.
    pub(crate) noted: Option<Boot>,
}

/// What a peer with traffic has.
struct Active {
    /// DH of both static keys; None where the peer's key is of low order, and no handshake is possible.
    static_static: Option<Secret>,
    mac_keys: MacKeys,
    jar: Jar,
    initiation: Option<Initiator>,
    keypairs: Keypairs,
    /// Packets that wait for a handshake.
    staged: VecDeque<Vec<u8>>,
    timers: Timers,
    /// Initiations sent since the last reason to send one.
    attempts: u8,
    last_handshake_sent: Option<Boot>,
    last_initiation_received: Option<Boot>,
    /// Data came while the keepalive timer was running.
    needs_another_keepalive: bool,
    /// A new handshake was begun because data came over a session about to expire.
    has_rekeyed_on_receive: bool,
}

/// What all peers of a device share.
pub(crate) struct Shared {
    pub(crate) rng: ChaCha20Rng,
    pub(crate) indices: Indices,
    pub(crate) transmits: VecDeque<Transmit>,
    /// Packets that wait for handshakes, of all peers.
    pub(crate) staged: usize,
    pub(crate) mtu: usize,
}

/// What a peer is given to act.
pub(crate) struct Context<'a> {
    pub(crate) now: Now,
    pub(crate) id: PeerId,
    pub(crate) identity: &'a Identity,
    pub(crate) shared: &'a mut Shared,
}

impl Peer {
    pub(crate) fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            preshared_key: None,
            endpoint: None,
            keepalive: 0,
            allowed_ips: Vec::new(),
            sent_stamp: Tai64n::default(),
            received_stamp: Tai64n::default(),
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            active: None,
            noted: None,
        }
    }

    pub(crate) fn stats(&self) -> PeerStats {
        PeerStats {
            public_key: self.public_key,
            preshared_key: self.preshared_key.clone(),
            endpoint: self.endpoint.map(|path| path.remote),
            allowed_ips: self.allowed_ips.clone(),
            keepalive: self.keepalive,
            last_handshake: self.last_handshake,
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(crate) fn next_timeout(&self) -> Option<Boot> {
        self.active.as_ref()?.timers.next()
    }

    /// Ends sessions and handshakes and forgets what derives from the device's key.
    pub(crate) fn deactivate(&mut self, shared: &mut Shared) {
        let Some(mut active) = self.active.take() else {
            return;
        };
        active.keypairs.clear(&mut shared.indices);
        if let Some(initiation) = active.initiation.take() {
            shared.indices.release(initiation.local_index);
        }
        shared.staged -= active.staged.len();
    }

    /// Takes a prefix away; whether the peer had it.
    pub(crate) fn drop_allowed(&mut self, net: IpNetwork) -> bool {
        let found = self.allowed_ips.binary_search(&net);
        found.is_ok_and(|at| {
            self.allowed_ips.remove(at);
            true
        })
    }

    /// Lets a peer that is to be kept alive hear from us now.
    pub(crate) fn begin_keepalive(&mut self, cx: &mut Context<'_>) {
        if self.keepalive != 0 && self.endpoint.is_some() {
            self.send_keepalive(cx);
        }
    }

    fn activate(&mut self, cx: &Context<'_>) -> &mut Active {
        self.active
            .get_or_insert_with(|| Box::new(Active::new(cx, &self.public_key)))
    }

    fn transmit(&mut self, shared: &mut Shared, dst: Path, bytes: Vec<u8>) -> Result<(), DropReason> {
        let length = bytes.len() as u64;
        shared.transmit(dst, bytes)?;
        self.tx_bytes += length;
        Ok(())
    }
}

impl Shared {
    pub(crate) fn transmit(&mut self, path: Path, bytes: Vec<u8>) -> Result<(), DropReason> {
        if self.transmits.len() >= crate::constants::MAX_OUTPUTS {
            return Err(DropReason::QueueFull);
        }
        self.transmits.push_back(Transmit {
            src: path.local,
            dst: path.remote,
            bytes,
        });
        Ok(())
    }
}
