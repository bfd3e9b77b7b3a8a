//! The underlay: the sandbox's own network namespace with a bridge, and machines (nodes, the neighbour) on it.

use crate::netns::Netns;
use crate::plan::{BRIDGE, OUTSIDE, Plan, SECOND, UPLINK};
use crate::traffic::echo::Echo;
use anyhow::{Context, Result};
use meshd_model::attachment::MacAddr;
use nlink::netlink::addr::{Ipv4Address, Ipv6Address};
use nlink::netlink::link::{BridgeLink, VethLink};
use nlink::netlink::route::{Ipv4Route, Ipv6Route};
use nlink::netlink::{Connection, Route};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const PREFIX_V4: u8 = 16;
const PREFIX_V6: u8 = 64;

/// The underlay of one lab.
pub struct Underlay {
    netlink: Connection<Route>,
    bridge: String,
}

impl Underlay {
    /// Makes the bridge in the network namespace of the calling thread.
    pub async fn create() -> Result<Self> {
        let netlink = Connection::<Route>::new().context("open netlink")?;
        // Nobody else is here: an address that waits for duplicate detection only costs a second.
        for scope in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad");
            std::fs::write(&path, "0").with_context(|| format!("write {path}"))?;
        }
        let (v4, v6) = Plan::bridge();
        netlink.set_link_up("lo").await.context("set lo up")?;
        netlink
            .add_link(BridgeLink::new(BRIDGE).stp(false).address(Plan::mac(v4).0))
            .await
            .with_context(|| format!("make the bridge {BRIDGE}"))?;
        for own in [v4.into(), v6.into()] {
            address(&netlink, BRIDGE, own).await?;
        }
        netlink.set_link_up(BRIDGE).await.context("set the bridge up")?;
        Ok(Self {
            netlink,
            bridge: BRIDGE.to_owned(),
        })
    }

    /// One that somebody else made: a bridge in a network namespace, with the addresses of [`Plan::bridge`].
    pub fn existing(netns: &Netns, bridge: &str) -> Result<Self> {
        Ok(Self {
            netlink: netns.netlink()?,
            bridge: bridge.to_owned(),
        })
    }

    /// Plugs a machine in: `eth0` in its namespace, with this MAC's address, its addresses, and default routes through
    /// the bridge in their families.
    pub async fn plug(&self, machine: &Netns, mac: Ipv4Addr, own: &[IpAddr]) -> Result<()> {
        let port = machine.name();
        cable(&self.netlink, port, machine, UPLINK, Some(Plan::mac(mac))).await?;
        self.netlink
            .enslave(port, &self.bridge)
            .await
            .with_context(|| format!("plug {port} into the underlay"))?;
        give(&machine.netlink()?, own, Plan::bridge()).await
    }

    /// Plugs a machine's second interface in, which leads to those of others and nowhere else.
    pub async fn plug_second(&self, machine: &Netns, own: &[IpAddr]) -> Result<()> {
        let port = second_port(machine);
        // Both are on one wire: each is to answer for its own addresses only.
        machine.sysctl("ipv4/conf/all/arp_ignore", "1")?;
        cable(&self.netlink, &port, machine, SECOND, None).await?;
        self.netlink
            .enslave(&port, &self.bridge)
            .await
            .with_context(|| format!("plug {port} into the underlay"))?;
        let inside = machine.netlink()?;
        for own in own {
            address(&inside, SECOND, *own).await?;
        }
        Ok(())
    }

    /// Plugs the machine outside of the cluster in, at all of its addresses, and starts its echo servers.
    pub async fn plug_outside(&self, machine: Netns) -> Result<(Netns, Echo)> {
        let all = [Plan::outside(), Plan::excepted(), Plan::metadata()].concat();
        self.plug(&machine, OUTSIDE, &all).await?;
        let echo = Echo::start(&machine)?;
        Ok((machine, echo))
    }

    /// Takes the addresses of a machine's `eth0` away and gives it others, as a lease that ran out does.
    pub async fn readdress(&self, machine: &Netns, old: &[IpAddr], new: &[IpAddr]) -> Result<()> {
        let inside = machine.netlink()?;
        for address in old {
            let length = if address.is_ipv4() { PREFIX_V4 } else { PREFIX_V6 };
            inside
                .del_address(UPLINK, *address, length)
                .await
                .with_context(|| format!("take {address} from {}", machine.name()))?;
        }
        give(&inside, new, Plan::bridge()).await
    }

    /// Takes a machine off.
    pub async fn unplug(&self, machine: &Netns) -> Result<()> {
        for port in [machine.name(), &second_port(machine)] {
            let unplugged = self.netlink.del_link_if_exists(port).await;
            unplugged.with_context(|| format!("unplug {port}"))?;
        }
        Ok(())
    }

    /// The bridge's index, for the capture.
    pub async fn bridge_index(&self) -> Result<u32> {
        let link = self.netlink.get_link_by_name(&self.bridge).await?;
        Ok(link
            .with_context(|| format!("there is no bridge {}", self.bridge))?
            .ifindex())
    }
}

