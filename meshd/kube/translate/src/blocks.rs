//! Objects of blocks: the custom resource `ipblocks.meshd.dev`, whose CustomResourceDefinition is in the chart.
//!
//! Name, owner and mark are metadata, so that a watch of the metadata tells all that there is to know.

use crate::event::Frame;
use crate::object::ObjectProblem;
use ipnetwork::IpNetwork;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meshd_core::KubeEvent;
use meshd_model::block::{self, Owner};
use meshd_model::{Block, NodeName, NodeUid};
use serde_json::{Value, json};

/// API group of the kind.
pub const GROUP: &str = "meshd.dev";
/// Its version.
pub const VERSION: &str = "v1alpha1";
/// The kind.
pub const KIND: &str = "IPBlock";
/// Its name in paths.
pub const PLURAL: &str = "ipblocks";
/// The annotation of a block that is given back: [`TRUE`], or not there.
pub const RELEASED: &str = "meshd.dev/released";
/// The only text that it has.
pub const TRUE: &str = "true";

/// What the metadata says of a block.
///
/// # Errors
/// Where the name is no block's, or there is no UID or time of creation.
pub fn block(meta: &ObjectMeta) -> Result<Block, ObjectProblem> {
    let missing = |field: &str| ObjectProblem::new(KIND, meta, format!("metadata.{field} is missing"));
    let created = meta.creation_timestamp.as_ref();
    let object = meta.uid.clone().filter(|uid| !uid.is_empty());
    let annotations = meta.annotations.as_ref();
    Ok(Block {
        cidr: cidr(meta)?,
        object: object.ok_or_else(|| missing("uid"))?,
        created: created.ok_or_else(|| missing("creationTimestamp"))?.0.as_second(),
        owner: owner(meta),
        released: annotations.is_some_and(|a| a.contains_key(RELEASED)),
    })
}

fn cidr(meta: &ObjectMeta) -> Result<IpNetwork, ObjectProblem> {
    let name = meta.name.as_deref().unwrap_or_default();
    block::parse(name).map_err(|reason| ObjectProblem::new(KIND, meta, reason.to_string()))
}

/// The one Node that owns it; of two owners none can be believed.
fn owner(meta: &ObjectMeta) -> Option<Owner> {
    let references = meta.owner_references.as_deref().unwrap_or_default();
    let mut nodes = references
        .iter()
        .filter(|r| r.kind == "Node" && r.api_version == "v1");
    let (node, None) = (nodes.next()?, nodes.next()) else {
        return None;
    };
    Some(Owner {
        node: NodeName(node.name.clone()),
        uid: NodeUid(node.uid.clone()),
    })
}

/// A change in the watch of all blocks. None for a bookmark or an error: they change none.
///
/// # Errors
/// Where the object cannot be used.
pub fn block_event(frame: Frame<&ObjectMeta>) -> Result<Option<KubeEvent>, ObjectProblem> {
    match frame {
        Frame::Applied(meta) => Ok(Some(KubeEvent::BlockApplied(block(meta)?))),
        Frame::Deleted(meta) => Ok(Some(KubeEvent::BlockDeleted(cidr(meta)?))),
        Frame::Bookmark { .. } | Frame::Error { .. } => Ok(None),
    }
}

/// The object that claims a block for this Node.
#[must_use]
pub fn claim_body(cidr: IpNetwork, node: &NodeName, uid: &NodeUid) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": KIND,
        "metadata": {
            "name": block::name(cidr),
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": node, "uid": uid }],
        },
        "spec": { "cidr": cidr.to_string(), "node": node },
    })
}

/// The merge patch that marks the block of this object as given back; the UID makes the API server refuse another's.
#[must_use]
pub fn release_body(object: &str) -> Value {
    json!({ "metadata": { "uid": object, "annotations": { RELEASED: TRUE } } })
}

/// The body of the request that deletes this object and no other.
#[must_use]
pub fn delete_body(object: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": { "uid": object } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(name: &str) -> ObjectMeta {
        let body = claim_body("10.244.3.64/26".parse().unwrap(), &"n".into(), &"node-uid".into());
        let mut meta: ObjectMeta = serde_json::from_value(body["metadata"].clone()).unwrap();
        assert_eq!(meta.name.as_deref(), Some("10-244-3-64-26"));
        meta.name = Some(name.to_owned());
        meta.uid = Some("u".to_owned());
        meta.creation_timestamp = serde_json::from_value(json!("2026-11-23T12:00:00Z")).unwrap();
        meta
    }

    #[test]
    fn what_is_claimed_is_read_back() {
        let read = block(&meta("10-244-3-64-26")).unwrap();
        let owner = Owner {
            node: "n".into(),
            uid: "node-uid".into(),
        };
        assert_eq!(
            read,
            Block {
                cidr: "10.244.3.64/26".parse().unwrap(),
                object: "u".into(),
                created: 1_795_435_200,
                owner: Some(owner),
                released: false
            }
        );
        let mut released = meta("10-244-3-64-26");
        let patch = release_body("u");
        assert_eq!(patch["metadata"]["uid"], "u");
        released.annotations = serde_json::from_value(patch["metadata"]["annotations"].clone()).unwrap();
        assert!(block(&released).unwrap().released);
    }

    #[test]
    fn a_block_of_nobody_or_of_two_has_no_owner_and_a_name_that_is_no_block_is_none() {
        let mut alone = meta("10-244-3-64-26");
        alone.owner_references.as_mut().unwrap()[0].kind = "ReplicaSet".into();
        assert_eq!(block(&alone).unwrap().owner, None);
        let mut two = meta("10-244-3-64-26");
        let mut other = two.owner_references.as_ref().unwrap()[0].clone();
        other.uid = "other".into();
        two.owner_references.as_mut().unwrap().push(other);
        assert_eq!(block(&two).unwrap().owner, None);
        let wrong = block(&meta("10-244-3-65-26")).unwrap_err().to_string();
        assert!(
            wrong.contains("IPBlock") && wrong.contains("10-244-3-64-26"),
            "{wrong}"
        );
        let gone = block_event(Frame::Deleted(&meta("fd00---122"))).unwrap();
        assert_eq!(gone, Some(KubeEvent::BlockDeleted("fd00::/122".parse().unwrap())));
    }
}
