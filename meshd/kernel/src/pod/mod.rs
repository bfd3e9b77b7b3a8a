//! Pods' links: a veth pair, its far end made straight in the pod's network namespace.

mod check;
mod fresh;
mod host;
mod inside;
mod remover;

pub use check::differences;
pub use host::obstacle;
pub(crate) use remover::{Doomed, Outcome, Remover};

use crate::entrant::Entrant;
use crate::error::{Context, OpError, Result, gone_is_done, is_gone};
use crate::firewall::Guards;
use crate::netlink::message::{self, Link};
use crate::netlink::{Batch, Socket};
use crate::netns::Netns;
use fresh::Made;
use inside::Inside;
use meshd_model::kernel::{POD_IFNAME_PREFIX, PodLink};
use nlink::{Connection, Route};

/// What it takes to make pods' links and to cut them off.
pub(crate) struct Hands<'a> {
    pub(crate) conn: &'a Connection<Route>,
    pub(crate) socket: &'a Socket,
    pub(crate) entrant: &'a mut Entrant,
    pub(crate) guards: Guards<'a>,
}

/// Makes the pod's link so. Where that fails, what was made for it is taken down again.
pub(crate) async fn attach(hands: &mut Hands<'_>, link: &PodLink) -> Result<()> {
    check(link)?;
    let netns = Netns::open(&link.netns)?;
    if netns.is_ours()? {
        let message = format!(
            "{} is the node's own network namespace: give the pod's",
            link.netns
        );
        return Err(OpError::new(libc::EINVAL, message));
    }
    let done = attach_to(hands, &netns, link).await;
    done.map_err(not_the_namespace)
        .map_err(|e| e.within(format_args!("attach {}", link.id)))
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

async fn attach_to(hands: &mut Hands<'_>, netns: &Netns, link: &PodLink) -> Result<()> {
    hands.guards.set(link).await?;
    // Where that fails nothing was made, and what is there may be a running pod's.
    let (was_there, done) = match make(hands, netns, link).await? {
        Made::Whole => return Ok(()),
        Made::Pair { index, was_there } => (was_there, mend(hands.conn, netns, link, index).await),
        Made::Nothing => {
            // The first failure is the one to report.
            let _ = hands.guards.remove(&link.host_ifname).await;
            return Err(is_taken(link));
        }
    };
    if done.is_err() && !was_there {
        let _ = delete(hands.socket, &link.host_ifname);
        let _ = hands.guards.remove(&link.host_ifname).await;
    }
    done
}

/// Makes the pair where it is not there: all of it in one go where nothing is in the way.
async fn make(hands: &mut Hands<'_>, netns: &Netns, link: &PodLink) -> Result<Made> {
    match fresh::make(hands.socket, hands.entrant, netns, link)? {
        Made::Nothing => {}
        made => return Ok(made),
    }
    if let Some(index) = existing(hands, netns, link).await? {
        return Ok(Made::Pair {
            index,
            was_there: true,
        });
    }
    fresh::make(hands.socket, hands.entrant, netns, link)
}

fn is_taken(link: &PodLink) -> OpError {
    let ifname = &link.id.ifname;
    let message = format!("cannot {}: File exists", fresh::what_is_made(link));
    let taken = OpError::new(libc::EEXIST, message);
    taken.remedy(format_args!("the pod has an interface {ifname} that is not ours"))
}

/// Makes everything but the pair so, step by step.
async fn mend(conn: &Connection<Route>, netns: &Netns, link: &PodLink, index: u32) -> Result<()> {
    host::configure(conn, index, link).await?;
    let inside = Inside::of(link);
    netns.run(move || inside::configure(inside)).await?;
    host::routes(conn, index, link).await
}

/// Cuts the pod off: routes and entries. Goes on past a failure and tells the first.
pub(crate) async fn detach(hands: &mut Hands<'_>, link: &PodLink) -> Result<()> {
    check(link)?;
    let routes = remove_routes(hands.socket, link);
    let done = hands.guards.remove(&link.host_ifname).await.and(routes);
    done.map_err(|e| e.within(format_args!("detach {}", link.id)))
}

fn remove_routes(socket: &Socket, link: &PodLink) -> Result<()> {
    let name = &link.host_ifname;
    let mut batch = Batch::default();
    batch.push(message::look(name), format!("look for {name}"));
    let found = match socket.execute(&batch)?.take(0) {
        Err(e) if is_gone(e.errno) => return Ok(()),
        other => other?.and_then(|body| Link::read(&body)),
    };
    let Some(found) = found else { return Ok(()) };
    let mut batch = Batch::default();
    for &address in &link.addresses {
        let route = fresh::to_pod(found.index, link, address);
        batch.push(route.remove(), format!("remove the route to {address} by {name}"));
    }
    if link.addresses.is_empty() {
        return Ok(());
    }
    let mut answers = socket.execute(&batch)?;
    let removed = (0..link.addresses.len()).map(|place| answers.take(place).map(drop));
    let removed: Vec<_> = removed.collect();
    removed.into_iter().try_for_each(gone_is_done)
}

/// Takes what is left of the entries of a link that is about to be deleted.
pub(crate) async fn forget(guards: &mut Guards<'_>, link: &PodLink) -> Result<()> {
    check(link)?;
    let done = guards.remove(&link.host_ifname).await;
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

/// Deletes the link; that it is gone already is success.
fn delete(socket: &Socket, name: &str) -> Result<()> {
    let mut batch = Batch::default();
    batch.push(message::delete(name), format!("delete interface {name}"));
    gone_is_done(socket.execute(&batch)?.all())
}

/// Finds out what is there: the index of the host's end, if it is a pair with the pod's. A host's end whose other end is
/// not in the pod is of no use to anybody (its name is ours alone) and is removed. One whose other end somebody in the pod
/// has renamed or given another MAC carries a running pod's packets, and no pair could be made in its place.
async fn existing(hands: &Hands<'_>, netns: &Netns, link: &PodLink) -> Result<Option<u32>> {
    let host = hands.conn.get_link_by_name(link.host_ifname.as_str()).await;
    let host = host.doing(|| format!("look for {}", link.host_ifname))?;
    let Some(host) = host else {
        return Ok(None);
    };
    let far = match host.link().filter(|_| host.kind() == Some("veth")) {
        Some(index) => netns.run(move || inside::find(index)).await?,
        None => None,
    };
    let Some(far) = far.filter(|far| far.is_other_end_of(host.ifindex())) else {
        delete(hands.socket, &link.host_ifname)?;
        return Ok(None);
    };
    if let Some(differs) = far.difference(link) {
        host::configure(hands.conn, host.ifindex(), link).await?;
        host::routes(hands.conn, host.ifindex(), link).await?;
        return Err(OpError::plain(differs));
    }
    Ok(Some(host.ifindex()))
}
