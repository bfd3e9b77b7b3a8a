//! One pod: an object at the API server, a network namespace made as a runtime makes it, and echo servers in it.

use crate::netns::Netns;
use crate::traffic::echo::Echo;
use anyhow::{Context, Result};
use meshd_scenario::Pod;
use serde_json::Value;

/// A pod of the lab.
pub struct PodSite {
    /// What scenarios know of it.
    pub pod: Pod,
    /// CNI_CONTAINERID of its sandbox.
    pub container_id: String,
    /// Its network namespace.
    pub netns: Netns,
    /// Its echo servers.
    pub echo: Echo,
    /// What ADD gave.
    pub result: Value,
    /// UID at the API server.
    pub uid: String,
}

/// A namespace for a pod's sandbox, its loopback up.
pub async fn sandbox(name: &str) -> Result<(Netns, Echo)> {
    let netns = Netns::create(name)?;
    let up = async {
        netns
            .netlink()?
            .set_link_up("lo")
            .await
            .map_err(anyhow::Error::from)
    };
    up.await.with_context(|| format!("set lo up in {name}"))?;
    let echo = Echo::start(&netns)?;
    Ok((netns, echo))
}
