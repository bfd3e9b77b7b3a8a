//! The attachments that there are, and who holds which address.

use crate::attach::collect::Abandoned;
use crate::event::RequestId;
use ipnetwork::IpNetwork;
use meshd_ipam::Allocator;
use meshd_model::cni::{Add, CniError};
use meshd_model::kernel::PodLinkState;
use meshd_model::{AttachmentId, Boot, Lease, LeasePhase};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// One attachment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Attachment {
    pub(crate) lease: Lease,
    pub(crate) state: State,
    /// Whether the store has a lease of it for certain.
    pub(crate) recorded: bool,
    /// The node's addresses that its link was last given; None if that was before the agent started.
    pub(crate) host_addresses: Option<Vec<IpAddr>>,
    /// The pod's namespace is gone: nothing to be done until DEL comes.
    pub(crate) netns_gone: bool,
    /// Why it looks abandoned, and since when without a break.
    #[serde(default)]
    pub(crate) abandoned: Option<(Abandoned, Boot)>,
    /// The newest ADD of its pod for this interface that was of another container, and when it was asked for last.
    #[serde(default)]
    pub(crate) successor: Option<(AttachmentId, Boot)>,
}

impl Attachment {
    /// Whether the store knows that it goes: a daemon that starts finishes it.
    pub(crate) fn is_marked(&self) -> bool {
        self.recorded && self.lease.phase == LeasePhase::Deleting
    }
}

/// Where it stands: see the picture in [`crate::attach`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum State {
    /// ADD is under way; nobody waits for it any more if `request` is none.
    Adding {
        step: AddStep,
        request: Option<RequestId>,
    },
    /// A former process died during its ADD.
    HalfDone,
    /// ADD has succeeded.
    Ready,
    /// It goes: `callers` of DEL are waiting, and perhaps an ADD that failed, with what it is to be told.
    Deleting {
        step: DelStep,
        callers: BTreeSet<RequestId>,
        failed_add: Option<(RequestId, CniError)>,
    },
}

impl State {
    pub(crate) fn is_deleting(&self) -> bool {
        matches!(self, State::Deleting { .. })
    }
}

impl State {
    /// It goes, and no DEL waits for it; perhaps an ADD that failed does.
    pub(crate) fn deleting(step: DelStep, failed_add: Option<(RequestId, CniError)>) -> Self {
        Self::Deleting {
            step,
            callers: BTreeSet::new(),
            failed_add,
        }
    }
}

/// What ADD is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AddStep {
    /// Writing the lease as Adding.
    Record,
    /// Making the link.
    Attach,
    /// Waiting until the record that the addresses are kept is written.
    Keep,
    /// Writing the lease as Ready.
    Confirm,
}

/// What DEL is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DelStep {
    /// Writing the lease as Deleting.
    Mark,
    /// Cutting the pod off.
    Detach,
    /// Deleting the link.
    Vanish,
    /// Removing the lease.
    Remove,
}

impl DelStep {
    /// Whether no packet comes from the pod or reaches it any more.
    pub(crate) fn is_cut_off(self) -> bool {
        matches!(self, DelStep::Vanish | DelStep::Remove)
    }
}

/// All of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Attachments {
    loaded: bool,
    /// Leases that the store could not read, one line each.
    damaged: Vec<String>,
    by_id: BTreeMap<AttachmentId, Attachment>,
    by_ifname: BTreeMap<String, AttachmentId>,
    pub(crate) allocator: Allocator,
    held: BTreeMap<IpAddr, AttachmentId>,
    /// Addresses that interfaces in the kernel have and no attachment holds.
    reserved: BTreeSet<IpAddr>,
    /// Of which namespace the last pod was that had an address which rests, by when it was freed.
    #[serde(default)]
    last_namespaces: BTreeMap<(Boot, IpAddr), String>,
    /// Interfaces that no attachment explains, and since when without a break.
    #[serde(default)]
    pub(crate) orphans: BTreeMap<String, Boot>,
}

impl Attachments {
    pub(crate) fn new(rest: Duration, withheld: &[IpNetwork]) -> Self {
        let mut allocator = Allocator::new(rest);
        allocator.set_withheld(withheld);
        Self {
            loaded: false,
            damaged: Vec::new(),
            by_id: BTreeMap::new(),
            by_ifname: BTreeMap::new(),
            allocator,
            held: BTreeMap::new(),
            reserved: BTreeSet::new(),
            last_namespaces: BTreeMap::new(),
            orphans: BTreeMap::new(),
        }
    }

    pub(crate) fn is_loaded(&self) -> bool {
        self.loaded
    }

