//! Nodes and blocks of the metadata watches, as far as anything of ours reads them.
//!
//! Of the metadata of a Node most is `managedFields`: who wrote which field, as a tree that is as large as the object.
//! No request leaves it out, so it comes over the wire; here it is passed over while it is read and never kept, nor
//! are labels and the annotations of others, among which `last-applied-configuration` may have 256 KiB.

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use meshd_translate::annotations::PREFIX;
use meshd_translate::blocks;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// Name, UID, version, time of creation, and our annotations.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct NodeMetadata {
    #[serde(deserialize_with = "slim")]
    pub(crate) metadata: ObjectMeta,
}

impl Resource for NodeMetadata {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn metadata_api() -> bool {
        true
    }

    fn kind(of: &()) -> Cow<'_, str> {
        Node::kind(of)
    }

    fn group(of: &()) -> Cow<'_, str> {
        Node::group(of)
    }

    fn version(of: &()) -> Cow<'_, str> {
        Node::version(of)
    }

    fn plural(of: &()) -> Cow<'_, str> {
        Node::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// The same of a block's object, with its owners.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct BlockMetadata {
    #[serde(deserialize_with = "slim")]
    pub(crate) metadata: ObjectMeta,
}

impl Resource for BlockMetadata {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn metadata_api() -> bool {
        true
    }

    fn kind(_: &()) -> Cow<'_, str> {
        blocks::KIND.into()
    }

    fn group(_: &()) -> Cow<'_, str> {
        blocks::GROUP.into()
    }

    fn version(_: &()) -> Cow<'_, str> {
        blocks::VERSION.into()
    }

    fn plural(_: &()) -> Cow<'_, str> {
        blocks::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Slim {
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    owner_references: Option<Vec<OwnerReference>>,
    #[serde(default)]
    annotations: Ours,
}

fn slim<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let slim = Slim::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: slim.name,
        uid: slim.uid,
        resource_version: slim.resource_version,
        creation_timestamp: slim.creation_timestamp,
        owner_references: slim.owner_references,
        annotations: Some(slim.annotations.0),
        ..ObjectMeta::default()
    })
}

/// The annotations whose key begins with our prefix.
#[derive(Default)]
struct Ours(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Ours {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OursVisitor)
    }
}

struct OursVisitor;

impl<'de> Visitor<'de> for OursVisitor {
    type Value = Ours;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("annotations")
    }

    fn visit_unit<E>(self) -> Result<Ours, E> {
        Ok(Ours::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ours, A::Error> {
        let mut ours = BTreeMap::new();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key.starts_with(PREFIX) {
                ours.insert(key.into_owned(), map.next_value()?);
            } else {
                map.next_value::<serde::de::IgnoredAny>()?;
            }
        }
        Ok(Ours(ours))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_read_of_it_is_there_and_nothing_else() {
        let node = json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": {
                "name": "n", "uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-11-23T12:00:00Z",
                "labels": {"a": "b"},
                "annotations": {"a/b": "x", "meshd.dev/mtu": "1420", "meshd.devil/mtu": "1"},
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:metadata": {"f:labels": {".": {}}}}}],
            },
        });
        let read: NodeMetadata = serde_json::from_str(&node.to_string()).unwrap();
        let meta = read.metadata;
        assert_eq!(
            (meta.name.as_deref(), meta.uid.as_deref()),
            (Some("n"), Some("u"))
        );
        assert_eq!(meta.resource_version.as_deref(), Some("7"));
        assert_eq!(meta.creation_timestamp.unwrap().0.as_second(), 1_795_435_200);
        let ours = BTreeMap::from([("meshd.dev/mtu".to_owned(), "1420".to_owned())]);
        assert_eq!(meta.annotations, Some(ours));
        assert_eq!((meta.labels, meta.managed_fields), (None, None));
        for empty in [json!({}), json!({"annotations": null})] {
            let read: NodeMetadata = serde_json::from_value(json!({"metadata": empty})).unwrap();
            assert_eq!(read.metadata.annotations, Some(BTreeMap::new()));
        }
    }
}
