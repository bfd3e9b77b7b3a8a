//! The part of a node's kernel that meshd owns: what is desired of it, and what was observed.
//!
//! ```text
//! Firewall     one nftables table: fail closed, no spoofing
//! Device       the WireGuard interface, its key, its overlay addresses
//!   Peer       one a remote node
//! Route, Rule  to the peers' pods, to the peers' own addresses, unreachable for the rest of the pod CIDRs
//! PodLink      one an attachment: veth pair, addresses, routes and neighbours on both ends
//! ```

use crate::attachment::{AttachmentId, MacAddr};
use crate::key::{KeyHandle, PublicKey};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::time::Wall;

/// Longest name of a network interface, in bytes (IFNAMSIZ less its terminator).
pub const IFNAME_MAX: usize = 15;
/// Every host end of a pod's veth pair is named with this prefix, and no other interface of ours is.
pub const POD_IFNAME_PREFIX: &str = "mshp";
/// `rtm_protocol` of every route that meshd installs: what carries another number is never touched.
pub const ROUTE_PROTOCOL: u8 = 109;
/// The gateway that every pod's IPv4 default route names. No interface carries it: the pod has a permanent
/// neighbour entry for it that leads to the host's end.
pub const POD_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6.
pub const POD_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Metric of the unreachable routes: behind every route that leads somewhere.
pub const UNREACHABLE_METRIC: u32 = 0xffff_fffe;
/// Main routing table (RT_TABLE_MAIN).
pub const TABLE_MAIN: u32 = 254;

/// Bits of a packet's mark that are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// Value under the mask.
    pub value: u32,
    /// Which bits are ours; others belong to kube-proxy and the like.
    pub mask: u32,
}

/// The fail-closed rules, and what pods reach outside of the cluster. `pod_cidrs` is the whole cluster's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firewall {
    /// No packet with such a source or destination leaves or enters through anything but `device`, a pod's veth
    /// or loopback.
    pub pod_cidrs: BTreeSet<IpNetwork>,
    /// The WireGuard interface.
    pub device: String,
    /// Mark of the device's own packets: what carries it does not enter the device again.
    pub mark: Mark,
    /// What pods reach outside of the cluster.
    pub outside: Outside,
}

/// The world outside of the cluster, as this node's pods see it: whatever is reached neither through the tunnel nor
/// in a pod of this node nor at the node itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    /// Whether what pods send there leaves with the node's address. Otherwise it is dropped, unless something else on
    /// the node translates it.
    pub masquerade: bool,
    /// Destinations there that pods do not reach, canonical, whoever translates.
    pub refused: BTreeSet<IpNetwork>,
}

/// A chain of another tool's at the kernel's forward hook that drops what no rule of it accepts. What our own rules
/// accept is asked there all the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ForwardChain {
    /// `ip`, `ip6` or `inet`.
    pub family: String,
    /// Its nftables table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Whether it accepts what comes from and goes to pods and the tunnel.
    pub passes: bool,
}

impl ForwardChain {
    /// Table and chain that iptables makes, in `ip` and `ip6`.
    pub const IPTABLES: (&str, &str) = ("filter", "FORWARD");

    /// Whether it is iptables' FORWARD chain: the one of others' chains into which meshd may put rules.
    #[must_use]
    pub fn is_iptables(&self) -> bool {
        self.family != "inet" && (self.table.as_str(), self.chain.as_str()) == Self::IPTABLES
    }
}

impl fmt::Display for ForwardChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.chain)
    }
}

/// The WireGuard interface as desired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Interface name.
    pub name: String,
    /// Which private key it holds.
    pub key: KeyHandle,
    /// That key's public half, to compare with what is observed.
    pub public_key: PublicKey,
    /// UDP port.
    pub listen_port: u16,
    /// Mark of the device's own UDP packets.
    pub fwmark: u32,
    /// In bytes.
    pub mtu: u16,
    /// The overlay addresses, /32 and /128; set with `nodad`.
    pub addresses: BTreeSet<IpAddr>,
}

/// A WireGuard peer as desired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its key.
    pub public_key: PublicKey,
    /// Where its device listens; None leaves it where it was last heard.
    pub endpoint: Option<SocketAddr>,
    /// Cryptokey routing, canonical; replaces what the peer had.
    pub allowed_ips: BTreeSet<IpNetwork>,
    /// Seconds between keepalives, for nodes behind NAT.
    pub keepalive: Option<u16>,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RouteTarget {
    /// Out of an interface, on link.
    Device {
        /// Its name.
        name: String,
        /// Preferred source of the node's own packets.
        src: IpAddr,
        /// Path MTU, in bytes.
        mtu: u16,
    },
    /// Nowhere: the sender gets an ICMP error.
    Unreachable,
}

/// A route that meshd owns (protocol [`ROUTE_PROTOCOL`]).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Route {
    /// Destination, canonical.
    pub dst: IpNetwork,
    /// Routing table.
    pub table: u32,
    /// Metric (priority); a lower one wins.
    pub metric: u32,
    /// Where to.
    pub target: RouteTarget,
}

