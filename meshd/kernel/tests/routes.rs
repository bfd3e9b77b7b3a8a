//! Routes and policy rules on the real kernel.

mod support;

use meshd_core::KernelOp::{RemoveRoute, RemoveRule, SetRoute, SetRule};
use meshd_model::kernel::{Mark, Route, RouteTarget, Rule, TABLE_MAIN, UNREACHABLE_METRIC};
use nix::sys::socket::{setsockopt, sockopt};
use nlink::netlink::route::Ipv4Route;
use std::net::UdpSocket;
use support::{DEVICE, Node, node};

const TABLE: u32 = 7_000;

fn route(dst: &str, src: &str, mtu: u16) -> Route {
    Route {
        dst: dst.parse().unwrap(),
        table: TABLE_MAIN,
        metric: 100,
        target: RouteTarget::Device {
            name: DEVICE.to_owned(),
            src: src.parse().unwrap(),
            mtu,
        },
    }
}

fn unreachable(dst: &str, table: u32) -> Route {
    Route {
        dst: dst.parse().unwrap(),
        table,
        metric: UNREACHABLE_METRIC,
        target: RouteTarget::Unreachable,
    }
}

fn rule(from: &str) -> Rule {
    Rule {
        from: from.parse().unwrap(),
        unless_mark: Mark {
            value: 0x500,
            mask: 0xf00,
        },
        table: TABLE,
        priority: 1090,
    }
}

async fn with_device(node: &Node) {
    node.stand_in_device(&["10.244.1.1/32", "fd00:244:0:1::1/128"])
        .await;
}

#[test]
fn routes_read_back_as_they_were_set() {
    node("routes_read_back", |mut node| async move {
        with_device(&node).await;
        let mut routes = vec![
            route("10.244.2.0/24", "10.244.1.1", 1420),
            route("fd00:244:0:2::/64", "fd00:244:0:1::1", 1420),
            unreachable("10.244.0.0/16", TABLE_MAIN),
            unreachable("fd00:244::/48", TABLE_MAIN),
            unreachable("192.0.2.7/32", TABLE),
        ];
        for r in routes.iter().chain(&routes) {
            node.apply(SetRoute(r.clone())).await;
        }
        assert_eq!(node.observe().await.routes, routes.iter().cloned().collect());
        let text = kernel_routes(&node).await;
        assert_eq!(
            text,
            [
                "10.244.2.0/24 dev wg0 src 10.244.1.1 table 254 metric 100 mtu 1420",
                "fd00:244:0:2::/64 dev wg0 src fd00:244:0:1::1 table 254 metric 100 mtu 1420",
                "unreachable 10.244.0.0/16 table 254 metric 4294967294",
                "unreachable 192.0.2.7/32 table 7000 metric 4294967294",
                "unreachable fd00:244::/48 table 254 metric 4294967294",
            ]
        );

        // The same places with another MTU, and with another target.
        routes[0] = route("10.244.2.0/24", "10.244.1.1", 1380);
        routes[1] = Route {
            target: RouteTarget::Unreachable,
            ..routes[1].clone()
        };
        node.apply(SetRoute(routes[0].clone())).await;
        node.apply(SetRoute(routes[1].clone())).await;
        assert_eq!(node.observe().await.routes, routes.iter().cloned().collect());

        for r in routes.iter().chain(&routes) {
            node.apply(RemoveRoute(r.clone())).await;
        }
        assert_eq!(kernel_routes(&node).await, Vec::<String>::new());
    });
}

#[test]
fn routes_of_others_are_left_alone() {
    node("routes_of_others", |mut node| async move {
        with_device(&node).await;
        let theirs = || Ipv4Route::new([10, 244, 3, 0].into(), 24).dev(DEVICE).metric(100);
        node.conn.add_route(theirs()).await.unwrap();
        let ours = route("10.244.3.0/24", "10.244.1.1", 1420);
        let failure = node.try_apply(SetRoute(ours.clone())).await.unwrap_err();
        assert_eq!(failure.errno, Some(libc::EEXIST), "{}", failure.message);
        node.apply(RemoveRoute(ours)).await;
        assert!(
            node.observe().await.routes.is_empty(),
            "theirs is not reported as ours"
        );
        node.conn
            .del_route(theirs())
            .await
            .expect("theirs is still there");
    });
}

