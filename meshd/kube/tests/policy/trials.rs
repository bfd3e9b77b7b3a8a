//! Each trial says who tries what, and whether the API server lets them.

use crate::chart::{self, NAMESPACE};
use crate::cluster::{Cluster, NODES, annotate, ask, merge, path_of};
use kube::Client;
use meshd_core::{ActionId, KubeAction, KubeEvent, Resource};
use meshd_kube::removal::{clear_annotations, has_daemon_set, pods_on, progress, unready_nodes};
use meshd_model::{NodeAnnotations, NodeUid, PublicKey};
use meshd_translate::annotations::{LISTEN_PORT, MTU, NODE_ADDRESSES, POD_CIDRS, PUBLIC_KEY};
use meshd_translate::{encode, publish_body};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::mpsc;

const APPLY: &str = "application/apply-patch+yaml";
const JSON_PATCH: &str = "application/json-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// What the Node of [`Cluster::node`] may claim.
fn published() -> NodeAnnotations {
    NodeAnnotations {
        public_key: PublicKey([7; 32]),
        listen_port: 51820,
        endpoints: vec!["192.0.2.7".parse().unwrap()],
        node_addresses: vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
        mtu: 1420,
        pod_cidrs: vec![
            "10.244.7.0/24".parse().unwrap(),
            "fd00:244:0:7::/64".parse().unwrap(),
        ],
        protocol_version: 1,
    }
}

/// Server-side apply of it, as meshd does it.
async fn publish(cluster: &Cluster, client: &Client, node: &str) -> crate::cluster::Answer {
    let uid = cluster.get(node).await["metadata"]["uid"]
        .as_str()
        .unwrap()
        .to_owned();
    let body = publish_body(&node.into(), &NodeUid(uid), &published());
    let path = format!("{NODES}/{node}?fieldManager=meshd&force=true");
    ask(client, "PATCH", &path, APPLY, &body).await
}

/// Without this one the others would prove nothing.
pub(crate) async fn without_the_policies_anyone_with_the_right_writes_anything(cluster: Cluster) {
    let [one, two] = [cluster.node("one").await, cluster.node("two").await];
    let meshd = cluster.meshd(&one).await;
    let key = annotate(&meshd, &two, PUBLIC_KEY, "stolen").await;
    key.allowed("meshd's token of one node writes another's key");
    let label = merge(&meshd, &two, &json!({"metadata": {"labels": {"x": "y"}}})).await;
    label.allowed("meshd's token labels another node");
    let unbound = cluster.unbound().await;
    let key = annotate(&unbound, &format!("{two}/status"), PUBLIC_KEY, "stolen").await;
    key.allowed("an unbound token writes a key through the status");
}

