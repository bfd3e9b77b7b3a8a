//! What the outcome of a deletion's step leads to. A failure is told to whoever waits, and the step tried again.

use crate::action::KernelOp;
use crate::agent::NodeAgent;
use crate::attach::requests::error;
use crate::attach::table::{DelStep, State};
use crate::event::Failure;
use crate::ops::Task;
use meshd_model::cni::code;
use meshd_model::{AttachmentId, LeasePhase, Now};

/// So many links may be deleted in the background.
const VANISHING_MAX: usize = 256;

impl NodeAgent {
    pub(crate) fn deletion_outcome(
        &mut self,
        now: Now,
        id: &AttachmentId,
        task: &Task,
        result: Result<(), Failure>,
    ) -> Option<Failure> {
        let attachment = self.attachments.get_mut(id)?;
        let State::Deleting { step, .. } = &mut attachment.state else {
            return None;
        };
        match (*step, task, result) {
            // A store that takes no mark does not keep the pod from being taken down.
            (DelStep::Mark, Task::Put(lease), result) if lease.phase == LeasePhase::Deleting => {
                *step = DelStep::Detach;
                if result.is_ok() {
                    attachment.lease.phase = LeasePhase::Deleting;
                    attachment.recorded = true;
                }
            }
            (DelStep::Detach, Task::Kernel(KernelOp::DetachPod(_)), Ok(())) => {
                *step = DelStep::Vanish;
                self.cut_off(id);
            }
            (DelStep::Vanish, Task::Kernel(KernelOp::RemovePodLink(_)), Ok(())) => *step = DelStep::Remove,
            (DelStep::Remove, Task::Remove(_), Ok(())) => self.deleted(now, id),
            (DelStep::Detach, Task::Kernel(KernelOp::DetachPod(_)), Err(failure))
            | (DelStep::Vanish, Task::Kernel(KernelOp::RemovePodLink(_)), Err(failure)) => {
                self.deletion_failed(id, code::KERNEL, &failure);
                return Some(failure);
            }
            (DelStep::Remove, Task::Remove(_), Err(failure)) => {
                self.deletion_failed(id, code::IO, &failure);
                return Some(failure);
            }
            // The last step of an ADD that the deletion has overtaken.
            _ => {}
        }
        None
    }

    /// No packet passes any more, and the rest needs nobody to wait for it: everyone is told. They wait for it all the
    /// same where the store has no mark, and while too many links are being deleted, so that no more is begun than the
    /// kernel gets done.
    fn cut_off(&mut self, id: &AttachmentId) {
        if self.attachments.vanishing() > VANISHING_MAX {
            return;
        }
        if let Some(attachment) = self.attachments.get_mut(id).filter(|a| a.is_marked()) {
            let state = std::mem::replace(&mut attachment.state, State::deleting(DelStep::Vanish, None));
            self.told_it_is_gone(id, state);
        }
    }

    /// All of it is gone.
    fn deleted(&mut self, now: Now, id: &AttachmentId) {
        if let Some(attachment) = self.forget_attachment(now, now.boot, id) {
            self.told_it_is_gone(id, attachment.state);
        }
    }

    fn told_it_is_gone(&mut self, id: &AttachmentId, state: State) {
        let State::Deleting {
            callers, failed_add, ..
        } = state
        else {
            return;
        };
        for caller in callers {
            self.deletion_told(caller, id, Ok(()));
        }
        if let Some((request, told)) = failed_add {
            self.reply(request, Err(told));
        }
    }

    /// It is tried again in the background; whoever waits need not.
    fn deletion_failed(&mut self, id: &AttachmentId, code: u32, failure: &Failure) {
        let Some(attachment) = self.attachments.get_mut(id) else {
            return;
        };
        let State::Deleting {
            callers, failed_add, ..
        } = &mut attachment.state
        else {
            return;
        };
        let (callers, failed_add) = (std::mem::take(callers), failed_add.take());
        let told = error(
            code,
            format!("{id} could not be taken down"),
            format!("{}; meshd tries again", failure.message),
        );
        for caller in callers {
            self.deletion_told(caller, id, Err(told.clone()));
        }
        if let Some((request, told)) = failed_add {
            self.reply(request, Err(told));
        }
    }
}
