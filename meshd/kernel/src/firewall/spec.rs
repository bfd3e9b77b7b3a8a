//! The table as meshd writes it. Pure: what is written and what is compared with come from the same functions.
//!
//! ```text
//! table inet meshd {
//!   comment "meshd 4"
//!   set pods4 { type ifname . ether_addr . ipv4_addr; elements = { "mshp1" . 02:.. . 10.244.1.2 } }
//!   set pods6 { type ifname . ether_addr . ipv6_addr }
//!   chain ingress {                      # before conntrack joins fragments, whatever interface each came by
//!     type filter hook prerouting priority -450; policy accept;
//!     iifname "mshp*" goto from_pod
//!     iifname "lo" accept
//!     iifname "wg0" accept
//!     ip6 saddr ::ffff:0.0.0.0/96 drop   # a pod's IPv4 address in IPv6 dress
//!     ip saddr 10.244.0.0/16 counter drop
//!     ip daddr 10.244.0.0/16 counter drop  # and the same for each of the cluster's pod CIDRs
//!   }
//!   chain quoted {                       # whole packets, before any translation
//!     type filter hook prerouting priority raw; policy accept;
//!     iifname "mshp*" accept             # and lo, and wg0
//!     icmp type 3-12 except 8, quoting a packet from or to 10.244.0.0/16: counter drop  # and so on
//!   }
//!   chain forward {
//!     type filter hook forward priority filter + 10; policy accept;  # after kube-proxy's reject
//!     iifname "mshp*" tcp flags syn tcp option maxseg size set rt mtu  # and oifname, and both of wg0
//!     oifname "mshp*" accept
//!     oifname "wg0" accept
//!     iifname "mshp*" ct direction original ip daddr 169.254.169.254 counter drop  # and whatever else pods are refused
//!     iifname "wg0" ct direction original ip daddr 169.254.169.254 counter drop
//!     iifname "wg0" ct state established,related accept  # this node is nobody's way to somewhere else
//!     iifname "wg0" ct status dnat accept
//!     iifname "wg0" counter drop
//!   }
//!   chain masquerade {                   # the world outside sees the node's address
//!     type nat hook postrouting priority srcnat; policy accept;
//!     oifname "mshp*" accept
//!     oifname "wg0" accept
//!     ip daddr 10.244.0.0/16 accept      # never to a pod's address; and so on
//!     iifname "mshp*" ip saddr 10.244.0.0/16 counter masquerade fully-random
//!   }
//!   chain egress {                       # after SNAT: what still has a pod's address was not translated
//!     type filter hook postrouting priority 300; policy accept;
//!     oifname "wg0" meta mark & 0x10000000 == 0x10000000 counter drop  # the device's own packets
//!     oifname "mshp*" accept
//!     oifname "lo" accept
//!     oifname "wg0" accept
//!     ip saddr 10.244.0.0/16 counter drop
//!     ip daddr 10.244.0.0/16 counter drop  # and so on
//!     icmp type 3-12 except 8, quoting ..  # an error goes to a node's own address, and carries 548 bytes of payload
//!   }
//!   chain from_pod {
//!     ip daddr 127.0.0.0/8 counter drop  # services of the host's own; portmap turns route_localnet on for a hostPort
//!     iifname . ether saddr . ip saddr @pods4 accept
//!     iifname . ether saddr . ip6 saddr @pods6 accept
//!     ip6 saddr fe80::/10 drop           # what a stack says of itself when it comes up: no spoofing, not counted
//!     ip6 saddr :: drop
//!     counter drop
//!   }
//! }
//! ```
//!
//! The CIDRs are written into the rules and not into a set: the kernel chooses a chain's rules once for a packet, but
//! an element's generation anew at each look-up. A packet that is half way through the old rules when they are replaced
//! then finds the old set empty, and passed (tried).

