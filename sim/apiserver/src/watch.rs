//! Watches: who follows what, and the frames that wait for each.

use crate::request::{EventType, Time, WatchFrame, WatchId};
use crate::selector::Selector;
use crate::status::Failure;
use crate::store::{Change, Key, Snapshot, Table};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// In which form a client wants objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Whole.
    Full,
    /// `PartialObjectMetadata`.
    Partial,
}

impl Form {
    pub(crate) fn of(self, snapshot: &Snapshot) -> Arc<Value> {
        match self {
            Form::Full => snapshot.object.clone(),
            Form::Partial => snapshot.partial().clone(),
        }
    }
}

/// What a watch follows.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub(crate) table: Table,
    /// Empty for all namespaces.
    pub(crate) namespace: String,
    pub(crate) selector: Selector,
    pub(crate) form: Form,
    /// `kind` and `apiVersion` of the objects: bookmarks carry them too.
    pub(crate) kind: String,
    pub(crate) api_version: String,
}

impl Scope {
    /// Whether an object of the table is selected.
    pub(crate) fn selects_at(&self, key: &Key, snapshot: &Snapshot) -> bool {
        (self.namespace.is_empty() || self.namespace == key.namespace)
            && self.selector.matches(&snapshot.object)
    }

    fn selects(&self, snapshot: Option<&Arc<Snapshot>>) -> bool {
        snapshot.is_some_and(|s| self.selector.matches(&s.object))
    }

    /// What a change looks like to those who see only what the scope selects.
    fn frame(&self, change: &Change) -> Option<WatchFrame> {
        if change.table != self.table
            || !(self.namespace.is_empty() || self.namespace == change.key.namespace)
        {
            return None;
        }
        let (was, is) = (
            self.selects(change.before.as_ref()),
            self.selects(change.after.as_ref()),
        );
        let (kind, snapshot) = match (was, is) {
            (false, false) => return None,
            (false, true) => (EventType::Added, change.after.as_ref()),
            (true, true) => (EventType::Modified, change.after.as_ref()),
            (true, false) => (EventType::Deleted, change.gone()),
        };
        let object = self.form.of(snapshot?);
        Some(WatchFrame::Event { kind, object })
    }

    fn bookmark(&self, revision: u64, initial_end: bool) -> WatchFrame {
        let mut object = json!({
            "kind": self.kind, "apiVersion": self.api_version, "metadata": {"resourceVersion": revision.to_string()},
        });
        if initial_end {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = Arc::new(object);
        WatchFrame::Event {
            kind: EventType::Bookmark,
            object,
        }
    }
}

#[derive(Debug)]
struct Watch {
    scope: Scope,
    queue: VecDeque<WatchFrame>,
    /// How long the queue may grow.
    room: usize,
    ends: Time,
    /// None for a watch that did not ask for them.
    next_bookmark: Option<Time>,
}

/// All watches of a server.
#[derive(Debug)]
pub(crate) struct Watches {
    watches: BTreeMap<WatchId, Watch>,
    ready: BTreeSet<WatchId>,
    timers: BTreeSet<(Time, WatchId)>,
    last: u64,
    queue: usize,
    bookmark_interval: Duration,
}

impl Watches {
    pub(crate) fn new(queue: usize, bookmark_interval: Duration) -> Self {
        Self {
            watches: BTreeMap::new(),
            ready: BTreeSet::new(),
            timers: BTreeSet::new(),
            last: 0,
            queue,
            bookmark_interval: bookmark_interval.max(Duration::from_millis(1)),
        }
    }

    pub(crate) fn open(&mut self, now: Time, scope: Scope, bookmarks: bool, timeout: Duration) -> WatchId {
        self.last += 1;
        let id = WatchId(self.last);
        let watch = Watch {
            scope,
            queue: VecDeque::new(),
            room: self.queue,
            ends: later(now, timeout),
            next_bookmark: bookmarks.then(|| later(now, self.bookmark_interval)),
        };
        self.timers.insert((watch.due(), id));
        self.watches.insert(id, watch);
        id
    }

