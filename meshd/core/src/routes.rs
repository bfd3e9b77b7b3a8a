//! Routes and policy rules.
//!
//! ```text
//! main table    a peer's pod CIDR       dev DEVICE src OVERLAY mtu MTU   metric ROUTE_METRIC
//!               a cluster pod CIDR      unreachable                      metric UNREACHABLE_METRIC
//! route_table   a peer's node address   dev DEVICE src OVERLAY mtu MTU   metric ROUTE_METRIC
//!               the same                unreachable                      metric UNREACHABLE_METRIC
//! rules         from an own pod CIDR, not fwmark MARK, lookup route_table
//! ```
//!
//! MTU is the smaller of both ends' overlay MTUs.
//!
//! The unreachable route behind a node address is there whenever another node claims it, with a peer or without: where
//! the route into the device is missing, the lookup would go on to the main table, and what a pod sends to that node
//! would leave in the clear with this node's address.

use crate::action::{KernelOp, Resource};
use crate::agent::NodeAgent;
use crate::observed::RouteKey;
use crate::own::mtu_min;
use crate::reconcile::Plan;
use ipnetwork::IpNetwork;
use meshd_model::PublicKey;
use meshd_model::kernel::{Route, RouteTarget, Rule, TABLE_MAIN, UNREACHABLE_METRIC};
use meshd_model::net::{Family, contains};

/// Metric of the routes that lead to peers. Given, because IPv4 and IPv6 do not agree on what none means.
pub const ROUTE_METRIC: u32 = 50;

impl NodeAgent {
    /// Where a prefix of a peer is routed: pods for everyone, nodes' own addresses for pods alone.
    pub(crate) fn route_key(&self, dst: IpNetwork) -> RouteKey {
        let is_pods = self.bounds.pods.iter().any(|p| contains(*p, dst));
        let table = if is_pods {
            TABLE_MAIN
        } else {
            self.config.route_table
        };
        RouteKey {
            table,
            dst,
            metric: ROUTE_METRIC,
        }
    }

    /// What lies behind the route to a node's own address; None for pods, which have one for them all.
    pub(crate) fn refusal_key(&self, dst: IpNetwork) -> Option<RouteKey> {
        let key = self.route_key(dst);
        (key.table != TABLE_MAIN).then_some(RouteKey {
            metric: UNREACHABLE_METRIC,
            ..key
        })
    }

    /// Whether pods may not reach this address but through the tunnel: it is another node's, as far as is known. The own
    /// Node's may be a translator's, which leads back here or nowhere. In a family that pods have not, nothing is lost.
    fn is_refused(&self, dst: IpNetwork) -> bool {
        let family = Family::of(dst.network());
        let mut pods = self.bounds.pods.iter().map(|p| Family::of(p.network()));
        let holder = self.nodes.claims().holder(dst);
        let of_another = holder.is_some_and(|c| c.node != self.config.node);
        pods.any(|f| f == family) && (of_another || self.nodes.is_kept(dst))
    }

    /// All routes of a prefix that a node claims.
    pub(crate) fn route_keys(&self, dst: IpNetwork) -> impl Iterator<Item = RouteKey> {
        [Some(self.route_key(dst)), self.refusal_key(dst)]
            .into_iter()
            .flatten()
    }

    pub(crate) fn unreachable_routes(&self) -> impl Iterator<Item = RouteKey> {
        let pods = self.bounds.pods.iter();
        pods.map(|dst| RouteKey {
            table: TABLE_MAIN,
            dst: *dst,
            metric: UNREACHABLE_METRIC,
        })
    }

    pub(crate) fn is_unreachable(&self, key: RouteKey) -> bool {
        let there = self.observed.routes.get(&key);
        there.is_some_and(|r| r.iter().any(|r| r.target == RouteTarget::Unreachable))
    }

