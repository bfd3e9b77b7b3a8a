//! What a teardown takes off the node, and what it leaves alone.

mod support;

use meshd_core::KernelOp::{AttachPod, SetRoute, SetRule};
use meshd_kernel::{DriverConfig, teardown};
use meshd_model::kernel::{Mark, Route, RouteTarget, Rule, UNREACHABLE_METRIC};
use support::{DEVICE, Node, Sandbox, node, pod};

async fn set_up(node: &mut Node) {
    node.stand_in_device(&["10.244.1.1/32", "fd00:244:0:1::1/128"])
        .await;
    node.firewall().await;
    let device = RouteTarget::Device {
        name: DEVICE.into(),
        src: "10.244.1.1".parse().unwrap(),
        mtu: 1420,
    };
    for (dst, table, metric, target) in [
        ("10.244.2.0/24", 254, 0, device.clone()),
        ("192.0.2.7/32", 1090, 0, device),
        ("10.244.0.0/16", 254, UNREACHABLE_METRIC, RouteTarget::Unreachable),
        ("fd00:244::/48", 254, UNREACHABLE_METRIC, RouteTarget::Unreachable),
    ] {
        let dst = dst.parse().unwrap();
        node.apply(SetRoute(Route {
            dst,
            table,
            metric,
            target,
        }))
        .await;
    }
    for from in ["10.244.0.0/16", "fd00:244::/48"] {
        node.apply(SetRule(Rule {
            from: from.parse().unwrap(),
            unless_mark: Mark {
                value: 0x1000_0000,
                mask: 0x1000_0000,
            },
            table: 1090,
            priority: 1090,
        }))
        .await;
    }
}

fn config(node: &Node) -> DriverConfig {
    DriverConfig {
        uapi_dir: node.dir.path().to_owned(),
        ..DriverConfig::new(DEVICE)
    }
}

#[test]
fn with_pods_nothing_is_touched_unless_forced_and_then_all_goes() {
    node("teardown", |mut node| async move {
        set_up(&mut node).await;
        let sandbox = Sandbox::new();
        node.apply(AttachPod(pod(&sandbox, 2))).await;
        let before = node.observe().await;

        let refused = teardown(&config(&node), false).await;
        assert_eq!(refused.removed, Vec::<String>::new());
        assert!(refused.failed[0].contains("--force"), "{refused:?}");
        assert_eq!(node.observe().await, before);

        let done = teardown(&config(&node), true).await;
        let after = node.observe().await;
        assert_eq!(after.firewall, None);
        assert!(
            after.pod_links.is_empty() && after.routes.is_empty() && after.rules.is_empty(),
            "{after:?}"
        );
        for line in [
            "interface mshp2",
            "rule from 10.244.0.0/16",
            "nftables table inet meshd",
        ] {
            assert!(done.removed.iter().any(|l| l == line), "{line}: {done:?}");
        }
        // What keeps packets from leaving in the clear goes last.
        assert_eq!(done.removed.last().unwrap(), "nftables table inet meshd");
        // An interface of the device's name that is no WireGuard device is somebody else's.
        assert_eq!(done.failed.len(), 1, "{done:?}");
        assert!(done.failed[0].contains("left alone"), "{done:?}");
        assert_eq!(after.device.unwrap().addresses.len(), 2);
    });
}

#[test]
fn on_a_clean_node_there_is_nothing_to_do() {
    node("teardown of nothing", |node| async move {
        assert_eq!(
            teardown(&config(&node), false).await,
            meshd_kernel::Teardown::default()
        );
    });
}
