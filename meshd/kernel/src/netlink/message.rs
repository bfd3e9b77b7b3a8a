//! rtnetlink messages (linux/rtnetlink.h, linux/if_link.h), and what is read of the answers.

use meshd_model::attachment::MacAddr;
use meshd_model::net::host;
use nlink::netlink::MessageBuilder;
use std::net::IpAddr;

pub(super) const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
const GETROUTE: u16 = 26;
const NEWNEIGH: u16 = 28;

const REQUEST: u16 = 1;
pub(super) const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const REPLACE: u16 = 0x100;
pub(super) const EXCL: u16 = 0x200;
pub(super) const CREATE: u16 = 0x400;

const IFF_UP: u32 = 1;
pub(super) const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_EXT_MASK: u16 = 29;
/// `RTEXT_FILTER_SKIP_STATS`
const SKIP_STATS: u32 = 8;
/// `IF_OPER_UP`
const OPER_UP: u8 = 6;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_CONF: u16 = 2;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
/// `IN6_ADDR_GEN_MODE_NONE`
const GEN_NONE: u8 = 1;

const NUD_PERMANENT: u16 = 0x80;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// `IFA_F_NODAD` and `IFA_F_NOPREFIXROUTE`
const NODAD_NO_ROUTE: u32 = 0x02 | 0x200;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTAX_MTU: u16 = 2;
const TABLE_MAIN: u8 = 254;
/// `RT_SCOPE_LINK`
const SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTNH_F_ONLINK: u32 = 4;
/// `RTM_F_FIB_MATCH`: the route itself, not what follows for one packet.
const FIB_MATCH: u32 = 0x2000;
/// `RTPROT_BOOT`: what routes of a pod's own have.
pub(crate) const BOOT: u8 = 3;

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// `struct ifinfomsg`
pub(super) fn link(kind: u16, flags: u16, index: u32, up: bool) -> MessageBuilder {
    let mut message = MessageBuilder::new(kind, REQUEST | flags);
    let bits = if up { IFF_UP } else { 0 }.to_ne_bytes();
    message.append_bytes(&[0; 4]);
    message.append_bytes(&index.to_ne_bytes());
    message.append_bytes(&bits);
    message.append_bytes(&bits);
    message
}

/// Sets the link of this name up.
pub(crate) fn up(name: &str) -> MessageBuilder {
    let mut message = link(NEWLINK, ACK, 0, true);
    message.append_attr_str(IFLA_IFNAME, name);
    message
}

/// Sets parameters of the link of this name, by their numbers in linux/ip.h (`IPV4_DEVCONF_*`), and with `quiet` keeps it
/// without a link-local address.
pub(crate) fn parameters(name: &str, ipv4: &[(u16, u32)], quiet: bool) -> MessageBuilder {
    let mut message = link(NEWLINK, ACK, 0, false);
    message.append_attr_str(IFLA_IFNAME, name);
    let spec = message.nest_start(IFLA_AF_SPEC);
    let inet = message.nest_start(u16::from(AF_INET));
    let conf = message.nest_start(IFLA_INET_CONF);
    for (key, value) in ipv4 {
        message.append_attr_u32(*key, *value);
    }
    message.nest_end(conf);
    message.nest_end(inet);
    if quiet {
        let inet6 = message.nest_start(u16::from(AF_INET6));
        message.append_attr_u8(IFLA_INET6_ADDR_GEN_MODE, GEN_NONE);
        message.nest_end(inet6);
    }
    message.nest_end(spec);
    message
}

/// Puts the link of this name into a group, for [`delete_group`].
pub(crate) fn set_group(name: &str, group: u32) -> MessageBuilder {
    let mut message = link(NEWLINK, ACK, 0, false);
    message.append_attr_str(IFLA_IFNAME, name);
    message.append_attr_u32(IFLA_GROUP, group);
    message
}

/// Deletes the link of this name.
pub(crate) fn delete(name: &str) -> MessageBuilder {
    let mut message = link(DELLINK, ACK, 0, false);
    message.append_attr_str(IFLA_IFNAME, name);
    message
}

/// Deletes every link of a group, which takes the kernel hardly longer than one.
pub(crate) fn delete_group(group: u32) -> MessageBuilder {
    let mut message = link(DELLINK, ACK, 0, false);
    message.append_attr_u32(IFLA_GROUP, group);
    message
}

