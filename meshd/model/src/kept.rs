//! Addresses that are kept for a pod while it is away, so that the pod of the same name that follows has them again.

use crate::Wall;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// Whose addresses are kept: those of an interface of all the pods of a name, one after the other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeptKey {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub pod: String,
    /// The interface in the pod.
    pub ifname: String,
}

impl fmt::Display for KeptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.namespace, self.pod, self.ifname)
    }
}

/// A record of addresses that are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Whose.
    pub key: KeptKey,
    /// One of a family at most, at least one.
    pub addresses: Vec<IpAddr>,
    /// Since when no pod has them; none while one has.
    #[serde(default)]
    pub unused_since: Option<Wall>,
}
