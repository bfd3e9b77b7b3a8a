//! The usual case, a pod of which nothing is there yet: its link is made in a few system calls, each with many messages.
//!
//! ```text
//! host   make the pair, its host's end without a link-local address and up    one call
//! pod    lo and the pod's end up, addresses, gateways, default routes         one call
//! host   neighbours and routes to the pod                                     one call
//! pod    does the kernel take packets to the IPv6 address?                    mostly one call
//! ```
//!
//! What fails here, but for the pair itself, is left to the steps that mend a link: they know what to do about each thing
//! that can be in the way, and say what cannot be mended.

use super::host;
use super::inside::Inside;
use crate::entrant::Entrant;
use crate::error::{OpError, Result};
use crate::netlink::message::{self, Link, RouteTo};
use crate::netlink::veth::{self, End};
use crate::netlink::{Batch, Socket};
use crate::netns::Netns;
use meshd_model::kernel::{POD_GATEWAY_V4, POD_GATEWAY_V6, PodLink, ROUTE_PROTOCOL};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;

/// How long the local route of an IPv6 address is waited for here: tries, and the first pause, which doubles. The kernel
/// makes it in the background, mostly before it is asked for.
const TRIES: u32 = 7;
const FIRST_PAUSE: Duration = Duration::from_micros(30);

/// What came of it.
#[derive(Debug)]
pub(super) enum Made {
    /// All of it is so.
    Whole,
    /// The pair is there, with this index of the host's end; more is to be done.
    Pair {
        index: u32,
        /// Before it was to be made.
        was_there: bool,
    },
    /// Nothing was made: something of this name is there, on the host or in the pod.
    Nothing,
}

/// Makes the link. An error says that nothing was made.
pub(super) fn make(socket: &Socket, entrant: &mut Entrant, netns: &Netns, link: &PodLink) -> Result<Made> {
    let (host, done) = match pair(socket, netns, link) {
        Ok(made) => made,
        Err(e) if e.errno == Some(libc::EEXIST) => return Ok(Made::Nothing),
        Err(e) => return Err(e),
    };
    match done.and_then(|()| finish(socket, entrant, netns, link, &host)) {
        Ok(true) => return Ok(Made::Whole),
        Ok(false) => {}
        Err(e) => tracing::warn!("the link of {} could not be made in one go: {e}", link.id),
    }
    Ok(Made::Pair {
        index: host.index,
        was_there: false,
    })
}

/// Makes the pair, and the host's end so; what came of the latter is given beside it.
fn pair(socket: &Socket, netns: &Netns, link: &PodLink) -> Result<(Link, Result<()>)> {
    let name = link.host_ifname.as_str();
    let mut batch = Batch::default();
    let host = End {
        name,
        mac: link.host_mac,
    };
    let pod = End {
        name: &link.id.ifname,
        mac: link.mac,
    };
    batch.push(
        veth::create(&host, &pod, netns.as_fd(), link.mtu),
        what_is_made(link),
    );
    let quiet = host::carries_ipv6(link);
    batch.push(
        message::parameters(name, &host::numbered(), quiet),
        format!("set the parameters of {name}"),
    );
    batch.push(message::up(name), format!("set {name} up"));
    batch.push(message::look(name), format!("look for {name}"));
    let mut answers = socket.execute(&batch)?;
    answers.take(0)?;
    match answers.take(3).map(|body| body.and_then(|b| Link::read(&b))) {
        Ok(Some(found)) => Ok((found, answers.all())),
        looked => {
            // Nobody else has it yet.
            let _ = super::delete(socket, name);
            let gone = || OpError::new(libc::ENODEV, format!("{name} is gone right after it was made"));
            Err(looked.err().unwrap_or_else(gone))
        }
    }
}

pub(super) fn what_is_made(link: &PodLink) -> String {
    let (name, ifname) = (&link.host_ifname, &link.id.ifname);
    format!("create veth {name} with its end {ifname} in {}", link.netns)
}

