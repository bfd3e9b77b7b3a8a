//! WireGuard peers: what is desired of them comes from [`crate::nodes`]; here it meets what is there.

use crate::action::{KernelOp, Resource};
use crate::agent::NodeAgent;
use crate::nodes::Touched;
use crate::observed::RouteKey;
use crate::reconcile::Plan;
use meshd_model::kernel::{Peer, PeerState, RouteTarget};
use meshd_model::{Now, PublicKey};
use std::time::Duration;

/// A session that has had no handshake for so long is dead (WireGuard's Reject-After-Time, section 6.1 of the paper).
const SESSION_LIFE: Duration = Duration::from_secs(180);

impl NodeAgent {
    /// Marks what a change of a node has touched, and looks at what follows for this node.
    pub(crate) fn touched(&mut self, touched: Touched) {
        let routes: Vec<_> = touched
            .prefixes
            .iter()
            .map(|p| self.route_key(*p).resource())
            .collect();
        self.dirty.extend(touched.keys.into_iter().map(Resource::Peer));
        self.dirty.extend(routes);
    }

    pub(crate) fn desired_peer(&self, key: &PublicKey) -> Option<Peer> {
        self.nodes
            .peer(key, &self.config.identity.public_key, &self.families)
    }

    pub(crate) fn plan_peer(&mut self, now: Now, key: &PublicKey) -> Plan {
        if !self.gate() {
            return Plan::Hold;
        }
        let Some(desired) = self.desired_peer(key) else {
            return self.plan_peer_removal(key);
        };
        self.nodes.assert_disjoint(&desired);
        if !self.has_device() {
            return Plan::Wait(Resource::Device);
        }
        let Some(observed) = self.observed.peers.get(key) else {
            return set(desired);
        };
        let given = self.observed.endpoints_given.get(key).copied();
        let given = given.or_else(|| adopted(now, observed, &desired));
        let roamed = given == Some(desired.endpoint) && observed.endpoint.is_some();
        if roamed && observed.allowed_ips == desired.allowed_ips && observed.keepalive == desired.keepalive {
            self.observed.endpoints_given.insert(*key, desired.endpoint);
            return Plan::Settled;
        }
        let endpoint = observed.endpoint.filter(|_| roamed).unwrap_or(desired.endpoint);
        set(Peer { endpoint, ..desired })
    }

    /// A peer goes after the routes that led to it, so that no packet is sent to a peer that is not there.
    fn plan_peer_removal(&self, key: &PublicKey) -> Plan {
        let Some(observed) = self.observed.peers.get(key) else {
            return Plan::Gone;
        };
        let in_the_way = observed
            .allowed_ips
            .iter()
            .map(|p| self.route_key(*p))
            .find(|k| self.is_stale(*k));
        match in_the_way {
            Some(route) => Plan::Wait(route.resource()),
            None => Plan::kernel(KernelOp::RemovePeer(*key)),
        }
    }

    /// Whether a route is there that leads into the device and is not desired.
    fn is_stale(&self, key: RouteKey) -> bool {
        let there = self.observed.routes.get(&key).into_iter().flatten();
        there.into_iter().any(|r| r.target != RouteTarget::Unreachable) && self.desired_route(key).is_none()
    }
}

fn set(peer: Peer) -> Plan {
    Plan::kernel(KernelOp::SetPeer(peer))
}

/// After a restart of the agent nobody knows what the peer was given. Where its session lives, wherever it was last
/// heard is right: it may have roamed.
fn adopted(now: Now, observed: &PeerState, desired: &Peer) -> Option<std::net::SocketAddr> {
    let alive = observed
        .last_handshake
        .is_some_and(|at| now.wall.since(at) < SESSION_LIFE);
    (alive || observed.endpoint == Some(desired.endpoint)).then_some(desired.endpoint)
}
