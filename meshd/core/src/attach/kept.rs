//! The records of addresses that are kept for pods, as they are and as the store has them.
//!
//! A record has a holder while a pod has its addresses. Without one the addresses stay taken in the allocator, so that
//! nobody else gets them, until the pod of that name comes or the time is over.

use crate::attach::table::Attachment;
use crate::event::Failure;
use meshd_model::{AttachmentId, Boot, Kept, KeptKey, Lease, PodRef};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Most records of a node.
pub(crate) const KEPT_MAX: usize = 1024;
/// Most records that could not be kept and are told of.
const LOST_MAX: usize = 64;

/// One record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// As it shall be in the store.
    pub(crate) kept: Kept,
    /// As it is there for certain.
    pub(crate) written: Option<Kept>,
    /// The addresses of the last record that came to be there.
    pub(crate) safe: Vec<IpAddr>,
    /// Why it could not be written as it is.
    pub(crate) failed: Option<Failure>,
    /// Whose attachment has the addresses.
    pub(crate) holder: Option<AttachmentId>,
    /// When it is dropped, while nobody has them.
    pub(crate) expires: Option<Boot>,
}

impl Entry {
    /// A record that the store has.
    pub(crate) fn loaded(kept: Kept) -> Self {
        Self {
            safe: kept.addresses.clone(),
            written: Some(kept.clone()),
            ..Self::new(kept)
        }
    }

    pub(crate) fn new(kept: Kept) -> Self {
        Self {
            kept,
            written: None,
            safe: Vec::new(),
            failed: None,
            holder: None,
            expires: None,
        }
    }

    pub(crate) fn key(&self) -> &KeptKey {
        &self.kept.key
    }

    pub(crate) fn is_written(&self) -> bool {
        self.written.as_ref() == Some(&self.kept)
    }
}

/// All of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct KeptTable {
    pub(crate) entries: BTreeMap<KeptKey, Entry>,
    /// Records that shall be gone, and which the store may have.
    pub(crate) dropped: BTreeSet<KeptKey>,
    /// What could not be kept before its time was over, until when it is told.
    pub(crate) lost: BTreeMap<KeptKey, Lost>,
    /// Records that the store could not read, one line each.
    pub(crate) damaged: Vec<String>,
}

/// What could not be kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Lost {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) until: Boot,
    pub(crate) why: GivenUp,
}

/// Why addresses were not kept for as long as they should have been.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum GivenUp {
    /// They are not the node's any more.
    NotOwn,
    /// Another pod needed one of them.
    Needed,
    /// More were kept than may be.
    TooMany,
}

/// Whose record that of this lease would be.
pub(crate) fn key_of(lease: &Lease) -> Option<KeptKey> {
    Some(key(lease.pod.as_ref()?, &lease.id))
}

/// Whose record one of this pod's interface is.
pub(crate) fn key(pod: &PodRef, id: &AttachmentId) -> KeptKey {
    KeptKey {
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        ifname: id.ifname.clone(),
    }
}

impl KeptTable {
    /// The record of which this attachment has the addresses.
    pub(crate) fn of(&self, attachment: &Attachment) -> Option<&Entry> {
        let entry = self.entries.get(&key_of(&attachment.lease)?)?;
        (entry.holder.as_ref() == Some(&attachment.lease.id)).then_some(entry)
    }

    /// Whether there is room for no more; so is it while the store removes none.
    pub(crate) fn is_full(&self) -> bool {
        self.entries.len() >= KEPT_MAX || self.dropped.len() >= KEPT_MAX
    }

    /// Whether one that is dropped makes room for another.
    pub(crate) fn gives_way(&self) -> bool {
        self.entries.len() >= KEPT_MAX && self.dropped.len() + 1 < KEPT_MAX
    }

    /// Those whose addresses no pod has.
    pub(crate) fn unheld(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| entry.holder.is_none())
    }

    /// Takes a record out; the store is to forget it.
    pub(crate) fn drop_entry(&mut self, key: &KeptKey) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.dropped.insert(key.clone());
        Some(entry)
    }

    /// Notes what is to be told of a record that could not be kept.
    pub(crate) fn note_lost(&mut self, entry: Entry, until: Boot, why: GivenUp) {
        if self.lost.len() < LOST_MAX {
            let Kept { key, addresses, .. } = entry.kept;
            self.lost.insert(
                key,
                Lost {
                    addresses,
                    until,
                    why,
                },
            );
        }
    }
}
