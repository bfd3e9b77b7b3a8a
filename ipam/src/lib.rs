//! Address allocation of a node.
//!
//! - [`allocator`] decides: pure, part of the agent's state and of its snapshots.
//! - [`store`] says what durable storage of leases must do, [`file_store`] does it with files.

pub mod allocator;
pub mod file_store;
pub mod store;

pub use allocator::{Allocator, AlreadyTaken, Counts, Exhausted};
pub use file_store::FileStore;
pub use store::{Damaged, LeaseStore, Loaded, StoreError};
