//! Cryptokey routing: which peer a prefix belongs to (whitepaper, section 2).

use crate::peers::PeerId;
use ipnetwork::IpNetwork;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The allowed IPs of all peers. A lookup asks one ordered map for each prefix length in use, longest first: two or
/// three in a mesh, whatever its size.
#[derive(Default)]
pub(crate) struct AllowedIps {
    v4: Family,
    v6: Family,
}

/// Prefixes of one family by length, longest first; no map is empty.
#[derive(Default)]
struct Family(Vec<(u8, BTreeMap<u128, PeerId>)>);

impl AllowedIps {
    /// Gives the prefix to a peer; returns whose it was. The prefix is canonical.
    pub(crate) fn insert(&mut self, net: IpNetwork, peer: PeerId) -> Option<PeerId> {
        let (family, bits, prefix) = self.split(net);
        family.insert(bits, prefix, peer)
    }

    /// Takes the prefix away from whoever has it.
    pub(crate) fn remove(&mut self, net: IpNetwork) {
        let (family, bits, prefix) = self.split(net);
        family.remove(bits, prefix);
    }

    /// Who has the longest prefix that covers the address.
    pub(crate) fn lookup(&self, address: IpAddr) -> Option<PeerId> {
        match address {
            IpAddr::V4(ip) => self.v4.lookup(u128::from(ip.to_bits()) << 96),
            IpAddr::V6(ip) => self.v6.lookup(ip.to_bits()),
        }
    }

    /// Addresses are compared from their most significant bit: IPv4 fills the upper 32 of 128.
    fn split(&mut self, net: IpNetwork) -> (&mut Family, u128, u8) {
        match net {
            IpNetwork::V4(n) => (&mut self.v4, u128::from(n.network().to_bits()) << 96, n.prefix()),
            IpNetwork::V6(n) => (&mut self.v6, n.network().to_bits(), n.prefix()),
        }
    }
}

impl Family {
    fn insert(&mut self, bits: u128, prefix: u8, peer: PeerId) -> Option<PeerId> {
        let at = match self.find(prefix) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, (prefix, BTreeMap::new()));
                at
            }
        };
        self.0[at].1.insert(bits, peer)
    }

    fn remove(&mut self, bits: u128, prefix: u8) {
        let Ok(at) = self.find(prefix) else {
            return;
        };
        self.0[at].1.remove(&bits);
        if self.0[at].1.is_empty() {
            self.0.remove(at);
        }
    }

    fn find(&self, prefix: u8) -> Result<usize, usize> {
        self.0.binary_search_by(|(length, _)| prefix.cmp(length))
    }

    fn lookup(&self, bits: u128) -> Option<PeerId> {
        self.0
            .iter()
            .find_map(|(prefix, map)| map.get(&(bits & mask(*prefix))).copied())
    }
}

fn mask(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn net() -> impl Strategy<Value = IpNetwork> {
        // Few distinct bits, so that prefixes nest.
        prop_oneof![
            (any::<u32>(), 0u8..=32).prop_map(|(bits, prefix)| {
                let ip = Ipv4Addr::from_bits(bits & 0xc000_0003);
                meshd_model::net::canonical(IpNetwork::new(ip.into(), prefix).unwrap())
            }),
            (any::<u128>(), 0u8..=128).prop_map(|(bits, prefix)| {
                let ip = Ipv6Addr::from_bits(bits & (0xc << 124 | 3));
                meshd_model::net::canonical(IpNetwork::new(ip.into(), prefix).unwrap())
            }),
        ]
    }

    proptest! {
        #[test]
        fn finds_what_a_linear_scan_finds(
            inserts in prop::collection::vec((net(), 0u32..5), 0..30),
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
            probes in prop::collection::vec(net(), 1..30),
        ) {
            let mut routes = AllowedIps::default();
            let mut model = BTreeMap::new();
            for (net, peer) in &inserts {
                prop_assert_eq!(routes.insert(*net, PeerId(*peer)), model.insert(*net, PeerId(*peer)));
            }
            for index in removed {
                if let Some((net, _)) = inserts.get(index.index(inserts.len().max(1))) {
                    routes.remove(*net);
                    model.remove(net);
                }
            }
            for probe in probes {
                let expected = model
                    .iter()
                    .filter(|(net, _)| net.contains(probe.ip()))
                    .max_by_key(|(net, _)| net.prefix())
                    .map(|(_, peer)| *peer);
                prop_assert_eq!(routes.lookup(probe.ip()), expected);
            }
        }
    }
}
