//! What was asked of the drivers and how it went: at most one task a resource at a time, back-off after a failure,
//! and who waits for whom.

use crate::action::{Action, ActionId, BlockOp, KernelAction, KernelOp, KubeAction, Resource, StoreAction};
use crate::event::Failure;
use crate::jitter::Jitter;
use crate::pod_events::PodEvent;
use ipnetwork::IpNetwork;
use meshd_model::{AttachmentId, Boot, Kept, KeptKey, Lease, NodeAnnotations, NodeUid, Now, Wall};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The first wait after a failure; it doubles with each further one, up to [`BACK_OFF_MAX`].
const BACK_OFF_MIN: Duration = Duration::from_millis(500);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// An action without its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Task {
    Kernel(KernelOp),
    Publish {
        uid: NodeUid,
        annotations: NodeAnnotations,
    },
    ClearNetworkUnavailable {
        uid: NodeUid,
    },
    PodEvent(PodEvent),
    Block {
        cidr: IpNetwork,
        op: BlockOp,
    },
    Load,
    Put(Lease),
    Remove(AttachmentId),
    Keep(Kept),
    Unkeep(KeptKey),
}

impl Task {
    fn into_action(self, id: ActionId, at: Wall) -> Action {
        match self {
            Task::Kernel(op) => Action::Kernel(KernelAction { id, op }),
            Task::Publish { uid, annotations } => Action::Kube(KubeAction::Publish { id, uid, annotations }),
            Task::ClearNetworkUnavailable { uid } => {
                Action::Kube(KubeAction::ClearNetworkUnavailable { id, uid, at })
            }
            Task::PodEvent(event) => Action::Kube(KubeAction::PodEvent { id, event, at }),
            Task::Block { cidr, op } => Action::Kube(KubeAction::Block { id, cidr, op }),
            Task::Load => Action::Store(StoreAction::Load { id }),
            Task::Put(lease) => Action::Store(StoreAction::Put { id, lease }),
            Task::Remove(attachment) => Action::Store(StoreAction::Remove { id, attachment }),
            Task::Keep(kept) => Action::Store(StoreAction::Keep { id, kept }),
            Task::Unkeep(key) => Action::Store(StoreAction::Unkeep { id, key }),
        }
    }
}

/// A task whose outcome has not come yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outstanding {
    pub(crate) generation: u64,
    pub(crate) task: Task,
    pub(crate) since: Boot,
}

/// A resource whose last task failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Trouble {
    pub(crate) attempts: u32,
    pub(crate) failure: Failure,
    pub(crate) until: Boot,
    task: Task,
}

/// Invariant: a resource has at most one outstanding task; its outcome, and no other, is taken in.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Ops {
    generations: BTreeMap<Resource, u64>,
    outstanding: BTreeMap<Resource, Outstanding>,
    troubles: BTreeMap<Resource, Trouble>,
    waiting: BTreeMap<Resource, BTreeSet<Resource>>,
}

impl Ops {
    pub(crate) fn is_outstanding(&self, resource: &Resource) -> bool {
        self.outstanding.contains_key(resource)
    }

    pub(crate) fn outstanding(&self) -> impl Iterator<Item = (&Resource, &Outstanding)> {
        self.outstanding.iter()
    }

    pub(crate) fn troubles(&self) -> impl Iterator<Item = (&Resource, &Trouble)> {
        self.troubles.iter()
    }

    /// Whether this very task failed a short while ago and shall not be tried yet. Another task on the same
    /// resource need not wait: what is desired has changed.
    pub(crate) fn must_wait(&self, now: Boot, resource: &Resource, task: &Task) -> bool {
        self.troubles
            .get(resource)
            .is_some_and(|t| now < t.until && t.task == *task)
    }

    /// Whether the resource's last task failed.
    pub(crate) fn is_in_trouble(&self, resource: &Resource) -> bool {
        self.troubles.contains_key(resource)
    }

    /// The action for a task that begins now.
    pub(crate) fn begin(&mut self, now: Now, resource: Resource, task: Task) -> Action {
        let generation = self.generations.entry(resource.clone()).or_default();
        *generation += 1;
        let outstanding = Outstanding {
            generation: *generation,
            task: task.clone(),
            since: now.boot,
        };
        let id = ActionId {
            resource: resource.clone(),
            generation: *generation,
        };
        let before = self.outstanding.insert(resource, outstanding);
        assert!(before.is_none(), "two tasks at a time on {:?}", id.resource);
        task.into_action(id, now.wall)
    }

    /// Takes in an outcome: the task that ended, or nothing if this id is not the one awaited.
    pub(crate) fn end(&mut self, id: &ActionId) -> Option<Task> {
        let awaited = self.outstanding.get(&id.resource)?.generation == id.generation;
        if !awaited {
            return None;
        }
        self.outstanding.remove(&id.resource).map(|o| o.task)
    }

    /// Ends what is outstanding on a resource whose answer carries no id.
    pub(crate) fn end_any(&mut self, resource: &Resource) {
        self.outstanding.remove(resource);
    }

    pub(crate) fn succeeded(&mut self, resource: &Resource) {
        self.troubles.remove(resource);
    }

    /// Notes a failure; returns when to try again.
    pub(crate) fn failed(
        &mut self,
        now: Boot,
        jitter: &mut Jitter,
        resource: Resource,
        task: Task,
        failure: Failure,
    ) -> Boot {
        let attempts = self
            .troubles
            .get(&resource)
            .map_or(1, |t| t.attempts.saturating_add(1));
        let doubled = BACK_OFF_MIN.saturating_mul(1 << (attempts - 1).min(10));
        let until = now + jitter.spread(doubled.min(BACK_OFF_MAX));
        self.troubles.insert(
            resource,
            Trouble {
                attempts,
                failure,
                until,
                task,
            },
        );
        until
    }

    /// `who` is to be looked at again when `on` has settled.
    pub(crate) fn wait(&mut self, who: Resource, on: Resource) {
        self.waiting.entry(on).or_default().insert(who);
    }

    /// Those that waited for this resource.
    pub(crate) fn take_waiting(&mut self, on: &Resource) -> BTreeSet<Resource> {
        self.waiting.remove(on).unwrap_or_default()
    }

    /// The resource is neither desired nor there: nothing is kept of it, so that memory follows what exists.
    pub(crate) fn forget(&mut self, resource: &Resource) {
        assert!(
            !self.is_outstanding(resource),
            "forgotten while an outcome is awaited: {resource:?}"
        );
        self.generations.remove(resource);
        self.troubles.remove(resource);
    }
}
