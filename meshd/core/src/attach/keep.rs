//! What becomes of kept addresses: given again, held back when the pod is gone, dropped.

use crate::TimerKind;
use crate::action::Resource;
use crate::agent::NodeAgent;
use crate::attach::addresses::NotGiven;
use crate::attach::kept::{Entry, GivenUp, KEPT_MAX, key, key_of};
use crate::attach::kept_told::full;
use crate::attach::lifecycle::add_error;
use crate::attach::requests::{Stage, error};
use crate::attach::table::{AddStep, Attachment, DelStep, State};
use crate::event::Failure;
use crate::ops::Task;
use crate::reconcile::Plan;
use meshd_model::cni::{Add, code};
use meshd_model::net::{Family, contains, host};
use meshd_model::{AttachmentId, Boot, Kept, KeptKey, Now};
use std::collections::BTreeSet;
use std::net::IpAddr;

impl NodeAgent {
    /// Takes in what the store holds, after the leases. Where a lease of another pod has an address, the record is void.
    pub(crate) fn load_kept(&mut self, now: Now, kept: Vec<Kept>, damaged: Vec<String>) {
        self.kept.damaged = damaged;
        for record in kept {
            let key = record.key.clone();
            let mut entry = Entry::loaded(record);
            if self.kept.entries.len() < KEPT_MAX && self.place_loaded(now, &mut entry) {
                self.kept.entries.insert(key.clone(), entry);
            } else {
                self.kept.dropped.insert(key.clone());
            }
            self.mark(Resource::Kept(key));
        }
        self.review_kept(now);
    }

    /// Finds whose the addresses of a record are, or holds them back. False if they are somebody else's.
    fn place_loaded(&mut self, now: Now, entry: &mut Entry) -> bool {
        let addresses = entry.kept.addresses.clone();
        let holder = addresses.first().and_then(|a| self.attachments.holder(*a));
        if let Some(Attachment { lease, .. }) = holder {
            let id = lease.id.clone();
            let its_own = key_of(lease).as_ref() == Some(entry.key());
            entry.kept.unused_since = None;
            entry.holder = Some(id.clone());
            return its_own && addresses.iter().all(|a| self.attachments.holds(&id, *a));
        }
        let mut taken = Vec::new();
        for address in &addresses {
            if self.attachments.allocator.take(*address).is_err() {
                self.release_unused(now, &taken);
                return false;
            }
            taken.push(*address);
        }
        let since = *entry.kept.unused_since.get_or_insert(now.wall);
        let left = self.config.ipam.keep.saturating_sub(now.wall.since(since));
        entry.expires = Some(now.boot + left);
        !addresses.is_empty()
    }

    fn release_unused(&mut self, now: Now, addresses: &[IpAddr]) {
        for address in addresses {
            self.attachments.allocator.release(self.never_used(now), *address);
        }
    }

    /// Whose record an ADD is about, and whether its pod wants it. Only a pod's first interface has one.
    pub(crate) fn kept_key(&self, add: &Add) -> Option<(KeptKey, bool)> {
        let pod = add.pod.as_ref().filter(|_| self.is_first(add))?;
        Some((key(pod, &add.id), self.pods.wants(pod).1.keep))
    }

    /// The addresses that were held back for the pod of this ADD; they are taken in the allocator.
    pub(crate) fn held_back(&self, add: &Add) -> &[IpAddr] {
        let key = self.kept_key(add).map(|(key, _)| key);
        let entry = key.and_then(|key| self.kept.entries.get(&key));
        entry
            .filter(|entry| entry.holder.is_none())
            .map_or(&[], |entry| &entry.kept.addresses)
    }

