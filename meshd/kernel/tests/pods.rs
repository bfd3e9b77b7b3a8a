//! Pods' links on the real kernel.

mod support;

use meshd_core::KernelOp::{AttachPod, DetachPod, RemovePodLink, SetRoute};
use meshd_model::cni::Check;
use meshd_model::kernel::{PodLink, PodLinkState, Route, RouteTarget, TABLE_MAIN, UNREACHABLE_METRIC};
use nix::sys::socket::{setsockopt, sockopt};
use nlink::netlink::link::VethLink;
use std::collections::{BTreeMap, BTreeSet};
use support::{
    BRIEFLY, Inbox, Node, PATIENCE, Sandbox, ask, ask_within, node, pod, pod_entries, socket, spawn_echo,
    stale_netns,
};

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
            let to = |link: &PodLink| socket(link.addresses[family], port);
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
        node.apply(DetachPod(link_a.clone())).await;
        let cut_off = PodLinkState {
            addresses: BTreeSet::new(),
            guarded: false,
            ..expected
        };
        assert_eq!(node.observe().await.pod_links["mshp2"], cut_off);
        assert_eq!(links(&a), ["eth0", "lo"]);
        node.apply(RemovePodLink(link_a.clone())).await;
        node.apply(RemovePodLink(link_a)).await;
        assert_eq!(links(&a), ["lo"]);
        // Also where it was not cut off before.
        node.apply(RemovePodLink(link_b)).await;
        assert_eq!(node.observe().await.pod_links, BTreeMap::new());
        assert_eq!(pod_entries().await, Vec::<String>::new());
    });
}

