//! Who may claim, mark and delete blocks, and that no Node claims another's.

use crate::chart::{self, Ipam};
use crate::cluster::{Cluster, NODES, annotate, ask, path_of};
use kube::Client;
use meshd_model::NodeUid;
use meshd_model::block::name;
use meshd_translate::annotations::POD_CIDRS;
use meshd_translate::blocks::{RELEASED, claim_body, delete_body};
use serde_json::{Value, json};
use std::time::Duration;

const BLOCKS: &str = "/apis/meshd.dev/v1alpha1/ipblocks";
const MERGE: &str = "application/merge-patch+json";
const MINE: &str = "10.244.3.64/26";
const THEIRS: &str = "10.244.3.128/26";
/// Nobody's.
const PROBE: &str = "10.244.3.192/26";

/// The kind is known and there are no blocks; two Nodes.
async fn with_blocks(cluster: &Cluster) -> [String; 2] {
    let crd = chart::custom_resource();
    cluster.apply(&crd).await;
    let begin = tokio::time::Instant::now();
    loop {
        let listed = ask(&cluster.admin, "GET", BLOCKS, "", &Value::Null).await;
        if listed.code == 200 {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{listed:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let nodes = [cluster.node("own").await, cluster.node("other").await];
    wait_for_freedom(cluster, &nodes[0]).await;
    nodes
}

/// The server goes on for a moment with a policy that was taken away. Deletes what is left once it does not.
async fn wait_for_freedom(cluster: &Cluster, node: &str) {
    let begin = tokio::time::Instant::now();
    loop {
        let tried = claim(cluster, &cluster.admin, PROBE, node).await;
        if tried.code != 403 {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{tried:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ask(&cluster.admin, "DELETE", BLOCKS, "", &Value::Null)
        .await
        .allowed("delete what is left");
}

async fn claim(cluster: &Cluster, client: &Client, cidr: &str, node: &str) -> crate::cluster::Answer {
    let uid = cluster.get(node).await["metadata"]["uid"]
        .as_str()
        .unwrap()
        .to_owned();
    let body = claim_body(cidr.parse().unwrap(), &node.into(), &NodeUid(uid));
    create(client, &body).await
}

async fn create(client: &Client, body: &Value) -> crate::cluster::Answer {
    ask(client, "POST", BLOCKS, "application/json", body).await
}

fn path(cidr: &str) -> String {
    format!("{BLOCKS}/{}", name(cidr.parse().unwrap()))
}

async fn patch(client: &Client, cidr: &str, patch: &Value) -> crate::cluster::Answer {
    ask(client, "PATCH", &path(cidr), MERGE, patch).await
}

async fn delete(client: &Client, cidr: &str) -> crate::cluster::Answer {
    ask(client, "DELETE", &path(cidr), "", &Value::Null).await
}

pub(crate) async fn a_block_is_what_its_name_says_and_stays_so(cluster: Cluster) {
    let [own, _] = with_blocks(&cluster).await;
    let good = claim_body(MINE.parse().unwrap(), &own.as_str().into(), &NodeUid("u".into()));
    for (what, at, value) in [
        ("another name", "/metadata/name", json!("10-244-3-128-26")),
        ("another block", "/spec/cidr", json!(THEIRS)),
        ("host bits", "/spec/cidr", json!("10.244.3.65/26")),
        ("no prefix", "/spec/cidr", json!("10.244.3.64")),
        ("no text", "/spec/cidr", json!(7)),
        ("no node", "/spec/node", json!("")),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(at).unwrap() = value;
        let answer = create(&cluster.admin, &bad).await;
        assert_eq!(answer.code, 422, "{what}: {}", answer.message());
    }
    let mut long = good.clone();
    long["metadata"]["name"] = "fd00-0-0-0-0-0-0-40-122".into();
    long["spec"]["cidr"] = "fd00:0:0:0:0:0:0:40/122".into();
    let answer = create(&cluster.admin, &long).await;
    assert_eq!(answer.code, 422, "one block has one name: {}", answer.message());
    claim(&cluster, &cluster.admin, MINE, &own)
        .await
        .allowed("what is right");
    let twice = claim(&cluster, &cluster.admin, MINE, &own).await;
    assert_eq!(
        (twice.code, twice.body["reason"].as_str()),
        (409, Some("AlreadyExists"))
    );
    claim(&cluster, &cluster.admin, "fd00:244::40/122", &own)
        .await
        .allowed("of IPv6");
    for change in [json!({"spec": {"node": "x"}}), json!({"spec": {"cidr": THEIRS}})] {
        let answer = patch(&cluster.admin, MINE, &change).await;
        assert_eq!(answer.code, 422, "{change}: {}", answer.message());
    }
}

pub(crate) async fn only_the_node_claims_marks_and_deletes_its_blocks(cluster: Cluster) {
    let [own, other] = with_blocks(&cluster).await;
    let [meshd, neighbour] = [cluster.meshd(&own).await, cluster.meshd(&other).await];
    let unbound = cluster.unbound().await;
    let released = json!({"metadata": {"annotations": {RELEASED: "true"}}});
    // The control: the rights alone let anyone of meshd do all of it.
    claim(&cluster, &neighbour, MINE, &own)
        .await
        .allowed("claim in another's name");
    patch(&unbound, MINE, &released).await.allowed("mark another's");
    delete(&neighbour, MINE).await.allowed("delete another's");

    cluster
        .enforce_pool("meshd-ipblocks", || claim(&cluster, &unbound, THEIRS, &own))
        .await;
    // Of the time before it was in force.
    delete(&cluster.admin, THEIRS).await;
    let intruders = [
        ("another node's meshd", &neighbour),
        ("unbound", &unbound),
        ("the administrator", &cluster.admin),
    ];
    for (who, client) in intruders {
        claim(&cluster, client, MINE, &own)
            .await
            .denied(&format!("{who} claims"), &["may not write IPBlock", &own]);
    }
    let uid = cluster.get(&own).await["metadata"]["uid"].clone();
    let good = claim_body(
        MINE.parse().unwrap(),
        &own.as_str().into(),
        &NodeUid(uid.as_str().unwrap().into()),
    );
    let theirs = cluster.get(&other).await["metadata"]["uid"].clone();
    for (what, at, value) in [
        ("no owner", "/metadata/ownerReferences", json!([])),
        ("another owner", "/metadata/ownerReferences/0/name", json!(other)),
        (
            "an owner of another UID",
            "/metadata/ownerReferences/0/uid",
            theirs,
        ),
        (
            "an owner of another kind",
            "/metadata/ownerReferences/0/kind",
            json!("Pod"),
        ),
        ("a finalizer", "/metadata/finalizers", json!(["example.org/stay"])),
    ] {
        let mut bad = good.clone();
        match bad.pointer_mut(at) {
            Some(field) => *field = value,
            None => bad["metadata"]["finalizers"] = value,
        }
        create(&meshd, &bad).await.denied(what, &["one owner"]);
    }
    for wrong in [
        "10.244.0.0/16",
        "10.244.3.0/25",
        "10.244.3.0/27",
        "10.0.0.0/8",
        "10.245.0.0/26",
        "fd00:244::/48",
        "fd00:244::/121",
        "fd00:245::/122",
    ] {
        claim(&cluster, &meshd, wrong, &own)
            .await
            .denied(wrong, &["a /26 or a /122 within the cluster's pod CIDRs"]);
    }
    for field in ["annotations", "labels"] {
        let mut bad = good.clone();
        bad["metadata"][field] = json!({ "example.org/x": "y" });
        create(&meshd, &bad)
            .await
            .denied(field, &["without annotations and labels"]);
    }
    claim(&cluster, &meshd, MINE, &own).await.allowed("its own");
    claim(&cluster, &meshd, "fd00:244::40/122", &own)
        .await
        .allowed("its own of IPv6");
    claim(&cluster, &neighbour, THEIRS, &other)
        .await
        .allowed("the other's own");

    for (who, client) in intruders {
        patch(client, MINE, &released)
            .await
            .denied(&format!("{who} marks"), &["may not write IPBlock"]);
    }
    for (who, client) in &intruders[..2] {
        delete(client, MINE)
            .await
            .denied(&format!("{who} deletes"), &["may not write IPBlock"]);
    }
    delete(&meshd, MINE)
        .await
        .denied("before it is marked", &["marked as given back before"]);
    for change in [
        json!({"metadata": {"annotations": {"example.org/x": "y"}}}),
        json!({"metadata": {"annotations": {RELEASED: "no"}}}),
        json!({"metadata": {"labels": {"x": "y"}}}),
        json!({"metadata": {"finalizers": ["example.org/stay"]}}),
        json!({"metadata": {"ownerReferences": null}}),
    ] {
        patch(&meshd, MINE, &change)
            .await
            .denied(&change.to_string(), &["only the mark"]);
    }
    patch(&meshd, MINE, &released).await.allowed("its mark");
    let back = json!({"metadata": {"annotations": {RELEASED: null}}});
    patch(&meshd, MINE, &back)
        .await
        .denied("taking it back", &["it stays"]);
    let wrong = ask(
        &meshd,
        "DELETE",
        &path(MINE),
        "application/json",
        &delete_body("another"),
    )
    .await;
    assert_eq!(wrong.code, 409, "{}", wrong.message());
    delete(&meshd, MINE).await.allowed("its deletion");
    delete(&cluster.admin, THEIRS)
        .await
        .allowed("the administrator's, as the garbage collector's");
}

pub(crate) async fn no_node_claims_the_block_of_another(cluster: Cluster) {
    let [own, other] = with_blocks(&cluster).await;
    let [meshd, neighbour] = [cluster.meshd(&own).await, cluster.meshd(&other).await];
    claim(&cluster, &meshd, MINE, &own).await.allowed("its own");
    claim(&cluster, &neighbour, THEIRS, &other)
        .await
        .allowed("the other's");
    // Of a time without policies: it is wider than a block.
    claim(&cluster, &cluster.admin, "10.244.0.0/16", &other)
        .await
        .allowed("one that stands for all");
    let theirs = async || annotate(&meshd, &format!("{own}?dryRun=All"), POD_CIDRS, THEIRS).await;
    theirs().await.allowed("without the policies");
    cluster.enforce_pool("meshd-node-blocks", theirs).await;
    cluster.enforce_as("meshd-node-annotations", Ipam::Pool).await;
    for bad in [THEIRS, &format!("{MINE},{THEIRS}"), "10.244.3.160/28"] {
        let claimed = annotate(&meshd, &own, POD_CIDRS, bad).await;
        claimed.denied(bad, &["may not claim", THEIRS, &other]);
        let status = format!("{own}/status");
        annotate(&meshd, &status, POD_CIDRS, bad)
            .await
            .denied("through the status", &["may not claim"]);
    }
    for wide in ["10.244.2.0/25", "fd00:244::/64"] {
        annotate(&meshd, &own, POD_CIDRS, wide)
            .await
            .denied(wide, &["no wider than /26 and /122"]);
    }
    annotate(&meshd, &own, POD_CIDRS, MINE)
        .await
        .allowed("its own, whatever spec.podCIDRs says");
    annotate(&meshd, &own, POD_CIDRS, Value::Null)
        .await
        .allowed("none");
    // Those who change something else of the Node are not in the policy's way.
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    ask(&cluster.admin, "PATCH", &format!("{NODES}/{own}"), MERGE, &label)
        .await
        .allowed("a label");
    for object in chart::policies(Ipam::Pool) {
        ask(&cluster.admin, "DELETE", &path_of(&object), "", &Value::Null).await;
    }
    ask(&cluster.admin, "DELETE", BLOCKS, "", &Value::Null)
        .await
        .allowed("all of it");
}
