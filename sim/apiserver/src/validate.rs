//! What an object must be like, and what of it may not change.

use crate::object::meta;
use crate::resource::Resource;
use crate::status::{Cause, Failure, Result};
use crate::text::{is_label_value, is_qualified_name, is_subdomain};
use serde_json::Value;

/// Longest sum of annotation keys and values (kube-apiserver's `TotalAnnotationSizeLimitB`).
const ANNOTATIONS_MAX: usize = 256 << 10;
/// What kube-apiserver says of names that are none.
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
    and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED_NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and \
    end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
    '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex \
    used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
/// The refusal of an object, for these causes.
pub(crate) fn invalid(resource: &Resource, object: &Value, causes: &[Cause]) -> Failure {
    let name = meta(object, "name").unwrap_or_default();
    let kind = if resource.group.is_empty() {
        resource.kind.clone()
    } else {
        format!("{}.{}", resource.kind, resource.group)
    };
    Failure::invalid(&kind, name, causes)
}

pub(crate) fn validate(resource: &Resource, object: &Value) -> Result<()> {
    let mut causes = Vec::new();
    match meta(object, "name") {
        None => causes.push(Cause::required(
            "metadata.name",
            "name or generateName is required",
        )),
        Some(name) if !is_subdomain(name) && !resource.group.starts_with("rbac.") => {
            causes.push(Cause::invalid("metadata.name", &name.into(), SUBDOMAIN));
        }
        Some(_) => {}
    }
    let map = |field: &str| object["metadata"][field].as_object().into_iter().flatten();
    for field in ["labels", "annotations"] {
        for (key, _) in map(field).filter(|(k, _)| !is_qualified_name(k)) {
            causes.push(Cause::invalid(
                &format!("metadata.{field}"),
                &key.as_str().into(),
                QUALIFIED_NAME,
            ));
        }
    }
    for (_, value) in map("labels").filter(|(_, v)| !v.as_str().is_some_and(is_label_value)) {
        causes.push(Cause::invalid("metadata.labels", value, LABEL_VALUE));
    }
    let size = |(k, v): (&String, &Value)| k.len() + v.as_str().map_or(0, str::len);
    if map("annotations").map(size).sum::<usize>() > ANNOTATIONS_MAX {
        causes.push(Cause::too_long("metadata.annotations", ANNOTATIONS_MAX));
    }
    if resource.is("pods") && object["spec"]["containers"].as_array().is_none_or(Vec::is_empty) {
        causes.push(Cause::required("spec.containers", ""));
    }
    if causes.is_empty() {
        Ok(())
    } else {
        Err(invalid(resource, object, &causes))
    }
}

/// Fields that may be set once, or never after creation.
pub(crate) fn validate_update(resource: &Resource, old: &Value, new: &Value) -> Result<()> {
    let changed = |field: &str| old["spec"].get(field) != new["spec"].get(field);
    if resource.is("nodes")
        && changed("podCIDRs")
        && old["spec"]["podCIDRs"].as_array().is_some_and(|c| !c.is_empty())
    {
        let why = "node updates may not change podCIDR except from \"\" to valid";
        return Err(invalid(resource, new, &[Cause::forbidden("spec.podCIDRs", why)]));
    }
    if resource.is("pods") && (changed("nodeName") || changed("hostNetwork")) {
        let why = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
        return Err(invalid(resource, new, &[Cause::forbidden("spec", why)]));
    }
    Ok(())
}
