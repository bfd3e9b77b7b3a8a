//! The types that all of meshd shares: nodes, peers, pods, attachments, the desired and the observed state
//! of a node's kernel, and what crosses the daemon's local socket. Plain data with serde; no IO, no
//! Kubernetes client types.

pub mod attachment;
pub mod block;
pub mod cni;
pub mod kept;
pub mod kernel;
pub mod key;
pub mod net;
pub mod node;
pub mod pod;
pub mod status;
pub mod time;

pub use attachment::{AttachmentId, Lease, LeasePhase};
pub use block::Block;
pub use kept::{Kept, KeptKey};
pub use key::{KeyHandle, PublicKey};
pub use node::{AnnotationProblem, NodeAnnotations, NodeMeta, NodeName, NodeUid, OwnNode};
pub use pod::{PodMeta, PodRef, PodWants};
pub use time::{Boot, Now, Wall};
