//! IPAM's pool mode: this node's pod CIDRs are blocks of the cluster's that it claims for itself.
//!
//! A block is claimed by creating an object whose name is the block; the API server creates each name once. The agent
//! follows all of these objects, so it knows which blocks are free, as far as it has heard.
//!
//! ```text
//! free ──Claim──▶ held ──published──▶ handed out of ──empty for a time──▶ given back ──rest──▶ Delete ──▶ rests ──▶ free
//!        EEXIST: another one                                marked, in no range, not published
//! ```
//!
//! - The first block of a family is never given back: its first address is the node's own in the overlay.
//! - What is given back is marked at once, so that a restarted agent goes on with it; it is deleted when it has rested
//!   since the mark was written and what is published no longer names it.
//! - A block whose object goes by another hand, while pods have addresses of it, stays in force and is claimed again at
//!   once: all others let it rest. So is one that running pods have addresses of when the agent starts.

pub(crate) mod choose;
pub(crate) mod claim;
pub(crate) mod give_back;

use crate::action::Resource;
use crate::agent::NodeAgent;
use crate::bounds::{CLAIMS_MAX, Refused};
use crate::config::Pool;
use crate::prefix_map::PrefixMap;
use ipnetwork::IpNetwork;
use meshd_model::block::Owner;
use meshd_model::net::{Family, canonical, overlay_address};
use meshd_model::{Block, Boot, Now, OwnNode};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// Most blocks of a family that one node has: half of what it may publish.
pub(crate) const BLOCKS_MAX: usize = CLAIMS_MAX / 2;
/// Longest that a deletion that was seen is remembered, in entries: more at a time rest for nobody.
const RESTING_MAX: usize = 1 << 16;

/// What is known of blocks, and what is being done about the own ones.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Blocks {
    /// Every block that has an object.
    known: PrefixMap<Option<Block>>,
    /// Of these, the ones whose owner is this node as it is now.
    mine: BTreeSet<IpNetwork>,
    /// While a list runs: the blocks that it has not named yet.
    unnamed: Option<BTreeSet<IpNetwork>>,
    synced: bool,
    /// The own blocks in force, in the order in which they are published: the first of each family stays the first.
    held: Vec<IpNetwork>,
    /// The own blocks that are given back.
    given: BTreeMap<IpNetwork, GivenBack>,
    /// Free blocks that the node's pods have addresses of, or shall have again.
    wanted: BTreeSet<IpNetwork>,
    /// Blocks whose object is gone, and until when they rest.
    resting: BTreeMap<IpNetwork, Boot>,
    /// Blocks that somebody has but that were not heard of yet, and until when that is believed.
    taken: BTreeMap<IpNetwork, Boot>,
    claims: BTreeMap<Family, claim::Claiming>,
    /// Families in which no free block was found.
    full: BTreeSet<Family>,
    empty_since: BTreeMap<IpNetwork, Boot>,
}

/// How far a block is that is given back.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct GivenBack {
    /// When it has rested; none until nobody sends here any more.
    rested: Option<Boot>,
}

/// The blocks of one family: why there are no more addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolUse {
    /// Which family.
    pub family: Family,
    /// How many blocks the cluster's pod CIDRs are cut into.
    pub blocks: u128,
    /// How many of them somebody has.
    pub taken: u128,
    /// How many were freed a while ago and rest.
    pub resting: u128,
    /// How many this node has.
    pub own: u128,
}

impl std::fmt::Display for PoolUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = match self.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let Self {
            blocks,
            taken,
            resting,
            own,
            ..
        } = self;
        write!(
            f,
            "the cluster's pod CIDRs hold {blocks} {family} blocks: {taken} are taken ({own} of them by this node), {resting} \
             were freed a while ago"
        )
    }
}

impl Blocks {
    /// The own blocks in force.
    pub(crate) fn held(&self) -> &[IpNetwork] {
        &self.held
    }

    /// Those of a family that have their object: one that lost it brings no addresses, however long it is in force for what
    /// has addresses of it.
    fn in_force(&self, family: Family) -> impl Iterator<Item = IpNetwork> {
        let is_of = move |c: &IpNetwork| Family::of(c.network()) == family && self.mine.contains(c);
        self.held.iter().copied().filter(is_of)
    }

    /// Whether no block is wanted for what already has addresses of it.
    pub(crate) fn awaits_none(&self) -> bool {
        self.wanted.is_empty()
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.synced
    }

