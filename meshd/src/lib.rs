//! The node daemon: everything round the agent that has to touch the world.
//!
//! ```text
//!             kube ──┐                  ┌── kube
//!           kernel ──┤ events   actions ├── kernel
//!     local socket ──┤───▶  run::Loop ──▶├── local socket
//!            store ──┘   (owns the      └── store
//!           clock ──▶     NodeAgent) ───▶ record
//! ```
//!
//! One task owns the agent; the drivers are tasks of their own behind bounded channels. The library exists so that
//! tests and the lab reach the parts: the binary is [`cli`] and nothing else.

pub mod cli;
pub mod clock;
pub mod cni_files;
pub mod daemon;
pub mod drivers;
pub mod key;
pub mod limit;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod own_address;
pub mod record;
pub mod run;
pub mod settings;
pub mod socket;
pub mod teardown;
pub mod uninstall;
