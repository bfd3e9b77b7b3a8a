//! The deterministic simulator of a meshd cluster: an event queue over IP packets as bytes and sans-IO agents.
//!
//! What is real: the agent (`meshd-core`), its Kubernetes translation, WireGuard's handshake and crypto, the API
//! server's answers. What is simulated: time, the underlay, the kernel's tables, the lease store. There is no clock,
//! no thread and no chance in it but the seed's: the same [`Config`] gives the same run, to the byte.
//!
//! [`Sim`] is the cluster, [`SimArm`] lets scenarios run on it, [`run_demo`] runs the built-in one.

mod arm;
mod capture;
mod client;
mod cluster;
mod config;
mod demo;
mod faults;
mod invariant;
mod kernel;
mod kubelet;
mod make;
mod nat;
mod node;
mod packet;
mod path;
#[cfg(test)]
mod path_tests;
mod queue;
mod random;
mod sim;
mod trace;
mod traffic;
mod underlay;

pub use arm::SimArm;
pub use config::{Config, NODES_MAX};
pub use demo::{DemoError, SimReport, run_demo, run_scenario};
pub use kernel::ops::{EIO, Fault, FaultKind, OpKind};
pub use node::CniResult;
pub use sim::{Sim, Violation};
pub use underlay::Link;
