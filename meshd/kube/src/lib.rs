//! Kubernetes for meshd: its watches and one writer.
//!
//! ```text
//! Nodes, metadata only   --\
//! the own Node, whole    ---> translate --> KubeEvent --> the agent
//! the own Node's pods    --|
//! IPBlocks, metadata only --/  (in IPAM's pool mode)
//! KubeAction --> server-side apply of the own Node's annotations, writes of IPBlocks --> Applied or Failed
//! ```
//!
//! Each watch begins with a list that the API server streams (`sendInitialEvents`), which costs it least; one that
//! cannot is asked for pages. A watch that fails is taken up again where it was, after a pause that grows and has
//! jitter; one whose history is gone lists again, and the larger the cluster, the longer all of its nodes take to do
//! so. That the API server cannot be reached is told once; that it is back is told by the own Node, which is listed
//! again after every failure of any watch. A new client, which a node needs that has lost the address of its
//! connections, makes every watch begin with a list.

mod access;
mod backoff;
mod blocks;
mod client;
mod clients;
mod driver;
mod link;
mod metadata;
mod pace;
mod publish;
pub mod removal;
mod watch;

pub use access::{Access, SERVICE_ACCOUNT, Server};
pub use client::{ClientError, connect};
pub use driver::{run, run_with};
