//! The agent in numbers, for those who watch it from outside. Nothing of it is stored but the counts.

use crate::agent::NodeAgent;
use crate::attach::table::State;
use crate::counters::Counters;
use meshd_ipam::Counts;
use meshd_model::net::Family;
use meshd_model::{LeasePhase, Now};
use std::collections::BTreeMap;

/// What there is at the moment, and what was counted since the start.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// Whether ADD can succeed.
    pub ready: bool,
    /// Whether the API server was reached when it was last asked.
    pub api_reachable: bool,
    /// Attachments, by where they stand.
    pub attachments: BTreeMap<&'static str, u64>,
    /// How full each family is; none for a family that the node has no pod CIDR of.
    pub addresses: BTreeMap<Family, Counts>,
    /// Requests of the local socket that have not been answered.
    pub pending: u64,
    /// Lines of the status that say what is wrong.
    pub problems: u64,
    /// Leases that could not be read at the start.
    pub damaged_leases: u64,
    /// Since the start.
    pub counters: Counters,
}

impl NodeAgent {
    /// The agent in numbers. Costs as much as [`Self::status`].
    #[must_use]
    pub fn numbers(&self, now: Now) -> Numbers {
        let phases = [LeasePhase::Adding, LeasePhase::Ready, LeasePhase::Deleting];
        let mut attachments: BTreeMap<_, u64> = phases.map(|phase| (name(phase), 0)).into();
        for (_, attachment) in self.attachments.iter() {
            *attachments.entry(name(phase(&attachment.state))).or_default() += 1;
        }
        let families = self.local.overlay.keys();
        Numbers {
            ready: self.is_ready(),
            api_reachable: self.api_away.is_none() && self.own.node.is_some(),
            attachments,
            addresses: families
                .map(|family| (*family, self.attachments.allocator.counts(*family)))
                .collect(),
            pending: self.requests.len() as u64,
            problems: self.problems(now).len() as u64,
            damaged_leases: self.attachments.damaged().len() as u64,
            counters: self.counters.clone(),
        }
    }
}

pub(crate) fn phase(state: &State) -> LeasePhase {
    match state {
        State::Adding { .. } | State::HalfDone => LeasePhase::Adding,
        State::Ready => LeasePhase::Ready,
        State::Deleting { .. } => LeasePhase::Deleting,
    }
}

fn name(phase: LeasePhase) -> &'static str {
    match phase {
        LeasePhase::Adding => "adding",
        LeasePhase::Ready => "ready",
        LeasePhase::Deleting => "deleting",
    }
}