/// A policy rule that meshd owns: `from SRC not fwmark VALUE/MASK lookup TABLE`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// Source prefix, canonical.
    pub from: IpNetwork,
    /// Packets with this mark are exempt: the device's own.
    pub unless_mark: Mark,
    /// Table to look in.
    pub table: u32,
    /// Priority; a lower one is asked first.
    pub priority: u32,
}

/// A pod's veth pair as desired: made straight in the pod's namespace, MACs given, addresses `nodad`, default
/// routes through [`POD_GATEWAY_V4`] and [`POD_GATEWAY_V6`] with permanent neighbours, on the host a route and a
/// permanent neighbour for each of the pod's addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLink {
    /// Whose it is.
    pub id: AttachmentId,
    /// Path of the pod's network namespace.
    pub netns: String,
    /// Name of the host's end.
    pub host_ifname: String,
    /// MAC of the host's end.
    pub host_mac: MacAddr,
    /// MAC of the pod's end.
    pub mac: MacAddr,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The node's overlay addresses: `src` of the host's routes to the pod, so that ICMP errors carry one.
    pub host_addresses: Vec<IpAddr>,
    /// In bytes, both ends.
    pub mtu: u16,
    /// The pod's default routes are another interface's: see [`crate::Lease::secondary`].
    #[serde(default)]
    pub secondary: bool,
}

/// What was observed of the parts that meshd owns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelState {
    /// The table, where it is there and as meshd writes it.
    pub firewall: Option<Firewall>,
    /// Other tools' chains that drop what is forwarded, unless a rule accepts it.
    pub forward_chains: BTreeSet<ForwardChain>,
    /// The WireGuard interface.
    pub device: Option<DeviceState>,
    /// Its peers.
    pub peers: BTreeMap<PublicKey, PeerState>,
    /// Routes with our protocol number, but not those of pods' links.
    pub routes: BTreeSet<Route>,
    /// Rules with our priority.
    pub rules: BTreeSet<Rule>,
    /// Interfaces whose name has [`POD_IFNAME_PREFIX`], by name.
    pub pod_links: BTreeMap<String, PodLinkState>,
    /// Addresses of the other interfaces that are up, loopback left out.
    pub underlay: Vec<UnderlayAddress>,
}

/// What carries the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The kernel's WireGuard.
    Kernel,
    /// A `meshd-wg` process, or another that speaks the cross-platform userspace protocol.
    Userspace,
}

/// The WireGuard interface as observed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// What it is.
    pub kind: DeviceKind,
    /// None while it has no private key.
    pub public_key: Option<PublicKey>,
    /// UDP port; 0 while it has none.
    pub listen_port: u16,
    /// Mark of its own packets; 0 for none.
    pub fwmark: u32,
    /// In bytes.
    pub mtu: u16,
    /// Global addresses on it.
    pub addresses: BTreeSet<IpAddr>,
    /// Whether it is up.
    pub up: bool,
    /// Whether the node forwards packets, and filters on the device by reverse path, as meshd has set it.
    pub forwards: bool,
    /// Whether it is of a kind that the configuration allows: false from a change of `wireguard.mode` until the other
    /// device has taken over.
    #[serde(default = "yes")]
    pub as_chosen: bool,
}

fn yes() -> bool {
    true
}

/// The interface that a new device has until it takes over the name of the old one, while a node changes from the
/// kernel's WireGuard to the userspace device or back. `meshd-wg` makes it where the kernel's device has the name.
#[must_use]
pub fn standby_name(device: &str) -> String {
    beside(device, "~n")
}

/// The interface that the old device has from then until it is deleted.
#[must_use]
pub fn aside_name(device: &str) -> String {
    beside(device, "~o")
}

fn beside(device: &str, suffix: &str) -> String {
    let mut end = device.len().min(IFNAME_MAX - suffix.len());
    while !device.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &device[..end])
}

/// A peer as observed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerState {
    /// Where it was last heard, or as configured.
    pub endpoint: Option<SocketAddr>,
    /// Cryptokey routing.
    pub allowed_ips: BTreeSet<IpNetwork>,
    /// Keepalive in seconds.
    pub keepalive: Option<u16>,
    /// When the last handshake was completed.
    pub last_handshake: Option<Wall>,
    /// Bytes received, as WireGuard counts them.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// The host's end of a pod's veth pair as observed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLinkState {
    /// MAC of the host's end.
    pub host_mac: MacAddr,
    /// In bytes.
    pub mtu: u16,
    /// Up, with carrier: the other end is there and up.
    pub up: bool,
    /// Addresses that the host routes to it.
    pub addresses: BTreeSet<IpAddr>,
    /// Whether the rules against spoofing know its MAC and all of its addresses.
    pub guarded: bool,
}

/// An address of the node on an interface that is not ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnderlayAddress {
    /// The address.
    pub address: IpAddr,
    /// Interface name.
    pub ifname: String,
    /// The interface's MTU, in bytes.
    pub mtu: u32,
    /// Whether a default route of either family leads out of the interface.
    #[serde(default)]
    pub default_route: bool,
    /// Whether the address is not one to be reached at: an IPv6 address that is temporary (RFC 8981), or one of either
    /// family that is deprecated, still tentative, or somebody else's too (RFC 4862, section 5.4).
    #[serde(default)]
    pub passing: bool,
}
