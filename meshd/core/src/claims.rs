//! Who owns which prefix. Every node resolves overlaps alike: a claim holds if no senior node (older
//! creationTimestamp, then smaller UID) claims any part of it. Whether a claim holds depends only on those that
//! overlap it, so a change touches only them, and the claims that hold never overlap across nodes.
//!
//! ```text
//! 10.244.1.0/24 -> {node-1, node-7}   exact prefixes, each with its claimants in order of seniority
//! ```

use crate::few::Few;
use crate::prefix_map::PrefixMap;
use ipnetwork::IpNetwork;
use meshd_model::{NodeName, NodeUid};
use serde::{Deserialize, Serialize};

/// One incarnation of a node. The order is seniority: the smallest wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Claimant {
    pub(crate) created: i64,
    pub(crate) uid: NodeUid,
    pub(crate) node: NodeName,
}

/// The index.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Claims(PrefixMap<Few<Claimant>>);

impl Claims {
    /// Adds a claim; the prefix is canonical.
    pub(crate) fn add(&mut self, prefix: IpNetwork, claimant: Claimant) {
        self.0.entry(prefix).insert(claimant);
    }

    pub(crate) fn remove(&mut self, prefix: IpNetwork, claimant: &Claimant) {
        self.0.change(prefix, |claimants| {
            claimants.remove(claimant);
            claimants.is_empty()
        });
    }

    /// Every claim that shares an address with `prefix`, equal ones included.
    pub(crate) fn overlapping(&self, prefix: IpNetwork) -> impl Iterator<Item = (IpNetwork, &Claimant)> {
        let found = self.0.overlapping(prefix);
        found.flat_map(|(p, claimants)| claimants.iter().map(move |c| (p, c)))
    }

    /// The most senior of the other nodes that claim a part of `prefix` and are senior to `claimant`.
    pub(crate) fn senior(&self, prefix: IpNetwork, claimant: &Claimant) -> Option<(IpNetwork, &Claimant)> {
        self.overlapping(prefix)
            .filter(|(_, other)| other.node != claimant.node && *other < claimant)
            .min_by_key(|(_, other)| *other)
    }

    /// Whose claim to exactly this prefix holds.
    pub(crate) fn holder(&self, prefix: IpNetwork) -> Option<&Claimant> {
        let first = self.0.get(prefix)?.first()?;
        self.senior(prefix, first).is_none().then_some(first)
    }

    /// All prefixes that anyone claims.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = IpNetwork> {
        self.0.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshd_model::net::canonical;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn node(created: i64, name: &str) -> Claimant {
        Claimant {
            created,
            uid: NodeUid(format!("uid-{name}")),
            node: name.into(),
        }
    }

    fn names<'a>(found: impl Iterator<Item = (IpNetwork, &'a Claimant)>) -> Vec<String> {
        let mut names: Vec<_> = found.map(|(p, c)| format!("{} {p}", c.node)).collect();
        names.sort();
        names
    }

    #[test]
    fn overlaps_are_found_above_below_and_beside() {
        let mut claims = Claims::default();
        for (prefix, name) in [
            ("10.0.0.0/8", "a"),
            ("10.1.0.0/16", "b"),
            ("10.1.2.0/24", "c"),
            ("10.1.2.3/32", "d"),
            ("10.2.0.0/16", "e"),
            ("fd00::/64", "f"),
        ] {
            claims.add(net(prefix), node(1, name));
        }
        assert_eq!(
            names(claims.overlapping(net("10.1.2.0/24"))),
            ["a 10.0.0.0/8", "b 10.1.0.0/16", "c 10.1.2.0/24", "d 10.1.2.3/32"]
        );
        assert_eq!(
            names(claims.overlapping(net("10.1.2.3/32"))),
            ["a 10.0.0.0/8", "b 10.1.0.0/16", "c 10.1.2.0/24", "d 10.1.2.3/32"]
        );
        assert_eq!(
            names(claims.overlapping(net("10.2.9.0/24"))),
            ["a 10.0.0.0/8", "e 10.2.0.0/16"]
        );
        assert_eq!(names(claims.overlapping(net("::/0"))), ["f fd00::/64"]);
        assert_eq!(claims.overlapping(net("0.0.0.0/0")).count(), 5);
    }

    #[test]
    fn the_older_node_then_the_smaller_uid_holds() {
        let mut claims = Claims::default();
        claims.add(net("10.1.0.0/24"), node(2, "young"));
        assert_eq!(claims.holder(net("10.1.0.0/24")).unwrap().node, "young".into());
        claims.add(net("10.1.0.0/16"), node(1, "old"));
        assert_eq!(claims.holder(net("10.1.0.0/24")), None);
        assert_eq!(claims.holder(net("10.1.0.0/16")).unwrap().node, "old".into());
        claims.add(net("10.1.0.0/16"), node(1, "alike"));
        assert_eq!(claims.holder(net("10.1.0.0/16")).unwrap().node, "alike".into());
        claims.remove(net("10.1.0.0/16"), &node(1, "alike"));
        claims.remove(net("10.1.0.0/16"), &node(1, "old"));
        assert_eq!(claims.holder(net("10.1.0.0/24")).unwrap().node, "young".into());
    }

    #[test]
    fn a_node_does_not_conflict_with_itself() {
        let mut claims = Claims::default();
        claims.add(net("10.1.0.0/16"), node(1, "a"));
        claims.add(net("10.1.1.0/24"), node(1, "a"));
        assert_eq!(claims.holder(net("10.1.1.0/24")).unwrap().node, "a".into());
    }

    fn arbitrary_net() -> impl Strategy<Value = IpNetwork> {
        (any::<bool>(), 0u8..16, 0u8..5).prop_map(|(v4, host, length)| {
            let address: IpAddr = if v4 {
                Ipv4Addr::new(10, 0, 0, host << 4).into()
            } else {
                Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host) << 12).into()
            };
            let length = if v4 { 24 + length } else { 112 + length };
            canonical(IpNetwork::new(address, length).unwrap())
        })
    }

    proptest! {
        #[test]
        fn the_index_agrees_with_a_search(
            changes in prop::collection::vec((any::<bool>(), arbitrary_net(), 0i64..3, 0u8..4), 0..60),
            asked in arbitrary_net(),
        ) {
            let mut claims = Claims::default();
            let mut plain = BTreeSet::new();
            for (add, prefix, created, name) in changes {
                let claimant = node(created, &format!("n{name}"));
                if add {
                    claims.add(prefix, claimant.clone());
                    plain.insert((prefix, claimant));
                } else {
                    claims.remove(prefix, &claimant);
                    plain.remove(&(prefix, claimant));
                }
            }
            let found: BTreeSet<_> = claims.overlapping(asked).map(|(p, c)| (p, c.clone())).collect();
            let searched: BTreeSet<_> =
                plain.iter().filter(|(p, _)| meshd_model::net::overlaps(*p, asked)).cloned().collect();
            prop_assert_eq!(found, searched);
            let held: Vec<_> = claims.prefixes().filter_map(|p| claims.holder(p).map(|c| (p, c.node.clone()))).collect();
            for (i, (p, a)) in held.iter().enumerate() {
                for (q, b) in &held[i + 1..] {
                    prop_assert!(a == b || !meshd_model::net::overlaps(*p, *q), "{} {} {} {}", p, a, q, b);
                }
            }
        }
    }
}
