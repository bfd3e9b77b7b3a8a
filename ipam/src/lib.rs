//! Address allocation of a node.
//!
//! - [`allocator`] decides: pure, part of the agent's state and of its snapshots.
//! - [`store`] says what durable storage of leases must do, [`file_store`] does it with files.

pub mod allocator;

pub use allocator::{Allocator, AlreadyTaken, Counts, Exhausted};
