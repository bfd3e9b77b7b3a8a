//! Claiming blocks: one try at a time in each family, another block where somebody was first.

use super::{BLOCKS_MAX, size};
use crate::TimerKind;
use crate::action::{BlockOp, Resource};
use crate::agent::NodeAgent;
use crate::attach::requests::{Stage, error};
use crate::errno::EEXIST;
use crate::event::Failure;
use crate::ops::Task;
use crate::reconcile::Plan;
use ipnetwork::IpNetwork;
use meshd_model::cni::{CniError, code};
use meshd_model::net::{Family, contains};
use meshd_model::{Boot, Now};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A block that somebody has and the watch has not shown is believed taken for so long.
const TAKEN_FOR: Duration = Duration::from_secs(60);
/// The watch shows a block that was claimed within this time, or it is tried again.
const SHOWN_WITHIN: Duration = Duration::from_secs(30);
/// Wait before another block is tried, when somebody was first; it doubles each time.
const ANOTHER_AFTER: Duration = Duration::from_millis(25);
const ANOTHER_AFTER_MAX: Duration = Duration::from_secs(5);
/// When to look again where no block is free.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// A further block is claimed when no more addresses than this are free, or than a quarter of a block has.
const LOW_WATER: u128 = 16;

/// A claim under way in a family.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Claiming {
    /// The block that is tried; the same again after a failure that says nothing of who has it.
    cidr: Option<IpNetwork>,
    /// How often somebody was first.
    tries: u32,
    not_before: Boot,
    /// Until when the watch should have shown it, once it was created.
    created: Option<Boot>,
}

impl NodeAgent {
    pub(crate) fn plan_claim(&mut self, now: Now, family: Family) -> Plan {
        let Some(node) = self.own.node.as_ref().filter(|_| self.may_claim()) else {
            return Plan::Hold;
        };
        let uid = node.uid.clone();
        let mut claiming = self.blocks.claims.get(&family).copied().unwrap_or_default();
        if claiming.cidr.is_some_and(|c| self.is_taken(c)) {
            // It is here, or was another's after all.
            claiming = Claiming::default();
        }
        if claiming.created.is_some_and(|by| now.boot < by) {
            return Plan::Hold;
        }
        if !self.wants_block(now.boot, family) {
            self.blocks.claims.remove(&family);
            self.blocks.full.remove(&family);
            return Plan::Settled;
        }
        if now.boot < claiming.not_before {
            self.timers
                .set(TimerKind::Retry(Resource::Claim(family)), claiming.not_before);
            return Plan::Hold;
        }
        claiming.created = None;
        claiming.cidr = claiming.cidr.or_else(|| self.choose_block(now.boot, family));
        self.blocks.claims.insert(family, claiming);
        let Some(cidr) = claiming.cidr else {
            return self.no_free_block(now, family);
        };
        self.blocks.full.remove(&family);
        Plan::Do(Task::Block {
            cidr,
            op: BlockOp::Claim { uid },
        })
    }

    fn may_claim(&self) -> bool {
        self.config.ipam.pool.is_some()
            && !self.own.deleted
            && self.blocks.synced
            && self.attachments.is_loaded()
    }

    /// Whether this node shall have one more block of the family.
    fn wants_block(&self, now: Boot, family: Family) -> bool {
        let is_of = |c: &&IpNetwork| Family::of(c.network()) == family;
        if self.blocks.wanted.iter().any(|c| is_of(&c)) {
            return true;
        }
        let mine: Vec<_> = self.blocks.in_force(family).collect();
        if mine.len() >= BLOCKS_MAX {
            return false;
        }
        // One that is not published yet is on its way.
        let is_coming = |c: &IpNetwork| !self.is_in_ranges(*c) && self.nodes.senior_to_own(*c).is_none();
        !mine.iter().any(is_coming)
            && self.attachments.allocator.available(now, family) <= self.low_water(family)
    }

    pub(crate) fn low_water(&self, family: Family) -> u128 {
        let quarter = size(family, self.block_size(family)) / 4;
        quarter.min(LOW_WATER).saturating_sub(1)
    }

    fn block_size(&self, family: Family) -> u8 {
        let sizes = self.config.ipam.pool.as_ref().map(|p| &p.block_sizes);
        sizes.and_then(|s| s.get(&family)).copied().unwrap_or_default()
    }

