//! What the driver is told at its start.

use meshd_model::KeyHandle;
use std::path::PathBuf;
use zeroize::Zeroizing;

/// What shall carry the tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The kernel's WireGuard where it has it, otherwise a userspace device.
    #[default]
    Auto,
    /// The kernel's WireGuard, or failure.
    Kernel,
    /// A process that speaks the cross-platform userspace protocol, such as `meshd-wg`.
    Userspace,
}

/// Configuration of the driver.
#[derive(Clone, Debug)]
pub struct DriverConfig {
    /// Name of the WireGuard interface: what is observed. `SetDevice` names the same.
    pub device: String,
    /// What shall carry the tunnel.
    pub choice: DeviceChoice,
    /// Where the userspace device has its socket, `<dir>/<device>.sock`.
    pub uapi_dir: PathBuf,
    /// Whether nobody else may change the firewall's table while the driver runs, where the kernel can see to that
    /// (Linux 6.9): another tool's `flush ruleset` passes it over. It stays when the driver ends, and anybody may
    /// change it then.
    pub hold_table: bool,
}

impl DriverConfig {
    /// Folder of the sockets of userspace devices, as `wg` knows it.
    pub const UAPI_DIR: &str = "/var/run/wireguard";

    /// The defaults for a device of this name.
    #[must_use]
    pub fn new(device: &str) -> Self {
        Self {
            device: device.to_owned(),
            choice: DeviceChoice::Auto,
            uapi_dir: Self::UAPI_DIR.into(),
            hold_table: true,
        }
    }

    /// Path of the userspace device's socket.
    #[must_use]
    pub fn uapi_socket(&self) -> PathBuf {
        self.uapi_dir.join(format!("{}.sock", self.device))
    }
}

/// Gives the driver the private keys that the agent knows by handle only. An implementation never logs them.
pub trait KeySource: Send + Sync + 'static {
    /// The private key that the handle names; None if there is none.
    fn private_key(&self, handle: KeyHandle) -> Option<Zeroizing<[u8; 32]>>;
}
