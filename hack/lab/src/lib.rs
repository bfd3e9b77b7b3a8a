//! A meshd cluster on one machine: nodes and pods are network namespaces inside a sandbox of new namespaces, with
//! one real `meshd` and one real `meshd-wg` process a node, a bridge as the underlay, and an API server.

pub mod arm;
pub mod binaries;
pub mod capture;
pub mod cluster;
pub mod keep;
pub mod kubernetes;
pub mod nat;
pub mod netns;
pub mod plan;
pub mod process;
pub mod sandbox;
pub mod scenario;
pub mod state;
pub mod traffic;
pub mod underlay;

pub use arm::NetnsArm;
pub use binaries::Binaries;
