//! The Node's condition NetworkUnavailable, which some clouds set to True when they make a Node: no pod is scheduled
//! there until somebody who gives it a network sets it to False.

use crate::TimerKind;
use crate::action::Resource;
use crate::agent::NodeAgent;
use crate::ops::Task;
use crate::reconcile::Plan;
use meshd_model::{Boot, NodeUid, Now};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Somebody else who keeps setting it is answered less and less often, up to this.
const LONGEST: Duration = Duration::from_secs(60);
/// After so long the next one is answered at once again.
const QUIET: Duration = Duration::from_secs(300);

/// How often it was cleared lately.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct NetworkCondition {
    times: u32,
    cleared: Boot,
    not_before: Boot,
}

impl NetworkCondition {
    /// It was cleared. The Node may be seen once more as it was before, so there is a wait from the first time on.
    fn note(&mut self, now: Boot) {
        self.times = self.times(now);
        let wait = Duration::from_millis(500).saturating_mul(1 << self.times.min(10));
        self.not_before = now + wait.min(LONGEST);
        self.times = self.times.saturating_add(1);
        self.cleared = now;
    }

    /// How often it was cleared lately: more than once if somebody sets it again.
    pub(crate) fn times(&self, now: Boot) -> u32 {
        if now.since(self.cleared) > QUIET {
            0
        } else {
            self.times
        }
    }
}

impl NodeAgent {
    /// Whether the Node says that its network is unavailable while pods can be added.
    pub(crate) fn is_network_denied(&self) -> bool {
        !self.own.deleted && self.own.node.as_ref().is_some_and(|n| n.network_unavailable) && self.is_ready()
    }

    pub(crate) fn plan_network(&mut self, now: Now) -> Plan {
        let Some(node) = self.own.node.as_ref().filter(|n| n.network_unavailable) else {
            return Plan::Gone;
        };
        if !self.is_network_denied() {
            return Plan::Hold;
        }
        if now.boot < self.network.not_before {
            let retry = TimerKind::Retry(Resource::NetworkCondition);
            self.timers.set(retry, self.network.not_before);
            return Plan::Hold;
        }
        Plan::Do(Task::ClearNetworkUnavailable {
            uid: node.uid.clone(),
        })
    }

    pub(crate) fn network_cleared(&mut self, now: Boot, uid: &NodeUid) {
        self.network.note(now);
        if let Some(node) = self.own.node.as_mut().filter(|n| n.uid == *uid) {
            node.network_unavailable = false;
        }
    }
}
