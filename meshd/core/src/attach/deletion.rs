//! What the outcome of a deletion's step leads to. A failure is told to whoever waits, and the step tried again.

use crate::action::KernelOp;
use crate::agent::NodeAgent;
use crate::attach::requests::error;
use crate::attach::table::{DelStep, State};
use crate::event::Failure;
use crate::ops::Task;
use meshd_model::cni::code;
use meshd_model::{AttachmentId, LeasePhase, Now};

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
            (DelStep::Mark, Task::Put(lease), _) if lease.phase == LeasePhase::Deleting => {
                *step = DelStep::Detach;
            }
            (DelStep::Detach, Task::Kernel(KernelOp::DetachPod(_)), Ok(())) => *step = DelStep::Remove,
            (DelStep::Remove, Task::Remove(_), Ok(())) => self.deleted(now, id),
            (DelStep::Detach, Task::Kernel(KernelOp::DetachPod(_)), Err(failure)) => {
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

    /// All of it is gone: everyone who waits is told.
    fn deleted(&mut self, now: Now, id: &AttachmentId) {
        let Some(attachment) = self.attachments.remove(now.boot, id) else {
            return;
        };
        let State::Deleting {
            callers, failed_add, ..
        } = attachment.state
        else {
            return;
        };
        for caller in callers {
            self.reply(caller, Ok(None));
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
            self.reply(caller, Err(told.clone()));
        }
        if let Some((request, told)) = failed_add {
            self.reply(request, Err(told));
        }
    }
}
