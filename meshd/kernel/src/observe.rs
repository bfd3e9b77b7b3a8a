//! One look at everything of ours: one dump each of links, addresses, routes, rules, neighbours, the firewall and
//! WireGuard.

use crate::config::DriverConfig;
use crate::error::{Context, Result};
use crate::firewall::PodEntries;
use crate::{device, firewall, route, rule};
use meshd_model::attachment::MacAddr;
use meshd_model::kernel::{
    DeviceState, ForwardChain, KernelState, POD_IFNAME_PREFIX, PodLinkState, UnderlayAddress,
};
use nlink::netlink::messages::{AddressMessage, LinkMessage, NeighborMessage};
use nlink::{Connection, Nftables, Route};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

/// What is there. A userspace device that does not answer in time fails the whole look, unless it is the `first`: then
/// the rest of the node, and its firewall above all, must not wait for it. Others' chains, which they may change while they
/// are read, fail no look: they are taken for what is `known` of them. Given back are
/// also the entries against spoofing, where they can be read.
pub(crate) async fn observe(
    conn: &Connection<Route>,
    nft: &Connection<Nftables>,
    config: &DriverConfig,
    first: bool,
    known: &BTreeSet<ForwardChain>,
) -> Result<(KernelState, Option<PodEntries>)> {
    let links = conn.get_links().await.doing(|| "list interfaces")?;
    let addresses = conn.get_addresses().await.doing(|| "list addresses")?;
    let routes = conn.get_routes().await.doing(|| "list routes")?;
    let rules = conn.get_rules().await.doing(|| "list policy rules")?;
    let neighbours = conn.get_neighbors().await.doing(|| "list neighbours")?;
    let (firewall, guards) = firewall::observe(nft).await?;
    let forward_chains = firewall::forward::observe(nft, &config.device).await;
    let forward_chains = forward_chains.unwrap_or_else(|e| {
        tracing::warn!("cannot read other tools' chains, and take them for what they were: {e}");
        known.clone()
    });

    let default_routes = route::default_routes(&routes);
    let (routes, pod_routes) = route::read(&routes, &names(&links));
    let link = links.iter().find(|l| l.name() == Some(&config.device));
    let (device, peers) = match link {
        Some(link) => observe_device(config, link, &addresses, first).await?,
        None => (None, BTreeMap::new()),
    };
    let state = KernelState {
        firewall,
        forward_chains,
        device,
        peers,
        routes: routes.into_iter().collect(),
        rules: rule::read(&rules),
        pod_links: pod_links(&links, &pod_routes, &neighbours, guards.as_ref()),
        underlay: underlay(config, &links, &addresses, &default_routes),
    };
    Ok((state, guards))
}

/// The routes of ours that do not lead to pods.
pub(crate) async fn own_routes(conn: &Connection<Route>) -> Result<Vec<meshd_model::kernel::Route>> {
    let links = conn.get_links().await.doing(|| "list interfaces")?;
    let routes = conn.get_routes().await.doing(|| "list routes")?;
    Ok(route::read(&routes, &names(&links)).0)
}

fn names(links: &[LinkMessage]) -> HashMap<u32, String> {
    links
        .iter()
        .filter_map(|l| Some((l.ifindex(), l.name()?.to_owned())))
        .collect()
}

type Peers = BTreeMap<meshd_model::PublicKey, meshd_model::kernel::PeerState>;