/// Leads a node to where clouds tell a machine about itself: on the link, in the families of the node's addresses.
pub async fn lead_to_metadata(inside: &Connection<Route>, own: &[IpAddr]) -> Result<()> {
    let spoken = |to: &IpAddr| own.iter().any(|a| a.is_ipv4() == to.is_ipv4());
    for to in Plan::metadata().into_iter().filter(spoken) {
        let done = match to {
            IpAddr::V4(v4) => {
                inside
                    .replace_route(Ipv4Route::from_addr(v4, 32).dev(UPLINK))
                    .await
            }
            IpAddr::V6(v6) => {
                inside
                    .replace_route(Ipv6Route::from_addr(v6, 128).dev(UPLINK))
                    .await
            }
        };
        done.with_context(|| format!("add the route to {to}"))?;
    }
    Ok(())
}

fn second_port(machine: &Netns) -> String {
    format!("{}b", machine.name())
}

/// A cable from an interface of this name to one of a machine, which gets this MAC, or one by chance; both ends are up.
pub(crate) async fn cable(
    netlink: &Connection<Route>,
    port: &str,
    machine: &Netns,
    ifname: &str,
    mac: Option<MacAddr>,
) -> Result<()> {
    let file = File::open(machine.path()).with_context(|| format!("open {}", machine.path().display()))?;
    let mut pair = VethLink::new(port, ifname).peer_netns_fd(&file);
    if let Some(mac) = mac {
        pair = pair.peer_address(mac.0);
    }
    for scope in ["all", "default"] {
        machine.sysctl(&format!("ipv6/conf/{scope}/accept_dad"), "0")?;
    }
    let tried = || format!("connect {} to {port}", machine.name());
    netlink.add_link(pair).await.with_context(tried)?;
    netlink.set_link_up(port).await.with_context(tried)?;
    let inside = machine.netlink()?;
    inside.set_link_up("lo").await.with_context(tried)?;
    inside.set_link_up(ifname).await.with_context(tried)
}

/// Addresses, and default routes through the gateway in their families; what is there of the routes is replaced.
pub(crate) async fn give(
    inside: &Connection<Route>,
    own: &[IpAddr],
    (gateway4, gateway6): (Ipv4Addr, Ipv6Addr),
) -> Result<()> {
    for address in own {
        self::address(inside, UPLINK, *address).await?;
        let tried = || format!("add the default route of {address}");
        if address.is_ipv4() {
            let route = Ipv4Route::default_route().gateway(gateway4).dev(UPLINK);
            inside.replace_route(route).await.with_context(tried)?;
        } else {
            let route = Ipv6Route::default_route().gateway(gateway6).dev(UPLINK);
            inside.replace_route(route).await.with_context(tried)?;
        }
    }
    lead_to_metadata(inside, own).await
}

pub(crate) async fn address(netlink: &Connection<Route>, link: &str, address: IpAddr) -> Result<()> {
    let added = match address {
        IpAddr::V4(v4) => netlink.add_address(Ipv4Address::new(link, v4, PREFIX_V4)).await,
        IpAddr::V6(v6) => {
            netlink
                .add_address(Ipv6Address::new(link, v6, PREFIX_V6).nodad())
                .await
        }
    };
    added.with_context(|| format!("give {link} the address {address}"))
}