/// Looks at the link of this name; answered with a [`Link`]. From Linux 6.13 on the kernel takes in a change of carrier
/// first that it has not come to yet.
pub(crate) fn look(name: &str) -> MessageBuilder {
    let mut message = link(GETLINK, 0, 0, false);
    message.append_attr_str(IFLA_IFNAME, name);
    message.append_attr_u32(IFLA_EXT_MASK, SKIP_STATS);
    message
}

/// Asks for all links.
pub(crate) fn dump_links() -> MessageBuilder {
    let mut message = link(GETLINK, DUMP, 0, false);
    message.append_attr_u32(IFLA_EXT_MASK, SKIP_STATS);
    message
}

/// Parameters of IPv6 of an interface (`net/ipv6/conf/NAME`), by their places in the kernel's array: `DEVCONF_*` of
/// linux/ipv6.h.
pub(crate) type Ipv6Parameters = [i32; IPV6_PARAMETERS];
/// As many as are asked for.
const IPV6_PARAMETERS: usize = 27;
/// `DEVCONF_DISABLE_IPV6`
pub(crate) const DISABLE_IPV6: usize = 26;

/// What is read of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Index of the other end of a pair, in its own namespace.
    pub(crate) peer: Option<u32>,
    pub(crate) group: u32,
    /// Whether it carries packets.
    pub(crate) operational: bool,
    /// None where it has no IPv6.
    pub(crate) ipv6: Option<Ipv6Parameters>,
}

impl Link {
    /// Reads the body of an answer.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        let index = body.get(4..8)?.try_into().ok()?;
        let mut link = Self {
            index: u32::from_ne_bytes(index),
            ..Self::default()
        };
        for (kind, value) in attributes(body.get(16..)?) {
            let word = || value.first_chunk::<4>().map(|w| u32::from_ne_bytes(*w));
            match kind {
                IFLA_IFNAME => {
                    let name = value.strip_suffix(&[0]).unwrap_or(value);
                    link.name = String::from_utf8_lossy(name).into_owned();
                }
                IFLA_LINK => link.peer = word(),
                IFLA_GROUP => link.group = word().unwrap_or_default(),
                IFLA_OPERSTATE => link.operational = value.first() == Some(&OPER_UP),
                IFLA_AF_SPEC => link.ipv6 = ipv6_parameters(value),
                _ => {}
            }
        }
        Some(link)
    }
}

fn ipv6_parameters(spec: &[u8]) -> Option<Ipv6Parameters> {
    let find = |nest, wanted| attributes(nest).find_map(|(kind, value)| (kind == wanted).then_some(value));
    let values = find(find(spec, u16::from(AF_INET6))?, IFLA_INET6_CONF)?;
    let mut found = [0; IPV6_PARAMETERS];
    for (place, parameter) in found.iter_mut().enumerate() {
        *parameter = i32::from_ne_bytes(*values.get(place * 4..)?.first_chunk::<4>()?);
    }
    Some(found)
}

/// Type and value of each attribute.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d] = *bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & 0x3fff, value))
    })
}

/// Adds an address as a host's own, never probed for duplicates.
pub(crate) fn address(index: u32, address: IpAddr) -> MessageBuilder {
    let mut message = MessageBuilder::new(NEWADDR, REQUEST | ACK | CREATE | REPLACE);
    let prefix = host(address).prefix();
    message.append_bytes(&[family(address), prefix, 0, 0]);
    message.append_bytes(&index.to_ne_bytes());
    message.append_attr(IFA_LOCAL, &octets(address));
    message.append_attr(IFA_ADDRESS, &octets(address));
    if address.is_ipv6() {
        message.append_attr_u32(IFA_FLAGS, NODAD_NO_ROUTE);
    }
    message
}

/// A permanent neighbour entry.
pub(crate) fn neighbour(index: u32, address: IpAddr, mac: MacAddr) -> MessageBuilder {
    const NDA_DST: u16 = 1;
    const NDA_LLADDR: u16 = 2;
    let mut message = MessageBuilder::new(NEWNEIGH, REQUEST | ACK | CREATE | REPLACE);
    message.append_bytes(&[family(address), 0, 0, 0]);
    message.append_bytes(&index.to_ne_bytes());
    // State (16 bits), flags and type: nlink's builder pads what it is given to 4 bytes.
    let [a, b] = NUD_PERMANENT.to_ne_bytes();
    message.append_bytes(&[a, b, 0, 0]);
    message.append_attr(NDA_DST, &octets(address));
    message.append_attr(NDA_LLADDR, &mac.0);
    message
}

