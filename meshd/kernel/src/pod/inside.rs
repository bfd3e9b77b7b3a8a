//! The pod's end of the link: everything here runs on a thread that has entered the pod's network namespace.

use super::{Context, OpError, Result};
use crate::link::wait_operational;
use crate::netlink::{Socket, message};
use crate::{address, neigh, rule, sysctl};
use meshd_model::attachment::MacAddr;
use meshd_model::kernel::{Mark, POD_GATEWAY_V4, POD_GATEWAY_V6, PodLink, Rule, TABLE_MAIN};
use nlink::netlink::route::{Ipv4Route, Ipv6Route, RouteConfig, RouteMetrics};
use nlink::{Connection, Route};
use std::net::IpAddr;

/// Tables in the pod, by the index of an interface that is not its first, and the priority of the rules that ask them.
const SECONDARY_TABLES: u32 = 0x6d73_0000;
const SECONDARY_PRIORITY: u32 = 1000;

/// What the pod's end shall be.
#[derive(Clone, Debug)]
pub(super) struct Inside {
    pub(super) ifname: String,
    pub(super) host_mac: MacAddr,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) mtu: u16,
    /// The default routes of the main table are another interface's.
    pub(super) secondary: bool,
}

impl Inside {
    /// Of this link.
    pub(super) fn of(link: &PodLink) -> Self {
        Self {
            ifname: link.id.ifname.clone(),
            host_mac: link.host_mac,
            addresses: link.addresses.clone(),
            mtu: link.mtu,
            secondary: link.secondary,
        }
    }

    /// Whether the pod has an IPv6 address, and the kernel IPv6.
    pub(super) fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv6) && sysctl::has_ipv6()
    }

    /// Where its default routes are.
    fn table(&self, index: u32) -> u32 {
        match self.secondary {
            true => SECONDARY_TABLES | (index & 0xffff),
            false => TABLE_MAIN,
        }
    }
}

/// What is at an index in the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    ifname: Option<String>,
    /// Index of the other end, in its own namespace.
    peer: Option<u32>,
    kind: Option<String>,
    mac: Option<Vec<u8>>,
}

impl Found {
    /// Whether it is of one pair with the host's end of this index, which names its index.
    pub(super) fn is_other_end_of(&self, host: u32) -> bool {
        self.kind.as_deref() == Some("veth") && self.peer == Some(host)
    }

    /// What somebody in the pod has changed of its end so that it is not the link's any more.
    pub(super) fn difference(&self, link: &PodLink) -> Option<String> {
        let wanted = &link.id.ifname;
        let ifname = self.ifname.as_deref().unwrap_or_default();
        let what = if ifname != wanted {
            format!("it is named {ifname} there, not {wanted}")
        } else if self.mac.as_deref() != Some(&link.mac.0[..]) {
            format!("{wanted} has another MAC there than {}", link.mac)
        } else {
            return None;
        };
        Some(format!(
            "the pod's end of {} was changed in the pod: {what}; change it back, or make the pod anew",
            link.host_ifname
        ))
    }
}

fn connect() -> Result<Connection<Route>> {
    Connection::<Route>::new().doing(|| "open a netlink socket in the pod's network namespace")
}

/// Looks for the interface of this index.
pub(super) async fn find(index: u32) -> Result<Option<Found>> {
    let conn = connect()?;
    let link = conn.get_link_by_index(index).await;
    let link = link.doing(|| format!("look for interface {index} in the pod"))?;
    Ok(link.map(|link| Found {
        ifname: link.name().map(str::to_owned),
        peer: link.link(),
        kind: link.kind().map(str::to_owned),
        mac: link.address().map(<[u8]>::to_vec),
    }))
}

/// Makes the pod's end so; what is so already stays untouched.
pub(super) async fn configure(spec: Inside) -> Result<()> {
    let conn = connect()?;
    let name = &spec.ifname;
    let link = conn.get_link_by_name(name.as_str()).await;
    let link = link
        .doing(|| format!("look for {name} in the pod"))?
        .ok_or_else(|| {
            OpError::new(
                libc::ENODEV,
                format!("{name} is not in the pod's network namespace"),
            )
        })?;
    let index = link.ifindex();

    if spec.has_ipv6() {
        turn_ipv6_on(name)?;
    }
    conn.set_link_up("lo").await.doing(|| "set lo up in the pod")?;
    if link.mtu() != Some(u32::from(spec.mtu)) {
        conn.set_link_mtu_by_index(index, u32::from(spec.mtu))
            .await
            .doing(|| format!("set the MTU of {name} in the pod to {}", spec.mtu))?;
    }
    conn.set_link_up_by_index(index)
        .await
        .doing(|| format!("set {name} up in the pod"))?;
    for &address in &spec.addresses {
        address::set(&conn, index, address)
            .await
            .map_err(|e| e.within(format_args!("in the pod, {name}")))?;
    }
    for family in [
        spec.addresses.iter().find(|a| a.is_ipv4()),
        spec.addresses.iter().find(|a| a.is_ipv6()),
    ] {
        let Some(&address) = family else { continue };
        if spec.secondary {
            answer_by_itself(&conn, index, &spec, address).await?;
        }
        default_route(&conn, index, &spec, address).await?;
    }
    wait_operational(&conn, index, name).await?;
    address::wait_local(&conn, &spec.addresses).await
}

