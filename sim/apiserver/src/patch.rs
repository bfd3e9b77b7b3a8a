//! Merge patches, JSON patches, strategic merge patches.

use crate::request::{APPLY_PATCH, BODY_MAX, JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH};
use crate::status::{Failure, Result};
use serde_json::{Value, json};

/// As in kube-apiserver.
const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;

/// A patch, by its media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PatchKind {
    Merge,
    Json,
    Strategic,
    Apply,
}

impl PatchKind {
    pub(crate) fn of(content_type: &str) -> Result<Self> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            MERGE_PATCH => Ok(Self::Merge),
            JSON_PATCH => Ok(Self::Json),
            STRATEGIC_MERGE_PATCH => Ok(Self::Strategic),
            APPLY_PATCH => Ok(Self::Apply),
            _ => Err(Failure::unsupported_media_type()),
        }
    }
}

/// The object as the patch makes it; server-side apply is not among these.
pub(crate) fn patched(kind: PatchKind, object: &Value, patch: Value) -> Result<Value> {
    let mut object = object.clone();
    match kind {
        PatchKind::Json => {
            let patch: json_patch::Patch = serde_json::from_value(patch)
                .map_err(|e| Failure::bad_request(format!("error decoding patch: {e}")))?;
            json(&mut object, &patch)?;
        }
        PatchKind::Merge => json_patch::merge(&mut object, &patch),
        PatchKind::Strategic | PatchKind::Apply => strategic(&mut object, patch),
    }
    Ok(object)
}

/// Operation by operation, because copies of copies grow without bound.
fn json(object: &mut Value, patch: &json_patch::Patch) -> Result<()> {
    if patch.0.len() > JSON_PATCH_OPERATIONS_MAX {
        return Err(Failure::too_large());
    }
    for operation in &patch.0 {
        json_patch::patch(object, std::slice::from_ref(operation)).map_err(|_| Failure::rejected_patch())?;
        if matches!(operation, json_patch::PatchOperation::Copy(_)) && object.to_string().len() > BODY_MAX {
            return Err(Failure::too_large());
        }
    }
    Ok(())
}

/// The key by which the items of a list are told apart when a strategic merge patch meets it
/// (`patchMergeKey` in the API's Go types); None for lists that are replaced.
fn merge_key(field: &str) -> Option<&'static str> {
    match field {
        "containers" | "initContainers" | "volumes" | "env" | "imagePullSecrets" => Some("name"),
        "addresses" | "conditions" => Some("type"),
        "ports" => Some("containerPort"),
        "volumeMounts" => Some("mountPath"),
        "ownerReferences" => Some("uid"),
        _ => None,
    }
}

/// Whether a list of plain values is merged as a set (`patchStrategy: merge` without a key).
fn is_set(field: &str) -> bool {
    matches!(field, "podCIDRs" | "finalizers")
}

fn strategic(object: &mut Value, patch: Value) {
    let Value::Object(mut patch) = patch else {
        *object = patch;
        return;
    };
    let directive = patch.shift_remove("$patch");
    if directive == Some("replace".into()) || !object.is_object() {
        *object = json!({});
    }
    patch.retain(|field, _| !field.starts_with("$setElementOrder/") && field != "$retainKeys");
    for (field, value) in patch {
        if let Some(list) = field.strip_prefix("$deleteFromPrimitiveList/") {
            if let Some(have) = object.get_mut(list) {
                delete_values(have, &value);
            }
            continue;
        }
        let Some(fields) = object.as_object_mut() else {
            return;
        };
        match (value, merge_key(&field)) {
            (Value::Null, _) => drop(fields.shift_remove(&field)),
            (Value::Array(items), Some(key)) => {
                merge_list(fields.entry(field).or_insert_with(|| json!([])), items, key)
            }
            (Value::Array(items), None) if is_set(&field) => {
                merge_set(fields.entry(field).or_insert_with(|| json!([])), items)
            }
            (value @ Value::Object(_), _) => {
                strategic(fields.entry(field).or_insert_with(|| json!({})), value);
            }
            (value, _) => drop(fields.insert(field, value)),
        }
    }
}

fn merge_list(list: &mut Value, items: Vec<Value>, key: &str) {
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else {
        return;
    };
    if items.iter().any(|i| i["$patch"] == "replace") {
        list.clear();
    }
    let mut added = 0;
    for item in items {
        let found = list
            .iter()
            .position(|have| have[key] == item[key] && !item[key].is_null());
        match (item["$patch"].as_str(), found) {
            (Some("replace"), _) => {}
            (Some("delete"), Some(at)) => drop(list.remove(at)),
            (Some("delete"), None) => {}
            (_, Some(at)) => strategic(&mut list[at], item),
            (_, None) => {
                let mut new = json!({});
                strategic(&mut new, item);
                list.insert(added, new);
                added += 1;
            }
        }
    }
}

fn merge_set(list: &mut Value, items: Vec<Value>) {
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        for item in items {
            if !list.contains(&item) {
                list.push(item);
            }
        }
    }
}

fn delete_values(list: &mut Value, values: &Value) {
    if let (Some(list), Some(values)) = (list.as_array_mut(), values.as_array()) {
        list.retain(|item| !values.contains(item));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strategic_merge_patch_merges_lists_by_key() {
        let node = json!({"status": {"addresses": [{"type": "InternalIP", "address": "1.1.1.1"}, {"type": "Hostname", "address": "n"}]},
                          "spec": {"podCIDRs": ["a"], "containers": [{"name": "k"}]}});
        let patch = json!({
            "status": {"addresses": [{"type": "InternalIP", "address": "2.2.2.2"}], "$setElementOrder/addresses": []},
            "spec": {"podCIDRs": ["b"], "containers": [{"name": "k", "$patch": "delete"}], "providerID": null},
        });
        let got = patched(PatchKind::Strategic, &node, patch).unwrap();
        assert_eq!(got["status"]["addresses"][0]["address"], "2.2.2.2");
        assert_eq!(got["status"]["addresses"].as_array().unwrap().len(), 2);
        assert_eq!(got["spec"], json!({"podCIDRs": ["a", "b"], "containers": []}));
    }

    #[test]
    fn a_json_patch_that_does_not_hold_is_refused() {
        let patch = json!([{"op": "test", "path": "/a", "value": 2}]);
        assert_eq!(
            patched(PatchKind::Json, &json!({"a": 1}), patch)
                .unwrap_err()
                .code(),
            422
        );
        assert_eq!(
            patched(PatchKind::Json, &json!({}), json!({}))
                .unwrap_err()
                .code(),
            400
        );
    }
}
