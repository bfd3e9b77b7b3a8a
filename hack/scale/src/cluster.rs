//! The control plane and its Nodes, written by those who write them in a cluster: their metadata, which is what every
//! daemon watches, consists largely of who wrote what.

use anyhow::{Context, anyhow};
use futures::{StreamExt, TryStreamExt, stream};
use kube::Client;
use meshd_control_plane::{ControlPlane, Request, Trouble};
use meshd_kube::Access;
use meshd_model::{NodeAnnotations, NodeName, NodeUid, PublicKey};
use meshd_translate::publish_body;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// More do not fit the pod CIDR.
pub(crate) const NODES_MAX: u32 = 1000;
/// The pod CIDRs of the cluster: a /24 and a /64 for each node.
pub(crate) const POD_CIDRS: [&str; 2] = ["10.244.0.0/14", "fd00:244::/48"];
/// Requests that make the Nodes, at a time.
const AT_A_TIME: usize = 16;
const NODES: &str = "/api/v1/nodes";
const JSON: &str = "application/json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

pub(crate) struct Cluster {
    control_plane: ControlPlane,
    admin: Client,
    pub(crate) nodes: u32,
    folder: tempfile::TempDir,
}

impl Cluster {
    /// Starts the control plane and fills it.
    pub(crate) async fn start(nodes: u32) -> anyhow::Result<Self> {
        let started = tokio::task::spawn_blocking(ControlPlane::start).await?;
        let control_plane = started.map_err(|trouble| match trouble {
            Trouble::Unable(why) => anyhow!("{why}; hack/kubernetes builds both"),
            Trouble::Failed(why) => anyhow!("{why}"),
        })?;
        let folder = tempfile::tempdir().context("make a folder")?;
        let file = folder.path().join("admin.kubeconfig");
        std::fs::write(&file, control_plane.kubeconfig(control_plane.address()))?;
        let admin = meshd_kube::connect(&Access::Kubeconfig(file)).await?;
        let cluster = Self {
            control_plane,
            admin,
            nodes,
            folder,
        };
        let all = stream::iter(0..nodes).map(|i| cluster.create(i, Some(key())));
        let made: Vec<()> = all.buffer_unordered(AT_A_TIME).try_collect().await?;
        assert_eq!(made.len(), nodes as usize);
        Ok(cluster)
    }

    pub(crate) fn describe(&self) -> String {
        let address = self.control_plane.address();
        format!("{} Nodes at the API server on {address}", self.nodes)
    }

    pub(crate) fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    pub(crate) fn name(i: u32) -> NodeName {
        NodeName(format!("node-{i:04}"))
    }

    /// What the node publishes.
    pub(crate) fn annotations(i: u32, public_key: PublicKey) -> NodeAnnotations {
        let parsed = |texts: [String; 2]| texts.map(|t| t.parse().expect("an address")).to_vec();
        NodeAnnotations {
            public_key,
            listen_port: 51820,
            endpoints: parsed(internal_ips(i)),
            node_addresses: parsed(internal_ips(i)),
            mtu: 1420,
            pod_cidrs: cidrs(i).map(|t| t.parse().expect("a prefix")).to_vec(),
            protocol_version: 1,
        }
    }

