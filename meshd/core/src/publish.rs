//! Publishing this node's annotations: only what is true, again when somebody else changes them, but not in a race.

use crate::TimerKind;
use crate::action::Resource;
use crate::agent::NodeAgent;
use crate::ops::Task;
use crate::reconcile::Plan;
use ipnetwork::IpNetwork;
use meshd_model::{Boot, NodeAnnotations, NodeUid, Now};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Somebody else who keeps changing the annotations is answered less and less often, up to this.
const MEND_MAX: Duration = Duration::from_secs(60);
/// After so long without a quarrel the next one is answered at once again.
const MEND_QUIET: Duration = Duration::from_secs(300);

/// What was published, and how often it was changed by another hand.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Publisher {
    last: Option<NodeAnnotations>,
    /// The Node, as it was made, that has named our key and a pod CIDR of ours: from then on peers can know the way here. An
    /// API server that is away, or a hand that takes annotations off, does not undo that.
    #[serde(default)]
    introduced: Option<NodeUid>,
    mends: u32,
    mended: Boot,
    not_before: Boot,
}

impl Publisher {
    /// The Node is another one: what was published is not its.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    pub(crate) fn published(&mut self, annotations: NodeAnnotations) {
        self.last = Some(annotations);
    }

    /// Somebody changed what was published: how long to leave it so.
    pub(crate) fn quarrel(&mut self, now: Boot) {
        self.mends = self.mends(now);
        let wait = Duration::from_millis(500).saturating_mul(1 << self.mends.min(10));
        self.not_before = if self.mends == 0 {
            now
        } else {
            now + wait.min(MEND_MAX)
        };
        self.mends = self.mends.saturating_add(1);
        self.mended = now;
    }

    /// How often another hand has changed the annotations lately.
    pub(crate) fn mends(&self, now: Boot) -> u32 {
        if now.since(self.mended) > MEND_QUIET {
            0
        } else {
            self.mends
        }
    }
}

impl NodeAgent {
    /// What is published may be ours now.
    pub(crate) fn note_introduced(&mut self) {
        let Some(node) = &self.own.node else { return };
        let Ok(published) = &node.published else { return };
        let leads_here = |c: &IpNetwork| published.pod_cidrs.contains(c);
        if published.public_key == self.config.identity.public_key && self.local.cidrs.iter().any(leads_here)
        {
            self.publisher.introduced = Some(node.uid.clone());
        }
    }

    /// Whether peers can know the way to this node's pods: its Node, as it is now, has named key and pod CIDR once.
    pub(crate) fn is_introduced(&self) -> bool {
        let uid = self.own.node.as_ref().map(|n| &n.uid);
        uid.is_some() && self.publisher.introduced.as_ref() == uid
    }

    /// The own Node was seen: whether another hand has undone what was published.
    pub(crate) fn note_published(&mut self, now: Boot) {
        let desired = self.local.annotations(&self.config);
        let seen = self.own.node.as_ref().and_then(|n| n.published.as_ref().ok());
        let undone = desired.is_some() && self.publisher.last == desired && seen != desired.as_ref();
        if undone && !self.ops.is_outstanding(&Resource::Annotations) {
            self.publisher.last = None;
            self.publisher.quarrel(now);
        }
    }

    pub(crate) fn plan_annotations(&mut self, now: Now) -> Plan {
        if !self.gate()
            || !self.own.is_current(self.config.ipam.pool.is_some())
            || !self.observed.device_fresh
            || !self.is_device_settled()
        {
            return Plan::Hold;
        }
        let (Some(node), Some(annotations)) = (&self.own.node, self.local.annotations(&self.config)) else {
            return Plan::Hold;
        };
        if node.published.as_ref() == Ok(&annotations) {
            self.publisher.last = Some(annotations);
            return Plan::Settled;
        }
        if now.boot < self.publisher.not_before {
            self.timers
                .set(TimerKind::Retry(Resource::Annotations), self.publisher.not_before);
            return Plan::Hold;
        }
        Plan::Do(Task::Publish {
            uid: node.uid.clone(),
            annotations,
        })
    }
}
