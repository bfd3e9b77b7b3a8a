//! A kernel made of tables: carries operations out, refuses what a real one would, and holds the agent to its
//! order.

use meshd_core::{Failure, KernelOp};
use meshd_model::PublicKey;
use meshd_model::kernel::{
    DeviceKind, DeviceState, Firewall, ForwardChain, KernelState, Peer, PeerState, PodLink, PodLinkState,
    Route, RouteTarget, UNREACHABLE_METRIC,
};
use meshd_model::net::overlaps;
use std::collections::BTreeSet;

pub(crate) const ENOENT: i32 = 2;
pub(crate) const EEXIST: i32 = 17;
pub(crate) const ENODEV: i32 = 19;

#[derive(Clone, Debug, Default)]
pub(crate) struct Kernel {
    /// Peers that were greeted, in order.
    pub greeted: Vec<PublicKey>,
    pub state: KernelState,
    /// Namespaces that are gone.
    pub gone: BTreeSet<String>,
    /// `netns:ifname` that something else has taken.
    pub taken: BTreeSet<String>,
    /// Attachments whose link it does not take down.
    pub refusing: BTreeSet<String>,
    /// What is told of every operation on a matching text, until it is cleared.
    pub failing: Option<(String, i32)>,
    /// What fail closed means here.
    pub closed: Option<Firewall>,
}

