//! The local socket: the CNI plugin and `meshctl` ask, one request a connection, one line of JSON each way.
//!
//! Only root and the daemon's own user are answered. What arrives is bounded in length, time and number before it is
//! parsed. `meshd_model::cni` has the messages.

mod listener;
mod notes;
mod session;

pub mod client;

use meshd_core::{CniCall, Numbers, RequestId};
use meshd_model::Boot;
use meshd_model::cni::{Added, Check, CniError};
use meshd_model::status::Status;
use std::pin::Pin;
use tokio::sync::oneshot;

pub use listener::{Listener, SocketError};

/// What the agent answers a runtime with; none of a result for DEL, CHECK and GC.
pub type Reply = Result<Option<Added>, CniError>;

/// A look at a pod's end of its link, for CHECK: what differs.
pub type Look = fn(Check) -> Pin<Box<dyn Future<Output = Result<Vec<String>, String>> + Send>>;

/// What the socket says to the event loop.
#[derive(Debug)]
pub enum SocketMessage {
    /// A runtime asks.
    Request {
        /// Names the request.
        id: RequestId,
        /// When the caller stops waiting.
        deadline: Boot,
        /// What is asked.
        call: Box<CniCall>,
        /// Where the answer goes.
        reply: oneshot::Sender<Reply>,
    },
    /// The caller went away, or its time is over.
    Gone(RequestId),
    /// The status will be asked for: the kernel is to be looked at, unless it just was. The sender is dropped when
    /// that is done.
    Look(oneshot::Sender<()>),
    /// The status is asked for.
    Status(oneshot::Sender<Status>),
    /// Whoever reads the metrics asks for the agent in numbers.
    Numbers(oneshot::Sender<Numbers>),
    /// A probe asks what ADD lacks to succeed.
    Ready(oneshot::Sender<Option<String>>),
    /// Every deletion that was noted before the start was tried.
    Finished,
    /// A runtime asks for CNI STATUS.
    CniStatus(oneshot::Sender<Result<(), CniError>>),
}
