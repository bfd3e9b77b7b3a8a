//! CNI DEL: idempotent, and in need of neither the API server nor a ready node.

use crate::action::Resource;
use crate::agent::NodeAgent;
use crate::attach::link::{adopted, unexplained};
use crate::attach::requests::{Stage, error};
use crate::attach::table::{DelStep, State};
use crate::event::{CniCall, RequestId};
use meshd_model::AttachmentId;
use meshd_model::cni::{CniError, code};
use std::collections::BTreeSet;

impl NodeAgent {
    pub(crate) fn del(&mut self, request: RequestId, id: &AttachmentId) {
        if !self.attachments.is_loaded() {
            return self.wait_for(request, Stage::Store);
        }
        self.call_off_waiting_add(id);
        if self.attachments.get(id).is_none() && !self.adopt_link(id) {
            return self.reply(request, Ok(None));
        }
        if self.is_cut_off(id) {
            return self.reply(request, Ok(None));
        }
        let overtaken = self.begin_del(request, id);
        if let Some(add) = overtaken {
            self.reply(add, Err(called_off(id)));
        }
        // Whoever asks again has reason to think that it will succeed now.
        self.ops.succeeded(&Resource::Attachment(id.clone()));
        self.mark(Resource::Attachment(id.clone()));
    }

    /// Whether an earlier DEL was answered, and the kernel has but to delete the link.
    pub(crate) fn is_cut_off(&self, id: &AttachmentId) -> bool {
        let state = self
            .attachments
            .get(id)
            .filter(|a| a.is_marked())
            .map(|a| &a.state);
        matches!(state, Some(State::Deleting { step, callers, .. }) if step.is_cut_off() && callers.is_empty())
    }

    /// Turns an attachment to its deletion; returns the ADD that was under way.
    pub(crate) fn begin_del(&mut self, request: RequestId, id: &AttachmentId) -> Option<RequestId> {
        let attachment = self.attachments.get_mut(id)?;
        if let State::Deleting { callers, .. } = &mut attachment.state {
            callers.insert(request);
            return None;
        }
        let deleting = State::Deleting {
            step: DelStep::Mark,
            callers: BTreeSet::from([request]),
            failed_add: None,
        };
        match std::mem::replace(&mut attachment.state, deleting) {
            State::Adding { request, .. } => request,
            _ => None,
        }
    }

    /// An ADD of the same attachment that still waits for its pod or an address.
    fn call_off_waiting_add(&mut self, id: &AttachmentId) {
        let is_waiting_add = |p: &crate::attach::requests::Pending| {
            p.stage != Stage::Running && matches!(&p.call, CniCall::Add(a) if a.id == *id)
        };
        let waiting: Vec<_> = self
            .requests
            .iter()
            .filter(|(_, p)| is_waiting_add(p))
            .map(|(r, _)| *r)
            .collect();
        for request in waiting {
            self.reply(request, Err(called_off(id)));
        }
    }

    /// A link that is there without a lease, because the lease was damaged: it is taken down like any other.
    fn adopt_link(&mut self, id: &AttachmentId) -> bool {
        let ifname = id.host_ifname();
        let Some(state) = self.observed.links.get(&ifname) else {
            return false;
        };
        if self.attachments.by_ifname(&ifname).is_some() {
            return false;
        }
        let lease = adopted(unexplained(id, &ifname, state), String::new());
        self.attachments.insert(lease, State::HalfDone, false);
        true
    }
}

fn called_off(id: &AttachmentId) -> CniError {
    error(
        code::TRY_AGAIN,
        format!("ADD of {id} was called off by a DEL"),
        "nothing is left of it",
    )
}