    /// What is desired at this key.
    pub(crate) fn desired_route(&self, key: RouteKey) -> Option<Route> {
        let RouteKey { table, dst, metric } = key;
        if metric == UNREACHABLE_METRIC {
            let of_pods = table == TABLE_MAIN && self.bounds.pods.contains(&dst);
            let ours = of_pods || (self.refusal_key(dst) == Some(key) && self.is_refused(dst));
            return ours.then_some(Route {
                dst,
                table,
                metric,
                target: RouteTarget::Unreachable,
            });
        }
        if key != self.route_key(dst) {
            return None;
        }
        let family = Family::of(dst.network());
        let src = *self.local.overlay.get(&family)?;
        let peer = self.heir(dst)?;
        let mtu = self.route_mtu(&peer, family)?;
        let name = self.config.device.clone();
        Some(Route {
            dst,
            table,
            metric,
            target: RouteTarget::Device { name, src, mtu },
        })
    }

    /// The smaller of this node's overlay MTU and the peer's, which publishes what its own underlay carries; a peer
    /// that publishes less than its family needs gets what the family needs.
    fn route_mtu(&self, peer: &PublicKey, family: Family) -> Option<u16> {
        let own = self.local.mtu?;
        let of_peer = self.nodes.mtu_of(peer).unwrap_or(own);
        Some(own.min(of_peer.max(mtu_min(family))))
    }

    pub(crate) fn plan_route(&self, key: RouteKey) -> Plan {
        let desired = self.desired_route(key);
        let is_fail_closed = matches!(&desired, Some(r) if r.target == RouteTarget::Unreachable);
        let may_change = if is_fail_closed {
            self.observed.seen
        } else {
            self.gate()
        };
        if !may_change {
            return Plan::Hold;
        }
        let there = self.observed.routes.get(&key);
        let Some(desired) = desired else {
            let stale = there.and_then(|r| r.first());
            return stale.map_or(Plan::Gone, |r| Plan::kernel(KernelOp::RemoveRoute(r.clone())));
        };
        if !there.is_some_and(|r| r.contains(&desired)) {
            return self.plan_new_route(desired);
        }
        let extra = there.into_iter().flatten().find(|r| **r != desired);
        extra.map_or(Plan::Settled, |r| Plan::kernel(KernelOp::RemoveRoute(r.clone())))
    }

    /// A route into the device waits until the device has its source, and the peer takes its packets.
    fn plan_new_route(&self, route: Route) -> Plan {
        if let RouteTarget::Device { src, .. } = &route.target {
            if !self.device_carries([*src]) {
                return Plan::Wait(Resource::Device);
            }
            let peer = self.heir(route.dst);
            if let Some(key) = peer.filter(|key| !self.takes(key, &route.dst)) {
                return Plan::Wait(Resource::Peer(key));
            }
        }
        Plan::kernel(KernelOp::SetRoute(route))
    }

    fn desired_rule(&self, from: IpNetwork) -> Option<Rule> {
        self.local.cidrs.contains(&from).then_some(Rule {
            from,
            unless_mark: self.config.mark,
            table: self.config.route_table,
            priority: self.config.rule_priority,
        })
    }

    /// Whether what pods of this own CIDR send to other nodes' own addresses stays out of the main table, by which it would
    /// leave in the clear.
    pub(crate) fn has_rule(&self, from: IpNetwork) -> bool {
        let there = self.observed.rules.get(&from);
        self.desired_rule(from)
            .is_some_and(|desired| there.is_some_and(|r| r.contains(&desired)))
    }

    pub(crate) fn plan_rule(&self, from: IpNetwork) -> Plan {
        if !self.gate() {
            return Plan::Hold;
        }
        let desired = self.desired_rule(from);
        let there = self.observed.rules.get(&from);
        if let Some(desired) = &desired
            && !there.is_some_and(|r| r.contains(desired))
        {
            return Plan::kernel(KernelOp::SetRule(desired.clone()));
        }
        let stale = there.into_iter().flatten().find(|r| Some(*r) != desired.as_ref());
        match stale {
            Some(rule) => Plan::kernel(KernelOp::RemoveRule(rule.clone())),
            None if desired.is_some() => Plan::Settled,
            None => Plan::Gone,
        }
    }
}
