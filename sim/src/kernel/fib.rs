//! Routing tables: the longest prefix wins, and of several routes to it the lowest metric.

use ipnetwork::IpNetwork;
use meshd_model::net::{canonical, contains};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Where a packet goes next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Out {
    /// The WireGuard interface.
    Device,
    /// A pod, by the name of the host's end of its link.
    Pod(String),
    /// Another host of the underlay; None for the router.
    Underlay(Option<IpAddr>),
    /// Nowhere, and the sender is told.
    Unreachable,
}

/// A route's end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hop {
    pub(crate) out: Out,
    /// Source of the node's own packets, where the route names one.
    pub(crate) src: Option<IpAddr>,
    /// Longest packet, in bytes.
    pub(crate) mtu: u16,
}

/// Which prefixes to look at, longest first: table, family, length.
type Shape = (u32, bool, Reverse<u8>);

/// All routing tables of a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fib {
    routes: BTreeMap<Shape, BTreeMap<IpAddr, BTreeMap<u32, Hop>>>,
}

fn shape(table: u32, dst: IpNetwork) -> Shape {
    (table, dst.is_ipv4(), Reverse(dst.prefix()))
}

impl Fib {
    /// Adds a route, replacing one with the same table, destination and metric.
    pub(crate) fn set(&mut self, table: u32, dst: IpNetwork, metric: u32, hop: Hop) {
        let networks = self.routes.entry(shape(table, dst)).or_default();
        networks.entry(dst.network()).or_default().insert(metric, hop);
    }

    pub(crate) fn remove(&mut self, table: u32, dst: IpNetwork, metric: u32) {
        let Some(networks) = self.routes.get_mut(&shape(table, dst)) else {
            return;
        };
        let Some(metrics) = networks.get_mut(&dst.network()) else {
            return;
        };
        metrics.remove(&metric);
        if metrics.is_empty() {
            networks.remove(&dst.network());
        }
        if networks.is_empty() {
            self.routes.remove(&shape(table, dst));
        }
    }

    pub(crate) fn lookup(&self, table: u32, dst: IpAddr) -> Option<&Hop> {
        let v4 = dst.is_ipv4();
        let shapes = self
            .routes
            .range((table, v4, Reverse(u8::MAX))..=(table, v4, Reverse(0)));
        for ((.., Reverse(length)), networks) in shapes {
            let network = canonical(IpNetwork::new(dst, *length).ok()?).network();
            if let Some(hop) = networks.get(&network).and_then(|metrics| metrics.values().next()) {
                return Some(hop);
            }
        }
        None
    }
}

/// Whether any of the prefixes holds the address.
pub(crate) fn any_holds(nets: &BTreeSet<IpNetwork>, address: IpAddr) -> bool {
    nets.iter().any(|net| contains(*net, IpNetwork::from(address)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(mtu: u16) -> Hop {
        Hop {
            out: Out::Device,
            src: None,
            mtu,
        }
    }

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn found(fib: &Fib, table: u32, dst: &str) -> Option<u16> {
        fib.lookup(table, dst.parse().unwrap()).map(|h| h.mtu)
    }

    #[test]
    fn the_longest_prefix_and_then_the_lowest_metric_wins() {
        let mut fib = Fib::default();
        fib.set(254, net("0.0.0.0/0"), 100, hop(1));
        fib.set(254, net("10.0.0.0/8"), 200, hop(2));
        fib.set(254, net("10.1.0.0/16"), 9, hop(3));
        fib.set(254, net("10.1.0.0/16"), 5, hop(4));
        fib.set(7, net("10.1.2.3/32"), 0, hop(5));
        fib.set(254, net("fd00::/16"), 0, hop(6));
        assert_eq!(found(&fib, 254, "10.1.2.3"), Some(4));
        assert_eq!(found(&fib, 254, "10.2.2.3"), Some(2));
        assert_eq!(found(&fib, 254, "11.0.0.1"), Some(1));
        assert_eq!(found(&fib, 7, "10.1.2.3"), Some(5));
        assert_eq!(found(&fib, 7, "10.1.2.4"), None);
        assert_eq!(found(&fib, 254, "fd00::1"), Some(6));
        assert_eq!(found(&fib, 254, "fe00::1"), None);
        fib.remove(254, net("10.1.0.0/16"), 5);
        assert_eq!(found(&fib, 254, "10.1.2.3"), Some(3));
        fib.remove(254, net("10.1.0.0/16"), 9);
        fib.remove(254, net("10.1.0.0/16"), 9);
        assert_eq!(found(&fib, 254, "10.1.2.3"), Some(2));
    }
}
