//! A node's kernel: the tables that the agent's own operations fill, and nothing else does.

pub(crate) mod fib;
pub(crate) mod ops;
mod outside;
mod state;

use crate::kernel::fib::{Fib, Hop, Out};
use crate::nat::Nat;
use ipnetwork::IpNetwork;
use meshd_model::kernel::{DeviceState, Firewall, PodLink, Route, Rule, TABLE_MAIN, UnderlayAddress};
use meshd_model::net::contains;
use meshd_model::{KeyHandle, PublicKey};
use meshd_wireguard_proto::{Device as Tunnel, PrivateKey};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Name of the nodes' interface on the underlay.
pub(crate) const UNDERLAY_IFNAME: &str = "eth0";
/// Name of their second one, where they have it.
pub(crate) const SECOND_IFNAME: &str = "eth1";
/// MTU of the underlay, in bytes.
pub(crate) const UNDERLAY_MTU: u16 = 1500;

/// A node's kernel.
pub(crate) struct Kernel {
    /// The WireGuard interface's inside: it outlives the agent, as `meshd-wg` does.
    pub(crate) tunnel: Tunnel,
    /// Name of the WireGuard interface.
    device_name: String,
    device: DeviceState,
    /// What the key handles stand for: the state folder's keys.
    pub(crate) keys: BTreeMap<KeyHandle, PrivateKey>,
    pub(crate) firewall: Option<Firewall>,
    /// By the host's end of the link: what its pod may send from.
    guards: BTreeMap<String, BTreeSet<IpAddr>>,
    links: BTreeMap<String, PodLink>,
    pub(crate) namespaces: BTreeMap<String, Namespace>,
    /// By table, destination and metric.
    routes: BTreeMap<(u32, IpNetwork, u32), Route>,
    rules: BTreeSet<Rule>,
    fib: Fib,
    own: Vec<UnderlayAddress>,
    /// Conntrack's part of what leaves with the node's address.
    masquerade: Nat,
    /// Of the interface on the underlay, in bytes.
    pub(crate) underlay_mtu: u16,
    /// Whose each prefix is, and each peer's prefixes, as the device was told.
    pub(crate) allowed: BTreeMap<IpNetwork, PublicKey>,
    peers: BTreeMap<PublicKey, BTreeSet<IpNetwork>>,
    /// Faults to be met by operations to come.
    pub(crate) faults: Vec<ops::Fault>,
}

/// A pod's network namespace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Namespace {
    /// Interfaces in it that are not ours.
    pub(crate) foreign: BTreeSet<String>,
    /// The host's end of its link, once it has one.
    pub(crate) host_ifname: Option<String>,
}

impl Kernel {
    /// A kernel that is not on the underlay yet.
    pub(crate) fn new(tunnel: Tunnel, device_name: &str) -> Kernel {
        Kernel {
            tunnel,
            device_name: device_name.to_owned(),
            device: state::bare_device(),
            keys: BTreeMap::new(),
            firewall: None,
            guards: BTreeMap::new(),
            links: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            routes: BTreeMap::new(),
            rules: BTreeSet::new(),
            fib: Fib::default(),
            own: Vec::new(),
            masquerade: Nat::new(Vec::new(), outside::IDLE),
            underlay_mtu: UNDERLAY_MTU,
            allowed: BTreeMap::new(),
            peers: BTreeMap::new(),
            faults: Vec::new(),
        }
    }

    /// One interface on the underlay with these addresses, routes to the underlay's prefixes, and a default route to its
    /// router: without meshd, a packet to a pod's address would go there. Replaces what there was.
    pub(crate) fn wire(&mut self, own: &[IpAddr], underlay: &[IpNetwork], mtu: u16) {
        for net in underlay {
            let src = own.iter().copied().find(|a| a.is_ipv4() == net.is_ipv4());
            let on_link = Hop {
                out: Out::Underlay(Some(net.network())),
                src,
                mtu,
            };
            self.fib.set(TABLE_MAIN, *net, 0, on_link);
            let default = if net.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            let default: IpNetwork = default.parse().expect("a default route is a prefix");
            let out = Out::Underlay(None);
            self.fib.set(TABLE_MAIN, default, 1024, Hop { out, src, mtu });
        }
        let address = |address: &IpAddr| UnderlayAddress {
            address: *address,
            ifname: UNDERLAY_IFNAME.to_owned(),
            mtu: mtu.into(),
            default_route: true,
            passing: false,
        };
        self.own = own.iter().map(address).collect();
        self.masquerade.set_public(own);
        self.underlay_mtu = mtu;
    }

