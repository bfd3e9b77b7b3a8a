//! The addresses of one family, as numbers.

use super::{Counts, Exhausted, split};
use ipnetwork::IpNetwork;
use meshd_model::Boot;
use meshd_model::net::{Family, canonical, contains, overlay_address};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// From this many freed addresses in a family on, those whose rest is over are handed out before never-used ones.
pub const FREED_MAX: usize = 4096;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pool {
    /// Disjoint, in order of preference.
    ranges: Vec<Range>,
    /// Where `ranges` are: first address, last address, index.
    extents: BTreeMap<u128, (u128, usize)>,
    /// Addresses within `ranges` that are never handed out.
    reserved: BTreeSet<u128>,
    /// What is handed out by name only, disjoint: first address, last address.
    withheld: BTreeMap<u128, u128>,
    /// Index of the first of `ranges` with a never-used address.
    open: usize,
    /// Every address that is or was in use, and since when it is not. Within the ranges none is ever forgotten,
    /// so that an address of theirs which is not here was never used.
    known: BTreeMap<u128, Option<Boot>>,
    /// The freed addresses that can be handed out again.
    freed: BTreeSet<(Boot, u128)>,
    /// The freed addresses that cannot, at the time: outside of the ranges, reserved or withheld. Kept while they rest.
    outside: BTreeSet<(Boot, u128)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    first: u128,
    last: u128,
    /// The first address that was never used and is neither reserved nor withheld.
    next: Option<u128>,
}

impl Pool {
    pub(super) fn set_ranges(&mut self, given: &[IpNetwork], family: Family) {
        let usable: Vec<IpNetwork> = given
            .iter()
            .map(|&net| canonical(net))
            .filter(|&net| Family::of(net.network()) == family && overlay_address(net).is_some())
            .collect();
        self.reserved = usable.iter().flat_map(|&net| reserved(net)).collect();
        self.ranges.clear();
        self.extents.clear();
        for (index, &net) in usable.iter().enumerate() {
            let outer = |&(other, &candidate): &(usize, &IpNetwork)| {
                contains(candidate, net) && (candidate != net || other < index)
            };
            if usable.iter().enumerate().any(|entry| outer(&entry)) {
                continue;
            }
            let (first, last) = extent(net);
            self.extents.insert(first, (last, self.ranges.len()));
            self.ranges.push(Range {
                first,
                last,
                next: Some(first),
            });
        }
        self.begin_anew();
    }

    pub(super) fn set_withheld(&mut self, given: &[IpNetwork], family: Family) {
        let mut extents: Vec<_> = given
            .iter()
            .filter(|net| Family::of(net.network()) == family)
            .map(|&net| extent(canonical(net)))
            .collect();
        // Two prefixes are disjoint, or one lies within the other: the wider first.
        extents.sort_unstable_by_key(|&(first, last)| (first, Reverse(last)));
        self.withheld.clear();
        for (first, last) in extents {
            if self.withheld_until(first).is_none() {
                self.withheld.insert(first, last);
            }
        }
        for range in &mut self.ranges {
            range.next = Some(range.first);
        }
        self.begin_anew();
    }

    /// Finds out again what is free, after the ranges or what is withheld has changed.
    fn begin_anew(&mut self) {
        self.sort_freed();
        self.open = 0;
        for index in 0..self.ranges.len() {
            self.advance(index);
        }
    }

    pub(super) fn allocate(&mut self, now: Boot, rest: Duration) -> Option<u128> {
        self.forget_outside(now, rest);
        let rested = self
            .freed
            .first()
            .copied()
            .filter(|&(freed, _)| now.since(freed) >= rest);
        let fresh = self.fresh();
        let bits = match (fresh, rested) {
            (Some(bits), None) => bits,
            (Some(bits), Some(_)) if self.freed.len() < FREED_MAX => bits,
            (_, Some((_, bits))) => bits,
            (None, None) => return None,
        };
        let taken = self.take(bits);
        assert!(taken, "what is fresh or freed is not in use");
        Some(bits)
    }

    /// False if it is in use.
    pub(super) fn take(&mut self, bits: u128) -> bool {
        match self.known.insert(bits, None) {
            Some(None) => return false,
            Some(Some(since)) => {
                self.freed.remove(&(since, bits));
                self.outside.remove(&(since, bits));
            }
            None => {}
        }
        if let Some(index) = self.range_of(bits) {
            self.advance(index);
        }
        true
    }

    /// False if it is not in use.
    pub(super) fn release(&mut self, now: Boot, rest: Duration, bits: u128) -> bool {
        self.forget_outside(now, rest);
        if !self.in_use(bits) {
            return false;
        }
        self.insert_freed(now, bits);
        true
    }

