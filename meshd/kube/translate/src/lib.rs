//! Kubernetes objects to meshd's model and back, without IO: the annotations of a Node, Nodes, pods, and the frames
//! of a watch.

pub mod annotations;
pub mod blocks;
pub mod event;
pub mod object;
pub mod pod;

pub use annotations::{CONDITION_MANAGER, FIELD_MANAGER, decode, encode, network_body, publish_body};
pub use blocks::block_event;
pub use event::{Frame, frame, node_event, own_node_event, pod_event};
pub use object::{ObjectProblem, counts, node_meta, own_node, pod_ref};
pub use pod::{pod_event_body, pod_meta};
