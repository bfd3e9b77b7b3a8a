//! A cluster with the chart's rights, and those who try to write its Nodes.

use crate::chart::{self, ACCOUNT, Ipam, NAMESPACE, UNINSTALL};
use kube::Client;
use meshd_control_plane::ControlPlane;
use meshd_kube::{Access, connect};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

pub(crate) const NODES: &str = "/api/v1/nodes";
const MERGE: &str = "application/merge-patch+json";
/// A policy takes a second or two until it is in force.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Cluster {
    pub(crate) control_plane: ControlPlane,
    pub(crate) admin: Client,
    pub(crate) folder: tempfile::TempDir,
    prefix: String,
}

/// What the API server answers to a write.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn allowed(self, what: &str) -> Value {
        assert!(
            (200..300).contains(&self.code),
            "should be allowed: {what}: {} {}",
            self.code,
            self.message()
        );
        self.body
    }

    /// Refused by one of the policies, with a message that has all of these.
    #[track_caller]
    pub(crate) fn denied(&self, what: &str, texts: &[&str]) {
        let (code, message) = (self.code, self.message());
        assert!(
            code == 403 && message.contains("ValidatingAdmissionPolicy 'meshd-"),
            "should be denied by a policy: {what}: {code} {message}"
        );
        for text in texts {
            assert!(message.contains(text), "{what}: {text:?} is not in: {message}");
        }
    }
}

impl Cluster {
    /// Without the policies.
    pub(crate) async fn new(control_plane: ControlPlane) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("admin");
        std::fs::write(&file, control_plane.kubeconfig(control_plane.address())).unwrap();
        let admin = connect(&Access::Kubeconfig(file)).await.unwrap();
        let unique = folder.path().file_name().unwrap().to_string_lossy();
        let prefix = unique
            .to_lowercase()
            .replace(|c: char| !c.is_ascii_alphanumeric(), "");
        let cluster = Self {
            control_plane,
            admin,
            folder,
            prefix,
        };
        cluster.remove_policies().await;
        for object in chart::rights() {
            cluster.apply(&object).await;
        }
        cluster
    }

    /// With both policies in force.
    pub(crate) async fn protected(cluster: Self) -> Self {
        for policy in ["meshd-node-annotations", "meshd-account"] {
            cluster.enforce(policy).await;
        }
        cluster
    }

    /// Puts one of the policies in force; it is when it refuses what it must, tried without changing anything.
    pub(crate) async fn enforce(&self, policy: &str) {
        self.enforce_as(policy, Ipam::Kubernetes).await;
    }

    /// The same, as the chart has it for this mode.
    pub(crate) async fn enforce_as(&self, policy: &str, ipam: Ipam) {
        self.apply_policy(policy, ipam).await;
        let probe = self.node(&format!("probe-{policy}")).await;
        let account = if policy == UNINSTALL { UNINSTALL } else { ACCOUNT };
        let unbound = json!({ "token": self.token_as(account, &Value::Null).await });
        let unbound = self.client(&unbound).await;
        let path = format!("{NODES}/{probe}?dryRun=All");
        let label = json!({"metadata": {"labels": {"probe": "1"}}});
        let annotation = json!({"metadata": {"annotations": {"meshd.dev/probe": "1"}}});
        let begin = Instant::now();
        loop {
            let answer = match policy {
                "meshd-account" | UNINSTALL => ask(&unbound, "PATCH", &path, MERGE, &label).await,
                _ => ask(&self.admin, "PATCH", &path, MERGE, &annotation).await,
            };
            if answer.code == 403 && answer.message().contains(policy) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "{policy} is not in force: {answer:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Puts a policy of the pool mode in force, which it is when it refuses this.
    pub(crate) async fn enforce_pool(&self, policy: &str, probe: impl AsyncFn() -> Answer) {
        self.apply_policy(policy, Ipam::Pool).await;
        let begin = Instant::now();
        loop {
            let answer = probe().await;
            if answer.code == 403 && answer.message().contains(policy) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "{policy} is not in force: {answer:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn apply_policy(&self, policy: &str, ipam: Ipam) {
        for object in chart::policies(ipam) {
            if object["metadata"]["name"] == policy {
                self.apply(&object).await;
            }
        }
    }

    /// Until they are out of force: the trials share the server.
    async fn remove_policies(&self) {
        for object in chart::policies(Ipam::Pool) {
            ask(&self.admin, "DELETE", &path_of(&object), "", &Value::Null).await;
        }
        let probe = self.node("free").await;
        let path = format!("{NODES}/{probe}?dryRun=All");
        let annotation = json!({"metadata": {"annotations": {"meshd.dev/probe": "1"}}});
        let begin = Instant::now();
        while ask(&self.admin, "PATCH", &path, MERGE, &annotation).await.code != 200 {
            assert!(begin.elapsed() < PATIENCE, "the policies are still in force");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) async fn apply(&self, object: &Value) {
        let path = format!("{}?fieldManager=chart&force=true", path_of(object));
        let answer = ask(
            &self.admin,
            "PATCH",
            &path,
            "application/apply-patch+yaml",
            object,
        )
        .await;
        answer.allowed(&path);
    }

    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// A Node with pod CIDRs, addresses of several kinds, a label, a taint and conditions.
    pub(crate) async fn node(&self, name: &str) -> String {
        let name = self.name(name);
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"a": "b"}, "annotations": {"example.org/note": "kept"}},
            "spec": {
                "podCIDR": "10.244.7.0/24", "podCIDRs": ["10.244.7.0/24", "fd00:244:0:7::/64"],
                "taints": [{"key": "example.org/slow", "effect": "NoSchedule"}],
            },
        });
        let made = ask(&self.admin, "POST", NODES, "application/json", &node).await;
        made.allowed("create a Node");
        let status = json!({"status": {
            "addresses": [
                {"type": "InternalIP", "address": "192.0.2.7"},
                {"type": "InternalIP", "address": "2001:db8::7"},
                {"type": "ExternalIP", "address": "198.51.100.7"},
                {"type": "Hostname", "address": "192.0.2.99"},
            ],
            "conditions": [
                {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"},
                {"type": "Ready", "status": "True", "reason": "KubeletReady"},
            ],
        }});
        let path = format!("{NODES}/{name}/status");
        let patched = ask(&self.admin, "PATCH", &path, MERGE, &status).await;
        patched.allowed("give a Node a status");
        name
    }

    pub(crate) async fn get(&self, node: &str) -> Value {
        let answer = ask(&self.admin, "GET", &format!("{NODES}/{node}"), "", &Value::Null).await;
        answer.allowed("get a Node")
    }

    /// A token of meshd's account that is bound to a pod on this node, as the kubelet projects it into the pod.
    pub(crate) async fn token_of(&self, node: &str) -> String {
        self.pod_token(ACCOUNT, node).await
    }

    async fn pod_token(&self, account: &str, node: &str) -> String {
        let name = format!("{account}-{node}");
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"nodeName": node, "serviceAccountName": account, "containers": [{"name": "c", "image": "i"}]},
        });
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
        let answer = ask(&self.admin, "POST", &path, "application/json", &pod).await;
        if answer.code != 409 {
            answer.allowed("create meshd's pod");
        }
        self.token_as(account, &json!({"kind": "Pod", "apiVersion": "v1", "name": name}))
            .await
    }

    pub(crate) async fn token(&self, bound_to: &Value) -> String {
        self.token_as(ACCOUNT, bound_to).await
    }

    async fn token_as(&self, account: &str, bound_to: &Value) -> String {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token");
        let mut request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": null}});
        if !bound_to.is_null() {
            request["spec"]["boundObjectRef"] = bound_to.clone();
        }
        let answer = ask(&self.admin, "POST", &path, "application/json", &request).await;
        let answer = answer.allowed("request a token");
        answer["status"]["token"].as_str().unwrap().to_owned()
    }

    /// meshd on this node.
    pub(crate) async fn meshd(&self, node: &str) -> Client {
        let token = self.token_of(node).await;
        self.client(&json!({ "token": token })).await
    }

    /// What takes meshd off this node.
    pub(crate) async fn uninstaller(&self, node: &str) -> Client {
        let token = self.pod_token(UNINSTALL, node).await;
        self.client(&json!({ "token": token })).await
    }

    /// meshd's account, with a token that is bound to nothing.
    pub(crate) async fn unbound(&self) -> Client {
        let token = self.token(&Value::Null).await;
        self.client(&json!({ "token": token })).await
    }

    pub(crate) async fn kubelet(&self, node: &str) -> Client {
        self.client(&self.control_plane.kubelet(node)).await
    }

    pub(crate) async fn client(&self, user: &Value) -> Client {
        let file = tempfile::NamedTempFile::new_in(self.folder.path()).unwrap();
        let (_, file) = file.keep().unwrap();
        let address = self.control_plane.address();
        std::fs::write(&file, self.control_plane.kubeconfig_with(user, address)).unwrap();
        connect(&Access::Kubeconfig(file)).await.unwrap()
    }
}