use super::outside;
use crate::error::{Context, Result};
use ipnetwork::IpNetwork;
use meshd_model::kernel::{Firewall, POD_IFNAME_PREFIX};
use nlink::netlink::nftables::{
    BaseChain, Chain, ChainName, CmpOp, Expr, Family, Field, FilterHook, LookupExpr, Match, MetaKey, NatHook,
    PayloadBase, Policy, Priority, Register, RuleSpec, Set, SetKeyType, Stmt, Value, Verdict,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Name of the table.
pub(crate) const TABLE: &str = "meshd";
pub(super) const FAMILY: Family = Family::Inet;
/// The table's comment. The number rises when sets or chains change: then the table is made anew.
pub(super) const COMMENT: &str = "meshd 4";

pub(super) const PODS4: &str = "pods4";
pub(super) const PODS6: &str = "pods6";

pub(super) const INGRESS: &str = "ingress";
pub(super) const QUOTED: &str = "quoted";
pub(super) const EGRESS: &str = "egress";
pub(super) const FROM_POD: &str = "from_pod";
pub(super) const FORWARD: &str = "forward";
pub(super) const MASQUERADE: &str = "masquerade";
pub(super) const CHAINS: [&str; 6] = [FROM_POD, INGRESS, QUOTED, EGRESS, FORWARD, MASQUERADE];

/// `TYPE_IFNAME` of nft's datatypes.
const TYPE_IFNAME: u32 = 41;
const IFNAMSIZ: u32 = 16;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// `IPPROTO_ICMP` and `IPPROTO_ICMPV6`, and what both have before the packet that they quote.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const ICMP_HEADER: u32 = 8;
/// `ARPHRD_ETHER`
const ETHERNET: u16 = 1;

/// The sets, empty.
pub(super) fn sets() -> [Set; 2] {
    let pod = |address| SetKeyType::Concat(vec![ifname_type(), SetKeyType::EtherAddr, address]);
    let set = |name| Set::new(TABLE, name).family(FAMILY);
    [
        set(PODS4).key_type(pod(SetKeyType::Ipv4Addr)),
        set(PODS6).key_type(pod(SetKeyType::Ipv6Addr)),
    ]
}

/// The sets and the length of their keys: name, MAC with padding, address.
pub(super) const KEY_LENGTHS: [(&str, u32); 2] = [(PODS4, 16 + 8 + 4), (PODS6, 16 + 8 + 16)];

fn ifname_type() -> SetKeyType {
    SetKeyType::Other {
        type_id: TYPE_IFNAME,
        len: IFNAMSIZ,
    }
}

/// The chains, in the order in which they can be made.
pub(super) fn chains() -> Result<Vec<Chain>> {
    let base = |hook, priority| BaseChain::filter(hook, priority).policy(Policy::Accept);
    Ok(vec![
        chain(FROM_POD)?,
        chain(INGRESS)?.base(base(FilterHook::Prerouting, Priority::Custom(INGRESS_PRIORITY))),
        chain(QUOTED)?.base(base(FilterHook::Prerouting, Priority::Custom(QUOTED_PRIORITY))),
        chain(EGRESS)?.base(base(FilterHook::Postrouting, Priority::Custom(EGRESS_PRIORITY))),
        chain(FORWARD)?.base(base(
            FilterHook::Forward,
            Priority::Custom(outside::FORWARD_PRIORITY),
        )),
        chain(MASQUERADE)?.base(
            BaseChain::nat(
                NatHook::Postrouting,
                Priority::Custom(outside::MASQUERADE_PRIORITY),
            )
            .policy(Policy::Accept),
        ),
    ])
}

/// Before conntrack joins fragments (-400). It tells them by addresses and number, not by interface: one that is checked
/// only afterwards has come into the packet of whoever sent the first.
pub(super) const INGRESS_PRIORITY: i32 = -450;
/// `raw`: before conntrack (-200), and behind where fragments are joined, of which the first need not have all that an
/// error quotes.
pub(super) const QUOTED_PRIORITY: i32 = -300;
/// After source NAT (100).
pub(super) const EGRESS_PRIORITY: i32 = 300;

fn chain(name: &str) -> Result<Chain> {
    let chain = Chain::new(TABLE, name).doing(|| format!("name chain {name}"))?;
    Ok(chain.family(FAMILY))
}

/// The rules, chain by chain, each in the order in which they are asked.
pub(super) fn rules(firewall: &Firewall) -> Result<Vec<(&'static str, RuleSpec)>> {
    let device = firewall.device.as_str();
    let from_pod = ChainName::new(FROM_POD).doing(|| format!("name chain {FROM_POD}"))?;
    let pods = || Value::NamePrefix(POD_IFNAME_PREFIX.to_owned());

    let mut rules = vec![
        (FROM_POD, loopback()),
        (FROM_POD, known_pod(PODS4, IPV4, 12, 4)),
        (FROM_POD, known_pod(PODS6, IPV6, 8, 16)),
        (FROM_POD, drop_source(Value::Prefix(LINK_LOCAL, 10))),
        (FROM_POD, drop_source(Value::Addr(Ipv6Addr::UNSPECIFIED.into()))),
        (FROM_POD, RuleSpec::new().then(Stmt::Counter).then(Verdict::Drop)),
        (
            INGRESS,
            when(Field::Iifname, pods()).then(Verdict::GotoTo(from_pod)),
        ),
        (INGRESS, when(Field::Iifname, "lo".into()).then(Verdict::Accept)),
        (INGRESS, when(Field::Iifname, device.into()).then(Verdict::Accept)),
        // A dual-stack socket takes it for the IPv4 address; the kernel lets UDP from there in.
        (INGRESS, drop_source(Value::Prefix(MAPPED, 96))),
        (EGRESS, own_packet(firewall)),
        (EGRESS, when(Field::Oifname, pods()).then(Verdict::Accept)),
        (EGRESS, when(Field::Oifname, "lo".into()).then(Verdict::Accept)),
        (EGRESS, when(Field::Oifname, device.into()).then(Verdict::Accept)),
    ];
    let inside = [pods(), "lo".into(), device.into()];
    rules.extend(inside.map(|name| (QUOTED, when(Field::Iifname, name).then(Verdict::Accept))));
    for (chain, quoting) in [(INGRESS, QUOTED), (EGRESS, EGRESS)] {
        for cidr in &firewall.pod_cidrs {
            let (source, destination) = match cidr {
                IpNetwork::V4(_) => (Field::Ip4Saddr, Field::Ip4Daddr),
                IpNetwork::V6(_) => (Field::Ip6Saddr, Field::Ip6Daddr),
            };
            for field in [source, destination] {
                let rule = RuleSpec::new().then(within(field, *cidr));
                rules.push((chain, rule.then(Stmt::Counter).then(Verdict::Drop)));
            }
            for address in [Quoted::Source, Quoted::Destination] {
                rules.push((quoting, quotes(*cidr, address)));
            }
        }
    }
    rules.extend(outside::rules(firewall));
    Ok(rules)
}

/// The kernel takes no packet for 127.0.0.0/8 off a wire, unless `route_localnet` is set on the interface: the portmap
/// plugin sets it on that of a pod with a hostPort.
fn loopback() -> RuleSpec {
    when(
        Field::Ip4Daddr,
        Value::Prefix(Ipv4Addr::new(127, 0, 0, 0).into(), 8),
    )
    .then(Stmt::Counter)
    .then(Verdict::Drop)
}

/// What the device has sealed and sent does not go into it again: it would seal its own output without end.
fn own_packet(firewall: &Firewall) -> RuleSpec {
    let mark = Value::Masked {
        value: firewall.mark.value.into(),
        mask: firewall.mark.mask.into(),
    };
    let into_device = when(Field::Oifname, firewall.device.as_str().into());
    into_device
        .then(matches(Field::Mark, mark))
        .then(Stmt::Counter)
        .then(Verdict::Drop)
}

/// Which address of the packet that an ICMP error quotes.
#[derive(Clone, Copy)]
enum Quoted {
    Source,
    Destination,
}

/// Drops an ICMP error about a packet from or to these addresses. A packet that came encrypted from a node's own
/// address to a pod that is gone is answered to that address, outside of the tunnel, with the packet's beginning in
/// it. The other way round nobody on the underlay has seen such a packet, so the error is forged. What was translated
/// quotes the translated addresses when it is seen here: conntrack sees to that before and after us.
fn quotes(cidr: IpNetwork, address: Quoted) -> RuleSpec {
    let (nfproto, protocol, addresses, len) = match cidr {
        IpNetwork::V4(_) => (IPV4, ICMP, ICMP_HEADER + 12, 4),
        IpNetwork::V6(_) => (IPV6, ICMPV6, ICMP_HEADER + 8, 16),
    };
    let offset = match address {
        Quoted::Source => addresses,
        Quoted::Destination => addresses + len,
    };
    let (network, mask) = match (cidr.network(), cidr.mask()) {
        (IpAddr::V4(network), IpAddr::V4(mask)) => (network.octets().to_vec(), mask.octets().to_vec()),
        (network, mask) => (v6_octets(network), v6_octets(mask)),
    };
    let mut exprs = vec![
        meta(MetaKey::NfProto),
        compare(CmpOp::Eq, vec![nfproto]),
        meta(MetaKey::L4Proto),
        compare(CmpOp::Eq, vec![protocol]),
        load(Register::R0, PayloadBase::Transport, 0, 1),
    ];
    match cidr {
        // Unreachable, quench, redirect, time exceeded, parameter problem: all but echo between 3 and 12.
        IpNetwork::V4(_) => exprs.extend([
            compare(CmpOp::Gte, vec![3]),
            compare(CmpOp::Lte, vec![12]),
            compare(CmpOp::Neq, vec![8]),
        ]),
        IpNetwork::V6(_) => exprs.push(compare(CmpOp::Lt, vec![128])),
    }
    exprs.extend([
        load(Register::R0, PayloadBase::Transport, offset, len),
        Expr::Bitwise {
            sreg: Register::R0,
            dreg: Register::R0,
            len,
            xor: vec![0; mask.len()],
            mask,
        },
        compare(CmpOp::Eq, network),
    ]);
    let rule = exprs.into_iter().fold(RuleSpec::new(), RuleSpec::then);
    rule.then(Stmt::Counter).then(Verdict::Drop)
}

fn v6_octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

const LINK_LOCAL: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0));