/// Under this policy alone, so that the other one does not hide what it lets through.
pub(crate) async fn only_the_node_writes_its_annotations(cluster: Cluster) {
    cluster.enforce("meshd-node-annotations").await;
    let [own, other] = [cluster.node("own").await, cluster.node("other").await];
    let uid = cluster.get(&own).await["metadata"]["uid"].clone();
    let by_pod = cluster.meshd(&own).await;
    let reference = json!({"kind": "Node", "apiVersion": "v1", "name": own, "uid": uid});
    let by_node = json!({"token": cluster.token(&reference).await});
    let by_node = cluster.client(&by_node).await;
    let neighbour = cluster.meshd(&other).await;
    let unbound = cluster.unbound().await;
    let kubelet = cluster.kubelet(&own).await;
    let status = format!("{own}/status");

    publish(&cluster, &by_pod, &own).await.allowed("meshd publishes");
    let annotations = cluster.get(&own).await["metadata"]["annotations"].clone();
    for (key, value) in encode(&published()) {
        assert_eq!(annotations[&key], value, "{key}");
    }
    assert_eq!(annotations["example.org/note"], "kept");
    publish(&cluster, &by_node, &own)
        .await
        .allowed("a token bound to the Node itself");
    annotate(&by_pod, &status, PUBLIC_KEY, "a")
        .await
        .allowed("through the status");

    let before = cluster.get(&own).await["metadata"]["annotations"].clone();
    let token_of_other = format!("(token bound to node {other})");
    let intruders = [
        ("meshd of another node", &neighbour, token_of_other.as_str()),
        ("an unbound token", &unbound, "(token bound to no node)"),
        (
            "the administrator",
            &cluster.admin,
            "admin (token bound to no node)",
        ),
        ("the node's kubelet, by its certificate", &kubelet, "system:node:"),
    ];
    for (who, client, text) in intruders {
        let node_text = format!("Node {own}");
        let texts = [text, PUBLIC_KEY, node_text.as_str()];
        for path in [&own, &status] {
            let what = format!("{who} at {path}");
            annotate(client, path, PUBLIC_KEY, "b")
                .await
                .denied(&what, &texts);
            annotate(client, path, "meshd.dev/of-tomorrow", "b")
                .await
                .denied(&what, &[text, "meshd.dev/of-tomorrow"]);
            annotate(client, path, PUBLIC_KEY, Value::Null)
                .await
                .denied(&format!("{what}, removing"), &texts);
            let strategic = json!({"metadata": {"annotations": {PUBLIC_KEY: "c"}}});
            let url = format!("{NODES}/{path}");
            ask(client, "PATCH", &url, STRATEGIC, &strategic)
                .await
                .denied(&what, &texts);
            let operations = json!([{"op": "replace", "path": "/metadata/annotations/meshd.dev~1public-key", "value": "d"}]);
            ask(client, "PATCH", &url, JSON_PATCH, &operations)
                .await
                .denied(&what, &texts);
            let all = json!([{"op": "remove", "path": "/metadata/annotations"}]);
            ask(client, "PATCH", &url, JSON_PATCH, &all)
                .await
                .denied(&what, &texts);
        }
        publish(&cluster, client, &own)
            .await
            .denied(&format!("{who} by server-side apply"), &[text]);
    }
    // A kubelet and an administrator may replace whole objects; meshd's account may not.
    for (who, client) in [("the administrator", &cluster.admin), ("the kubelet", &kubelet)] {
        let mut whole = cluster.get(&own).await;
        whole["metadata"]["annotations"][PUBLIC_KEY] = "e".into();
        for path in [&own, &status] {
            let url = format!("{NODES}/{path}");
            let put = ask(client, "PUT", &url, "application/json", &whole).await;
            put.denied(&format!("{who} replaces {path}"), &[PUBLIC_KEY]);
        }
    }
    assert_eq!(cluster.get(&own).await["metadata"]["annotations"], before);

    // An impersonator without the extra field is as unbound as any.
    let request = http::Request::patch(format!("{NODES}/{own}"))
        .header("content-type", "application/merge-patch+json")
        .header("impersonate-user", "system:serviceaccount:kube-system:meshd")
        .body(
            json!({"metadata": {"annotations": {PUBLIC_KEY: "f"}}})
                .to_string()
                .into_bytes()
                .into(),
        );
    let answer = cluster.admin.send(request.unwrap()).await.unwrap();
    assert_eq!(answer.status().as_u16(), 403, "an impersonator");

    let gone = annotate(&by_pod, &own, PUBLIC_KEY, Value::Null)
        .await
        .allowed("meshd removes its own");
    assert!(gone["metadata"]["annotations"].get(PUBLIC_KEY).is_none());
}

pub(crate) async fn no_node_is_created_with_annotations(cluster: Cluster) {
    let cluster = Cluster::protected(cluster).await;
    let name = cluster.name("new");
    let kubelet = cluster.kubelet(&name).await;
    let node = |annotations: Value| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "annotations": annotations}});
    for (who, client) in [("the administrator", &cluster.admin), ("the kubelet", &kubelet)] {
        let answer = ask(
            client,
            "POST",
            NODES,
            "application/json",
            &node(json!({PUBLIC_KEY: "a"})),
        )
        .await;
        answer.denied(&format!("{who} creates a Node with a key"), &[PUBLIC_KEY, &name]);
    }
    let by_apply = node(json!({PUBLIC_KEY: "a"}));
    let path = format!("{NODES}/{name}?fieldManager=m&force=true");
    let answer = ask(&cluster.admin, "PATCH", &path, APPLY, &by_apply).await;
    answer.denied("the administrator creates one by apply", &[PUBLIC_KEY]);
    let generated = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"generateName": "g-", "annotations": {PUBLIC_KEY: "a"}}});
    let answer = ask(&cluster.admin, "POST", NODES, "application/json", &generated).await;
    answer.denied("one with a generated name", &[PUBLIC_KEY]);
    let plain = node(json!({"example.org/note": "kept"}));
    ask(&kubelet, "POST", NODES, "application/json", &plain)
        .await
        .allowed("the kubelet registers its Node");
}

