//! The cluster's other nodes, and what is desired of each as a peer.
//!
//! ```text
//! by_name   node-3 -> uid, annotations, accepted claims, what was refused
//! by_key    key    -> {node-3, node-9}   claimants of the key in order of seniority: the first has it
//! claims    prefix -> {node-3, ..}       see `claims`
//! kept      prefix -> 1                  how many nodes claimed it last whose annotations are no good now
//! ```

use crate::bounds::Bounds;
use crate::claims::{Claimant, Claims};
use crate::few::Few;
use crate::node::Node;
use ipnetwork::IpNetwork;
use meshd_model::kernel::Peer;
use meshd_model::net::Family;
use meshd_model::{NodeMeta, NodeName, PublicKey};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// What a change of a node may have changed elsewhere.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    pub(crate) keys: BTreeSet<PublicKey>,
    pub(crate) prefixes: BTreeSet<IpNetwork>,
}

/// The index; it holds the own node's claims as well, under its name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Nodes {
    by_name: BTreeMap<NodeName, Node>,
    by_key: BTreeMap<PublicKey, Few<Claimant>>,
    claims: Claims,
    #[serde(default)]
    kept: BTreeMap<IpNetwork, usize>,
    own: Option<(Claimant, BTreeSet<IpNetwork>)>,
    with_v6_endpoint: usize,
    /// While a list runs: the nodes that it has not named yet.
    unnamed: Option<BTreeSet<NodeName>>,
    synced: bool,
}

impl Nodes {
    pub(crate) fn reset(&mut self) {
        self.unnamed = Some(self.by_name.keys().cloned().collect());
    }

    /// The list is complete: what it did not name is gone.
    pub(crate) fn synced(&mut self) -> Touched {
        self.synced = true;
        let mut touched = Touched::default();
        for name in self.unnamed.take().unwrap_or_default() {
            self.remove(&name, &mut touched);
        }
        touched
    }

