//! Which addresses are free, and which of them is handed out next.
//!
//! An address of the ranges is *never used*, *in use*, or *freed*; a freed one rests for a while, so that what
//! still speaks to its last holder does not reach the next one. Ranges are never enumerated: memory follows the
//! addresses in use and freed, so that a /64 costs what a /26 does.

mod pool;
mod snapshot;

use ipnetwork::IpNetwork;
use meshd_model::Boot;
use meshd_model::net::Family;
use pool::Pool;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

pub use pool::FREED_MAX;

/// Hands out the addresses of a node's pod CIDRs, each to one holder at a time.
///
/// The order is defined: never-used addresses first, in the order of the ranges; then the least recently freed
/// whose rest is over (of two freed at the same instant, the lower). Once [`FREED_MAX`] addresses of a family are
/// freed, those whose rest is over come before never-used ones, so that the memory of a large prefix is bounded.
///
/// Never handed out: the network address of each range, its overlay address
/// ([`meshd_model::net::overlay_address`]), its broadcast address in IPv4, and what was taken by hand. What is withheld
/// is handed out to those only who ask for it by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "snapshot::Snapshot", from = "snapshot::Snapshot")]
pub struct Allocator {
    rest: Duration,
    ranges: Vec<IpNetwork>,
    withheld: Vec<IpNetwork>,
    v4: Pool,
    v6: Pool,
}

/// No address can be handed out now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no {family} address is free: the node's pod CIDRs hold {capacity}, {in_use} are in use, {resting} were freed a moment ago",
    family = name(*family)
)]
pub struct Exhausted {
    /// Which family was asked for.
    pub family: Family,
    /// How many addresses the ranges can hand out; 0 if there is no range of the family.
    pub capacity: u128,
    /// How many of them are in use.
    pub in_use: u128,
    /// How many of them were freed and rest.
    pub resting: u128,
}

/// The address has a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("address {0} is taken already: two leases, or a lease and a foreign interface, claim it")]
pub struct AlreadyTaken(pub IpAddr);

/// Why an address that was asked for by name is not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// None of the ranges has it.
    #[error("{0} is not among the node's pod CIDRs")]
    OutOfRange(IpAddr),
    /// It is a range's network, overlay or broadcast address.
    #[error(
        "{0} is the network's own: its first address, the node's overlay address or the broadcast address"
    )]
    Own(IpAddr),
    /// It has a holder.
    #[error("{0} is in use")]
    InUse(IpAddr),
}

/// How full a family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Addresses that the ranges can hand out.
    pub capacity: u128,
    /// Addresses in use, also those outside of the ranges.
    pub in_use: u128,
    /// Addresses of the ranges that were freed and not handed out again, resting or not.
    pub freed: u128,
}

impl Allocator {
    /// An allocator without ranges; a freed address rests for `rest`.
    #[must_use]
    pub fn new(rest: Duration) -> Self {
        Self {
            rest,
            ranges: Vec::new(),
            withheld: Vec::new(),
            v4: Pool::default(),
            v6: Pool::default(),
        }
    }

    /// Replaces the ranges. What is in use stays so, inside or outside of them; what rests goes on resting.
    ///
    /// Any number of prefixes of both families, in order of preference. Of nested ones the outer counts, with the
    /// reserved addresses of both; one of fewer than four addresses can hold no pod and is passed over.
    pub fn set_ranges(&mut self, ranges: &[IpNetwork]) {
        if self.ranges == ranges {
            return;
        }
        self.ranges = ranges.to_vec();
        self.v4.set_ranges(ranges, Family::V4);
        self.v6.set_ranges(ranges, Family::V6);
    }

    /// The ranges, as they were set.
    #[must_use]
    pub fn ranges(&self) -> &[IpNetwork] {
        &self.ranges
    }

    /// Hands out an address. Takes O(log n) of the addresses in use and freed, over a sequence of calls.
    pub fn allocate(&mut self, now: Boot, family: Family) -> Result<IpAddr, Exhausted> {
        let rest = self.rest;
        let pool = self.pool_mut(family);
        match pool.allocate(now, rest) {
            Some(bits) => Ok(address(family, bits)),
            None => Err(pool.exhausted(family)),
        }
    }

    /// Withholds prefixes from those who ask for any address, in place of what was withheld before. What is in use stays
    /// so. Prefixes may overlap, and lie outside of the ranges.
    pub fn set_withheld(&mut self, withheld: &[IpNetwork]) {
        if self.withheld == withheld {
            return;
        }
        self.withheld = withheld.to_vec();
        self.v4.set_withheld(withheld, Family::V4);
        self.v6.set_withheld(withheld, Family::V6);
    }

