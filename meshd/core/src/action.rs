//! What the agent wants done. Each action has an id, and exactly one event with that id says how it ended, unless
//! its own event does (`Observed`, `Loaded`).

use crate::event::RequestId;
use crate::pod_events::{PodEvent, PodReason};
use ipnetwork::IpNetwork;
use meshd_model::cni::{Added, CniError};
use meshd_model::kernel::{Device, Firewall, Peer, PodLink, Route, Rule};
use meshd_model::net::Family;
use meshd_model::{AttachmentId, Kept, KeptKey, Lease, NodeAnnotations, NodeUid, PodRef, PublicKey, Wall};
use serde::{Deserialize, Serialize};

/// One output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// For the API server.
    Kube(KubeAction),
    /// For the node's kernel. A driver carries these out in the order given; it may batch.
    Kernel(KernelAction),
    /// For the local socket.
    Cni(CniAction),
    /// For the lease store.
    Store(StoreAction),
}

/// What an action is about. With a generation it names the action, so that the same history gives the same ids.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Resource {
    /// The nftables table.
    Firewall,
    /// The way for pods' packets through iptables' FORWARD chains.
    Forward,
    /// The WireGuard interface.
    Device,
    /// A peer of it.
    Peer(PublicKey),
    /// A route, by what the kernel tells routes apart with.
    Route {
        /// Routing table.
        table: u32,
        /// Destination.
        dst: IpNetwork,
        /// Metric.
        metric: u32,
    },
    /// A policy rule, by its source.
    Rule(IpNetwork),
    /// A pod's link and its lease.
    Attachment(AttachmentId),
    /// The own Node's annotations.
    Annotations,
    /// The own Node's condition NetworkUnavailable.
    NetworkCondition,
    /// A further block of this family, in IPAM's pool mode.
    Claim(Family),
    /// A block of this node that is given back.
    Block(IpNetwork),
    /// An Event on a pod.
    PodEvent(PodRef, PodReason),
    /// The kernel as a whole: an observation.
    Kernel,
    /// The store as a whole: loading it.
    Store,
    /// The record of addresses that are kept for a pod.
    Kept(KeptKey),
}

/// Names an action: its resource, and how many actions on that resource came before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ActionId {
    /// What it is about.
    pub resource: Resource,
    /// Which of those on this resource, from 1.
    pub generation: u64,
}

/// For the API server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KubeAction {
    /// Write the own Node's annotations by server-side apply; fails if the Node's UID is another.
    Publish {
        /// To answer to.
        id: ActionId,
        /// Which incarnation of the Node.
        uid: NodeUid,
        /// What to write.
        annotations: NodeAnnotations,
    },
    /// Set the own Node's condition NetworkUnavailable to False; fails if the Node's UID is another.
    ClearNetworkUnavailable {
        /// To answer to.
        id: ActionId,
        /// Which incarnation of the Node.
        uid: NodeUid,
        /// Since when it is so, for the condition's own stamps.
        at: Wall,
    },
    /// Change a block's object.
    Block {
        /// To answer to.
        id: ActionId,
        /// Which block.
        cidr: IpNetwork,
        /// What to do.
        op: BlockOp,
    },
    /// Create an Event on a pod.
    PodEvent {
        /// To answer to.
        id: ActionId,
        /// What to tell.
        event: PodEvent,
        /// When it happened.
        at: Wall,
    },
}

impl KubeAction {
    /// What its outcome names.
    #[must_use]
    pub fn id(&self) -> &ActionId {
        match self {
            KubeAction::Publish { id, .. }
            | KubeAction::ClearNetworkUnavailable { id, .. }
            | KubeAction::Block { id, .. }
            | KubeAction::PodEvent { id, .. } => id,
        }
    }
}

/// One change of a block's object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockOp {
    /// Create it, with this incarnation of the own Node as its owner. Fails with EEXIST where there is one.
    Claim {
        /// Of the own Node.
        uid: NodeUid,
    },
    /// Mark it as given back. Fails where the object's UID is another.
    Release {
        /// UID of the object.
        object: String,
    },
    /// Delete it. Fails where the object's UID is another; one that is gone is success.
    Delete {
        /// UID of the object.
        object: String,
    },
}

/// For the node's kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelAction {
    /// To answer to.
    pub id: ActionId,
    /// What to do.
    pub op: KernelOp,
}

/// One change of the kernel. Each is idempotent: it makes the named thing so, whatever was there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelOp {
    /// Say what is there.
    Observe,
    /// Put the table in force, replacing an older one in one transaction; the pods' entries stay.
    SetFirewall(Firewall),
    /// Let what comes from and goes to pods and this device pass iptables' FORWARD chains where these drop by default.
    PassForward {
        /// The WireGuard interface.
        device: String,
    },
    /// Make the interface so: made if the kernel can, found if `meshd-wg` made it; keyed, addressed, up.
    SetDevice(Device),
    /// Make the peer so.
    SetPeer(Peer),
    /// Remove the peer.
    RemovePeer(PublicKey),
    /// Send something to the peer at once: a keepalive, or the handshake that has to come before it. Nothing without the
    /// peer.
    Greet {
        /// Whom.
        peer: PublicKey,
        /// Its keepalive, which stays as it is: to change it for a moment is what makes WireGuard send.
        keepalive: Option<u16>,
    },
    /// Add the route, replacing one to the same destination in the same table with the same metric.
    SetRoute(Route),
    /// Remove the route.
    RemoveRoute(Route),
    /// Add the rule.
    SetRule(Rule),
    /// Remove the rule.
    RemoveRule(Rule),
    /// Make the pod's link so. Entries against spoofing come first, then the link, then the routes to it.
    /// Fails with ENOENT where the pod's namespace is gone, with EEXIST where its interface name is taken by an
    /// interface that is not ours.
    AttachPod(PodLink),
    /// Cut the pod off: its routes and entries go, so that no packet comes from it or reaches it. Nothing of it being there
    /// is success. The link itself stays until `RemovePodLink`.
    DetachPod(PodLink),
    /// Delete the pod's link, and what of routes and entries is left. Done when the interface is truly gone, which may take
    /// the kernel tens of milliseconds: a driver may go on with later actions meanwhile, so that this outcome, alone of all,
    /// may come after those of later actions. Nothing of it being there is success.
    RemovePodLink(PodLink),
}

/// For the local socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CniAction {
    /// Answer a request.
    Reply {
        /// Which.
        id: RequestId,
        /// None of a result for DEL and CHECK.
        result: Result<Option<Added>, CniError>,
    },
}

/// For the lease store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreAction {
    /// Read it all.
    Load {
        /// To answer to, if it fails as a whole.
        id: ActionId,
    },
    /// Write a lease, replacing an older one of the same attachment.
    Put {
        /// To answer to.
        id: ActionId,
        /// What to write.
        lease: Lease,
    },
    /// Remove a lease.
    Remove {
        /// To answer to.
        id: ActionId,
        /// Whose.
        attachment: AttachmentId,
    },
    /// Write a record of kept addresses, replacing an older one of the same pod. It survives a reboot, which takes long to
    /// make sure of: a driver does this and `Unkeep` in order, but beside all else, so that their outcomes may come after
    /// those of later actions.
    Keep {
        /// To answer to.
        id: ActionId,
        /// What to write.
        kept: Kept,
    },
    /// Remove a record of kept addresses, for good.
    Unkeep {
        /// To answer to.
        id: ActionId,
        /// Whose.
        key: KeptKey,
    },
}
