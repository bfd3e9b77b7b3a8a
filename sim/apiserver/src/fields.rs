//! Sets of fields: the leaves of an object, and `fieldsV1`, the form in which they are kept.

use crate::object::drop_field;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A field's path, from the object's root.
pub(crate) type Path = Vec<String>;
pub(crate) type Fields = BTreeSet<Path>;

/// Takes out what nobody owns: identity, and what only the server writes.
pub(crate) fn strip(object: &mut Value) {
    drop_field(object, "kind");
    drop_field(object, "apiVersion");
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    metadata.retain(|field, _| !is_identity(field));
}

fn is_identity(field: &str) -> bool {
    matches!(
        field,
        "name"
            | "namespace"
            | "uid"
            | "resourceVersion"
            | "creationTimestamp"
            | "deletionTimestamp"
            | "deletionGracePeriodSeconds"
            | "generation"
            | "selfLink"
            | "managedFields"
    )
}

/// Every field that can be owned, with its value.
pub(crate) fn leaves(object: &Value) -> BTreeMap<Path, &Value> {
    let mut found = BTreeMap::new();
    for (field, value) in object.as_object().into_iter().flatten() {
        match field.as_str() {
            "kind" | "apiVersion" => {}
            "metadata" => {
                for (field, value) in value
                    .as_object()
                    .into_iter()
                    .flatten()
                    .filter(|(f, _)| !is_identity(f))
                {
                    collect(value, &mut vec!["metadata".into(), field.clone()], &mut found);
                }
            }
            _ => collect(value, &mut vec![field.clone()], &mut found),
        }
    }
    found
}

fn collect<'a>(value: &'a Value, path: &mut Path, found: &mut BTreeMap<Path, &'a Value>) {
    match value.as_object() {
        Some(fields) if !fields.is_empty() => {
            for (field, value) in fields {
                path.push(field.clone());
                collect(value, path, found);
                path.pop();
            }
        }
        _ => drop(found.insert(path.clone(), value)),
    }
}

pub(crate) fn overlay(onto: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *onto = patch.clone();
        return;
    };
    if !onto.is_object() {
        *onto = json!({});
    }
    for (field, value) in fields {
        overlay(&mut onto[field.as_str()], value);
    }
}

pub(crate) fn at<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(object, |at, field| at.get(field))
}

/// Removes a field, and the objects that its removal leaves empty.
pub(crate) fn remove(object: &mut Value, path: &[String]) {
    let Some((first, rest)) = path.split_first() else {
        return;
    };
    let Some(fields) = object.as_object_mut() else {
        return;
    };
    if let Some(inner) = fields.get_mut(first).filter(|_| !rest.is_empty()) {
        remove(inner, rest);
        if inner.as_object().is_some_and(|o| !o.is_empty()) {
            return;
        }
    }
    fields.shift_remove(first);
}

pub(crate) fn read_fields(value: &Value, path: &mut Path, found: &mut Fields) {
    for (key, inner) in value.as_object().into_iter().flatten() {
        path.push(key.strip_prefix("f:").unwrap_or(key).to_owned());
        if inner.as_object().is_none_or(Map::is_empty) {
            found.insert(path.clone());
        } else {
            read_fields(inner, path, found);
        }
        path.pop();
    }
}

pub(crate) fn write_fields(fields: &Fields) -> Value {
    let mut root = json!({});
    for path in fields {
        let mut at = &mut root;
        for part in path {
            let key = if part == "." {
                ".".into()
            } else {
                format!("f:{part}")
            };
            at = at
                .as_object_mut()
                .expect("a field set is made of objects")
                .entry(key)
                .or_insert_with(|| json!({}));
        }
    }
    root
}
