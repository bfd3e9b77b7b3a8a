//! WireGuard peers: what is desired of them comes from [`crate::nodes`]; here it meets what is there.

use crate::action::{KernelOp, Resource};
use crate::agent::NodeAgent;
use crate::greet::SLACK;
use crate::nodes::Touched;
use crate::observed::RouteKey;
use crate::reconcile::Plan;
use ipnetwork::IpNetwork;
use meshd_model::kernel::{Peer, PeerState, RouteTarget};
use meshd_model::{Now, PublicKey};
use std::collections::BTreeMap;
use std::time::Duration;

/// A session that has had no handshake for so long is dead (WireGuard's Reject-After-Time, section 6.1 of the paper).
pub(crate) const SESSION_LIFE: Duration = Duration::from_secs(180);

impl NodeAgent {
    /// Marks what a change of a node has touched, and looks at what follows for this node.
    pub(crate) fn touched(&mut self, touched: Touched) {
        let routes: Vec<_> = touched
            .prefixes
            .iter()
            .flat_map(|p| self.route_keys(*p))
            .map(RouteKey::resource)
            .collect();
        self.dirty.extend(touched.keys.into_iter().map(Resource::Peer));
        self.dirty.extend(routes);
    }

    pub(crate) fn desired_peer(&self, key: &PublicKey) -> Option<Peer> {
        let peer = self
            .nodes
            .peer(key, &self.config.identity.public_key, &self.families)?;
        Some(Peer {
            keepalive: self.config.keepalive,
            ..peer
        })
    }

    pub(crate) fn plan_peer(&mut self, now: Now, key: &PublicKey) -> Plan {
        if !self.gate() {
            return Plan::Hold;
        }
        let Some(mut desired) = self.desired_peer(key) else {
            return self.plan_peer_removal(key);
        };
        self.nodes.assert_disjoint(&desired);
        if !self.has_device() {
            return Plan::Wait(Resource::Device);
        }
        let in_the_way = self.leave_to_others(&mut desired);
        let plan = self.plan_known_peer(now, desired);
        match (plan, in_the_way) {
            (Plan::Settled, Some(other)) => Plan::Wait(Resource::Peer(other)),
            (plan, _) => plan,
        }
    }

    /// Leaves out what overlaps the allowed IPs that another peer still has: it has to let go first, or for a moment
    /// both would have a part. Returns such a peer.
    fn leave_to_others(&self, desired: &mut Peer) -> Option<PublicKey> {
        let mut in_the_way = None;
        loop {
            let wanted = desired.allowed_ips.clone();
            desired.allowed_ips.retain(|prefix| {
                let other = self
                    .observed
                    .overlapping_holder(&desired.public_key, *prefix, &wanted);
                in_the_way = in_the_way.or(other);
                other.is_none()
            });
            if wanted == desired.allowed_ips {
                return in_the_way;
            }
        }
    }

    fn plan_known_peer(&mut self, now: Now, desired: Peer) -> Plan {
        let key = &desired.public_key;
        let Some(observed) = self.observed.peers.get(key) else {
            return set(desired);
        };
        let given = self.observed.endpoints_given.get(key).copied();
        let given = given.or_else(|| adopted(now, observed, &desired));
        let may_have_roamed = given == desired.endpoint && is_where_heard(now, observed, &desired);
        let as_desired =
            observed.allowed_ips == desired.allowed_ips && observed.keepalive == desired.keepalive;
        if may_have_roamed && as_desired {
            self.observed.endpoints_given.extend(given.map(|at| (*key, at)));
            return self.plan_greeting(now, &desired);
        }
        // Where it was heard is newer in the device than in the last observation: to write that back could undo it.
        let endpoint = desired.endpoint.filter(|_| !may_have_roamed);
        set(Peer { endpoint, ..desired })
    }

    /// A peer goes after the routes that led to it, so that no packet is sent to a peer that is not there; and
    /// after its heirs took over what they inherit, so that a node's new key replaces the old one without a gap.
    /// What nobody inherits it gives up first: an heir may be waiting for that.
    fn plan_peer_removal(&self, key: &PublicKey) -> Plan {
        let Some(observed) = self.observed.peers.get(key) else {
            return Plan::Gone;
        };
        let mut routes = observed.allowed_ips.iter().map(|p| self.route_key(*p));
        if let Some(in_the_way) = routes.find(|k| self.is_stale(*k)) {
            return Plan::Wait(in_the_way.resource());
        }
        let heirs: BTreeMap<_, _> = observed
            .allowed_ips
            .iter()
            .filter_map(|p| Some((*p, self.heir(*p)?)))
            .collect();
        match (heirs.first_key_value(), observed.endpoint) {
            (Some((_, heir)), _) if heirs.len() == observed.allowed_ips.len() => {
                Plan::Wait(Resource::Peer(*heir))
            }
            (Some(_), Some(_)) => set(Peer {
                public_key: *key,
                endpoint: None,
                allowed_ips: heirs.into_keys().collect(),
                keepalive: observed.keepalive,
            }),
            _ => Plan::kernel(KernelOp::RemovePeer(*key)),
        }
    }

    /// The peer that a prefix goes to, where there is one.
    pub(crate) fn heir(&self, prefix: IpNetwork) -> Option<PublicKey> {
        let key = self.nodes.key_of(prefix)?;
        let is_peer = self
            .nodes
            .is_peer(&key, &self.config.identity.public_key, &self.families);
        is_peer.then_some(key)
    }

    /// Whether a packet to this prefix that is sent into the device now goes to the peer, and will go on doing so.
    pub(crate) fn takes(&self, key: &PublicKey, prefix: &IpNetwork) -> bool {
        let there = self
            .observed
            .peers
            .get(key)
            .is_some_and(|p| p.allowed_ips.contains(prefix));
        there && !self.ops.is_outstanding(&Resource::Peer(*key))
    }

    /// Whether a route that is not desired leads into the device, or will in a moment.
    fn is_stale(&self, key: RouteKey) -> bool {
        let mut there = self.observed.routes.get(&key).into_iter().flatten();
        let leads_there = there.any(|r| r.target != RouteTarget::Unreachable);
        (leads_there || self.ops.is_outstanding(&key.resource())) && self.desired_route(key).is_none()
    }
}

fn set(peer: Peer) -> Plan {
    Plan::kernel(KernelOp::SetPeer(peer))
}

/// Whether the device may know better than what is published where the peer is: it sends there, or has heard it
/// elsewhere in a session that still lives. What a session that is dead has left would keep the peer away for good if it
/// has moved back: it does not answer there, and nothing else is tried.
fn is_where_heard(now: Now, observed: &PeerState, desired: &Peer) -> bool {
    let alive = observed
        .last_handshake
        .is_some_and(|at| now.wall.since(at) < SESSION_LIFE + SLACK);
    observed.endpoint.is_some() && (alive || observed.endpoint == desired.endpoint)
}

/// After a restart of the agent nobody knows what the peer was given. Where its session lives, wherever it was last
/// heard is right: it may have roamed.
fn adopted(now: Now, observed: &PeerState, desired: &Peer) -> Option<std::net::SocketAddr> {
    let alive = observed
        .last_handshake
        .is_some_and(|at| now.wall.since(at) < SESSION_LIFE);
    desired
        .endpoint
        .filter(|_| alive || observed.endpoint == desired.endpoint)
}
