//! What the daemon was told and did, and when, by its own recording.

use anyhow::Context;
use meshd::record::{Record, read_segment, segments};
use meshd_core::{Action, Event, KernelEvent, KubeEvent, Resource};
use meshd_model::Boot;
use std::path::{Path, PathBuf};

pub(crate) struct Recording(PathBuf);

/// A part of it.
#[derive(Default)]
pub(crate) struct Part {
    records: Vec<Record>,
}

impl Recording {
    pub(crate) fn of(state: &Path) -> Self {
        Self(state.join("recording"))
    }

    /// All that happened since then.
    pub(crate) fn since(&self, since: Boot) -> anyhow::Result<Part> {
        let mut records = Vec::new();
        for (_, path) in segments(&self.0).context("look for the recording")? {
            let segment = read_segment(&path)?;
            // An action belongs to what was told before it.
            let mut is_in = false;
            for record in segment.records {
                if let Record::Event { now, .. } | Record::Observed { now, .. } | Record::Timeout { now } =
                    &record
                {
                    is_in = now.boot >= since;
                }
                if is_in {
                    records.push(record);
                }
            }
        }
        Ok(Part { records })
    }

    /// Bytes on disk.
    pub(crate) fn bytes(&self) -> u64 {
        let files = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        files.filter_map(|f| Some(f.metadata().ok()?.len())).sum()
    }
}

impl Part {
    fn times(&self, is: impl Fn(&Event) -> bool) -> impl Iterator<Item = Boot> {
        self.records.iter().filter_map(move |record| match record {
            Record::Event { now, event } if is(event) => Some(now.boot),
            _ => None,
        })
    }

    /// When the Nodes' list was complete.
    pub(crate) fn synced(&self) -> Option<Boot> {
        self.times(|e| matches!(e, Event::Kube(KubeEvent::NodesSynced)))
            .next()
    }

    /// When the first and the last operation on the kernel was carried out.
    pub(crate) fn applied(&self) -> (Option<Boot>, Option<Boot>) {
        let applied = |e: &Event| {
            matches!(e, Event::Kernel(KernelEvent::Applied(id))
                if matches!(id.resource, Resource::Peer(_) | Resource::Route { .. }))
        };
        (self.times(applied).next(), self.times(applied).last())
    }

    /// How often the kernel was observed.
    pub(crate) fn observations(&self) -> usize {
        let is = |r: &&Record| match r {
            Record::Observed { .. } => true,
            Record::Event { event, .. } => matches!(event, Event::Kernel(KernelEvent::Observed(_))),
            _ => false,
        };
        self.records.iter().filter(is).count()
    }

    pub(crate) fn count(&self, is: impl Fn(&Action) -> bool) -> usize {
        let actions = self.records.iter().filter_map(|record| match record {
            Record::Action(action) => Some(action),
            _ => None,
        });
        actions.filter(|a| is(a)).count()
    }

    /// Operations on the kernel that change it.
    pub(crate) fn operations(&self) -> usize {
        self.count(|a| matches!(a, Action::Kernel(k) if k.op != meshd_core::KernelOp::Observe))
    }

    pub(crate) fn publications(&self) -> usize {
        self.count(|a| matches!(a, Action::Kube(_)))
    }

    pub(crate) fn failures(&self) -> usize {
        self.times(|e| matches!(e, Event::Kernel(KernelEvent::Failed { .. })))
            .count()
    }

    pub(crate) fn lists(&self) -> usize {
        self.times(|e| matches!(e, Event::Kube(KubeEvent::NodesSynced)))
            .count()
    }
}