/// IPv4 in an IPv6 dress.
const MAPPED: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0));

pub(super) fn when(field: Field, value: Value) -> RuleSpec {
    RuleSpec::new().then(matches(field, value))
}

pub(super) fn matches(field: Field, value: Value) -> Match {
    Match::eq(field, value)
}

pub(super) fn within(field: Field, prefix: IpNetwork) -> Match {
    matches(field, Value::Prefix(prefix.network(), prefix.prefix()))
}

fn drop_source(value: Value) -> RuleSpec {
    when(Field::Ip6Saddr, value).then(Verdict::Drop)
}

/// `iifname . ether saddr . ip saddr @set accept`. Spelled out in registers: four words for the name, two for the
/// MAC, the rest for the address.
fn known_pod(set: &str, nfproto: u8, offset: u32, len: u32) -> RuleSpec {
    let is = |data| compare(CmpOp::Eq, data);
    let exprs = [
        meta(MetaKey::IifType),
        is(ETHERNET.to_ne_bytes().to_vec()),
        meta(MetaKey::NfProto),
        is(vec![nfproto]),
        meta(MetaKey::IifName),
        load(Register::R1, PayloadBase::LinkLayer, 6, 6),
        load(Register::Reg32_06, PayloadBase::Network, offset, len),
        LookupExpr::new(set, Register::R0).into(),
    ];
    exprs
        .into_iter()
        .fold(RuleSpec::new(), RuleSpec::then)
        .then(Verdict::Accept)
}

fn meta(key: MetaKey) -> Expr {
    let dreg = Register::R0;
    Expr::Meta { dreg, key }
}

fn load(dreg: Register, base: PayloadBase, offset: u32, len: u32) -> Expr {
    Expr::Payload {
        dreg,
        base,
        offset,
        len,
    }
}

fn compare(op: CmpOp, data: Vec<u8>) -> Expr {
    let sreg = Register::R0;
    Expr::Cmp { sreg, op, data }
}
