//! The server itself.

use crate::config::Config;
use crate::request::{Reply, Request, Time, WatchFrame, WatchId};

/// A small Kubernetes API server without IO.
///
/// Whoever drives it: call [`handle`](Self::handle) for each request, and
/// [`handle_timeout`](Self::handle_timeout) when the time of [`poll_timeout`](Self::poll_timeout) has come; after
/// either, take frames with [`poll_watch`](Self::poll_watch) until it gives nothing, then `poll_timeout` again.
/// [`close_watch`](Self::close_watch) when a watch's client is gone.
#[derive(Debug)]
pub struct ApiServer {
    config: Config,
}

impl ApiServer {
    /// A server with the namespaces that every cluster has.
    #[must_use]
    pub fn new(config: Config, _now: Time) -> Self {
        Self { config }
    }

    /// Carries a request out.
    pub fn handle(&mut self, _now: Time, _request: Request) -> Reply {
        unreachable!("{:?}", self.config)
    }

    /// Does what has come due: bookmarks, watches whose time is over.
    pub fn handle_timeout(&mut self, _now: Time) {}

    /// When to call [`handle_timeout`](Self::handle_timeout) next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }

    /// The next frame of any watch: of the watch with the lowest id first, in its own order.
    pub fn poll_watch(&mut self) -> Option<(WatchId, WatchFrame)> {
        None
    }

    /// The next frame of one watch, for drivers whose clients take theirs at different speeds.
    pub fn poll_frame(&mut self, _watch: WatchId) -> Option<WatchFrame> {
        None
    }

    /// The watches that have frames to take.
    pub fn ready(&self) -> impl Iterator<Item = WatchId> + '_ {
        std::iter::empty()
    }

    /// Forgets a watch. One that is not there is no error.
    pub fn close_watch(&mut self, _watch: WatchId) {}

    /// Drops the history of events, as etcd's compaction does: a watch or a continued list from an older resource
    /// version is answered with 410 Gone from now on.
    pub fn compact(&mut self) {}

    /// Creates or replaces every object of a text with YAML or JSON documents, as `kubectl apply` would, in order.
    /// Stops at the first that fails; those before it stay.
    ///
    /// # Errors
    /// Says which document it was, and why.
    pub fn load_yaml(&mut self, _now: Time, _text: &str) -> Result<usize, crate::ManifestError> {
        Ok(0)
    }
}
