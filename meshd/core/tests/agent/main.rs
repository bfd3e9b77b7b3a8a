//! The agent against a kernel, a store and an API server that are interpreters of its actions.

mod addresses;
mod basics;
mod blocks;
mod cni;
mod cni_status;
mod collect;
mod cost;
mod firewall;
mod hostile;
mod hostile_blocks;
mod kept;
mod kept_blocks;
mod kept_bounds;
mod kernel;
mod own;
mod peers;
mod properties;
mod restart;
mod rules;
mod store;
mod world;
