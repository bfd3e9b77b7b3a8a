//! A small Kubernetes API server as a library without IO: list, watch, get, create, update, patch and delete of
//! the kinds that meshd uses, as a real kube-apiserver answers them.
//!
//! Time is a parameter and UIDs come from a seed, so the simulator runs it in simulated time; `meshd-apiserver-http`
//! serves the same over TCP. What a test claims of it, it claims of a real server too: the same bodies run on both.
//!
//! ```text
//! Request -> route -> list, watch            -> Store (objects, history of changes)
//!                     write, delete          -> object (identity, validation) -> managed (field owners) -> Store
//!            Store -- change --> Watches (a bounded queue of frames each) -> poll_watch
//! ```

mod apply;
mod config;
mod delete;
mod discovery;
mod fields;
mod list;
mod managed;
mod manifest;
mod node_ipam;
mod object;
mod patch;
mod request;
mod resource;
mod route;
mod selector;
mod server;
mod status;
mod store;
mod text;
mod validate;
mod watch;
mod write;

pub use config::{Config, NodeCidrs, NodeIpam};
pub use manifest::ManifestError;
pub use request::{
    APPLY_PATCH, BODY_MAX, Body, EventType, JSON_PATCH, MERGE_PATCH, Method, PARTIAL, PARTIAL_LIST, Reply,
    Request, Response, STRATEGIC_MERGE_PATCH, Time, WatchFrame, WatchId,
};
pub use resource::Resource;
pub use server::ApiServer;
