//! Pods' links: a veth pair, its far end made straight in the pod's network namespace.

mod host;
mod inside;

pub use host::obstacle;

use crate::error::{Context, OpError, Result, gone_is_done};
use crate::firewall::Guards;
use crate::netns::Netns;
use inside::{Found, Inside};
use meshd_model::kernel::{POD_IFNAME_PREFIX, PodLink};
use nlink::netlink::link::VethLink;
use nlink::netlink::messages::LinkMessage;
use nlink::{Connection, Route};

/// What of a link there is already.
enum Existing {
    Nothing,
    /// The pair, with the index of the host's end.
    Pair(u32),
}

/// Makes the pod's link so. Where that fails, what was made for it is taken down again.
pub(crate) async fn attach(conn: &Connection<Route>, guards: &Guards<'_>, link: &PodLink) -> Result<()> {
    check(link)?;
    let netns = Netns::open(&link.netns)?;
    if netns.is_ours()? {
        let message = format!(
            "{} is the node's own network namespace: give the pod's",
            link.netns
        );
        return Err(OpError::new(libc::EINVAL, message));
    }
    let existing = existing(conn, &netns, link).await?;
    let made = matches!(existing, Existing::Nothing);
    let result = attach_to(conn, guards, &netns, link, existing)
        .await
        .map_err(not_the_namespace);
    if result.is_err() && made {
        // The first failure is the one to report.
        let _ = remove(conn, guards, link).await;
    }
    result.map_err(|e| e.within(format_args!("attach {}", link.id)))
}

/// ENOENT says that the pod's namespace is gone, and that was seen to be there.
fn not_the_namespace(e: OpError) -> OpError {
    let errno = e.errno.map(|errno| {
        if errno == libc::ENOENT {
            libc::ENODEV
        } else {
            errno
        }
    });
    OpError { errno, ..e }
}

async fn attach_to(
    conn: &Connection<Route>,
    guards: &Guards<'_>,
    netns: &Netns,
    link: &PodLink,
    existing: Existing,
) -> Result<()> {
    guards.set(link).await?;
    let index = match existing {
        Existing::Pair(index) => index,
        Existing::Nothing => create(conn, netns, link).await?,
    };
    host::configure(conn, index, link).await?;
    let inside = Inside {
        ifname: link.id.ifname.clone(),
        host_mac: link.host_mac,
        addresses: link.addresses.clone(),
        mtu: link.mtu,
    };
    netns.run(move || inside::configure(inside)).await?;
    host::routes(conn, index, link).await
}

/// Cuts the pod off: routes and entries. Goes on past a failure and tells the first.
pub(crate) async fn detach(conn: &Connection<Route>, guards: &Guards<'_>, link: &PodLink) -> Result<()> {
    check(link)?;
    let found = conn.get_link_by_name(link.host_ifname.as_str()).await;
    let routes = match found.doing(|| format!("look for {}", link.host_ifname)) {
        Ok(None) => Ok(()),
        Ok(Some(found)) => host::remove_routes(conn, found.ifindex(), link).await,
        Err(e) => Err(e),
    };
    let done = guards.remove(&link.host_ifname).await.and(routes);
    done.map_err(|e| e.within(format_args!("detach {}", link.id)))
}

/// Deletes the link and with it its routes, and what is left of its entries.
pub(crate) async fn remove(conn: &Connection<Route>, guards: &Guards<'_>, link: &PodLink) -> Result<()> {
    check(link)?;
    let found = conn.get_link_by_name(link.host_ifname.as_str()).await;
    let deleted = match found.doing(|| format!("look for {}", link.host_ifname)) {
        Ok(None) => Ok(()),
        Ok(Some(found)) => delete(conn, found.ifindex(), &link.host_ifname).await,
        Err(e) => Err(e),
    };
    let done = guards.remove(&link.host_ifname).await.and(deleted);
    done.map_err(|e| e.within(format_args!("delete the link of {}", link.id)))
}

/// Refuses to touch an interface that is not a pod's.
fn check(link: &PodLink) -> Result<()> {
    let name = &link.host_ifname;
    if name.starts_with(POD_IFNAME_PREFIX) && name.len() <= meshd_model::kernel::IFNAME_MAX {
        return Ok(());
    }
    let message = format!("{name} is no name of a pod's link: it has to begin with {POD_IFNAME_PREFIX}");
    Err(OpError::new(libc::EINVAL, message))
}

async fn delete(conn: &Connection<Route>, index: u32, name: &str) -> Result<()> {
    gone_is_done(conn.del_link_by_index(index).await).doing(|| format!("delete interface {name}"))
}

/// Finds out what is there. A host's end whose other end is not the pod's interface is of no use to anybody (its
/// name is ours alone) and is removed.
async fn existing(conn: &Connection<Route>, netns: &Netns, link: &PodLink) -> Result<Existing> {
    let host = conn.get_link_by_name(link.host_ifname.as_str()).await;
    let host = host.doing(|| format!("look for {}", link.host_ifname))?;
    let Some(host) = host else {
        return Ok(Existing::Nothing);
    };
    let ifname = link.id.ifname.clone();
    let inside = netns.run(move || inside::find(ifname)).await?;
    if inside.is_some_and(|inside| is_pair(&host, &inside, link)) {
        return Ok(Existing::Pair(host.ifindex()));
    }
    delete(conn, host.ifindex(), &link.host_ifname).await?;
    Ok(Existing::Nothing)
}

/// Whether these are the two ends of one veth pair, and the pod's has the MAC that it shall have.
fn is_pair(host: &LinkMessage, inside: &Found, link: &PodLink) -> bool {
    host.kind() == Some("veth")
        && inside.kind.as_deref() == Some("veth")
        && host.link() == Some(inside.ifindex)
        && inside.peer == Some(host.ifindex())
        && inside.mac.as_deref() == Some(&link.mac.0[..])
}

async fn create(conn: &Connection<Route>, netns: &Netns, link: &PodLink) -> Result<u32> {
    let (name, ifname) = (link.host_ifname.as_str(), link.id.ifname.as_str());
    let veth = VethLink::new(name, ifname)
        .mtu(u32::from(link.mtu))
        .address(link.host_mac.0)
        .peer_address(link.mac.0)
        .peer_netns_fd(netns);
    let made = conn.add_link(veth).await;
    made.doing(|| format!("create veth {name} with its end {ifname} in {}", link.netns))
        .map_err(|e| match e.errno {
            Some(libc::EEXIST) => {
                e.remedy(format_args!("the pod has an interface {ifname} that is not ours"))
            }
            _ => e,
        })?;
    let made = conn
        .get_link_by_name(name)
        .await
        .doing(|| format!("look for {name}"))?;
    made.map(|l| l.ifindex())
        .ok_or_else(|| OpError::new(libc::ENODEV, format!("{name} is gone right after it was made")))
}
