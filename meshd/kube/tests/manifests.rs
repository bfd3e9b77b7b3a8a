//! What `deploy/` holds for kubectl is taken by a real API server: a dry run on the server, in which a field that it
//! does not know is an error (`fieldValidation=Strict`).

use kube::Client;
use meshd_control_plane::{ControlPlane, Trouble};
use meshd_kube::Access;
use serde_json::Value;
use std::time::Duration;

/// How long the API server may take to have its own namespaces after its start.
const PATIENCE: Duration = Duration::from_secs(60);

fn documents() -> Vec<Value> {
    let texts = [
        include_str!("../../../deploy/meshd.yaml"),
        include_str!("../../../deploy/uninstall.yaml"),
    ];
    let documents = texts
        .iter()
        .flat_map(|text| -> Vec<Value> { serde_saphyr::from_multiple(text).unwrap() });
    // Only comments.
    documents.filter(|document| !document.is_null()).collect()
}

/// Where objects of this kind are created.
fn path(object: &Value) -> String {
    let namespace = object["metadata"]["namespace"].as_str();
    let plural = match object["kind"].as_str().unwrap() {
        "ValidatingAdmissionPolicy" => "validatingadmissionpolicies".to_owned(),
        kind => format!("{}s", kind.to_lowercase()),
    };
    let version = object["apiVersion"].as_str().unwrap();
    let group = match version.contains('/') {
        true => format!("/apis/{version}"),
        false => format!("/api/{version}"),
    };
    match namespace {
        Some(namespace) => format!("{group}/namespaces/{namespace}/{plural}"),
        None => format!("{group}/{plural}"),
    }
}

/// Creates the object in a dry run; the server's refusal.
async fn try_out(client: &Client, object: &Value) -> Result<Value, kube::Error> {
    let uri = format!("{}?dryRun=All&fieldValidation=Strict", path(object));
    let request = http::Request::post(uri)
        .header("content-type", "application/json")
        .body(object.to_string().into_bytes())
        .unwrap();
    client.request(request).await
}

#[tokio::test]
async fn a_real_api_server_takes_every_object_in_a_dry_run() {
    let control_plane = match ControlPlane::start() {
        Ok(control_plane) => control_plane,
        Err(Trouble::Unable(why)) => {
            return meshd_skip::skip_on("kubernetes", "a real API server takes the manifests", why);
        }
        Err(Trouble::Failed(why)) => panic!("{why}"),
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), control_plane.kubeconfig(control_plane.address())).unwrap();
    let client = meshd_kube::connect(&Access::Kubeconfig(file.path().to_owned()))
        .await
        .unwrap();
    let namespaces = tokio::time::timeout(PATIENCE, async {
        let there = || {
            http::Request::get("/api/v1/namespaces/kube-system")
                .body(Vec::new())
                .unwrap()
        };
        while client.request::<Value>(there()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    namespaces.await.expect("the API server makes its own namespaces");

    let documents = documents();
    assert!(documents.len() > 10, "{}", documents.len());
    for object in &documents {
        let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
        let answer = try_out(&client, object)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(answer["metadata"]["name"], object["metadata"]["name"]);
    }
    // The control: what it does not know, it refuses.
    let mut wrong = documents
        .iter()
        .find(|d| d["kind"] == "DaemonSet")
        .unwrap()
        .clone();
    wrong["spec"]["template"]["spec"]["hostNetwerk"] = true.into();
    let refused = try_out(&client, &wrong).await.unwrap_err().to_string();
    assert!(refused.contains("hostNetwerk"), "{refused}");
}