    /// Which of them the pod has again: those of families of which it names none.
    pub(crate) fn kept_again(&self, add: &Add, named: &BTreeSet<IpAddr>) -> Result<Vec<IpAddr>, NotGiven> {
        let Some((key, true)) = self.kept_key(add) else {
            return Ok(Vec::new());
        };
        let Some(entry) = self.kept.entries.get(&key) else {
            return match self.kept.is_full() {
                true => Err(NotGiven::Refused(full(&key))),
                false => Ok(Vec::new()),
            };
        };
        if let Some(holder) = entry.holder.as_ref().filter(|holder| **holder != add.id) {
            return Err(NotGiven::Wait(holder.clone()));
        }
        let is_named = |a: &IpAddr| named.iter().any(|n| Family::of(*n) == Family::of(*a));
        let again = entry.kept.addresses.iter().filter(|a| !is_named(a)).copied();
        let again: Vec<_> = again.collect();
        let ranges = self.attachments.allocator.ranges();
        for address in &again {
            let in_range = ranges.iter().any(|range| contains(*range, host(*address)));
            let on_link = self
                .observed
                .links
                .values()
                .any(|link| link.addresses.contains(address));
            if !in_range || on_link {
                let why = match in_range {
                    false => "an older node claims its pod CIDR",
                    true => "an interface that meshd has no lease of has it",
                };
                let what = format!("{address}, which is kept for {key}, cannot be used: {why}");
                return Err(NotGiven::Refused(error(
                    code::TRY_AGAIN,
                    what,
                    "see `meshctl status`; the runtime will try again",
                )));
            }
        }
        Ok(again)
    }

    /// Whether the addresses of a half-done ADD may go on: those that are kept for its pod are these, or none are.
    pub(crate) fn may_keep(&self, add: &Add) -> bool {
        match self.kept_key(add) {
            Some((key, true)) => match self.kept.entries.get(&key) {
                Some(entry) => entry.holder.as_ref() == Some(&add.id),
                None => !self.kept.is_full(),
            },
            _ => self.held_back(add).is_empty(),
        }
    }

    /// Records that an attachment has these addresses, if its pod keeps them. What was kept for it beside them, or for one
    /// of its name that does not keep them, is free.
    pub(crate) fn keep(&mut self, now: Now, add: &Add, addresses: &[IpAddr]) {
        let Some((key, keeps)) = self.kept_key(add) else {
            return;
        };
        let entry = self.kept.entries.get(&key);
        let is_anothers = |e: &Entry| e.holder.as_ref().is_some_and(|holder| *holder != add.id);
        if entry.is_some_and(is_anothers) || (entry.is_none() && !keeps) {
            return;
        }
        let held_back = self.held_back(add).iter().filter(|a| !addresses.contains(a));
        for address in held_back.copied().collect::<Vec<_>>() {
            self.attachments.allocator.release(now.boot, address);
        }
        self.kept.lost.remove(&key);
        if keeps {
            self.kept.dropped.remove(&key);
            let kept = Kept {
                key: key.clone(),
                addresses: addresses.to_vec(),
                unused_since: None,
            };
            let entry = self
                .kept
                .entries
                .entry(key.clone())
                .or_insert_with(|| Entry::new(kept.clone()));
            entry.kept = kept;
            entry.failed = None;
            entry.expires = None;
            entry.holder = Some(add.id.clone());
        } else {
            self.kept.drop_entry(&key);
        }
        // Whoever asks again has reason to think that it can be written now.
        self.ops.succeeded(&Resource::Kept(key.clone()));
        self.mark(Resource::Kept(key));
    }

    /// Goes on with an ADD whose record is written, and undoes one whose record cannot be.
    pub(crate) fn settle_keep(&mut self, id: &AttachmentId) {
        let Some(attachment) = self.attachments.get_mut(id) else {
            return;
        };
        let State::Adding { step, request } = attachment.state else {
            return;
        };
        if step != AddStep::Keep {
            return;
        }
        let entry = self.kept.of(attachment);
        if entry.is_none_or(Entry::is_written) {
            let step = AddStep::Confirm;
            attachment.state = State::Adding { step, request };
        } else if let Some(failure) = entry.and_then(|entry| entry.failed.as_ref()) {
            let told = add_error(&attachment.lease, step, failure);
            let failed_add = request.map(|request| (request, told));
            attachment.state = State::deleting(DelStep::Detach, failed_add);
        }
    }

    pub(crate) fn plan_kept(&self, key: &KeptKey) -> Plan {
        match self.kept.entries.get(key) {
            Some(entry) if entry.is_written() => Plan::Settled,
            Some(entry) => Plan::Do(Task::Keep(entry.kept.clone())),
            None if self.kept.dropped.contains(key) => Plan::Do(Task::Unkeep(key.clone())),
            None => Plan::Gone,
        }
    }

