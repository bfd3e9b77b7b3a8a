//! What is tried of each server.

use crate::counted::counted;
use crate::mirror::{Mirror, annotations};
use crate::requests::answers;
use crate::server::{NODES, PODS, Server};
use meshd_core::{BlockOp, PodEvent, PodReason};
use meshd_model::{AnnotationProblem, NodeUid};
use meshd_translate::annotations::{LISTEN_PORT, PUBLIC_KEY};
use serde_json::json;
use std::time::Duration;

pub(crate) async fn everything_there_is_is_listed_and_then_followed(server: Server) {
    let [own, other] = ["own", "other"].map(|n| server.name(n));
    let [counts, host, done] = ["counts", "host", "done"].map(|n| server.name(n));
    let own_uid = server.create_node(&own).await;
    let other_uid = server.create_node(&other).await;
    server.create_pod(&counts, &own, false).await;
    server.create_pod(&host, &own, true).await;
    server.create_pod(&done, &other, false).await;

    let mut mirror = Mirror::of(&server, &own).await;
    mirror.synced().await;
    let known = &mirror.known;
    assert_eq!(
        (known.uid(&own), known.uid(&other)),
        (Some(own_uid.as_str()), Some(other_uid.as_str()))
    );
    assert_eq!(known.nodes[&other].annotations, Err(AnnotationProblem::Absent));
    assert_eq!(known.pods.keys().collect::<Vec<_>>(), [&counts]);
    let own_node = known.own.clone().unwrap().unwrap();
    assert_eq!(own_node.pod_cidrs, annotations(1).pod_cidrs);
    assert_eq!(
        own_node.internal_ips,
        ["192.0.2.7".parse::<std::net::IpAddr>().unwrap()]
    );
    assert!(own_node.created > 1_500_000_000, "{}", own_node.created);
    assert_eq!(known.outages, 0);

    server.annotate(&other, LISTEN_PORT, "nonsense").await;
    mirror
        .until("an annotation that is no use", |k| {
            matches!(
                &k.nodes[&other].annotations,
                Err(AnnotationProblem::Missing { .. } | AnnotationProblem::Malformed { .. })
            )
        })
        .await;
    server.create_pod(&server.name("late"), &own, false).await;
    mirror.until("a new pod", |k| k.pods.len() == 2).await;
    let finished = json!({"status": {"phase": "Succeeded"}});
    server.merge(&format!("{PODS}/{counts}/status"), &finished).await;
    mirror
        .until("a pod that is finished", |k| !k.pods.contains_key(&counts))
        .await;
    server.delete_pod(&server.name("late")).await;
    mirror.until("a pod that is deleted", |k| k.pods.is_empty()).await;

    server.delete_node(&other).await;
    mirror
        .until("a node that is gone", |k| k.uid(&other).is_none())
        .await;
    let again = server.create_node(&other).await;
    mirror
        .until("the node created anew", |k| k.uid(&other) == Some(&again))
        .await;
    assert_ne!(again, other_uid);
    assert_eq!(
        (mirror.known.node_lists, mirror.known.outages),
        (1, 0),
        "all of it was followed, none listed again"
    );
    mirror.ends_with_its_agent().await;
}

pub(crate) async fn a_block_is_claimed_by_one_node_given_back_and_deleted(server: Server) {
    server.know_blocks().await;
    let names = ["a", "b"].map(|n| server.name(n));
    let uids = [
        server.create_node(&names[0]).await,
        server.create_node(&names[1]).await,
    ];
    let mut one = Mirror::of_pool(&server, &names[0]).await;
    let mut two = Mirror::of_pool(&server, &names[1]).await;
    one.until("the first list", |k| k.block_lists == 1).await;
    for text in ["10.244.3.64/26", "fd00:244::40/122"] {
        let cidr = text.parse().unwrap();
        let claim = |n: usize| BlockOp::Claim {
            uid: NodeUid(uids[n].clone()),
        };
        one.block(cidr, claim(0)).await.unwrap();
        let late = two.block(cidr, claim(1)).await.unwrap_err();
        assert_eq!(late.errno, Some(17), "{late:?}");
        two.until("the block", |k| k.blocks.contains_key(&cidr)).await;
        let block = two.known.blocks[&cidr].clone();
        let owner = block.owner.unwrap();
        assert_eq!((owner.node.0, owner.uid.0), (names[0].clone(), uids[0].clone()));
        assert!(!block.released && block.created > 1_500_000_000);

        let other = || "00000000-0000-0000-0000-000000000000".to_owned();
        let object = block.object.clone();
        one.block(cidr, BlockOp::Release { object: other() })
            .await
            .unwrap_err();
        one.block(cidr, BlockOp::Delete { object: other() })
            .await
            .unwrap_err();
        one.block(
            cidr,
            BlockOp::Release {
                object: object.clone(),
            },
        )
        .await
        .unwrap();
        two.until("the mark", |k| k.blocks[&cidr].released).await;
        for _ in 0..2 {
            one.block(
                cidr,
                BlockOp::Delete {
                    object: object.clone(),
                },
            )
            .await
            .unwrap();
        }
        two.until("its end", |k| !k.blocks.contains_key(&cidr)).await;
        assert_eq!(two.known.block_lists, 1);
    }
    one.ends_with_its_agent().await;
    two.ends_with_its_agent().await;
}

