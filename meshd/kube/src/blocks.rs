//! Writes of blocks' objects.

use ipnetwork::IpNetwork;
use kube::Client;
use kube::core::Status;
use meshd_core::BlockOp;
use meshd_model::NodeName;
use meshd_model::block::name;
use meshd_translate::FIELD_MANAGER;
use meshd_translate::blocks::{GROUP, PLURAL, VERSION, claim_body, delete_body, release_body};
use serde_json::Value;

/// For messages.
pub(crate) fn what(cidr: IpNetwork, op: &BlockOp) -> String {
    let verb = match op {
        BlockOp::Claim { .. } => "claim",
        BlockOp::Release { .. } => "mark as given back",
        BlockOp::Delete { .. } => "delete",
    };
    format!("{verb} block {cidr}")
}

/// One request.
pub(crate) async fn write(
    client: &Client,
    node: &NodeName,
    cidr: IpNetwork,
    op: &BlockOp,
) -> kube::Result<()> {
    let all = format!("/apis/{GROUP}/{VERSION}/{PLURAL}");
    let one = format!("{all}/{}", name(cidr));
    let manager = format!("fieldManager={FIELD_MANAGER}");
    let (method, path, media, body) = match op {
        BlockOp::Claim { uid } => (
            "POST",
            format!("{all}?{manager}"),
            "application/json",
            claim_body(cidr, node, uid),
        ),
        BlockOp::Release { object } => (
            "PATCH",
            format!("{one}?{manager}"),
            "application/merge-patch+json",
            release_body(object),
        ),
        BlockOp::Delete { object } => ("DELETE", one, "application/json", delete_body(object)),
    };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, media)
        .body(body.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    match client.request::<Value>(request).await {
        Err(kube::Error::Api(status)) if is_gone(op, &status) => Ok(()),
        answered => answered.map(|_| ()),
    }
}

/// Deleting what is not there is done; that the whole kind is not there is another matter, but then the block is gone too.
fn is_gone(op: &BlockOp, status: &Status) -> bool {
    matches!(op, BlockOp::Delete { .. }) && status.code == 404
}
