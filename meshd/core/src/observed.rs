//! The agent's copy of the kernel's state: replaced by each observation, and changed with each action that was
//! carried out.

use ipnetwork::IpNetwork;
use meshd_model::PublicKey;
use meshd_model::kernel::{
    Device, DeviceKind, DeviceState, Firewall, ForwardChain, KernelState, Peer, PeerState, PodLink,
    PodLinkState, Route, Rule, UnderlayAddress,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::action::{KernelOp, Resource};
use crate::few::Few;
use crate::greet::Greetings;
use crate::prefix_map::PrefixMap;

/// What the kernel tells routes apart with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct RouteKey {
    pub(crate) table: u32,
    pub(crate) dst: IpNetwork,
    pub(crate) metric: u32,
}

impl RouteKey {
    pub(crate) fn of(route: &Route) -> Self {
        Self {
            table: route.table,
            dst: route.dst,
            metric: route.metric,
        }
    }

    pub(crate) fn resource(self) -> Resource {
        Resource::Route {
            table: self.table,
            dst: self.dst,
            metric: self.metric,
        }
    }
}

/// What an outstanding action gives a peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Intended {
    /// The published endpoint, which need not be the one that is set.
    endpoint: Option<SocketAddr>,
    allowed_ips: BTreeSet<IpNetwork>,
}

/// The copy.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Observed {
    /// Whether there was an observation at all.
    pub(crate) seen: bool,
    pub(crate) firewall: Option<Firewall>,
    pub(crate) forward_chains: BTreeSet<ForwardChain>,
    pub(crate) device: Option<DeviceState>,
    /// Whether the device was observed since it was last set: only then is its kind and port known to be true.
    pub(crate) device_fresh: bool,
    pub(crate) peers: BTreeMap<PublicKey, PeerState>,
    /// Which peers have an allowed IP, or will once their outstanding action is carried out.
    holders: PrefixMap<Few<PublicKey>>,
    pub(crate) routes: BTreeMap<RouteKey, Few<Route>>,
    pub(crate) rules: BTreeMap<IpNetwork, Few<Rule>>,
    pub(crate) links: BTreeMap<String, PodLinkState>,
    pub(crate) underlay: Vec<UnderlayAddress>,
    /// The published endpoint that each peer was last given: one that roamed since is no difference.
    pub(crate) endpoints_given: BTreeMap<PublicKey, SocketAddr>,
    /// Peers with an outstanding action: what they will have been given once it is carried out.
    intended: BTreeMap<PublicKey, Intended>,
    /// Peers that may hold a session which the device has lost.
    pub(crate) greetings: Greetings,
}

impl Observed {
    pub(crate) fn replace(&mut self, state: KernelState) {
        let KernelState {
            firewall,
            forward_chains,
            device,
            peers,
            routes,
            rules,
            pod_links,
            underlay,
        } = state;
        self.seen = true;
        self.device_fresh = device.is_some();
        self.firewall = firewall;
        self.forward_chains = forward_chains;
        self.device = device;
        self.endpoints_given.retain(|key, _| peers.contains_key(key));
        self.greetings.observed(&self.peers, &peers);
        self.peers = peers;
        self.holders = PrefixMap::default();
        let there = self.peers.iter().map(|(key, p)| (key, &p.allowed_ips));
        for (key, allowed_ips) in there.chain(self.intended.iter().map(|(key, i)| (key, &i.allowed_ips))) {
            for ip in allowed_ips {
                self.holders.entry(*ip).insert(*key);
            }
        }
        self.routes.clear();
        for route in routes {
            self.routes.entry(RouteKey::of(&route)).or_default().insert(route);
        }
        self.rules.clear();
        for rule in rules {
            self.rules.entry(rule.from).or_default().insert(rule);
        }
        self.links = pod_links;
        self.underlay = underlay;
    }

    /// An action was carried out. Returns the peers that it changed beside the one it names.
    pub(crate) fn apply(&mut self, op: &KernelOp) -> BTreeSet<PublicKey> {
        match op {
            KernelOp::Observe => {}
            KernelOp::SetFirewall(firewall) => self.firewall = Some(firewall.clone()),
            KernelOp::PassForward { .. } => self.pass_forward(),
            KernelOp::SetDevice(device) => self.set_device(device),
            KernelOp::SetPeer(peer) => return self.set_peer(peer),
            KernelOp::RemovePeer(key) => {
                self.release(*key);
                if let Some(peer) = self.peers.remove(key) {
                    self.greetings.lost(*key, &peer);
                }
                self.endpoints_given.remove(key);
            }
            KernelOp::Greet { peer, .. } => self.greetings.done(peer),
            KernelOp::SetRoute(route) => {
                self.routes.insert(RouteKey::of(route), Few::of(route.clone()));
            }
            KernelOp::RemoveRoute(route) => {
                remove_from(&mut self.routes, RouteKey::of(route), route);
            }
            KernelOp::SetRule(rule) => {
                self.rules.entry(rule.from).or_default().insert(rule.clone());
            }
            KernelOp::RemoveRule(rule) => remove_from(&mut self.rules, rule.from, rule),
            KernelOp::AttachPod(link) => {
                self.links.insert(link.host_ifname.clone(), attached(link));
            }
            KernelOp::DetachPod(link) => {
                if let Some(there) = self.links.get_mut(&link.host_ifname) {
                    there.addresses.clear();
                    there.guarded = false;
                }
            }
            KernelOp::RemovePodLink(link) => drop(self.links.remove(&link.host_ifname)),
        }
        BTreeSet::new()
    }

