//! What goes to stdout (CNI specification 1.1.0, section 5, "Result types").

use crate::version::Version;
use ipnetwork::IpNetwork;
use meshd_model::cni::{Added, CniError};
use serde_json::{Value, json};

/// The pod's end in the list of interfaces.
const POD_END: usize = 1;

/// ADD's success.
#[must_use]
pub fn added(version: Version, added: &Added, ifname: &str, netns: &str, dns: &Value) -> Value {
    let mut host_end = json!({ "name": added.host_ifname, "mac": added.host_mac });
    let mut pod_end = json!({ "name": ifname, "mac": added.mac, "sandbox": netns });
    if version >= Version::V1_1_0 {
        host_end["mtu"] = json!(added.mtu);
        pod_end["mtu"] = json!(added.mtu);
    }
    let ips = added.ips.iter().map(|(address, gateway)| {
        let mut ip = json!({ "address": address, "gateway": gateway, "interface": POD_END });
        if version < Version::V1_0_0 {
            ip["version"] = json!(if address.is_ipv4() { "4" } else { "6" });
        }
        ip
    });
    let routes = added
        .ips
        .iter()
        .map(|(address, gateway)| json!({ "dst": everything(*address), "gw": gateway }));
    json!({
        "cniVersion": version.as_str(),
        "interfaces": [host_end, pod_end],
        "ips": ips.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "dns": dns,
    })
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

/// The default route of an address's family.
fn everything(address: IpNetwork) -> &'static str {
    if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" }
}
