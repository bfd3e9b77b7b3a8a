//! Who owns which field: `metadata.managedFields`, kept on every write, and server-side apply, which reads it.
//!
//! Lists are owned whole: of the lists that kube-apiserver merges by key none is applied by meshd.

use crate::fields::{Fields, Path, at, leaves, overlay, read_fields, remove, strip, write_fields};
use crate::object::{Part, drop_field};
use crate::request::Time;
use crate::resource::Resource;
use crate::status::{Failure, Result};
use crate::text::rfc3339;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Who writes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Manager {
    /// `Apply` or `Update`; in this order, as in the list.
    operation: String,
    name: String,
    subresource: String,
    api_version: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Owned {
    time: String,
    fields: Fields,
}

/// Every manager with what it owns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Managers(BTreeMap<Manager, Owned>);

impl Manager {
    pub(crate) fn update(resource: &Resource, part: Part, name: &str) -> Self {
        Self::new("Update", resource, part, name)
    }

    pub(crate) fn apply(resource: &Resource, part: Part, name: &str) -> Self {
        Self::new("Apply", resource, part, name)
    }

    fn new(operation: &str, resource: &Resource, part: Part, name: &str) -> Self {
        Manager {
            operation: operation.into(),
            name: name.into(),
            subresource: if part == Part::Status {
                "status".into()
            } else {
                String::new()
            },
            api_version: resource.api_version(),
        }
    }

    /// As messages about conflicts name it.
    fn describe(&self) -> String {
        let mut text = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            text += &format!(" with subresource {:?}", self.subresource);
        }
        if self.operation == "Update" {
            text += &format!(" using {}", self.api_version);
        }
        text
    }
}

/// Writes into `new` who owns what after `manager` changed `old` into it.
pub(crate) fn record(old: &Value, new: &mut Value, manager: &Manager, now: Time) {
    let mut managers = Managers::read(old);
    let (was, is) = (leaves(old), leaves(new));
    let written: Fields = is
        .iter()
        .filter(|(path, value)| was.get(*path) != Some(value))
        .map(|(path, _)| path.clone())
        .collect();
    let took = !written.is_empty();
    managers.take_from_others(manager, &written);
    let mut mine = managers.fields(manager);
    mine.extend(written);
    for map in ["labels", "annotations"] {
        let path = ["metadata", map].map(String::from).to_vec();
        if at(new, &path).is_some() && at(old, &path).is_none() {
            mine.insert(path.into_iter().chain([".".into()]).collect());
        }
    }
    managers.set(manager, mine, took.then_some(now));
    managers.forget_what_is_gone(new);
    managers.write(new);
}

/// Writes into a new object that what was applied to make it belongs to `manager`.
pub(crate) fn claim(new: &mut Value, patch: &Value, manager: &Manager, now: Time) {
    let mut patch = patch.clone();
    strip(&mut patch);
    let mut managers = Managers::default();
    managers.set(manager, leaves(&patch).into_keys().collect(), Some(now));
    managers.forget_what_is_gone(new);
    managers.write(new);
}

/// Merges an applied configuration into the live object, as server-side apply does: fields of others are a conflict
/// unless `force`; fields that this manager applied before and names no more go.
///
/// # Errors
/// The conflicts.
pub(crate) fn apply(live: &Value, patch: &Value, manager: &Manager, force: bool, now: Time) -> Result<Value> {
    let mut managers = Managers::read(live);
    let mut patch = patch.clone();
    strip(&mut patch);
    let applied: Fields = leaves(&patch).into_keys().collect();
    let mut merged = live.clone();
    overlay(&mut merged, &patch);

    let (was, is) = (leaves(live), leaves(&merged));
    let changed: Fields = applied
        .iter()
        .filter(|p| was.get(*p) != is.get(*p))
        .cloned()
        .collect();
    let conflicts = managers.conflicts(manager, &changed);
    if !conflicts.is_empty() && !force {
        return Err(Failure::apply_conflict(&conflicts));
    }
    managers.take_from_others(manager, &changed);

    let dropped: Vec<Path> = managers.fields(manager).difference(&applied).cloned().collect();
    managers.set(manager, applied, None);
    for path in dropped.iter().filter(|p| !managers.owns_within(p)) {
        remove(&mut merged, path);
    }
    managers.forget_what_is_gone(&merged);
    if merged != *live {
        let fields = managers.fields(manager);
        managers.set(manager, fields, Some(now));
    }
    managers.write(&mut merged);
    Ok(merged)
}

impl Managers {
    fn read(object: &Value) -> Self {
        let entries = object["metadata"]["managedFields"].as_array();
        let entry = |e: &Value| {
            let text = |field: &str| e[field].as_str().unwrap_or_default().to_owned();
            let manager = Manager {
                operation: text("operation"),
                name: text("manager"),
                subresource: text("subresource"),
                api_version: text("apiVersion"),
            };
            let mut fields = Fields::new();
            read_fields(&e["fieldsV1"], &mut Vec::new(), &mut fields);
            let time = text("time");
            (manager, Owned { time, fields })
        };
        Managers(entries.into_iter().flatten().map(entry).collect())
    }

