//! Which block to try next.

use super::Blocks;
use crate::agent::NodeAgent;
use ipnetwork::IpNetwork;
use meshd_model::Boot;
use meshd_model::net::{Family, contains};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

impl NodeAgent {
    /// A block that nobody has, as far as is known: first one that pods of this node have addresses of, then the first
    /// free one behind a place by chance, so that nodes that start at one moment do not all try the same.
    pub(crate) fn choose_block(&mut self, now: Boot, family: Family) -> Option<IpNetwork> {
        let is_of = |c: &&IpNetwork| Family::of(c.network()) == family;
        if let Some(wanted) = self.blocks.wanted.iter().find(is_of) {
            return Some(*wanted);
        }
        self.blocks.resting.retain(|_, until| now < *until);
        self.blocks.taken.retain(|_, until| now < *until);
        let pool = self.config.ipam.pool.as_ref()?;
        let parts: Vec<_> = self
            .bounds
            .pods
            .iter()
            .map(|c| (*c, pool.blocks_in(*c, family)))
            .collect();
        let all = parts
            .iter()
            .fold(0_u128, |sum, (_, count)| sum.saturating_add(*count));
        if all == 0 {
            return None;
        }
        let size = *pool.block_sizes.get(&family)?;
        let start = self.jitter.below(all);
        // Each block that is passed over is known, rests or is another's part, so the way is no longer than these are.
        (0..all)
            .map(|step| nth_block(&parts, (start + step) % all, size))
            .take(self.passed_over().saturating_add(1))
            .flatten()
            .find(|c| self.is_free(*c))
    }

    /// Blocks that nobody has though pods of this node have addresses of them, or addresses of them are kept.
    pub(super) fn wanted_blocks(&self) -> BTreeSet<IpNetwork> {
        let kept = self.kept.unheld().flat_map(|e| &e.kept.addresses);
        let in_use = self.attachments.addresses().chain(kept);
        in_use.filter_map(|a| self.wanted_block(*a)).collect()
    }

    /// The block of this address, where it can be claimed as far as is known.
    pub(crate) fn wanted_block(&self, address: IpAddr) -> Option<IpNetwork> {
        let cidr = self.config.ipam.pool.as_ref()?.block_of(address)?;
        let is_free = !self.is_taken(cidr) && !self.blocks.taken.contains_key(&cidr);
        (is_free && self.bounds.pod_cidr(cidr).is_ok()).then_some(cidr)
    }

    /// Addresses are not kept any more: their blocks are not wanted for them.
    pub(crate) fn blocks_unwanted(&mut self) {
        self.blocks.wanted = self.wanted_blocks();
    }

    /// Whether anybody has a part of the block.
    pub(super) fn is_taken(&self, cidr: IpNetwork) -> bool {
        let mut parts = self.blocks.known.overlapping(cidr);
        parts.any(|(c, _)| self.counts_as_block(c))
    }

    /// Whether an object stands for a block, by the rule for what another node may publish: one that is wider would take what
    /// it spans from the whole cluster, and nobody could be reached there.
    pub(super) fn counts_as_block(&self, cidr: IpNetwork) -> bool {
        self.blocks.mine.contains(&cidr) || self.bounds.peer_pod_cidr(cidr).is_ok()
    }

    /// What an older node claims is not free, though it should have an object: here it would lead nowhere.
    fn is_free(&self, cidr: IpNetwork) -> bool {
        !self.is_taken(cidr)
            && !self.blocks.resting.contains_key(&cidr)
            && !self.blocks.taken.contains_key(&cidr)
            && self.bounds.pod_cidr(cidr).is_ok()
            && self.nodes.senior_to_own(cidr).is_none()
            && !self.config.ipam.reserved.iter().any(|r| contains(*r, cidr))
    }

    /// How many blocks may have to be passed over at most. An object may be of another size than blocks are now, and so
    /// stand for many; then a few more tries find what is free.
    fn passed_over(&self) -> usize {
        const OTHER_SIZES: usize = 4096;
        let Blocks {
            known,
            resting,
            taken,
            ..
        } = &self.blocks;
        let claimed = self.nodes.claims().prefixes().count();
        known.keys().count() + resting.len() + taken.len() + claimed + OTHER_SIZES
    }
}

/// The block of this number among all that the prefixes are cut into.
fn nth_block(parts: &[(IpNetwork, u128)], mut number: u128, size: u8) -> Option<IpNetwork> {
    for (cidr, count) in parts {
        if number < *count {
            return block_in(*cidr, number, size);
        }
        number -= count;
    }
    None
}

fn block_in(cidr: IpNetwork, number: u128, size: u8) -> Option<IpNetwork> {
    let address: IpAddr = match cidr.network() {
        IpAddr::V4(first) => {
            let offset = u32::try_from(number << (32 - size)).ok()?;
            Ipv4Addr::from_bits(first.to_bits() | offset).into()
        }
        IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() | (number << (128 - size))).into(),
    };
    let block = IpNetwork::new(address, size).ok()?;
    debug_assert!(contains(cidr, block), "{block} in {cidr}");
    Some(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_numbered_through_all_prefixes() {
        let net = |text: &str| text.parse::<IpNetwork>().unwrap();
        let parts = [
            (net("10.244.0.0/24"), 4),
            (net("fd00::/48"), 0),
            (net("10.9.0.128/25"), 2),
        ];
        let all: Vec<_> = (0..7).map(|n| nth_block(&parts, n, 26)).collect();
        let named = [
            "10.244.0.0/26",
            "10.244.0.64/26",
            "10.244.0.128/26",
            "10.244.0.192/26",
            "10.9.0.128/26",
            "10.9.0.192/26",
        ];
        let mut expected: Vec<_> = named.map(|n| Some(net(n))).into();
        expected.push(None);
        assert_eq!(all, expected);
        let last = block_in(net("fd00:244::/48"), (1 << 74) - 1, 122);
        assert_eq!(last, Some(net("fd00:244:0:ffff:ffff:ffff:ffff:ffc0/122")));
    }
}
