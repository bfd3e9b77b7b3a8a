//! What the parts of the driver share: the way to the agent, and whether the API server was last reached.

use crate::client::chain;
use meshd_core::KubeEvent;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{Notify, mpsc};

/// The agent does not listen any more: the driver ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed;

/// Where events go.
#[derive(Debug)]
pub(crate) struct Link {
    events: mpsc::Sender<KubeEvent>,
    /// What the agent was last told, by an event that came of a success or by `Unreachable`.
    reachable: AtomicBool,
    lost: Notify,
}

impl Link {
    pub(crate) fn new(events: mpsc::Sender<KubeEvent>) -> Self {
        Self {
            events,
            reachable: AtomicBool::new(true),
            lost: Notify::new(),
        }
    }

    /// Tells what the API server said. Waits where the agent is behind: a watch that is not read is the API server's
    /// to slow down or to end.
    pub(crate) async fn tell(&self, event: KubeEvent) -> Result<(), Closed> {
        self.reachable.store(true, Ordering::Relaxed);
        self.events.send(event).await.map_err(|_| Closed)
    }

    /// Tells that an action failed, which says nothing of whether the API server was reached.
    pub(crate) async fn fail(&self, event: KubeEvent) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }

    /// Tells that the API server was not reached, or refused a watch; once, until something succeeds.
    pub(crate) async fn unreachable(
        &self,
        what: &str,
        error: &(dyn std::error::Error + Send + Sync),
    ) -> Result<(), Closed> {
        let message = format!("{what}: {}", chain(error));
        tracing::debug!(%message, "the API server was not reached");
        if self.reachable.swap(false, Ordering::Relaxed) {
            let event = KubeEvent::Unreachable { message };
            self.events.send(event).await.map_err(|_| Closed)?;
        }
        self.lost.notify_one();
        Ok(())
    }

    /// Some watch or request failed: somebody has to find out when the API server is back, and say so.
    pub(crate) async fn lost(&self) {
        self.lost.notified().await;
    }

    /// The agent is gone.
    pub(crate) async fn closed(&self) {
        self.events.closed().await;
    }
}