pub(crate) async fn what_is_claimed_is_what_the_node_has(cluster: Cluster) {
    let cluster = Cluster::protected(cluster).await;
    let node = cluster.node("n").await;
    let meshd = cluster.meshd(&node).await;
    publish(&cluster, &meshd, &node).await.allowed("what it has");
    for (key, value) in [
        (POD_CIDRS, "10.244.7.0/24"),
        (POD_CIDRS, "fd00:0244:0:7:0::/64,10.244.7.0/24"),
        (POD_CIDRS, ""),
        (NODE_ADDRESSES, "2001:0db8::7"),
        (NODE_ADDRESSES, "198.51.100.7"),
        (NODE_ADDRESSES, ""),
    ] {
        annotate(&meshd, &node, key, value)
            .await
            .allowed(&format!("{key} {value:?}"));
    }
    publish(&cluster, &meshd, &node)
        .await
        .allowed("what it has, again");
    for (key, value) in [
        (POD_CIDRS, "10.244.8.0/24"),
        (POD_CIDRS, "10.244.7.0/25"),
        (POD_CIDRS, "10.244.0.0/16"),
        (POD_CIDRS, "10.244.0.0/17"),
        (POD_CIDRS, "0.0.0.0/0"),
        (POD_CIDRS, "10.244.7.0/24,10.244.8.0/24"),
        (POD_CIDRS, "10.244.7.0/24,"),
        (POD_CIDRS, "10.244.7.0/24, fd00:244:0:7::/64"),
        (POD_CIDRS, "10.244.7.0"),
        (POD_CIDRS, "nonsense"),
        (NODE_ADDRESSES, "192.0.2.8"),
        (NODE_ADDRESSES, "192.0.2.7,192.0.2.8"),
        (NODE_ADDRESSES, "::ffff:192.0.2.7"),
        (NODE_ADDRESSES, "192.0.2.7/32"),
        (NODE_ADDRESSES, "nonsense"),
        // A Hostname may look like an address; it is none.
        (NODE_ADDRESSES, "192.0.2.99"),
    ] {
        let what = if key == POD_CIDRS {
            "pod CIDRs"
        } else {
            "node addresses"
        };
        let status = format!("{node}/status");
        for path in [&node, &status] {
            let answer = annotate(&meshd, path, key, value).await;
            answer.denied(
                &format!("{key} {value:?} at {path}"),
                &["may not claim", what, &node],
            );
        }
    }

    // A Node without either may be claimed nothing for.
    let bare = cluster.name("bare");
    let body = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": bare}});
    let made = ask(&cluster.admin, "POST", NODES, "application/json", &body).await;
    made.allowed("create a bare Node");
    let meshd = cluster.meshd(&bare).await;
    annotate(&meshd, &bare, PUBLIC_KEY, "a")
        .await
        .allowed("a key alone");
    annotate(&meshd, &bare, POD_CIDRS, "10.244.7.0/24")
        .await
        .denied("a CIDR", &["are []"]);
    annotate(&meshd, &bare, NODE_ADDRESSES, "192.0.2.7")
        .await
        .denied("an address", &["are []"]);
}