    pub(crate) fn is_in_ranges(&self, cidr: IpNetwork) -> bool {
        self.attachments.allocator.ranges().contains(&cidr)
    }

    /// Every block is taken or rests. ADDs that wait for one are told so.
    fn no_free_block(&mut self, now: Now, family: Family) -> Plan {
        self.blocks.claims.remove(&family);
        let waits = self.blocks.resting.values().chain(self.blocks.taken.values());
        let again = waits
            .min()
            .copied()
            .unwrap_or(Boot(u64::MAX))
            .min(now.boot + LOOK_AGAIN);
        self.timers.set(TimerKind::Retry(Resource::Claim(family)), again);
        if self.blocks.full.insert(family) {
            self.resume(now, Stage::Address);
        }
        Plan::Hold
    }

    /// Whether an ADD that finds no address may wait for one of a further block.
    pub(crate) fn is_block_coming(&mut self, family: Family) -> bool {
        let mine = self.blocks.in_force(family);
        let (count, coming) = mine.fold((0, false), |(n, coming), c| {
            (n + 1, coming || !self.is_in_ranges(c))
        });
        if self.config.ipam.pool.is_none() || self.own.deleted {
            return false;
        }
        self.mark(Resource::Claim(family));
        coming || (count < BLOCKS_MAX && !self.blocks.full.contains(&family))
    }

    /// The answer to an ADD for which there is no address.
    pub(crate) fn exhausted(&self, now: Now, family: Family, why: &str) -> CniError {
        let Some(all) = self.pool_use(now, family) else {
            let what_to_do = "delete pods of this node, or give it a larger pod CIDR";
            return error(code::EXHAUSTED, why, what_to_do);
        };
        let mut why = format!("{why}; {all}");
        let troubles = self.ops.troubles();
        for (_, trouble) in troubles.filter(|(r, _)| **r == Resource::Claim(family)) {
            why = format!("{why}; the last claim failed: {}", trouble.failure.message);
        }
        let what_to_do = match all.own >= BLOCKS_MAX as u128 {
            true => "a node has no more blocks than that: make them larger, or delete pods of this node",
            false => "add a prefix to cluster_pod_cidrs, or take nodes away that are not needed",
        };
        error(code::EXHAUSTED, why, what_to_do)
    }

    /// How a claim ended; the failure that is to be tried again as it was.
    pub(crate) fn claimed(
        &mut self,
        now: Now,
        family: Family,
        cidr: IpNetwork,
        result: Result<(), Failure>,
    ) -> Option<Failure> {
        let is_known = self.is_taken(cidr);
        let claiming = self.blocks.claims.entry(family).or_default();
        match result {
            Ok(()) => {
                let by = now.boot + SHOWN_WITHIN;
                claiming.created = Some(by);
                self.timers.set(TimerKind::Retry(Resource::Claim(family)), by);
                None
            }
            Err(failure) if failure.errno == Some(EEXIST) => {
                let longest = ANOTHER_AFTER
                    .saturating_mul(1 << claiming.tries.min(10))
                    .min(ANOTHER_AFTER_MAX);
                claiming.cidr = None;
                claiming.tries = claiming.tries.saturating_add(1);
                claiming.not_before = now.boot + self.jitter.within(longest);
                if !is_known {
                    self.blocks.taken.insert(cidr, now.boot + TAKEN_FOR);
                    self.blocks.wanted.remove(&cidr);
                }
                None
            }
            Err(failure) => Some(failure),
        }
    }

    /// The ranges are others: there may be too few addresses in them now.
    pub(crate) fn ranges_changed(&mut self) {
        let families = self.config.ipam.pool.iter().flat_map(|p| p.families());
        self.dirty.extend(families.map(Resource::Claim));
    }

    /// Addresses were handed out: their blocks are not empty, and there may be too few left.
    pub(crate) fn note_allocated(&mut self, addresses: &[std::net::IpAddr]) {
        if self.config.ipam.pool.is_none() {
            return;
        }
        let within = |c: &IpNetwork| addresses.iter().any(|a| contains(*c, meshd_model::net::host(*a)));
        self.blocks.empty_since.retain(|c, _| !within(c));
        self.dirty
            .extend(addresses.iter().map(|a| Resource::Claim(Family::of(*a))));
    }
}