/// A device whose process is gone shows as one without key and peers: it has to be set again. One that is only slow
/// or changes while it is read has them still: to give a thousand peers again would make it slower.
async fn observe_device(
    config: &DriverConfig,
    link: &LinkMessage,
    addresses: &[AddressMessage],
    first: bool,
) -> Result<(Option<DeviceState>, Peers)> {
    let kind = device::kind_of(link.kind());
    let tunnel = match device::tunnel(config, kind).await {
        Ok(tunnel) => tunnel,
        Err(e) if !first && matches!(e.errno, Some(libc::ETIMEDOUT | libc::EINTR | libc::EMSGSIZE)) => {
            return Err(e);
        }
        Err(e) => {
            tracing::warn!(device = config.device, "{e}");
            device::Tunnel::default()
        }
    };
    let own = addresses.iter().filter(|a| a.ifindex() == link.ifindex());
    let addresses = own
        .filter_map(device::global)
        .map(|(address, _)| address)
        .collect();
    let state = DeviceState {
        kind,
        public_key: tunnel.public_key,
        listen_port: tunnel.listen_port,
        fwmark: tunnel.fwmark,
        mtu: mtu(link),
        up: link.is_up(),
        forwards: device::forwards(&config.device, &addresses),
        addresses,
        as_chosen: device::is_as_chosen(kind, config.choice),
    };
    Ok((Some(state), tunnel.peers))
}

fn mtu(link: &LinkMessage) -> u16 {
    link.mtu().map_or(0, |mtu| u16::try_from(mtu).unwrap_or(u16::MAX))
}

fn pod_links(
    links: &[LinkMessage],
    routes: &BTreeMap<String, Vec<IpAddr>>,
    neighbours: &[NeighborMessage],
    guards: Option<&PodEntries>,
) -> BTreeMap<String, PodLinkState> {
    let is_pods = |l: &&LinkMessage| l.name().is_some_and(|n| n.starts_with(POD_IFNAME_PREFIX));
    let state = |link: &LinkMessage| {
        let name = link.name()?.to_owned();
        let addresses = routes.get(&name).cloned().unwrap_or_default();
        let guarded = |address: &IpAddr| {
            mac_behind(link.ifindex(), *address, neighbours)
                .is_some_and(|mac| guards.is_some_and(|g| g.allows(&name, mac, *address)))
        };
        let state = PodLinkState {
            host_mac: MacAddr(link.address()?.try_into().ok()?),
            mtu: mtu(link),
            up: link.is_up() && link.has_carrier(),
            guarded: !addresses.is_empty() && addresses.iter().all(guarded),
            addresses: addresses.into_iter().collect(),
        };
        Some((name, state))
    };
    links.iter().filter(is_pods).filter_map(state).collect()
}

/// The MAC that the host knows for good to be the address's.
fn mac_behind(ifindex: u32, address: IpAddr, neighbours: &[NeighborMessage]) -> Option<MacAddr> {
    let entry = neighbours
        .iter()
        .find(|n| n.ifindex() == ifindex && n.destination() == Some(&address) && n.is_permanent())?;
    Some(MacAddr(entry.lladdr()?.try_into().ok()?))
}

fn underlay(
    config: &DriverConfig,
    links: &[LinkMessage],
    addresses: &[AddressMessage],
    default_routes: &HashSet<u32>,
) -> Vec<UnderlayAddress> {
    let other = |l: &&LinkMessage| {
        let name = l.name().unwrap_or_default();
        l.is_up() && !l.is_loopback() && name != config.device && !name.starts_with(POD_IFNAME_PREFIX)
    };
    let mut underlay = Vec::new();
    for link in links.iter().filter(other) {
        let own = addresses.iter().filter(|a| a.ifindex() == link.ifindex());
        for (message, (address, _)) in own.filter_map(|a| Some((a, device::global(a)?))) {
            underlay.push(UnderlayAddress {
                address,
                ifname: link.name().unwrap_or_default().to_owned(),
                mtu: link.mtu().unwrap_or(0),
                default_route: default_routes.contains(&link.ifindex()),
                passing: is_passing(message),
            });
        }
    }
    underlay
}

/// Whether the address comes and goes, or is not in use yet or no more.
fn is_passing(address: &AddressMessage) -> bool {
    /// For IPv4 the same bit says that the address is not the first of its network.
    const IFA_F_TEMPORARY: u32 = 0x01;
    let is_temporary = address.is_ipv6() && address.flags() & IFA_F_TEMPORARY != 0;
    is_temporary || address.is_deprecated() || address.is_tentative() || address.is_dad_failed()
}
