//! The controller manager's node IPAM: gives each new Node the next free block of every cluster CIDR.

use crate::config::{NodeCidrs, NodeIpam};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Which blocks are taken.
#[derive(Debug)]
pub(crate) struct Allocator {
    pools: Vec<Pool>,
}

#[derive(Debug)]
struct Pool {
    cidrs: NodeCidrs,
    taken: BTreeSet<u128>,
    /// Where the search goes on: freed blocks are not given again at once.
    next: u128,
}

impl Allocator {
    pub(crate) fn new(config: &NodeIpam) -> Self {
        let pool = |cidrs: &NodeCidrs| Pool {
            cidrs: *cidrs,
            taken: BTreeSet::new(),
            next: 0,
        };
        Self {
            pools: config.cluster_cidrs.iter().map(pool).collect(),
        }
    }

    /// The Node's `podCIDRs`, where it has none and every pool has a free block.
    pub(crate) fn allocate(&mut self, node: &Value) -> Option<Vec<String>> {
        if node["spec"]["podCIDRs"].as_array().is_some_and(|c| !c.is_empty()) || self.pools.is_empty() {
            return None;
        }
        let blocks: Option<Vec<u128>> = self.pools.iter().map(Pool::free).collect();
        let take = |(pool, block): (&mut Pool, u128)| {
            pool.taken.insert(block);
            pool.next = block + 1;
            pool.text(block)
        };
        Some(self.pools.iter_mut().zip(blocks?).map(take).collect())
    }

    /// Marks the blocks of a Node as taken, or as free.
    pub(crate) fn mark(&mut self, node: &Value, taken: bool) {
        for cidr in node["spec"]["podCIDRs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            for pool in &mut self.pools {
                let Some(block) = pool.block(cidr) else {
                    continue;
                };
                if taken {
                    pool.taken.insert(block);
                } else {
                    pool.taken.remove(&block);
                }
            }
        }
    }
}

/// The merge patch that gives a Node its blocks.
pub(crate) fn patch(cidrs: &[String]) -> Value {
    json!({"spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs}})
}

impl Pool {
    /// How many bits of the address tell the blocks apart; none where the configuration makes no sense.
    fn bits(&self) -> u32 {
        u32::from(
            self.cidrs
                .node_prefix
                .min(self.width())
                .saturating_sub(self.cidrs.prefix),
        )
        .min(24)
    }

    fn width(&self) -> u8 {
        if self.cidrs.network.is_ipv4() { 32 } else { 128 }
    }

    fn shift(&self) -> u32 {
        u32::from(self.width().saturating_sub(self.cidrs.node_prefix))
    }

    fn free(&self) -> Option<u128> {
        let blocks = 1u128 << self.bits();
        (0..blocks)
            .map(|i| (self.next + i) % blocks)
            .find(|b| !self.taken.contains(b))
    }

    fn text(&self, block: u128) -> String {
        let prefix = self.cidrs.node_prefix;
        let bits = bits(self.cidrs.network) | (block << self.shift());
        match self.cidrs.network {
            IpAddr::V4(_) => format!(
                "{}/{prefix}",
                Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX))
            ),
            IpAddr::V6(_) => format!("{}/{prefix}", Ipv6Addr::from_bits(bits)),
        }
    }

    /// Which block a prefix is.
    fn block(&self, cidr: &str) -> Option<u128> {
        let (address, prefix) = cidr.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        if prefix != self.cidrs.node_prefix || address.is_ipv4() != self.cidrs.network.is_ipv4() {
            return None;
        }
        let block = (bits(address) ^ bits(self.cidrs.network)).checked_shr(self.shift())?;
        (block < 1 << self.bits()).then_some(block)
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocator() -> Allocator {
        let cidrs = |network: &str, prefix, node_prefix| NodeCidrs {
            network: network.parse().unwrap(),
            prefix,
            node_prefix,
        };
        Allocator::new(&NodeIpam {
            cluster_cidrs: vec![cidrs("10.244.0.0", 22, 24), cidrs("fd00:244::", 48, 64)],
        })
    }

    #[test]
    fn blocks_are_given_in_order_and_again_only_when_the_rest_is_used() {
        let mut ipam = allocator();
        ipam.mark(&json!({"spec": {"podCIDRs": ["10.244.1.0/24"]}}), true);
        let bare = json!({});
        assert_eq!(ipam.allocate(&bare).unwrap(), ["10.244.0.0/24", "fd00:244::/64"]);
        assert_eq!(
            ipam.allocate(&bare).unwrap(),
            ["10.244.2.0/24", "fd00:244:0:1::/64"]
        );
        ipam.mark(
            &json!({"spec": {"podCIDRs": ["10.244.0.0/24", "fd00:244::/64"]}}),
            false,
        );
        assert_eq!(ipam.allocate(&bare).unwrap()[0], "10.244.3.0/24");
        assert_eq!(ipam.allocate(&bare).unwrap()[0], "10.244.0.0/24");
        assert_eq!(ipam.allocate(&bare), None, "no block is left");
    }
}
