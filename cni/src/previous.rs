//! `prevResult`: what the plugins before us in the list have made (ADD), or what the whole list has (CHECK).

use crate::version::Version;
use crate::{error, reason};
use ipnetwork::IpNetwork;
use meshd_model::AttachmentId;
use meshd_model::attachment::MacAddr;
use meshd_model::cni::{Check, CniError, code};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::net::IpAddr;

/// Keys of an interface that CNI 1.1.0 brought.
const INTERFACE_1_1_0: [&str; 3] = ["mtu", "socketPath", "pciID"];
/// Keys of a route that CNI 1.1.0 brought.
const ROUTE_1_1_0: [&str; 5] = ["mtu", "advmss", "priority", "table", "scope"];

/// A result of ADD; what it does not have is empty.
#[derive(Clone, Debug, Default)]
pub struct Previous {
    /// As they came, for the result of ADD.
    lists: Lists,
    interfaces: Vec<Interface>,
    ips: Vec<Ip>,
    routes: Vec<Route>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Lists {
    #[serde(default)]
    interfaces: Option<Vec<Map<String, Value>>>,
    #[serde(default)]
    ips: Option<Vec<Map<String, Value>>>,
    #[serde(default)]
    routes: Option<Vec<Map<String, Value>>>,
    #[serde(default)]
    dns: Option<Map<String, Value>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    mac: Option<String>,
    #[serde(default)]
    mtu: Option<u32>,
    #[serde(default)]
    sandbox: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Ip {
    address: IpNetwork,
    #[serde(default)]
    gateway: Option<IpAddr>,
    #[serde(default)]
    interface: Option<usize>,
}

#[derive(Clone, Debug, Deserialize)]
struct Route {
    dst: IpNetwork,
    #[serde(default)]
    gw: Option<IpAddr>,
}

fn invalid(details: impl Into<String>) -> CniError {
    error(code::CONFIG, "invalid network configuration", details)
}

/// Reads one; error code 7 if it is none.
pub fn parse(value: &Value) -> Result<Previous, CniError> {
    let wrong =
        |found: serde_json::Error| invalid(format!("prevResult is no result of ADD: {}", reason(&found)));
    let lists = Lists::deserialize(value).map_err(wrong)?;
    Ok(Previous {
        interfaces: typed(lists.interfaces.as_ref()).map_err(wrong)?,
        ips: typed(lists.ips.as_ref()).map_err(wrong)?,
        routes: typed(lists.routes.as_ref()).map_err(wrong)?,
        lists,
    })
}

fn typed<T: serde::de::DeserializeOwned>(
    list: Option<&Vec<Map<String, Value>>>,
) -> serde_json::Result<Vec<T>> {
    let list = list.into_iter().flatten();
    list.map(|entry| T::deserialize(Value::Object(entry.clone())))
        .collect()
}

impl Interface {
    fn is_in_a_pod(&self) -> bool {
        self.sandbox.as_ref().is_some_and(|sandbox| !sandbox.is_empty())
    }
}

impl Previous {
    /// Error code 7 where the sandbox has an interface of this name already.
    pub fn check_free(&self, ifname: &str, netns: &str) -> Result<(), CniError> {
        let taken = |i: &Interface| i.name == ifname && i.sandbox.as_deref() == Some(netns);
        if !self.interfaces.iter().any(taken) {
            return Ok(());
        }
        Err(invalid(format!(
            "prevResult has an interface {ifname} in {netns}, which meshd-cni is to make: of the plugins of a list, one \
             alone makes the pod's interface"
        )))
    }

    /// Whether a plugin before us has made a default route of either family.
    #[must_use]
    pub fn has_default_route(&self) -> bool {
        self.routes.iter().any(|route| route.dst.prefix() == 0)
    }

    /// What CHECK compares; error code 7 if there is no address of the interface in a sandbox.
    pub fn check(&self, id: AttachmentId, netns: String) -> Result<Check, CniError> {
        let index = self
            .interfaces
            .iter()
            .position(|i| i.name == id.ifname && i.is_in_a_pod());
        let ips = self.ips.iter();
        let ips: Vec<_> = ips
            .filter(|ip| index.is_some() && ip.interface == index)
            .collect();
        let addresses: Vec<_> = ips.iter().map(|ip| ip.address).collect();
        let by_us = |route: &&Route| route.gw.is_some() && ips.iter().any(|ip| ip.gateway == route.gw);
        let Some(pod) = index
            .map(|i| &self.interfaces[i])
            .filter(|_| !addresses.is_empty())
        else {
            let details = format!("prevResult gives no address to {} in a sandbox", id.ifname);
            return Err(invalid(details));
        };
        let host_ifname = id.host_ifname();
        let host = self
            .interfaces
            .iter()
            .find(|i| i.name == host_ifname && !i.is_in_a_pod());
        let host_mac = host.and_then(|i| i.mac.as_deref()).map(mac).transpose()?;
        Ok(Check {
            mac: pod.mac.as_deref().map(mac).transpose()?,
            mtu: pod.mtu.filter(|mtu| *mtu != 0),
            routes: self.routes.iter().filter(by_us).map(|route| route.dst).collect(),
            host: host.map(|i| (i.name.clone(), host_mac)),
            id,
            netns,
            addresses,
        })
    }

    /// The list of this name for a result of `version`, to which ours is to be added.
    #[must_use]
    pub fn list(&self, name: &str, version: Version) -> Vec<Value> {
        let list = match name {
            "interfaces" => &self.lists.interfaces,
            "ips" => &self.lists.ips,
            _ => &self.lists.routes,
        };
        let list = list.iter().flatten().cloned();
        list.map(|entry| Value::Object(converted(name, entry, version)))
            .collect()
    }

    /// Its `dns`, if it says anything.
    #[must_use]
    pub fn dns(&self) -> Option<Value> {
        let dns = self.lists.dns.as_ref().filter(|dns| !dns.is_empty())?;
        Some(Value::Object(dns.clone()))
    }
}

fn mac(text: &str) -> Result<MacAddr, CniError> {
    text.parse()
        .map_err(|why| invalid(format!("prevResult has the MAC {}: {why}", crate::quoted(text))))
}

/// What a version does not know is left out, what it needs is put in.
fn converted(list: &str, mut entry: Map<String, Value>, version: Version) -> Map<String, Value> {
    let newer: &[&str] = match list {
        "interfaces" => &INTERFACE_1_1_0,
        "routes" => &ROUTE_1_1_0,
        _ => &[],
    };
    if version < Version::V1_1_0 {
        entry.retain(|key, _| !newer.contains(&key.as_str()));
    }
    if list == "ips" {
        entry.remove("version");
        let family = entry
            .get("address")
            .and_then(Value::as_str)
            .map(crate::result::family);
        if let Some(family) = family.filter(|_| version < Version::V1_0_0) {
            entry.insert("version".to_owned(), family.into());
        }
    }
    entry
}
