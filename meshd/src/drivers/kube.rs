//! The API server.

use super::Port;
use crate::settings::Settings;
use meshd_core::{KubeAction, KubeEvent};
use tokio::sync::mpsc;

/// Starts the driver.
#[must_use]
pub fn start_kube(_settings: &Settings) -> Port<KubeEvent, KubeAction> {
    let (actions, mut requests) = mpsc::channel(64);
    let (outcomes, events) = mpsc::channel(64);
    tokio::spawn(async move {
        while requests.recv().await.is_some() {}
        drop(outcomes);
    });
    Port::new("kube", events, actions)
}
