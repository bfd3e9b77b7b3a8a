//! `CNI_ARGS`: `KEY=VALUE` pairs with semicolons between them, read as the reference library reads them
//! (containernetworking/cni, types.LoadArgs).

use crate::environment::is_identifier;
use crate::quoted;
use meshd_model::PodRef;
use meshd_model::attachment::MacAddr;
use std::net::IpAddr;

/// Longest name of a Kubernetes object, in bytes.
const NAME_MAX: usize = 253;

/// What `CNI_ARGS` says that concerns us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// `K8S_POD_NAMESPACE`, `K8S_POD_NAME`, `K8S_POD_UID`.
    pub pod: Option<PodRef>,
    /// `IP`: one address, or several with commas between them; a prefix length is passed over.
    pub ips: Vec<IpAddr>,
    /// `MAC`
    pub mac: Option<MacAddr>,
}

/// Reads them. The error is the rest of a sentence that begins with the variable's name. A key that is not known is one,
/// unless `IgnoreUnknown` is true.
pub fn parse(text: &str) -> Result<Args, String> {
    let mut args = Args::default();
    let (mut namespace, mut name, mut uid) = ("", "", "");
    let (mut unknown, mut ignore) = (None, false);
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| format!("has {}, which is no KEY=VALUE", quoted(pair)))?;
        match key {
            "K8S_POD_NAMESPACE" => namespace = value,
            "K8S_POD_NAME" => name = value,
            "K8S_POD_UID" => uid = value,
            "K8S_POD_INFRA_CONTAINER_ID" => {}
            "IgnoreUnknown" => ignore = truth(value)?,
            "IP" if value.is_empty() => {}
            "IP" => {
                args.ips = value
                    .split(',')
                    .map(|ip| address(ip.trim()))
                    .collect::<Result<_, _>>()?
            }
            "MAC" if value.is_empty() => {}
            "MAC" => {
                args.mac = Some(
                    value
                        .parse()
                        .map_err(|why| format!("has MAC={}: {why}", quoted(value)))?,
                )
            }
            other => unknown = unknown.or(Some(other)),
        }
    }
    if let Some(key) = unknown.filter(|_| !ignore) {
        return Err(format!(
            "has {}, which this plugin does not know, and no IgnoreUnknown=1",
            quoted(key)
        ));
    }
    args.pod = pod(namespace, name, uid)?;
    Ok(args)
}

fn truth(value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(format!(
            "has IgnoreUnknown={}, which is neither true nor false",
            quoted(value)
        )),
    }
}

/// An address, with or without the length of a prefix.
fn address(text: &str) -> Result<IpAddr, String> {
    crate::address(text).map_err(|why| format!("has IP={}: {why}", quoted(text)))
}

fn pod(namespace: &str, name: &str, uid: &str) -> Result<Option<PodRef>, String> {
    if namespace.is_empty() && name.is_empty() {
        return Ok(None);
    }
    for (key, value) in [("K8S_POD_NAMESPACE", namespace), ("K8S_POD_NAME", name)] {
        if value.len() > NAME_MAX || !is_identifier(value) {
            return Err(format!("has {key}={}, which names no object", quoted(value)));
        }
    }
    if uid.len() > NAME_MAX || !(uid.is_empty() || is_identifier(uid)) {
        return Err(format!("has K8S_POD_UID={}, which is no UID", quoted(uid)));
    }
    Ok(Some(PodRef {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
    }))
}