pub(crate) async fn two_nodes_learn_of_each_other(server: Server) {
    let names = ["a", "b"].map(|n| server.name(n));
    let uids = [
        server.create_node(&names[0]).await,
        server.create_node(&names[1]).await,
    ];
    let mut mirrors = [
        Mirror::of(&server, &names[0]).await,
        Mirror::of(&server, &names[1]).await,
    ];
    for (i, mirror) in mirrors.iter_mut().enumerate() {
        mirror.synced().await;
        let key = u8::try_from(i).unwrap() + 1;
        mirror.publish(&uids[i], &annotations(key)).await.unwrap();
    }
    for (i, mirror) in mirrors.iter_mut().enumerate() {
        mirror
            .until("what both published", |k| {
                k.published(&names[0]) == Some(&annotations(1))
                    && k.published(&names[1]) == Some(&annotations(2))
            })
            .await;
        let key = u8::try_from(i).unwrap() + 1;
        let own = |k: &crate::mirror::Known| k.own.clone().flatten().map(|o| o.published);
        mirror
            .until("the own annotations on the own Node", |k| {
                own(k) == Some(Ok(annotations(key)))
            })
            .await;
    }
}

pub(crate) async fn fields_of_others_are_left_alone(server: Server) {
    let node = server.name("n");
    let uid = server.create_node(&node).await;
    let mut mirror = Mirror::of(&server, &node).await;
    mirror.synced().await;
    mirror.publish(&uid, &annotations(1)).await.unwrap();
    server.annotate(&node, "example.org/later", "kept too").await;
    mirror.publish(&uid, &annotations(2)).await.unwrap();

    let object = server.get(&format!("{NODES}/{node}")).await;
    let written = &object["metadata"]["annotations"];
    assert_eq!(
        (&written["example.org/note"], &written["example.org/later"]),
        (&json!("kept"), &json!("kept too"))
    );
    assert_eq!(written[PUBLIC_KEY], annotations(2).public_key.to_string());
    assert_eq!(object["spec"]["podCIDR"], "10.244.7.0/24");
    let managers = object["metadata"]["managedFields"].as_array().unwrap();
    let ours: Vec<_> = managers.iter().filter(|m| m["manager"] == "meshd").collect();
    assert_eq!(ours.len(), 1, "{managers:?}");
    assert_eq!(ours[0]["operation"], "Apply");
    let fields = ours[0]["fieldsV1"]["f:metadata"]["f:annotations"]
        .as_object()
        .unwrap();
    assert!(
        fields.keys().all(|k| k.starts_with("f:meshd.dev/")) && fields.len() == 7,
        "{fields:?}"
    );

    let version = &object["metadata"]["resourceVersion"];
    mirror.publish(&uid, &annotations(2)).await.unwrap();
    let again = server.get(&format!("{NODES}/{node}")).await;
    assert_eq!(
        &again["metadata"]["resourceVersion"], version,
        "publishing the same is no change"
    );
}

