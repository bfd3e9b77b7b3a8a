//! What a namespace's kernel holds, as lines that an operator could read: to be compared before and after.

use crate::netns::Netns;
use anyhow::{Context, Result};
use nlink::netlink::nftables::{Family, SetElementData};
use nlink::netlink::types::route::RouteProtocol;
use nlink::netlink::{Connection, Nftables};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// RT_TABLE_LOCAL
const TABLE_LOCAL: u32 = 255;
const FAMILIES: [(Family, &str); 6] = [
    (Family::Ip, "ip"),
    (Family::Ip6, "ip6"),
    (Family::Inet, "inet"),
    (Family::Arp, "arp"),
    (Family::Bridge, "bridge"),
    (Family::Netdev, "netdev"),
];

/// Interfaces, addresses, routes, policy rules and nftables tables.
pub async fn lines(netns: &Netns) -> Result<BTreeSet<String>> {
    let shown = || format!("list what network namespace {} holds", netns.name());
    let netlink = netns.netlink()?;
    let names = netlink.get_interface_names().await.with_context(shown)?;
    let name = |index: Option<u32>| {
        index
            .and_then(|i| names.get(&i).cloned())
            .unwrap_or_else(|| "-".into())
    };
    let mut lines: BTreeSet<String> = names.values().map(|n| format!("interface {n}")).collect();
    for address in netlink.get_addresses().await.with_context(shown)? {
        let Some(ip) = address.local().or(address.address()) else {
            continue;
        };
        let link = name(Some(address.ifindex()));
        lines.insert(format!("address {ip}/{} dev {link}", address.prefix_len()));
    }
    for route in netlink.get_routes().await.with_context(shown)? {
        // The kernel's own, made and removed with addresses and with forwarding.
        if route.table_id() == TABLE_LOCAL && route.protocol() == RouteProtocol::Kernel {
            continue;
        }
        lines.insert(format!(
            "route {}/{} dev {} table {} type {:?} protocol {:?} metric {}",
            route
                .destination()
                .map_or_else(|| "default".into(), IpAddr::to_string),
            route.dst_len(),
            name(route.oif()),
            route.table_id(),
            route.route_type(),
            route.protocol(),
            route.priority().unwrap_or(0),
        ));
    }
    for rule in netlink.get_rules().await.with_context(shown)? {
        lines.insert(format!(
            "rule {}: {:?} from {}/{} fwmark {:?} lookup {}",
            rule.priority(),
            rule.family_typed(),
            rule.source().map_or_else(|| "all".into(), |ip| ip.to_string()),
            rule.src_len(),
            rule.fwmark(),
            rule.table_id(),
        ));
    }
    let nftables = nftables(netns)?;
    for (family, shown_family) in FAMILIES {
        for table in nftables.list_tables_in(family).await.with_context(shown)? {
            lines.insert(format!("nftables table {shown_family} {}", table.name));
        }
    }
    Ok(lines)
}

/// Elements of nftables sets that hold one of the addresses, or the name of one of the interfaces.
pub async fn guards(
    netns: &Netns,
    addresses: &BTreeSet<IpAddr>,
    interfaces: &BTreeSet<String>,
) -> Result<Vec<String>> {
    let shown = || format!("list the nftables sets of network namespace {}", netns.name());
    let needles: Vec<(Vec<u8>, String)> = addresses
        .iter()
        .map(|a| (octets(*a), a.to_string()))
        .chain(interfaces.iter().map(|i| (i.clone().into_bytes(), i.clone())))
        .collect();
    let nftables = nftables(netns)?;
    let mut found = Vec::new();
    for (family, _) in FAMILIES {
        for table in nftables.list_tables_in(family).await.with_context(shown)? {
            for set in nftables
                .list_sets_in(&table.name, family)
                .await
                .with_context(shown)?
            {
                let elements = nftables.list_set_elements(&table.name, &set.name, family).await;
                for element in elements.with_context(shown)? {
                    let mut bytes = element.key().to_vec();
                    if let Some(SetElementData::Value(value)) = element.data() {
                        bytes.extend(value);
                    }
                    let hit = needles
                        .iter()
                        .find(|(n, _)| bytes.windows(n.len()).any(|w| w == n));
                    found
                        .extend(hit.map(|(_, what)| format!("nftables {}/{}: {what}", table.name, set.name)));
                }
            }
        }
    }
    Ok(found)
}

fn nftables(netns: &Netns) -> Result<Connection<Nftables>> {
    Connection::new_in(netns.path())
        .with_context(|| format!("open nftables of network namespace {}", netns.name()))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}
