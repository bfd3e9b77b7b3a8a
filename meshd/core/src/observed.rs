//! The agent's copy of the kernel's state: replaced by each observation, and changed with each action that was
//! carried out.

use ipnetwork::IpNetwork;
use meshd_model::PublicKey;
use meshd_model::kernel::{
    Device, DeviceKind, DeviceState, Firewall, KernelState, Peer, PeerState, PodLink, PodLinkState, Route,
    Rule, UnderlayAddress,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::action::{KernelOp, Resource};

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

/// The copy.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Observed {
    /// Whether there was an observation at all.
    pub(crate) seen: bool,
    pub(crate) firewall: Option<Firewall>,
    pub(crate) device: Option<DeviceState>,
    /// Whether the device was observed since it was last set: only then is its kind and port known to be true.
    pub(crate) device_fresh: bool,
    pub(crate) peers: BTreeMap<PublicKey, PeerState>,
    pub(crate) routes: BTreeMap<RouteKey, BTreeSet<Route>>,
    pub(crate) rules: BTreeMap<IpNetwork, BTreeSet<Rule>>,
    pub(crate) links: BTreeMap<String, PodLinkState>,
    pub(crate) underlay: Vec<UnderlayAddress>,
    /// The published endpoint that each peer was last given: one that roamed since is no difference.
    pub(crate) endpoints_given: BTreeMap<PublicKey, SocketAddr>,
    /// The published endpoint that a peer has been given once its outstanding action is carried out.
    pub(crate) endpoints_intended: BTreeMap<PublicKey, SocketAddr>,
}

impl Observed {
    pub(crate) fn replace(&mut self, state: KernelState) {
        let KernelState {
            firewall,
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
        self.device = device;
        self.endpoints_given.retain(|key, _| peers.contains_key(key));
        self.peers = peers;
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

    /// An action was carried out.
    pub(crate) fn apply(&mut self, op: &KernelOp) {
        match op {
            KernelOp::Observe => {}
            KernelOp::SetFirewall(firewall) => self.firewall = Some(firewall.clone()),
            KernelOp::SetDevice(device) => self.set_device(device),
            KernelOp::SetPeer(peer) => self.set_peer(peer),
            KernelOp::RemovePeer(key) => {
                self.peers.remove(key);
                self.endpoints_given.remove(key);
            }
            KernelOp::SetRoute(route) => {
                self.routes
                    .insert(RouteKey::of(route), BTreeSet::from([route.clone()]));
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
            KernelOp::DetachPod(link) => drop(self.links.remove(&link.host_ifname)),
        }
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
        });
    }

    fn set_peer(&mut self, peer: &Peer) {
        let given = self
            .endpoints_intended
            .remove(&peer.public_key)
            .unwrap_or(peer.endpoint);
        self.endpoints_given.insert(peer.public_key, given);
        let before = self.peers.get(&peer.public_key);
        let state = PeerState {
            endpoint: Some(peer.endpoint),
            allowed_ips: peer.allowed_ips.clone(),
            keepalive: peer.keepalive,
            last_handshake: before.and_then(|p| p.last_handshake),
            rx_bytes: before.map_or(0, |p| p.rx_bytes),
            tx_bytes: before.map_or(0, |p| p.tx_bytes),
        };
        self.peers.insert(peer.public_key, state);
    }
}

fn remove_from<K: Ord, V: Ord>(map: &mut BTreeMap<K, BTreeSet<V>>, key: K, value: &V) {
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