pub(crate) async fn another_manager_meets_a_conflict_and_is_overruled(server: Server) {
    let node = server.name("n");
    let uid = server.create_node(&node).await;
    let mut mirror = Mirror::of(&server, &node).await;
    mirror.synced().await;
    mirror.publish(&uid, &annotations(1)).await.unwrap();

    let (status, answer) = server.apply(&node, LISTEN_PORT, "1", false).await;
    assert_eq!((status, &answer["reason"]), (409, &json!("Conflict")));
    let message = answer["message"].as_str().unwrap();
    assert_eq!(
        message,
        "Apply failed with 1 conflict: conflict with \"meshd\": .metadata.annotations.meshd.dev/listen-port"
    );
    assert_eq!(
        server.apply(&node, LISTEN_PORT, "51820", false).await.0,
        200,
        "the same value is no conflict"
    );

    assert_eq!(server.apply(&node, LISTEN_PORT, "2", true).await.0, 200);
    server.annotate(&node, PUBLIC_KEY, "broken").await;
    mirror
        .until("what others wrote", |k| k.published(&node).is_none())
        .await;
    mirror.publish(&uid, &annotations(1)).await.unwrap();
    mirror
        .until("our own again", |k| k.published(&node) == Some(&annotations(1)))
        .await;
}

pub(crate) async fn a_node_created_anew_is_not_written_in_the_name_of_the_old(server: Server) {
    let node = server.name("n");
    let old = server.create_node(&node).await;
    let mut mirror = Mirror::of(&server, &node).await;
    mirror.synced().await;
    server.delete_node(&node).await;
    mirror.until("the own Node gone", |k| k.own == Some(None)).await;
    let failure = mirror.publish(&old, &annotations(1)).await.unwrap_err();
    assert!(
        failure.message.contains("uid") && failure.message.contains(&node),
        "{}",
        failure.message
    );
    let absent = server
        .ask("GET", &format!("{NODES}/{node}"), "", &json!(null))
        .await;
    assert_eq!(absent.0, 404, "an annotation must not make a Node");

    let new = server.create_node(&node).await;
    mirror.until("the new Node", |k| k.own_uid() == Some(&new)).await;
    mirror.publish(&old, &annotations(1)).await.unwrap_err();
    assert_eq!(
        server.annotations(&node).await,
        json!({"example.org/note": "kept"})
    );
    mirror.publish(&new, &annotations(1)).await.unwrap();
    assert_eq!(mirror.known.outages, 0, "a refusal is no outage");
}

pub(crate) async fn what_happens_while_the_server_is_away_is_not_lost(mut server: Server) {
    let [own, other, new] = ["own", "other", "new"].map(|n| server.name(n));
    let uid = server.create_node(&own).await;
    server.create_node(&other).await;
    let pod = server.name("p");
    server.create_pod(&pod, &own, false).await;
    let mut mirror = Mirror::of(&server, &own).await;
    mirror.synced().await;

    server.way.cut().await;
    mirror.until("the outage", |k| !k.reachable).await;
    let failure = mirror.publish(&uid, &annotations(1)).await.unwrap_err();
    assert!(
        failure.message.contains("publish annotations"),
        "{}",
        failure.message
    );
    server.delete_node(&other).await;
    server.create_node(&new).await;
    server.delete_pod(&pod).await;
    server.annotate(&own, "example.org/note", "changed").await;
    mirror.rest(Duration::from_secs(3)).await;
    let known = &mirror.known;
    assert_eq!(
        (known.outages, known.reachable),
        (1, false),
        "told once, however often it is tried"
    );
    assert!(
        known.uid(&other).is_some() && known.pods.len() == 1,
        "what was known is kept"
    );

    server.way.mend().await;
    mirror
        .until("all that happened meanwhile", |k| {
            k.reachable && k.uid(&other).is_none() && k.uid(&new).is_some() && k.pods.is_empty()
        })
        .await;
    mirror.publish(&uid, &annotations(1)).await.unwrap();

    // Away and back with nothing changed: that it is back is told all the same.
    server.way.cut().await;
    mirror.until("the second outage", |k| k.outages == 2).await;
    server.way.mend().await;
    mirror
        .until("the end of the second outage", |k| k.reachable)
        .await;
}

pub(crate) async fn the_end_of_an_outage_is_told_whichever_watch_had_it(mut server: Server) {
    let own = server.name("own");
    server.create_node(&own).await;
    let mut mirror = Mirror::of(&server, &own).await;
    mirror.synced().await;
    // Until the three watches stand after their lists.
    mirror.rest(Duration::from_secs(1)).await;
    // One that idles in the client's pool may stand in for the one that is cut, so some cuts are no outage; each
    // outage brings new connections to cut.
    let mut which = 0;
    while mirror.known.outages < 4 && which < server.way.connections() {
        server.way.refuse().await;
        server.way.cut_one(which);
        which += 1;
        mirror.rest_until(Duration::from_secs(2), |k| !k.reachable).await;
        server.way.mend().await;
        mirror.until("the end of the outage", |k| k.reachable).await;
    }
    let known = &mirror.known;
    assert!(known.outages >= 2, "{} outages of three watches", known.outages);
    assert_eq!(known.node_lists, 1, "a watch that broke off goes on where it was");
}