/// Everything but the pair; whether all of it is so.
fn finish(
    socket: &Socket,
    entrant: &mut Entrant,
    netns: &Netns,
    link: &PodLink,
    host: &Link,
) -> Result<bool> {
    // Rules and a table of its own are for the steps that mend.
    let Some(index) = host.peer.filter(|_| !link.secondary) else {
        return Ok(false);
    };
    host::ipv6_sysctls(link, host.ipv6.as_ref())?;
    let inside = Inside::of(link);
    let pod = entrant.run(netns, move || {
        let socket = Socket::open()?;
        let is_up = fill(&socket, index, &inside)?;
        Ok((socket, is_up))
    })?;
    let (pod, is_up) = pod;
    Ok(is_up && lead(socket, host.index, link)? && is_reachable(&pod, &link.addresses)?)
}

/// The pod's end, as [`super::inside::configure`] makes it; whether it carries packets. It does not where the runtime has turned
/// IPv6 off.
fn fill(socket: &Socket, index: u32, spec: &Inside) -> Result<bool> {
    let name = &spec.ifname;
    let mut batch = Batch::default();
    batch.push(message::up("lo"), "set lo up in the pod");
    batch.push(message::up(name), format!("set {name} up in the pod"));
    // Before the addresses: on an interface that the kernel takes for one without carrier they would have to wait.
    batch.push(message::look(name), format!("look for {name} in the pod"));
    batch.push(message::look("lo"), "look for lo in the pod");
    for &address in &spec.addresses {
        let what = format!("add address {address} to {name} in the pod");
        batch.push(message::address(index, address), what);
    }
    let first = |is_v4: bool| spec.addresses.iter().copied().find(|a| a.is_ipv4() == is_v4);
    for (gateway, source) in [
        (IpAddr::V4(POD_GATEWAY_V4), first(true)),
        (IpAddr::V6(POD_GATEWAY_V6), first(false)),
    ] {
        let Some(source) = source else { continue };
        let what = format!("add the default route through {name} in the pod");
        batch.push(message::neighbour(index, gateway, spec.host_mac), what.as_str());
        let to = RouteTo {
            dst: Some(gateway),
            gateway: None,
            source: Some(source).filter(|s| s.is_ipv4()),
            index,
            mtu: None,
            protocol: message::BOOT,
        };
        batch.push(to.add(), what.as_str());
        let default = RouteTo {
            dst: None,
            gateway: Some(gateway),
            mtu: Some(spec.mtu),
            ..to
        };
        batch.push(default.add(), what);
    }
    let mut answers = socket.execute(&batch)?;
    let mut link = |place| Ok(answers.take(place)?.and_then(|body| Link::read(&body)));
    let (found, lo) = (link(2)?, link(3)?);
    // The end has what `default` says, so that is 0 as well.
    if spec.has_ipv6() && [&found, &lo].into_iter().any(|link| !carries_ipv6(link.as_ref())) {
        return Ok(false);
    }
    answers.all()?;
    Ok(found.is_some_and(|l| l.operational))
}

fn carries_ipv6(link: Option<&Link>) -> bool {
    let parameters = link.and_then(|link| link.ipv6);
    parameters.is_some_and(|p| p[message::DISABLE_IPV6] == 0)
}

/// The neighbours and routes that lead to the pod; whether the host's end carries packets.
fn lead(socket: &Socket, index: u32, link: &PodLink) -> Result<bool> {
    let name = link.host_ifname.as_str();
    let mut batch = Batch::default();
    batch.push(message::look(name), format!("look for {name}"));
    for &address in &link.addresses {
        let what = format!("set the neighbour entry of {address} on {name}");
        batch.push(message::neighbour(index, address, link.mac), what);
        let what = format!("route {address} to {name}");
        batch.push(to_pod(index, link, address).set(), what);
    }
    let mut answers = socket.execute(&batch)?;
    let found = answers.take(0)?.and_then(|body| Link::read(&body));
    answers.all()?;
    Ok(found.is_some_and(|l| l.operational))
}

