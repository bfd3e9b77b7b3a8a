//! Other tools' routes, so that none of them is replaced. A table may have thousands, and all of ours may change at one
//! moment (the underlay's MTU does it), so a table is listed once, and again only after somebody else changed a route.

use crate::error::{Context, Result};
use crate::watch::only_from;
use ipnetwork::IpNetwork;
use meshd_model::kernel::{ROUTE_PROTOCOL, Route as Wanted};
use meshd_model::net::canonical;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use nlink::netlink::messages::RouteMessage;
use nlink::netlink::types::route::RouteProtocol;
use nlink::{Connection, Route};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

/// RTNLGRP_IPV4_ROUTE and RTNLGRP_IPV6_ROUTE, as a mask.
const GROUPS: u32 = 1 << (7 - 1) | 1 << (11 - 1);
/// Longest message about one route that is looked at; a longer one is somebody else's.
const MESSAGE_MAX: usize = 4096;
/// More than a socket's queue holds: whoever changes routes as fast as they are read here is not waited for.
const MESSAGES_MAX: usize = 10_000;

/// What is known of them. Meant to be dropped when there is nothing more to set for now: the kernel tells of each route
/// that changes until then.
#[derive(Default)]
pub(crate) struct Foreign {
    /// Open before the first table is listed, so that no change falls between.
    changes: Option<OwnedFd>,
    tables: HashMap<u32, Places>,
}

/// Destination and metric, with whose it is; of several in one place, of which one is enough to keep ours away.
type Places = HashMap<(IpNetwork, u32), u8>;

impl Foreign {
    /// The protocol of the route of somebody else's that is in this one's place.
    pub(crate) async fn in_place_of(
        &mut self,
        conn: &Connection<Route>,
        route: &Wanted,
    ) -> Result<Option<u8>> {
        if self.has_changed(conn.socket().pid())? {
            self.tables.clear();
        }
        let places = match self.tables.entry(route.table) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let there = conn.get_routes_for_table(route.table).await;
                let there = there.doing(|| format!("list routes of table {}", route.table))?;
                unknown.insert(there.iter().filter_map(foreign).collect())
            }
        };
        Ok(places.get(&(canonical(route.dst), route.metric)).copied())
    }

    /// Whether anybody but this socket has changed a route since this was asked last.
    fn has_changed(&mut self, own: u32) -> Result<bool> {
        let Some(changes) = &self.changes else {
            self.changes = Some(listen().doing(|| "listen for changes of routes")?);
            return Ok(true);
        };
        let mut buffer = [0; MESSAGE_MAX];
        let mut has_changed = false;
        for _ in 0..MESSAGES_MAX {
            match recv(changes.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) => has_changed |= !buffer.get(..length).is_some_and(|b| only_from(b, &[own])),
                Err(nix::errno::Errno::EAGAIN) => return Ok(has_changed),
                Err(nix::errno::Errno::EINTR) => {}
                // Some were dropped.
                Err(nix::errno::Errno::ENOBUFS) => has_changed = true,
                Err(e) => return Err(e).doing(|| "read changes of routes"),
            }
        }
        Ok(true)
    }
}

fn listen() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags,
        SockProtocol::NetlinkRoute,
    )?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    Ok(fd)
}

fn foreign(message: &RouteMessage) -> Option<((IpNetwork, u32), u8)> {
    if message.protocol() == RouteProtocol::from(ROUTE_PROTOCOL) {
        return None;
    }
    let any = if message.is_ipv4() {
        IpAddr::from([0; 4])
    } else {
        IpAddr::from([0; 16])
    };
    let dst = IpNetwork::new(message.destination().copied().unwrap_or(any), message.dst_len()).ok()?;
    let place = (canonical(dst), message.priority().unwrap_or(0));
    Some((place, message.protocol().number()))
}
