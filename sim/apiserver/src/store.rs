//! Objects and their history. Every change has a revision; a bounded number of changes is kept, so that a watch
//! can begin in the past and a list can be continued as it was when it began.

use crate::status::{Failure, Result};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};

/// Index of a [`crate::Resource`] in the server's table.
pub(crate) type Table = usize;

/// Names an object within its table. Ordered as kube-apiserver lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// An object as it was at one revision; shared by the store, the history and every answer that names it.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) object: Arc<Value>,
    pub(crate) revision: u64,
    partial: OnceLock<Arc<Value>>,
}

impl Snapshot {
    pub(crate) fn new(mut object: Value, revision: u64) -> Arc<Self> {
        object["metadata"]["resourceVersion"] = revision.to_string().into();
        Arc::new(Self {
            object: Arc::new(object),
            revision,
            partial: OnceLock::new(),
        })
    }

    /// Its metadata only.
    pub(crate) fn partial(&self) -> &Arc<Value> {
        self.partial.get_or_init(|| {
            Arc::new(json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": self.object["metadata"],
            }))
        })
    }
}

/// One change. At least one of `before` and `after` is there.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) table: Table,
    pub(crate) key: Key,
    pub(crate) before: Option<Arc<Snapshot>>,
    pub(crate) after: Option<Arc<Snapshot>>,
    gone: OnceLock<Option<Arc<Snapshot>>>,
}

impl Change {
    /// What was there before, with the revision of the change: what DELETED carries.
    pub(crate) fn gone(&self) -> Option<&Arc<Snapshot>> {
        let was = || {
            let before = self.before.as_ref()?;
            Some(Snapshot::new(Value::clone(&before.object), self.revision))
        };
        self.gone.get_or_init(was).as_ref()
    }
}

/// The objects of all kinds.
#[derive(Debug)]
pub(crate) struct Store {
    revision: u64,
    tables: Vec<BTreeMap<Key, Arc<Snapshot>>>,
    history: VecDeque<Arc<Change>>,
    /// Changes up to this one are forgotten.
    compacted: u64,
    limit: usize,
}

impl Store {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            revision: 1,
            tables: Vec::new(),
            history: VecDeque::new(),
            compacted: 0,
            limit: limit.max(1),
        }
    }

    pub(crate) fn add_table(&mut self) {
        self.tables.push(BTreeMap::new());
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn get(&self, table: Table, key: &Key) -> Option<&Arc<Snapshot>> {
        self.tables[table].get(key)
    }

    pub(crate) fn table(&self, table: Table) -> &BTreeMap<Key, Arc<Snapshot>> {
        &self.tables[table]
    }

    /// Writes an object, or removes it where it is None; returns the change.
    pub(crate) fn commit(&mut self, table: Table, key: Key, object: Option<Value>) -> Arc<Change> {
        self.revision += 1;
        let after = object.map(|o| Snapshot::new(o, self.revision));
        let before = match &after {
            Some(snapshot) => self.tables[table].insert(key.clone(), snapshot.clone()),
            None => self.tables[table].remove(&key),
        };
        let change = Arc::new(Change {
            revision: self.revision,
            table,
            key,
            before,
            after,
            gone: OnceLock::new(),
        });
        self.history.push_back(change.clone());
        while self.history.len() > self.limit {
            self.forget_oldest();
        }
        change
    }

    pub(crate) fn compact(&mut self) {
        while !self.history.is_empty() {
            self.forget_oldest();
        }
        self.compacted = self.revision;
    }

    fn forget_oldest(&mut self) {
        if let Some(change) = self.history.pop_front() {
            self.compacted = change.revision;
        }
    }

    /// The changes of a table after a revision, in order.
    pub(crate) fn changes_since(
        &self,
        table: Table,
        revision: u64,
    ) -> Result<impl Iterator<Item = &Arc<Change>>> {
        if revision < self.compacted {
            let message = format!("too old resource version: {revision} ({})", self.compacted + 1);
            return Err(Failure::expired(message));
        }
        let later = self.history.iter().filter(move |c| c.revision > revision);
        Ok(later.filter(move |c| c.table == table))
    }

    /// A table as it was at a revision.
    pub(crate) fn table_at(&self, table: Table, revision: u64) -> Result<BTreeMap<Key, Arc<Snapshot>>> {
        let changes: Vec<&Arc<Change>> = self.changes_since(table, revision)?.collect();
        let mut then = self.tables[table].clone();
        for change in changes.into_iter().rev() {
            match &change.before {
                Some(before) => then.insert(change.key.clone(), before.clone()),
                None => then.remove(&change.key),
            };
        }
        Ok(then)
    }
}
