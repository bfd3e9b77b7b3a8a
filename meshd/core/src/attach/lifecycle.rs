//! An attachment's next step, and what the outcome of a step leads to.

use crate::action::{KernelOp, Resource};
use crate::agent::NodeAgent;
use crate::attach::link::{difference, link, unexplained};
use crate::attach::requests::error;
use crate::attach::table::{AddStep, Attachment, DelStep, State};
use crate::errno::{EEXIST, ENOENT, EROFS};
use crate::event::{Failure, RequestId};
use crate::ops::Task;
use crate::reconcile::Plan;
use ipnetwork::IpNetwork;
use meshd_model::cni::{CniError, code};
use meshd_model::kernel::PodLink;
use meshd_model::{AttachmentId, Lease, LeasePhase, Now};

impl NodeAgent {
    pub(crate) fn plan_attachment(&mut self, now: Now, id: &AttachmentId) -> Plan {
        self.roll_back_if_abandoned(id);
        self.settle_keep(id);
        let Some(attachment) = self.attachments.get(id) else {
            return self.plan_orphan(now, id);
        };
        match &attachment.state {
            State::HalfDone => Plan::Settled,
            State::Ready => self.plan_link(attachment),
            State::Adding { step, .. } => self.plan_add(attachment, *step),
            State::Deleting { step, .. } => Plan::Do(match step {
                DelStep::Mark => put(attachment, LeasePhase::Deleting),
                DelStep::Detach => Task::Kernel(KernelOp::DetachPod(self.link(attachment))),
                DelStep::Vanish => Task::Kernel(KernelOp::RemovePodLink(self.link(attachment))),
                DelStep::Remove => Task::Remove(id.clone()),
            }),
        }
    }

    fn plan_add(&self, attachment: &Attachment, step: AddStep) -> Plan {
        match step {
            AddStep::Record => Plan::Do(put(attachment, LeasePhase::Adding)),
            AddStep::Attach => self.plan_attach(self.link(attachment)),
            AddStep::Keep => match self.kept.of(attachment) {
                Some(entry) => Plan::Wait(Resource::Kept(entry.key().clone())),
                None => Plan::Hold,
            },
            AddStep::Confirm => Plan::Do(put(attachment, LeasePhase::Ready)),
        }
    }

    /// No pod is attached before the node is fail-closed, nor before the routes to it can have their source, nor while what
    /// it sends to other nodes' own addresses would leave in the clear.
    fn plan_attach(&self, link: PodLink) -> Plan {
        if !self.is_fail_closed() {
            return Plan::Hold;
        }
        if !self.device_carries(link.host_addresses.iter().copied()) {
            return Plan::Wait(Resource::Device);
        }
        let holds = |cidr: &&IpNetwork| link.addresses.iter().any(|a| cidr.contains(*a));
        let mut own = self.local.cidrs.iter().filter(holds);
        if let Some(cidr) = own.find(|cidr| !self.has_rule(**cidr)) {
            return Plan::Wait(Resource::Rule(*cidr));
        }
        Plan::kernel(KernelOp::AttachPod(link))
    }

    /// A running pod's link: mended where it differs, once enough is known to say so.
    fn plan_link(&self, attachment: &Attachment) -> Plan {
        if attachment.netns_gone {
            return Plan::Settled;
        }
        if !self.gate() || self.local.mtu.is_none() {
            return Plan::Hold;
        }
        let desired = self.link(attachment);
        let there = self.observed.links.get(&desired.host_ifname);
        let sources_differ = attachment
            .host_addresses
            .as_ref()
            .is_some_and(|a| *a != desired.host_addresses);
        if sources_differ || difference(&desired, there).is_some() {
            self.plan_attach(desired)
        } else {
            Plan::Settled
        }
    }

    /// A pod's interface that no lease explains is removed after a time; not while a lease could not be read, for it may
    /// be of a pod that runs.
    fn plan_orphan(&self, now: Now, id: &AttachmentId) -> Plan {
        if !id.container_id.is_empty() || self.attachments.by_ifname(&id.ifname).is_some() {
            return Plan::Gone;
        }
        let Some(state) = self.observed.links.get(&id.ifname) else {
            return Plan::Gone;
        };
        let is_due = self.orphan_due(&id.ifname).is_some_and(|due| due <= now.boot);
        if !is_due || !self.gate() || !self.attachments.damaged().is_empty() {
            return Plan::Hold;
        }
        Plan::kernel(KernelOp::RemovePodLink(unexplained(id, &id.ifname, state)))
    }

    fn link(&self, attachment: &Attachment) -> PodLink {
        link(&attachment.lease, self.local.overlay_addresses(), self.local.mtu)
    }

    /// An ADD that nobody waits for any more is undone.
    fn roll_back_if_abandoned(&mut self, id: &AttachmentId) {
        if let Some(attachment) = self.attachments.get_mut(id)
            && matches!(attachment.state, State::Adding { request: None, .. })
        {
            attachment.state = State::deleting(DelStep::Detach, None);
        }
    }