    /// Whether a list was complete once.
    pub(crate) fn is_synced(&self) -> bool {
        self.synced
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&NodeName, &Node)> {
        self.by_name.iter()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &PublicKey> {
        self.by_key.keys()
    }

    pub(crate) fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Whether a node that publishes nothing good now claimed this address last.
    pub(crate) fn is_kept(&self, address: IpNetwork) -> bool {
        self.kept.contains_key(&address)
    }

    pub(crate) fn kept(&self) -> impl Iterator<Item = IpNetwork> {
        self.kept.keys().copied()
    }

    /// Whether any node publishes an IPv6 endpoint.
    pub(crate) fn any_v6_endpoint(&self) -> bool {
        self.with_v6_endpoint > 0
    }

    /// Takes in a node as it is now. A node re-created under its name replaces the older one here and now.
    pub(crate) fn apply(&mut self, meta: NodeMeta, bounds: &Bounds) -> Touched {
        if let Some(unnamed) = &mut self.unnamed {
            unnamed.remove(&meta.name);
        }
        let name = meta.name.clone();
        let mut node = Node::new(meta, bounds);
        if let Some(before) = self.by_name.get(&name) {
            node.keep(before, bounds);
        }
        let mut touched = Touched::default();
        if self.by_name.get(&name) == Some(&node) {
            return touched;
        }
        self.remove(&name, &mut touched);
        self.insert(name, node, &mut touched);
        touched
    }

    pub(crate) fn delete(&mut self, name: &NodeName) -> Touched {
        let mut touched = Touched::default();
        self.remove(name, &mut touched);
        touched
    }

    /// The own addresses have changed: looks at every node again.
    pub(crate) fn revalidate(&mut self, bounds: &Bounds) {
        let names: Vec<_> = self.by_name.keys().cloned().collect();
        for name in names {
            let mut ignored = Touched::default();
            let Some(node) = self.remove(&name, &mut ignored) else {
                continue;
            };
            let Claimant { created, uid, .. } = node.claimant.clone();
            let meta = NodeMeta {
                name: name.clone(),
                uid,
                created,
                annotations: node.annotations.clone(),
            };
            let mut new = Node::new(meta, bounds);
            new.keep(&node, bounds);
            self.insert(name, new, &mut ignored);
        }
    }

    /// Replaces the own node's claims, which compete with the others'.
    pub(crate) fn set_own(&mut self, claimant: Claimant, prefixes: BTreeSet<IpNetwork>) -> Touched {
        let mut touched = Touched::default();
        let new = Some((claimant, prefixes));
        if self.own == new {
            return touched;
        }
        if let Some((claimant, prefixes)) = self.own.take() {
            self.withdraw(&claimant, &prefixes, &mut touched);
        }
        if let Some((claimant, prefixes)) = &new {
            self.enter(claimant, prefixes, &mut touched);
        }
        self.own = new;
        touched
    }

    /// Who is senior to the own node in one of its own prefixes.
    pub(crate) fn senior_to_own(&self, prefix: IpNetwork) -> Option<&NodeName> {
        let (claimant, _) = self.own.as_ref()?;
        self.claims.senior(prefix, claimant).map(|(_, c)| &c.node)
    }

    fn insert(&mut self, name: NodeName, node: Node, touched: &mut Touched) {
        if let Ok(annotations) = &node.annotations {
            self.touch_key(annotations.public_key, touched);
            self.by_key
                .entry(annotations.public_key)
                .or_default()
                .insert(node.claimant.clone());
        }
        self.with_v6_endpoint += usize::from(node.has_v6_endpoint());
        self.enter(&node.claimant, &node.claims, touched);
        for prefix in &node.kept {
            *self.kept.entry(*prefix).or_default() += 1;
            touched.prefixes.insert(*prefix);
        }
        self.by_name.insert(name, node);
    }

    fn remove(&mut self, name: &NodeName, touched: &mut Touched) -> Option<Node> {
        let node = self.by_name.remove(name)?;
        if let Ok(annotations) = &node.annotations {
            let key = annotations.public_key;
            if let Some(claimants) = self.by_key.get_mut(&key) {
                claimants.remove(&node.claimant);
                if claimants.is_empty() {
                    self.by_key.remove(&key);
                }
            }
            self.touch_key(key, touched);
        }
        self.with_v6_endpoint -= usize::from(node.has_v6_endpoint());
        self.withdraw(&node.claimant, &node.claims, touched);
        for prefix in &node.kept {
            if let Some(count) = self.kept.get_mut(prefix) {
                *count -= 1;
                if *count == 0 {
                    self.kept.remove(prefix);
                }
            }
            touched.prefixes.insert(*prefix);
        }
        Some(node)
    }

    fn enter(&mut self, claimant: &Claimant, prefixes: &BTreeSet<IpNetwork>, touched: &mut Touched) {
        for prefix in prefixes {
            self.claims.add(*prefix, claimant.clone());
            self.touch_prefix(*prefix, touched);
        }
    }

    fn withdraw(&mut self, claimant: &Claimant, prefixes: &BTreeSet<IpNetwork>, touched: &mut Touched) {
        for prefix in prefixes {
            self.claims.remove(*prefix, claimant);
            self.touch_prefix(*prefix, touched);
        }
    }

    /// Everyone who has the key, with all that they claim: who comes first may have changed.
    fn touch_key(&self, key: PublicKey, touched: &mut Touched) {
        touched.keys.insert(key);
        for claimant in self.by_key.get(&key).into_iter().flatten() {
            if let Some(node) = self.by_name.get(&claimant.node) {
                touched.prefixes.extend(&node.claims);
            }
        }
    }

    /// Everyone who claims a part of the prefix.
    fn touch_prefix(&self, prefix: IpNetwork, touched: &mut Touched) {
        touched.prefixes.insert(prefix);
        for (other, claimant) in self.claims.overlapping(prefix) {
            touched.prefixes.insert(other);
            if let Some(Ok(annotations)) = self.by_name.get(&claimant.node).map(|n| &n.annotations) {
                touched.keys.insert(annotations.public_key);
            }
        }
    }

    /// The node that has this key: the most senior of those that publish it.
    pub(crate) fn by_key(&self, key: &PublicKey) -> Option<(&NodeName, &Node)> {
        let first = self.by_key.get(key)?.first()?;
        self.by_name.get_key_value(&first.node)
    }

    /// What is desired of a peer; None if the key is nobody's, ours, or its node cannot be reached from here.
    pub(crate) fn peer(
        &self,
        key: &PublicKey,
        own_key: &PublicKey,
        families: &BTreeSet<Family>,
    ) -> Option<Peer> {
        if key == own_key {
            return None;
        }
        let (_, node) = self.by_key(key)?;
        let annotations = node.annotations.as_ref().ok()?;
        let address = node.endpoint(families)?;
        let allowed_ips: BTreeSet<_> = self.held(node).collect();
        if allowed_ips.is_empty() {
            return None;
        }
        Some(Peer {
            public_key: *key,
            endpoint: Some(SocketAddr::new(address, annotations.listen_port)),
            allowed_ips,
            keepalive: None,
        })
    }

    /// MTU of the overlay on the node that has this key, in bytes.
    pub(crate) fn mtu_of(&self, key: &PublicKey) -> Option<u16> {
        let (_, node) = self.by_key(key)?;
        Some(node.annotations.as_ref().ok()?.mtu)
    }

    /// Whether [`Self::peer`] is there for the key of a node that holds a prefix.
    pub(crate) fn is_peer(&self, key: &PublicKey, own_key: &PublicKey, families: &BTreeSet<Family>) -> bool {
        key != own_key
            && self
                .by_key(key)
                .is_some_and(|(_, node)| node.endpoint(families).is_some())
    }

    /// The prefixes of a node that are its own and nobody else's.
    fn held<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = IpNetwork> {
        node.claims
            .iter()
            .copied()
            .filter(|p| self.claims.senior(*p, &node.claimant).is_none())
    }

    /// The prefixes of a node that a senior one has a part of, and which.
    pub(crate) fn lost<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = (IpNetwork, &'a NodeName)> {
        node.claims.iter().filter_map(|p| {
            self.claims
                .senior(*p, &node.claimant)
                .map(|(_, senior)| (*p, &senior.node))
        })
    }

    /// The key of the peer that a packet to this prefix goes to, were it a peer.
    pub(crate) fn key_of(&self, prefix: IpNetwork) -> Option<PublicKey> {
        let holder = self.claims.holder(prefix)?;
        let annotations = self.by_name.get(&holder.node)?.annotations.as_ref().ok()?;
        let (winner, _) = self.by_key(&annotations.public_key)?;
        (*winner == holder.node).then_some(annotations.public_key)
    }

    /// Asserts that no other node's claim that holds overlaps one of these.
    pub(crate) fn assert_disjoint(&self, peer: &Peer) {
        let name = self.by_key(&peer.public_key).map(|(name, _)| name);
        for prefix in &peer.allowed_ips {
            for (other, claimant) in self.claims.overlapping(*prefix) {
                let clash = Some(&claimant.node) != name && self.claims.holder(other) == Some(claimant);
                assert!(
                    !clash,
                    "allowed IPs {prefix} of {name:?} and {other} of {} overlap",
                    claimant.node
                );
            }
        }
    }
}
