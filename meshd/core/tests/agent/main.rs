//! The agent against a kernel, a store and an API server that are interpreters of its actions.

mod basics;
mod kernel;
mod world;
