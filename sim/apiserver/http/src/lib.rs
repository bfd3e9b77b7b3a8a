//! The embedded Kubernetes API server over TCP: HTTP/1.1 without TLS or users, for loopback and namespaces of one's
//! own. One [`ApiServer`](meshd_apiserver::ApiServer) is shared by all connections; a watch is a chunked body that ends
//! with its connection.
//!
//! ```text
//! connection -> service -> ApiServer::handle -> response
//!                                           \-> watch: a task waits for the watch's frames, the body takes them
//! timer -> ApiServer::handle_timeout
//! ```

mod convert;
mod serve;
mod shared;

pub use serve::{Running, serve};
pub use shared::Shared;
