//! Address allocation of a node: pure, part of the agent's state and of its snapshots. The leases that make it
//! durable are kept by `meshd-ipam-store`.

pub mod allocator;

pub use allocator::{Allocator, AlreadyTaken, Counts, Exhausted, Refused};
