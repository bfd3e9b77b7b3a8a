//! The agent itself.

use crate::{Action, Config, Event, TimerKind};
use meshd_model::status::Status;
use meshd_model::{Boot, Now};
use serde::{Deserialize, Serialize};

/// One node's agent.
///
/// Whoever drives it: call [`handle_event`](Self::handle_event) for each thing that happens, and
/// [`handle_timeout`](Self::handle_timeout) when the time of [`poll_timeout`](Self::poll_timeout) has come; after
/// either, call [`poll_action`](Self::poll_action) until it gives nothing, then `poll_timeout` again. `now` never
/// runs backwards in its boot part.
///
/// The agent serialises whole: that is the snapshot at the head of each segment of a recording.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeAgent {
    config: Config,
}

impl NodeAgent {
    /// An agent that knows nothing yet; its first actions load the store and observe the kernel.
    #[must_use]
    pub fn new(config: Config, _seed: u64, _now: Now) -> Self {
        Self { config }
    }

    /// Takes in one event.
    pub fn handle_event(&mut self, _now: Now, _event: Event) {}

    /// Does what has come due.
    pub fn handle_timeout(&mut self, _now: Now) {}

    /// The next thing to be done.
    pub fn poll_action(&mut self) -> Option<Action> {
        None
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) next, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Boot, TimerKind)> {
        None
    }

    /// What `meshctl status` shows.
    #[must_use]
    pub fn status(&self, _now: Now) -> Status {
        unreachable!("{:?}", self.config)
    }

    /// Whether ADD can succeed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        false
    }
}
