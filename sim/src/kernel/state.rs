//! What the kernel says is there.

use crate::kernel::Kernel;
use meshd_model::kernel::{DeviceKind, DeviceState, KernelState, PeerState, PodLinkState};
use std::collections::BTreeSet;

/// The interface as `meshd-wg` makes it, before the agent's first word.
pub(crate) fn bare_device() -> DeviceState {
    DeviceState {
        kind: DeviceKind::Userspace,
        public_key: None,
        listen_port: 0,
        fwmark: 0,
        mtu: 1420,
        addresses: BTreeSet::new(),
        up: false,
        forwards: false,
        as_chosen: true,
    }
}

impl Kernel {
    /// The answer to `Observe`.
    pub(crate) fn observe(&self) -> KernelState {
        let peers = self.tunnel.peers().map(|peer| {
            let state = PeerState {
                endpoint: peer.endpoint,
                allowed_ips: peer.allowed_ips.iter().copied().collect(),
                keepalive: (peer.keepalive > 0).then_some(peer.keepalive),
                last_handshake: peer.last_handshake,
                rx_bytes: peer.rx_bytes,
                tx_bytes: peer.tx_bytes,
            };
            (peer.public_key, state)
        });
        let links = self.links.iter().map(|(name, link)| {
            let state = PodLinkState {
                host_mac: link.host_mac,
                mtu: link.mtu,
                up: true,
                addresses: link.addresses.iter().copied().collect(),
                guarded: link.addresses.iter().all(|a| self.may_send(name, *a)),
            };
            (name.clone(), state)
        });
        KernelState {
            firewall: self.firewall.clone(),
            forward_chains: BTreeSet::new(),
            device: Some(DeviceState {
                public_key: self.tunnel.public_key(),
                ..self.device.clone()
            }),
            peers: peers.collect(),
            routes: self.routes.values().cloned().collect(),
            rules: self.rules.clone(),
            pod_links: links.collect(),
            underlay: self.own.clone(),
        }
    }
}
