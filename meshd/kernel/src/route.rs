//! Routes of meshd's own protocol number; all others are left alone.

use crate::error::{Context, OpError, Result, gone_is_done};
use crate::foreign::Foreign;
use ipnetwork::IpNetwork;
use meshd_model::kernel::{ROUTE_PROTOCOL, Route as Wanted, RouteTarget};
use nlink::netlink::messages::RouteMessage;
use nlink::netlink::route::{Ipv4Route, Ipv6Route, RouteMetrics};
use nlink::netlink::types::route::{RouteProtocol, RouteType};
use nlink::{Connection, Route};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

/// `RT_TABLE_LOCAL` and what nlink reads for routes that the kernel keeps for itself are never ours.
const OURS: u8 = ROUTE_PROTOCOL;

/// A route ready to be sent.
enum Config {
    V4(Ipv4Route),
    V6(Ipv6Route),
}

/// Adds the route, replacing one of ours to the same destination in the same table with the same metric.
pub(crate) async fn set(conn: &Connection<Route>, foreign: &mut Foreign, route: &Wanted) -> Result<()> {
    let ifindex = device_index(conn, route).await?;
    let added = match config(route, ifindex) {
        Config::V4(r) => conn.add_route(r).await,
        Config::V6(r) => conn.add_route(r).await,
    };
    let what = || format!("add route {}", show(route));
    match added {
        Err(e) if e.is_already_exists() => {}
        done => return done.doing(what).map_err(|e| hint(e, route)),
    }
    refuse_foreign(conn, foreign, route).await?;
    let replaced = match config(route, ifindex) {
        Config::V4(r) => conn.replace_route(r).await,
        Config::V6(r) => conn.replace_route(r).await,
    };
    replaced.doing(what).map_err(|e| hint(e, route))
}

/// Removes the route if it is ours.
pub(crate) async fn remove(conn: &Connection<Route>, route: &Wanted) -> Result<()> {
    let ifindex = match device_index(conn, route).await {
        // With its device the route went too.
        Err(e) if e.errno == Some(libc::ENODEV) => return Ok(()),
        other => other?,
    };
    let removed = match config(route, ifindex) {
        Config::V4(r) => conn.del_route(r).await,
        Config::V6(r) => conn.del_route(r).await,
    };
    gone_is_done(removed).doing(|| format!("remove route {}", show(route)))
}

/// Reads ours back; those to pods' links, by interface, apart.
pub(crate) fn read(
    routes: &[RouteMessage],
    names: &HashMap<u32, String>,
) -> (Vec<Wanted>, BTreeMap<String, Vec<IpAddr>>) {
    let mut own = Vec::new();
    let mut pods: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for message in routes
        .iter()
        .filter(|r| r.protocol() == RouteProtocol::from(OURS))
    {
        let Some(route) = parse(message, names) else {
            continue;
        };
        match &route.target {
            RouteTarget::Device { name, .. } if name.starts_with(meshd_model::kernel::POD_IFNAME_PREFIX) => {
                pods.entry(name.clone()).or_default().push(route.dst.ip());
            }
            _ => own.push(route),
        }
    }
    (own, pods)
}

/// Interfaces, by index, that a default route of the main table leads out of. One with several next hops is left out:
/// nothing tells which of them a packet takes.
pub(crate) fn default_routes(routes: &[RouteMessage]) -> HashSet<u32> {
    let leads_out = |r: &&RouteMessage| {
        r.dst_len() == 0
            && r.table_id() == meshd_model::kernel::TABLE_MAIN
            && r.route_type() == RouteType::Unicast
    };
    routes
        .iter()
        .filter(leads_out)
        .filter_map(RouteMessage::oif)
        .collect()
}

