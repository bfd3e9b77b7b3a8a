//! What both kinds of device have in common: MTU, addresses, parameters, up.

use crate::error::{Context, OpError, Result};
use crate::{address, sysctl};
use meshd_model::kernel::Device;
use nlink::netlink::devconf::AddrGenMode;
use nlink::netlink::messages::AddressMessage;
use nlink::{Connection, Route};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Makes the interface so.
pub(super) async fn configure(conn: &Connection<Route>, device: &Device) -> Result<()> {
    let name = device.name.as_str();
    let link = conn
        .get_link_by_name(name)
        .await
        .doing(|| format!("look for {name}"))?;
    let link = link.ok_or_else(|| OpError::new(libc::ENODEV, format!("interface {name} is gone")))?;
    let index = link.ifindex();
    let ipv6 = sysctl::has_ipv6();

    sysctls(name, ipv6 && carries_ipv6(&device.addresses))?;
    if ipv6 {
        let quiet = conn.set_addr_gen_mode_by_index(index, AddrGenMode::None).await;
        quiet.doing(|| format!("keep {name} without a link-local address"))?;
    }
    if link.mtu() != Some(u32::from(device.mtu)) {
        conn.set_link_mtu_by_index(index, u32::from(device.mtu))
            .await
            .doing(|| format!("set the MTU of {name} to {}", device.mtu))?;
    }
    let new = addresses(conn, index, device).await?;
    conn.set_link_up_by_index(index)
        .await
        .doing(|| format!("set {name} up"))?;
    address::wait_local(conn, &new).await
}

/// New addresses first: there is no moment without one. Gives the new ones.
async fn addresses(conn: &Connection<Route>, index: u32, device: &Device) -> Result<Vec<IpAddr>> {
    let there = conn.get_addresses_by_index(index).await;
    let there = there.doing(|| format!("list the addresses of {}", device.name))?;
    let there: Vec<(IpAddr, u8)> = there.iter().filter_map(global).collect();
    let is_there = |a: &IpAddr| there.contains(&(*a, address::host_prefix(*a)));
    let new: Vec<IpAddr> = device
        .addresses
        .iter()
        .copied()
        .filter(|a| !is_there(a))
        .collect();
    for &address in &new {
        address::set(conn, index, address).await?;
    }
    for (old, prefix) in there {
        if !device.addresses.contains(&old) || prefix != address::host_prefix(old) {
            address::remove(conn, index, old, prefix).await?;
        }
    }
    Ok(new)
}

/// The address and its prefix length, unless it is of a smaller scope than the whole net.
pub(crate) fn global(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    let global = message.scope() == nlink::netlink::types::addr::Scope::Universe;
    let address = message.local().or(message.address()).filter(|_| global)?;
    Some((*address, message.prefix_len()))
}

/// Whether a device with these addresses has IPv6 to forward: a node of an IPv4 cluster is made no router of the other
/// family.
fn carries_ipv6(addresses: &BTreeSet<IpAddr>) -> bool {
    addresses.iter().any(IpAddr::is_ipv6)
}

/// Whether the parameters without which nothing passes are still as [`sysctls`] has set them for a device with these
/// addresses: `sysctl --system` and tools that harden a node turn forwarding off. What cannot be read is taken to be
/// right.
pub(crate) fn forwards(name: &str, addresses: &BTreeSet<IpAddr>) -> bool {
    let is = |key: &str, wanted: &str| sysctl::get(key).map_or(true, |value| value == wanted);
    is("ipv4/ip_forward", "1")
        && is(&format!("ipv4/conf/{name}/forwarding"), "1")
        && is(&format!("ipv4/conf/{name}/rp_filter"), "2")
        && (!carries_ipv6(addresses)
            || is("ipv6/conf/all/forwarding", "1") && is(&format!("ipv6/conf/{name}/forwarding"), "1"))
}

/// Forwarding on, and reverse path filtering loose on the device: a peer's own addresses come in by it and are routed
/// by it for pods only. The larger of `all` and the device is in force, so loose (2) wins over a strict `all`.
fn sysctls(name: &str, ipv6: bool) -> Result<()> {
    sysctl::set("ipv4/ip_forward", "1")?;
    sysctl::set(&format!("ipv4/conf/{name}/forwarding"), "1")?;
    sysctl::set(&format!("ipv4/conf/{name}/rp_filter"), "2")?;
    if !ipv6 {
        return Ok(());
    }
    forward_ipv6()?;
    sysctl::set(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
    sysctl::set(&format!("ipv6/conf/{name}/forwarding"), "1")?;
    sysctl::set(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
    sysctl::set(&format!("ipv6/conf/{name}/accept_dad"), "0")
}

/// A host that forwards ignores router advertisements unless accept_ra is 2: interfaces that take them now go on to.
fn forward_ipv6() -> Result<()> {
    const ALL: &str = "ipv6/conf/all/forwarding";
    if sysctl::get(ALL)? != "0" {
        return Ok(());
    }
    let interfaces = std::fs::read_dir("/proc/sys/net/ipv6/conf").doing(|| "list net/ipv6/conf")?;
    for interface in interfaces.filter_map(std::result::Result::ok) {
        let name = interface.file_name();
        let Some(name) = name.to_str().filter(|n| !matches!(*n, "all" | "default" | "lo")) else {
            continue;
        };
        let key = format!("ipv6/conf/{name}/accept_ra");
        if sysctl::get(&key).is_ok_and(|v| v == "1") {
            sysctl::set(&key, "2")?;
        }
    }
    sysctl::set(ALL, "1")
}