    fn pass_forward(&mut self) {
        let chains = std::mem::take(&mut self.forward_chains).into_iter();
        let passed = |chain: ForwardChain| ForwardChain {
            passes: chain.passes || chain.is_iptables(),
            ..chain
        };
        self.forward_chains = chains.map(passed).collect();
    }

    fn set_device(&mut self, device: &Device) {
        let kind = self.device.as_ref().map_or(DeviceKind::Kernel, |d| d.kind);
        self.device_fresh = false;
        self.device = Some(DeviceState {
            kind,
            public_key: Some(device.public_key),
            listen_port: device.listen_port,
            fwmark: device.fwmark,
            mtu: device.mtu,
            addresses: device.addresses.clone(),
            up: true,
            forwards: true,
            as_chosen: true,
        });
    }

    /// A peer's action begins.
    pub(crate) fn intend_peer(&mut self, peer: &Peer, published: Option<SocketAddr>) {
        for ip in &peer.allowed_ips {
            self.holders.entry(*ip).insert(peer.public_key);
        }
        let intended = Intended {
            endpoint: published,
            allowed_ips: peer.allowed_ips.clone(),
        };
        self.intended.insert(peer.public_key, intended);
    }

    /// A peer's action failed.
    pub(crate) fn peer_failed(&mut self, key: PublicKey) {
        self.release(key);
        let there = self.peers.get(&key).map(|p| p.allowed_ips.clone());
        for ip in there.into_iter().flatten() {
            self.holders.entry(ip).insert(key);
        }
    }

    /// Another peer that has, or is about to have, a part of the prefix that is not among those `wanted` along with
    /// it: the very same prefix WireGuard takes from it in the same step.
    pub(crate) fn overlapping_holder(
        &self,
        key: &PublicKey,
        prefix: IpNetwork,
        wanted: &BTreeSet<IpNetwork>,
    ) -> Option<PublicKey> {
        let parts = self
            .holders
            .overlapping(prefix)
            .filter(|(p, _)| !wanted.contains(p));
        parts
            .flat_map(|(_, holders)| holders)
            .find(|holder| *holder != key)
            .copied()
    }

    fn set_peer(&mut self, peer: &Peer) -> BTreeSet<PublicKey> {
        let key = peer.public_key;
        let given = self.intended.get(&key).map_or(peer.endpoint, |i| i.endpoint);
        self.endpoints_given.extend(given.map(|endpoint| (key, endpoint)));
        self.release(key);
        let robbed = peer
            .allowed_ips
            .iter()
            .flat_map(|ip| self.give(*ip, key))
            .collect();
        let before = self.peers.get(&key);
        let state = PeerState {
            endpoint: peer.endpoint.or(before.and_then(|p| p.endpoint)),
            allowed_ips: peer.allowed_ips.clone(),
            keepalive: peer.keepalive,
            last_handshake: before.and_then(|p| p.last_handshake),
            rx_bytes: before.map_or(0, |p| p.rx_bytes),
            tx_bytes: before.map_or(0, |p| p.tx_bytes),
        };
        self.peers.insert(key, state);
        robbed
    }

    /// The peer holds nothing for now.
    fn release(&mut self, key: PublicKey) {
        let there = self.peers.get(&key).map(|p| p.allowed_ips.clone());
        let intended = self.intended.remove(&key).map(|i| i.allowed_ips);
        for ip in there.into_iter().chain(intended).flatten() {
            self.holders.change(ip, |holders| {
                holders.remove(&key);
                holders.is_empty()
            });
        }
    }

    /// Gives an allowed IP to a peer, as WireGuard does: others lose it. Returns those that had it.
    fn give(&mut self, ip: IpNetwork, key: PublicKey) -> Vec<PublicKey> {
        let holders = self.holders.entry(ip);
        let others: Vec<_> = holders.iter().copied().filter(|h| *h != key).collect();
        holders.insert(key);
        let mut robbed = Vec::new();
        for other in others {
            let had = self
                .peers
                .get_mut(&other)
                .is_some_and(|p| p.allowed_ips.remove(&ip));
            if had {
                robbed.push(other);
            }
            if !self
                .intended
                .get(&other)
                .is_some_and(|i| i.allowed_ips.contains(&ip))
            {
                self.holders.entry(ip).remove(&other);
            }
        }
        robbed
    }
}

fn remove_from<K: Ord, V: Ord>(map: &mut BTreeMap<K, Few<V>>, key: K, value: &V) {
    if let Some(set) = map.get_mut(&key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(&key);
        }
    }
}

fn attached(link: &PodLink) -> PodLinkState {
    PodLinkState {
        host_mac: link.host_mac,
        mtu: link.mtu,
        up: true,
        addresses: link.addresses.iter().copied().collect(),
        guarded: true,
    }
}
