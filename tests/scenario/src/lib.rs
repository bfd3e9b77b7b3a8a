//! Scenarios of a meshd cluster: written once, run on every arm.
//!
//! A [`Scenario`] is a text (YAML): nodes, and steps with their expectations. An [`Arm`] is a cluster that can
//! carry steps out: the simulator, network namespaces on a real kernel, a Kubernetes cluster. [`run`] takes the one
//! to the other and gives a [`Report`]: a [`Proof`] a step, each with its numbers.

pub mod arm;
mod endpoints;
mod engine;
mod faults;
mod outside;
mod reach;
pub mod report;
pub mod scenario;
pub mod step;
pub mod time;

pub use arm::{
    Arm, ArmError, MARKER, Outcome, Outside, Pod, Probe, ProbeKind, Site, StreamReport, UnderlayReport,
    addresses,
};
pub use engine::run;
pub use report::{NodeRow, Progress, Proof, Report, RoundTrips};
pub use scenario::{BehindNat, Scenario, ScenarioError};
pub use step::Step;
pub use time::Span;