impl Kernel {
    pub(crate) fn carry_out(&mut self, op: &KernelOp) -> Result<(), Failure> {
        if let Some((pattern, errno)) = &self.failing
            && format!("{op:?}").contains(pattern)
        {
            return Err(failure(*errno));
        }
        if !matches!(
            op,
            KernelOp::SetFirewall(_)
                | KernelOp::Observe
                | KernelOp::DetachPod(_)
                | KernelOp::RemovePodLink(_)
        ) && !is_unreachable(op)
        {
            self.assert_fail_closed(op);
        }
        match op {
            KernelOp::Observe => {}
            KernelOp::SetFirewall(firewall) => self.state.firewall = Some(firewall.clone()),
            KernelOp::PassForward { .. } => {
                let chains = std::mem::take(&mut self.state.forward_chains);
                let passed = |chain: ForwardChain| ForwardChain {
                    passes: chain.is_iptables(),
                    ..chain
                };
                self.state.forward_chains = chains.into_iter().map(passed).collect();
            }
            KernelOp::SetDevice(device) => {
                self.state.device = Some(DeviceState {
                    kind: DeviceKind::Userspace,
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
            KernelOp::SetPeer(peer) => self.set_peer(peer)?,
            KernelOp::RemovePeer(key) => {
                self.assert_no_route_to(key);
                self.state.peers.remove(key);
            }
            KernelOp::Greet { peer, .. } => self.greeted.push(*peer),
            KernelOp::SetRoute(route) => self.set_route(route)?,
            KernelOp::RemoveRoute(route) => drop(self.state.routes.remove(route)),
            KernelOp::SetRule(rule) => drop(self.state.rules.insert(rule.clone())),
            KernelOp::RemoveRule(rule) => drop(self.state.rules.remove(rule)),
            KernelOp::AttachPod(link) => self.attach(link)?,
            KernelOp::DetachPod(link) if self.refusing.contains(&link.id.to_string()) => {
                return Err(failure(16));
            }
            KernelOp::DetachPod(link) => {
                if let Some(there) = self.state.pod_links.get_mut(&link.host_ifname) {
                    there.addresses.clear();
                    there.guarded = false;
                }
            }
            KernelOp::RemovePodLink(link) => drop(self.state.pod_links.remove(&link.host_ifname)),
        }
        Ok(())
    }

    fn assert_fail_closed(&self, op: &KernelOp) {
        let Some(closed) = &self.closed else { return };
        assert_eq!(
            self.state.firewall.as_ref(),
            Some(closed),
            "before the firewall: {op:?}"
        );
        for dst in &closed.pod_cidrs {
            let there = |r: &Route| r.dst == *dst && r.metric == UNREACHABLE_METRIC;
            assert!(
                self.state.routes.iter().any(there),
                "before the unreachable route to {dst}: {op:?}"
            );
        }
    }

    /// As WireGuard does: an allowed IP belongs to one peer, the last that was given it.
    fn set_peer(&mut self, peer: &Peer) -> Result<(), Failure> {
        if self.state.device.is_none() {
            return Err(failure(ENODEV));
        }
        for (key, other) in &mut self.state.peers {
            if *key != peer.public_key {
                other.allowed_ips.retain(|ip| !peer.allowed_ips.contains(ip));
            }
        }
        let before = self.state.peers.get(&peer.public_key);
        let state = PeerState {
            endpoint: peer.endpoint.or(before.and_then(|p| p.endpoint)),
            allowed_ips: peer.allowed_ips.clone(),
            keepalive: peer.keepalive,
            last_handshake: before.and_then(|p| p.last_handshake),
            rx_bytes: before.map_or(0, |p| p.rx_bytes),
            tx_bytes: before.map_or(0, |p| p.tx_bytes),
        };
        self.state.peers.insert(peer.public_key, state);
        Ok(())
    }

    fn set_route(&mut self, route: &Route) -> Result<(), Failure> {
        if let RouteTarget::Device { src, .. } = &route.target {
            let Some(device) = &self.state.device else {
                return Err(failure(ENODEV));
            };
            assert!(
                device.addresses.contains(src),
                "the source of {route:?} is not on the device"
            );
            let known = self
                .state
                .routes
                .iter()
                .any(|r| r.dst == route.dst && r.target != RouteTarget::Unreachable);
            let taken = self
                .state
                .peers
                .values()
                .any(|p| p.allowed_ips.contains(&route.dst));
            assert!(known || taken, "route before its peer: {route:?}");
        }
        let same = |r: &Route| (r.dst, r.table, r.metric) == (route.dst, route.table, route.metric);
        self.state.routes.retain(|r| !same(r));
        self.state.routes.insert(route.clone());
        Ok(())
    }

    fn assert_no_route_to(&self, key: &meshd_model::PublicKey) {
        let Some(peer) = self.state.peers.get(key) else {
            return;
        };
        for route in self
            .state
            .routes
            .iter()
            .filter(|r| r.target != RouteTarget::Unreachable)
        {
            assert!(
                !peer.allowed_ips.contains(&route.dst),
                "peer {key} removed before its route {route:?}"
            );
        }
    }

    fn attach(&mut self, link: &PodLink) -> Result<(), Failure> {
        if self.gone.contains(&link.netns) {
            return Err(failure(ENOENT));
        }
        if self.taken.contains(&format!("{}:{}", link.netns, link.id.ifname)) {
            return Err(failure(EEXIST));
        }
        let device = self.state.device.as_ref().map(|d| &d.addresses);
        for address in &link.host_addresses {
            assert!(
                device.is_some_and(|d| d.contains(address)),
                "the source {address} of {link:?} is not on the device"
            );
        }
        for (name, other) in &self.state.pod_links {
            let shared = link.addresses.iter().find(|a| other.addresses.contains(a));
            assert!(
                *name == link.host_ifname || shared.is_none(),
                "{shared:?} on {name} and {}",
                link.host_ifname
            );
        }
        let state = PodLinkState {
            host_mac: link.host_mac,
            mtu: link.mtu,
            up: true,
            addresses: link.addresses.iter().copied().collect(),
            guarded: true,
        };
        self.state.pod_links.insert(link.host_ifname.clone(), state);
        Ok(())
    }

    /// What the real kernel does not check: cryptokey routing is unambiguous.
    pub(crate) fn assert_disjoint(&self) {
        let all: Vec<_> = self
            .state
            .peers
            .iter()
            .flat_map(|(k, p)| p.allowed_ips.iter().map(move |ip| (k, ip)))
            .collect();
        for (i, (a, p)) in all.iter().enumerate() {
            for (b, q) in &all[i + 1..] {
                assert!(a == b || !overlaps(**p, **q), "{p} of {a} and {q} of {b} overlap");
            }
        }
    }
}

fn is_unreachable(op: &KernelOp) -> bool {
    matches!(
        op,
        KernelOp::SetRoute(Route {
            target: RouteTarget::Unreachable,
            ..
        })
    )
}

pub(crate) fn failure(errno: i32) -> Failure {
    Failure {
        errno: Some(errno),
        message: format!("told to fail with {errno}"),
    }
}
