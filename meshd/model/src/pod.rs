//! Pods, as far as the node's daemon needs to know them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// Names one incarnation of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodRef {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// `metadata.uid`; runtimes that do not send `K8S_POD_UID` leave it empty.
    pub uid: String,
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod, and what its annotations ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodMeta {
    /// Which.
    #[serde(flatten)]
    pub pod: PodRef,
    /// What it asks for.
    #[serde(default, skip_serializing_if = "PodWants::is_empty")]
    pub wants: PodWants,
    /// `metadata.uid` of the mirror of a static pod, which the runtime knows by another UID; empty for others.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mirror: String,
}

/// What a pod's annotations ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodWants {
    /// `meshd.dev/ips`: these addresses and no others, one of a family at most.
    pub ips: Vec<IpAddr>,
    /// `meshd.dev/keep-address`: a pod of the same name that follows on this node gets the addresses that this one had.
    pub keep: bool,
    /// Why an annotation cannot be understood: the pod gets no address rather than another one than was meant.
    pub problem: Option<String>,
}

impl PodWants {
    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl From<PodRef> for PodMeta {
    fn from(pod: PodRef) -> Self {
        Self {
            pod,
            wants: PodWants::default(),
            mirror: String::new(),
        }
    }
}