#[test]
fn a_route_that_came_since_the_table_was_listed_is_not_replaced() {
    node("a_route_that_came_since", |mut node| async move {
        with_device(&node).await;
        for mtu in [1420, 1400] {
            node.apply(SetRoute(route("10.244.3.0/24", "10.244.1.1", mtu)))
                .await;
        }
        let theirs = || Ipv4Route::new([10, 244, 4, 0].into(), 24).dev(DEVICE).metric(100);
        node.conn.add_route(theirs()).await.unwrap();
        let ours = route("10.244.4.0/24", "10.244.1.1", 1400);
        let failure = node.try_apply(SetRoute(ours.clone())).await.unwrap_err();
        assert_eq!(failure.errno, Some(libc::EEXIST), "{}", failure.message);
        node.conn
            .del_route(theirs())
            .await
            .expect("theirs is still there");
        // And one that has gone since is in nobody's way.
        node.apply(SetRoute(ours)).await;
        node.apply(SetRoute(route("10.244.4.0/24", "10.244.1.1", 1380)))
            .await;
    });
}

#[test]
fn a_route_that_another_hand_removes_is_told_unasked() {
    node("a_route_that_another_hand_removes", |mut node| async move {
        with_device(&node).await;
        node.settle().await;
        let before = node.observe().await;
        let ours = route("10.244.2.0/24", "10.244.1.1", 1420);
        node.apply(SetRoute(ours)).await;
        node.settle().await;
        let by_hand = Ipv4Route::new([10, 244, 2, 0].into(), 24)
            .dev(DEVICE)
            .metric(100)
            .protocol(109.into());
        node.conn.del_route(by_hand).await.unwrap();
        // All is as it was seen last, and still it is news: the route was set since.
        assert_eq!(node.unasked().await, before);
    });
}

#[test]
fn a_route_to_a_device_that_is_gone_is_an_error_to_set_and_none_to_remove() {
    node("a_route_to_a_device_that_is_gone", |mut node| async move {
        let lost = route("10.244.3.0/24", "10.244.1.1", 1420);
        let failure = node.try_apply(SetRoute(lost.clone())).await.unwrap_err();
        assert_eq!(failure.errno, Some(libc::ENODEV), "{}", failure.message);
        node.apply(RemoveRoute(lost)).await;
    });
}

#[test]
fn a_rule_reads_back_and_exempts_one_mark_only() {
    node("a_rule_reads_back", |mut node| async move {
        with_device(&node).await;
        let rules = [rule("10.244.1.0/24"), rule("fd00:244:0:1::/64")];
        for r in rules.iter().chain(&rules) {
            node.apply(SetRule(r.clone())).await;
        }
        assert_eq!(node.observe().await.rules, rules.iter().cloned().collect());

        // Main leads to 192.0.2.0/24, the rule's table does not.
        node.apply(SetRoute(route("192.0.2.0/24", "10.244.1.1", 1420)))
            .await;
        node.apply(SetRoute(unreachable("192.0.2.0/24", TABLE))).await;
        for (mark, passes) in [
            (0, false),
            (0x500, true),
            (0x4500, true),
            (0x400, false),
            (0xd00, false),
            (0x5, false),
        ] {
            assert_eq!(has_route(mark), passes, "mark {mark:#x}");
        }

        // Another mark for the same source takes the old one's place.
        let other = Rule {
            unless_mark: Mark { value: 1, mask: 1 },
            ..rules[0].clone()
        };
        node.apply(SetRule(other.clone())).await;
        assert_eq!(
            node.observe().await.rules,
            [other.clone(), rules[1].clone()].into()
        );
        assert!(has_route(0x5));
        node.apply(RemoveRule(other.clone())).await;
        node.apply(RemoveRule(other)).await;
        node.apply(RemoveRule(rules[1].clone())).await;
        assert!(node.observe().await.rules.is_empty());
        assert!(has_route(0));
    });
}

/// Whether a socket of the rule's source and this mark finds a way to 192.0.2.1.
fn has_route(mark: u32) -> bool {
    let socket = UdpSocket::bind("10.244.1.1:0").unwrap();
    setsockopt(&socket, sockopt::Mark, &mark).unwrap();
    socket.connect("192.0.2.1:9").is_ok()
}

/// Routes of protocol 109, as `ip route show table all` has them.
async fn kernel_routes(node: &Node) -> Vec<String> {
    let names = node.conn.get_interface_names().await.unwrap();
    let routes = node.conn.get_routes().await.unwrap();
    let ours = routes.iter().filter(|r| r.protocol().number() == 109);
    let show = |r: &nlink::netlink::messages::RouteMessage| {
        let dst = format!("{}/{}", r.destination().unwrap(), r.dst_len());
        let (table, metric) = (r.table_id(), r.priority().unwrap_or(0));
        if r.route_type() == nlink::netlink::types::route::RouteType::Unreachable {
            return format!("unreachable {dst} table {table} metric {metric}");
        }
        let (dev, src) = (&names[&r.oif().unwrap()], r.prefsrc().unwrap());
        let mtu = r.metrics().unwrap().mtu.unwrap();
        format!("{dst} dev {dev} src {src} table {table} metric {metric} mtu {mtu}")
    };
    let mut text: Vec<String> = ours.map(show).collect();
    text.sort();
    text
}