pub(crate) async fn a_server_that_is_away_from_the_start_is_waited_for(mut server: Server) {
    let own = server.name("own");
    let uid = server.create_node(&own).await;
    server.way.cut().await;
    let mut mirror = Mirror::of(&server, &own).await;
    mirror.until("the outage", |k| k.outages == 1).await;
    mirror.rest(Duration::from_secs(1)).await;
    assert_eq!(
        (mirror.known.node_lists, mirror.known.outages),
        (0, 1),
        "an outage is not an empty list"
    );
    assert_eq!(mirror.known.own, None);
    server.way.mend().await;
    mirror.synced().await;
    assert_eq!(mirror.known.own_uid(), Some(uid.as_str()));
}

pub(crate) async fn a_forgotten_history_is_listed_again(mut server: Server) {
    let [own, other] = ["own", "other"].map(|n| server.name(n));
    server.create_node(&own).await;
    server.create_node(&other).await;
    let mut mirror = Mirror::of(&server, &own).await;
    mirror.synced().await;
    server.way.cut().await;
    server.delete_node(&other).await;
    server.forget_history();
    server.way.mend().await;
    mirror
        .until("a second list of Nodes and of pods", |k| {
            k.node_lists == 2 && k.pod_lists == 2
        })
        .await;
    assert_eq!(mirror.known.uid(&other), None);
    let late = server.name("late");
    server.create_node(&late).await;
    mirror
        .until("a change after the list", |k| k.uid(&late).is_some())
        .await;
}

pub(crate) async fn the_own_node_may_come_later(server: Server) {
    let own = server.name("own");
    let mut mirror = Mirror::of(&server, &own).await;
    mirror.synced().await;
    assert_eq!(mirror.known.own, Some(None), "that it is not there is told");
    let uid = server.create_node(&own).await;
    mirror.until("the own Node", |k| k.own_uid() == Some(&uid)).await;
}

pub(crate) async fn the_network_condition_is_cleared_and_no_other(server: Server) {
    let node = server.name("n");
    let uid = server.create_node(&node).await;
    let path = format!("{NODES}/{node}");
    let mut mirror = Mirror::of(&server, &node).await;
    mirror.synced().await;
    assert!(!mirror.known.is_network_denied(), "no condition is no denial");
    mirror.publish(&uid, &annotations(1)).await.unwrap();

    let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady"});
    for denied in ["True", "Unknown"] {
        let condition = json!({"type": "NetworkUnavailable", "status": denied, "reason": "NoRouteCreated"});
        let status = json!({"status": {"conditions": [condition, ready]}});
        server.merge(&format!("{path}/status"), &status).await;
        mirror.until("the condition", |k| k.is_network_denied()).await;
        let before = server.get(&path).await;
        mirror.clear_network(&uid).await.unwrap();
        mirror.until("its end", |k| !k.is_network_denied()).await;
        let after = server.get(&path).await;
        let mut expected = before["status"].clone();
        expected["conditions"][0] = json!({
            "type": "NetworkUnavailable", "status": "False", "reason": "MeshdIsUp",
            "message": "meshd is ready to attach pods on this node",
            "lastTransitionTime": "2026-01-02T03:04:05Z", "lastHeartbeatTime": "2026-01-02T03:04:05Z",
        });
        // The order of fields is the server's.
        let sorted = |status: &serde_json::Value| {
            serde_json::from_value::<k8s_openapi::api::core::v1::NodeStatus>(status.clone()).unwrap()
        };
        assert_eq!(sorted(&after["status"]), sorted(&expected));
        assert_eq!(
            after["metadata"]["annotations"],
            before["metadata"]["annotations"]
        );
    }
    let failure = mirror.clear_network("another").await.unwrap_err();
    assert!(
        failure.message.contains("NetworkUnavailable") && failure.message.contains(&node),
        "{}",
        failure.message
    );
    assert_eq!(mirror.known.outages, 0);
    // It is no field of the annotations' manager: publishing again leaves it.
    mirror.publish(&uid, &annotations(2)).await.unwrap();
    assert_eq!(
        server.get(&path).await["status"]["conditions"][0]["status"],
        "False"
    );
}