    /// Objects that there are when a watch begins, which need not fit its queue.
    pub(crate) fn begin(&mut self, id: WatchId, snapshots: &[Arc<Snapshot>]) {
        let Some(watch) = self.watches.get_mut(&id) else {
            return;
        };
        let form = watch.scope.form;
        watch.queue.extend(snapshots.iter().map(|s| WatchFrame::Event {
            kind: EventType::Added,
            object: form.of(s),
        }));
        self.settle(id);
    }

    /// Changes that happened before a watch began, which need not fit its queue.
    pub(crate) fn catch_up<'a>(&mut self, id: WatchId, changes: impl Iterator<Item = &'a Arc<Change>>) {
        let Some(watch) = self.watches.get_mut(&id) else {
            return;
        };
        let frames = changes.filter_map(|c| watch.scope.frame(c));
        watch.queue.extend(frames);
        self.settle(id);
    }

    fn settle(&mut self, id: WatchId) {
        if let Some(watch) = self.watches.get_mut(&id) {
            watch.room = watch.queue.len() + self.queue;
            if !watch.queue.is_empty() {
                self.ready.insert(id);
            }
        }
    }

    pub(crate) fn bookmark(&mut self, id: WatchId, revision: u64, initial_end: bool) {
        if let Some(watch) = self.watches.get_mut(&id) {
            let frame = watch.scope.bookmark(revision, initial_end);
            watch.queue.push_back(frame);
            self.ready.insert(id);
        }
    }

    pub(crate) fn fail(&mut self, id: WatchId, failure: &Failure) {
        if let Some(watch) = self.watches.get_mut(&id) {
            watch.queue.push_back(WatchFrame::Event {
                kind: EventType::Error,
                object: Arc::new(failure.to_value()),
            });
            self.end(id);
        }
    }

    /// Tells every watch that follows it of a change.
    pub(crate) fn publish(&mut self, change: &Change) {
        let mut behind = Vec::new();
        for (id, watch) in &mut self.watches {
            let Some(frame) = watch.scope.frame(change) else {
                continue;
            };
            if watch.queue.back() == Some(&WatchFrame::End) {
                continue;
            }
            if watch.queue.len() >= watch.room {
                behind.push(*id);
            } else {
                watch.queue.push_back(frame);
                self.ready.insert(*id);
            }
        }
        behind.into_iter().for_each(|id| self.end(id));
    }

    /// The last frame of a watch: what waits is still delivered.
    fn end(&mut self, id: WatchId) {
        if let Some(watch) = self.watches.get_mut(&id)
            && watch.queue.back() != Some(&WatchFrame::End)
        {
            self.timers.remove(&(watch.due(), id));
            watch.queue.push_back(WatchFrame::End);
            self.ready.insert(id);
        }
    }

    pub(crate) fn close(&mut self, id: WatchId) {
        if let Some(watch) = self.watches.remove(&id) {
            self.timers.remove(&(watch.due(), id));
            self.ready.remove(&id);
        }
    }

    pub(crate) fn poll(&mut self, id: WatchId) -> Option<WatchFrame> {
        let watch = self.watches.get_mut(&id)?;
        let frame = watch.queue.pop_front()?;
        watch.room = watch.room.saturating_sub(1).max(self.queue);
        if frame == WatchFrame::End {
            self.close(id);
        } else if watch.queue.is_empty() {
            self.ready.remove(&id);
        }
        Some(frame)
    }

    pub(crate) fn ready(&self) -> impl Iterator<Item = WatchId> + '_ {
        self.ready.iter().copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.watches.len()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        self.timers.first().map(|(time, _)| *time)
    }

    pub(crate) fn handle_timeout(&mut self, now: Time, revision: u64) {
        while let Some((due, id)) = self.timers.first().copied().filter(|(due, _)| *due <= now) {
            self.timers.remove(&(due, id));
            let Some(watch) = self.watches.get_mut(&id) else {
                continue;
            };
            if watch.ends <= now {
                self.end(id);
                continue;
            }
            watch.next_bookmark = Some(later(now, self.bookmark_interval));
            self.timers.insert((watch.due(), id));
            if watch.queue.len() < watch.room {
                self.bookmark(id, revision, false);
            }
        }
    }
}

impl Watch {
    fn due(&self) -> Time {
        self.next_bookmark.map_or(self.ends, |b| b.min(self.ends))
    }
}

fn later(time: Time, by: Duration) -> Time {
    Time(
        time.0
            .saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)),
    )
}