    fn get(&self, cidr: IpNetwork) -> Option<&Block> {
        self.known.get(cidr)?.as_ref()
    }

    fn reset(&mut self) {
        self.unnamed = Some(self.known.keys().collect());
    }

    fn apply(&mut self, block: Block, own: Option<&Owner>) {
        if let Some(unnamed) = &mut self.unnamed {
            unnamed.remove(&block.cidr);
        }
        let cidr = block.cidr;
        if own.is_some() && block.owner.as_ref() == own {
            self.mine.insert(cidr);
        } else {
            self.mine.remove(&cidr);
        }
        self.taken.remove(&cidr);
        self.resting.remove(&cidr);
        *self.known.entry(cidr) = Some(block);
    }

    /// It may have been anybody's a moment ago, so it rests.
    fn delete(&mut self, now: Boot, cidr: IpNetwork, rest: Duration) {
        if self.get(cidr).is_none() {
            return;
        }
        self.known.change(cidr, |_| true);
        self.mine.remove(&cidr);
        self.taken.remove(&cidr);
        self.resting.retain(|_, until| now < *until);
        if self.resting.len() < RESTING_MAX {
            self.resting.insert(cidr, now + rest);
        }
    }

    fn is_object(&self, cidr: IpNetwork, object: &str) -> bool {
        self.get(cidr).is_some_and(|b| b.object == object)
    }

    fn released(&mut self, cidr: IpNetwork, object: &str) {
        if self.is_object(cidr, object)
            && let Some(block) = self.known.entry(cidr)
        {
            block.released = true;
        }
    }

    fn synced(&mut self, now: Boot, rest: Duration) {
        self.synced = true;
        for cidr in self.unnamed.take().unwrap_or_default() {
            self.delete(now, cidr, rest);
        }
    }

    /// The own Node is this one now: which blocks are its.
    pub(crate) fn set_owner(&mut self, own: &Owner) {
        let is_own = |b: &Block| b.owner.as_ref() == Some(own);
        let all = self.known.keys().filter(|c| self.get(*c).is_some_and(is_own));
        self.mine = all.collect();
        self.given.clear();
    }
}

/// The Node as the owner of blocks: by name and UID, since the name alone is the API server's to keep.
pub(crate) fn as_owner(node: &OwnNode) -> Owner {
    Owner {
        node: node.name.clone(),
        uid: node.uid.clone(),
    }
}

/// What the watch of blocks says.
#[derive(Debug)]
pub(crate) enum Change {
    Reset,
    Applied(Block),
    Deleted(IpNetwork),
    Synced,
}

impl NodeAgent {
    pub(crate) fn block_event(&mut self, now: Now, change: Change) {
        let Some(pool) = &self.config.ipam.pool else {
            return;
        };
        let rest = pool.rest;
        let own = self.own.node.as_ref().map(as_owner);
        match change {
            Change::Reset => return self.blocks.reset(),
            Change::Applied(block) => self.blocks.apply(block, own.as_ref()),
            Change::Deleted(cidr) => self.blocks.delete(now.boot, canonical(cidr), rest),
            Change::Synced => self.blocks.synced(now.boot, rest),
        }
        self.refresh_blocks(now);
    }

    /// Works out which blocks are in force, from what is known of them, and marks what follows from a change. Costs as
    /// much as this node has blocks and addresses.
    pub(crate) fn refresh_blocks(&mut self, now: Now) {
        let families = match &self.config.ipam.pool {
            Some(pool) => pool.families(),
            None => return,
        };
        // A Node that is gone leaves what it had in force for the pods that run.
        let Some(node) = self
            .own
            .node
            .as_ref()
            .filter(|_| !self.own.deleted && self.blocks.synced)
        else {
            return;
        };
        let published: Vec<_> = node.published.iter().flat_map(|p| p.pod_cidrs.clone()).collect();
        let (usable, refused) = self.usable_blocks();
        let mut held: Vec<_> = self.blocks.held.clone();
        held.retain(|c| usable.contains(c) || self.is_lost(now, *c));
        let mut new: Vec<_> = usable.into_iter().filter(|c| !held.contains(c)).collect();
        new.sort_by_cached_key(|c| {
            let place = published.iter().position(|p| p == c).unwrap_or(usize::MAX);
            (place, self.blocks.get(*c).map_or(0, |b| b.created), *c)
        });
        held.extend(new);
        self.own.refused = refused;
        self.blocks.held.clone_from(&held);
        self.blocks.wanted = self.wanted_blocks();
        self.blocks.empty_since.retain(|c, _| held.contains(c));
        for cidr in self.blocks.mine.iter().copied().collect::<Vec<_>>() {
            if self.blocks.get(cidr).is_some_and(|b| b.released) {
                self.blocks.given.entry(cidr).or_default();
            }
        }
        let given: Vec<_> = self.blocks.given.keys().copied().collect();
        self.dirty.extend(given.into_iter().map(Resource::Block));
        self.dirty.extend(families.into_iter().map(Resource::Claim));
        self.arm_look(now.boot);
        if held != self.own.cidrs {
            self.own.cidrs = held;
            self.refresh_local(now);
        } else {
            // One may have lost its object and be in force still.
            self.refresh_ranges(now);
        }
    }