/// The portmap plugin sets `route_localnet` on the interface of a pod with a hostPort: the kernel itself then lets in
/// what is for the host's loopback.
#[test]
fn a_pod_does_not_reach_the_hosts_loopback() {
    node("a_pod_does_not_reach_the_hosts_loopback", |mut node| async move {
        with_device(&mut node).await;
        let sandbox = Sandbox::new();
        let link = pod(&sandbox, 2);
        node.apply(AttachPod(link)).await;
        std::fs::write("/proc/sys/net/ipv4/conf/mshp2/route_localnet", "1").unwrap();
        let arrives = |patience| {
            let inbox = Inbox::at("127.0.0.1:0");
            let to = format!("127.0.0.1:{}", inbox.port());
            sandbox.run(move || {
                let socket = std::net::UdpSocket::bind("10.244.1.2:0").unwrap();
                // Around the pod's own loopback.
                setsockopt(&socket, sockopt::BindToDevice, &"eth0".into()).unwrap();
                socket.send_to(b"raw", to).unwrap();
            });
            inbox.next(patience)
        };
        assert_eq!(arrives(BRIEFLY), None);
        // The control: without the table, it is let in.
        let nft = nlink::Connection::<nlink::Nftables>::new().unwrap();
        let family = nlink::netlink::nftables::Family::Inet;
        nft.del_table("meshd", family).await.unwrap();
        assert_eq!(arrives(PATIENCE), Some("10.244.1.2".parse().unwrap()));
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

#[test]
fn a_name_that_is_taken_is_eexist_and_nothing_is_left() {
    node("a_name_that_is_taken", |mut node| async move {
        with_device(&mut node).await;
        let sandbox = Sandbox::new();
        sandbox.netlink(|conn| async move { conn.add_link(VethLink::new("eth0", "other")).await.unwrap() });
        let link = pod(&sandbox, 2);
        let failure = node.try_apply(AttachPod(link)).await.unwrap_err();
        assert_eq!(failure.errno, Some(libc::EEXIST), "{}", failure.message);
        assert!(failure.message.contains("eth0"), "{}", failure.message);
        assert_eq!(node.observe().await.pod_links, BTreeMap::new());
        assert_eq!(pod_entries().await, Vec::<String>::new());
        assert_eq!(
            links(&sandbox),
            ["eth0", "lo", "other"],
            "what was there is still there"
        );
    });
}

#[test]
fn the_nodes_own_namespace_is_refused() {
    node("the_nodes_own_namespace_is_refused", |mut node| async move {
        with_device(&mut node).await;
        let mut link = pod(&Sandbox::new(), 2);
        link.netns = "/proc/thread-self/ns/net".to_owned();
        let failure = node.try_apply(AttachPod(link)).await.unwrap_err();
        assert_eq!(failure.errno, Some(libc::EINVAL), "{}", failure.message);
    });
}

#[test]
fn attaching_again_repairs_what_differs_and_keeps_the_rest() {
    node("attaching_again", |mut node| async move {
        with_device(&mut node).await;
        let sandbox = Sandbox::new();
        let mut link = pod(&sandbox, 2);
        node.apply(AttachPod(link.clone())).await;
        let first = index(&node, "mshp2").await;
        let whole = node.observe().await;

        node.apply(AttachPod(link.clone())).await;
        assert_eq!(index(&node, "mshp2").await, first, "the link is the same");
        assert_eq!(node.observe().await, whole);

        // Damage on both ends; routes go with it.
        let host = index(&node, "mshp2").await;
        node.conn.set_link_down_by_index(host).await.unwrap();
        sandbox.netlink(|conn| async move { conn.flush_addresses("eth0").await.unwrap() });
        sandbox.echo("[::]:7000");
        assert!(!ask_within(socket(link.addresses[0], 7000), BRIEFLY));
        link.mtu = 1380;
        node.apply(AttachPod(link.clone())).await;
        assert_eq!(index(&node, "mshp2").await, host, "the link is the same");
        for address in &link.addresses {
            assert!(ask(socket(*address, 7000)), "{address} answers");
        }
        assert_eq!(node.observe().await.pod_links["mshp2"].mtu, 1380);
        let inside = sandbox.netlink(|conn| async move {
            let link = conn.get_link_by_name("eth0").await.unwrap().unwrap();
            let routes = conn.get_routes().await.unwrap();
            let defaults = routes.iter().filter(|r| r.is_default() && r.gateway().is_some());
            let mtus = defaults
                .map(|r| r.metrics().unwrap().mtu.unwrap())
                .collect::<Vec<_>>();
            (link.mtu().unwrap(), mtus)
        });
        assert_eq!(
            inside,
            (1380, vec![1380, 1380]),
            "the pod's end has the new MTU, its default routes too"
        );
    });
}

#[test]
fn a_half_made_link_is_made_again() {
    node("a_half_made_link", |mut node| async move {
        with_device(&mut node).await;
        // As a daemon leaves it that is killed at the worst moment: a pair, but the other end is not the pod's.
        node.conn
            .add_link(VethLink::new("mshp2", "mshp2-far"))
            .await
            .unwrap();
        let sandbox = Sandbox::new();
        let link = pod(&sandbox, 2);
        node.apply(AttachPod(link.clone())).await;
        sandbox.echo("[::]:7000");
        assert!(ask(socket(link.addresses[0], 7000)));

        // A sandbox that was made anew under the same container: the old pair goes.
        let other = Sandbox::new();
        let again = PodLink {
            netns: other.path(),
            ..link.clone()
        };
        node.apply(AttachPod(again.clone())).await;
        assert_eq!(links(&sandbox), ["lo"]);
        other.echo("[::]:7000");
        assert!(ask(socket(link.addresses[0], 7000)));

        // The pod's namespace went, and the link with it: detaching is done all the same.
        drop(other);
        node.apply(DetachPod(again.clone())).await;
        node.apply(RemovePodLink(again)).await;
        assert_eq!(pod_entries().await, Vec::<String>::new());
    });
}

/// As KubeVirt and the tuning plugin leave it: the name is another interface's, or the MAC another.
#[test]
fn a_pods_end_that_somebody_in_the_pod_changed_is_left_to_it() {
    node("a_pods_end_that_somebody", |mut node| async move {
        with_device(&mut node).await;
        let sandbox = Sandbox::new();
        let link = pod(&sandbox, 2);
        node.apply(AttachPod(link.clone())).await;
        let host = index(&node, "mshp2").await;
        sandbox.netlink(|conn| async move {
            conn.set_link_name("eth0", "eth0-nic").await.unwrap();
            conn.set_link_up("eth0-nic").await.unwrap();
            conn.add_link(VethLink::new("eth0", "other")).await.unwrap();
        });
        node.conn.set_link_mtu("mshp2", 1400).await.unwrap();
        let failure = node.try_apply(AttachPod(link.clone())).await.unwrap_err();
        assert!(failure.message.contains("eth0-nic"), "{}", failure.message);
        assert_eq!(index(&node, "mshp2").await, host, "the link is the same");
        let there = &node.observe().await.pod_links["mshp2"];
        assert_eq!(
            (there.mtu, there.guarded),
            (1420, true),
            "the host's end is mended"
        );

        sandbox.netlink(|conn| async move {
            conn.del_link("other").await.unwrap();
            conn.set_link_name("eth0-nic", "eth0").await.unwrap();
            conn.set_link_address("eth0", [2, 0, 0, 0, 9, 9]).await.unwrap();
        });
        let failure = node.try_apply(AttachPod(link.clone())).await.unwrap_err();
        assert!(failure.message.contains("another MAC"), "{}", failure.message);
        assert_eq!(index(&node, "mshp2").await, host, "the link is the same");
        sandbox.netlink(|conn| async move {
            conn.set_link_address("eth0", [2, 0, 0, 0, 2, 2]).await.unwrap();
        });
        node.apply(AttachPod(link)).await;
    });
}

/// Below 1280 an interface has no IPv6 at all.
#[test]
fn a_pod_without_ipv6_has_any_mtu_also_while_it_runs() {
    node("a_pod_without_ipv6_has_any_mtu", |mut node| async move {
        with_device(&mut node).await;
        let sandbox = Sandbox::new();
        let mut link = pod(&sandbox, 2);
        link.addresses.truncate(1);
        for mtu in [1220, 1420, 1230] {
            link.mtu = mtu;
            node.apply(AttachPod(link.clone())).await;
            assert_eq!(node.observe().await.pod_links["mshp2"].mtu, mtu);
            let inside = sandbox
                .netlink(|conn| async move { conn.get_link_by_name("eth0").await.unwrap().unwrap().mtu() });
            assert_eq!(inside, Some(mtu.into()));
        }
        sandbox.echo("0.0.0.0:7000");
        assert!(ask(socket(link.addresses[0], 7000)));
    });
}

/// Multus calls us for a second network without the first's prevResult.
#[test]
fn another_interfaces_default_route_is_left_alone() {
    node("another_interfaces_default_route", |mut node| async move {
        with_device(&mut node).await;
        let sandbox = Sandbox::new();
        let first = pod(&sandbox, 2);
        node.apply(AttachPod(first.clone())).await;
        let mut link = pod(&sandbox, 3);
        link.id.ifname = "net1".to_owned();
        let failure = node.try_apply(AttachPod(link)).await.unwrap_err();
        assert!(
            failure.message.contains("default route through net1"),
            "{}",
            failure.message
        );
        assert_eq!(links(&sandbox), ["eth0", "lo"], "nothing is left of it");
        assert_eq!(ways_out(&sandbox), ["eth0", "eth0"]);
        // Its own are replaced where they differ.
        node.apply(AttachPod(PodLink { mtu: 1400, ..first })).await;
        assert_eq!(ways_out(&sandbox), ["eth0", "eth0"]);
    });
}

/// The firewall sees no ARP.
#[test]
fn a_pods_arp_is_not_remembered() {
    node("a_pods_arp_is_not_remembered", |mut node| async move {
        with_device(&mut node).await;
        let sandbox = Sandbox::new();
        let link = pod(&sandbox, 2);
        node.apply(AttachPod(link.clone())).await;
        // Some distributions do so for every new interface. Any filter takes such a sender for a martian, because the
        // host's end has no address.
        std::fs::write("/proc/sys/net/ipv4/conf/mshp2/rp_filter", "0").unwrap();
        let ask_for_the_node = || async {
            sandbox.netlink(|conn| async move {
                conn.flush_neighbors("eth0").await.unwrap();
                support::add_addresses(&conn, "eth0", &["10.99.0.7/32"]).await;
                let route = nlink::netlink::route::Ipv4Route::new([10, 244, 1, 1].into(), 32);
                conn.replace_route(route.dev("eth0")).await.unwrap();
            });
            sandbox.run(|| support::send("10.99.0.7:0", "10.244.1.1:9"));
            std::thread::sleep(BRIEFLY);
            let neighbours = node.conn.get_neighbors_by_name("mshp2").await.unwrap();
            neighbours
                .iter()
                .any(|n| n.destination() == Some(&[10, 99, 0, 7].into()))
        };
        assert!(!ask_for_the_node().await);
        // The control: as other interfaces do it.
        std::fs::write("/proc/sys/net/ipv4/conf/mshp2/arp_ignore", "0").unwrap();
        sandbox.netlink(|conn| async move { conn.flush_addresses("eth0").await.unwrap() });
        assert!(ask_for_the_node().await);
        // A mend sets it back.
        node.apply(AttachPod(link)).await;
        let there = std::fs::read_to_string("/proc/sys/net/ipv4/conf/mshp2/arp_ignore").unwrap();
        assert_eq!(there.trim(), "8");
    });
}

#[test]
fn a_pod_is_told_at_once_that_nobody_is_there() {
    node("a_pod_is_told_at_once", |mut node| async move {
        with_device(&mut node).await;
        for dst in ["10.244.0.0/16", "fd00:244::/48"] {
            let target = RouteTarget::Unreachable;
            let (table, metric) = (TABLE_MAIN, UNREACHABLE_METRIC);
            let dst = dst.parse().unwrap();
            node.apply(SetRoute(Route {
                dst,
                table,
                metric,
                target,
            }))
            .await;
        }
        let sandbox = Sandbox::new();
        node.apply(AttachPod(pod(&sandbox, 2))).await;
        for (nobody, errno) in [
            ("10.244.77.7:9", libc::EHOSTUNREACH),
            ("[fd00:244:0:77::7]:9", libc::ENETUNREACH),
        ] {
            let refused = sandbox.run(move || {
                // Without this option a datagram socket is told of few errors only.
                let socket = if nobody.starts_with('[') {
                    let socket = std::net::UdpSocket::bind("[::]:0").unwrap();
                    setsockopt(&socket, sockopt::Ipv6RecvErr, &true).unwrap();
                    socket
                } else {
                    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
                    setsockopt(&socket, sockopt::Ipv4RecvErr, &true).unwrap();
                    socket
                };
                socket
                    .set_read_timeout(Some(std::time::Duration::from_secs(2)))
                    .unwrap();
                socket.connect(nobody).unwrap();
                socket.send(b"hello?").unwrap();
                socket.recv(&mut [0; 16]).unwrap_err().raw_os_error()
            });
            // The ICMP error got through: its source is the node's overlay address.
            assert_eq!(refused, Some(errno), "{nobody}");
        }
    });
}

#[test]
fn ipv6_that_the_runtime_turned_off_is_on_in_the_pod() {
    node("ipv6_that_the_runtime_turned_off", |mut node| async move {
        with_device(&mut node).await;
        let sandbox = Sandbox::new();
        sandbox.run(|| {
            for scope in ["all", "default"] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1").unwrap();
            }
        });
        let link = pod(&sandbox, 2);
        node.apply(AttachPod(link.clone())).await;
        sandbox.echo("[::]:7000");
        assert!(ask(socket(link.addresses[1], 7000)));
    });
}

#[test]
fn no_pod_is_attached_before_the_firewall_is_in_force() {
    node("no_pod_is_attached", |mut node| async move {
        node.stand_in_device(&["10.244.1.1/32", "fd00:244:0:1::1/128"])
            .await;
        let sandbox = Sandbox::new();
        let failure = node.try_apply(AttachPod(pod(&sandbox, 2))).await.unwrap_err();
        assert!(failure.message.contains("firewall"), "{}", failure.message);
        assert_ne!(failure.errno, Some(libc::ENOENT), "that means the pod is gone");
        assert_eq!(links(&sandbox), ["lo"]);
    });
}

async fn index(node: &Node, name: &str) -> u32 {
    node.conn
        .get_link_by_name(name)
        .await
        .unwrap()
        .expect(name)
        .ifindex()
}

fn links(sandbox: &Sandbox) -> Vec<String> {
    sandbox.netlink(|conn| async move {
        let mut names: Vec<_> = conn.get_interface_names().await.unwrap().into_values().collect();
        names.sort();
        names
    })
}

/// Somebody who gives new interfaces a MAC of his own would do so with a new pair again.
#[test]
fn a_mac_that_another_hand_changed_is_set_back() {
    node("a_mac_that_another_hand_changed", |mut node| async move {
        with_device(&mut node).await;
        let sandbox = Sandbox::new();
        let link = pod(&sandbox, 2);
        node.apply(AttachPod(link.clone())).await;
        sandbox.echo("[::]:7000");
        let host = index(&node, "mshp2").await;
        let whole = node.observe().await;

        let other = [2, 0, 0, 0, 9, 9];
        node.conn.set_link_address_by_index(host, other).await.unwrap();
        assert_eq!(node.observe().await.pod_links["mshp2"].host_mac.0, other);
        node.apply(AttachPod(link.clone())).await;
        assert_eq!(index(&node, "mshp2").await, host, "the link is the same");
        assert_eq!(node.observe().await, whole);
        for address in &link.addresses {
            assert!(ask(socket(*address, 7000)), "{address} answers");
        }
    });
}

/// udev gives another MAC to an interface whose own was left to chance (MACAddressPolicy=persistent): it tells by
/// `addr_assign_type`, which is 3 (NET_ADDR_SET) where the MAC was given, as ours is when the pair is made.
#[test]
fn no_mac_is_left_to_chance() {
    node("no_mac_is_left_to_chance", |mut node| async move {
        node.stand_in_device(&["10.244.1.1/32", "fd00:244:0:1::1/128"])
            .await;
        node.firewall().await;
        let sandbox = Sandbox::new();
        node.apply(AttachPod(pod(&sandbox, 2))).await;
        assert_eq!(assign_type("mshp2"), "3");
        assert_eq!(sandbox.run(|| assign_type("eth0")), "3");
        // The control: one that was left to chance.
        let veth = nlink::netlink::link::VethLink::new("chance", "chance-far");
        node.conn.add_link(veth).await.unwrap();
        assert_eq!(assign_type("chance"), "1");
    });
}

/// What sysfs of this thread's network namespace says of how the interface came to its MAC.
fn assign_type(ifname: &str) -> String {
    use nix::mount::{MsFlags, mount, umount};
    let folder = tempfile::tempdir().unwrap();
    mount(
        Some("sysfs"),
        folder.path(),
        Some("sysfs"),
        MsFlags::MS_RDONLY,
        None::<&str>,
    )
    .unwrap();
    let path = folder.path().join(format!("class/net/{ifname}/addr_assign_type"));
    let read = std::fs::read_to_string(&path);
    umount(folder.path()).unwrap();
    read.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        .trim()
        .to_owned()
}

/// What the pod's main table says of its ways out: the interfaces of the default routes, both families.
fn ways_out(sandbox: &Sandbox) -> Vec<String> {
    sandbox.netlink(|conn| async move {
        let names = conn.get_interface_names().await.unwrap();
        let routes = conn.get_routes().await.unwrap();
        let defaults = routes
            .iter()
            .filter(|r| r.is_default() && r.gateway().is_some() && r.table_id() == TABLE_MAIN);
        defaults.map(|r| names[&r.oif().unwrap()].clone()).collect()
    })
}

/// The pod's second interface, as the agent asks for it.
fn second(sandbox: &Sandbox, n: u8) -> PodLink {
    let mut link = pod(sandbox, n);
    link.id.ifname = "net1".to_owned();
    link.secondary = true;
    link
}

/// Whether the pod reaches this from one of its addresses.
fn asks_from(sandbox: &Sandbox, from: std::net::IpAddr, to: std::net::SocketAddr) -> bool {
    sandbox.run(move || {
        let socket = std::net::UdpSocket::bind((from, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(b"from here", to).unwrap();
        socket.recv_from(&mut [0; 16]).is_ok()
    })
}

#[test]
fn a_second_interface_leaves_the_first_its_default_routes_and_goes_alone() {
    node("a_second_interface", |mut node| async move {
        with_device(&mut node).await;
        let sandbox = Sandbox::new();
        let (mut first, second) = (pod(&sandbox, 2), second(&sandbox, 3));
        // As a runtime that names one.
        first.mac = meshd_model::attachment::MacAddr([0x0a, 1, 2, 3, 4, 5]);
        node.apply(AttachPod(first.clone())).await;
        assert_eq!(ways_out(&sandbox), ["eth0", "eth0"]);
        node.apply(AttachPod(second.clone())).await;
        // Again, as after a restart of the daemon.
        node.apply(AttachPod(second.clone())).await;
        assert_eq!(
            ways_out(&sandbox),
            ["eth0", "eth0"],
            "the default routes are the first's"
        );
        assert_eq!(links(&sandbox), ["eth0", "lo", "net1"]);
        for (name, link) in [("eth0", &first), ("net1", &second)] {
            let there = sandbox.netlink(move |conn| async move {
                let link = conn.get_link_by_name(name).await.unwrap().expect(name);
                link.address().unwrap().to_vec()
            });
            assert_eq!(there, link.mac.0, "the MAC of {name}");
        }

        // What the node asks is answered from the address that it asked, and by its own interface: by the other one it
        // would be dropped for spoofing.
        for link in [&first, &second] {
            for &address in &link.addresses {
                let at = sandbox.echo(&socket(address, 7000).to_string());
                assert!(ask(at), "the node reaches {at}");
            }
            for (family, any) in [(0, "0.0.0.0:0"), (1, "[::]:0")] {
                let port = spawn_echo(std::net::UdpSocket::bind(any).unwrap()).port();
                let to = socket(link.host_addresses[family], port);
                let from = link.addresses[family];
                assert!(asks_from(&sandbox, from, to), "{from} reaches the node at {to}");
            }
        }

        node.apply(DetachPod(second.clone())).await;
        node.apply(RemovePodLink(second)).await;
        assert_eq!(links(&sandbox), ["eth0", "lo"]);
        assert_eq!(ways_out(&sandbox), ["eth0", "eth0"]);
        for &address in &first.addresses {
            assert!(ask(socket(address, 7000)), "{address} answers still");
        }
    });
}

/// What a runtime says in CHECK of a link that ADD has made, with the routes of a first interface.
fn check_of(link: &PodLink) -> Check {
    let routes = ["0.0.0.0/0", "::/0"].map(|dst| dst.parse().unwrap());
    Check {
        id: link.id.clone(),
        netns: link.netns.clone(),
        addresses: link.addresses.iter().map(|a| (*a).into()).collect(),
        mac: Some(link.mac),
        mtu: Some(link.mtu.into()),
        routes: if link.secondary {
            Vec::new()
        } else {
            routes.to_vec()
        },
        host: Some((link.host_ifname.clone(), Some(link.host_mac))),
    }
}

#[test]
fn a_look_finds_nothing_after_add_and_names_what_differs_later() {
    node("a_look_finds_nothing", |mut node| async move {
        with_device(&mut node).await;
        let sandbox = Sandbox::new();
        let (mut first, mut second) = (pod(&sandbox, 2), second(&sandbox, 3));
        first.host_ifname = first.id.host_ifname();
        second.host_ifname = second.id.host_ifname();
        for link in [&first, &second] {
            node.apply(AttachPod(link.clone())).await;
            let found = meshd_kernel::differences(&check_of(link)).await;
            assert_eq!(found, Ok(Vec::new()), "right after ADD");
        }
        let check = check_of(&first);

        sandbox.netlink(|conn| async move { conn.flush_addresses("eth0").await.unwrap() });
        let found = meshd_kernel::differences(&check).await.unwrap();
        for address in &first.addresses {
            let gone = format!("does not have address {address}");
            assert!(found.iter().any(|line| line.contains(&gone)), "{found:?}");
        }
        // They went with the addresses, the IPv6 one stays.
        assert!(
            found.iter().any(|line| line.contains("no route 0.0.0.0/0")),
            "{found:?}"
        );
        node.apply(AttachPod(first.clone())).await;
        assert_eq!(meshd_kernel::differences(&check).await, Ok(Vec::new()), "mended");

        sandbox.netlink(|conn| async move {
            conn.set_link_mtu("eth0", 1480).await.unwrap();
            conn.set_link_address("eth0", [2, 0, 0, 0, 9, 9]).await.unwrap();
        });
        let forwarding = format!("ipv4/conf/{}/forwarding", first.host_ifname);
        std::fs::write(format!("/proc/sys/net/{forwarding}"), "0").unwrap();
        let found = meshd_kernel::differences(&check).await.unwrap();
        for what in ["MTU 1480", "another MAC", &forwarding] {
            assert!(
                found.iter().any(|line| line.contains(what)),
                "{what} of {found:?}"
            );
        }
        let host = index(&node, &first.host_ifname).await;
        node.conn
            .set_link_address_by_index(host, [2, 0, 0, 0, 9, 9])
            .await
            .unwrap();
        node.conn.set_link_down_by_index(host).await.unwrap();
        let found = meshd_kernel::differences(&check).await.unwrap();
        for what in ["is down", "has another MAC than 02:00:00:00:01:02"] {
            let line = format!("interface {} {what}", first.host_ifname);
            assert!(found.contains(&line), "{line} of {found:?}");
        }
        let second = meshd_kernel::differences(&check_of(&second)).await;
        assert_eq!(second, Ok(Vec::new()), "the other interface is as it was");
        node.apply(RemovePodLink(first)).await;
        let found = meshd_kernel::differences(&check).await.unwrap();
        assert!(found[0].contains("is not there"), "{found:?}");
    });
}
