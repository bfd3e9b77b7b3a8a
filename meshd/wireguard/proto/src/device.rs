//! The device: what its driver calls.

mod input;

use crate::constants::{DEFAULT_MTU, LOAD_THRESHOLD, MAX_PEERS};
use crate::cookie::Checker;
use crate::limiter::Limiter;
use crate::noise::Identity;
use crate::peer::{Context, Peer, Shared};
use crate::peers::{Indices, PeerId, Peers};
use crate::routing::AllowedIps;
use crate::{Path, PeerConfig, PeerStats, PrivateKey, Transmit};
use chacha20::ChaCha20Rng;
use chacha20::rand_core::SeedableRng;
use ipnetwork::IpNetwork;
use meshd_model::net::canonical;
use meshd_model::{Boot, Now, PublicKey};
use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
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
    own: Option<Own>,
    peers: Peers,
    routes: AllowedIps,
    limiter: Limiter,
    shared: Shared,
    /// Packets to be polled.
    packets: VecDeque<Vec<u8>>,
    /// When to look at which peer: see [`Peer::noted`].
    deadlines: BTreeSet<(Boot, PeerId)>,
}

/// What there is while the device has a private key.
struct Own {
    identity: Identity,
    checker: Checker,
}

impl Device {
    /// A device without peers. `seed` comes from the operating system, or in a simulation from its own seed; all
    /// ephemeral keys and indices derive from it. Without a private key it drops everything.
    #[must_use]
    pub fn new(private_key: Option<PrivateKey>, seed: Zeroizing<[u8; 32]>, now: Now) -> Self {
        Self {
            own: private_key.map(Own::new),
            peers: Peers::default(),
            routes: AllowedIps::default(),
            limiter: Limiter::new(LOAD_THRESHOLD, now.boot),
            shared: Shared {
                rng: ChaCha20Rng::from_seed(*seed),
                indices: Indices::default(),
                transmits: VecDeque::new(),
                staged: 0,
                mtu: DEFAULT_MTU,
            },
            packets: VecDeque::new(),
            deadlines: BTreeSet::new(),
        }
    }

    /// Changes the key. Sessions end; a peer that has the new key's public half is removed.
    pub fn set_private_key(&mut self, now: Now, key: Option<PrivateKey>) {
        let own = key.map(Own::new);
        if let Some(own) = &own {
            self.remove_peer(&own.identity.public);
        }
        self.own = own;
        let ids: Vec<PeerId> = self.peers.ids().collect();
        for id in ids {
            if let Some(peer) = self.peers.get_mut(id) {
                peer.deactivate(&mut self.shared);
            }
            self.with_peer(now, id, |peer, cx| peer.begin_keepalive(cx));
        }
    }

    /// The private key, for whoever must answer `wg show`.
    #[must_use]
    pub fn private_key(&self) -> Option<&PrivateKey> {
        self.own.as_ref().map(|own| &own.identity.private)
    }

    /// The public key.
    #[must_use]
    pub fn public_key(&self) -> Option<PublicKey> {
        self.own.as_ref().map(|own| own.identity.public)
    }

    /// MTU of the tunnel, in bytes: packets are padded to 16 bytes, but not beyond it. 1420 until it is set.
    pub fn set_mtu(&mut self, mtu: u16) {
        self.shared.mtu = mtu.into();
    }

    /// How many handshake messages a second the device takes before it asks their senders for cookies; 1,000 until
    /// it is set.
    pub fn set_load_threshold(&mut self, per_second: u32) {
        self.limiter.set_threshold(per_second);
    }

    /// Adds a peer, or changes one; whether it could: the device's own key makes no peer, and there is room for
    /// 2^20 peers.
    pub fn set_peer(&mut self, now: Now, key: PublicKey, config: PeerConfig) -> bool {
        let id = match self.peers.id(&key) {
            Some(id) => id,
            None if self.public_key() == Some(key) || self.peers.len() >= MAX_PEERS => return false,
            None => self.peers.insert(Peer::new(key)),
        };
        if config.replace_allowed_ips {
            self.clear_routes(id);
        }
        self.change_routes(id, &config.remove_allowed_ips, config.allowed_ips);
        let Some(peer) = self.peers.get_mut(id) else {
            return false;
        };
        if let Some(psk) = config.preshared_key {
            peer.preshared_key = Some(psk).filter(|psk| !psk.is_none());
        }
        let was_kept_alive = peer.keepalive != 0 && peer.endpoint.is_some();
        peer.endpoint = config.endpoint.map(Path::from).or(peer.endpoint);
        peer.keepalive = config.keepalive.unwrap_or(peer.keepalive);
        if !was_kept_alive {
            self.with_peer(now, id, |peer, cx| peer.begin_keepalive(cx));
        }
        true
    }

