//! How what was asked of the drivers ended, and what is noted when it begins.

use crate::TimerKind;
use crate::action::{ActionId, KernelOp, Resource};
use crate::agent::NodeAgent;
use crate::attach::requests::Stage;
use crate::event::Failure;
use crate::ops::Task;
use meshd_model::{AttachmentId, Now};

impl NodeAgent {
    /// What a task that begins needs to have noted.
    pub(crate) fn note_begun(&mut self, task: &Task) {
        match task {
            Task::Kernel(KernelOp::Observe) => self.observe_wanted = false,
            Task::Kernel(KernelOp::SetPeer(peer)) => {
                let published = self
                    .desired_peer(&peer.public_key)
                    .map_or(peer.endpoint, |p| p.endpoint);
                self.observed.intend_peer(peer, published);
            }
            _ => {}
        }
    }

    /// An action has ended. One that is not awaited (of an older generation) changes nothing.
    pub(crate) fn outcome(&mut self, now: Now, id: &ActionId, result: Result<(), Failure>) {
        let has_answer_of_its_own = matches!(id.resource, Resource::Kernel | Resource::Store);
        if has_answer_of_its_own && result.is_ok() {
            return;
        }
        let Some(task) = self.ops.end(id) else { return };
        if result.is_err() {
            self.counters.failed(&task);
        }
        if result.is_ok() {
            self.ops.succeeded(&id.resource);
            self.carried_out(now, &task);
        }
        let failure = match &id.resource {
            Resource::Attachment(attachment) => self.attachment_outcome(now, attachment, &task, result),
            Resource::Claim(family) => match &task {
                Task::Block { cidr, .. } => self.claimed(now, *family, *cidr, result),
                _ => result.err(),
            },
            Resource::PodEvent(..) => {
                if let Task::PodEvent(event) = &task {
                    self.pod_event_outcome(event, result.is_ok());
                }
                None
            }
            Resource::Kept(key) => self.kept_outcome(key, &task, result),
            _ => result.err(),
        };
        if let Some(failure) = failure {
            self.failed(now, id.resource.clone(), task, failure);
        }
        if let Resource::Attachment(attachment) = &id.resource {
            self.attachment_settled(now, attachment);
            if self.attachments.get(attachment).is_some_and(|a| a.netns_gone) {
                self.review_abandoned(now);
            }
        }
        self.mark(id.resource.clone());
    }

    fn carried_out(&mut self, now: Now, task: &Task) {
        match task {
            Task::Kernel(op) => {
                let robbed = self.observed.apply(op);
                self.dirty.extend(robbed.into_iter().map(Resource::Peer));
                if matches!(op, KernelOp::SetDevice(_)) {
                    // Its kind and its port are published only as they were seen.
                    self.want_observation();
                }
            }
            Task::Publish { uid, annotations } => {
                self.publisher.published(annotations.clone());
                if let Some(node) = self.own.node.as_mut().filter(|n| n.uid == *uid) {
                    node.published = Ok(annotations.clone());
                }
                self.note_introduced();
                self.blocks_published(now);
            }
            Task::ClearNetworkUnavailable { uid } => self.network_cleared(now.boot, uid),
            Task::Block { cidr, op } => self.block_changed(now, *cidr, op),
            Task::Load
            | Task::Put(_)
            | Task::Remove(_)
            | Task::Keep(_)
            | Task::Unkeep(_)
            | Task::PodEvent(_) => {}
        }
    }

    fn failed(&mut self, now: Now, resource: Resource, task: Task, failure: Failure) {
        if task == Task::Kernel(KernelOp::Observe) {
            self.observe_wanted = true;
        }
        if let Task::Kernel(KernelOp::SetPeer(peer)) = &task {
            self.observed.peer_failed(peer.public_key);
        }
        let until = self
            .ops
            .failed(now.boot, &mut self.jitter, resource.clone(), task, failure);
        self.timers.set(TimerKind::Retry(resource), until);
    }

    /// An interface may be gone, or an address free, that was not before.
    fn attachment_settled(&mut self, now: Now, id: &AttachmentId) {
        if self.attachments.get(id).is_none() {
            self.reserve_unexplained(now);
            self.resume(now, Stage::Address);
            self.resume(now, Stage::Deletion);
        }
    }
}
