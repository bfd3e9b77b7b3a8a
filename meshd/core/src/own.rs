//! This node: what the API server says of it, and what follows from that and from the underlay: overlay addresses,
//! endpoints, MTU, and the annotations it publishes.

use crate::bounds::{Bounds, ENDPOINTS_MAX, Refused};
use crate::claims::Claimant;
use crate::config::{Config, Endpoints};
use ipnetwork::IpNetwork;
use meshd_model::kernel::{Device, UnderlayAddress};
use meshd_model::net::{Family, contains, host, overlay_address};
use meshd_model::node::PROTOCOL_VERSION;
use meshd_model::{NodeAnnotations, OwnNode};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What WireGuard adds to a packet: 32 bytes of its own, 8 of UDP, and the IP header of the endpoint's family.
const OVERHEAD_V4: u32 = 60;
const OVERHEAD_V6: u32 = 80;
/// IPv6 needs a link MTU of 1280 (RFC 8200, section 5); IPv4 hosts need not take more than 576 (RFC 791).
const MTU_MIN_V6: u16 = 1280;
const MTU_MIN_V4: u16 = 576;

/// What an overlay of this family has to carry at least, in bytes.
pub(crate) fn mtu_min(family: Family) -> u16 {
    match family {
        Family::V4 => MTU_MIN_V4,
        Family::V6 => MTU_MIN_V6,
    }
}

/// The own Node as last seen, and the pod CIDRs in force.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Own {
    pub(crate) node: Option<OwnNode>,
    /// The Node is gone from the API server; what it was stays in force for the pods that run.
    pub(crate) deleted: bool,
    /// Accepted pod CIDRs. They outlive a Node that has lost its own: running pods keep their routes.
    pub(crate) cidrs: Vec<IpNetwork>,
    pub(crate) refused: Vec<Refused>,
}

impl Own {
    /// Takes in the Node; in IPAM's pool mode its pod CIDRs are not its own.
    pub(crate) fn apply(&mut self, node: OwnNode, bounds: &Bounds, pool: bool) {
        if pool {
            self.deleted = false;
            self.node = Some(node);
            return;
        }
        let (mut accepted, mut refused) = (Vec::new(), Vec::new());
        for prefix in &node.pod_cidrs {
            match bounds.pod_cidr(*prefix) {
                Ok(prefix) if overlay_address(prefix).is_none() => {
                    refused.push(Refused::new(prefix, "it holds fewer than four addresses"));
                }
                Ok(prefix) if accepted.contains(&prefix) => {}
                Ok(prefix) => accepted.push(prefix),
                Err(reason) => refused.push(reason),
            }
        }
        if !accepted.is_empty() {
            self.cidrs = accepted;
        }
        self.refused = refused;
        self.deleted = false;
        self.node = Some(node);
    }

    /// Whether the Node as it is now has the pod CIDRs in force, so that addresses may be handed out of them.
    pub(crate) fn is_current(&self, pool: bool) -> bool {
        let Some(node) = &self.node else { return false };
        if pool {
            return !self.deleted && !self.cidrs.is_empty();
        }
        let of_node = |c: &IpNetwork| {
            node.pod_cidrs
                .iter()
                .any(|p| meshd_model::net::canonical(*p) == *c)
        };
        !self.deleted && !self.cidrs.is_empty() && self.cidrs.iter().all(of_node)
    }

    pub(crate) fn claimant(&self) -> Option<Claimant> {
        let node = self.node.as_ref()?;
        Some(Claimant {
            created: node.created,
            uid: node.uid.clone(),
            node: node.name.clone(),
        })
    }
}

/// What follows from the own Node, the underlay and the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Local {
    pub(crate) cidrs: Vec<IpNetwork>,
    /// The overlay address of each family that the node has a pod CIDR of.
    pub(crate) overlay: BTreeMap<Family, IpAddr>,
    /// Where peers reach the node, in order.
    pub(crate) endpoints: Vec<IpAddr>,
    /// The node's own addresses that are published.
    pub(crate) node_addresses: Vec<IpAddr>,
    /// None until the underlay is known.
    pub(crate) mtu: Option<u16>,
    /// What was measured is less than IPv6 needs; this much was found on the underlay.
    pub(crate) narrow_underlay: Option<u32>,
}

impl Local {
    pub(crate) fn new(
        config: &Config,
        own: &Own,
        bounds: &Bounds,
        underlay: &[UnderlayAddress],
        any_v6: bool,
    ) -> Self {
        let internal: &[IpAddr] = own.node.as_ref().map_or(&[], |n| &n.internal_ips);
        let node_addresses: Vec<_> = internal
            .iter()
            .copied()
            .filter(|a| bounds.claimable(*a).is_ok())
            .take(ENDPOINTS_MAX)
            .collect();
        let endpoints = endpoints(&config.endpoints, internal, underlay, bounds);
        let mut overlay = BTreeMap::new();
        for address in own.cidrs.iter().filter_map(|c| overlay_address(*c)) {
            overlay.entry(Family::of(address)).or_insert(address);
        }
        let mut local = Self {
            cidrs: own.cidrs.clone(),
            overlay,
            endpoints,
            node_addresses,
            ..Self::default()
        };
        local.set_mtu(config, underlay, any_v6);
        local
    }

