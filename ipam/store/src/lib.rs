//! Durable storage of a node's leases: [`store`] says what it must do, [`file_store`] does it with files.

pub mod file_store;
pub mod kept;
pub mod store;

pub use file_store::FileStore;
pub use kept::KeptStore;
pub use store::{Damaged, LeaseStore, Loaded, StoreError};
