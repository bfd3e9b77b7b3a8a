//! Linux for meshd: carries out the agent's [`KernelAction`](meshd_core::KernelAction)s and says what is there.
//!
//! [`KernelDriver::start`] gives two bounded channels: actions go in, and for each exactly one event comes out, in
//! order. Events that nobody asked for (`Observed`) come in between when something of ours was changed by another
//! hand.

mod address;
mod config;
mod device;
mod driver;
mod entrant;
mod error;
mod firewall;
mod foreign;
mod link;
mod neigh;
mod netlink;
mod netns;
mod observe;
mod pod;
mod route;
mod rule;
mod sysctl;
mod teardown;
mod watch;

pub use config::{DeviceChoice, DriverConfig, KeySource};
pub use driver::{DriverError, KernelDriver};
pub use pod::{differences, obstacle};
pub use teardown::{Teardown, teardown};