fn parse(message: &RouteMessage, names: &HashMap<u32, String>) -> Option<Wanted> {
    let any = if message.is_ipv4() {
        IpAddr::from([0; 4])
    } else {
        IpAddr::from([0; 16])
    };
    let target = match message.route_type() {
        RouteType::Unreachable => RouteTarget::Unreachable,
        RouteType::Unicast => RouteTarget::Device {
            name: names.get(&message.oif()?)?.clone(),
            src: message.prefsrc().copied().unwrap_or(any),
            mtu: message.metrics().and_then(mtu_of).unwrap_or(0),
        },
        _ => return None,
    };
    Some(Wanted {
        dst: IpNetwork::new(message.destination().copied().unwrap_or(any), message.dst_len()).ok()?,
        table: message.table_id(),
        metric: message.priority().unwrap_or(0),
        target,
    })
}

fn mtu_of(metrics: &RouteMetrics) -> Option<u16> {
    metrics.mtu.and_then(|mtu| u16::try_from(mtu).ok())
}

async fn device_index(conn: &Connection<Route>, route: &Wanted) -> Result<Option<u32>> {
    let RouteTarget::Device { name, .. } = &route.target else {
        return Ok(None);
    };
    let link = conn.get_link_by_name(name.as_str()).await;
    let link = link.doing(|| format!("look for {name}"))?;
    let missing = || {
        OpError::new(
            libc::ENODEV,
            format!("route {}: there is no interface {name}", show(route)),
        )
    };
    link.map(|l| Some(l.ifindex())).ok_or_else(missing)
}

fn config(route: &Wanted, ifindex: Option<u32>) -> Config {
    let kind = match route.target {
        RouteTarget::Unreachable => RouteType::Unreachable,
        RouteTarget::Device { .. } => RouteType::Unicast,
    };
    let (src, mtu) = match route.target {
        RouteTarget::Device { src, mtu, .. } => (Some(src), Some(RouteMetrics::new().mtu(u32::from(mtu)))),
        RouteTarget::Unreachable => (None, None),
    };
    match route.dst {
        IpNetwork::V4(dst) => {
            let mut r = Ipv4Route::from_addr(dst.network(), dst.prefix())
                .protocol(RouteProtocol::from(OURS))
                .route_type(kind)
                .table(route.table)
                .metric(route.metric);
            if let Some(index) = ifindex {
                r = r.dev_index(index);
            }
            if let (Some(IpAddr::V4(src)), Some(mtu)) = (src, mtu) {
                r = r.prefsrc(src).metrics(mtu);
            }
            Config::V4(r)
        }
        IpNetwork::V6(dst) => {
            let mut r = Ipv6Route::from_addr(dst.network(), dst.prefix())
                .protocol(RouteProtocol::from(OURS))
                .route_type(kind)
                .table(route.table)
                .metric(route.metric);
            if let Some(index) = ifindex {
                r = r.dev_index(index);
            }
            if let (Some(IpAddr::V6(src)), Some(mtu)) = (src, mtu) {
                r = r.prefsrc(src).metrics(mtu);
            }
            Config::V6(r)
        }
    }
}

/// A route of somebody else's in the same place is theirs: replacing it would take it from them.
async fn refuse_foreign(conn: &Connection<Route>, foreign: &mut Foreign, route: &Wanted) -> Result<()> {
    let Some(protocol) = foreign.in_place_of(conn, route).await? else {
        return Ok(());
    };
    let message = format!(
        "cannot add route {}: there is one of protocol {protocol} already; remove it or give meshd another table",
        show(route),
    );
    Err(OpError::new(libc::EEXIST, message))
}

fn hint(e: OpError, route: &Wanted) -> OpError {
    match (&route.target, e.errno) {
        (RouteTarget::Device { name, src, .. }, Some(libc::EINVAL)) => {
            e.remedy(format_args!("is {src} on the node, and {name} up?"))
        }
        _ => e,
    }
}

/// As `ip route` shows it.
pub(crate) fn show(route: &Wanted) -> String {
    let Wanted {
        dst,
        table,
        metric,
        target,
    } = route;
    match target {
        RouteTarget::Unreachable => format!("unreachable {dst} table {table} metric {metric}"),
        RouteTarget::Device { name, src, mtu } => {
            format!("{dst} dev {name} src {src} table {table} metric {metric} mtu {mtu}")
        }
    }
}