    pub(crate) fn damaged(&self) -> &[String] {
        &self.damaged
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = &AttachmentId> {
        self.by_id.keys()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&AttachmentId, &Attachment)> {
        self.by_id.iter()
    }

    pub(crate) fn get(&self, id: &AttachmentId) -> Option<&Attachment> {
        self.by_id.get(id)
    }

    pub(crate) fn get_mut(&mut self, id: &AttachmentId) -> Option<&mut Attachment> {
        self.by_id.get_mut(id)
    }

    /// Whether the container has another interface of ours, and keeps it as far as is known.
    pub(crate) fn has_another(&self, id: &AttachmentId) -> bool {
        let first = AttachmentId {
            container_id: id.container_id.clone(),
            ifname: String::new(),
        };
        let of_container = self.by_id.range(first..).map(|(other, a)| (other, &a.state));
        of_container
            .take_while(|(other, _)| other.container_id == id.container_id)
            .any(|(other, state)| other != id && !matches!(state, State::Deleting { .. }))
    }

    /// Notes with the other attachments of this ADD's pod and interface that it comes after them; says whether there are
    /// any. A pod without UID may be another of the same name.
    pub(crate) fn note_successor(&mut self, now: Boot, add: &Add) -> bool {
        let Some(pod) = add.pod.as_ref().filter(|pod| !pod.uid.is_empty()) else {
            return false;
        };
        let mut any = false;
        for (id, attachment) in &mut self.by_id {
            let is_its = attachment.lease.pod.as_ref().is_some_and(|p| p.uid == pod.uid);
            if is_its && id.ifname == add.id.ifname && id.container_id != add.id.container_id {
                attachment.successor = Some((add.id.clone(), now));
                any = true;
            }
        }
        any
    }

    /// How many links are being deleted, their pods cut off.
    pub(crate) fn vanishing(&self) -> usize {
        let is_vanishing =
            |a: &&Attachment| matches!(&a.state, State::Deleting { step, .. } if step.is_cut_off());
        self.by_id.values().filter(is_vanishing).count()
    }

    /// Whose the host's end of this name is.
    pub(crate) fn by_ifname(&self, name: &str) -> Option<&AttachmentId> {
        self.by_ifname.get(name)
    }

    /// Takes in what the store holds.
    pub(crate) fn load(&mut self, leases: Vec<Lease>, damaged: Vec<String>) {
        self.loaded = true;
        self.damaged = damaged;
        for lease in leases {
            if let Err(unusable) = self.is_usable(&lease) {
                // Whoever has its addresses, nobody else gets them.
                for address in &lease.addresses {
                    let _ = self.allocator.take(*address);
                }
                self.damaged.push(unusable);
                continue;
            }
            let state = match lease.phase {
                LeasePhase::Adding => State::HalfDone,
                LeasePhase::Ready => State::Ready,
                LeasePhase::Deleting => State::deleting(DelStep::Detach, None),
            };
            for address in &lease.addresses {
                if self.allocator.take(*address).is_ok() {
                    self.held.insert(*address, lease.id.clone());
                }
            }
            self.insert(lease, state, true);
        }
    }

    fn is_usable(&self, lease: &Lease) -> Result<(), String> {
        let Lease { id, host_ifname, .. } = lease;
        if id.container_id.is_empty() {
            return Err(format!("a lease of no container, on {host_ifname}"));
        }
        if self.by_id.contains_key(id) || self.by_ifname.contains_key(host_ifname) {
            return Err(format!("a second lease of {id}, on {host_ifname}"));
        }
        Ok(())
    }

    pub(crate) fn insert(&mut self, lease: Lease, state: State, recorded: bool) {
        self.by_ifname.insert(lease.host_ifname.clone(), lease.id.clone());
        let id = lease.id.clone();
        let attachment = Attachment {
            lease,
            state,
            recorded,
            host_addresses: None,
            netns_gone: false,
            abandoned: None,
            successor: None,
        };
        let before = self.by_id.insert(id, attachment);
        assert!(before.is_none(), "an attachment was replaced by another");
    }

    /// Every address that an attachment holds.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.held.keys()
    }

    /// Notes that the allocator gave these addresses to an attachment.
    pub(crate) fn hold(&mut self, id: &AttachmentId, addresses: &[IpAddr]) {
        for address in addresses {
            let before = self.held.insert(*address, id.clone());
            assert!(
                before.is_none(),
                "{address} is held twice: by {before:?} and {id}"
            );
        }
    }

    /// The attachment that holds this address.
    pub(crate) fn holder(&self, address: IpAddr) -> Option<&Attachment> {
        self.by_id.get(self.held.get(&address)?)
    }

    /// Whether the attachment is the one that holds this address.
    pub(crate) fn holds(&self, id: &AttachmentId, address: IpAddr) -> bool {
        self.held.get(&address) == Some(id)
    }

    /// Forgets an attachment; its addresses rest from `freed` on, but those that are kept: nobody holds them, and nobody
    /// gets them.
    pub(crate) fn remove(&mut self, freed: Boot, id: &AttachmentId, kept: &[IpAddr]) -> Option<Attachment> {
        let attachment = self.by_id.remove(id)?;
        self.by_ifname.remove(&attachment.lease.host_ifname);
        for address in &attachment.lease.addresses {
            if self.holds(id, *address) {
                self.held.remove(address);
                if !kept.contains(address) {
                    self.allocator.release(freed, *address);
                    let namespace = attachment.lease.pod.as_ref().map(|pod| pod.namespace.clone());
                    let key = (freed, *address);
                    self.last_namespaces.insert(key, namespace.unwrap_or_default());
                }
            }
        }
        while let Some(oldest) = self.last_namespaces.first_entry() {
            let (since, address) = *oldest.key();
            if self.allocator.resting_since(freed, address) == Some(since) {
                break;
            }
            oldest.remove();
        }
        Some(attachment)
    }

    /// Since when an address rests from a pod that was not of this namespace, as far as is known.
    pub(crate) fn rests_from_another(&self, now: Boot, address: IpAddr, namespace: &str) -> Option<Boot> {
        let since = self.allocator.resting_since(now, address)?;
        let last = self.last_namespaces.get(&(since, address));
        last.is_none_or(|last| last != namespace).then_some(since)
    }

    /// Keeps addresses that interfaces have, and no attachment holds, from being handed out until they are gone.
    pub(crate) fn reserve<'a>(&mut self, now: Boot, links: impl Iterator<Item = &'a PodLinkState>) {
        let seen: BTreeSet<_> = links
            .flat_map(|l| &l.addresses)
            .copied()
            .filter(|a| !self.held.contains_key(a))
            .collect();
        for address in self.reserved.difference(&seen).copied().collect::<Vec<_>>() {
            self.reserved.remove(&address);
            self.allocator.release(now, address);
        }
        for address in seen {
            if self.allocator.take(address).is_ok() {
                self.reserved.insert(address);
            }
        }
    }
}