    fn write(self, object: &mut Value) {
        let mut entries: Vec<(Manager, Owned)> =
            self.0.into_iter().filter(|(_, o)| !o.fields.is_empty()).collect();
        entries.sort_by(|(a, x), (b, y)| (&a.operation, &x.time, a).cmp(&(&b.operation, &y.time, b)));
        if entries.is_empty() {
            drop_field(&mut object["metadata"], "managedFields");
            return;
        }
        let entry = |(manager, owned): (Manager, Owned)| {
            let mut entry = json!({
                "manager": manager.name, "operation": manager.operation, "apiVersion": manager.api_version,
                "time": owned.time, "fieldsType": "FieldsV1", "fieldsV1": write_fields(&owned.fields),
            });
            if owned.time.is_empty() {
                drop_field(&mut entry, "time");
            }
            if !manager.subresource.is_empty() {
                entry["subresource"] = manager.subresource.into();
            }
            entry
        };
        object["metadata"]["managedFields"] = entries.into_iter().map(entry).collect();
    }

    fn fields(&self, manager: &Manager) -> Fields {
        self.0.get(manager).map(|o| o.fields.clone()).unwrap_or_default()
    }

    /// The manager's time is that of its last write that changed more than who owns what.
    fn set(&mut self, manager: &Manager, fields: Fields, now: Option<Time>) {
        let before = self.0.get(manager).map(|o| o.time.clone());
        let time = now.map(rfc3339).or(before).unwrap_or_default();
        self.0.insert(manager.clone(), Owned { time, fields });
    }

    fn others<'a>(&'a self, manager: &'a Manager) -> impl Iterator<Item = (&'a Manager, &'a Owned)> {
        self.0.iter().filter(move |(m, _)| *m != manager)
    }

    fn take_from_others(&mut self, manager: &Manager, fields: &Fields) {
        for (_, owned) in self.0.iter_mut().filter(|(m, _)| *m != manager) {
            owned.fields.retain(|path| !fields.contains(path));
        }
    }

    /// Whether any manager owns the field or a field within it.
    fn owns_within(&self, path: &Path) -> bool {
        let within = |owned: &Owned| owned.fields.iter().any(|f| f.starts_with(path));
        self.0.values().any(within)
    }

    fn conflicts(&self, manager: &Manager, changed: &Fields) -> Vec<(String, String)> {
        let mut conflicts = Vec::new();
        for (other, owned) in self.others(manager) {
            for path in owned.fields.intersection(changed) {
                conflicts.push((other.describe(), format!(".{}", path.join("."))));
            }
        }
        conflicts.sort();
        conflicts
    }

    fn forget_what_is_gone(&mut self, object: &Value) {
        let is_there = |path: &Path| match path.split_last() {
            Some((last, parent)) if last == "." => at(object, parent).is_some(),
            _ => at(object, path).is_some(),
        };
        for owned in self.0.values_mut() {
            owned.fields.retain(is_there);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(annotations: Value) -> Value {
        json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n", "annotations": annotations}})
    }

    fn manager(operation: &str, name: &str) -> Manager {
        let nodes = Resource::new("", "v1", "nodes", "Node");
        Manager::new(operation, &nodes, Part::Main, name)
    }

    #[test]
    fn applied_fields_that_are_named_no_more_go_and_others_stay() {
        let mut live = node(json!({"other": "1"}));
        record(&json!({}), &mut live, &manager("Update", "kubectl"), Time(0));
        let meshd = manager("Apply", "meshd");
        let live = apply(&live, &node(json!({"a": "1", "b": "2"})), &meshd, true, Time(0)).unwrap();
        assert_eq!(
            live["metadata"]["annotations"],
            json!({"other": "1", "a": "1", "b": "2"})
        );
        let live = apply(&live, &node(json!({"b": "3"})), &meshd, true, Time(0)).unwrap();
        assert_eq!(live["metadata"]["annotations"], json!({"other": "1", "b": "3"}));
    }

    #[test]
    fn a_field_of_another_manager_is_a_conflict_unless_forced_or_equal() {
        let first = manager("Apply", "meshd");
        let second = manager("Apply", "other");
        let live = apply(&node(json!({})), &node(json!({"a": "1"})), &first, false, Time(0)).unwrap();
        let error = apply(&live, &node(json!({"a": "2"})), &second, false, Time(0)).unwrap_err();
        assert_eq!(error.code(), 409);
        assert_eq!(
            error.message(),
            "Apply failed with 1 conflict: conflict with \"meshd\": .metadata.annotations.a"
        );
        let shared = apply(&live, &node(json!({"a": "1"})), &second, false, Time(0)).unwrap();
        let kept = apply(&shared, &node(json!({})), &second, false, Time(0)).unwrap();
        assert_eq!(
            kept["metadata"]["annotations"]["a"], "1",
            "still owned by the first"
        );
        let taken = apply(&live, &node(json!({"a": "2"})), &second, true, Time(0)).unwrap();
        assert_eq!(taken["metadata"]["managedFields"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn applying_the_same_again_changes_nothing() {
        let meshd = manager("Apply", "meshd");
        let live = apply(
            &node(json!({"x": "y"})),
            &node(json!({"a": "1"})),
            &meshd,
            true,
            Time(0),
        )
        .unwrap();
        let again = apply(&live, &node(json!({"a": "1"})), &meshd, true, Time(9_000_000_000)).unwrap();
        assert_eq!(live, again);
    }
}
