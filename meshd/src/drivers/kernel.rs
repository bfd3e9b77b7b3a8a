//! The node's kernel.

use super::Port;
use crate::key::NodeKey;
use crate::settings::Settings;
use crate::settings::value::WireguardMode;
use meshd_core::{KernelAction, KernelEvent};
use meshd_kernel::{DeviceChoice, DriverConfig, DriverError, KernelDriver, KeySource};
use meshd_model::KeyHandle;
use std::sync::Arc;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

/// The handle of the node's only key.
pub const HANDLE: KeyHandle = KeyHandle(1);

/// Gives the driver the node's key.
struct Keys(Arc<NodeKey>);

impl KeySource for Keys {
    fn private_key(&self, handle: KeyHandle) -> Option<Zeroizing<[u8; 32]>> {
        (handle == HANDLE).then(|| self.0.secret().clone())
    }
}

/// The driver's part of the configuration.
#[must_use]
pub fn driver_config(settings: &Settings) -> DriverConfig {
    let mut config = DriverConfig::new(&settings.wireguard.interface);
    config.uapi_dir.clone_from(&settings.wireguard.socket_dir);
    config.choice = match settings.wireguard.mode {
        WireguardMode::Auto => DeviceChoice::Auto,
        WireguardMode::Kernel => DeviceChoice::Kernel,
        WireguardMode::Userspace => DeviceChoice::Userspace,
    };
    config
}

/// Starts the driver; its task ends once the port is dropped and what it was sent is done.
pub fn start_kernel(
    settings: &Settings,
    key: Arc<NodeKey>,
) -> Result<(Port<KernelEvent, KernelAction>, JoinHandle<()>), DriverError> {
    let driver = KernelDriver::start(driver_config(settings), Arc::new(Keys(key)))?;
    Ok((Port::new("kernel", driver.events, driver.actions), driver.task))
}