/// The host's route to one of the pod's addresses.
pub(super) fn to_pod(index: u32, link: &PodLink, address: IpAddr) -> RouteTo {
    let own = link.host_addresses.iter().copied();
    RouteTo {
        dst: Some(address),
        gateway: None,
        source: own.into_iter().find(|own| own.is_ipv4() == address.is_ipv4()),
        index,
        mtu: None,
        protocol: ROUTE_PROTOCOL,
    }
}

/// Whether the kernel takes packets to the IPv6 addresses, or does within a moment.
fn is_reachable(pod: &Socket, addresses: &[IpAddr]) -> Result<bool> {
    let mut batch = Batch::default();
    for address in addresses.iter().filter(|a| a.is_ipv6()) {
        batch.push(
            message::route_to(*address),
            format!("look for the local route of {address}"),
        );
    }
    let count = addresses.iter().filter(|a| a.is_ipv6()).count();
    if count == 0 {
        return Ok(true);
    }
    for pause in 0..TRIES {
        let mut answers = pod.execute(&batch)?;
        // An address without its route is answered with an error, or with the default route.
        let mut local = (0..count).map(|place| answers.take(place).ok().flatten());
        if local.all(|body| body.is_some_and(|b| message::is_local(&b))) {
            return Ok(true);
        }
        std::thread::sleep(FIRST_PAUSE * 2u32.pow(pause));
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshd_model::AttachmentId;
    use meshd_model::attachment::MacAddr;
    use nix::sched::{CloneFlags, unshare};

    /// In namespaces of its own: a node's, with the address that routes have as source, and a pod's.
    fn made() -> std::result::Result<(Made, Made), String> {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| format!("unshare: {e}"))?;
        let pod = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            std::fs::File::open("/proc/thread-self/ns/net").unwrap()
        });
        let pod = pod.join().unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&pod));
        let own = ["10.244.1.1", "fd00:244:0:1::1"].map(|a| a.parse::<IpAddr>().unwrap());
        let socket = Socket::open().unwrap();
        let mut batch = Batch::default();
        batch.push(message::up("lo"), "set lo up");
        for address in own {
            batch.push(message::address(1, address), "add an address");
        }
        socket.execute(&batch).unwrap().all().unwrap();
        let link = PodLink {
            id: AttachmentId {
                container_id: "c".into(),
                ifname: "eth0".into(),
            },
            netns: path.clone(),
            host_ifname: "mshp2".into(),
            host_mac: MacAddr([2, 0, 0, 0, 1, 2]),
            mac: MacAddr([2, 0, 0, 0, 2, 2]),
            addresses: ["10.244.1.2", "fd00:244:0:1::2"]
                .map(|a| a.parse().unwrap())
                .to_vec(),
            host_addresses: own.to_vec(),
            mtu: 1420,
            secondary: false,
        };
        let netns = Netns::open(&path).unwrap();
        let mut entrant = Entrant::default();
        let first = make(&socket, &mut entrant, &netns, &link).unwrap();
        Ok((first, make(&socket, &mut entrant, &netns, &link).unwrap()))
    }

    /// What fails would be mended step by step, so that nobody would notice but by the time it takes.
    #[test]
    fn a_new_pods_link_is_made_whole_in_one_go() {
        match std::thread::spawn(made).join().unwrap() {
            Ok((first, again)) => {
                assert!(matches!(first, Made::Whole), "{first:?}");
                assert!(matches!(again, Made::Nothing), "{again:?}");
            }
            Err(e) => meshd_skip::skip_on(
                "netns",
                "a_new_pods_link_is_made_whole_in_one_go",
                format_args!("{e}"),
            ),
        }
    }
}
