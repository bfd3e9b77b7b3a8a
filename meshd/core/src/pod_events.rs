//! Events on pods: what whoever owns a pod has to know of it, and cannot read in the node's log.
//!
//! Each is told once in a while for a pod and a reason, one after another, and tried once: the runtime asks for the pod
//! again and again, and what lasts is told again by the next ADD. So they cost the API server little, and hold up
//! little else that is written there.

use crate::action::Resource;
use crate::agent::NodeAgent;
use crate::ops::Task;
use crate::reconcile::Plan;
use meshd_model::cni::CniError;
use meshd_model::{Boot, Now, PodRef};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// For so long the same is not told again of the same pod.
const EACH: Duration = Duration::from_secs(300);
/// Most pods and reasons that are remembered at a time.
const MAX: usize = 256;
/// Most of them of one namespace, so that whoever owns it takes no others' place.
const MAX_OF_NAMESPACE: usize = 16;

/// Why a pod is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PodReason {
    /// No address is free for it.
    AddressesExhausted,
    /// The address that it asks for cannot be given.
    AddressRefused,
}

impl PodReason {
    /// As the Event names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            PodReason::AddressesExhausted => "AddressesExhausted",
            PodReason::AddressRefused => "AddressRefused",
        }
    }
}

/// What is told of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodEvent {
    /// Which pod, with its UID.
    pub pod: PodRef,
    /// Why.
    pub reason: PodReason,
    /// What exactly, for people.
    pub note: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Told {
    /// None once it was told.
    note: Option<String>,
    since: Boot,
}

/// What was told a short while ago, or is to be.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct PodEvents(BTreeMap<(PodRef, PodReason), Told>);

impl NodeAgent {
    /// Tells of the pod that its ADD was refused, unless that was told lately. A pod that was not seen has no object
    /// that an event could be about.
    pub(crate) fn tell_pod(&mut self, now: Now, pod: Option<&PodRef>, reason: PodReason, refused: &CniError) {
        let Some(pod) = pod.filter(|pod| self.pods.has(pod)) else {
            return;
        };
        let (pod, _) = self.pods.wants(pod);
        let key = (pod, reason);
        self.forget_told(now);
        if self.pod_events.0.contains_key(&key) {
            return;
        }
        let of_namespace = |(other, _): &&(PodRef, PodReason)| other.namespace == key.0.namespace;
        let of_namespace = self.pod_events.0.keys().filter(of_namespace).count();
        if self.pod_events.0.len() >= MAX || of_namespace >= MAX_OF_NAMESPACE {
            self.counters.events_dropped += 1;
            return;
        }
        let told = Told {
            note: Some(refused.to_string()),
            since: now.boot,
        };
        self.pod_events.0.insert(key.clone(), told);
        self.mark(Resource::PodEvent(key.0, key.1));
    }

    /// What was told long ago may be told again.
    fn forget_told(&mut self, now: Now) {
        let old = |told: &Told| told.note.is_none() && now.boot.since(told.since) >= EACH;
        let gone: Vec<_> = self.pod_events.0.extract_if(.., |_, told| old(told)).collect();
        for ((pod, reason), _) in gone {
            self.mark(Resource::PodEvent(pod, reason));
        }
    }

    pub(crate) fn plan_pod_event(&self, pod: &PodRef, reason: PodReason) -> Plan {
        let Some(told) = self.pod_events.0.get(&(pod.clone(), reason)) else {
            return Plan::Gone;
        };
        let Some(note) = &told.note else {
            return Plan::Settled;
        };
        let under_way = self
            .ops
            .outstanding()
            .find(|(r, _)| matches!(r, Resource::PodEvent(..)));
        if let Some((other, _)) = under_way {
            return Plan::Wait(other.clone());
        }
        Plan::Do(Task::PodEvent(PodEvent {
            pod: pod.clone(),
            reason,
            note: note.clone(),
        }))
    }

    /// It was told, or could not be: then the next ADD tries again.
    pub(crate) fn pod_event_outcome(&mut self, event: &PodEvent, told: bool) {
        let key = (event.pod.clone(), event.reason);
        if told {
            if let Some(entry) = self.pod_events.0.get_mut(&key) {
                entry.note = None;
            }
        } else {
            self.pod_events.0.remove(&key);
        }
    }
}
