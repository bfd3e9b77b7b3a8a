//! What the tests of the store share.
#![allow(dead_code, unreachable_pub)]

pub mod killing;

use meshd_model::attachment::MacAddr;
use meshd_model::{AttachmentId, Lease, LeasePhase, PodRef};

pub const BOOT: &str = "6f1c2a9e-0000-4000-8000-000000000001";

pub fn id(container: &str) -> AttachmentId {
    AttachmentId {
        container_id: container.to_owned(),
        ifname: "eth0".to_owned(),
    }
}

/// `version` tells a lease from the one before it under the same id.
pub fn lease(container: &str, version: u32) -> Lease {
    Lease {
        id: id(container),
        phase: LeasePhase::Ready,
        pod: Some(PodRef {
            namespace: "default".to_owned(),
            name: format!("pod-{container}"),
            uid: String::new(),
        }),
        netns: format!("/run/netns/{version}"),
        host_ifname: "mshp0123456789".to_owned(),
        host_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mac: MacAddr([2, 0, 0, 0, 0, 2]),
        addresses: vec!["10.244.1.2".parse().unwrap(), "fd00:244::2".parse().unwrap()],
        token: 0,
        secondary: false,
        network: "meshd".to_owned(),
    }
}
