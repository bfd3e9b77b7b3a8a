//! What every object goes through before it is stored: identity, stamps, what a write may change, validation.

use crate::request::Time;
use crate::resource::Resource;
use crate::status::{Cause, Failure, Result};
use crate::text::{Seeded, rfc3339};
use crate::validate::{invalid, validate, validate_update};
use serde_json::{Map, Value, json};

/// Metadata that only the server writes.
const OWNED: [&str; 6] = [
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
];

/// Which part of an object a write is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The object itself: everything but its status.
    Main,
    /// The status subresource: the status, and labels and annotations.
    Status,
}

/// The object's metadata.
pub(crate) fn meta<'a>(object: &'a Value, field: &str) -> Option<&'a str> {
    object
        .get("metadata")?
        .get(field)?
        .as_str()
        .filter(|t| !t.is_empty())
}

/// Checks that a body is an object of the kind, and gives it the kind's name, version and a metadata object.
pub(crate) fn of_kind(resource: &Resource, mut body: Value) -> Result<Value> {
    let Some(fields) = body.as_object_mut() else {
        let message = format!(
            "the object provided is unrecognized (must be of type {})",
            resource.kind
        );
        return Err(Failure::bad_request(message));
    };
    let version = resource.api_version();
    for (field, want) in [("kind", &resource.kind), ("apiVersion", &version)] {
        let given = fields.get(field).and_then(Value::as_str).unwrap_or_default();
        if !given.is_empty() && given != want {
            let message = format!(
                "{field} {given:?} in the body cannot be handled as a {version} {}",
                resource.kind
            );
            return Err(Failure::bad_request(message));
        }
        fields.insert(field.into(), want.as_str().into());
    }
    let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
    if metadata.is_null() {
        *metadata = json!({});
    }
    decodes(resource, &body)?;
    Ok(body)
}

/// What a decoder with types would refuse: metadata of the wrong shape.
fn decodes(resource: &Resource, object: &Value) -> Result<()> {
    let wrong = |field: &str, want: &str| {
        let (version, kind) = (&resource.version, &resource.kind);
        let message = format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: json: cannot unmarshal into Go struct field ObjectMeta.{field} of type {want}"
        );
        Err(Failure::bad_request(message))
    };
    let Some(metadata) = object["metadata"].as_object() else {
        return wrong("metadata", "ObjectMeta");
    };
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "generateName",
        "creationTimestamp",
    ] {
        if metadata
            .get(field)
            .is_some_and(|v| !v.is_string() && !v.is_null())
        {
            return wrong(&format!("metadata.{field}"), "string");
        }
    }
    for field in ["annotations", "labels"] {
        match metadata.get(field) {
            None | Some(Value::Null) => {}
            Some(Value::Object(map)) if map.values().all(|v| v.is_string() || v.is_null()) => {}
            Some(_) => return wrong(&format!("metadata.{field}"), "string"),
        }
    }
    Ok(())
}

/// Makes a new object out of a client's: identity, stamps, defaults.
pub(crate) fn prepare_create(
    resource: &Resource,
    object: &mut Value,
    uids: &mut Seeded,
    now: Time,
) -> Result<()> {
    if meta(object, "resourceVersion").is_some() {
        let message = "resourceVersion should not be set on objects to be created";
        return Err(Failure::internal(message));
    }
    if meta(object, "name").is_none()
        && let Some(base) = meta(object, "generateName")
    {
        object["metadata"]["name"] = format!("{base}{}", uids.suffix()).into();
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        OWNED.iter().for_each(|field| drop(metadata.shift_remove(*field)));
        metadata.insert("uid".into(), uids.uid().into());
        metadata.insert("creationTimestamp".into(), rfc3339(now).into());
        if resource.generation {
            metadata.insert("generation".into(), 1.into());
        }
    }
    // A kubelet registers its Node with its status; every other status is written by a controller later.
    if resource.status && !resource.is("nodes") {
        drop_field(object, "status");
    }
    defaults(resource, object);
    normalise(resource, object);
    validate(resource, object)
}

