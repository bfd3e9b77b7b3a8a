//! The same requests to both servers, their answers compared.

use crate::server::Server;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// What is compared of an answer.
#[derive(Clone, Copy, PartialEq)]
enum Compare {
    /// All of it.
    All,
    /// Status and reason: the message quotes a decoder's.
    Reason,
}

struct Step {
    method: &'static str,
    path: String,
    media: &'static str,
    partial: bool,
    body: Value,
    compare: Compare,
}

/// One request of the script. `PRE` in it stands for the trial's prefix, `FIRST` for the resource version of the first
/// object that was made.
fn step(method: &'static str, path: impl Into<String>, media: &'static str, body: Value) -> Step {
    Step {
        method,
        path: path.into(),
        media,
        partial: false,
        body,
        compare: Compare::All,
    }
}

fn get(path: impl Into<String>) -> Step {
    step("GET", path, "", Value::Null)
}

impl Step {
    fn partial(mut self) -> Self {
        self.partial = true;
        self
    }

    fn reason(mut self) -> Self {
        self.compare = Compare::Reason;
        self
    }
}

fn script() -> Vec<Step> {
    let nodes = "/api/v1/nodes";
    let node = format!("{nodes}/PRE-a");
    let pods = "/api/v1/namespaces/default/pods";
    let selected = format!("{nodes}?labelSelector=trial%3DPRE");
    let named = |name: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"trial": "PRE"}}});
    let with = |extra: Value| {
        let mut object = named("PRE-a");
        merge(&mut object, extra);
        object
    };
    let annotated = |annotations: Value| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "PRE-a", "annotations": annotations}});
    let labelled = |labels: Value| json!({"metadata": {"labels": labels}});
    let uid = "7a1ad1c5-0000-4000-8000-000000000000";
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "PRE-p", "labels": {"trial": "PRE"}},
                     "spec": {"nodeName": "PRE-a", "containers": [{"name": "c", "image": "i"}]}});
    vec![
        // Create, and what is no object.
        step("POST", nodes, JSON, with(json!({"spec": {"podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24"]}, "metadata": {"annotations": {"x": "y"}}}))),
        step("POST", nodes, JSON, named("PRE-a")),
        step("POST", nodes, JSON, named("N_1")),
        step("POST", nodes, JSON, json!({"apiVersion": "v1", "kind": "Node"})),
        step("POST", nodes, JSON, json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "PRE-rv", "resourceVersion": "1"}})),
        step("POST", nodes, JSON, json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "PRE-bad", "annotations": {"a": 1}}})).reason(),
        step("POST", nodes, JSON, pod.clone()).reason(),
        step("POST", nodes, JSON, json!([])).reason(),
        step("POST", &*node, JSON, json!({})),
        step("PUT", nodes, JSON, json!({})),
        step("POST", "/api/v1/namespaces/PRE-none/pods", JSON, pod.clone()),
        step("POST", pods, JSON, json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "PRE-q"}, "spec": {}})),
        step("POST", pods, JSON, json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "PRE-q", "namespace": "other"}, "spec": {"containers": [{"name": "c", "image": "i"}]}})),
        // Get.
        get(&*node),
        get(&*node).partial(),
        get(format!("{node}/status")),
        get(format!("{node}/nothing")),
        get(format!("{nodes}/PRE-none")),
        get("/api/v1/widgets"),
        get("/api/v1/namespaces/default/nodes"),
        get("/api"),
        // List.
        get(&*selected),
        get(&*selected).partial(),
        get(format!("{nodes}?fieldSelector=metadata.name%3DPRE-a")).partial(),
        get(format!("{nodes}?fieldSelector=foo%3Da")),
        get(format!("{nodes}?labelSelector=a%3D%3D%3Db")).reason(),
        get(format!("{nodes}?limit=abc")),
        get(format!("{nodes}?resourceVersion=99999999")).reason(),
        get(format!("{nodes}?resourceVersionMatch=Exact")),
        get(format!("{nodes}?resourceVersion=0&resourceVersionMatch=Exact")),
        get(format!("{nodes}?resourceVersion=1&resourceVersionMatch=Nonsense")).reason(),
        get(format!("{nodes}?limit=2&continue=abc")).reason(),
        // Server-side apply.
        step("PATCH", format!("{node}?fieldManager=meshd&force=true"), APPLY, annotated(json!({"m/a": "1", "m/b": "2"}))),
        step("PATCH", format!("{node}?fieldManager=meshd&force=true"), APPLY, annotated(json!({"m/a": "1", "m/b": "2"}))),
        step("PATCH", format!("{node}?fieldManager=other"), APPLY, annotated(json!({"m/a": "9", "m/b": "9", "x": "z"}))),
        step("PATCH", format!("{node}?fieldManager=other"), APPLY, annotated(json!({"m/a": "9"}))),
        step("PATCH", format!("{node}?fieldManager=other"), APPLY, annotated(json!({"m/a": "1"}))),
        step("PATCH", format!("{node}?fieldManager=other"), APPLY, named("PRE-a")),
        step("PATCH", format!("{node}?fieldManager=meshd"), APPLY, annotated(json!({"m/a": "1"}))),
        step("PATCH", format!("{node}?fieldManager=other&force=true"), APPLY, annotated(json!({"m/a": "8"}))),
        step("PATCH", format!("{node}?fieldManager=meshd&force=true"), APPLY, annotated(json!({"m/a": "1"}))),
        step("PATCH", &*node, APPLY, annotated(json!({}))),
        step("PATCH", format!("{node}?fieldManager=m"), APPLY, json!({"metadata": {"name": "PRE-a"}})).reason(),
        step("PATCH", format!("{node}?fieldManager=m"), APPLY, with(json!({"metadata": {"uid": uid}}))),
        step("PATCH", format!("{nodes}/PRE-none?fieldManager=m"), APPLY, json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "PRE-none", "uid": uid}})),
        step("PATCH", format!("{nodes}/PRE-b?fieldManager=m"), APPLY, named("PRE-b")),
        step("PATCH", format!("{nodes}/PRE-b?fieldManager=m"), APPLY, named("PRE-c")).reason(),
        step("PATCH", format!("{node}?fieldManager=m"), APPLY, with(json!({"metadata": {"managedFields": [{"manager": "x"}]}}))),
        // Merge, JSON and strategic merge patches.
        step("PATCH", &*node, MERGE, json!({"metadata": {"annotations": {"m/a": "7", "new": "1"}, "labels": {"l": "1"}}})),
        step("PATCH", &*node, MERGE, json!({"metadata": {"annotations": {"new": null}, "labels": {"l": null}}})),
        step("PATCH", &*node, MERGE, json!({"metadata": {"uid": uid}})),
        step("PATCH", &*node, MERGE, json!({"metadata": {"resourceVersion": "1", "labels": {"q": "r"}}})),
        step("PATCH", &*node, MERGE, json!({"metadata": {"name": "PRE-z"}})),
        step("PATCH", &*node, MERGE, json!({"spec": {"podCIDRs": ["10.9.0.0/24"]}})),
        step("PATCH", &*node, MERGE, json!({"spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.9.0.0/24"]}})),
        step("PATCH", &*node, MERGE, labelled(json!({"a b": "c"}))),
        step("PATCH", &*node, MERGE, labelled(json!({"a": "b c"}))),
        step("PATCH", &*node, MERGE, json!({"metadata": {"annotations": {"a b": "c"}}})),
        step("PATCH", &*node, MERGE, json!({"metadata": {"annotations": {"a": "x".repeat(300_000)}}})),
        step("PATCH", &*node, JSON, json!({})),
        step("PATCH", &*node, JSON_PATCH, json!([{"op": "test", "path": "/metadata/name", "value": "x"}])),
        step("PATCH", &*node, JSON_PATCH, json!([{"op": "add", "path": "/metadata/annotations/j", "value": "1"}])),
        step("PATCH", &*node, JSON_PATCH, json!({"op": "x"})).reason(),
        step("PATCH", &*node, STRATEGIC, json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}})),
        step("PATCH", &*node, STRATEGIC, json!({"spec": {"taints": []}})),
        step("PATCH", format!("{node}/status"), STRATEGIC, json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}})),
        step("PATCH", format!("{node}/status"), STRATEGIC, json!({"status": {"addresses": [{"type": "Hostname", "address": "h"}]}, "spec": {"unschedulable": true}})),
        step("PATCH", &*node, STRATEGIC, json!({"status": {"addresses": [{"type": "Hostname", "address": "ignored"}]}})),
        step("PATCH", format!("{nodes}/PRE-none"), MERGE, json!({})),
        // Update.
        step("PUT", &*node, JSON, with(json!({"metadata": {"resourceVersion": "1"}}))),
        step("PUT", &*node, JSON, with(json!({"metadata": {"uid": uid}}))).reason(),
        step("PUT", &*node, JSON, named("PRE-z")),
        step("PUT", format!("{nodes}/PRE-none"), JSON, named("PRE-none")),
        step("PUT", format!("{nodes}/PRE-b"), JSON, json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "PRE-b", "labels": {"trial": "PRE", "put": "1"}}})),
        // Pods, and how they go.
        step("POST", pods, JSON, pod.clone()),
        get("/api/v1/pods?fieldSelector=spec.nodeName%3DPRE-a").partial(),
        get(format!("{pods}?fieldSelector=spec.nodeName%3DPRE-other")).partial(),
        step("PATCH", format!("{pods}/PRE-p"), MERGE, json!({"spec": {"nodeName": "PRE-b"}})).reason(),
        step("PATCH", format!("{pods}/PRE-p/status"), MERGE, json!({"status": {"phase": "Running"}})),
        step("DELETE", format!("{pods}/PRE-p"), "", Value::Null),
        step("DELETE", format!("{pods}/PRE-p?gracePeriodSeconds=0"), "", Value::Null),
        get(format!("{pods}/PRE-p")),
        step("POST", pods, JSON, pod.clone()),
        step("DELETE", format!("{pods}/PRE-p?gracePeriodSeconds=0"), "", Value::Null),
        get("/api/v1/pods?labelSelector=trial%3DPRE&watch=true&timeoutSeconds=2&resourceVersion=FIRST".to_owned()).partial(),
        // Delete.
        step("DELETE", format!("{nodes}/PRE-b"), JSON, json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}})),
        step("DELETE", format!("{nodes}/PRE-b"), "", Value::Null),
        step("DELETE", format!("{nodes}/PRE-b"), "", Value::Null),
        // Watches from a version, which end after a second.
        get(format!("{nodes}?watch=true&timeoutSeconds=2&fieldSelector=foo%3Da")),
        get(format!("{nodes}?watch=true&timeoutSeconds=2&resourceVersion=abc")),
        get(format!("{nodes}?watch=true&timeoutSeconds=2&sendInitialEvents=true")),
        get(format!("{nodes}?watch=true&timeoutSeconds=2&resourceVersionMatch=NotOlderThan")),
        get(format!("{selected}&watch=true&timeoutSeconds=2")).partial(),
        get(format!("{selected}&watch=true&timeoutSeconds=2&resourceVersion=0")).partial(),
        get(format!("{selected}&watch=true&timeoutSeconds=2&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan")).partial(),
        get(format!("{selected}&watch=true&timeoutSeconds=2&resourceVersion=FIRST")).partial(),
        get(format!("{nodes}?watch=true&timeoutSeconds=2&resourceVersion=FIRST&labelSelector=l")).partial(),
        get(format!("{selected}&watch=true&timeoutSeconds=2&resourceVersion=99999999")).partial(),
    ]
}