/// Where an object of the chart is.
pub(crate) fn path_of(object: &Value) -> String {
    let group = match object["apiVersion"].as_str().unwrap() {
        "v1" => "/api/v1".to_owned(),
        group => format!("/apis/{group}"),
    };
    let plural = match object["kind"].as_str().unwrap() {
        "ValidatingAdmissionPolicy" => "validatingadmissionpolicies".to_owned(),
        kind => format!("{}s", kind.to_lowercase()),
    };
    let namespace = object["metadata"]["namespace"].as_str();
    let namespace = namespace.map_or(String::new(), |n| format!("/namespaces/{n}"));
    format!(
        "{group}{namespace}/{plural}/{}",
        object["metadata"]["name"].as_str().unwrap()
    )
}

pub(crate) async fn ask(client: &Client, method: &str, path: &str, media: &str, body: &Value) -> Answer {
    let body = if body.is_null() {
        Vec::new()
    } else {
        body.to_string().into_bytes()
    };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", media)
        .body(body.into())
        .unwrap();
    let response = client.send(request).await.unwrap();
    let code = response.status().as_u16();
    let collected = http_body_util::BodyExt::collect(response.into_body()).await;
    let body = serde_json::from_slice(&collected.unwrap().to_bytes()).unwrap_or_default();
    Answer { code, body }
}

/// A merge patch of a Node, or of its status where `path` ends so.
pub(crate) async fn merge(client: &Client, path: &str, patch: &Value) -> Answer {
    ask(client, "PATCH", &format!("{NODES}/{path}"), MERGE, patch).await
}

/// A merge patch of one annotation.
pub(crate) async fn annotate(client: &Client, path: &str, key: &str, value: impl Into<Value>) -> Answer {
    let value: Value = value.into();
    merge(client, path, &json!({"metadata": {"annotations": {key: value}}})).await
}