/// Makes the successor of `old` out of a client's object: what the write may not change stays.
pub(crate) fn prepare_update(resource: &Resource, part: Part, old: &Value, new: &mut Value) -> Result<()> {
    let given = meta(new, "uid").map(str::to_owned);
    let was = meta(old, "uid").unwrap_or_default();
    if let Some(given) = given.filter(|g| g != was) {
        let cause = Cause::invalid("metadata.uid", &given.into(), "field is immutable");
        return Err(invalid(resource, new, &[cause]));
    }
    for field in OWNED.into_iter().chain(["name", "namespace"]) {
        set_field(&mut new["metadata"], field, old["metadata"].get(field));
    }
    match part {
        Part::Main if resource.status => set_field(new, "status", old.get("status")),
        Part::Main => {}
        Part::Status => keep_all_but_status(old, new),
    }
    normalise(resource, new);
    if resource.generation && new.get("spec") != old.get("spec") {
        let generation = old["metadata"]["generation"].as_u64().unwrap_or(0) + 1;
        new["metadata"]["generation"] = generation.into();
    }
    validate(resource, new)?;
    validate_update(resource, old, new)
}

/// Through the status subresource only the status, labels and annotations are written.
fn keep_all_but_status(old: &Value, new: &mut Value) {
    let mut kept = old.clone();
    set_field(&mut kept, "status", new.get("status"));
    for field in ["labels", "annotations"] {
        set_field(&mut kept["metadata"], field, new["metadata"].get(field));
    }
    *new = kept;
}

fn set_field(object: &mut Value, field: &str, value: Option<&Value>) {
    match value {
        Some(value) => object[field] = value.clone(),
        None => drop_field(object, field),
    }
}

pub(crate) fn drop_field(object: &mut Value, field: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.shift_remove(field);
    }
}

fn defaults(resource: &Resource, object: &mut Value) {
    if resource.is("pods") {
        object["status"] = json!({"phase": "Pending"});
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
            let default = |spec: &mut Map<String, Value>, field: &str, value: Value| {
                spec.entry(field).or_insert(value);
            };
            default(spec, "restartPolicy", "Always".into());
            default(spec, "terminationGracePeriodSeconds", 30.into());
            default(spec, "dnsPolicy", "ClusterFirst".into());
            default(spec, "schedulerName", "default-scheduler".into());
            default(spec, "enableServiceLinks", true.into());
            default(spec, "securityContext", json!({}));
        }
    }
    if resource.is("namespaces") {
        object["spec"] = json!({"finalizers": ["kubernetes"]});
        object["status"] = json!({"phase": "Active"});
    }
}

/// The form in which objects are stored.
fn normalise(resource: &Resource, object: &mut Value) {
    if let Some(spec) = object
        .get_mut("spec")
        .filter(|s| s.is_object() && resource.is("nodes"))
    {
        same_pod_cidrs(spec);
        if let Some(fields) = spec.as_object_mut() {
            fields.retain(|_, value| value.as_array().is_none_or(|items| !items.is_empty()));
        }
    }
    tidy(object);
}

/// Fields in kube-apiserver's order, none that is empty in metadata.
fn tidy(object: &mut Value) {
    let order = [
        "name",
        "generateName",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "labels",
        "annotations",
        "ownerReferences",
        "finalizers",
        "managedFields",
    ];
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["labels", "annotations"] {
            let Some(map) = metadata.get_mut(field).and_then(Value::as_object_mut) else {
                continue;
            };
            map.values_mut()
                .filter(|v| v.is_null())
                .for_each(|v| *v = "".into());
            map.sort_keys();
        }
        let mut tidied = Map::new();
        for field in order {
            let Some(value) = metadata.shift_remove(field) else {
                continue;
            };
            let empty = match &value {
                Value::Null => true,
                Value::String(text) => text.is_empty(),
                Value::Object(map) => map.is_empty(),
                Value::Array(items) => items.is_empty(),
                _ => false,
            };
            if !empty {
                tidied.insert(field.into(), value);
            }
        }
        *metadata = tidied;
    }
    let Some(fields) = object.as_object_mut() else {
        return;
    };
    let mut tidied = Map::new();
    for field in ["kind", "apiVersion", "metadata", "spec", "status"] {
        if let Some(value) = fields.shift_remove(field) {
            tidied.insert(field.into(), value);
        }
    }
    tidied.append(fields);
    *fields = tidied;
}

/// `podCIDR` and the first of `podCIDRs` are the same thing; where they differ, or only one is there, the former wins.
fn same_pod_cidrs(spec: &mut Value) {
    let one = spec["podCIDR"]
        .as_str()
        .filter(|c| !c.is_empty())
        .map(str::to_owned);
    let first = spec["podCIDRs"][0].as_str().map(str::to_owned);
    match (one, first) {
        (Some(one), first) if first.as_ref() != Some(&one) => spec["podCIDRs"] = json!([one]),
        (None, Some(first)) => spec["podCIDR"] = first.into(),
        _ => {}
    }
}