    /// The configured MTU, or the smallest of the interfaces that carry an endpoint address, less WireGuard's
    /// overhead. Where no interface carries one (the address is a NAT's, or is just being changed), the interfaces that
    /// the default routes lead out of count: others, like a bridge for containers or another tunnel, say nothing of the
    /// way to the peers. The overhead is that of IPv6 unless no node, this one included, has an IPv6 endpoint: one number
    /// for all peers, so that it does not change with each.
    fn set_mtu(&mut self, config: &Config, underlay: &[UnderlayAddress], any_v6: bool) {
        if config.mtu.is_some() {
            self.mtu = config.mtu;
            return;
        }
        let least_of = |counts: &dyn Fn(&UnderlayAddress) -> bool| {
            let those = underlay.iter().filter(|u| counts(u));
            those.map(|u| u.mtu).min()
        };
        let measured = least_of(&|u| self.endpoints.contains(&u.address))
            .or_else(|| least_of(&|u| u.default_route))
            .or_else(|| least_of(&|_| true));
        let Some(measured) = measured else { return };
        let v6 = any_v6 || self.endpoints.iter().any(IpAddr::is_ipv6);
        let inner = measured.saturating_sub(if v6 { OVERHEAD_V6 } else { OVERHEAD_V4 });
        let least = self
            .overlay
            .keys()
            .map(|f| mtu_min(*f))
            .max()
            .unwrap_or(MTU_MIN_V4);
        self.narrow_underlay = (inner < u32::from(least)).then_some(measured);
        self.mtu = Some(u16::try_from(inner).unwrap_or(u16::MAX).max(least));
    }

    /// Families in which this node can be reached.
    pub(crate) fn families(&self) -> BTreeSet<Family> {
        self.endpoints.iter().copied().map(Family::of).collect()
    }

    pub(crate) fn overlay_addresses(&self) -> Vec<IpAddr> {
        self.overlay.values().copied().collect()
    }

    /// What this node claims beside the others: see [`crate::claims`].
    pub(crate) fn claims(&self) -> BTreeSet<IpNetwork> {
        self.cidrs
            .iter()
            .copied()
            .chain(self.node_addresses.iter().copied().map(host))
            .collect()
    }

    /// The WireGuard interface as desired; None while no pod CIDR or no MTU is known.
    pub(crate) fn device(&self, config: &Config) -> Option<Device> {
        if self.overlay.is_empty() {
            return None;
        }
        Some(Device {
            name: config.device.clone(),
            key: config.identity.handle,
            public_key: config.identity.public_key,
            listen_port: config.listen_port,
            fwmark: config.mark.value,
            mtu: self.mtu?,
            addresses: self.overlay.values().copied().collect(),
        })
    }

    /// What is to be published; None while there is no endpoint to be reached at.
    pub(crate) fn annotations(&self, config: &Config) -> Option<NodeAnnotations> {
        if self.endpoints.is_empty() || self.cidrs.is_empty() {
            return None;
        }
        Some(NodeAnnotations {
            public_key: config.identity.public_key,
            listen_port: config.listen_port,
            endpoints: self.endpoints.clone(),
            node_addresses: self.node_addresses.clone(),
            mtu: self.mtu?,
            pod_cidrs: self.cidrs.clone(),
            protocol_version: PROTOCOL_VERSION,
        })
    }
}

/// The endpoint addresses: the Node's in its order; of those of interfaces the Node's first, as another may be one that
/// moves from node to node, and each kind sorted, since the kernel's order is nobody's choice.
fn endpoints(
    wanted: &Endpoints,
    internal: &[IpAddr],
    underlay: &[UnderlayAddress],
    bounds: &Bounds,
) -> Vec<IpAddr> {
    let chosen = |u: &&UnderlayAddress| match wanted {
        Endpoints::InternalIp => false,
        Endpoints::Interface(name) => u.ifname == *name,
        Endpoints::Cidr(prefix) => contains(*prefix, host(u.address)),
    };
    let found: Vec<IpAddr> = match wanted {
        Endpoints::InternalIp => internal.to_vec(),
        _ => underlay
            .iter()
            .filter(chosen)
            .filter(|u| !u.passing)
            .map(|u| (!internal.contains(&u.address), u.address))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .map(|(_, address)| address)
            .collect(),
    };
    found
        .into_iter()
        .filter(|a| bounds.node_address(*a).is_ok())
        .take(ENDPOINTS_MAX)
        .collect()
}
