//! `meshd-cni` as a container runtime calls it.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The interface that a runtime asks for.
const IFNAME: &str = "eth0";

/// A call.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) verb: &'a str,
    pub(crate) container: &'a str,
    /// Empty where the runtime has none to name.
    pub(crate) netns: &'a str,
    /// Name and UID of the pod in the namespace `default`, where it has an object.
    pub(crate) pod: Option<(&'a str, &'a str)>,
    pub(crate) previous: Option<&'a Value>,
    /// The containers that a GC lets be.
    pub(crate) valid: Option<&'a [String]>,
    /// kill -9 so long after its start.
    pub(crate) kill_after: Option<Duration>,
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// With the result of ADD; null for the others.
    Done(Value),
    /// With an error of the specification.
    Error(u64, String),
    Killed,
}

/// The plugin, and the daemon that it is to ask.
pub(crate) struct Plugin<'a> {
    /// With its arguments; more than one where a tracer starts it.
    pub(crate) command: Vec<OsString>,
    pub(crate) socket: &'a Path,
}

impl<'a> Call<'a> {
    pub(crate) fn new(verb: &'a str, container: &'a str, netns: &'a str) -> Self {
        Self {
            verb,
            container,
            netns,
            pod: None,
            previous: None,
            valid: None,
            kill_after: None,
        }
    }
}

impl Plugin<'_> {
    pub(crate) fn call(&self, call: Call<'_>) -> Result<(Outcome, Duration)> {
        let mut configuration = json!({
            "cniVersion": "1.0.0", "name": "meshd", "type": "meshd-cni", "socket": self.socket,
        });
        if let Some(previous) = call.previous {
            configuration["prevResult"] = previous.clone();
        }
        if let Some(valid) = call.valid {
            configuration["cniVersion"] = json!("1.1.0");
            let named = valid
                .iter()
                .map(|id| json!({"containerID": id, "ifname": IFNAME}));
            configuration["cni.dev/valid-attachments"] = named.collect();
        }
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            .env_clear()
            .env("CNI_COMMAND", call.verb)
            .env("CNI_CONTAINERID", call.container)
            .env("CNI_NETNS", call.netns)
            .env("CNI_IFNAME", IFNAME)
            .env("CNI_PATH", "/opt/cni/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some((name, uid)) = call.pod {
            let args = format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={};\
                 K8S_POD_UID={uid}",
                call.container
            );
            command.env("CNI_ARGS", args);
        }
        let begun = Instant::now();
        let mut child = command.spawn().context("start the plugin")?;
        let mut stdin = child.stdin.take().context("the plugin's stdin")?;
        // One that was killed reads no more.
        let _ = stdin.write_all(configuration.to_string().as_bytes());
        drop(stdin);
        if let Some(after) = call.kill_after {
            std::thread::sleep(after.saturating_sub(begun.elapsed()));
            let _ = child.kill();
        }
        let mut said = String::new();
        let mut stdout = child.stdout.take().context("the plugin's stdout")?;
        stdout
            .read_to_string(&mut said)
            .context("read the plugin's answer")?;
        let status = child.wait().context("wait for the plugin")?;
        let took = begun.elapsed();
        let value = serde_json::from_str(&said).unwrap_or(Value::Null);
        let outcome = match status.code() {
            None => Outcome::Killed,
            Some(0) => Outcome::Done(value),
            Some(_) => Outcome::Error(value["code"].as_u64().unwrap_or(0), format!("{status}: {said}")),
        };
        Ok((outcome, took))
    }
}

/// The beginning of a command that this program is to trace and to kill at a stop; the count of stops goes into a file.
pub(crate) fn traced(own: &Path, at: u64, count: &Path) -> Vec<OsString> {
    vec![
        own.into(),
        "trace".into(),
        format!("--at={at}").into(),
        format!("--count={}", count.display()).into(),
        "--".into(),
    ]
}

/// The pod's addresses in a result of ADD.
pub(crate) fn addresses(result: &Value) -> Vec<IpAddr> {
    let address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
    result["ips"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(address)
        .collect()
}
