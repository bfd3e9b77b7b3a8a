//! The pods that the API server has bound to this node: ADD waits for its pod to be seen here, and learns what the pod's
//! annotations ask for.

use meshd_model::{PodMeta, PodRef, PodWants};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

type Name = (String, String);

/// Seen pods; several incarnations of a name while the older one goes away.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Pods {
    uids: BTreeMap<Name, BTreeSet<String>>,
    /// Of those whose annotations ask for something.
    #[serde(default)]
    wants: BTreeMap<PodRef, PodWants>,
    /// Mirrors of static pods by their own UID: what they stand for may be changed, and then no longer what it was.
    #[serde(default)]
    mirrors: BTreeMap<String, PodRef>,
    /// While a list runs: the pods that it has not named yet.
    unnamed: Option<BTreeSet<PodRef>>,
    synced: bool,
}

impl Pods {
    pub(crate) fn reset(&mut self) {
        let all = self.uids.iter().flat_map(|((namespace, name), uids)| {
            uids.iter().map(|uid| PodRef {
                namespace: namespace.clone(),
                name: name.clone(),
                uid: uid.clone(),
            })
        });
        self.unnamed = Some(all.collect());
    }

    pub(crate) fn synced(&mut self) {
        self.synced = true;
        for pod in self.unnamed.take().unwrap_or_default() {
            self.delete(&pod);
        }
    }

    /// Whether a list was complete once.
    pub(crate) fn is_synced(&self) -> bool {
        self.synced
    }

    pub(crate) fn apply(&mut self, meta: PodMeta) {
        let PodMeta { pod, wants, mirror } = meta;
        if !mirror.is_empty()
            && let Some(former) = self
                .mirrors
                .get(&mirror)
                .filter(|former| **former != pod)
                .cloned()
        {
            self.delete(&former);
        }
        if !mirror.is_empty() {
            self.mirrors.insert(mirror, pod.clone());
        }
        if wants.is_empty() {
            self.wants.remove(&pod);
        } else {
            self.wants.insert(pod.clone(), wants);
        }
        if let Some(unnamed) = &mut self.unnamed {
            unnamed.remove(&pod);
        }
        self.uids
            .entry((pod.namespace, pod.name))
            .or_default()
            .insert(pod.uid);
    }

    pub(crate) fn delete(&mut self, pod: &PodRef) {
        self.wants.remove(pod);
        self.mirrors.retain(|_, of| of != pod);
        let name = (pod.namespace.clone(), pod.name.clone());
        if let Some(uids) = self.uids.get_mut(&name) {
            uids.remove(&pod.uid);
            if uids.is_empty() {
                self.uids.remove(&name);
            }
        }
    }

    /// Whether the pod was seen; any incarnation will do where the runtime named none.
    pub(crate) fn has(&self, pod: &PodRef) -> bool {
        self.uids
            .get(&(pod.namespace.clone(), pod.name.clone()))
            .is_some_and(|uids| pod.uid.is_empty() || uids.contains(&pod.uid))
    }

    /// Which incarnation is meant, and what it asks for. Where the runtime named none and there are several, nothing
    /// tells which is meant: the last in order, so that it is the same on every call.
    pub(crate) fn wants(&self, pod: &PodRef) -> (PodRef, PodWants) {
        let mut pod = pod.clone();
        if pod.uid.is_empty() {
            let uids = self.uids.get(&(pod.namespace.clone(), pod.name.clone()));
            pod.uid = uids.and_then(|uids| uids.last()).cloned().unwrap_or_default();
        }
        let wants = self.wants.get(&pod).cloned().unwrap_or_default();
        (pod, wants)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, uid: &str) -> PodRef {
        PodRef {
            namespace: "default".into(),
            name: name.into(),
            uid: uid.into(),
        }
    }

    #[test]
    fn a_mirror_stands_for_one_pod_at_a_time() {
        let mut pods = Pods::default();
        for n in 0..1000 {
            pods.apply(PodMeta {
                mirror: "object".into(),
                ..pod("a", &format!("{n:032x}")).into()
            });
        }
        let last = pod("a", &format!("{:032x}", 999));
        assert!(pods.has(&last));
        assert_eq!(
            (pods.uids.values().next().map(BTreeSet::len), pods.mirrors.len()),
            (Some(1), 1)
        );
        pods.delete(&last);
        assert!(pods.uids.is_empty() && pods.mirrors.is_empty());
    }

    #[test]
    fn a_list_forgets_what_it_does_not_name() {
        let mut pods = Pods::default();
        pods.apply(pod("a", "1").into());
        pods.apply(pod("b", "2").into());
        assert!(pods.has(&pod("a", "1")) && pods.has(&pod("a", "")) && !pods.has(&pod("a", "2")));
        pods.reset();
        pods.apply(pod("b", "2").into());
        assert!(pods.has(&pod("a", "1")), "kept until the list is complete");
        pods.synced();
        assert!(!pods.has(&pod("a", "1")) && pods.has(&pod("b", "2")));
    }
}
