//! What is told of kept addresses: numbers, problems, and why there can be no more.

use crate::agent::NodeAgent;
use crate::attach::kept::KEPT_MAX;
use crate::attach::requests::error;
use crate::problems::problem;
use meshd_model::KeptKey;
use meshd_model::cni::{CniError, code};
use meshd_model::net::Family;
use meshd_model::status::Problem;
use std::collections::BTreeMap;

impl NodeAgent {
    /// What the numbers of a full family do not say: how many of the addresses in use are kept.
    pub(crate) fn kept_told(&self, family: Family) -> String {
        match self.kept_counts().get(&family) {
            Some(count) => format!("; {count} of those in use are kept for pods that are away"),
            None => String::new(),
        }
    }

    /// How many addresses are held back for pods that are away.
    pub(crate) fn kept_counts(&self) -> BTreeMap<Family, u64> {
        let mut counts = BTreeMap::new();
        for address in self.kept.unheld().flat_map(|e| &e.kept.addresses) {
            *counts.entry(Family::of(*address)).or_default() += 1;
        }
        counts
    }

    pub(crate) fn kept_problems(&self, found: &mut Vec<Problem>) {
        found.extend(self.kept.damaged.iter().map(|what| {
            problem(
                "store",
                format!("a record of kept addresses could not be read: {what}"),
                "its pod gets others when it is made anew; this line goes with the next start of meshd",
            )
        }));
        found.extend(self.kept.lost.iter().map(|(key, (addresses, _))| {
            let list: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            problem(
                format!("kept/{key}"),
                format!(
                    "its addresses {} are not this node's any more: they were not kept",
                    list.join(", ")
                ),
                "its pod gets others when it is made anew here",
            )
        }));
    }
}

/// The answer to an ADD whose addresses cannot be kept.
pub(crate) fn full(key: &KeptKey) -> CniError {
    error(
        code::EXHAUSTED,
        format!("no addresses can be kept for {key}: {KEPT_MAX} pods' are kept on this node already"),
        "take meshd.dev/keep-address from pods that need it less, or shorten ipam.keep_seconds",
    )
}
