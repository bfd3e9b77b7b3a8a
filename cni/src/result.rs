//! What goes to stdout (CNI specification 1.1.0, section 5, "Result types").

use crate::previous::Previous;
use crate::version::Version;
use ipnetwork::IpNetwork;
use meshd_model::cni::{Added, CniError};
use serde_json::{Value, json};

/// What ADD was asked for, as far as its result says so.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// `cniVersion`
    pub version: Version,
    /// `CNI_IFNAME`
    pub ifname: &'a str,
    /// `CNI_NETNS`
    pub netns: &'a str,
    /// `dns` of the configuration.
    pub dns: &'a Value,
    /// Of the plugins before us.
    pub previous: &'a Previous,
}

/// ADD's success: what the plugins before us have made, and behind it what we have.
#[must_use]
pub fn added(asked: &Asked<'_>, added: &Added) -> Value {
    let version = asked.version;
    let list = |name| asked.previous.list(name, version);
    let (mut interfaces, mut ips, mut routes) = (list("interfaces"), list("ips"), list("routes"));
    let pod_end = interfaces.len() + 1;
    interfaces.extend(ends(asked, added));
    for (address, gateway) in &added.ips {
        let mut ip = json!({ "address": address, "gateway": gateway, "interface": pod_end });
        if version < Version::V1_0_0 {
            ip["version"] = json!(family(&address.to_string()));
        }
        ips.push(ip);
        if !added.secondary {
            routes.push(json!({ "dst": everything(*address), "gw": gateway }));
        }
    }
    let own_dns = asked.dns.as_object().is_some_and(|dns| !dns.is_empty());
    let dns = asked.previous.dns().filter(|_| !own_dns);
    json!({
        "cniVersion": version.as_str(),
        "interfaces": interfaces,
        "ips": ips,
        "routes": routes,
        "dns": dns.as_ref().unwrap_or(asked.dns),
    })
}

/// The host's end of the veth pair, then the pod's.
fn ends(asked: &Asked<'_>, added: &Added) -> [Value; 2] {
    let mut host_end = json!({ "name": added.host_ifname, "mac": added.host_mac });
    let mut pod_end = json!({ "name": asked.ifname, "mac": added.mac, "sandbox": asked.netns });
    if asked.version >= Version::V1_1_0 {
        host_end["mtu"] = json!(added.mtu);
        pod_end["mtu"] = json!(added.mtu);
    }
    [host_end, pod_end]
}

/// VERSION's success.
#[must_use]
pub fn versions(spoken: Version) -> Value {
    json!({
        "cniVersion": spoken.as_str(),
        "supportedVersions": Version::ALL.map(Version::as_str),
    })
}

/// A failure of any verb.
#[must_use]
pub fn failed(version: Version, error: &CniError) -> Value {
    json!({
        "cniVersion": version.as_str(),
        "code": error.code,
        "msg": error.msg,
        "details": error.details,
    })
}

/// `version` of an address, as results had it before 1.0.0.
pub(crate) fn family(address: &str) -> &'static str {
    if address.contains(':') { "6" } else { "4" }
}

/// The default route of an address's family.
fn everything(address: IpNetwork) -> &'static str {
    if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" }
}
