//! Scenarios of a meshd cluster: written once, run on every arm.
//!
//! A [`Scenario`] is a text (YAML): nodes, and steps with their expectations. An [`Arm`] is a cluster that can
//! carry steps out: the simulator, network namespaces on a real kernel, a Kubernetes cluster.

pub mod arm;

pub use arm::{Arm, ArmError, MARKER, Outcome, Pod, Probe, ProbeKind, Site, StreamReport, UnderlayReport};