    /// Hands out this very address, which may be withheld, and need not have rested: whoever asks for it by name means
    /// it. Takes O(log n).
    ///
    /// # Errors
    /// Where the address is in use, cannot be a pod's, or is not of the ranges; nothing changes then.
    pub fn allocate_exact(&mut self, address: IpAddr) -> Result<(), Refused> {
        self.check_exact(address)?;
        let (family, bits) = split(address);
        let taken = self.pool_mut(family).take(bits);
        assert!(taken, "what is not in use can be taken");
        Ok(())
    }

    /// Whether [`Self::allocate_exact`] would hand this address out.
    ///
    /// # Errors
    /// Where it would not.
    pub fn check_exact(&self, address: IpAddr) -> Result<(), Refused> {
        let (family, bits) = split(address);
        let pool = self.pool(family);
        if !pool.is_in_range(bits) {
            return Err(Refused::OutOfRange(address));
        }
        if pool.is_own(bits) {
            return Err(Refused::Own(address));
        }
        if pool.in_use(bits) {
            return Err(Refused::InUse(address));
        }
        Ok(())
    }

    /// Marks an address as in use: from a loaded lease, or seen in the kernel. It may rest, be reserved or lie
    /// outside of the ranges.
    pub fn take(&mut self, address: IpAddr) -> Result<(), AlreadyTaken> {
        let (family, bits) = split(address);
        if self.pool_mut(family).take(bits) {
            Ok(())
        } else {
            Err(AlreadyTaken(address))
        }
    }

    /// Frees an address; it rests from `now` on. False if it was not in use, and nothing changes.
    pub fn release(&mut self, now: Boot, address: IpAddr) -> bool {
        let rest = self.rest;
        let (family, bits) = split(address);
        self.pool_mut(family).release(now, rest, bits)
    }

    /// Whether the address is in use.
    #[must_use]
    pub fn in_use(&self, address: IpAddr) -> bool {
        let (family, bits) = split(address);
        self.pool(family).in_use(bits)
    }

    /// How full a family is.
    #[must_use]
    pub fn counts(&self, family: Family) -> Counts {
        self.pool(family).counts()
    }

    /// What [`Self::allocate`] says of a family where [`Self::available`] is nothing.
    #[must_use]
    pub fn exhausted(&self, family: Family) -> Exhausted {
        self.pool(family).exhausted(family)
    }

    /// How many addresses of a family can be handed out at once: those of the ranges that are neither in use nor rest.
    #[must_use]
    pub fn available(&self, now: Boot, family: Family) -> u128 {
        self.pool(family).available(now, self.rest)
    }

    /// Whether an address within the prefix is in use or rests.
    #[must_use]
    pub fn is_occupied(&self, now: Boot, prefix: IpNetwork) -> bool {
        let (family, _) = split(prefix.network());
        self.pool(family).is_occupied(now, self.rest, prefix)
    }

    /// Since when an address is freed, while it rests.
    #[must_use]
    pub fn resting_since(&self, now: Boot, address: IpAddr) -> Option<Boot> {
        let (family, bits) = split(address);
        let since = self.pool(family).freed_at(bits)?;
        (now.since(since) < self.rest).then_some(since)
    }

    /// When the rest of the least recently freed address of the ranges is over, which may be past. None if none is
    /// freed.
    #[must_use]
    pub fn next_rested(&self, family: Family) -> Option<Boot> {
        self.pool(family).oldest_freed().map(|freed| freed + self.rest)
    }

    fn pool(&self, family: Family) -> &Pool {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    fn pool_mut(&mut self, family: Family) -> &mut Pool {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// An address as a number of its family.
fn split(address: IpAddr) -> (Family, u128) {
    match address {
        IpAddr::V4(a) => (Family::V4, u128::from(a.to_bits())),
        IpAddr::V6(a) => (Family::V6, a.to_bits()),
    }
}

/// The inverse of [`split`].
fn address(family: Family, bits: u128) -> IpAddr {
    match family {
        // The pool of IPv4 holds only what `split` made of IPv4 addresses and prefixes.
        #[allow(clippy::cast_possible_truncation)]
        Family::V4 => Ipv4Addr::from_bits(bits as u32).into(),
        Family::V6 => Ipv6Addr::from_bits(bits).into(),
    }
}
