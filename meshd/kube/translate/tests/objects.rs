//! Objects as the API server sends them, to what the agent is told.

use k8s_openapi::api::events::v1::Event;
use meshd_core::{KubeEvent, PodEvent, PodReason};
use meshd_model::{AnnotationProblem, PodRef, PodWants, Wall};
use meshd_translate::{Frame, frame, node_event, own_node_event, pod_event, pod_event_body};
use serde_json::{Value, json};

fn meta(extra: Value) -> Value {
    let mut meta = json!({"name": "n1", "uid": "u1", "creationTimestamp": "2026-11-23T09:23:06Z", "resourceVersion": "7"});
    extra
        .as_object()
        .unwrap()
        .iter()
        .for_each(|(k, v)| meta[k] = v.clone());
    json!({"kind": "Node", "apiVersion": "v1", "metadata": meta})
}

fn pod(spec: Value, phase: &str) -> Value {
    json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": spec, "status": {"phase": phase}})
}

#[test]
fn a_node_of_the_metadata_watch_is_translated_with_its_problem() {
    let object = meta(json!({}));
    let applied = frame("ADDED", &object).unwrap().decode_meta().unwrap();
    let Ok(Some(KubeEvent::NodeApplied(node))) = node_event(applied.as_ref()) else {
        panic!("{applied:?}");
    };
    assert_eq!(
        (node.name.0.as_str(), node.uid.0.as_str(), node.created),
        ("n1", "u1", 1_795_425_786)
    );
    assert_eq!(node.annotations, Err(AnnotationProblem::Absent));

    let deleted = frame("DELETED", &object).unwrap().decode_meta().unwrap();
    assert_eq!(
        node_event(deleted.as_ref()),
        Ok(Some(KubeEvent::NodeDeleted("n1".into())))
    );
}

#[test]
fn the_own_node_brings_its_cidrs_and_internal_addresses() {
    let mut object = meta(json!({}));
    object["spec"] = json!({"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:244:0:1::/64"]});
    object["status"] = json!({"addresses": [
        {"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "192.168.0.1"},
        {"type": "ExternalIP", "address": "1.2.3.4"}, {"type": "InternalIP", "address": "fd00::1"},
    ]});
    let event =
        |object: &Value| own_node_event(frame("MODIFIED", object).unwrap().decode().unwrap().as_ref());
    let Ok(Some(KubeEvent::OwnNode(own))) = event(&object) else {
        panic!("no own node");
    };
    let text = |items: Vec<String>| items.join(" ");
    assert_eq!(
        text(own.pod_cidrs.iter().map(|c| c.to_string()).collect()),
        "10.244.1.0/24 fd00:244:0:1::/64"
    );
    assert_eq!(
        text(own.internal_ips.iter().map(|c| c.to_string()).collect()),
        "192.168.0.1 fd00::1"
    );

    object["spec"] = json!({"podCIDR": "10.244.1.0/24"});
    assert!(matches!(event(&object), Ok(Some(KubeEvent::OwnNode(own))) if own.pod_cidrs.len() == 1));
    object["spec"] = json!({"podCIDRs": ["10.244.1.0"]});
    assert!(event(&object).unwrap_err().to_string().contains("no prefix"));
}

#[test]
fn a_pod_that_does_not_count_is_as_good_as_gone() {
    let own = json!({"nodeName": "n1", "containers": []});
    for (spec, phase, counts) in [
        (own.clone(), "Running", true),
        (own.clone(), "Pending", true),
        (own.clone(), "Succeeded", false),
        (own.clone(), "Failed", false),
        (json!({"nodeName": "n2", "containers": []}), "Running", false),
        (json!({"containers": []}), "Pending", false),
        (
            json!({"nodeName": "n1", "hostNetwork": true, "containers": []}),
            "Running",
            false,
        ),
    ] {
        let object = pod(spec, phase);
        let event = pod_event("n1", frame("ADDED", &object).unwrap().decode().unwrap().as_ref()).unwrap();
        assert_eq!(
            matches!(event, Some(KubeEvent::PodApplied(_))),
            counts,
            "{object}"
        );
        assert_eq!(
            matches!(event, Some(KubeEvent::PodDeleted(_))),
            !counts,
            "{object}"
        );
    }
}

#[test]
fn frames_that_are_no_change_say_so() {
    let bookmark =
        json!({"metadata": {"resourceVersion": "9", "annotations": {"k8s.io/initial-events-end": "true"}}});
    let want = Frame::Bookmark {
        resource_version: 9,
        initial: true,
    };
    assert_eq!(frame("BOOKMARK", &bookmark), Ok(want));
    let gone = json!({"kind": "Status", "code": 410});
    assert_eq!(frame("ERROR", &gone), Ok(Frame::Error { code: 410 }));
    assert_eq!(node_event(Frame::Error { code: 410 }), Ok(None));
    for (kind, object) in [("BOOKMARK", json!({})), ("FOO", json!({})), ("", json!(null))] {
        assert!(frame(kind, &object).is_err(), "{kind}");
    }
    assert!(
        frame("ADDED", &json!({"metadata": 7}))
            .unwrap()
            .decode_meta()
            .is_err()
    );
    let nameless = frame("ADDED", &json!({"metadata": {}}))
        .unwrap()
        .decode_meta()
        .unwrap();
    assert!(node_event(nameless.as_ref()).is_err());
}

