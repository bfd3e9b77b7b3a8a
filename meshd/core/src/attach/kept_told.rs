//! What is told of kept addresses: numbers, problems, and why there can be no more.

use crate::agent::NodeAgent;
use crate::attach::kept::{GivenUp, KEPT_MAX};
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
        found.extend(self.kept.lost.iter().map(|(key, lost)| {
            let list: Vec<_> = lost.addresses.iter().map(ToString::to_string).collect();
            let why = match lost.why {
                GivenUp::NotOwn => "are not this node's any more",
                GivenUp::Needed => "were given up: the node had no others left",
                GivenUp::TooMany => "were given up: more were kept here for pods that are away than may be",
            };
            let remedy = match lost.why {
                GivenUp::NotOwn => "its pod gets others when it is made anew here",
                GivenUp::Needed | GivenUp::TooMany => {
                    "its pod gets others when it is made anew here; take meshd.dev/keep-address from pods that need it \
                     less, or shorten ipam.keep_seconds"
                }
            };
            problem(
                format!("kept/{key}"),
                format!("its addresses {} {why}: they were not kept", list.join(", ")),
                remedy,
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
