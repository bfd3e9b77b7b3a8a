//! The API server that the nodes see at the bridge's address: the embedded one, or a relay to the user's own.

use super::relay::Relay;
use crate::plan::{Families, Plan};
use anyhow::{Context, Result, bail};
use meshd_apiserver::{ApiServer, Config, Resource, Time};
use meshd_apiserver_http::{Running, Shared, serve};
use meshd_model::NodeName;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;

/// The API server as the nodes see it.
pub enum Api {
    /// In this process; it keeps its objects while it is stopped.
    Embedded {
        /// Its objects.
        server: Shared,
        /// None while it is stopped.
        running: Option<Running>,
    },
    /// The user's own, behind a relay.
    Own {
        /// The kubeconfig that reaches it through the relay.
        kubeconfig: Value,
        /// None until it is started.
        relay: Option<Relay>,
    },
}

impl Api {
    /// The embedded one, not started yet.
    #[must_use]
    pub fn embedded() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Time(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
        let mut server = ApiServer::new(Config::default(), now);
        server.register(Resource::new("meshd.dev", "v1alpha1", "ipblocks", "IPBlock"));
        Self::Embedded {
            server: Shared::new(server),
            running: None,
        }
    }

    /// The user's own, by a kubeconfig whose server is the relay.
    #[must_use]
    pub fn own(kubeconfig: Value) -> Self {
        Self::Own {
            kubeconfig,
            relay: None,
        }
    }

    /// Makes it answer at the bridge's address.
    pub async fn start(&mut self, families: &Families) -> Result<()> {
        match self {
            Api::Embedded { .. } => self.set_up(true, families).await,
            Api::Own { relay, .. } => {
                *relay = Some(Relay::start(Plan::api_server(families)).await?);
                Ok(())
            }
        }
    }

    /// Whether it can be reached, as far as the lab decides.
    #[must_use]
    pub fn is_up(&self) -> bool {
        match self {
            Api::Embedded { running, .. } => running.is_some(),
            Api::Own { relay, .. } => relay.is_some(),
        }
    }

    /// Stops or restarts the embedded one.
    pub async fn set_up(&mut self, up: bool, families: &Families) -> Result<()> {
        let Api::Embedded { server, running } = self else {
            bail!("the API server is the user's own: only its owner stops it");
        };
        if !up {
            if let Some(running) = running.take() {
                running.stop().await;
            }
            return Ok(());
        }
        let address = Plan::api_server(families);
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("listen on {address} for the API server"))?;
        *running = Some(serve(listener, server.clone()).context("serve the API server")?);
        Ok(())
    }

    /// What a daemon reads, as JSON, which is YAML.
    #[must_use]
    pub fn kubeconfig(&self, node: &NodeName, families: &Families) -> Value {
        match self {
            Api::Own { kubeconfig, .. } => kubeconfig.clone(),
            Api::Embedded { .. } => json!({
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "lab",
                "clusters": [{"name": "lab", "cluster": {"server": format!("http://{}", Plan::api_server(families))}}],
                "users": [{"name": node, "user": {}}],
                "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": node}}],
            }),
        }
    }
}
