//! What a client asks before it asks for anything: versions, groups, resources, health.

use crate::request::{Body, Method, Request, Response};
use crate::resource::Resource;
use crate::status::{Failure, Result};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The version whose behaviour is followed.
const VERSION: (&str, &str) = ("1", "36");

pub(crate) fn answer(resources: &[Resource], request: &Request) -> Result<Response> {
    if request.method != Method::Get {
        return Err(Failure::method_not_allowed());
    }
    let parts: Vec<&str> = request.path.split('/').filter(|p| !p.is_empty()).collect();
    let body = match parts.as_slice() {
        ["healthz" | "livez" | "readyz", ..] => {
            return Ok(Response {
                status: 200,
                body: Body::Text("ok"),
            });
        }
        ["version"] => version(),
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
        ["apis"] => groups(resources),
        ["apis", group] => {
            let found = group_names(resources).contains(group);
            if !found {
                return Err(Failure::no_such_resource());
            }
            let mut entry = group_entry(resources, group);
            entry["kind"] = "APIGroup".into();
            entry["apiVersion"] = "v1".into();
            entry
        }
        ["api", version] => listing(resources, "", version)?,
        ["apis", group, version] => listing(resources, group, version)?,
        _ => return Err(Failure::no_such_resource()),
    };
    Ok(Response {
        status: 200,
        body: Body::Object(Arc::new(body)),
    })
}

fn version() -> Value {
    let (major, minor) = VERSION;
    json!({
        "major": major, "minor": minor, "gitVersion": format!("v{major}.{minor}.0-meshd.embedded"), "gitCommit": "",
        "gitTreeState": "", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "",
    })
}

fn group_names(resources: &[Resource]) -> BTreeSet<&str> {
    resources
        .iter()
        .map(|r| r.group.as_str())
        .filter(|g| !g.is_empty())
        .collect()
}

fn groups(resources: &[Resource]) -> Value {
    let groups: Vec<Value> = group_names(resources)
        .into_iter()
        .map(|g| group_entry(resources, g))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn group_entry(resources: &[Resource], group: &str) -> Value {
    let versions: BTreeSet<&str> = resources
        .iter()
        .filter(|r| r.group == group)
        .map(|r| r.version.as_str())
        .collect();
    let entry = |v: &&str| json!({"groupVersion": format!("{group}/{v}"), "version": v});
    let entries: Vec<Value> = versions.iter().map(entry).collect();
    json!({"name": group, "versions": entries, "preferredVersion": entries.last()})
}

fn listing(resources: &[Resource], group: &str, version: &str) -> Result<Value> {
    let of_group: Vec<&Resource> = resources
        .iter()
        .filter(|r| r.group == group && r.version == version)
        .collect();
    let Some(first) = of_group.first() else {
        return Err(Failure::no_such_resource());
    };
    let group_version = first.api_version();
    let mut entries = Vec::new();
    for resource in of_group {
        entries.push(json!({
            "name": resource.plural, "singularName": resource.kind.to_lowercase(), "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
            "shortNames": short_names(&resource.plural),
        }));
        if resource.status {
            entries.push(json!({
                "name": format!("{}/status", resource.plural), "singularName": "", "namespaced": resource.namespaced,
                "kind": resource.kind, "verbs": ["get", "patch", "update"],
            }));
        }
    }
    Ok(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": entries}),
    )
}

fn short_names(plural: &str) -> &'static [&'static str] {
    match plural {
        "nodes" => &["no"],
        "namespaces" => &["ns"],
        "pods" => &["po"],
        "configmaps" => &["cm"],
        "services" => &["svc"],
        "serviceaccounts" => &["sa"],
        "daemonsets" => &["ds"],
        "deployments" => &["deploy"],
        "networkpolicies" => &["netpol"],
        _ => &[],
    }
}
