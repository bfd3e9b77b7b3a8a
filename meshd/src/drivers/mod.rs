//! Starts what carries the agent's actions out, and connects each to the event loop with a [`Port`].

mod kernel;
mod kube;
mod port;
mod store;

pub use kernel::{HANDLE, driver_config, start_kernel};
pub use kube::{access, start_kube};
pub use port::{Closed, Port};
pub use store::{FOLDER as STORE_FOLDER, start_store};
