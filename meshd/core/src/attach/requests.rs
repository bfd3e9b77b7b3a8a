//! Requests of the local socket: each is answered once, before its deadline.

use crate::TimerKind;
use crate::action::{Action, CniAction};
use crate::agent::NodeAgent;
use crate::event::{CniCall, CniEvent, RequestId};
use meshd_model::cni::{Added, CniError, code};
use meshd_model::{AttachmentId, Boot, Now};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// More than so many requests are not taken at a time.
const REQUESTS_MAX: usize = 1024;
/// The answer is given so long before the caller gives up, or a fifth of the time if that is less.
const MARGIN: Duration = Duration::from_millis(500);

/// A request that has not been answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Pending {
    pub(crate) call: CniCall,
    pub(crate) stage: Stage,
    /// When it is answered at the latest.
    pub(crate) answer_by: Boot,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// The store.
    Store,
    /// Its pod.
    Pod,
    /// An address that rests.
    Address,
    /// The deletion of what has its id, or its interface in the pod.
    Deletion,
    /// Its attachment's next steps.
    Running,
}

pub(crate) type Requests = BTreeMap<RequestId, Pending>;

pub(crate) fn error(code: u32, msg: impl Into<String>, details: impl Into<String>) -> CniError {
    CniError {
        code,
        msg: msg.into(),
        details: details.into(),
    }
}

impl CniCall {
    /// The attachment that it is about; GC is about all of them.
    pub(crate) fn attachment(&self) -> Option<&AttachmentId> {
        match self {
            CniCall::Add(add) => Some(&add.id),
            CniCall::Del(id) => Some(id),
            CniCall::Check(check) => Some(&check.id),
            CniCall::Gc(_) => None,
        }
    }
}

impl NodeAgent {
    pub(crate) fn handle_cni(&mut self, now: Now, event: CniEvent) {
        match event {
            CniEvent::Request { id, .. } if self.requests.contains_key(&id) => {}
            CniEvent::Request { id, deadline, call } => self.request(now, id, deadline, *call),
            CniEvent::Gone(id) => {
                let Some(pending) = self.requests.remove(&id) else {
                    return;
                };
                self.timers.clear(&TimerKind::Deadline(id));
                self.stop_collecting(id);
                if let Some(attachment) = pending.call.attachment() {
                    self.nobody_waits(id, attachment);
                }
            }
            CniEvent::Look => self.want_observation(),
        }
    }

    fn request(&mut self, now: Now, id: RequestId, deadline: Boot, call: CniCall) {
        let time = deadline.since(now.boot);
        let answer_by = deadline - MARGIN.min(time / 5);
        let full = self.requests.len() >= REQUESTS_MAX;
        self.requests.insert(
            id,
            Pending {
                call,
                stage: Stage::Running,
                answer_by,
            },
        );
        if full {
            let busy = error(
                code::TRY_AGAIN,
                format!("meshd is busy with {REQUESTS_MAX} requests"),
                "the runtime will try again; if this lasts, look at `meshctl status`",
            );
            return self.reply(id, Err(busy));
        }
        self.timers.set(TimerKind::Deadline(id), answer_by);
        self.start(now, id);
    }

    /// Begins a request, or goes on where it has waited.
    fn start(&mut self, now: Now, id: RequestId) {
        let Some(pending) = self.requests.get_mut(&id) else {
            return;
        };
        pending.stage = Stage::Running;
        match pending.call.clone() {
            CniCall::Add(add) => self.add(now, id, add),
            CniCall::Del(attachment) => self.del(id, &attachment),
            CniCall::Check(check) => self.check(id, &check),
            CniCall::Gc(gc) => self.gc(id, &gc),
        }
    }

    pub(crate) fn wait_for(&mut self, id: RequestId, stage: Stage) {
        if let Some(pending) = self.requests.get_mut(&id) {
            pending.stage = stage;
        }
    }

    /// What these requests wait for may have come.
    pub(crate) fn resume(&mut self, now: Now, stage: Stage) {
        let waiting: Vec<_> = self
            .requests
            .iter()
            .filter(|(_, p)| p.stage == stage)
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            self.start(now, id);
        }
    }

    /// Answers a request, unless it was answered or its caller is gone.
    pub(crate) fn reply(&mut self, id: RequestId, result: Result<Option<Added>, CniError>) {
        if self.requests.remove(&id).is_some() {
            self.timers.clear(&TimerKind::Deadline(id));
            self.actions
                .push_back(Action::Cni(CniAction::Reply { id, result }));
        }
    }

    /// The time to answer has come.
    pub(crate) fn expire(&mut self, now: Now, id: RequestId) {
        let stopped = self.stop_collecting(id);
        let Some(pending) = self.requests.get(&id) else {
            return;
        };
        let late = match (&pending.call, pending.stage) {
            (CniCall::Add(add), Stage::Pod) => self.pod_not_seen(add),
            (_, Stage::Store) => error(
                code::TRY_AGAIN,
                "the leases are not loaded yet",
                "see `meshctl status`",
            ),
            (CniCall::Add(add), Stage::Address) => {
                let add = add.clone();
                return self.no_address_in_time(now, id, &add);
            }
            (CniCall::Gc(_), _) if let Some(told) = stopped => told,
            (call, _) => {
                let what = call.attachment().map_or("GC".to_owned(), ToString::to_string);
                error(
                    code::TRY_AGAIN,
                    format!("{what} was not done in time"),
                    "it is finished or undone in the background; see `meshctl status`",
                )
            }
        };
        let attachment = pending.call.attachment().cloned();
        self.reply(id, Err(late));
        if let Some(attachment) = attachment {
            self.nobody_waits(id, &attachment);
        }
    }
}