pub(crate) async fn what_others_write_is_not_in_the_way(cluster: Cluster) {
    let cluster = Cluster::protected(cluster).await;
    let node = cluster.node("n").await;
    let status = format!("{node}/status");
    let meshd = cluster.meshd(&node).await;
    let kubelet = cluster.kubelet(&node).await;
    publish(&cluster, &meshd, &node).await.allowed("what it has");

    // The addresses change, so that what is published is no longer true; it is meshd's to change, not the kubelet's.
    let addresses = json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.50"}]}});
    merge(&kubelet, &status, &addresses)
        .await
        .allowed("the kubelet's address changes");
    let heartbeat = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "X"}]}});
    let path = format!("{NODES}/{status}");
    ask(&kubelet, "PATCH", &path, STRATEGIC, &heartbeat)
        .await
        .allowed("a heartbeat");
    annotate(&kubelet, &node, "example.org/k", "v")
        .await
        .allowed("the kubelet's other annotations");
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    merge(&cluster.admin, &node, &label)
        .await
        .allowed("the administrator's labels");
    let cordon = json!({"spec": {"unschedulable": true}});
    merge(&cluster.admin, &node, &cordon).await.allowed("a cordon");
    annotate(&cluster.admin, &node, "example.org/note", Value::Null)
        .await
        .allowed("others' annotations");

    // Whatever changes of ours, all of it must be true.
    let port = annotate(&meshd, &node, LISTEN_PORT, "1").await;
    port.denied("with old addresses", &["node addresses", "192.0.2.50"]);
    let truth = json!({"metadata": {"annotations": {LISTEN_PORT: "1", NODE_ADDRESSES: "192.0.2.50"}}});
    merge(&meshd, &node, &truth).await.allowed("the new addresses");

    // As many annotations as fit into an object do not exhaust what the policies may cost.
    let many: serde_json::Map<String, Value> = (0..12_000)
        .map(|i| (format!("e.org/{i:06}"), "1".into()))
        .collect();
    let many = json!({"metadata": {"annotations": many}});
    merge(&cluster.admin, &node, &many)
        .await
        .allowed("12,000 annotations");
    ask(&kubelet, "PATCH", &path, STRATEGIC, &heartbeat)
        .await
        .allowed("a heartbeat beside them");
    annotate(&meshd, &node, LISTEN_PORT, "2")
        .await
        .allowed("meshd beside them");
    annotate(&cluster.admin, &node, LISTEN_PORT, "3")
        .await
        .denied("the administrator beside them", &[LISTEN_PORT]);
}

/// Under this policy alone, like the first.
pub(crate) async fn the_account_changes_nothing_else(cluster: Cluster) {
    cluster.enforce("meshd-account").await;
    let [own, other] = [cluster.node("own").await, cluster.node("other").await];
    let meshd = cluster.meshd(&own).await;
    let unbound = cluster.unbound().await;
    publish(&cluster, &meshd, &own).await.allowed("what it may");
    let before = cluster.get(&own).await;
    let changes = [
        ("a label", json!({"metadata": {"labels": {"x": "y"}}})),
        (
            "a label of another's",
            json!({"metadata": {"labels": {"a": "c"}}}),
        ),
        ("no labels", json!({"metadata": {"labels": null}})),
        ("an annotation", json!({"metadata": {"annotations": {"x": "y"}}})),
        (
            "one that looks like ours",
            json!({"metadata": {"annotations": {"meshd.development/x": "y"}}}),
        ),
        (
            "another's annotation",
            json!({"metadata": {"annotations": {"example.org/note": "changed"}}}),
        ),
        (
            "another's annotation gone",
            json!({"metadata": {"annotations": {"example.org/note": null}}}),
        ),
        (
            "a finalizer",
            json!({"metadata": {"finalizers": ["example.org/stay"]}}),
        ),
        ("no taints", json!({"spec": {"taints": null}})),
        (
            "a taint",
            json!({"spec": {"taints": [{"key": "x", "effect": "NoExecute"}]}}),
        ),
        ("a cordon", json!({"spec": {"unschedulable": true}})),
        ("a provider", json!({"spec": {"providerID": "x://y"}})),
        (
            "addresses",
            json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.66"}]}}),
        ),
        ("no addresses", json!({"status": {"addresses": null}})),
        ("capacity", json!({"status": {"capacity": {"cpu": "1000"}}})),
        (
            "conditions",
            json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
        ),
        ("no conditions", json!({"status": {"conditions": null}})),
    ];
    let status = format!("{own}/status");
    for (what, change) in &changes {
        for (path, part) in [(&own, "spec"), (&status, "status")] {
            let answer = merge(&meshd, path, change).await;
            // Of the spec the status' way changes nothing, and the other way round.
            let idle = change
                .get(if part == "spec" { "status" } else { "spec" })
                .is_some();
            if idle {
                answer.allowed(&format!("{what} at {path}, which changes nothing"));
            } else {
                answer.denied(
                    &format!("{what} at {path}"),
                    &["meshd-account", "may not change", &own],
                );
            }
        }
        // Along with something that is allowed as well.
        let mut both = change.clone();
        both["metadata"]["annotations"][MTU] = "1400".into();
        let path = if change.get("status").is_some() {
            &status
        } else {
            &own
        };
        merge(&meshd, path, &both).await.denied(what, &["may not change"]);
    }
    let mut after = cluster.get(&own).await;
    for volatile in ["resourceVersion", "managedFields"] {
        after["metadata"][volatile] = before["metadata"][volatile].clone();
    }
    assert_eq!(after, before);

    for (who, client, node) in [
        ("meshd of another node", &meshd, &other),
        ("an unbound token", &unbound, &own),
    ] {
        for path in [node.clone(), format!("{node}/status")] {
            annotate(client, &path, "example.org/note", "changed")
                .await
                .denied(
                    &format!("{who} at {path}"),
                    &["meshd-account", "may not write Node"],
                );
        }
    }
    // RBAC gives it no more than patches.
    for (method, path) in [
        ("DELETE", format!("{NODES}/{own}")),
        ("POST", NODES.to_owned()),
        ("GET", "/api/v1/secrets".into()),
    ] {
        let body = if method == "POST" {
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "x"}})
        } else {
            Value::Null
        };
        let answer = ask(&meshd, method, &path, "application/json", &body).await;
        assert_eq!(answer.code, 403, "{method} {path}: {}", answer.message());
    }
}

