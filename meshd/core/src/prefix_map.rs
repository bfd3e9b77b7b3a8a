//! A map from prefixes that finds what overlaps a prefix without a search.

use ipnetwork::IpNetwork;
use meshd_model::net::{Family, canonical, contains};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The keys are canonical.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PrefixMap<V> {
    by_prefix: BTreeMap<IpNetwork, V>,
    /// How many keys have this length: an ancestor is looked up in those lengths alone.
    lengths: BTreeMap<(Family, u8), usize>,
}

impl<V> Default for PrefixMap<V> {
    fn default() -> Self {
        Self {
            by_prefix: BTreeMap::new(),
            lengths: BTreeMap::new(),
        }
    }
}

impl<V: Default> PrefixMap<V> {
    pub(crate) fn get(&self, prefix: IpNetwork) -> Option<&V> {
        self.by_prefix.get(&prefix)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = IpNetwork> {
        self.by_prefix.keys().copied()
    }

    /// The value of a prefix, made where there is none.
    pub(crate) fn entry(&mut self, prefix: IpNetwork) -> &mut V {
        if !self.by_prefix.contains_key(&prefix) {
            *self.lengths.entry(length(prefix)).or_default() += 1;
        }
        self.by_prefix.entry(prefix).or_default()
    }

    /// Changes the value of a prefix, if there is one, and removes it if the change says so.
    pub(crate) fn change(&mut self, prefix: IpNetwork, is_done: impl FnOnce(&mut V) -> bool) {
        let Some(value) = self.by_prefix.get_mut(&prefix) else {
            return;
        };
        if !is_done(value) {
            return;
        }
        self.by_prefix.remove(&prefix);
        if let Some(count) = self.lengths.get_mut(&length(prefix)) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length(prefix));
            }
        }
    }

    /// Every key that shares an address with `prefix`, itself included.
    pub(crate) fn overlapping(&self, prefix: IpNetwork) -> impl Iterator<Item = (IpNetwork, &V)> {
        let within = self
            .by_prefix
            .range(first_key(prefix)..=last_key(prefix))
            .filter(move |(p, _)| contains(prefix, **p));
        let family = Family::of(prefix.network());
        let around = self
            .lengths
            .range((family, 0)..(family, prefix.prefix()))
            .filter_map(move |((_, length), _)| self.by_prefix.get_key_value(&truncated(prefix, *length)));
        within.chain(around).map(|(p, value)| (*p, value))
    }
}

fn length(prefix: IpNetwork) -> (Family, u8) {
    (Family::of(prefix.network()), prefix.prefix())
}

fn truncated(prefix: IpNetwork, length: u8) -> IpNetwork {
    canonical(IpNetwork::new(prefix.network(), length).expect("shorter than a valid prefix"))
}

/// Networks are ordered by address, then by length: these two enclose all that lie within `prefix`.
fn first_key(prefix: IpNetwork) -> IpNetwork {
    IpNetwork::new(prefix.network(), 0).expect("0 is a valid length")
}

fn last_key(prefix: IpNetwork) -> IpNetwork {
    let (address, length): (IpAddr, u8) = match prefix {
        IpNetwork::V4(n) => {
            let host = u32::MAX.checked_shr(n.prefix().into()).unwrap_or(0);
            (Ipv4Addr::from_bits(n.network().to_bits() | host).into(), 32)
        }
        IpNetwork::V6(n) => {
            let host = u128::MAX.checked_shr(n.prefix().into()).unwrap_or(0);
            (Ipv6Addr::from_bits(n.network().to_bits() | host).into(), 128)
        }
    };
    IpNetwork::new(address, length).expect("the longest length is valid")
}
