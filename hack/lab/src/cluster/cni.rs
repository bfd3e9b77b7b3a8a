//! Runs the CNI plugin as a container runtime does: parameters in the environment, configuration on stdin, the
//! result or an error on stdout (CNI specification 1.1.0, section 2).

use super::node::Node;
use crate::process;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How long a runtime waits.
const PATIENCE: Duration = Duration::from_secs(30);
/// The interface that a runtime asks for.
pub const IFNAME: &str = "eth0";

/// A call of the plugin.
pub struct Invocation<'a> {
    /// The plugin.
    pub plugin: &'a Path,
    /// On which node.
    pub node: &'a Node,
    /// CNI_CONTAINERID
    pub container_id: &'a str,
    /// CNI_NETNS
    pub netns: &'a Path,
    /// Name and UID of the pod, for CNI_ARGS.
    pub pod: Option<(&'a str, &'a str)>,
    /// `prevResult`, for CHECK and DEL.
    pub previous: Option<&'a Value>,
}

impl Invocation<'_> {
    /// Runs it; the result is JSON for ADD, null otherwise. A CNI error is an error with its text.
    pub fn run(&self, command: &str) -> Result<Value> {
        let mut configuration = json!({
            "cniVersion": "1.1.0",
            "name": "meshd",
            "type": "meshd-cni",
            "socket": self.node.paths().socket,
        });
        if let Some(previous) = self.previous {
            configuration["prevResult"] = previous.clone();
        }
        let mut plugin = Command::new(self.plugin);
        plugin
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", self.container_id)
            .env("CNI_NETNS", self.netns)
            .env("CNI_IFNAME", IFNAME)
            .env(
                "CNI_PATH",
                self.plugin.parent().unwrap_or(Path::new("/opt/cni/bin")),
            );
        if let Some((name, uid)) = self.pod {
            let args =
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID={uid}");
            plugin.env("CNI_ARGS", args);
        }
        let tried = || format!("CNI {command} of {} on {}", self.container_id, self.node.name);
        let done = process::run(&self.node.netns, plugin, &configuration.to_string(), PATIENCE)
            .with_context(tried)?;
        let said: Value = serde_json::from_str(&done.stdout).unwrap_or(Value::Null);
        if done.status.success() {
            return Ok(said);
        }
        let code = said.get("code").and_then(Value::as_u64);
        let text = |key: &str| {
            said.get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        match code {
            Some(code) => bail!("{}: error {code}: {}: {}", tried(), text("msg"), text("details")),
            None => bail!("{}: {}: {}{}", tried(), done.status, done.stdout, done.stderr),
        }
    }
}

/// The pod's addresses in a result of ADD.
pub fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result
        .get("ips")
        .and_then(Value::as_array)
        .context("the result of ADD has no ips")?;
    ips.iter()
        .map(|ip| {
            let text = ip
                .get("address")
                .and_then(Value::as_str)
                .context("an ip without address")?;
            let address = text.split('/').next().unwrap_or_default();
            address
                .parse()
                .with_context(|| format!("the result of ADD has the address {text:?}"))
        })
        .collect()
}

/// The names of the host's interfaces in a result of ADD.
#[must_use]
pub fn host_interfaces(result: &Value) -> Vec<String> {
    let interfaces = result.get("interfaces").and_then(Value::as_array);
    let of_host = |i: &&Value| i.get("sandbox").and_then(Value::as_str).is_none_or(str::is_empty);
    interfaces
        .into_iter()
        .flatten()
        .filter(of_host)
        .filter_map(|i| i.get("name")?.as_str().map(str::to_owned))
        .collect()
}
