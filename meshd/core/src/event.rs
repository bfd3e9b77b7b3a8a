//! What the world says to the agent.

use crate::action::ActionId;
use ipnetwork::IpNetwork;
use meshd_model::cni::{Add, Check, Gc};
use meshd_model::kernel::KernelState;
use meshd_model::{AttachmentId, Block, Boot, Kept, Lease, NodeMeta, NodeName, OwnNode, PodMeta, PodRef};
use serde::{Deserialize, Serialize};

/// One input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// From the API server.
    Kube(KubeEvent),
    /// From the node's kernel.
    Kernel(KernelEvent),
    /// From the local socket.
    Cni(CniEvent),
    /// From the lease store.
    Store(StoreEvent),
}

/// Why an action failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The system's error number, where there is one.
    pub errno: Option<i32>,
    /// What was tried, on what, and what came of it.
    pub message: String,
}

/// From the API server. A watch begins with `..Reset`, then one `..Applied` for each object there is, then
/// `..Synced`; what was known before and was not named again is gone. A watch that has to list again does the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KubeEvent {
    /// The list of Nodes begins.
    NodesReset,
    /// A Node is there, or changed.
    NodeApplied(NodeMeta),
    /// A Node is gone.
    NodeDeleted(NodeName),
    /// The list of Nodes is complete.
    NodesSynced,
    /// The own Node, whole. Also says that the API server was reached.
    OwnNode(OwnNode),
    /// The own Node is gone from the API server.
    OwnNodeDeleted,
    /// The list of the node's pods begins.
    PodsReset,
    /// A pod is bound to this node and not finished, or changed.
    PodApplied(PodMeta),
    /// A pod is gone or finished.
    PodDeleted(PodRef),
    /// The list of the node's pods is complete.
    PodsSynced,
    /// The list of blocks begins; only in IPAM's pool mode, like the other events of blocks.
    BlocksReset,
    /// A block has an object, or that has changed.
    BlockApplied(Block),
    /// A block's object is gone.
    BlockDeleted(IpNetwork),
    /// The list of blocks is complete.
    BlocksSynced,
    /// A watch or a request could not reach the API server. The next success of any kind ends it.
    Unreachable {
        /// What was tried and what came of it.
        message: String,
    },
    /// A [`crate::KubeAction`] was carried out.
    Applied(ActionId),
    /// A [`crate::KubeAction`] failed.
    Failed {
        /// Which.
        id: ActionId,
        /// Why.
        failure: Failure,
    },
}

/// From the node's kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelEvent {
    /// What is there: the answer to `Observe`, and sent unasked when something of ours changed by another hand.
    Observed(Box<KernelState>),
    /// A [`crate::KernelAction`] was carried out.
    Applied(ActionId),
    /// A [`crate::KernelAction`] failed; what it did in part was undone where that was possible.
    Failed {
        /// Which.
        id: ActionId,
        /// Why.
        failure: Failure,
    },
}

/// Names a request of the local socket, unique in the life of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub u64);

/// From the local socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CniEvent {
    /// A runtime asks; each is answered once, with [`crate::CniAction::Reply`], by its deadline.
    Request {
        /// To answer to.
        id: RequestId,
        /// When the caller stops waiting.
        deadline: Boot,
        /// What is asked.
        call: Box<CniCall>,
    },
    /// The caller went away before it was answered; what was begun is finished or undone all the same.
    Gone(RequestId),
    /// Somebody asks for the status: the kernel is observed again, since counters and endpoints change by themselves.
    Look,
}

/// What a runtime asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CniCall {
    /// CNI ADD.
    Add(Add),
    /// CNI DEL.
    Del(AttachmentId),
    /// CNI CHECK.
    Check(Check),
    /// CNI GC.
    Gc(Gc),
}

/// From the lease store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreEvent {
    /// What the store holds; answers `Load`.
    Loaded {
        /// Every lease that could be read.
        leases: Vec<Lease>,
        /// For each that could not: what, and where it was put aside.
        damaged: Vec<String>,
        /// Every record of kept addresses that could be read.
        #[serde(default)]
        kept: Vec<Kept>,
        /// For each of those that could not: what, and where it was put aside.
        #[serde(default)]
        damaged_kept: Vec<String>,
    },
    /// A [`crate::StoreAction`] was carried out: it survives kill -9 of any process from now on.
    Applied(ActionId),
    /// A [`crate::StoreAction`] failed.
    Failed {
        /// Which.
        id: ActionId,
        /// Why.
        failure: Failure,
    },
}
