//! CNI GC (specification 1.1.0, section "GC"): what the runtime does not list goes, and nothing that it lists.
//!
//! Every deletion takes the way of a DEL, and GC waits for all of them beside each other. One that fails does not keep
//! the others from being done; the answer names all that failed, and they are tried again in the background.
//!
//! An ADD under way is left alone, listed or not: a runtime has none in flight while it calls GC, so the list was made
//! before this ADD began.

use crate::action::Resource;
use crate::agent::NodeAgent;
use crate::attach::link::{adopted, unexplained};
use crate::attach::requests::{Stage, error};
use crate::attach::table::{DelStep, State};
use crate::event::RequestId;
use meshd_model::cni::{CniError, Gc, code};
use meshd_model::{AttachmentId, Lease};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A GC that waits for its deletions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Collecting {
    left: BTreeSet<AttachmentId>,
    failures: Vec<String>,
    total: usize,
}

impl NodeAgent {
    pub(crate) fn gc(&mut self, request: RequestId, gc: &Gc) {
        if !self.attachments.is_loaded() {
            return self.wait_for(request, Stage::Store);
        }
        let valid: BTreeSet<&AttachmentId> = gc.valid.iter().collect();
        let mut stale: Vec<AttachmentId> = self
            .attachments
            .iter()
            .filter(|(id, a)| !valid.contains(id) && is_of(&a.lease, &gc.network))
            .filter(|(id, a)| !matches!(a.state, State::Adding { .. }) && !self.is_cut_off(id))
            .map(|(id, _)| id.clone())
            .collect();
        stale.extend(self.adopt_orphans(gc, &valid));
        if stale.is_empty() {
            return self.reply(request, Ok(None));
        }
        let collecting = Collecting {
            total: stale.len(),
            left: stale.iter().cloned().collect(),
            failures: Vec::new(),
        };
        self.collecting.insert(request, collecting);
        for id in stale {
            self.begin_del(request, &id);
            self.ops.succeeded(&Resource::Attachment(id.clone()));
            self.mark(Resource::Attachment(id));
        }
    }

    /// Interfaces that no lease explains, and no attachment that is listed: their leases were damaged. Where there are
    /// attachments of other networks, they may be of these.
    fn adopt_orphans(&mut self, gc: &Gc, valid: &BTreeSet<&AttachmentId>) -> Vec<AttachmentId> {
        if self
            .attachments
            .iter()
            .any(|(_, a)| !is_of(&a.lease, &gc.network))
        {
            return Vec::new();
        }
        let listed: BTreeSet<String> = valid.iter().map(|id| id.host_ifname()).collect();
        let orphans: Vec<_> = self.orphans().filter(|id| !listed.contains(&id.ifname)).collect();
        for id in &orphans {
            let Some(state) = self.observed.links.get(&id.ifname) else {
                continue;
            };
            let lease = adopted(unexplained(id, &id.ifname, state), gc.network.clone());
            // There is no lease to mark.
            let deleting = State::deleting(DelStep::Detach, None);
            self.attachments.insert(lease, deleting, false);
        }
        orphans
    }

    /// Tells whoever waits for a deletion, DEL or GC, how it went.
    pub(crate) fn deletion_told(
        &mut self,
        caller: RequestId,
        id: &AttachmentId,
        result: Result<(), CniError>,
    ) {
        let Some(collecting) = self.collecting.get_mut(&caller) else {
            return self.reply(caller, result.map(|()| None));
        };
        collecting.left.remove(id);
        collecting.failures.extend(result.err().map(|e| e.to_string()));
        if !collecting.left.is_empty() {
            return;
        }
        let answer = match self.collecting.remove(&caller) {
            Some(done) if !done.failures.is_empty() => Err(done.failed()),
            _ => Ok(None),
        };
        self.reply(caller, answer);
    }

    /// A GC whose caller is gone or whose time is over: its deletions go on without it. What it is told, if it still
    /// listens.
    pub(crate) fn stop_collecting(&mut self, request: RequestId) -> Option<CniError> {
        let mut stopped = self.collecting.remove(&request)?;
        for id in &stopped.left {
            self.nobody_waits(request, id);
        }
        let late = stopped.left.iter().map(|id| format!("{id} was not done in time"));
        stopped.failures.extend(late);
        Some(stopped.failed())
    }
}

impl Collecting {
    fn failed(&self) -> CniError {
        let (failures, total) = (self.failures.len(), self.total);
        error(
            code::KERNEL,
            format!("{failures} of {total} attachments that are not valid any more could not be taken down"),
            format!("{}; meshd tries again", self.failures.join("; ")),
        )
    }
}

/// Whether the attachment is of the network, as far as is known.
fn is_of(lease: &Lease, network: &str) -> bool {
    lease.network.is_empty() || lease.network == network
}
