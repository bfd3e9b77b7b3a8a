//! Takes off the node what the driver has put there, whoever asked for it and whenever.
//!
//! What keeps pods' packets from leaving in the clear goes last, so that at no moment a pod is connected without it.

use crate::config::DriverConfig;
use crate::error::{Context, OpError, Result, gone_is_done};
use crate::{address, device, firewall, observe, route, rule};
use meshd_model::kernel::{DeviceKind, POD_IFNAME_PREFIX, Route as OwnRoute, RouteTarget};
use nlink::netlink::messages::LinkMessage;
use nlink::{Connection, Nftables, Route};

/// What came of a teardown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Teardown {
    /// What was removed, one line each, in order.
    pub removed: Vec<String>,
    /// What could not be removed, and what to do, one line each. Empty if nothing of meshd is left in force.
    pub failed: Vec<String>,
}

impl Teardown {
    fn note(&mut self, what: impl Into<String>, done: Result<bool>) {
        match done {
            Ok(true) => self.removed.push(what.into()),
            Ok(false) => {}
            Err(e) => self.failed.push(e.message),
        }
    }
}

/// Removes pods' links (only with `force`; without it, nothing is touched where there are any), rules, routes, the
/// tunnel device and the firewall table. Goes on past failures. Kernel parameters under `/proc/sys` stay as they are:
/// nobody knows who else relies on them by now.
///
/// A userspace device loses its key, its peers and its addresses; its interface goes where no process holds it.
pub async fn teardown(config: &DriverConfig, force: bool) -> Teardown {
    let mut report = Teardown::default();
    if let Err(e) = run(config, force, &mut report).await {
        report.failed.push(e.message);
    }
    report
}

async fn run(config: &DriverConfig, force: bool, report: &mut Teardown) -> Result<()> {
    let conn = Connection::<Route>::new().doing(|| "open a netlink socket")?;
    let nft = Connection::<Nftables>::new().doing(|| "open a netfilter socket")?;
    let links = conn.get_links().await.doing(|| "list interfaces")?;
    let is_pods = |l: &&LinkMessage| l.name().is_some_and(|n| n.starts_with(POD_IFNAME_PREFIX));
    let pods: Vec<_> = links.iter().filter(is_pods).collect();
    if !pods.is_empty() && !force {
        let message = format!(
            "{} pods are still attached, so nothing was removed: delete them first, or take their network with --force",
            pods.len()
        );
        return Err(OpError::plain(message));
    }
    for pod in pods {
        let name = pod.name().unwrap_or_default();
        let deleted = gone_is_done(conn.del_link_by_index(pod.ifindex()).await);
        let deleted = deleted.doing(|| format!("delete interface {name}"));
        report.note(format!("interface {name}"), deleted.map(|()| true));
    }
    match rule::remove_all(&conn).await {
        Ok(removed) => report.removed.extend(removed),
        Err(e) => report.failed.push(e.message),
    }
    remove_routes(&conn, report, |route| {
        matches!(route.target, RouteTarget::Device { .. })
    })
    .await;
    if let Some(link) = links.iter().find(|l| l.name() == Some(&config.device)) {
        remove_device(&conn, config, link, report).await;
    }
    remove_routes(&conn, report, |_| true).await;
    match firewall::forward::remove(&nft).await {
        Ok(removed) => report.removed.extend(removed),
        Err(e) => report.failed.push(e.message),
    }
    let removed = firewall::remove(&nft).await;
    report.note("nftables table inet meshd", removed);
    Ok(())
}

async fn remove_routes(conn: &Connection<Route>, report: &mut Teardown, which: impl Fn(&OwnRoute) -> bool) {
    let routes = match observe::own_routes(conn).await {
        Ok(routes) => routes,
        Err(e) => return report.failed.push(e.message),
    };
    for found in routes.iter().filter(|r| which(r)) {
        let removed = route::remove(conn, found).await;
        report.note(format!("route {}", route::show(found)), removed.map(|()| true));
    }
}

async fn remove_device(
    conn: &Connection<Route>,
    config: &DriverConfig,
    link: &LinkMessage,
    report: &mut Teardown,
) {
    let (name, index) = (&config.device, link.ifindex());
    let delete = async || {
        let deleted = gone_is_done(conn.del_link_by_index(index).await);
        deleted
            .map(|()| true)
            .doing(|| format!("delete interface {name}"))
    };
    match (device::kind_of(link.kind()), link.kind()) {
        (DeviceKind::Kernel, _) => report.note(format!("interface {name}"), delete().await),
        (DeviceKind::Userspace, Some("tun")) => match device::clear(config).await {
            Ok(()) => {
                let stripped = strip(conn, name, index).await;
                report.note(
                    format!("key, peers and addresses of {name}; meshd-wg has the interface, which goes with `meshd-wg --delete {name}` once it is stopped"),
                    stripped.map(|()| true),
                );
            }
            // Nobody holds it.
            Err(e) if matches!(e.errno, Some(libc::ENOENT | libc::ECONNREFUSED)) => {
                report.note(format!("interface {name}"), delete().await);
            }
            Err(e) => report.failed.push(e.message),
        },
        (DeviceKind::Userspace, kind) => report.failed.push(format!(
            "interface {name} is of kind {}, no WireGuard device, and is left alone: remove it by hand if it is meshd's",
            kind.unwrap_or("unknown")
        )),
    }
}

/// Takes the addresses off, and sets the interface down.
async fn strip(conn: &Connection<Route>, name: &str, index: u32) -> Result<()> {
    let addresses = conn.get_addresses().await.doing(|| "list addresses")?;
    let own = addresses.iter().filter(|a| a.ifindex() == index);
    for (ip, prefix) in own.filter_map(device::global) {
        address::remove(conn, index, ip, prefix).await?;
    }
    let down = conn.set_link_down_by_index(index).await;
    down.doing(|| format!("set {name} down"))
}