    /// A second interface, which leads to its own prefixes only.
    pub(crate) fn wire_second(&mut self, own: &[IpAddr], nets: &[IpNetwork], mtu: u16) {
        for net in nets {
            let on_link = Hop {
                out: Out::Underlay(Some(net.network())),
                src: own.iter().copied().find(|a| a.is_ipv4() == net.is_ipv4()),
                mtu,
            };
            self.fib.set(TABLE_MAIN, *net, 0, on_link);
        }
        let address = |address: &IpAddr| UnderlayAddress {
            address: *address,
            ifname: SECOND_IFNAME.to_owned(),
            mtu: mtu.into(),
            default_route: false,
            passing: false,
        };
        self.own.extend(own.iter().map(address));
    }

    /// The process of the WireGuard interface ends and another starts: the interface stays, its inside is new.
    pub(crate) fn restart_device(&mut self, tunnel: Tunnel) {
        self.tunnel = tunnel;
        self.device.listen_port = 0;
        self.device.fwmark = 0;
        self.allowed.clear();
        self.peers.clear();
    }

    /// Addresses that are delivered to the node itself.
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        self.own.iter().any(|own| own.address == address) || self.device.addresses.contains(&address)
    }

    /// An address of the node to send ICMP errors from: one that can be routed back through the tunnel.
    pub(crate) fn error_source(&self, v4: bool) -> Option<IpAddr> {
        let overlay = self.device.addresses.iter().copied().find(|a| a.is_ipv4() == v4);
        overlay.or_else(|| self.own.iter().map(|o| o.address).find(|a| a.is_ipv4() == v4))
    }

    pub(crate) fn listen_port(&self) -> u16 {
        self.device.listen_port
    }

    pub(crate) fn fwmark(&self) -> u32 {
        self.device.fwmark
    }

    /// Where a packet from `src` (none: not chosen yet) to `dst` goes, as `ip route get` says.
    pub(crate) fn route(&self, src: Option<IpAddr>, dst: IpAddr, mark: u32) -> Option<&Hop> {
        let mut rules: Vec<&Rule> = self.rules.iter().collect();
        rules.sort_by_key(|rule| rule.priority);
        for rule in rules {
            let matches = src.is_some_and(|src| contains(rule.from, IpNetwork::from(src)));
            let exempt = mark & rule.unless_mark.mask == rule.unless_mark.value & rule.unless_mark.mask;
            if matches
                && !exempt
                && let Some(hop) = self.fib.lookup(rule.table, dst)
            {
                return Some(hop);
            }
        }
        self.fib.lookup(TABLE_MAIN, dst)
    }

    /// Whether the firewall lets this pair pass through the underlay's interface, in either direction.
    pub(crate) fn underlay_allows(&self, src: IpAddr, dst: IpAddr) -> bool {
        let Some(firewall) = &self.firewall else {
            return true;
        };
        !fib::any_holds(&firewall.pod_cidrs, src) && !fib::any_holds(&firewall.pod_cidrs, dst)
    }

    /// Whether a pod may send from this address: without an entry, from none.
    pub(crate) fn may_send(&self, host_ifname: &str, src: IpAddr) -> bool {
        self.guards
            .get(host_ifname)
            .is_some_and(|addresses| addresses.contains(&src))
    }

    pub(crate) fn link(&self, host_ifname: &str) -> Option<&PodLink> {
        self.links.get(host_ifname)
    }

    /// The link of the pod in this namespace.
    pub(crate) fn link_of(&self, netns: &str) -> Option<&PodLink> {
        self.links.get(self.namespaces.get(netns)?.host_ifname.as_ref()?)
    }

    pub(crate) fn links(&self) -> impl Iterator<Item = &PodLink> {
        self.links.values()
    }

    /// A namespace goes, and with it the link into it; its routes go with the link, its guard stays.
    pub(crate) fn remove_namespace(&mut self, netns: &str) {
        let Some(namespace) = self.namespaces.remove(netns) else {
            return;
        };
        if let Some(host_ifname) = namespace.host_ifname {
            self.unlink(&host_ifname);
        }
    }

    fn unlink(&mut self, host_ifname: &str) {
        let Some(link) = self.links.remove(host_ifname) else {
            return;
        };
        for address in &link.addresses {
            self.fib.remove(TABLE_MAIN, IpNetwork::from(*address), 0);
        }
        if let Some(namespace) = self.namespaces.get_mut(&link.netns) {
            namespace.host_ifname = None;
        }
    }

    /// What is left of pods, one line each.
    pub(crate) fn residue(&self) -> Vec<String> {
        let links = self.links.keys().map(|name| format!("interface {name}"));
        let guards = self
            .guards
            .keys()
            .map(|name| format!("firewall entries of {name}"));
        let namespaces = self.namespaces.keys().map(|path| format!("namespace {path}"));
        links.chain(guards).chain(namespaces).collect()
    }
}