/// Runs the script; one text an answer, without what differs from run to run.
pub(crate) async fn answers(server: &Server) -> Vec<String> {
    let mut answers = Vec::new();
    let mut first = String::new();
    for step in script() {
        let prefix = server.prefix();
        let fill = |text: &str| text.replace("PRE", prefix).replace("FIRST", &first);
        let path = fill(&step.path);
        let body: Value = serde_json::from_str(&fill(&step.body.to_string())).unwrap();
        let (status, text) = server
            .raw(step.method, &path, step.media, step.partial, &body)
            .await;
        if first.is_empty() {
            let made: Value = serde_json::from_str(&text).unwrap();
            first = made["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
        }
        let mut answer = format!("{} {} {} -> {status}", step.method, step.path, short(&step.body));
        for line in text.lines().flat_map(|l| documents(l, &text)) {
            let mut value: Value = serde_json::from_str(line).unwrap_or_else(|_| json!(line));
            if step.compare == Compare::Reason {
                value = json!({"reason": value["reason"]});
            }
            normalise(&mut value);
            let _ = write!(answer, "\n  {}", value.to_string().replace(prefix, "PRE"));
        }
        answers.push(answer);
    }
    answers
}

/// A watch answers a document a line; everything else is one document on lines of its own.
fn documents<'a>(line: &'a str, whole: &'a str) -> Option<&'a str> {
    if whole.starts_with("{\"type\"") {
        return Some(line);
    }
    (line.as_ptr() == whole.as_ptr()).then_some(whole)
}

fn short(body: &Value) -> String {
    body.to_string().chars().take(160).collect()
}

fn merge(onto: &mut Value, from: Value) {
    match (onto, from) {
        (Value::Object(onto), Value::Object(from)) => {
            for (key, value) in from {
                merge(onto.entry(key).or_insert(Value::Null), value);
            }
        }
        (onto, from) => *onto = from,
    }
}

/// Takes out what no two servers have in common: identities, times, and defaults that nothing of ours reads.
fn normalise(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.contains_key("items") {
                fields
                    .get_mut("metadata")
                    .and_then(Value::as_object_mut)
                    .map(|m| m.remove("remainingItemCount"));
            }
            for (field, value) in fields.iter_mut() {
                match field.as_str() {
                    "uid" | "resourceVersion" | "creationTimestamp" | "deletionTimestamp" | "time" => {
                        *value = json!(field.to_uppercase());
                    }
                    "causes" => dedupe(value),
                    "fieldsV1" => fold_lists(value),
                    _ => normalise(value),
                }
            }
            fields.retain(|field, value| !is_default(field, value));
            fields.sort_keys();
        }
        Value::Array(items) => items.iter_mut().for_each(normalise),
        Value::String(text) => *text = without_uids(text),
        _ => {}
    }
}

