//! One other node: what it publishes, and what of that is accepted.

use crate::bounds::{Bounds, CLAIMS_MAX, Refused};
use crate::claims::Claimant;
use ipnetwork::IpNetwork;
use meshd_model::net::{Family, host};
use meshd_model::{AnnotationProblem, NodeAnnotations, NodeMeta};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A node, with what of its annotations is accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) claimant: Claimant,
    pub(crate) annotations: Result<NodeAnnotations, AnnotationProblem>,
    /// Pod CIDRs and node addresses that may be claimed; others may be senior.
    pub(crate) claims: BTreeSet<IpNetwork>,
    /// Endpoint addresses that a packet may be sent to, in the node's order.
    pub(crate) endpoints: Vec<IpAddr>,
    pub(crate) refused: Vec<Refused>,
    /// Node addresses that it claimed last, while what it publishes now cannot be read: still the node's, as far as is
    /// known, so that nothing may be sent to them in the clear.
    #[serde(default)]
    pub(crate) kept: BTreeSet<IpNetwork>,
}

impl Node {
    pub(crate) fn new(meta: NodeMeta, bounds: &Bounds) -> Self {
        let NodeMeta {
            name,
            uid,
            created,
            annotations,
        } = meta;
        let mut node = Self {
            claimant: Claimant {
                created,
                uid,
                node: name,
            },
            annotations,
            claims: BTreeSet::new(),
            endpoints: Vec::new(),
            refused: Vec::new(),
            kept: BTreeSet::new(),
        };
        let Ok(annotations) = node.annotations.clone() else {
            return node;
        };
        let prefixes = annotations
            .pod_cidrs
            .iter()
            .take(CLAIMS_MAX)
            .map(|p| bounds.peer_pod_cidr(*p));
        let addresses = annotations
            .node_addresses
            .iter()
            .take(CLAIMS_MAX)
            .map(|a| bounds.peer_address(*a).map(host));
        for claim in prefixes.chain(addresses) {
            match claim {
                Ok(prefix) => drop(node.claims.insert(prefix)),
                Err(refused) => node.refused.push(refused),
            }
        }
        for endpoint in annotations.endpoints.iter().take(CLAIMS_MAX) {
            match bounds.peer_endpoint(*endpoint) {
                Ok(address) => node.endpoints.push(address),
                Err(refused) => node.refused.push(refused),
            }
        }
        for (what, count) in [
            ("pod CIDRs", annotations.pod_cidrs.len()),
            ("addresses", annotations.node_addresses.len()),
        ] {
            if count > CLAIMS_MAX {
                node.refused.push(Refused::new(
                    format!("{count} {what}"),
                    format!("only the first {CLAIMS_MAX} count"),
                ));
            }
        }
        node
    }

    /// Takes over what stays of the node as it was `before`.
    pub(crate) fn keep(&mut self, before: &Node, bounds: &Bounds) {
        if self.annotations.is_ok() || self.claimant != before.claimant {
            return;
        }
        let published = before.annotations.iter().flat_map(|a| &a.node_addresses);
        let claimed = published.map(|a| host(*a)).filter(|a| before.claims.contains(a));
        let all = claimed.chain(before.kept.iter().copied());
        self.kept = all.filter(|a| bounds.peer_address(a.ip()).is_ok()).collect();
    }

    pub(crate) fn has_v6_endpoint(&self) -> bool {
        self.endpoints.iter().any(IpAddr::is_ipv6)
    }

    /// Where to send to: the first of the node's addresses in a family in which this node can be reached itself.
    pub(crate) fn endpoint(&self, families: &BTreeSet<Family>) -> Option<IpAddr> {
        let port = self.annotations.as_ref().map_or(0, |a| a.listen_port);
        self.endpoints
            .iter()
            .copied()
            .find(|a| port != 0 && families.contains(&Family::of(*a)))
    }
}
