//! Addresses of an interface: always /32 and /128, never announced, never probed for duplicates.

use crate::error::{Context, OpError, Result, gone_is_done};
use crate::link::{FIRST_PAUSE, PAUSES};
use nlink::netlink::addr::{Ipv4Address, Ipv6Address};
use nlink::netlink::types::route::RouteType;
use nlink::{Connection, Route};
use std::net::IpAddr;
use tokio::time::sleep;

/// `RT_TABLE_LOCAL`
const TABLE_LOCAL: u32 = 255;

/// Length of a host's own prefix.
pub(crate) fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Adds the address where it is not there.
pub(crate) async fn set(conn: &Connection<Route>, ifindex: u32, address: IpAddr) -> Result<()> {
    let result = match address {
        IpAddr::V4(v4) => {
            conn.replace_address(Ipv4Address::with_index(ifindex, v4, 32))
                .await
        }
        IpAddr::V6(v6) => {
            let config = Ipv6Address::with_index(ifindex, v6, 128).nodad().noprefixroute();
            conn.replace_address(config).await
        }
    };
    result.doing(|| format!("add address {address} to interface {ifindex}"))
}

/// Waits until the kernel takes packets to these addresses. It puts the local route of an IPv6 address in place in the
/// background, also without duplicate detection: what arrives before is dropped.
pub(crate) async fn wait_local(conn: &Connection<Route>, addresses: &[IpAddr]) -> Result<()> {
    for pause in 0..=PAUSES {
        let routes = conn.get_routes_for_table(TABLE_LOCAL).await;
        let routes = routes.doing(|| "list local routes")?;
        let is_local = |a: &&IpAddr| {
            let mut local = routes.iter().filter(|r| r.route_type() == RouteType::Local);
            local.any(|r| r.destination() == Some(*a))
        };
        if addresses.iter().filter(|a| a.is_ipv6()).all(|a| is_local(&a)) {
            return Ok(());
        }
        sleep(FIRST_PAUSE * 2u32.pow(pause)).await;
    }
    let message = format!("the kernel does not take packets to {addresses:?}: is IPv6 off on the interface?");
    Err(OpError::new(libc::EADDRNOTAVAIL, message))
}

/// Removes the address.
pub(crate) async fn remove(
    conn: &Connection<Route>,
    ifindex: u32,
    address: IpAddr,
    prefix: u8,
) -> Result<()> {
    gone_is_done(conn.del_address_by_index(ifindex, address, prefix).await)
        .doing(|| format!("remove address {address}/{prefix} from interface {ifindex}"))
}