#[test]
fn a_node_without_a_network_says_so_by_its_condition() {
    let denied = |conditions: Value| {
        let mut object = meta(json!({}));
        object["status"] = json!({ "conditions": conditions });
        let frame = frame("MODIFIED", &object).unwrap().decode().unwrap();
        match own_node_event(frame.as_ref()) {
            Ok(Some(KubeEvent::OwnNode(own))) => own.network_unavailable,
            other => panic!("{other:?}"),
        }
    };
    let condition = |status: &str| json!({"type": "NetworkUnavailable", "status": status});
    let ready = json!({"type": "Ready", "status": "True"});
    for (conditions, is) in [
        (json!([]), false),
        (json!([ready]), false),
        (json!([condition("False"), ready]), false),
        (json!([ready, condition("True")]), true),
        (json!([condition("Unknown")]), true),
    ] {
        assert_eq!(denied(conditions.clone()), is, "{conditions}");
    }
}

#[test]
fn a_static_pod_is_known_by_the_uid_that_its_runtime_knows() {
    let uid = |annotations: Value| {
        let mut object = pod(json!({"nodeName": "n1"}), "Pending");
        object["metadata"]["annotations"] = annotations;
        let frame = frame("ADDED", &object).unwrap().decode().unwrap();
        match pod_event("n1", frame.as_ref()) {
            Ok(Some(KubeEvent::PodApplied(meta))) => meta.pod.uid,
            other => panic!("{other:?}"),
        }
    };
    let hash = "d41d8cd98f00b204e9800998ecf8427e";
    let mirror = json!({"kubernetes.io/config.mirror": hash, "kubernetes.io/config.hash": hash, "kubernetes.io/config.source": "file"});
    assert_eq!(uid(mirror), hash);
    for wrong in ["x".repeat(32), "a".repeat(65), String::new()] {
        let mirror = json!({"kubernetes.io/config.mirror": hash, "kubernetes.io/config.hash": wrong});
        assert_eq!(uid(mirror), "u", "{wrong:?} is no UID");
    }
    assert_eq!(uid(json!({})), "u");
    assert_eq!(uid(json!({"kubernetes.io/config.hash": hash})), "u", "no mirror");
}

fn wants(annotations: Value) -> PodWants {
    let mut object = pod(json!({"nodeName": "n1"}), "Pending");
    object["metadata"]["annotations"] = annotations;
    let frame = frame("ADDED", &object).unwrap().decode().unwrap();
    match pod_event("n1", frame.as_ref()) {
        Ok(Some(KubeEvent::PodApplied(meta))) => meta.wants,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_pod_asks_for_is_understood_or_told() {
    let asked = wants(json!({"meshd.dev/ips": "10.244.1.7,fd00:244:1::7", "meshd.dev/keep-address": "true"}));
    let ips = ["10.244.1.7", "fd00:244:1::7"].map(|ip| ip.parse().unwrap());
    assert_eq!((asked.ips, asked.keep, asked.problem), (ips.into(), true, None));
    assert!(wants(json!({})).is_empty() && wants(json!({"meshd.dev/keep-address": "false"})).is_empty());
    assert!(
        wants(json!({"meshd.dev/what-a-later-version-knows": "x"})).is_empty(),
        "left alone"
    );
    for bad in [
        "",
        ",",
        "10.244.1.7,",
        "10.244.1.7, fd00:244:1::7",
        "10.244.1.07",
        "10.244.1.7/24",
        "fd00:244:1:0::7",
        "FD00:244:1::7",
        "10.244.1.7,10.244.1.8",
        "10.244.1.7,fd00::1,fd00::2",
        "web",
        "\u{202e}10.244.1.7",
    ] {
        let asked = wants(json!({"meshd.dev/ips": bad}));
        let problem = asked.problem.expect(bad);
        assert!(
            problem.contains("meshd.dev/ips") && asked.ips.is_empty(),
            "{problem}"
        );
        assert!(!problem.contains('\u{202e}'), "{problem}");
    }
    let long = wants(json!({"meshd.dev/ips": "1".repeat(100_000)}))
        .problem
        .unwrap();
    assert!(long.len() < 300, "{long}");
    for bad in ["", "yes", "True", "1"] {
        let asked = wants(json!({"meshd.dev/keep-address": bad}));
        assert!(
            asked.problem.unwrap().contains("meshd.dev/keep-address") && !asked.keep,
            "{bad}"
        );
    }
}

#[test]
fn an_event_is_within_its_bounds_whatever_it_tells() {
    let event = |name: &str, note: &str| PodEvent {
        pod: PodRef {
            namespace: "d".into(),
            name: name.into(),
            uid: "u".into(),
        },
        reason: PodReason::AddressesExhausted,
        note: note.into(),
    };
    let at = Wall(1_795_425_786_123_456_789);
    let body = pod_event_body(&"n1".into(), &event("web-0", "no IPv4 address is free"), at);
    assert_eq!(body["metadata"]["name"], "web-0.18eaa23d6a771115");
    assert_eq!(body["eventTime"], "2026-11-23T09:23:06.123456Z");
    assert_eq!(body["regarding"]["uid"], "u");
    let typed: Event = serde_json::from_value(body.clone()).unwrap();
    assert_eq!(
        serde_json::to_value(typed).unwrap(),
        body,
        "every field is one of the API"
    );

    let name = format!("{}.{}", "a".repeat(199), "b".repeat(53));
    let long = pod_event_body(&"n1".into(), &event(&name, &"\u{e9}".repeat(2000)), at);
    let made = long["metadata"]["name"].as_str().unwrap();
    assert!(
        made.len() <= 253 && made.starts_with("aaa") && !made.contains(".."),
        "{made}"
    );
    assert!(long["note"].as_str().unwrap().len() <= 1024);
}
