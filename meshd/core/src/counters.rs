//! What is counted since the agent's start, for those who watch it from outside.

use crate::attach::collect::Abandoned;
use crate::ops::Task;
use meshd_model::net::Family;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Counts that only ever grow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// ADDs that found no address of the family free.
    pub exhausted: BTreeMap<Family, u64>,
    /// Attachments that were taken down without a DEL, by why they looked abandoned.
    pub collected: BTreeMap<Abandoned, u64>,
    /// Operations that the kernel refused.
    pub kernel_failures: u64,
    /// Actions that the lease store refused.
    pub store_failures: u64,
    /// Requests that the API server refused, or did not answer.
    pub kube_failures: u64,
    /// Events on pods that were not told, because there were too many.
    pub events_dropped: u64,
}

impl Counters {
    /// A task has failed.
    pub(crate) fn failed(&mut self, task: &Task) {
        let count = match task {
            Task::Kernel(_) => &mut self.kernel_failures,
            Task::Load | Task::Put(_) | Task::Remove(_) | Task::Keep(_) | Task::Unkeep(_) => {
                &mut self.store_failures
            }
            Task::Publish { .. }
            | Task::ClearNetworkUnavailable { .. }
            | Task::Block { .. }
            | Task::PodEvent(_) => &mut self.kube_failures,
        };
        *count += 1;
    }
}
