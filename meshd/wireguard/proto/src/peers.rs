//! The peers by number and by key, and which peer a receiver index belongs to.

use crate::peer::Peer;
use meshd_model::PublicKey;
use rand_core::Rng;
use std::collections::BTreeMap;

/// Numbers a peer of one device; used again after the peer is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PeerId(pub(crate) u32);

#[derive(Default)]
pub(crate) struct Peers {
    slots: Vec<Option<Peer>>,
    free: Vec<PeerId>,
    by_key: BTreeMap<PublicKey, PeerId>,
}

impl Peers {
    pub(crate) fn id(&self, key: &PublicKey) -> Option<PeerId> {
        self.by_key.get(key).copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(crate) fn get(&self, id: PeerId) -> Option<&Peer> {
        self.slots.get(id.0 as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.slots.get_mut(id.0 as usize)?.as_mut()
    }

    /// In the order of their keys.
    pub(crate) fn ids(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.by_key.values().copied()
    }

    /// Adds a peer whose key is not there yet.
    pub(crate) fn insert(&mut self, peer: Peer) -> PeerId {
        let key = peer.public_key;
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            PeerId(u32::try_from(self.slots.len() - 1).expect("fewer peers than 2^32"))
        });
        self.slots[id.0 as usize] = Some(peer);
        self.by_key.insert(key, id);
        id
    }

    pub(crate) fn remove(&mut self, id: PeerId) -> Option<Peer> {
        let peer = self.slots.get_mut(id.0 as usize)?.take()?;
        self.by_key.remove(&peer.public_key);
        self.free.push(id);
        Some(peer)
    }
}

/// The receiver indices that are ours: random, so that they tell nothing.
#[derive(Default)]
pub(crate) struct Indices(BTreeMap<u32, PeerId>);

impl Indices {
    /// A new one. There are at most six a peer, so a free one is found at once.
    pub(crate) fn allocate<R: Rng>(&mut self, rng: &mut R, peer: PeerId) -> u32 {
        loop {
            let index = rng.next_u32();
            if let std::collections::btree_map::Entry::Vacant(entry) = self.0.entry(index) {
                entry.insert(peer);
                return index;
            }
        }
    }

    pub(crate) fn release(&mut self, index: u32) {
        self.0.remove(&index);
    }

    pub(crate) fn get(&self, index: u32) -> Option<PeerId> {
        self.0.get(&index).copied()
    }
}
