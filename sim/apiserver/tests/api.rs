//! The server by its requests: the order in which watchers see things, conflicts, pages, expiry.

use meshd_apiserver::{
    ApiServer, Body, Config, EventType, NodeCidrs, NodeIpam, Reply, Request, Response, Time, WatchFrame,
    WatchId,
};
use serde_json::{Value, json};

const NODES: &str = "/api/v1/nodes";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn server() -> ApiServer {
    ApiServer::new(Config::default(), Time(0))
}

fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
}

fn pod(name: &str, node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
           "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}})
}

fn send(server: &mut ApiServer, request: Request) -> Response {
    server.handle(Time(0), request).response()
}

#[track_caller]
fn ok(server: &mut ApiServer, request: Request) -> Value {
    let response = send(server, request);
    assert!(response.is_success(), "{}", response.body.to_value());
    response.body.to_value()
}

#[track_caller]
fn refused(server: &mut ApiServer, request: Request, status: u16, reason: &str) -> Value {
    let response = send(server, request);
    let body = response.body.to_value();
    assert_eq!(
        (response.status, body["reason"].as_str().unwrap_or("")),
        (status, reason),
        "{body}"
    );
    assert_eq!(body["kind"], "Status");
    body
}

fn watch(server: &mut ApiServer, request: Request) -> WatchId {
    match server.handle(Time(0), request) {
        Reply::Watch(id) => id,
        Reply::Now(response) => panic!("{}", response.body.to_value()),
    }
}

/// What waits for a watch: type and name, or resource version of a bookmark, or code of an error.
fn frames(server: &mut ApiServer, id: WatchId) -> Vec<String> {
    let mut seen = Vec::new();
    while let Some(frame) = server.poll_frame(id) {
        seen.push(match frame {
            WatchFrame::End => "END".into(),
            WatchFrame::Event { kind, object } => match kind {
                EventType::Bookmark => format!("BOOKMARK {}", object["metadata"]["resourceVersion"]),
                EventType::Error => format!("ERROR {}", object["code"]),
                _ => format!(
                    "{} {}",
                    kind.as_str(),
                    object["metadata"]["name"].as_str().unwrap()
                ),
            },
        });
    }
    seen
}

#[test]
fn a_watch_sees_each_change_once_and_in_order() {
    let mut server = server();
    ok(&mut server, Request::create(NODES, &node("a")));
    let list = send(&mut server, Request::get(NODES));
    let version = list.body.resource_version().unwrap().to_owned();
    ok(&mut server, Request::create(NODES, &node("b")));
    let id = watch(&mut server, Request::watch(NODES, &version));
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    ok(&mut server, Request::merge_patch(format!("{NODES}/a"), &label));
    ok(&mut server, Request::merge_patch(format!("{NODES}/a"), &label));
    ok(&mut server, Request::delete(format!("{NODES}/b")));
    assert_eq!(frames(&mut server, id), ["ADDED b", "MODIFIED a", "DELETED b"]);
}

#[test]
fn a_watch_without_a_version_begins_with_what_is_there() {
    let mut server = server();
    ok(&mut server, Request::create(NODES, &node("a")));
    let revision = server.revision();
    for version in ["", "0"] {
        let id = watch(&mut server, Request::watch(NODES, version).partial());
        let bookmark = format!("BOOKMARK \"{revision}\"");
        assert_eq!(frames(&mut server, id), ["ADDED a".to_owned(), bookmark]);
    }
}

#[test]
fn leaving_a_selector_looks_like_deletion() {
    let mut server = server();
    let request = Request::watch(NODES, "").with("labelSelector", "x=y").partial();
    let id = watch(&mut server, request);
    frames(&mut server, id);
    ok(&mut server, Request::create(NODES, &node("a")));
    for value in [json!("y"), Value::Null] {
        let patch = json!({"metadata": {"labels": {"x": value}}});
        ok(&mut server, Request::merge_patch(format!("{NODES}/a"), &patch));
    }
    let revision = server.revision().to_string();
    let seen: Vec<WatchFrame> = std::iter::from_fn(|| server.poll_frame(id)).collect();
    let [
        WatchFrame::Event { kind: first, .. },
        WatchFrame::Event { kind: second, object },
    ] = seen.as_slice()
    else {
        panic!("{seen:?}");
    };
    assert_eq!((*first, *second), (EventType::Added, EventType::Deleted));
    assert_eq!(
        object["metadata"]["resourceVersion"], revision,
        "DELETED has the version of the change"
    );
    assert_eq!(object["metadata"]["labels"]["x"], "y", "and the object as it was");
}

