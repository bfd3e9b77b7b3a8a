//! What must hold at every moment, checked where it could first break.

use crate::sim::Sim;
use ipnetwork::IpNetwork;
use meshd_core::KernelOp;
use meshd_model::kernel::{Peer, PodLink};
use meshd_model::net::overlaps;
use meshd_model::{Lease, PublicKey};
use std::collections::BTreeMap;
use std::net::IpAddr;

impl Sim {
    /// After an operation of a node's kernel was carried out.
    pub(crate) fn check_kernel(&mut self, node: usize, op: &KernelOp) {
        match op {
            KernelOp::SetPeer(peer) => {
                let problem = overlap(&self.nodes[node].kernel.allowed, peer);
                self.check(node, problem);
            }
            KernelOp::AttachPod(link) => {
                let open = self.nodes[node].kernel.firewall.is_none();
                self.check(
                    node,
                    open.then(|| format!("{} was attached before the firewall was in force", link.id)),
                );
                let twice = link
                    .addresses
                    .iter()
                    .find_map(|a| self.other_link(node, link, *a));
                self.check(node, twice);
            }
            _ => {}
        }
    }

    /// After a lease was written.
    pub(crate) fn check_lease(&mut self, node: usize, lease: &Lease) {
        let others = self
            .nodes
            .iter()
            .flat_map(|n| n.store.values().map(move |l| (&n.name, l)));
        let mut others = others.filter(|(name, l)| (*name, &l.id) != (&self.nodes[node].name, &lease.id));
        let twice = others.find_map(|(name, other)| {
            let address = lease.addresses.iter().find(|a| other.addresses.contains(a))?;
            Some(format!(
                "{address} is leased to {} here and to {} on {name}",
                lease.id, other.id
            ))
        });
        self.check(node, twice);
    }

    fn other_link(&self, node: usize, link: &PodLink, address: IpAddr) -> Option<String> {
        let links = self
            .nodes
            .iter()
            .enumerate()
            .flat_map(|(n, it)| it.kernel.links().map(move |l| (n, l)));
        let mut others = links.filter(|(n, l)| (*n, &l.host_ifname) != (node, &link.host_ifname));
        let (other, l) = others.find(|(_, l)| l.addresses.contains(&address))?;
        Some(format!(
            "{address} is held by {} here and by {} on {}",
            link.id, l.id, self.nodes[other].name
        ))
    }
}

/// Whether a peer's allowed IPs overlap those of another peer of the device. Prefixes are disjoint, or one holds the
/// other, so it is enough to look at what is next to each in order, and at what holds it.
fn overlap(allowed: &BTreeMap<IpNetwork, PublicKey>, peer: &Peer) -> Option<String> {
    let of_others = |(_, key): &(&IpNetwork, &PublicKey)| **key != peer.public_key;
    for own in &peer.allowed_ips {
        let holders = (0..own.prefix()).rev().filter_map(|length| {
            let net = IpNetwork::new(own.ip(), length).ok()?;
            allowed.get_key_value(&meshd_model::net::canonical(net))
        });
        let held = allowed.range(*own..).take_while(|(net, _)| overlaps(**net, *own));
        if let Some((net, key)) = holders.chain(held).find(|entry| of_others(entry)) {
            return Some(format!(
                "allowed IPs: {own} of peer {} overlaps {net} of peer {key}",
                peer.public_key
            ));
        }
    }
    None
}
