//! A meshd cluster on one machine: nodes and pods are network namespaces inside a sandbox of new namespaces, with
//! one real `meshd` and one real `meshd-wg` process a node, a bridge as the underlay, and an API server.

pub mod capture;
pub mod netns;
pub mod plan;
pub mod sandbox;
pub mod traffic;
pub mod underlay;
