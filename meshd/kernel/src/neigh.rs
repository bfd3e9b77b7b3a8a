//! Permanent neighbour entries: nobody needs to ask who has an address.

use crate::error::{Context, Result};
use meshd_model::attachment::MacAddr;
use nlink::netlink::neigh::Neighbor;
use nlink::{Connection, Route};
use std::net::IpAddr;

/// Makes `address` be at `mac` behind the interface, for good.
pub(crate) async fn set(conn: &Connection<Route>, ifindex: u32, address: IpAddr, mac: MacAddr) -> Result<()> {
    let entry = Neighbor::with_index(ifindex, address).lladdr(mac.0).permanent();
    conn.replace_neighbor(entry)
        .await
        .doing(|| format!("set the neighbour entry of {address} on interface {ifindex}"))
}
