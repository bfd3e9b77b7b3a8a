//! What of an allocator is written down. The rest follows from it.

use super::{Allocator, address, split};
use ipnetwork::IpNetwork;
use meshd_model::Boot;
use meshd_model::net::Family;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::time::Duration;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Snapshot {
    rest: Duration,
    ranges: Vec<IpNetwork>,
    #[serde(default)]
    withheld: Vec<IpNetwork>,
    in_use: Vec<IpAddr>,
    freed: Vec<(Boot, IpAddr)>,
}

impl From<Allocator> for Snapshot {
    fn from(allocator: Allocator) -> Self {
        let pools = [(Family::V4, &allocator.v4), (Family::V6, &allocator.v6)];
        let in_use = pools
            .iter()
            .flat_map(|&(family, pool)| pool.taken().map(move |bits| address(family, bits)));
        let freed = pools.iter().flat_map(|&(family, pool)| {
            pool.freed()
                .map(move |(since, bits)| (since, address(family, bits)))
        });
        Self {
            rest: allocator.rest,
            in_use: in_use.collect(),
            freed: freed.collect(),
            ranges: allocator.ranges,
            withheld: allocator.withheld,
        }
    }
}

impl From<Snapshot> for Allocator {
    fn from(snapshot: Snapshot) -> Self {
        let mut allocator = Allocator::new(snapshot.rest);
        for (since, address) in snapshot.freed {
            let (family, bits) = split(address);
            allocator.pool_mut(family).insert_freed(since, bits);
        }
        for address in snapshot.in_use {
            let (family, bits) = split(address);
            allocator.pool_mut(family).take(bits);
        }
        allocator.set_withheld(&snapshot.withheld);
        allocator.set_ranges(&snapshot.ranges);
        allocator
    }
}
