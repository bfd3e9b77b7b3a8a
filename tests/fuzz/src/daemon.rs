//! What others tell the daemon: requests on its socket, annotations of other nodes.

use meshd_model::cni::Request;
use meshd_translate::{decode, encode};
use std::collections::BTreeMap;

/// A request on the daemon's socket.
pub fn request(bytes: &[u8]) {
    let Ok(request) = serde_json::from_slice::<Request>(bytes) else {
        return;
    };
    let line = serde_json::to_vec(&request).expect("what was read can be written");
    assert!(!line.contains(&b'\n'), "a request is a line");
    let again: Request = serde_json::from_slice(&line).expect("what was written can be read");
    assert_eq!(again, request);
}

/// The annotations of another node: an object of texts, in JSON.
pub fn annotations(bytes: &[u8]) {
    let Ok(annotations) = serde_json::from_slice::<BTreeMap<String, String>>(bytes) else {
        return;
    };
    let Ok(node) = decode(&annotations) else {
        return;
    };
    assert_eq!(
        decode(&encode(&node)).as_ref(),
        Ok(&node),
        "it is read as it was written"
    );
}
