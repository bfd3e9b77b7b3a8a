//! The host's end of a pod's link.

use super::{Context, Result};
use crate::error::gone_is_done;
use crate::link::wait_operational;
use crate::{neigh, sysctl};
use meshd_model::kernel::{PodLink, ROUTE_PROTOCOL};
use nlink::netlink::devconf::AddrGenMode;
use nlink::netlink::route::{Ipv4Route, Ipv6Route};
use nlink::netlink::types::route::RouteProtocol;
use nlink::{Connection, Route};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Makes the end itself so: MTU, parameters, up.
pub(super) async fn configure(conn: &Connection<Route>, index: u32, link: &PodLink) -> Result<()> {
    let name = &link.host_ifname;
    conn.set_link_mtu_by_index(index, u32::from(link.mtu))
        .await
        .doing(|| format!("set the MTU of {name} to {}", link.mtu))?;
    // No link-local address: the host's end sends nothing of its own.
    let ipv6 = sysctl::has_ipv6();
    if ipv6 {
        let quiet = conn.set_addr_gen_mode_by_index(index, AddrGenMode::None).await;
        quiet.doing(|| format!("keep {name} without a link-local address"))?;
    }
    sysctls(name, ipv6)?;
    conn.set_link_up_by_index(index)
        .await
        .doing(|| format!("set {name} up"))
}

fn sysctls(name: &str, ipv6: bool) -> Result<()> {
    // What comes from the pod is checked by the firewall, MAC included. Loose (2) wins over a strict `all`, because
    // the larger of both is in force.
    sysctl::set(&format!("ipv4/conf/{name}/rp_filter"), "2")?;
    sysctl::set(&format!("ipv4/conf/{name}/forwarding"), "1")?;
    sysctl::set(&format!("ipv4/conf/{name}/proxy_arp"), "0")?;
    sysctl::set(&format!("ipv4/conf/{name}/send_redirects"), "0")?;
    if !ipv6 {
        return Ok(());
    }
    sysctl::set(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
    sysctl::set(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
    sysctl::set(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
    sysctl::set(&format!("ipv6/conf/{name}/proxy_ndp"), "0")?;
    sysctl::set(&format!("ipv6/conf/{name}/forwarding"), "1")
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

/// Removes the routes, for what is left of them.
pub(super) async fn remove_routes(conn: &Connection<Route>, index: u32, link: &PodLink) -> Result<()> {
    for &address in &link.addresses {
        let result = match address {
            IpAddr::V4(v4) => conn.del_route(route_v4(index, v4, None)).await,
            IpAddr::V6(v6) => conn.del_route(route_v6(index, v6, None)).await,
        };
        gone_is_done(result).doing(|| format!("remove the route to {address} by {}", link.host_ifname))?;
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