/// A route of the main table out of an interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RouteTo {
    /// A single address, or everything of the gateway's family where there is none.
    pub(crate) dst: Option<IpAddr>,
    /// Taken to be on the link.
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) source: Option<IpAddr>,
    pub(crate) index: u32,
    pub(crate) mtu: Option<u16>,
    pub(crate) protocol: u8,
}

impl RouteTo {
    /// `struct rtmsg` and the attributes that tell routes apart.
    fn begin(&self, kind: u16, flags: u16, scope: u8) -> MessageBuilder {
        let mut message = MessageBuilder::new(kind, REQUEST | ACK | flags);
        let family = self.dst.or(self.gateway).map_or(0, family);
        let prefix = self.dst.map_or(0, |dst| host(dst).prefix());
        message.append_bytes(&[
            family,
            prefix,
            0,
            0,
            TABLE_MAIN,
            self.protocol,
            scope,
            RTN_UNICAST,
        ]);
        let onlink = if self.gateway.is_some() { RTNH_F_ONLINK } else { 0 };
        message.append_bytes(&onlink.to_ne_bytes());
        if let Some(dst) = self.dst {
            message.append_attr(RTA_DST, &octets(dst));
        }
        message.append_attr_u32(RTA_OIF, self.index);
        message
    }

    /// Adds it, replacing one to the same destination.
    pub(crate) fn set(&self) -> MessageBuilder {
        self.make(REPLACE)
    }

    /// Adds it; EEXIST if there is one to the same destination.
    pub(crate) fn add(&self) -> MessageBuilder {
        self.make(EXCL)
    }

    fn make(&self, how: u16) -> MessageBuilder {
        let is_v4 = self.dst.is_some_and(|d| d.is_ipv4());
        let scope = if is_v4 { SCOPE_LINK } else { 0 };
        let mut message = self.begin(NEWROUTE, CREATE | how, scope);
        for (kind, address) in [(RTA_GATEWAY, self.gateway), (RTA_PREFSRC, self.source)] {
            if let Some(address) = address {
                message.append_attr(kind, &octets(address));
            }
        }
        if let Some(mtu) = self.mtu {
            let metrics = message.nest_start(RTA_METRICS);
            message.append_attr_u32(RTAX_MTU, u32::from(mtu));
            message.nest_end(metrics);
        }
        message
    }

    /// Removes it.
    pub(crate) fn remove(&self) -> MessageBuilder {
        /// `RT_SCOPE_NOWHERE`: of whatever scope.
        const ANY: u8 = 255;
        self.begin(DELROUTE, 0, ANY)
    }
}

/// Asks for all routes of the family of `of`.
pub(crate) fn dump_routes(of: IpAddr) -> MessageBuilder {
    let mut message = MessageBuilder::new(GETROUTE, REQUEST | DUMP);
    message.append_bytes(&[family(of), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    message
}

/// Whether the route of a dump leads to `dst`, or everywhere where that is none, by this table and out of this interface.
pub(crate) fn leads(body: &[u8], dst: Option<IpAddr>, table: u32, index: u32) -> bool {
    const RTA_TABLE: u16 = 15;
    let found = |wanted: u16| {
        let mut all = attributes(body.get(12..).unwrap_or_default());
        all.find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    };
    let word = |kind| {
        found(kind)
            .and_then(<[u8]>::first_chunk::<4>)
            .map(|w| u32::from_ne_bytes(*w))
    };
    let prefix = dst.map_or(0, |dst| host(dst).prefix());
    body.get(1) == Some(&prefix)
        && found(RTA_DST).map(<[u8]>::to_vec) == dst.map(octets)
        && word(RTA_OIF) == Some(index)
        && word(RTA_TABLE) == Some(table)
}

/// Asks by which route the kernel takes packets to the address; answered with what [`is_local`] reads.
pub(crate) fn route_to(address: IpAddr) -> MessageBuilder {
    let mut message = MessageBuilder::new(GETROUTE, REQUEST);
    message.append_bytes(&[family(address), host(address).prefix(), 0, 0, 0, 0, 0, 0]);
    message.append_bytes(&FIB_MATCH.to_ne_bytes());
    message.append_attr(RTA_DST, &octets(address));
    message
}

/// Whether the route of an answer says that the address is the namespace's own.
pub(crate) fn is_local(body: &[u8]) -> bool {
    body.get(7) == Some(&RTN_LOCAL)
}
