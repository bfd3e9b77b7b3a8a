//! Takes down what nobody will ever DEL: containerd calls no GC, and forgets a sandbox when its own state is lost.
//!
//! An attachment looks abandoned when
//!
//! - its namespace is gone, and the link with it: nothing can use its addresses any more. Whether the pod is still there
//!   does not matter; another sandbox of it has an attachment of its own;
//! - its ADD was cut off by the end of a former daemon, and nobody has sent it again: no ADD of it has ever succeeded;
//! - the API server, which is there, shows that its pod is gone, while the namespace is still there. The kubelet may be
//!   about to take the sandbox down, so this has ten times the grace;
//! - another container of the same pod has an attachment of that interface's name, or was just asked for: a runtime that has
//!   lost its state without a reboot makes new sandboxes beside the old ones' namespaces. Ten times the grace as well. Which
//!   one is the newer is not stored: of two from before the agent started, both stay while the pod does.
//!
//! An interface that no lease explains is treated like these: it goes after the grace, ten times that while its other end
//! is up.
//!
//! It has to look so for the whole of the grace without a break. Then it takes the way of a DEL that nobody waits for; a
//! DEL that comes after all finds nothing, and succeeds.

use crate::TimerKind;
use crate::action::Resource;
use crate::agent::NodeAgent;
use crate::attach::table::{Attachment, DelStep, State};
use crate::problems::problem;
use meshd_model::cni::Add;
use meshd_model::status::Problem;
use meshd_model::{AttachmentId, Boot, Now};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How much longer the grace is while the namespace is still there.
const PATIENCE: u32 = 10;
/// For so long an ADD that failed counts as asked for: a kubelet whose sandbox fails makes another one well within it.
const ASKED_FOR: Duration = Duration::from_secs(120);

/// Why an attachment looks abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Abandoned {
    /// Its namespace is gone.
    Namespace,
    /// Its ADD was cut off.
    HalfDone,
    /// Its pod is gone at the API server.
    Pod,
    /// Another sandbox of its pod was made in its place.
    Replaced,
}

impl Abandoned {
    /// Its namespace may be there, and somebody about to take it down.
    fn patience(self) -> u32 {
        match self {
            Abandoned::Namespace | Abandoned::HalfDone => 1,
            Abandoned::Pod | Abandoned::Replaced => PATIENCE,
        }
    }
}

impl NodeAgent {
    /// Notes what looks abandoned now, and takes down what has looked so for long enough. Costs as much as there are
    /// attachments, so it is done after an observation of the kernel and when a grace ends, not at each event.
    pub(crate) fn review_abandoned(&mut self, now: Now) {
        let grace = self.config.ipam.collect_after;
        if grace.is_zero() || !self.attachments.is_loaded() {
            return;
        }
        let looks: Vec<(AttachmentId, Option<Abandoned>)> = self
            .attachments
            .iter()
            .map(|(id, a)| (id, a, self.looks_abandoned(now, a)))
            .filter(|(_, a, why)| why.is_some() || a.abandoned.is_some())
            .map(|(id, _, why)| (id.clone(), why))
            .collect();
        for (id, why) in looks {
            self.note_abandoned(now, grace, &id, why);
        }
        self.note_orphans(now);
    }

    /// An interface that no lease explains is there because leases were lost, and then it may be a running pod's: it has
    /// the grace as well, so that whoever lost them can bring them back.
    fn note_orphans(&mut self, now: Now) {
        let mut before = std::mem::take(&mut self.attachments.orphans);
        let orphans: Vec<AttachmentId> = self.orphans().collect();
        for id in orphans {
            let since = before.remove(&id.ifname).unwrap_or(now.boot);
            self.attachments.orphans.insert(id.ifname.clone(), since);
            match self.orphan_due(&id.ifname) {
                Some(due) if now.boot < due => self.timers.set_no_later(TimerKind::Collect, due),
                _ => self.mark(Resource::Attachment(id)),
            }
        }
    }

    /// When an interface that no lease explains may be deleted; None for never. While its other end is up, its namespace is
    /// there.
    pub(crate) fn orphan_due(&self, ifname: &str) -> Option<Boot> {
        let grace = self.config.ipam.collect_after;
        let since = *self
            .attachments
            .orphans
            .get(ifname)
            .filter(|_| !grace.is_zero())?;
        let up = self.observed.links.get(ifname).is_some_and(|link| link.up);
        Some(since + grace * if up { PATIENCE } else { 1 })
    }

    pub(crate) fn orphan_problems(&self, found: &mut Vec<Problem>) {
        if !self.attachments.is_loaded() {
            return;
        }
        let told = self
            .attachments
            .orphans
            .keys()
            .filter(|name| self.attachments.by_ifname(name).is_none());
        found.extend(told.filter(|name| self.observed.links.contains_key(*name)).map(|name| {
            problem(
                format!("link/{name}"),
                "no lease explains this interface: the state folder is another, or was lost",
                "where its pod runs, bring the folder back and restart meshd, or make the pod anew: the link is deleted after ten \
                 times ipam.collect_after_seconds",
            )
        }));
    }

    /// Notes that the pod of this ADD, which has no attachment yet, is given another sandbox than it had.
    pub(crate) fn note_successor(&mut self, now: Now, add: &Add) {
        if self.attachments.note_successor(now.boot, add) {
            self.timers.set_no_later(TimerKind::Collect, now.boot);
        }
    }

    fn looks_abandoned(&self, now: Now, attachment: &Attachment) -> Option<Abandoned> {
        let is_pod_gone = || {
            let known = self.pods.is_synced() && self.api_away.is_none();
            let pod = attachment.lease.pod.as_ref().filter(|_| known);
            pod.is_some_and(|pod| !self.pods.has(pod))
        };
        let is_replaced = || {
            let successor = attachment.successor.as_ref();
            successor.is_some_and(|(id, asked)| {
                let there = self.attachments.get(id);
                there.is_some_and(|a| !a.state.is_deleting()) || now.boot.since(*asked) < ASKED_FOR
            })
        };
        match attachment.state {
            State::HalfDone => Some(Abandoned::HalfDone),
            State::Ready => {
                let link = self.observed.links.get(&attachment.lease.host_ifname);
                if attachment.netns_gone && self.observed.seen && link.is_none() {
                    Some(Abandoned::Namespace)
                } else {
                    let replaced = || is_replaced().then_some(Abandoned::Replaced);
                    is_pod_gone().then_some(Abandoned::Pod).or_else(replaced)
                }
            }
            State::Adding { .. } | State::Deleting { .. } => None,
        }
    }

    fn note_abandoned(&mut self, now: Now, grace: Duration, id: &AttachmentId, why: Option<Abandoned>) {
        let Some(attachment) = self.attachments.get_mut(id) else {
            return;
        };
        let since = match (attachment.abandoned, why) {
            (Some((before, since)), Some(why)) if before == why => since,
            _ => now.boot,
        };
        attachment.abandoned = why.map(|why| (why, since));
        let Some(why) = why else { return };
        let due: Boot = since + grace * why.patience();
        if now.boot < due {
            return self.timers.set_no_later(TimerKind::Collect, due);
        }
        attachment.abandoned = None;
        attachment.state = State::deleting(DelStep::Mark, None);
        *self.counters.collected.entry(why).or_default() += 1;
        self.mark(Resource::Attachment(id.clone()));
    }
}