/// Under its own policy alone: the others are gone when it begins.
pub(crate) async fn what_uninstalls_takes_our_annotations_off_its_own_node_and_changes_nothing_else(
    cluster: Cluster,
) {
    let [own, other] = [cluster.node("own").await, cluster.node("other").await];
    for node in [&own, &other] {
        let published = publish(&cluster, &cluster.meshd(node).await, node).await;
        published.allowed("what is to be taken off");
    }
    let client = cluster.uninstaller(&own).await;
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    let control = merge(&client, &own, &label).await;
    control.allowed("without the policy its rights are for all of a Node");
    cluster.enforce(chart::UNINSTALL).await;
    let theirs = clear_annotations(&client, &other.as_str().into()).await;
    let refused = theirs.unwrap_err().to_string();
    assert!(
        refused.contains(&other) && refused.contains("meshd-uninstall"),
        "{refused}"
    );
    for change in [
        json!({"metadata": {"labels": {"x": "z"}}}),
        json!({"metadata": {"annotations": {"example.org/note": null}}}),
        json!({"spec": {"unschedulable": true}}),
    ] {
        let what = change.to_string();
        let answer = merge(&client, &own, &change).await;
        answer.denied(&what, &["meshd-uninstall", "may not change", &own]);
    }
    let removed = clear_annotations(&client, &own.as_str().into()).await.unwrap();
    assert!(removed.iter().any(|key| key == PUBLIC_KEY), "{removed:?}");
    let annotations = cluster.get(&own).await["metadata"]["annotations"].clone();
    assert_eq!(annotations, json!({"example.org/note": "kept"}));
}

/// All that it asks of the API server beside its Node, with the chart's rights.
pub(crate) async fn what_uninstalls_may_see_whether_meshd_is_installed(cluster: Cluster) {
    let node = cluster.node("n").await;
    let client = cluster.uninstaller(&node).await;
    let there = async || has_daemon_set(&client, NAMESPACE, "meshd").await.unwrap();
    assert!(!there().await);
    let set = chart::daemon_set();
    cluster.apply(&set).await;
    assert!(there().await);
    let removed = ask(&cluster.admin, "DELETE", &path_of(&set), "", &Value::Null).await;
    removed.allowed("delete the DaemonSet");
    assert!(!there().await);
    let pods = pods_on(
        &client,
        NAMESPACE,
        "app.kubernetes.io/name=meshd",
        &node.as_str().into(),
    )
    .await;
    assert_eq!(pods.unwrap(), Vec::<String>::new());
    // Its own pod here has no kubelet that would call it ready, and no label.
    assert!(
        unready_nodes(&client, NAMESPACE, "!x")
            .await
            .unwrap()
            .contains(&node)
    );
    let missing = progress(&client, NAMESPACE, chart::UNINSTALL).await.unwrap_err();
    assert!(missing.to_string().contains("not found"), "{missing}");
}