fn is_default(field: &str, value: &Value) -> bool {
    let of_pods = [
        "containers",
        "tolerations",
        "priority",
        "preemptionPolicy",
        "enableServiceLinks",
        "qosClass",
        "serverAddressByClientCIDRs",
    ];
    let of_nodes = ["nodeInfo", "daemonEndpoints"];
    let taint = json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]);
    let empty = matches!(field, "spec" | "status" | "taints") && (*value == json!({}) || *value == json!([]));
    of_pods.contains(&field) || of_nodes.contains(&field) || (field == "taints" && *value == taint) || empty
}

/// kube-apiserver validates twice and says so, in no order.
fn dedupe(causes: &mut Value) {
    let mut seen = Vec::new();
    for cause in causes.as_array().into_iter().flatten() {
        let mut cause = cause.clone();
        normalise(&mut cause);
        if !seen.contains(&cause) {
            seen.push(cause);
        }
    }
    seen.sort_by_key(Value::to_string);
    *causes = Value::Array(seen);
}

/// Lists count as owned whole.
fn fold_lists(value: &mut Value) {
    let Some(fields) = value.as_object_mut() else {
        return;
    };
    if fields.keys().any(|k| k.starts_with("v:") || k.starts_with("k:")) {
        *fields = Map::new();
        return;
    }
    fields.values_mut().for_each(fold_lists);
    fields.sort_keys();
}

fn without_uids(text: &str) -> String {
    let is_uid = |word: &str| {
        word.len() == 36
            && word.split('-').map(str::len).eq([8, 4, 4, 4, 12])
            && !word.contains(|c: char| !c.is_ascii_hexdigit() && c != '-')
    };
    let boundary = |c: char| !c.is_ascii_alphanumeric() && c != '-';
    let mut out = text.to_owned();
    for word in text.split(boundary).filter(|w| is_uid(w)) {
        out = out.replace(word, "UID");
    }
    out
}
