//! A look at a pod's link, for CHECK: what differs from what ADD has made, as `prevResult` says it. Nothing is changed.
//! What plugins behind us in the list have added is none of our matter.

use super::{Context, Result};
use crate::netns::Netns;
use crate::sysctl;
use meshd_model::cni::Check;
use meshd_model::kernel::{POD_GATEWAY_V4, POD_GATEWAY_V6};
use nlink::netlink::messages::RouteMessage;
use nlink::{Connection, Route};
use std::net::IpAddr;

/// Parameters of the host's end that its packets need. `rp_filter` is not among them: distributions set it for every new
/// interface, and a pod's own packets pass strictly, too.
const HOST: [(&str, &str); 1] = [("forwarding", "1")];

/// What differs, each a line; an error where it cannot be looked at. The host's end is looked for in the caller's
/// namespace.
pub async fn differences(check: &Check) -> std::result::Result<Vec<String>, String> {
    let found = look(check.clone()).await;
    found.map_err(|e| e.to_string())
}

async fn look(check: Check) -> Result<Vec<String>> {
    let host_ifname = check.id.host_ifname();
    let conn = Connection::<Route>::new().doing(|| "open a netlink socket")?;
    let host = conn.get_link_by_name(host_ifname.as_str()).await;
    let host = host.doing(|| format!("look for {host_ifname}"))?;
    let Some(host) = host else {
        return Ok(vec![format!("interface {host_ifname} is not there")]);
    };
    let mut found: Vec<String> = HOST
        .iter()
        .filter_map(|(key, wanted)| parameter(&format!("ipv4/conf/{host_ifname}/{key}"), wanted))
        .collect();
    if !host.is_up() {
        found.push(format!("interface {host_ifname} is down"));
    }
    // The last observation may be from before somebody gave it another.
    let mac = check.host.as_ref().and_then(|(_, mac)| *mac);
    if let Some(mac) = mac.filter(|mac| host.address() != Some(&mac.0[..])) {
        found.push(format!("interface {host_ifname} has another MAC than {mac}"));
    }
    let mtu = host.mtu();
    let netns = Netns::open(&check.netns)?;
    found.extend(netns.run(move || inside(check, mtu)).await?);
    Ok(found)
}

fn parameter(key: &str, wanted: &str) -> Option<String> {
    let there = sysctl::get(key).unwrap_or_else(|e| e.to_string());
    (there != wanted).then(|| format!("sysctl net/{key} is {there}, not {wanted}"))
}

async fn inside(check: Check, mtu: Option<u32>) -> Result<Vec<String>> {
    let name = &check.id.ifname;
    let conn = Connection::<Route>::new().doing(|| "open a netlink socket in the pod's network namespace")?;
    let link = conn.get_link_by_name(name.as_str()).await;
    let link = link.doing(|| format!("look for {name} in the pod"))?;
    let Some(link) = link else {
        return Ok(vec![format!("interface {name} is not in the pod")]);
    };
    let mut found = Vec::new();
    if !link.is_up() {
        found.push(format!("interface {name} is down in the pod"));
    }
    if let Some(mac) = check.mac.filter(|mac| link.address() != Some(&mac.0[..])) {
        found.push(format!("interface {name} in the pod has another MAC than {mac}"));
    }
    // The tuning plugin may have made it smaller. Larger packets would not come through.
    if let (Some(there), Some(most)) = (link.mtu(), mtu)
        && there > most
    {
        found.push(format!(
            "interface {name} in the pod has MTU {there}, its host's end {most}"
        ));
    }
    let addresses = conn.get_addresses_by_index(link.ifindex()).await;
    let addresses = addresses.doing(|| format!("list addresses of {name} in the pod"))?;
    for address in check.addresses.iter().map(ipnetwork::IpNetwork::ip) {
        if !addresses.iter().any(|a| a.address() == Some(&address)) {
            found.push(format!(
                "interface {name} in the pod does not have address {address}"
            ));
        }
    }
    if check.addresses.iter().any(ipnetwork::IpNetwork::is_ipv6) {
        found.extend(parameter(&format!("ipv6/conf/{name}/disable_ipv6"), "0"));
    }
    let routes = conn.get_routes().await.doing(|| "list routes in the pod")?;
    for wanted in &check.routes {
        if !routes.iter().any(|r| leads(r, link.ifindex(), *wanted)) {
            found.push(format!("there is no route {wanted} by {name} in the pod"));
        }
    }
    Ok(found)
}

/// Whether the route leads to `wanted` out of our interface, by the gateway of its family.
fn leads(route: &RouteMessage, index: u32, wanted: ipnetwork::IpNetwork) -> bool {
    let gateway = if wanted.is_ipv4() {
        IpAddr::V4(POD_GATEWAY_V4)
    } else {
        IpAddr::V6(POD_GATEWAY_V6)
    };
    let to = route.destination().copied().unwrap_or(match wanted.is_ipv4() {
        true => IpAddr::from([0; 4]),
        false => IpAddr::from([0; 16]),
    });
    route.is_ipv4() == wanted.is_ipv4()
        && route.oif() == Some(index)
        && (to, route.dst_len()) == (wanted.network(), wanted.prefix())
        && route.gateway() == Some(&gateway)
}