pub(crate) async fn the_account_clears_the_network_condition_and_nothing_beside_it(cluster: Cluster) {
    let cluster = Cluster::protected(cluster).await;
    let [own, other] = [cluster.node("own").await, cluster.node("other").await];
    let meshd = cluster.meshd(&own).await;
    let condition = |status: &str| {
        json!({"status": {"conditions": [{"type": "NetworkUnavailable", "status": status, "reason": "MeshdIsUp",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
    };
    let patch = async |client: &Client, node: &str, body: &Value| {
        ask(
            client,
            "PATCH",
            &format!("{NODES}/{node}/status"),
            STRATEGIC,
            body,
        )
        .await
    };
    patch(&meshd, &other, &condition("False"))
        .await
        .denied("another node's", &["may not write Node"]);
    let unbound = cluster.unbound().await;
    patch(&unbound, &own, &condition("False"))
        .await
        .denied("unbound", &["may not write Node"]);
    patch(&meshd, &own, &condition("Unknown"))
        .await
        .denied("to Unknown", &["NetworkUnavailable"]);
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    patch(&meshd, &own, &ready)
        .await
        .denied("another condition", &["NetworkUnavailable"]);
    let gone = json!({"status": {"conditions": [{"type": "NetworkUnavailable", "$patch": "delete"}]}});
    patch(&meshd, &own, &gone)
        .await
        .denied("its removal", &["NetworkUnavailable"]);

    let now = patch(&meshd, &own, &condition("False")).await.allowed("to False");
    let conditions = now["status"]["conditions"].as_array().unwrap();
    assert_eq!(
        (conditions.len(), &conditions[0]["status"]),
        (2, &json!("False")),
        "{conditions:?}"
    );
    patch(&meshd, &own, &condition("True"))
        .await
        .denied("back to True", &["NetworkUnavailable"]);

    patch(&cluster.admin, &own, &gone)
        .await
        .allowed("the administrator removes it");
    patch(&meshd, &own, &condition("False"))
        .await
        .denied("where it is not there", &["NetworkUnavailable"]);
}

/// The driver itself, with the rights of the chart and a token as the kubelet projects it.
pub(crate) async fn the_daemon_publishes_under_the_policies(cluster: Cluster) {
    let cluster = Cluster::protected(cluster).await;
    let [own, other] = [cluster.node("own").await, cluster.node("other").await];
    let uid = |node: Value| NodeUid(node["metadata"]["uid"].as_str().unwrap().to_owned());
    let own_uid = uid(cluster.get(&own).await);
    for (runs_as, succeeds) in [(&own, true), (&other, false)] {
        let client = cluster.meshd(runs_as).await;
        let (tx, mut events) = mpsc::channel(64);
        let (actions, rx) = mpsc::channel(4);
        let driver = tokio::spawn(meshd_kube::run(client, own.as_str().into(), tx, rx));
        let id = ActionId {
            resource: Resource::Annotations,
            generation: 1,
        };
        let publish = KubeAction::Publish {
            id,
            uid: own_uid.clone(),
            annotations: published(),
        };
        actions.send(publish).await.unwrap();
        let outcome = async {
            loop {
                match events.recv().await.expect("the driver ended") {
                    KubeEvent::Applied(_) => break Ok(()),
                    KubeEvent::Failed { failure, .. } => break Err(failure.message),
                    KubeEvent::Unreachable { message } => panic!("{message}"),
                    _ => {}
                }
            }
        };
        let outcome = tokio::time::timeout(Duration::from_secs(30), outcome)
            .await
            .unwrap();
        assert_eq!(outcome.is_ok(), succeeds, "as meshd of {runs_as}: {outcome:?}");
        if let Err(message) = outcome {
            assert!(message.contains("may not write Node"), "{message}");
        }
        drop((events, actions));
        driver.await.unwrap();
    }
}
