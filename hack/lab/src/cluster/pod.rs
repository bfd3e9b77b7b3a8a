//! One pod: an object at the API server, a network namespace made as a runtime makes it, and echo servers in it.

use super::Cluster;
use super::cni::Invocation;
use crate::netns::Netns;
use crate::traffic::echo::Echo;
use anyhow::{Context, Result};
use meshd_model::NodeName;
use meshd_scenario::Pod;
use serde_json::Value;

/// A pod of the lab.
pub struct PodSite {
    /// What scenarios know of it.
    pub pod: Pod,
    /// What a runtime knows of it.
    pub sandbox: Sandbox,
    /// Its echo servers.
    pub echo: Echo,
    /// What ADD gave.
    pub result: Value,
}

/// A pod's sandbox, as a runtime keeps it.
pub struct Sandbox {
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub uid: String,
    /// Where it is.
    pub node: NodeName,
    /// CNI_CONTAINERID
    pub container_id: String,
    /// Its network namespace.
    pub netns: Netns,
}

impl Sandbox {
    pub(super) fn invocation<'a>(
        &'a self,
        cluster: &'a Cluster,
        previous: Option<&'a Value>,
    ) -> Result<Invocation<'a>> {
        let pod = Some((self.pod.as_str(), self.uid.as_str()));
        let mut invocation = cluster.invocation(&self.node, &self.container_id, self.netns.path(), pod)?;
        invocation.previous = previous;
        Ok(invocation)
    }
}

/// A namespace for a pod's sandbox, its loopback up.
pub(super) async fn sandbox(name: &str) -> Result<(Netns, Echo)> {
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
