//! When the agent wants to be woken, and why.

use crate::TimerKind;
use meshd_model::Boot;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// One deadline a kind; the earliest is found without a search.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Timers {
    by_kind: BTreeMap<TimerKind, Boot>,
    queue: BTreeSet<(Boot, TimerKind)>,
}

impl Timers {
    /// Sets the timer of this kind, whatever it was.
    pub(crate) fn set(&mut self, kind: TimerKind, at: Boot) {
        self.clear(&kind);
        self.queue.insert((at, kind.clone()));
        self.by_kind.insert(kind, at);
    }

    /// Sets the timer of this kind unless it fires earlier anyhow.
    pub(crate) fn set_no_later(&mut self, kind: TimerKind, at: Boot) {
        if self.by_kind.get(&kind).is_none_or(|set| at < *set) {
            self.set(kind, at);
        }
    }

    pub(crate) fn clear(&mut self, kind: &TimerKind) {
        if let Some(at) = self.by_kind.remove(kind) {
            self.queue.remove(&(at, kind.clone()));
        }
    }

    pub(crate) fn first(&self) -> Option<(Boot, TimerKind)> {
        self.queue.first().cloned()
    }

    /// Takes one timer that has come due.
    pub(crate) fn pop_due(&mut self, now: Boot) -> Option<TimerKind> {
        let (at, kind) = self.queue.first()?.clone();
        if at > now {
            return None;
        }
        self.clear(&kind);
        Some(kind)
    }
}
