//! `prevResult`, of which CHECK needs the addresses of one interface.

use crate::{error, reason};
use ipnetwork::IpNetwork;
use meshd_model::cni::{CniError, code};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Previous {
    #[serde(default)]
    interfaces: Option<Vec<Interface>>,
    #[serde(default)]
    ips: Option<Vec<Ip>>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    sandbox: Option<String>,
}

#[derive(Deserialize)]
struct Ip {
    address: IpNetwork,
    #[serde(default)]
    interface: Option<usize>,
}

/// The addresses that a result gives the interface `ifname` within a sandbox; error code 7 if there are none.
pub fn addresses(prev_result: Option<&Value>, ifname: &str) -> Result<Vec<IpNetwork>, CniError> {
    let invalid = |details: String| error(code::CONFIG, "invalid network configuration", details);
    let Some(value) = prev_result else {
        return Err(invalid("CHECK needs prevResult, the result of ADD".to_owned()));
    };
    let previous = Previous::deserialize(value)
        .map_err(|found| invalid(format!("prevResult is no result of ADD: {}", reason(&found))))?;
    let interfaces = previous.interfaces.unwrap_or_default();
    let index = interfaces
        .iter()
        .position(|i| i.name == ifname && i.sandbox.as_ref().is_some_and(|sandbox| !sandbox.is_empty()));
    let ips = previous.ips.unwrap_or_default();
    let addresses: Vec<IpNetwork> = ips
        .into_iter()
        .filter(|ip| index.is_some() && ip.interface == index)
        .map(|ip| ip.address)
        .collect();
    if addresses.is_empty() {
        return Err(invalid(format!(
            "prevResult gives no address to {ifname} in a sandbox"
        )));
    }
    Ok(addresses)
}
