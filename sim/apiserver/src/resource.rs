//! Which kinds the server knows. A kind that is registered is stored, listed and watched; only Nodes, Pods and
//! Namespaces have behaviour beyond that.

use serde_json::{Value, json};

/// A kind of object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: String,
    /// `v1`
    pub version: String,
    /// `nodes`: the name in paths.
    pub plural: String,
    /// `Node`
    pub kind: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Whether it has a status subresource: then a write to the object leaves `status` alone, and the other way round.
    pub status: bool,
    /// Whether `metadata.generation` counts changes of `spec`.
    pub generation: bool,
}

impl Resource {
    /// A cluster-wide kind with neither status nor generation.
    #[must_use]
    pub fn new(group: &str, version: &str, plural: &str, kind: &str) -> Self {
        Self {
            group: group.into(),
            version: version.into(),
            plural: plural.into(),
            kind: kind.into(),
            namespaced: false,
            status: false,
            generation: false,
        }
    }

    /// The same, in namespaces.
    #[must_use]
    pub fn namespaced(mut self) -> Self {
        self.namespaced = true;
        self
    }

    /// The same, with a status subresource.
    #[must_use]
    pub fn with_status(mut self) -> Self {
        self.status = true;
        self
    }

    /// The same, with generations.
    #[must_use]
    pub fn with_generation(mut self) -> Self {
        self.generation = true;
        self
    }

    /// `v1`, `apps/v1`
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `nodes`, `daemonsets.apps`: as messages name it.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    pub(crate) fn is(&self, plural: &str) -> bool {
        self.group.is_empty() && self.plural == plural
    }

    /// Path of the collection that an object of this kind belongs to.
    #[must_use]
    pub fn collection(&self, namespace: &str) -> String {
        let root = if self.group.is_empty() { "/api/" } else { "/apis/" };
        let scope = if self.namespaced {
            format!("namespaces/{namespace}/")
        } else {
            String::new()
        };
        format!("{root}{}/{scope}{}", self.api_version(), self.plural)
    }

    pub(crate) fn details(&self, name: &str) -> Value {
        if self.group.is_empty() {
            json!({"name": name, "kind": self.plural})
        } else {
            json!({"name": name, "group": self.group, "kind": self.plural})
        }
    }

    /// Whether a field selector may name this field.
    pub(crate) fn selects(&self, field: &str) -> bool {
        match field {
            "metadata.name" => true,
            "metadata.namespace" => self.namespaced,
            "spec.unschedulable" => self.is("nodes"),
            "status.phase" => self.is("pods") || self.is("namespaces"),
            "spec.nodeName"
            | "spec.restartPolicy"
            | "spec.schedulerName"
            | "spec.serviceAccountName"
            | "spec.hostNetwork"
            | "status.podIP"
            | "status.nominatedNodeName" => self.is("pods"),
            _ => false,
        }
    }
}

/// The kinds that a server knows from its start.
pub(crate) fn builtin() -> Vec<Resource> {
    let core = |plural, kind| Resource::new("", "v1", plural, kind);
    let apps = |plural, kind| {
        Resource::new("apps", "v1", plural, kind)
            .namespaced()
            .with_status()
            .with_generation()
    };
    let rbac = |plural, kind| Resource::new("rbac.authorization.k8s.io", "v1", plural, kind);
    vec![
        core("nodes", "Node").with_status(),
        core("namespaces", "Namespace").with_status(),
        core("pods", "Pod").namespaced().with_status().with_generation(),
        core("configmaps", "ConfigMap").namespaced(),
        core("secrets", "Secret").namespaced(),
        core("services", "Service").namespaced().with_status(),
        core("serviceaccounts", "ServiceAccount").namespaced(),
        core("events", "Event").namespaced(),
        Resource::new("events.k8s.io", "v1", "events", "Event").namespaced(),
        apps("daemonsets", "DaemonSet"),
        apps("deployments", "Deployment"),
        Resource::new("coordination.k8s.io", "v1", "leases", "Lease").namespaced(),
        Resource::new("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice").namespaced(),
        Resource::new("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
            .namespaced()
            .with_generation(),
        rbac("clusterroles", "ClusterRole"),
        rbac("clusterrolebindings", "ClusterRoleBinding"),
        rbac("roles", "Role").namespaced(),
        rbac("rolebindings", "RoleBinding").namespaced(),
    ]
}
