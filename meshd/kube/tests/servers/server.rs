//! A server of either kind, with a way to it that can be cut, and an administrator who goes another way.

use crate::embedded::Embedded;
use crate::proxy::Proxy;
use kube::Client;
use meshd_control_plane::ControlPlane;
use meshd_kube::{Access, connect};
use meshd_translate::blocks::{GROUP, PLURAL, VERSION};
use serde_json::{Value, json};
use std::net::SocketAddr;

pub(crate) const NODES: &str = "/api/v1/nodes";
pub(crate) const PODS: &str = "/api/v1/namespaces/default/pods";

enum Kind {
    Embedded(Embedded),
    Real(ControlPlane),
}

pub(crate) struct Server {
    kind: Kind,
    admin: Client,
    folder: tempfile::TempDir,
    pub(crate) way: Proxy,
    /// Names begin with it: the trials of a real server share it.
    prefix: String,
}

impl Server {
    pub(crate) async fn embedded() -> Self {
        Self::new(Kind::Embedded(Embedded::start().await)).await
    }

    pub(crate) async fn real(control_plane: ControlPlane) -> Self {
        Self::new(Kind::Real(control_plane)).await
    }

    async fn new(kind: Kind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = kind.address();
        let way = Proxy::to(address).await;
        let file = folder.path().join("kubeconfig");
        std::fs::write(&file, kind.kubeconfig(way.address())).unwrap();
        let direct = folder.path().join("direct");
        std::fs::write(&direct, kind.kubeconfig(address)).unwrap();
        let admin = connect(&Access::Kubeconfig(direct)).await.unwrap();
        let unique = folder
            .path()
            .file_name()
            .unwrap()
            .to_string_lossy()
            .to_lowercase();
        let prefix: String = unique.chars().filter(char::is_ascii_alphanumeric).collect();
        Self {
            kind,
            admin,
            folder,
            way,
            prefix,
        }
    }

    /// A client that goes the way that can be cut.
    pub(crate) async fn client(&self) -> Client {
        let file = self.folder.path().join("kubeconfig");
        connect(&Access::Kubeconfig(file)).await.unwrap()
    }

    /// A name that no other trial has.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Makes the server forget all that happened before now.
    pub(crate) fn forget_history(&self) {
        match &self.kind {
            Kind::Embedded(embedded) => embedded.forget_history(),
            Kind::Real(control_plane) => control_plane.forget_history(),
        }
    }

    /// Makes the kind of blocks known, as the chart does; the embedded server knows it.
    pub(crate) async fn know_blocks(&self) {
        let Kind::Real(_) = &self.kind else { return };
        let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        let template = include_str!("../../../../deploy/chart/templates/ipblocks.yaml");
        let crd: String = template
            .split("{{- if .Values.admissionPolicy.enabled }}")
            .take(1)
            .flat_map(|text| text.lines().filter(|line| !line.starts_with("{{- ")))
            .map(|line| format!("{line}\n"))
            .collect();
        let crd: Value = serde_saphyr::from_str(&crd).unwrap();
        let (status, answer) = self.ask("POST", crds, "application/json", &crd).await;
        assert!(status == 200 || status == 409, "{answer}");
        let list = format!("/apis/{GROUP}/{VERSION}/{PLURAL}");
        for _ in 0..300 {
            if self.ask("GET", &list, "", &Value::Null).await.0 == 200 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!("the API server does not serve {list}");
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The administrator asks; the answer as it came.
    pub(crate) async fn raw(
        &self,
        method: &str,
        path: &str,
        media: &str,
        partial: bool,
        body: &Value,
    ) -> (u16, String) {
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let mut request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("user-agent", "trial/1");
        if !media.is_empty() {
            request = request.header("content-type", media);
        }
        if partial {
            let object = path.contains("watch=true") || !path.contains('?');
            let kind = if object {
                "PartialObjectMetadata"
            } else {
                "PartialObjectMetadataList"
            };
            request = request.header("accept", format!("application/json;as={kind};g=meta.k8s.io;v=v1"));
        }
        let response = self.admin.send(request.body(body.into()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let bytes = http_body_util::BodyExt::collect(response.into_body())
            .await
            .unwrap()
            .to_bytes();
        (status, String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The administrator asks; the answer's status and body.
    pub(crate) async fn ask(&self, method: &str, path: &str, media: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", media);
        match self.admin.request::<Value>(request.body(body).unwrap()).await {
            Ok(value) => (200, value),
            Err(kube::Error::Api(status)) => (status.code, serde_json::to_value(&status).unwrap()),
            Err(error) => panic!("{method} {path}: {error}"),
        }
    }

    async fn do_it(&self, method: &str, path: &str, media: &str, body: &Value) -> Value {
        let (status, value) = self.ask(method, path, media, body).await;
        assert_eq!(status, 200, "{method} {path}: {value}");
        value
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.do_it("GET", path, "", &Value::Null).await
    }

    /// Creates a Node; gives its UID.
    pub(crate) async fn create_node(&self, name: &str) -> String {
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "annotations": {"example.org/note": "kept"}},
            "spec": {"podCIDR": "10.244.7.0/24", "podCIDRs": ["10.244.7.0/24", "fd00:244:0:7::/64"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.7"}, {"type": "Hostname", "address": name}]},
        });
        let made = self.do_it("POST", NODES, "application/json", &node).await;
        made["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn delete_node(&self, name: &str) {
        self.do_it("DELETE", &format!("{NODES}/{name}"), "", &Value::Null)
            .await;
    }

    pub(crate) async fn annotate(&self, node: &str, key: &str, value: &str) {
        let patch = json!({"metadata": {"annotations": {key: value}}});
        self.merge(&format!("{NODES}/{node}"), &patch).await;
    }

    pub(crate) async fn merge(&self, path: &str, patch: &Value) {
        self.do_it("PATCH", path, "application/merge-patch+json", patch)
            .await;
    }

    /// Server-side apply of an annotation by another manager.
    pub(crate) async fn apply(&self, node: &str, key: &str, value: &str, force: bool) -> (u16, Value) {
        let body = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "annotations": {key: value}}});
        let path = format!("{NODES}/{node}?fieldManager=other&force={force}");
        self.ask("PATCH", &path, "application/apply-patch+yaml", &body)
            .await
    }

    pub(crate) async fn create_pod(&self, name: &str, node: &str, host_network: bool) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"nodeName": node, "hostNetwork": host_network, "containers": [{"name": "c", "image": "i"}]},
        });
        self.do_it("POST", PODS, "application/json", &pod).await;
    }

    pub(crate) async fn delete_pod(&self, name: &str) {
        let path = format!("{PODS}/{name}?gracePeriodSeconds=0");
        self.do_it("DELETE", &path, "", &Value::Null).await;
    }

    pub(crate) async fn annotations(&self, node: &str) -> Value {
        self.get(&format!("{NODES}/{node}")).await["metadata"]["annotations"].clone()
    }
}

impl Kind {
    fn address(&self) -> SocketAddr {
        match self {
            Kind::Embedded(embedded) => embedded.address(),
            Kind::Real(control_plane) => control_plane.address(),
        }
    }

    fn kubeconfig(&self, address: SocketAddr) -> String {
        match self {
            Kind::Embedded(embedded) => embedded.kubeconfig(address),
            Kind::Real(control_plane) => control_plane.kubeconfig(address),
        }
    }
}