    fn clear_routes(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        for net in std::mem::take(&mut peer.allowed_ips) {
            self.routes.remove(net);
        }
    }

    fn change_routes(&mut self, id: PeerId, removed: &[IpNetwork], added: Vec<IpNetwork>) {
        for net in removed.iter().copied().map(canonical) {
            let had = self.peers.get_mut(id).is_some_and(|peer| peer.drop_allowed(net));
            if had {
                self.routes.remove(net);
            }
        }
        let added: Vec<IpNetwork> = added.into_iter().map(canonical).collect();
        for net in &added {
            let before = self.routes.insert(*net, id).filter(|before| *before != id);
            if let Some(loser) = before.and_then(|before| self.peers.get_mut(before)) {
                loser.drop_allowed(*net);
            }
        }
        if let Some(peer) = self.peers.get_mut(id) {
            peer.allowed_ips.extend(added);
            peer.allowed_ips.sort_unstable();
            peer.allowed_ips.dedup();
        }
    }

    /// The node has lost an address, or no way leads from it to that peer any more: nothing leaves from it, to that
    /// destination or to any.
    pub fn forget_source(&mut self, gone: IpAddr, to: Option<SocketAddr>) {
        let ids: Vec<PeerId> = self.peers.ids().collect();
        for id in ids {
            let path = self.peers.get_mut(id).and_then(|peer| peer.endpoint.as_mut());
            let concerned =
                |path: &&mut Path| path.local == Some(gone) && to.is_none_or(|to| to == path.remote);
            if let Some(path) = path.filter(concerned) {
                path.local = None;
            }
        }
    }

    /// Removes a peer with its allowed IPs and sessions; whether it was there.
    pub fn remove_peer(&mut self, key: &PublicKey) -> bool {
        let Some(id) = self.peers.id(key) else {
            return false;
        };
        self.clear_routes(id);
        let Some(mut peer) = self.peers.remove(id) else {
            return false;
        };
        peer.deactivate(&mut self.shared);
        if let Some(noted) = peer.noted {
            self.deadlines.remove(&(noted, id));
        }
        true
    }

    /// All peers, by key.
    pub fn peers(&self) -> impl Iterator<Item = PeerStats> {
        self.peers
            .ids()
            .filter_map(|id| self.peers.get(id).map(Peer::stats))
    }

    /// One peer.
    #[must_use]
    pub fn peer(&self, key: &PublicKey) -> Option<PeerStats> {
        self.peers.get(self.peers.id(key)?).map(Peer::stats)
    }

    /// Does what has come due.
    pub fn handle_timeout(&mut self, now: Now) {
        // Each peer once: what a peer is due for now it does now, and is noted for later.
        for _ in 0..self.deadlines.len() {
            let Some((at, id)) = self.deadlines.first().copied() else {
                return;
            };
            if at > now.boot {
                return;
            }
            self.deadlines.remove(&(at, id));
            if let Some(peer) = self.peers.get_mut(id) {
                peer.noted = None;
            }
            self.with_peer(now, id, |peer, cx| peer.handle_timeout(cx));
        }
    }

    /// The next datagram to be sent.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.shared.transmits.pop_front()
    }

    /// The next IP packet that a peer sent, from one of its allowed IPs.
    pub fn poll_packet(&mut self) -> Option<Vec<u8>> {
        self.packets.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) next; may be early, is never late.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Boot> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Lets a peer act, then notes when it wants to act next. None without the peer or a private key.
    fn with_peer<T>(
        &mut self,
        now: Now,
        id: PeerId,
        act: impl FnOnce(&mut Peer, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let peer = self.peers.get_mut(id)?;
        let identity = &self.own.as_ref()?.identity;
        let shared = &mut self.shared;
        let result = act(
            peer,
            &mut Context {
                now,
                id,
                identity,
                shared,
            },
        );
        // A timer that moved to later is found out about when it was due: packets move timers all the time.
        if let Some(next) = peer.next_timeout()
            && peer.noted.is_none_or(|noted| next < noted)
        {
            if let Some(noted) = peer.noted.replace(next) {
                self.deadlines.remove(&(noted, id));
            }
            self.deadlines.insert((next, id));
        }
        Some(result)
    }
}

impl Own {
    fn new(private: PrivateKey) -> Self {
        let identity = Identity::new(private);
        let checker = Checker::new(&identity.public);
        Self { identity, checker }
    }
}