    /// Takes in how writing or removing a record ended; returns the failure, which is tried again.
    pub(crate) fn kept_outcome(
        &mut self,
        key: &KeptKey,
        task: &Task,
        result: Result<(), Failure>,
    ) -> Option<Failure> {
        let Some(entry) = self.kept.entries.get_mut(key) else {
            if matches!(task, Task::Unkeep(_)) && result.is_ok() {
                self.kept.dropped.remove(key);
            }
            return result.err();
        };
        match (task, &result) {
            (Task::Keep(kept), Ok(())) => {
                entry.safe.clone_from(&kept.addresses);
                entry.written = Some(kept.clone());
                entry.failed = None;
            }
            (Task::Keep(kept), Err(failure)) => {
                // The file may be the old one or the new one.
                entry.written = None;
                if *kept == entry.kept {
                    entry.failed = Some(failure.clone());
                }
            }
            // One that was dropped and is there again.
            _ => {
                entry.written = None;
                entry.safe.clear();
            }
        }
        if let Some(holder) = entry.holder.clone() {
            self.mark(Resource::Attachment(holder));
        }
        result.err()
    }

    /// Forgets an attachment; its addresses rest from `freed` on, or are held back for the next pod of its name.
    pub(crate) fn forget_attachment(
        &mut self,
        now: Now,
        freed: Boot,
        id: &AttachmentId,
    ) -> Option<Attachment> {
        let entry = self.kept.of(self.attachments.get(id)?);
        let Some(key) = entry.map(|entry| entry.key().clone()) else {
            return self.attachments.remove(freed, id, &[]);
        };
        let (keep, mut addresses) = (self.config.ipam.keep, Vec::new());
        match self.kept.entries.get_mut(&key) {
            Some(entry) if entry.safe == entry.kept.addresses => {
                entry.holder = None;
                entry.kept.unused_since = Some(now.wall);
                entry.expires = Some(now.boot + keep);
                addresses.clone_from(&entry.kept.addresses);
            }
            // Its pod was never told of these addresses.
            _ => drop(self.kept.drop_entry(&key)),
        }
        self.mark(Resource::Kept(key));
        let removed = self.attachments.remove(freed, id, &addresses);
        self.review_kept(now);
        removed
    }

    /// Drops what is kept no longer: its time is over, it is not the node's any more, or it is beyond a share.
    pub(crate) fn review_kept(&mut self, now: Now) {
        self.kept.lost.retain(|_, lost| now.boot < lost.until);
        let pool = self.config.ipam.pool.is_some();
        let known = self.own.is_current(pool) && (!pool || self.blocks.is_synced());
        let cidrs = &self.local.cidrs;
        // A block that is free is about to be claimed again for what is kept of it.
        let is_own = |a: &IpAddr| {
            !known || cidrs.iter().any(|c| contains(*c, host(*a))) || self.wanted_block(*a).is_some()
        };
        let over = |e: &&Entry| e.expires.is_some_and(|at| at <= now.boot);
        let unheld = self.kept.unheld();
        let gone: Vec<_> = unheld
            .filter(|e| over(e) || !e.kept.addresses.iter().all(is_own))
            .map(|e| (e.key().clone(), over(&e)))
            .collect();
        let mut any = !gone.is_empty();
        for (key, over) in gone {
            let Some(entry) = self.kept.drop_entry(&key) else {
                continue;
            };
            for address in &entry.kept.addresses {
                self.attachments.allocator.release(now.boot, *address);
            }
            if !over {
                let until = now.boot + self.config.ipam.keep;
                self.kept.note_lost(entry, until, GivenUp::NotOwn);
            }
            self.mark(Resource::Kept(key));
        }
        while known && let Some(key) = self.kept_beyond_share() {
            self.give_up_kept(now, &key, GivenUp::TooMany);
            any = true;
        }
        let lost = self.kept.lost.values().map(|lost| lost.until);
        let next = self.kept.unheld().filter_map(|e| e.expires).chain(lost).min();
        match next {
            Some(at) => self.timers.set(TimerKind::Kept, at),
            None => self.timers.clear(&TimerKind::Kept),
        }
        if any {
            self.blocks_unwanted();
            self.resume(now, Stage::Address);
        }
    }
}