    /// The caller is gone, or has its answer.
    pub(crate) fn nobody_waits(&mut self, gone: RequestId, id: &AttachmentId) {
        let Some(attachment) = self.attachments.get_mut(id) else {
            return;
        };
        match &mut attachment.state {
            State::Adding { request, .. } if *request == Some(gone) => {
                *request = None;
                self.mark(Resource::Attachment(id.clone()));
            }
            State::Deleting {
                callers, failed_add, ..
            } => {
                callers.remove(&gone);
                failed_add.take_if(|(request, _)| *request == gone);
            }
            _ => {}
        }
    }

    /// Takes in how a step ended. Returns the failure if the step is to be tried again.
    pub(crate) fn attachment_outcome(
        &mut self,
        now: Now,
        id: &AttachmentId,
        task: &Task,
        result: Result<(), Failure>,
    ) -> Option<Failure> {
        let host_addresses = self.local.overlay_addresses();
        let Some(attachment) = self.attachments.get_mut(id) else {
            return result.err();
        };
        match (&mut attachment.state, task) {
            (State::Adding { step, request }, _) => match (*step, result) {
                (AddStep::Record, Ok(())) => {
                    attachment.recorded = true;
                    *step = AddStep::Attach;
                }
                (AddStep::Attach, Ok(())) => {
                    attachment.host_addresses = Some(attached_with(task).unwrap_or(host_addresses));
                    *step = AddStep::Keep;
                }
                // Nothing is asked of a driver for it on behalf of the attachment.
                (AddStep::Keep, Ok(())) => {}
                (AddStep::Confirm, Ok(())) => {
                    let request = *request;
                    attachment.lease.phase = LeasePhase::Ready;
                    self.confirmed(id, request);
                }
                (step, Err(failure)) => self.add_failed(now, id, step, &failure),
            },
            (State::Ready, Task::Kernel(KernelOp::AttachPod(_))) => match result {
                Ok(()) => attachment.host_addresses = attached_with(task),
                Err(failure) if failure.errno == Some(ENOENT) => attachment.netns_gone = true,
                Err(failure) => return Some(failure),
            },
            (State::Deleting { .. }, _) => return self.deletion_outcome(now, id, task, result),
            _ => {}
        }
        None
    }

    fn confirmed(&mut self, id: &AttachmentId, request: Option<RequestId>) {
        let Some(request) = request else { return };
        let Some(attachment) = self.attachments.get_mut(id) else {
            return;
        };
        attachment.state = State::Ready;
        let lease = attachment.lease.clone();
        let added = self.added(&lease);
        self.reply(request, Ok(Some(added)));
    }

    fn add_failed(&mut self, now: Now, id: &AttachmentId, step: AddStep, failure: &Failure) {
        let Some(attachment) = self.attachments.get_mut(id) else {
            return;
        };
        let State::Adding { request, .. } = attachment.state else {
            return;
        };
        let told = add_error(&attachment.lease, step, failure);
        let was_recorded = attachment.recorded;
        if step == AddStep::Record {
            // Nothing but the lease was begun, and that was not written.
            if was_recorded {
                attachment.state = State::HalfDone;
            } else {
                self.forget_attachment(now, self.never_used(now), id);
            }
            if let Some(request) = request {
                self.reply(request, Err(told));
            }
            return;
        }
        let failed_add = request.map(|request| (request, told));
        attachment.state = State::deleting(DelStep::Detach, failed_add);
    }

    /// Keeps the addresses of interfaces that no lease explains from being handed out.
    pub(crate) fn reserve_unexplained(&mut self, now: Now) {
        if self.attachments.is_loaded() {
            self.attachments.reserve(now.boot, self.observed.links.values());
        }
    }
}

fn put(attachment: &Attachment, phase: LeasePhase) -> Task {
    Task::Put(Lease {
        phase,
        ..attachment.lease.clone()
    })
}

fn attached_with(task: &Task) -> Option<Vec<std::net::IpAddr>> {
    match task {
        Task::Kernel(KernelOp::AttachPod(link)) => Some(link.host_addresses.clone()),
        _ => None,
    }
}

/// What an ADD that failed is told.
pub(crate) fn add_error(lease: &Lease, step: AddStep, failure: &Failure) -> CniError {
    let id = &lease.id;
    let message = &failure.message;
    if step == AddStep::Keep {
        return error(
            code::IO,
            format!("the addresses of {id} could not be recorded, so that they are kept: {message}"),
            "make room, or make meshd's state folder writable; nothing is left of this ADD",
        );
    }
    if step != AddStep::Attach {
        return error(
            code::IO,
            format!("the lease of {id} could not be written: {message}"),
            "make room, or make meshd's state folder writable; nothing is left of this ADD",
        );
    }
    match failure.errno {
        Some(ENOENT) => error(
            code::NETNS,
            format!("the network namespace {} of {id} is gone: {message}", lease.netns),
            "the runtime must make a new sandbox",
        ),
        Some(EEXIST) => error(
            code::CONFIG,
            format!("interface {} is taken in {}: {message}", id.ifname, lease.netns),
            "another plugin of the chain made it: give each its own CNI_IFNAME",
        ),
        Some(EROFS) => error(
            code::KERNEL,
            format!("the link of {id} cannot be set up: {message}"),
            "mount the host's /proc/sys/net as the chart does, or set agent.privileged",
        ),
        _ => error(
            code::KERNEL,
            format!("the kernel refused the link of {id}: {message}"),
            "see `meshctl status`, and the kernel's log",
        ),
    }
}
