//! The lab's side of the API server: what a cluster's administrator, controllers and scheduler would write.

use crate::plan::{Families, Plan};
use anyhow::{Context, Result, anyhow};
use ipnetwork::IpNetwork;
use kube::{Client, Config};
use meshd_model::NodeName;
use serde_json::{Value, json};
use std::fmt;
use std::net::IpAddr;

const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// What the API server answered instead, in its own words; kube's own text says all of it three times.
#[derive(Debug)]
struct Denied {
    code: u16,
    message: String,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the API server answered {}: {}", self.code, self.message)
    }
}

impl std::error::Error for Denied {}

/// A client of the API server.
#[derive(Clone)]
pub struct Kubernetes {
    client: Client,
}

impl Kubernetes {
    /// A client of the embedded API server.
    pub fn embedded(families: &Families) -> Result<Self> {
        let url = format!("http://{}", Plan::api_server(families));
        let url = url.parse().context("the API server's address is no URL")?;
        Self::new(Config::new(url))
    }

    /// A client by configuration. Call it within a tokio runtime.
    pub fn new(config: Config) -> Result<Self> {
        let client = Client::try_from(config).context("make a client of the API server")?;
        Ok(Self { client })
    }

    /// Creates a Node as a kubelet and the controller manager would: addresses and pod CIDRs, if there are any.
    pub async fn create_node(
        &self,
        name: &NodeName,
        cidrs: &[IpNetwork],
        addresses: &[IpAddr],
    ) -> Result<()> {
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs},
            "status": {"addresses": status_addresses(name, addresses)},
        });
        self.call("POST", "/api/v1/nodes", "application/json", &node)
            .await
            .map(drop)
            .with_context(|| format!("create Node {name}"))
    }

    /// Writes a Node's addresses as its kubelet does.
    pub async fn set_addresses(&self, name: &NodeName, addresses: &[IpAddr]) -> Result<()> {
        let patch = json!({"status": {"addresses": status_addresses(name, addresses)}});
        let path = format!("/api/v1/nodes/{name}/status?fieldManager=kubelet");
        self.call("PATCH", &path, MERGE, &patch)
            .await
            .map(drop)
            .with_context(|| format!("write the addresses of Node {name}"))
    }

    /// Deletes a Node; that there is none is success.
    pub async fn delete_node(&self, name: &NodeName) -> Result<()> {
        self.delete(&format!("/api/v1/nodes/{name}"))
            .await
            .with_context(|| format!("delete Node {name}"))
    }

    /// Writes or removes annotations of a Node.
    pub async fn annotate(&self, name: &NodeName, annotations: &[(&str, Option<&str>)]) -> Result<()> {
        let annotations: Value = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect::<serde_json::Map<_, _>>()
            .into();
        let patch = json!({"metadata": {"annotations": annotations}});
        self.call(
            "PATCH",
            &format!("/api/v1/nodes/{name}?fieldManager=lab"),
            MERGE,
            &patch,
        )
        .await
        .map(drop)
        .with_context(|| format!("annotate Node {name}"))
    }

    /// The annotations of a Node.
    pub async fn annotations(&self, name: &NodeName) -> Result<Value> {
        let node = self
            .call("GET", &format!("/api/v1/nodes/{name}"), "", &Value::Null)
            .await;
        let node = node.with_context(|| format!("read Node {name}"))?;
        Ok(node.pointer("/metadata/annotations").cloned().unwrap_or_default())
    }

    /// Creates a pod that is bound to a node; returns its UID.
    pub async fn create_pod(&self, node: &NodeName, name: &str) -> Result<String> {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": {"app": "lab"}},
            "spec": {
                "nodeName": node,
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "echo", "image": "registry.invalid/echo"}],
            },
        });
        let made = self
            .call(
                "POST",
                "/api/v1/namespaces/default/pods",
                "application/json",
                &pod,
            )
            .await
            .with_context(|| format!("create pod {name}"))?;
        let uid = made.pointer("/metadata/uid").and_then(Value::as_str);
        Ok(uid.with_context(|| format!("pod {name} has no UID"))?.to_owned())
    }

    /// Deletes a pod; that there is none is success.
    pub async fn delete_pod(&self, name: &str) -> Result<()> {
        self.delete(&format!(
            "/api/v1/namespaces/default/pods/{name}?gracePeriodSeconds=0"
        ))
        .await
        .with_context(|| format!("delete pod {name}"))
    }

    /// Creates or replaces an object by server-side apply.
    pub async fn apply(&self, object: &Value) -> Result<()> {
        let path = path_of(object)?;
        self.call(
            "PATCH",
            &format!("{path}?fieldManager=lab&force=true"),
            APPLY,
            object,
        )
        .await
        .map(drop)
        .with_context(|| format!("apply {path}"))
    }

    async fn delete(&self, path: &str) -> Result<()> {
        match self.call("DELETE", path, "", &Value::Null).await {
            Err(error) if error.downcast_ref::<Denied>().is_some_and(|d| d.code == 404) => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    async fn call(&self, method: &str, path: &str, content_type: &str, body: &Value) -> Result<Value> {
        let mut request = http::Request::builder().method(method).uri(path);
        if !content_type.is_empty() {
            request = request.header(http::header::CONTENT_TYPE, content_type);
        }
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let request = request
            .body(body)
            .map_err(|e| anyhow!("{method} {path} is no request: {e}"))?;
        self.client
            .request::<Value>(request)
            .await
            .map_err(|error| match error {
                kube::Error::Api(status) => anyhow!(Denied {
                    code: status.code,
                    message: status.message,
                }),
                error => anyhow!(error),
            })
    }
}

fn status_addresses(name: &NodeName, addresses: &[IpAddr]) -> Vec<Value> {
    let internal = addresses
        .iter()
        .map(|a| json!({"type": "InternalIP", "address": a}));
    std::iter::once(json!({"type": "Hostname", "address": name}))
        .chain(internal)
        .collect()
}

/// The documents of a manifest (YAML).
pub fn documents(manifests: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(manifests).context("the manifests are not YAML")?;
    Ok(documents.into_iter().filter(|d| !d.is_null()).collect())
}

/// The path of an object of the core API, or of a group, by the usual plural.
fn path_of(object: &Value) -> Result<String> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let (Some(version), Some(kind), Some(name)) =
        (text("/apiVersion"), text("/kind"), text("/metadata/name"))
    else {
        return Err(anyhow!(
            "an object needs apiVersion, kind and metadata.name: {object}"
        ));
    };
    let root = if version.contains('/') { "apis" } else { "api" };
    let plural = match kind.to_lowercase() {
        k if k.ends_with('y') => format!("{}ies", &k[..k.len() - 1]),
        k if k.ends_with('s') => format!("{k}es"),
        k => format!("{k}s"),
    };
    let cluster_wide = [
        "Node",
        "Namespace",
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
    ];
    if cluster_wide.contains(&kind) {
        return Ok(format!("/{root}/{version}/{plural}/{name}"));
    }
    let namespace = text("/metadata/namespace").unwrap_or("default");
    Ok(format!(
        "/{root}/{version}/namespaces/{namespace}/{plural}/{name}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_found_where_the_api_has_them() {
        let path = |object: Value| path_of(&object).unwrap();
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}});
        assert_eq!(path(node), "/api/v1/nodes/a");
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "x"}});
        assert_eq!(path(pod), "/api/v1/namespaces/x/pods/p");
        let policy =
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "d"}});
        assert_eq!(
            path(policy),
            "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies/d"
        );
        assert!(path_of(&json!({"kind": "Node"})).is_err());
    }
}
