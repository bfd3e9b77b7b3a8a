//! The API server that the nodes see at the bridge's address: the embedded one, or a relay to the user's own.

use crate::plan::Plan;
use anyhow::{Result, bail};
use meshd_model::NodeName;

/// The API server as the nodes see it.
pub struct Api {
    up: bool,
}

impl Api {
    /// The embedded one, not started yet.
    #[must_use]
    pub fn embedded() -> Self {
        Self { up: false }
    }

    /// Starts it.
    pub async fn start(mut self) -> Result<Self> {
        self.set_up(true).await?;
        Ok(self)
    }

    /// Whether it can be reached.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Stops or restarts it.
    pub async fn set_up(&mut self, up: bool) -> Result<()> {
        self.up = up;
        bail!("to be written");
    }

    /// What a node's daemon reads.
    #[must_use]
    pub fn kubeconfig(&self, node: &NodeName) -> String {
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             current-context: lab\n\
             clusters:\n\
             - name: lab\n  cluster:\n    server: http://{}\n\
             users:\n\
             - name: {node}\n  user: {{}}\n\
             contexts:\n\
             - name: lab\n  context:\n    cluster: lab\n    user: {node}\n",
            Plan::api_server()
        )
    }
}