#[test]
fn a_watch_from_before_the_history_is_told_410() {
    let mut server = server();
    let version = server.revision().to_string();
    ok(&mut server, Request::create(NODES, &node("a")));
    server.compact();
    let id = watch(&mut server, Request::watch(NODES, &version));
    assert_eq!(frames(&mut server, id), ["ERROR 410", "END"]);
    let current = server.revision().to_string();
    let id = watch(&mut server, Request::watch(NODES, &current));
    assert!(frames(&mut server, id).is_empty());
}

#[test]
fn the_history_is_bounded() {
    let config = Config {
        history: 4,
        ..Config::default()
    };
    let mut server = ApiServer::new(config, Time(0));
    let version = server.revision().to_string();
    (0..4).for_each(|i| drop(ok(&mut server, Request::create(NODES, &node(&format!("n{i}"))))));
    let id = watch(&mut server, Request::watch(NODES, &version));
    assert_eq!(frames(&mut server, id).len(), 4);
    ok(&mut server, Request::create(NODES, &node("n4")));
    let id = watch(&mut server, Request::watch(NODES, &version));
    assert_eq!(frames(&mut server, id), ["ERROR 410", "END"]);
}

#[test]
fn a_watch_that_falls_too_far_behind_is_ended_after_what_it_was_given() {
    let config = Config {
        watch_queue: 3,
        ..Config::default()
    };
    let mut server = ApiServer::new(config, Time(0));
    (0..5).for_each(|i| drop(ok(&mut server, Request::create(NODES, &node(&format!("a{i}"))))));
    let id = watch(&mut server, Request::watch(NODES, ""));
    (0..9).for_each(|i| drop(ok(&mut server, Request::create(NODES, &node(&format!("b{i}"))))));
    let seen = frames(&mut server, id);
    assert_eq!(
        seen.iter().filter(|f| f.starts_with("ADDED a")).count(),
        5,
        "{seen:?}"
    );
    assert_eq!(seen.last().unwrap(), "END");
    assert!(seen.len() <= 5 + 3 + 2, "{seen:?}");
    assert_eq!(server.watch_count(), 0);
}

#[test]
fn bookmarks_and_the_end_come_in_their_time() {
    let mut server = server();
    let request = Request::watch(NODES, "1").with("timeoutSeconds", "90");
    let id = watch(&mut server, request);
    frames(&mut server, id);
    let minute = Time(60_000_000_000);
    assert_eq!(server.poll_timeout(), Some(minute));
    server.handle_timeout(minute);
    let bookmark = format!("BOOKMARK \"{}\"", server.revision());
    assert_eq!(frames(&mut server, id), [bookmark]);
    assert_eq!(server.poll_timeout(), Some(Time(90_000_000_000)));
    server.handle_timeout(Time(90_000_000_000));
    assert_eq!(frames(&mut server, id), ["END"]);
    assert_eq!(server.poll_timeout(), None);
}

#[test]
fn pages_show_one_moment() {
    let mut server = server();
    ["a", "b", "c"]
        .iter()
        .for_each(|n| drop(ok(&mut server, Request::create(NODES, &node(n)))));
    let page = |server: &mut ApiServer, token: &str| {
        let request = Request::get(NODES)
            .with("limit", "2")
            .with("continue", token)
            .partial();
        ok(server, request)
    };
    let first = page(&mut server, "");
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    assert_eq!(first["metadata"]["remainingItemCount"], 1);
    ok(&mut server, Request::delete(format!("{NODES}/c")));
    ok(&mut server, Request::create(NODES, &node("d")));
    let second = page(&mut server, &token);
    assert_eq!(second["items"][0]["metadata"]["name"], "c");
    assert_eq!(second["items"].as_array().unwrap().len(), 1);
    assert_eq!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    server.compact();
    let request = Request::get(NODES).with("limit", "2").with("continue", &token);
    refused(&mut server, request, 410, "Expired");
}

