//! The host's end of a pod's link.

use super::{Context, Result};
use crate::link::wait_operational;
use crate::netlink::message::{DISABLE_IPV6, Ipv6Parameters};
use crate::{neigh, sysctl};
use meshd_model::kernel::{PodLink, ROUTE_PROTOCOL};
use nlink::netlink::devconf::AddrGenMode;
use nlink::netlink::route::{Ipv4Route, Ipv6Route};
use nlink::netlink::types::route::RouteProtocol;
use nlink::{Connection, Route};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Makes the end itself so: MAC, MTU, parameters, up.
pub(super) async fn configure(conn: &Connection<Route>, index: u32, link: &PodLink) -> Result<()> {
    let name = &link.host_ifname;
    set_mac(conn, index, link).await?;
    conn.set_link_mtu_by_index(index, u32::from(link.mtu))
        .await
        .doing(|| format!("set the MTU of {name} to {}", link.mtu))?;
    // No link-local address: the host's end sends nothing of its own.
    let ipv6 = carries_ipv6(link);
    if ipv6 {
        let quiet = conn.set_addr_gen_mode_by_index(index, AddrGenMode::None).await;
        quiet.doing(|| format!("keep {name} without a link-local address"))?;
    }
    sysctls(name, ipv6)?;
    conn.set_link_up_by_index(index)
        .await
        .doing(|| format!("set {name} up"))
}

/// Whether the kernel has parameters of IPv6 for the end: below the least MTU of IPv6 (RFC 8200) it has none.
pub(super) fn carries_ipv6(link: &PodLink) -> bool {
    const MTU_MIN: u16 = 1280;
    sysctl::has_ipv6() && link.mtu >= MTU_MIN
}

/// Another hand may have changed it. It is set back, and no new pair is made: such a hand gives every new interface a MAC.
async fn set_mac(conn: &Connection<Route>, index: u32, link: &PodLink) -> Result<()> {
    let name = &link.host_ifname;
    let there = conn.get_link_by_index(index).await;
    let there = there.doing(|| format!("look for {name}"))?;
    // To set it takes the neighbour entries away, even if it is the same.
    if there.is_some_and(|l| l.address() == Some(&link.host_mac.0[..])) {
        return Ok(());
    }
    let done = conn.set_link_address_by_index(index, link.host_mac.0).await;
    done.doing(|| format!("set the MAC of {name} to {}", link.host_mac))
}

/// Parameters of the end, under `ipv4/conf/NAME`, and as the kernel numbers them (`IPV4_DEVCONF_*` of linux/ip.h). What comes
/// from the pod is checked by the firewall, MAC included. Loose (2) wins over a strict `all`, because the larger of both is
/// in force. The firewall sees no ARP: it is not answered (8), or a pod with a raw socket would fill the node's neighbour
/// table with senders where somebody turns `rp_filter` off.
const V4: [(&str, u16, u32); 5] = [
    ("rp_filter", 8, 2),
    ("forwarding", 1, 1),
    ("proxy_arp", 3, 0),
    ("send_redirects", 6, 0),
    ("arp_ignore", 19, 8),
];
/// The same under `ipv6/conf/NAME`, by their places in the kernel's array, with the values that will do; the first of them is
/// set. An interface that forwards takes router advertisements in only where accept_ra is 2.
const V6: [(&str, usize, &[i32]); 4] = [
    ("disable_ipv6", DISABLE_IPV6, &[0]),
    ("accept_ra", 3, &[0, 1]),
    ("proxy_ndp", 22, &[0]),
    ("forwarding", 0, &[1]),
];

/// `V4` as a message has them.
pub(super) fn numbered() -> [(u16, u32); V4.len()] {
    V4.map(|(_, number, value)| (number, value))
}

/// Sets those of IPv6 that are not so in what the kernel has told: there are no messages to set them, and a file of a new
/// interface takes the kernel long to open where there are many pods.
pub(super) fn ipv6_sysctls(link: &PodLink, there: Option<&Ipv6Parameters>) -> Result<()> {
    let will_do = |there: &Ipv6Parameters| {
        V6.iter()
            .all(|(_, place, values)| values.contains(&there[*place]))
    };
    if !carries_ipv6(link) || there.is_some_and(will_do) {
        return Ok(());
    }
    sysctls(&link.host_ifname, true)
}

/// Names of parameters, and the values that will do, the one to set first.
fn parameters(name: &str, ipv6: bool) -> impl Iterator<Item = (String, Vec<String>)> {
    let v4 = V4
        .iter()
        .map(move |(key, _, value)| (format!("ipv4/conf/{name}/{key}"), vec![value.to_string()]));
    let v6 = V6.iter().filter(move |_| ipv6).map(move |(key, _, values)| {
        let values = values.iter().map(ToString::to_string).collect();
        (format!("ipv6/conf/{name}/{key}"), values)
    });
    v4.chain(v6)
}

fn sysctls(name: &str, ipv6: bool) -> Result<()> {
    parameters(name, ipv6).try_for_each(|(key, values)| sysctl::set_one_of(&key, &values))
}

/// Why no end of a pod's link could be made as it must be: a parameter that differs where interfaces begin, and cannot
/// be written. None if all can be, or need not be.
#[must_use]
pub fn obstacle() -> Option<String> {
    let differs = |key: &str, wanted: &[String]| sysctl::get(key).is_ok_and(|value| !wanted.contains(&value));
    let (key, _) = parameters("default", sysctl::has_ipv6()).find(|(key, wanted)| differs(key, wanted))?;
    sysctl::refused(&key)
}

/// The neighbour entries and routes that lead to the pod. Only now do packets reach it.
pub(super) async fn routes(conn: &Connection<Route>, index: u32, link: &PodLink) -> Result<()> {
    wait_operational(conn, index, &link.host_ifname).await?;
    for &address in &link.addresses {
        neigh::set(conn, index, address, link.mac).await?;
        let src = source_for(address, &link.host_addresses);
        let result = match address {
            IpAddr::V4(v4) => conn.replace_route(route_v4(index, v4, src)).await,
            IpAddr::V6(v6) => conn.replace_route(route_v6(index, v6, src)).await,
        };
        result
            .doing(|| format!("route {address} to {}", link.host_ifname))
            .map_err(|e| match (e.errno, src) {
                (Some(libc::EINVAL), Some(src)) => e.remedy(format_args!("is {src} on the device already?")),
                _ => e,
            })?;
    }
    Ok(())
}

fn source_for(address: IpAddr, own: &[IpAddr]) -> Option<IpAddr> {
    own.iter().copied().find(|own| own.is_ipv4() == address.is_ipv4())
}

fn route_v4(index: u32, dst: Ipv4Addr, src: Option<IpAddr>) -> Ipv4Route {
    let route = Ipv4Route::from_addr(dst, 32)
        .dev_index(index)
        .protocol(RouteProtocol::from(ROUTE_PROTOCOL));
    match src {
        Some(IpAddr::V4(src)) => route.prefsrc(src),
        _ => route,
    }
}

fn route_v6(index: u32, dst: Ipv6Addr, src: Option<IpAddr>) -> Ipv6Route {
    let route = Ipv6Route::from_addr(dst, 128)
        .dev_index(index)
        .protocol(RouteProtocol::from(ROUTE_PROTOCOL));
    match src {
        Some(IpAddr::V6(src)) => route.prefsrc(src),
        _ => route,
    }
}
