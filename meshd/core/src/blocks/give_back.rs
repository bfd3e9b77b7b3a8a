//! Giving blocks back: one that was empty for a time, unless it is the first of its family or its room is needed.

use super::{GivenBack, size};
use crate::TimerKind;
use crate::action::{BlockOp, Resource};
use crate::agent::NodeAgent;
use crate::ops::Task;
use crate::reconcile::Plan;
use ipnetwork::IpNetwork;
use meshd_model::net::Family;
use meshd_model::{Boot, Now};
use std::time::Duration;

/// How often is looked for empty blocks within the time that they may be empty.
const LOOKS: u32 = 4;
const LOOK_MIN: Duration = Duration::from_secs(1);

impl NodeAgent {
    /// Sets the next look at the own blocks, where none is set; only those behind the first are of interest.
    pub(crate) fn arm_look(&mut self, now: Boot) {
        let Some(pool) = &self.config.ipam.pool else {
            return;
        };
        let after = (pool.return_after / LOOKS).max(LOOK_MIN);
        if !self.spare_blocks().is_empty() {
            self.timers.set_no_later(TimerKind::Blocks, now + after);
        }
    }

    /// Looks which blocks are empty, and gives those back that have been for long: one of a family at a time.
    pub(crate) fn look_at_blocks(&mut self, now: Now) {
        let Some(pool) = &self.config.ipam.pool else {
            return;
        };
        // Addresses rest before they count as free: nobody sends to a block that is empty for longer.
        let after = pool.return_after.max(self.config.address_rest);
        let mut back: Vec<IpNetwork> = Vec::new();
        for cidr in self.spare_blocks() {
            if self.attachments.allocator.is_occupied(now.boot, cidr) {
                self.blocks.empty_since.remove(&cidr);
                continue;
            }
            let since = *self.blocks.empty_since.entry(cidr).or_insert(now.boot);
            let family = Family::of(cidr.network());
            let is_first = !back.iter().any(|c| Family::of(c.network()) == family);
            if is_first && now.boot.since(since) >= after && self.can_spare(now.boot, cidr) {
                back.push(cidr);
            }
        }
        let none = back.is_empty();
        for cidr in back {
            self.blocks.given.insert(cidr, GivenBack::default());
        }
        self.arm_look(now.boot);
        if !none {
            self.refresh_blocks(now);
        }
    }

    /// The own blocks in force that are not the first of their family.
    fn spare_blocks(&self) -> Vec<IpNetwork> {
        let mut seen = std::collections::BTreeSet::new();
        let mut spare = self.blocks.held().to_vec();
        spare.retain(|c| !seen.insert(Family::of(c.network())));
        spare
    }

    /// Whether so much is free without it that it would not be missed soon.
    fn can_spare(&self, now: Boot, cidr: IpNetwork) -> bool {
        let family = Family::of(cidr.network());
        // Network address, the node's own, and in IPv4 the broadcast address are no pod's.
        let nobodys = match family {
            Family::V4 => 3,
            Family::V6 => 2,
        };
        let inside = match self.is_in_ranges(cidr) {
            true => size(family, cidr.prefix()) - nobodys,
            false => 0,
        };
        let left = self
            .attachments
            .allocator
            .available(now, family)
            .saturating_sub(inside);
        left > 2 * self.low_water(family)
    }

    pub(crate) fn plan_block(&mut self, now: Now, cidr: IpNetwork) -> Plan {
        let Some(given) = self.blocks.given.get(&cidr).copied() else {
            return Plan::Gone;
        };
        let Some(block) = self.blocks.get(cidr).filter(|_| self.blocks.mine.contains(&cidr)) else {
            self.blocks.given.remove(&cidr);
            return Plan::Gone;
        };
        let object = block.object.clone();
        if self.own.deleted || self.attachments.allocator.is_occupied(now.boot, cidr) {
            return Plan::Hold;
        }
        if !block.released {
            return Plan::Do(Task::Block {
                cidr,
                op: BlockOp::Release { object },
            });
        }
        if self.is_published(cidr) {
            return Plan::Hold;
        }
        let rest = self.config.ipam.pool.as_ref().map_or(Duration::ZERO, |p| p.rest);
        let rested = given.rested.unwrap_or(now.boot + rest);
        self.blocks.given.insert(cidr, GivenBack { rested: Some(rested) });
        if now.boot < rested {
            self.timers.set(TimerKind::Retry(Resource::Block(cidr)), rested);
            return Plan::Hold;
        }
        Plan::Do(Task::Block {
            cidr,
            op: BlockOp::Delete { object },
        })
    }

    /// Whether the Node's annotations name the block, as far as is known.
    pub(crate) fn is_published(&self, cidr: IpNetwork) -> bool {
        let published = self.own.node.as_ref().and_then(|n| n.published.as_ref().ok());
        published.is_some_and(|p| p.pod_cidrs.contains(&cidr))
    }

    /// Whether addresses of an own pod CIDR may be handed out: of a block, once its peers can know of it, while it has its
    /// object.
    pub(crate) fn may_hand_out(&self, cidr: IpNetwork) -> bool {
        self.config.ipam.pool.is_none() || (self.blocks.mine.contains(&cidr) && self.is_published(cidr))
    }

    /// A change of a block's object was carried out; its watch will say the same.
    pub(crate) fn block_changed(&mut self, now: Now, cidr: IpNetwork, op: &BlockOp) {
        let rest = self.config.ipam.pool.as_ref().map_or(Duration::ZERO, |p| p.rest);
        match op {
            // Only the watch knows the object's UID.
            BlockOp::Claim { .. } => {}
            BlockOp::Release { object } => self.blocks.released(cidr, object),
            BlockOp::Delete { object } if self.blocks.is_object(cidr, object) => {
                self.blocks.delete(now.boot, cidr, rest);
            }
            BlockOp::Delete { .. } => {}
        }
    }

    /// What is published has changed: blocks that are published now may be handed out of, others may be deleted.
    pub(crate) fn blocks_published(&mut self, now: Now) {
        if self.config.ipam.pool.is_none() {
            return;
        }
        let given: Vec<_> = self.blocks.given.keys().copied().collect();
        self.dirty.extend(given.into_iter().map(Resource::Block));
        self.refresh_ranges(now);
    }
}
