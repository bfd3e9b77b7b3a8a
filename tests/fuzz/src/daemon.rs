//! What others tell the daemon: requests on its socket, annotations of nodes and pods.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meshd_model::block;
use meshd_model::cni::Request;
use meshd_translate::{decode, encode, pod_meta};
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

/// Annotations, as an object of texts in JSON: of another node, and of a pod. The texts are tried as names of blocks too.
pub fn annotations(bytes: &[u8]) {
    let Ok(annotations) = serde_json::from_slice::<BTreeMap<String, String>>(bytes) else {
        return;
    };
    for text in annotations.values() {
        if let Ok(cidr) = block::parse(text) {
            assert_eq!(block::name(cidr), *text, "a block has one name");
        }
    }
    if let Ok(node) = decode(&annotations) {
        let again = decode(&encode(&node));
        assert_eq!(again.as_ref(), Ok(&node), "it is read as it was written");
    }
    check_pod(annotations);
}

fn check_pod(annotations: BTreeMap<String, String>) {
    let metadata = ObjectMeta {
        namespace: Some("default".into()),
        name: Some("web-0".into()),
        uid: Some("0b1c".into()),
        annotations: Some(annotations),
        ..ObjectMeta::default()
    };
    let pod = Pod {
        metadata,
        ..Pod::default()
    };
    let wants = pod_meta(&pod).expect("it has name and UID").wants;
    let of = |v4: bool| wants.ips.iter().filter(|ip| ip.is_ipv4() == v4).count();
    assert!(of(true) <= 1 && of(false) <= 1, "{wants:?}");
    let length = wants.problem.as_ref().map_or(0, String::len);
    assert!(length <= crate::ERROR_MAX, "a problem of {length} bytes");
}