#[test]
fn writes_from_old_versions_and_to_other_incarnations_are_conflicts() {
    let mut server = server();
    let old = ok(&mut server, Request::create(NODES, &node("a")));
    let path = format!("{NODES}/a");
    ok(
        &mut server,
        Request::merge_patch(path.as_str(), &json!({"metadata": {"labels": {"x": "y"}}})),
    );
    refused(&mut server, Request::update(path.as_str(), &old), 409, "Conflict");
    refused(
        &mut server,
        Request::create(NODES, &node("a")),
        409,
        "AlreadyExists",
    );

    let apply = |uid: &Value| {
        let body = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a", "uid": uid, "annotations": {"k": "v"}}});
        Request::apply(path.as_str(), &body, "meshd", true)
    };
    ok(&mut server, apply(&old["metadata"]["uid"]));
    ok(&mut server, Request::delete(path.as_str()));
    refused(&mut server, apply(&old["metadata"]["uid"]), 409, "Conflict");
    ok(&mut server, Request::create(NODES, &node("a")));
    refused(&mut server, apply(&old["metadata"]["uid"]), 422, "Invalid");
}

#[test]
fn what_is_not_there_or_not_allowed_is_refused_as_kubernetes_does() {
    let mut server = server();
    let no_body = Request::new(meshd_apiserver::Method::Put, NODES);
    refused(&mut server, Request::get(format!("{NODES}/a")), 404, "NotFound");
    refused(&mut server, Request::get("/api/v1/widgets"), 404, "NotFound");
    refused(&mut server, no_body, 405, "MethodNotAllowed");
    refused(
        &mut server,
        Request::create("/api/v1/namespaces/none/pods", &pod("p", "")),
        404,
        "NotFound",
    );
    refused(&mut server, Request::create(NODES, &node("N_1")), 422, "Invalid");
    refused(
        &mut server,
        Request::create(NODES, &pod("p", "")),
        400,
        "BadRequest",
    );
    refused(&mut server, Request::create(PODS, &node("p")), 400, "BadRequest");
    let bad = json!({"metadata": {"name": "a", "annotations": {"k": 1}}});
    refused(&mut server, Request::create(NODES, &bad), 400, "BadRequest");
    refused(
        &mut server,
        Request::get(NODES).with("fieldSelector", "spec.x=1"),
        400,
        "BadRequest",
    );
    refused(
        &mut server,
        Request::get(NODES).with("resourceVersion", "99"),
        504,
        "Timeout",
    );
    let mut huge = Request::create(NODES, &node("a"));
    huge.body = vec![b' '; (3 << 20) + 1];
    refused(&mut server, huge, 413, "RequestEntityTooLarge");
    let long = json!({"metadata": {"name": "a", "annotations": {"k": "x".repeat(300_000)}}});
    refused(&mut server, Request::create(NODES, &long), 422, "Invalid");
}

#[test]
fn status_and_object_are_written_apart() {
    let mut server = server();
    ok(&mut server, Request::create(NODES, &node("a")));
    let patch = json!({"metadata": {"annotations": {"via": "x"}}, "spec": {"unschedulable": true}, "status": {"phase": "p"}});
    let by_status = ok(
        &mut server,
        Request::merge_patch(format!("{NODES}/a/status"), &patch),
    );
    assert_eq!(
        (&by_status["spec"]["unschedulable"], &by_status["status"]["phase"]),
        (&Value::Null, &json!("p"))
    );
    assert_eq!(
        by_status["metadata"]["annotations"]["via"], "x",
        "annotations are open to both"
    );
    let patch = json!({"spec": {"unschedulable": true}, "status": {"phase": "q"}});
    let by_main = ok(&mut server, Request::merge_patch(format!("{NODES}/a"), &patch));
    assert_eq!(
        (&by_main["spec"]["unschedulable"], &by_main["status"]["phase"]),
        (&json!(true), &json!("p"))
    );
}

#[test]
fn a_pod_that_runs_is_deleted_in_two_steps() {
    let mut server = server();
    ok(&mut server, Request::create(PODS, &pod("p", "n1")));
    let id = watch(
        &mut server,
        Request::watch("/api/v1/pods", "").with("fieldSelector", "spec.nodeName=n1"),
    );
    frames(&mut server, id);
    let gracefully = Request::new(meshd_apiserver::Method::Delete, format!("{PODS}/p"));
    let marked = ok(&mut server, gracefully);
    assert_eq!(marked["metadata"]["deletionTimestamp"], "1970-01-01T00:00:30Z");
    ok(&mut server, Request::delete(format!("{PODS}/p")));
    assert_eq!(frames(&mut server, id), ["MODIFIED p", "MODIFIED p", "DELETED p"]);
}