    pub(super) fn in_use(&self, bits: u128) -> bool {
        self.known.get(&bits) == Some(&None)
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            capacity: self.capacity(),
            in_use: (self.known.len() - self.freed.len() - self.outside.len()) as u128,
            freed: self.freed.len() as u128,
        }
    }

    /// Only right when [`Self::allocate`] found nothing: then all of the capacity is in use or resting.
    pub(super) fn exhausted(&self, family: Family) -> Exhausted {
        let (capacity, resting) = (self.capacity(), self.freed.len() as u128);
        Exhausted {
            family,
            capacity,
            in_use: capacity - resting,
            resting,
        }
    }

    /// Addresses in use outside of the ranges count as if they were inside: there are few, and less is safe.
    pub(super) fn available(&self, now: Boot, rest: Duration) -> u128 {
        let Counts { capacity, in_use, .. } = self.counts();
        let resting = self.freed.range((now - rest, u128::MAX)..);
        let resting = resting.filter(|(since, _)| now.since(*since) < rest);
        capacity.saturating_sub(in_use + resting.count() as u128)
    }

    pub(super) fn is_occupied(&self, now: Boot, rest: Duration, prefix: IpNetwork) -> bool {
        let (first, last) = extent(canonical(prefix));
        let rests = |since: &Option<Boot>| since.is_none_or(|since| now.since(since) < rest);
        self.known.range(first..=last).any(|(_, since)| rests(since))
    }

    /// Since when it is freed; None if it is in use, or is not known.
    pub(super) fn freed_at(&self, bits: u128) -> Option<Boot> {
        self.known.get(&bits).copied().flatten()
    }

    pub(super) fn oldest_freed(&self) -> Option<Boot> {
        self.freed.first().map(|&(since, _)| since)
    }

    /// Every address in use, in order.
    pub(super) fn taken(&self) -> impl Iterator<Item = u128> {
        self.known
            .iter()
            .filter(|(_, since)| since.is_none())
            .map(|(&bits, _)| bits)
    }

    /// Every freed address that is remembered, least recently freed first.
    pub(super) fn freed(&self) -> impl Iterator<Item = (Boot, u128)> {
        self.freed.union(&self.outside).copied()
    }

    /// Remembers an address as freed at `since`.
    pub(super) fn insert_freed(&mut self, since: Boot, bits: u128) {
        if let Some(Some(before)) = self.known.insert(bits, Some(since)) {
            self.freed.remove(&(before, bits));
            self.outside.remove(&(before, bits));
        }
        if self.allocatable(bits) {
            self.freed.insert((since, bits));
        } else {
            self.outside.insert((since, bits));
        }
    }

    /// How many addresses can be handed out without being asked for by name. Each range has two or three reserved ones,
    /// which keeps that of ::/0 below 2^128, so that the sums before it may wrap.
    fn capacity(&self) -> u128 {
        let length = |first: u128, last: u128| (last - first).wrapping_add(1);
        let mut capacity = 0_u128;
        for (&first, &(last, _)) in &self.extents {
            capacity = capacity.wrapping_add(length(first, last));
        }
        for (&first, &last) in &self.withheld {
            for (from, to) in self.within_ranges(first, last) {
                capacity = capacity.wrapping_sub(length(from, to));
            }
        }
        let reserved = self
            .reserved
            .iter()
            .filter(|&&bits| self.withheld_until(bits).is_none());
        capacity.wrapping_sub(reserved.count() as u128)
    }

    /// The parts of `first..=last` that the ranges have.
    fn within_ranges(&self, first: u128, last: u128) -> impl Iterator<Item = (u128, u128)> {
        let from = self
            .range_of(first)
            .map_or(first, |index| self.ranges[index].first);
        self.extents
            .range(from..=last)
            .map(move |(&start, &(end, _))| (start.max(first), end.min(last)))
    }

    fn allocatable(&self, bits: u128) -> bool {
        self.is_in_range(bits) && !self.is_own(bits) && self.withheld_until(bits).is_none()
    }

    pub(super) fn is_in_range(&self, bits: u128) -> bool {
        self.range_of(bits).is_some()
    }

    /// Whether it is a range's network, overlay or broadcast address.
    pub(super) fn is_own(&self, bits: u128) -> bool {
        self.reserved.contains(&bits)
    }

    /// The last address of what is withheld around this one.
    fn withheld_until(&self, bits: u128) -> Option<u128> {
        let (_, &last) = self.withheld.range(..=bits).next_back()?;
        (bits <= last).then_some(last)
    }

    fn range_of(&self, bits: u128) -> Option<usize> {
        let (_, &(last, index)) = self.extents.range(..=bits).next_back()?;
        (bits <= last).then_some(index)
    }

    fn fresh(&self) -> Option<u128> {
        self.ranges.get(self.open).and_then(|range| range.next)
    }

    /// Moves a range's mark to its first never-used address, past what is withheld in one step. The mark only ever moves forward while the ranges
    /// stay, so that all calls together pass over each known address once.
    fn advance(&mut self, index: usize) {
        while let Some(bits) = self.ranges[index].next {
            let passed = match self.withheld_until(bits) {
                Some(last) => last,
                None if self.known.contains_key(&bits) || self.is_own(bits) => bits,
                None => break,
            };
            let range = &mut self.ranges[index];
            range.next = (passed < range.last).then(|| passed + 1);
        }
        while self
            .ranges
            .get(self.open)
            .is_some_and(|range| range.next.is_none())
        {
            self.open += 1;
        }
    }

    /// Tells the freed addresses that can be handed out from the others, after the ranges have changed.
    fn sort_freed(&mut self) {
        let all: Vec<_> = self.freed().collect();
        let (freed, outside) = all.into_iter().partition(|&(_, bits)| self.allocatable(bits));
        (self.freed, self.outside) = (freed, outside);
    }

    fn forget_outside(&mut self, now: Boot, rest: Duration) {
        while let Some(&(since, bits)) = self.outside.first() {
            if now.since(since) < rest {
                break;
            }
            self.outside.pop_first();
            self.known.remove(&bits);
        }
    }
}

fn extent(net: IpNetwork) -> (u128, u128) {
    let (_, first) = split(net.network());
    let (_, last) = split(net.broadcast());
    (first, last)
}

/// The addresses of a prefix that no pod may have.
fn reserved(net: IpNetwork) -> impl Iterator<Item = u128> {
    let (first, last) = extent(net);
    let overlay = overlay_address(net).map(|address| split(address).1);
    let broadcast = net.is_ipv4().then_some(last);
    std::iter::once(first).chain(overlay).chain(broadcast)
}
