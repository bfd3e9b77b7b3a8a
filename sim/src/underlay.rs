//! The network below: hosts on ports, links with latency, loss, duplication and reordering, partitions; and a capture
//! that sees each packet as it is put on the wire.

use crate::random::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// How a link behaves, one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// How long a packet takes.
    pub latency: Duration,
    /// Up to so much longer, by chance; two packets may overtake each other.
    pub jitter: Duration,
    /// Packets lost, of a million.
    pub loss: u32,
    /// Packets that arrive twice, of a million.
    pub duplication: u32,
    /// Packets that take four times as long and arrive behind later ones, of a million.
    pub reordering: u32,
}

impl Default for Link {
    fn default() -> Self {
        Link {
            latency: Duration::from_micros(200),
            jitter: Duration::ZERO,
            loss: 0,
            duplication: 0,
            reordering: 0,
        }
    }
}

/// The network below.
#[derive(Debug)]
pub(crate) struct Underlay {
    seed: u64,
    /// Of links that have none of their own.
    pub(crate) link: Link,
    links: BTreeMap<(usize, usize), Link>,
    chances: BTreeMap<(usize, usize), Random>,
    ports: BTreeMap<IpAddr, usize>,
    /// Ports that reach only each other.
    island: BTreeSet<usize>,
}

impl Underlay {
    pub(crate) fn new(seed: u64, link: Link) -> Underlay {
        Underlay {
            seed,
            link,
            links: BTreeMap::new(),
            chances: BTreeMap::new(),
            ports: BTreeMap::new(),
            island: BTreeSet::new(),
        }
    }

    pub(crate) fn plug(&mut self, port: usize, addresses: &[IpAddr]) {
        self.ports
            .extend(addresses.iter().map(|address| (*address, port)));
    }

    pub(crate) fn unplug(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            self.ports.remove(address);
        }
    }

    pub(crate) fn port_of(&self, address: IpAddr) -> Option<usize> {
        self.ports.get(&address).copied()
    }

    pub(crate) fn set_link(&mut self, from: usize, to: usize, link: Link) {
        self.links.insert((from, to), link);
    }

    /// All links as at the start, no partition.
    pub(crate) fn heal(&mut self, link: Link) {
        self.link = link;
        self.links.clear();
        self.island.clear();
    }

    /// Cuts these ports off from all others.
    pub(crate) fn partition(&mut self, ports: &[usize]) {
        self.island = ports.iter().copied().collect();
    }

    /// When a packet sent now arrives: not at all, once, or twice.
    pub(crate) fn carry(&mut self, from: usize, to: usize) -> Vec<u64> {
        if self.island.contains(&from) != self.island.contains(&to) {
            return Vec::new();
        }
        let link = self.links.get(&(from, to)).copied().unwrap_or(self.link);
        let seed = self.seed;
        let chance = self
            .chances
            .entry((from, to))
            .or_insert_with(|| Random::new(seed, "link", &[from as u64, to as u64]));
        if chance.happens(link.loss) {
            return Vec::new();
        }
        let copies = if chance.happens(link.duplication) { 2 } else { 1 };
        (0..copies).map(|_| delay(chance, link)).collect()
    }
}

fn delay(chance: &mut Random, link: Link) -> u64 {
    let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
    let late = if chance.happens(link.reordering) { 4 } else { 1 };
    nanos(link.latency).saturating_mul(late) + chance.below(nanos(link.jitter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lose_double_and_partition_as_told() {
        let mut underlay = Underlay::new(1, Link::default());
        assert_eq!(underlay.carry(0, 1), [200_000]);
        underlay.set_link(
            0,
            1,
            Link {
                loss: 1_000_000,
                ..Link::default()
            },
        );
        assert_eq!(underlay.carry(0, 1), [0; 0]);
        assert_eq!(underlay.carry(1, 0).len(), 1);
        underlay.link.duplication = 1_000_000;
        assert_eq!(underlay.carry(1, 0).len(), 2);
        underlay.partition(&[1, 2]);
        assert_eq!(underlay.carry(1, 0), [0; 0]);
        assert_eq!(underlay.carry(1, 2).len(), 2);
        underlay.heal(Link::default());
        assert_eq!(underlay.carry(0, 1).len(), 1);
    }
}