#[test]
fn new_nodes_are_given_pod_cidrs_in_a_change_of_their_own() {
    let cidrs = |network: &str, prefix, node_prefix| NodeCidrs {
        network: network.parse().unwrap(),
        prefix,
        node_prefix,
    };
    let config = Config {
        node_ipam: Some(NodeIpam {
            cluster_cidrs: vec![cidrs("10.244.0.0", 16, 24), cidrs("fd00:244::", 48, 64)],
        }),
        ..Config::default()
    };
    let mut server = ApiServer::new(config, Time(0));
    let id = watch(&mut server, Request::watch(NODES, ""));
    frames(&mut server, id);
    let mut own = node("own");
    own["spec"] = json!({"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]});
    ok(&mut server, Request::create(NODES, &own));
    ok(&mut server, Request::create(NODES, &node("a")));
    assert_eq!(frames(&mut server, id), ["ADDED own", "ADDED a", "MODIFIED a"]);
    let a = ok(&mut server, Request::get(format!("{NODES}/a")));
    assert_eq!(a["spec"]["podCIDRs"], json!(["10.244.1.0/24", "fd00:244::/64"]));
    let change = json!({"spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.9.0.0/24"]}});
    refused(
        &mut server,
        Request::merge_patch(format!("{NODES}/a"), &change),
        422,
        "Invalid",
    );
}

#[test]
fn manifests_are_taken_in_as_users_write_them() {
    let mut server = server();
    let text = "
# two nodes and a pod
apiVersion: v1
kind: Node
metadata:
  name: n1
  annotations: {note: \"true\"}
status:
  addresses: [{type: InternalIP, address: 192.168.0.1}]
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: n2}}
- apiVersion: v1
  kind: Pod
  metadata: {name: web}
  spec:
    nodeName: n1
    containers: [{name: c, image: web}]
---
";
    assert_eq!(server.load_yaml(Time(0), text), Ok(3));
    assert_eq!(
        server.load_yaml(Time(0), text),
        Ok(3),
        "again: nothing is there twice"
    );
    let n1 = ok(&mut server, Request::get(format!("{NODES}/n1")));
    assert_eq!(n1["status"]["addresses"][0]["address"], "192.168.0.1");
    let pod = ok(&mut server, Request::get(format!("{PODS}/web")));
    assert_eq!(pod["status"]["phase"], "Pending");

    for (text, says) in [
        (
            "kind: Widget\napiVersion: x/v1\nmetadata: {name: a}",
            "register it",
        ),
        ("a: [", "is not YAML"),
        (
            "---\napiVersion: v1\nkind: Node\nmetadata: {name: A_B}",
            "is invalid",
        ),
    ] {
        let error = server.load_yaml(Time(0), text).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn the_same_requests_give_the_same_bytes() {
    let run = |seed| {
        let mut server = ApiServer::new(
            Config {
                seed,
                ..Config::default()
            },
            Time(0),
        );
        ok(&mut server, Request::create(NODES, &node("a")));
        ok(
            &mut server,
            Request::create(NODES, &json!({"metadata": {"generateName": "gen-"}})),
        );
        send(&mut server, Request::get(NODES)).body.to_bytes()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn hostile_bodies_are_answered() {
    let mut server = server();
    ok(&mut server, Request::create(NODES, &node("a")));
    for patch in [
        json!(null),
        json!([]),
        json!("x"),
        json!({"metadata": null}),
        json!({"metadata": []}),
        json!({"metadata": {"labels": 1, "annotations": []}}),
        json!({"spec": 1, "status": "x"}),
        json!({"metadata": {"managedFields": "x", "finalizers": 1}}),
        json!({"spec": {"podCIDRs": 1, "taints": {"$patch": "delete"}}}),
    ] {
        for media in [
            "merge-patch+json",
            "json-patch+json",
            "strategic-merge-patch+json",
            "apply-patch+yaml",
        ] {
            for path in [format!("{NODES}/a"), format!("{NODES}/a/status")] {
                let mut request = Request::new(meshd_apiserver::Method::Patch, path).json(&patch);
                request.content_type = format!("application/{media}");
                send(&mut server, request.with("fieldManager", "m"));
            }
        }
        send(&mut server, Request::create(NODES, &patch));
    }
    let Body::List { items, .. } = send(&mut server, Request::get(NODES)).body else {
        panic!("not a list");
    };
    assert!(!items.is_empty());
}