    /// The own blocks that may be in force, and what is wrong with the others.
    fn usable_blocks(&self) -> (BTreeSet<IpNetwork>, Vec<Refused>) {
        let (mut usable, mut refused) = (BTreeSet::new(), Vec::new());
        let blocks = self.blocks.mine.iter().filter_map(|c| self.blocks.get(*c));
        for block in blocks.filter(|b| !b.released && !self.blocks.given.contains_key(&b.cidr)) {
            match self.bounds.pod_cidr(block.cidr) {
                Ok(cidr) if overlay_address(cidr).is_none() => {
                    refused.push(Refused::new(cidr, "it holds fewer than four addresses"));
                }
                Ok(cidr) if usable.len() < CLAIMS_MAX => drop(usable.insert(cidr)),
                Ok(cidr) => refused.push(Refused::new(cidr, format!("only {CLAIMS_MAX} blocks count"))),
                Err(reason) => refused.push(reason),
            }
        }
        (usable, refused)
    }

    /// Whether a block that was in force has no object any more, nor anybody else a part of it, while addresses of it are
    /// in use.
    fn is_lost(&self, now: Now, cidr: IpNetwork) -> bool {
        !self.is_taken(cidr) && self.attachments.allocator.is_occupied(now.boot, cidr)
    }

    /// The families in which this node looks for a block and finds none.
    pub(crate) fn blocks_short(&self, now: Now) -> Vec<PoolUse> {
        let families = self.blocks.full.iter();
        families.filter_map(|f| self.pool_use(now, *f)).collect()
    }

    /// How the cluster's blocks of a family are used; none in the other mode.
    #[must_use]
    pub fn pool_use(&self, now: Now, family: Family) -> Option<PoolUse> {
        let pool = self.config.ipam.pool.as_ref()?;
        let within = |c: &IpNetwork| Family::of(c.network()) == family && self.bounds.pod_cidr(*c).is_ok();
        let count = |blocks: &mut dyn Iterator<Item = IpNetwork>| blocks.filter(within).count() as u128;
        let known = self.blocks.known.keys();
        let resting = self.blocks.resting.iter().filter(|(_, until)| now.boot < **until);
        Some(PoolUse {
            family,
            blocks: self.bounds.pods.iter().map(|c| pool.blocks_in(*c, family)).sum(),
            taken: count(&mut known.filter(|c| self.counts_as_block(*c))),
            resting: count(&mut resting.map(|(c, _)| *c)),
            own: count(&mut self.blocks.mine.iter().copied()),
        })
    }
}

impl Pool {
    /// The families that the cluster has blocks of.
    pub(crate) fn families(&self) -> Vec<Family> {
        self.block_sizes.keys().copied().collect()
    }

    /// The block that an address lies in.
    fn block_of(&self, address: IpAddr) -> Option<IpNetwork> {
        let size = *self.block_sizes.get(&Family::of(address))?;
        Some(canonical(IpNetwork::new(address, size).ok()?))
    }

    /// How many blocks a prefix of the cluster is cut into; none of the other family, nor of one that is smaller.
    fn blocks_in(&self, cidr: IpNetwork, family: Family) -> u128 {
        let size = self.block_sizes.get(&family).copied().unwrap_or_default();
        if Family::of(cidr.network()) != family || size < cidr.prefix() {
            return 0;
        }
        power_of_two(size - cidr.prefix())
    }
}

/// How many addresses a prefix of this length has.
fn size(family: Family, prefix: u8) -> u128 {
    let bits = match family {
        Family::V4 => 32,
        Family::V6 => 128,
    };
    power_of_two(bits - prefix)
}

/// As near as a number comes to it.
fn power_of_two(exponent: u8) -> u128 {
    1_u128.checked_shl(u32::from(exponent)).unwrap_or(u128::MAX)
}
