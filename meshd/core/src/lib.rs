//! The meshd agent: every decision of a node, as a state machine without IO.
//!
//! No clock, no randomness, no sockets, no tokio, no Kubernetes client: time and the seed are parameters, what
//! the world says comes in as an [`Event`], what shall be done goes out as an [`Action`], and the outcome of an
//! action comes back as an event. The same agent runs on a node (`meshd`) and in the simulator (`meshd-sim`).
//!
//! ```text
//! agent       takes events in: updates what is known, marks keys
//!   nodes       other nodes: annotations checked (node, bounds), overlaps resolved (claims)
//!   own         this node: overlay addresses, endpoints, MTU, annotations (refresh)
//!   pods        pods that ADD may be asked for
//!   blocks      pod CIDRs that the node claims for itself, in IPAM's pool mode
//!   observed    the agent's copy of the kernel
//!   attach      ADD, DEL, CHECK, leases, requests
//! reconcile   desired against observed for each marked key
//!   peers, greet, routes, publish, attach::lifecycle
//! ops         outstanding actions, back-off (outcome)
//! status      what people see (problems, readiness)
//! ```

pub mod action;
pub mod agent;
mod attach;
mod blocks;
mod bounds;
mod claims;
pub mod config;
pub mod counters;
mod errno;
pub mod event;
mod few;
mod greet;
mod jitter;
mod network;
mod node;
mod nodes;
pub mod numbers;
mod observed;
mod ops;
mod outcome;
mod own;
mod peers;
mod pod_events;
mod pods;
mod prefix_map;
mod problems;
mod publish;
mod readiness;
mod reconcile;
mod refresh;
mod routes;
mod status;
mod timers;

pub use action::{
    Action, ActionId, BlockOp, CniAction, KernelAction, KernelOp, KubeAction, Resource, StoreAction,
};
pub use agent::NodeAgent;
pub use attach::collect::Abandoned;
pub use blocks::PoolUse;
pub use config::{Config, Endpoints, Identity, Ipam, METADATA, Outside, Pool};
pub use counters::Counters;
pub use event::{CniCall, CniEvent, Event, Failure, KernelEvent, KubeEvent, RequestId, StoreEvent};
pub use numbers::Numbers;
pub use pod_events::{PodEvent, PodReason};
pub use routes::ROUTE_METRIC;

use meshd_model::PublicKey;

/// Which timer a deadline belongs to: it travels with the deadline, so that a record shows why the agent woke.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum TimerKind {
    /// Observe the kernel again and repair what differs.
    Resync,
    /// Try again what failed on this resource.
    Retry(Resource),
    /// A request of the local socket that must be answered by then.
    Deadline(RequestId),
    /// A freed address may be handed out again.
    Rest,
    /// The grace of an attachment that looks abandoned is over.
    Collect,
    /// Look whether blocks are empty that may be given back.
    Blocks,
    /// The time that a pod's addresses are kept is over.
    Kept,
    /// Greet a peer that may hold a session which this node's device has lost.
    Greet(PublicKey),
}
