//! Addresses of an interface: always /32 and /128, never announced, never probed for duplicates.

use crate::error::{Context, Result, gone_is_done};
use nlink::netlink::addr::{Ipv4Address, Ipv6Address};
use nlink::{Connection, Route};
use std::net::IpAddr;

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