pub(crate) async fn an_event_is_told_of_a_pod(server: Server) {
    let [node, name] = ["n", "web"].map(|n| server.name(n));
    server.create_node(&node).await;
    server.create_pod(&name, &node, false).await;
    let mut mirror = Mirror::of(&server, &node).await;
    mirror.synced().await;
    mirror.until("the pod", |k| k.pods.contains_key(&name)).await;
    let pod = mirror.known.pods[&name].clone();
    let event = PodEvent {
        pod: pod.clone(),
        reason: PodReason::AddressesExhausted,
        note: "no IPv4 address is free\u{e9}".repeat(100),
    };
    mirror.tell(event.clone()).await.unwrap();
    let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", pod.namespace);
    let events = server.get(&path).await;
    let is_ours = |e: &&serde_json::Value| e["regarding"]["uid"] == pod.uid.as_str();
    let told: Vec<_> = events["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(is_ours)
        .collect();
    assert_eq!(told.len(), 1, "{events}");
    assert_eq!(told[0]["reason"], "AddressesExhausted");
    assert_eq!(told[0]["reportingInstance"], node.as_str());
    assert!(
        told[0]["note"]
            .as_str()
            .unwrap()
            .starts_with("no IPv4 address is free")
    );
    let again = mirror.tell(event).await.unwrap_err();
    assert!(
        again.message.contains("create an Event on Pod"),
        "{}",
        again.message
    );
}

pub(crate) async fn a_large_cluster_is_listed_once_and_written_only_on_change(mut server: Server) {
    const NODES_MADE: usize = 60;
    let names: Vec<String> = (0..NODES_MADE)
        .map(|i| server.name(&format!("n{i:02}")))
        .collect();
    let mut uids = Vec::new();
    for name in &names {
        uids.push(server.create_node(name).await);
    }
    let (client, asked) = counted(server.client().await);
    let mut mirror = Mirror::with(client, &names[0]);
    mirror.synced().await;
    let listed = names.iter().filter(|n| mirror.known.uid(n).is_some()).count();
    assert_eq!(listed, NODES_MADE);
    assert_eq!(
        (asked.all().len(), asked.lists_of_nodes()),
        (3, 1),
        "one request each for all Nodes, the own Node and its pods: {:?}",
        asked.all()
    );

    mirror.publish(&uids[0], &annotations(1)).await.unwrap();
    for name in &names[1..] {
        server.annotate(name, LISTEN_PORT, "nonsense").await;
    }
    mirror
        .until("what all others wrote", |k| {
            names[1..].iter().all(|n| {
                let known = &k.nodes[n].annotations;
                !matches!(known, Ok(_) | Err(AnnotationProblem::Absent))
            })
        })
        .await;
    assert_eq!(
        (asked.all().len(), asked.writes()),
        (4, 1),
        "what others write is heard and not asked for, and is no reason to write: {:?}",
        asked.all()
    );

    // A watch that breaks off goes on where it was, without a list.
    server.way.cut().await;
    mirror.until("the outage", |k| !k.reachable).await;
    server.delete_node(&names[NODES_MADE - 1]).await;
    server.way.mend().await;
    mirror
        .until("a node that went meanwhile", |k| {
            k.uid(&names[NODES_MADE - 1]).is_none()
        })
        .await;
    assert_eq!(
        (mirror.known.node_lists, asked.lists_of_nodes(), asked.writes()),
        (1, 1, 1),
        "{:?}",
        asked.all()
    );
    assert!(asked.resumed_watches_of_nodes() > 0, "{:?}", asked.all());
}

/// The embedded server is held to the real one.
pub(crate) async fn answers_are_the_embedded_servers_too(server: Server) {
    let embedded = Server::embedded().await;
    let (real, embedded) = tokio::join!(answers(&server), answers(&embedded));
    let differing: Vec<String> = real
        .iter()
        .zip(&embedded)
        .filter(|(real, embedded)| real != embedded)
        .map(|(real, embedded)| format!("REAL     {real}\nEMBEDDED {embedded}"))
        .collect();
    assert!(
        differing.is_empty(),
        "{} answers of {} differ:\n{}",
        differing.len(),
        real.len(),
        differing.join("\n")
    );
}