/// Runtimes turn it off in new namespaces.
fn turn_ipv6_on(ifname: &str) -> Result<()> {
    let mut scopes = ["all", "default", "lo", ifname].into_iter();
    scopes.try_for_each(|scope| sysctl::set(&format!("ipv6/conf/{scope}/disable_ipv6"), "0"))
}

/// What the pod sends from this address leaves by this interface, whatever its default routes are: on any other it would
/// be dropped for spoofing, answers to what came in here among it.
async fn answer_by_itself(conn: &Connection<Route>, index: u32, spec: &Inside, source: IpAddr) -> Result<()> {
    let rule = Rule {
        from: source.into(),
        unless_mark: Mark { value: 0, mask: 0 },
        table: spec.table(index),
        priority: SECONDARY_PRIORITY,
    };
    rule::set(conn, &rule).await
}

/// The way out for the family of `source`: the gateway's neighbour entry, an on-link route to it, and the default
/// route through it.
async fn default_route(conn: &Connection<Route>, index: u32, spec: &Inside, source: IpAddr) -> Result<()> {
    let table = spec.table(index);
    let mtu = || RouteMetrics::new().mtu(u32::from(spec.mtu));
    match source {
        IpAddr::V4(source) => {
            neigh::set(conn, index, POD_GATEWAY_V4.into(), spec.host_mac).await?;
            let out = |route: Ipv4Route| route.dev_index(index).table(table).prefsrc(source);
            let gateway = || out(Ipv4Route::from_addr(POD_GATEWAY_V4, 32));
            set_route(
                conn,
                index,
                spec,
                (Some(POD_GATEWAY_V4.into()), POD_GATEWAY_V4.into()),
                gateway,
            )
            .await?;
            let default = || out(Ipv4Route::default_route().gateway(POD_GATEWAY_V4));
            let default = || default().onlink().metrics(mtu());
            set_route(conn, index, spec, (None, POD_GATEWAY_V4.into()), default).await
        }
        IpAddr::V6(_) => {
            neigh::set(conn, index, POD_GATEWAY_V6.into(), spec.host_mac).await?;
            let out = |route: Ipv6Route| route.dev_index(index).table(table);
            let gateway = || out(Ipv6Route::from_addr(POD_GATEWAY_V6, 128));
            set_route(
                conn,
                index,
                spec,
                (Some(POD_GATEWAY_V6.into()), POD_GATEWAY_V6.into()),
                gateway,
            )
            .await?;
            let default = || out(Ipv6Route::default_route().gateway(POD_GATEWAY_V6));
            let default = || default().onlink().metrics(mtu());
            set_route(conn, index, spec, (None, POD_GATEWAY_V6.into()), default).await
        }
    }
}

/// Adds a route to `dst`, or the default route, or replaces one out of this very interface. One out of another is another
/// plugin's.
async fn set_route<R: RouteConfig>(
    conn: &Connection<Route>,
    index: u32,
    spec: &Inside,
    (dst, gateway): (Option<IpAddr>, IpAddr),
    route: impl Fn() -> R,
) -> Result<()> {
    let what = || format!("add the default route through {} in the pod", spec.ifname);
    let taken = match conn.add_route(route()).await {
        Err(e) if e.is_already_exists() => e,
        done => return done.doing(what),
    };
    let mut is_own = false;
    let look = |body: &[u8]| is_own |= message::leads(body, dst, spec.table(index), index);
    Socket::open()?.dump(message::dump_routes(gateway), "list routes in the pod", look)?;
    if is_own {
        return conn.replace_route(route()).await.doing(what);
    }
    // Without the error's number, which would say that the interface is taken.
    Err(OpError::plain(format!(
        "cannot {}: {taken}: another interface has it; hand meshd the other plugin's prevResult",
        what()
    )))
}
