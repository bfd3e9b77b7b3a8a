//! Pods' links on the real kernel.

mod support;

use meshd_core::KernelOp::{AttachPod, DetachPod};
use meshd_model::kernel::PodLinkState;
use std::collections::BTreeMap;
use support::{Node, Sandbox, ask, node, pod, socket, spawn_echo, stale_netns};

async fn with_device(node: &mut Node) {
    node.stand_in_device(&["10.244.1.1/32", "fd00:244:0:1::1/128"])
        .await;
    node.firewall().await;
}

#[test]
fn a_pod_is_attached_and_reaches_the_node_and_other_pods() {
    node("a_pod_is_attached", |mut node| async move {
        with_device(&mut node).await;
        let (a, b) = (Sandbox::new(), Sandbox::new());
        let (link_a, link_b) = (pod(&a, 2), pod(&b, 3));
        node.apply(AttachPod(link_a.clone())).await;
        node.apply(AttachPod(link_b.clone())).await;

        for (family, any) in [(0, "0.0.0.0:7004"), (1, "[::]:7006")] {
            let port = a.echo(any).port();
            b.echo(any);
            spawn_echo(std::net::UdpSocket::bind(any).unwrap());
            let to = |link: &meshd_model::kernel::PodLink| socket(link.addresses[family], port);
            assert!(ask(to(&link_a)), "the node reaches pod a at {}", to(&link_a));
            assert!(a.asks(to(&link_b)), "pod a reaches pod b at {}", to(&link_b));
            assert!(
                a.asks(socket(link_a.host_addresses[family], port)),
                "pod a reaches the node"
            );
        }

        let state = node.observe().await;
        let expected = PodLinkState {
            host_mac: link_a.host_mac,
            mtu: 1420,
            up: true,
            addresses: link_a.addresses.iter().copied().collect(),
            guarded: true,
        };
        assert_eq!(state.pod_links.get("mshp2"), Some(&expected));
        assert_eq!(state.pod_links.len(), 2);
        assert!(
            state.routes.is_empty(),
            "routes of pods' links are no routes of the node: {:?}",
            state.routes
        );

        node.apply(DetachPod(link_a.clone())).await;
        node.apply(DetachPod(link_a)).await;
        node.apply(DetachPod(link_b)).await;
        assert_eq!(node.observe().await.pod_links, BTreeMap::new());
    });
}

#[test]
fn a_pod_whose_namespace_is_gone_is_enoent() {
    node("a_pod_whose_namespace_is_gone", |mut node| async move {
        with_device(&mut node).await;
        let mut link = pod(&Sandbox::new(), 2);
        for gone in [
            "/nonexistent".to_owned(),
            stale_netns(&node).display().to_string(),
        ] {
            link.netns = gone;
            let failure = node.try_apply(AttachPod(link.clone())).await.unwrap_err();
            assert_eq!(failure.errno, Some(libc::ENOENT), "{}", failure.message);
        }
        node.apply(DetachPod(link)).await;
    });
}