    /// A Node as kubelet, controller manager and meshd write it, the last only with a key. Gives its UID.
    pub(crate) async fn create(&self, i: u32, key: Option<PublicKey>) -> anyhow::Result<()> {
        let name = Self::name(i);
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": name,
                "labels": labels(&name),
                "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
            },
        });
        let made = self
            .call("POST", &format!("{NODES}?fieldManager=kubelet"), JSON, &node)
            .await?;
        let uid = NodeUid(made["metadata"]["uid"].as_str().unwrap_or_default().to_owned());
        let [v4, v6] = cidrs(i);
        let spec = json!({
            "metadata": {"annotations": {"node.alpha.kubernetes.io/ttl": "0"}},
            "spec": {"podCIDR": v4, "podCIDRs": [v4, v6]},
        });
        let path = format!("{NODES}/{name}?fieldManager=kube-controller-manager");
        self.call("PATCH", &path, STRATEGIC, &spec).await?;
        self.status(i, &status(i)).await?;
        if let Some(key) = key {
            self.publish(i, &uid, key, 51820).await?;
        }
        Ok(())
    }

    /// Writes the node's annotations as its daemon does.
    pub(crate) async fn publish(
        &self,
        i: u32,
        uid: &NodeUid,
        key: PublicKey,
        port: u16,
    ) -> anyhow::Result<()> {
        let mut annotations = Self::annotations(i, key);
        annotations.listen_port = port;
        let name = Self::name(i);
        let body = publish_body(&name, uid, &annotations);
        let path = format!("{NODES}/{name}?fieldManager=meshd&force=true");
        self.call("PATCH", &path, APPLY, &body).await.map(drop)
    }

    /// What a kubelet writes every five minutes without a change (`nodeStatusReportFrequency`).
    pub(crate) async fn heartbeat(&self, i: u32, second: u32) -> anyhow::Result<()> {
        self.status(i, &json!({"status": {"conditions": conditions(second)}}))
            .await
    }

    async fn status(&self, i: u32, status: &Value) -> anyhow::Result<()> {
        let path = format!("{NODES}/{}/status?fieldManager=kubelet", Self::name(i));
        self.call("PATCH", &path, STRATEGIC, status).await.map(drop)
    }

    pub(crate) async fn uid(&self, i: u32) -> anyhow::Result<NodeUid> {
        let node = self
            .call("GET", &format!("{NODES}/{}", Self::name(i)), "", &Value::Null)
            .await?;
        Ok(NodeUid(
            node["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
        ))
    }

    pub(crate) async fn delete(&self, i: u32) -> anyhow::Result<()> {
        let path = format!("{NODES}/{}", Self::name(i));
        self.call("DELETE", &path, "", &Value::Null).await.map(drop)
    }

    async fn call(&self, method: &str, path: &str, media: &str, body: &Value) -> anyhow::Result<Value> {
        let body = match body {
            Value::Null => Vec::new(),
            body => body.to_string().into_bytes(),
        };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", media)
            .body(body)?;
        let answer = self.admin.request(request).await;
        answer.with_context(|| format!("{method} {path}"))
    }

    /// A kubeconfig of this user that leads to this address; the user is what its requests are told by.
    pub(crate) fn kubeconfig(
        &self,
        user: &str,
        address: std::net::SocketAddr,
    ) -> anyhow::Result<std::path::PathBuf> {
        let file = self.folder.path().join(format!("{user}.kubeconfig"));
        std::fs::write(&file, self.control_plane.kubeconfig_of(user, address))
            .with_context(|| format!("write {}", file.display()))?;
        Ok(file)
    }

    /// What a user has asked so far.
    pub(crate) fn requests(&self, user: &str) -> anyhow::Result<Vec<Request>> {
        let all = self.control_plane.requests().context("read the audit log")?;
        Ok(all.into_iter().filter(|r| r.user.starts_with(user)).collect())
    }
}

/// The public half of a fresh key.
pub(crate) fn key() -> PublicKey {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).expect("the system has randomness");
    let secret = x25519_dalek::StaticSecret::from(secret);
    PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
}

/// Pod CIDRs of the node of this number.
fn cidrs(i: u32) -> [String; 2] {
    let [_, _, high, low] = i.to_be_bytes();
    [
        format!("10.{}.{low}.0/24", 244 + u32::from(high)),
        format!("fd00:244:0:{i:x}::/64"),
    ]
}

/// Its addresses.
fn internal_ips(i: u32) -> [String; 2] {
    let v4 = Ipv4Addr::new(10, 99, 1, 0).to_bits() + i;
    let v6 = Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 1, 0).to_bits() + u128::from(i);
    [
        Ipv4Addr::from_bits(v4).to_string(),
        Ipv6Addr::from_bits(v6).to_string(),
    ]
}

fn labels(name: &NodeName) -> Value {
    json!({
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "node.kubernetes.io/instance-type": "m5.xlarge",
        "topology.kubernetes.io/region": "eu-west-1",
        "topology.kubernetes.io/zone": "eu-west-1a",
    })
}

fn conditions(second: u32) -> Value {
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": format!("kubelet says {reason}"),
            "lastTransitionTime": "2026-11-23T12:00:00Z",
            "lastHeartbeatTime": format!("2026-11-23T13:{:02}:{:02}Z", second / 60 % 60, second % 60),
        })
    };
    json!([
        condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
        condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
        condition("PIDPressure", "False", "KubeletHasSufficientPID"),
        condition("Ready", "True", "KubeletReady"),
    ])
}

fn status(i: u32) -> Value {
    let capacity = json!({
        "cpu": "4", "ephemeral-storage": "81106868Ki", "hugepages-1Gi": "0", "hugepages-2Mi": "0",
        "memory": "16000000Ki", "pods": "110",
    });
    let images: Vec<Value> = (0..20)
        .map(|n| json!({"names": [format!("registry.example/app-{n}@sha256:{:064x}", n)], "sizeBytes": 100_000_000}))
        .collect();
    let [v4, v6] = internal_ips(i);
    json!({"status": {
        "addresses": [
            {"type": "InternalIP", "address": v4},
            {"type": "InternalIP", "address": v6},
            {"type": "Hostname", "address": Cluster::name(i)},
        ],
        "allocatable": capacity,
        "capacity": capacity,
        "conditions": conditions(0),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "images": images,
        "nodeInfo": {
            "architecture": "amd64", "bootID": format!("boot-{i}"), "machineID": format!("machine-{i}"),
            "systemUUID": format!("system-{i}"), "containerRuntimeVersion": "containerd://2.2.2",
            "kernelVersion": "6.18.0", "kubeProxyVersion": "", "kubeletVersion": "v1.36.3",
            "operatingSystem": "linux", "osImage": "Debian GNU/Linux 12 (bookworm)",
        },
    }})
}

/// Writes a text that nobody else reads.
pub(crate) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
