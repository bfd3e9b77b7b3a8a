//! What must hold at every moment, checked where it could first break.

use crate::client::blocks;
use crate::sim::Sim;
use ipnetwork::IpNetwork;
use meshd_apiserver::Request;
use meshd_core::{KernelOp, Pool};
use meshd_model::kernel::{Peer, PodLink};
use meshd_model::net::{Family, canonical, overlaps};
use meshd_model::{Lease, LeasePhase, PublicKey, block};
use meshd_translate::blocks::RELEASED;
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
        let foreign = self
            .config
            .pool
            .clone()
            .and_then(|pool| self.not_its_block(node, lease, &pool));
        self.check(node, foreign);
    }

    /// In IPAM's pool mode: an address that is handed out and lies in no block that this node has at the API server.
    fn not_its_block(&mut self, node: usize, lease: &Lease, pool: &Pool) -> Option<String> {
        if lease.phase != LeasePhase::Adding {
            return None;
        }
        let now = self.api_time();
        let name = self.nodes[node].name.0.clone();
        lease.addresses.iter().find_map(|address| {
            let size = pool.block_sizes.get(&Family::of(*address))?;
            let block = canonical(IpNetwork::new(*address, *size).ok()?);
            let path = format!("{}/{}", blocks().collection(""), block::name(block));
            let answer = self
                .cluster
                .server
                .handle(now, Request::get(path))
                .response()
                .body
                .to_value();
            let released = !answer["metadata"]["annotations"][RELEASED].is_null();
            let own = answer["spec"]["node"] == name.as_str() && !released;
            (!own).then(|| {
                format!(
                    "{address} is leased to {} out of {block}, which is: {answer}",
                    lease.id
                )
            })
        })
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
