//! What bounds kept addresses: those of pods that are away cost their owners nothing, so one namespace could keep a whole
//! node's. The namespace that keeps the most gives up first, and of its records the oldest.

use crate::agent::NodeAgent;
use crate::attach::kept::{Entry, GivenUp, KEPT_MAX};
use ipnetwork::IpNetwork;
use meshd_model::cni::Add;
use meshd_model::net::{Family, contains, host};
use meshd_model::{Boot, KeptKey, Now};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

impl NodeAgent {
    /// A record to give up, by these shares: of pods that are away one namespace keeps half of the node's addresses, all
    /// together three quarters.
    pub(crate) fn kept_beyond_share(&self) -> Option<KeptKey> {
        // Blocks that are to come again count for what is kept of them.
        if !self.blocks.awaits_none() {
            return None;
        }
        let families = self.local.overlay.keys();
        let capacity = families.map(|f| self.attachments.allocator.counts(*f).capacity);
        let capacity = usize::try_from(capacity.min()?).unwrap_or(usize::MAX);
        // Without ranges nothing is known of what there will be.
        if capacity == 0 {
            return None;
        }
        let of_one = (capacity / 2).clamp(1, KEPT_MAX / 2);
        let of_all = (capacity - capacity / 4).clamp(1, KEPT_MAX);
        let (key, count) = self.oldest_of_the_most(|_| true)?;
        (count > of_one || self.kept.unheld().count() > of_all).then_some(key)
    }

    /// Of the namespace that keeps the most for pods that are away, of which any may be given up: the oldest such record,
    /// and how many that namespace has.
    fn oldest_of_the_most(&self, may: impl Fn(&Entry) -> bool) -> Option<(KeptKey, usize)> {
        let mut counts = BTreeMap::<_, usize>::new();
        for entry in self.kept.unheld() {
            *counts.entry(&entry.key().namespace).or_default() += 1;
        }
        let count = |e: &Entry| counts.get(&e.key().namespace).copied().unwrap_or_default();
        let found = self.kept.unheld().filter(|e| may(e));
        let found = found.max_by_key(|e| (count(e), Reverse((e.expires, e.key()))))?;
        Some((found.key().clone(), count(found)))
    }

    /// Makes room for the record of an ADD, where the node has as many as it may.
    pub(crate) fn make_kept_room(&mut self, now: Now, add: &Add) {
        let key = self.kept_key(add).filter(|(_, keeps)| *keeps);
        let is_new = key.is_some_and(|(key, _)| !self.kept.entries.contains_key(&key));
        if is_new
            && self.kept.gives_way()
            && let Some((oldest, _)) = self.oldest_of_the_most(|_| true)
        {
            self.give_up_kept(now, &oldest, GivenUp::TooMany);
            self.blocks_unwanted();
        }
    }

    /// Frees one kept address of a family in which an ADD finds none. False if there is none that it could have at once.
    pub(crate) fn free_kept(&mut self, now: Now, add: &Add, family: Family) -> bool {
        let own = self.kept_key(add).map(|(key, _)| key);
        let ranges = self.attachments.allocator.ranges();
        let within = |nets: &[IpNetwork], a: &IpAddr| nets.iter().any(|n| contains(*n, host(*a)));
        let helps = |a: &IpAddr| {
            Family::of(*a) == family && within(ranges, a) && !within(&self.config.ipam.reserved, a)
        };
        let may = |e: &Entry| {
            own.as_ref() != Some(e.key())
                && self.kept_since(now, e) + self.config.address_rest <= now.boot
                && e.kept.addresses.iter().any(helps)
        };
        let Some((key, _)) = self.oldest_of_the_most(may) else {
            return false;
        };
        self.give_up_kept(now, &key, GivenUp::Needed);
        self.blocks_unwanted();
        true
    }

    /// Drops the record of a pod that is away. Its addresses have rested since that pod went.
    pub(crate) fn give_up_kept(&mut self, now: Now, key: &KeptKey, why: GivenUp) {
        let Some(entry) = self.kept.drop_entry(key) else {
            return;
        };
        let since = self.kept_since(now, &entry);
        for address in &entry.kept.addresses {
            self.attachments.allocator.release(since, *address);
        }
        self.kept.note_lost(entry, now.boot + self.config.ipam.keep, why);
        self.mark(crate::action::Resource::Kept(key.clone()));
    }

    /// Since when nobody has the addresses.
    fn kept_since(&self, now: Now, entry: &Entry) -> Boot {
        let since = entry.expires.map(|at| at - self.config.ipam.keep);
        since.map_or(now.boot, |since| since.min(now.boot))
    }
}
