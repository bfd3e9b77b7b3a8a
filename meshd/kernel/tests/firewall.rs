//! The table against leaks and spoofing, on the real kernel and with real packets.

mod support;

use support::icmp;

use meshd_core::KernelOp::{AttachPod, SetFirewall};
use meshd_model::attachment::MacAddr;
use meshd_model::kernel::{Firewall, Mark, Outside};
use nlink::netlink::nftables::{BaseChain, Chain, Family, NatHook, Priority, Rule, RuleInfo};
use nlink::{Connection, Nftables};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use support::{
    BRIEFLY, Inbox, PATIENCE, Sandbox, Site, add_addresses, firewall, node, open_firewall, pod, pod_entries,
    send, site,
};

/// The pod's, the node's overlay, an absent pod's and the neighbour's address, in both families.
const FAMILIES: [[&str; 4]; 2] = [
    ["10.244.1.2", "10.244.1.1", "10.244.9.9", "192.0.2.2"],
    [
        "[fd00:244:0:1::2]",
        "[fd00:244:0:1::1]",
        "[fd00:244:0:9::9]",
        "[2001:db8::2]",
    ],
];

/// Every way a plaintext packet could take; which of them arrive in so long.
fn arrivals(site: &Site, patience: Duration) -> Vec<String> {
    let mut arrived = Vec::new();
    for [pod, node, absent, neighbour] in FAMILIES {
        let any = if pod.starts_with('[') { "[::]" } else { "0.0.0.0" };
        let mut attempt = |what: String, inbox: Inbox, send: &dyn Fn(&str)| {
            let port = inbox.port();
            send(&port);
            if inbox.next(patience).is_some() {
                arrived.push(what);
            }
        };
        let at = |host: &str| format!("{host}:0");
        let from = |sandbox: &Sandbox, source: &str, to: String| {
            let source = at(source);
            sandbox.run(move || send(&source, &to));
        };
        let (neighbours, pods) = (&site.neighbour, &site.pod);
        attempt(
            format!("neighbour to {pod}"),
            Inbox::within(pods, &at(any)),
            &|port| {
                from(neighbours, neighbour, format!("{pod}:{port}"));
            },
        );
        attempt(format!("neighbour to {node}"), Inbox::at(&at(any)), &|port| {
            from(neighbours, neighbour, format!("{node}:{port}"));
        });
        attempt(
            format!("neighbour as {absent} to {pod}"),
            Inbox::within(pods, &at(any)),
            &|port| {
                from(neighbours, absent, format!("{pod}:{port}"));
            },
        );
        attempt(
            format!("{pod} to the neighbour"),
            Inbox::within(neighbours, &at(any)),
            &|port| {
                from(pods, pod, format!("{neighbour}:{port}"));
            },
        );
        attempt(
            format!("{pod} to {absent}"),
            Inbox::within(neighbours, &at(any)),
            &|port| {
                from(pods, pod, format!("{absent}:{port}"));
            },
        );
        attempt(
            format!("node as {node} to the neighbour"),
            Inbox::within(neighbours, &at(any)),
            &|port| {
                send(&at(node), &format!("{neighbour}:{port}"));
            },
        );
        attempt(
            format!("node to {absent}"),
            Inbox::within(neighbours, &at(any)),
            &|port| {
                send(&at(any), &format!("{absent}:{port}"));
            },
        );
    }
    arrived
}

#[test]
fn plaintext_passes_in_no_direction_and_all_of_it_without_the_table() {
    node("plaintext_passes_in_no_direction", |mut node| async move {
        let site = site(&mut node, firewall()).await;
        assert_eq!(arrivals(&site, BRIEFLY), Vec::<String>::new());

        // The control: what is tried does arrive where nothing forbids it.
        let nft = Connection::<Nftables>::new().unwrap();
        nft.del_table("meshd", Family::Inet).await.unwrap();
        assert_eq!(arrivals(&site, PATIENCE).len(), 14);
    });
}

/// A packet that came through the tunnel from another node's own address, for a pod that is gone, would be answered
/// outside of the tunnel.
#[test]
fn no_icmp_error_quotes_a_pods_packet_on_the_underlay() {
    node("no_icmp_error_quotes", |mut node| async move {
        let site = site(&mut node, firewall()).await;
        let nft = Connection::<Nftables>::new().unwrap();
        let ping = [8, 0, 0, 0, 0, 0, 0, 0];
        // An error of each family: from a pod, to a pod, about neither, and an echo that only looks alike.
        let v4 = |kind, from: [u8; 4], to: [u8; 4]| {
            let mut error = vec![
                kind, 1, 0, 0, 0, 0, 0, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0,
            ];
            error.extend([from, to].concat());
            error.extend(ping);
            error
        };
        let (pod, other) = ([10, 244, 1, 2], [198, 51, 100, 1]);
        let v6 = |kind, from: &str, to: &str| {
            let mut error = vec![kind, 0, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, 8, 17, 64];
            for address in [from, to] {
                error.extend(address.parse::<std::net::Ipv6Addr>().unwrap().octets());
            }
            error.extend(ping);
            error
        };
        let (pod6, other6) = ("fd00:244:0:1::2", "2001:db8:1::1");
        let cases = [
            (v4(3, pod, other), false),
            (v4(11, other, pod), false),
            (v4(12, pod, other), false),
            (v4(3, other, other), true),
            (v4(8, pod, pod), true),
            (v6(1, pod6, other6), false),
            (v6(3, other6, pod6), false),
            (v6(1, other6, other6), true),
            (v6(128, pod6, pod6), true),
        ];
        let received = |listener: &icmp::Listener, from: &dyn Fn(&[u8])| -> Vec<bool> {
            let mut results = Vec::new();
            for (message, _) in &cases {
                from(message);
                results.push(listener.hears(message));
            }
            results
        };
        let outward = |message: &[u8]| icmp::send(message, "192.0.2.2", "2001:db8::2");
        let inward = |message: &[u8]| {
            let message = message.to_vec();
            site.neighbour
                .run(move || icmp::send(&message, "192.0.2.1", "2001:db8::1"));
        };
        let there = site.neighbour.run(icmp::Listener::new);
        let here = icmp::Listener::new();
        let allowed: Vec<bool> = cases.iter().map(|(_, passes)| *passes).collect();
        assert_eq!(received(&there, &outward), allowed, "out of the node");
        assert_eq!(received(&here, &inward), allowed, "into the node");

        // The control: without the table, all of it passes.
        nft.del_table("meshd", Family::Inet).await.unwrap();
        assert_eq!(received(&there, &outward), vec![true; cases.len()]);
        assert_eq!(received(&here, &inward), vec![true; cases.len()]);
    });
}

#[test]
fn what_is_translated_passes() {
    node("what_is_translated_passes", |mut node| async move {
        let site = site(&mut node, firewall()).await;
        let nft = Connection::<Nftables>::new().unwrap();
        nft.add_table("masquerade", Family::Inet).await.unwrap();
        let chain = Chain::new("masquerade", "postrouting")
            .unwrap()
            .family(Family::Inet);
        let chain = chain.base(BaseChain::nat(NatHook::Postrouting, Priority::SrcNat));
        nft.add_chain(chain).await.unwrap();
        let rule = Rule::new("masquerade", "postrouting").family(Family::Inet);
        nft.add_rule(rule.match_oif("eth0").masquerade()).await.unwrap();

        for ([pod, _, absent, neighbour], own) in FAMILIES.into_iter().zip(["192.0.2.1", "2001:db8::1"]) {
            let any = if pod.starts_with('[') {
                "[::]:0"
            } else {
                "0.0.0.0:0"
            };
            let inbox = Inbox::within(&site.neighbour, any);
            let (from, to) = (format!("{pod}:0"), format!("{neighbour}:{}", inbox.port()));
            site.pod.run(move || send(&from, &to));
            assert_eq!(inbox.next(PATIENCE), Some(own.parse().unwrap()));
            // Translated or not, nothing goes out to a pod's address.
            let (from, to) = (format!("{pod}:0"), format!("{absent}:{}", inbox.port()));
            site.pod.run(move || send(&from, &to));
            assert_eq!(inbox.next(BRIEFLY), None);
            // Answers to what was translated come back.
            let any = any.to_owned();
            let echo = site
                .neighbour
                .run(move || support::spawn_echo(std::net::UdpSocket::bind(any).unwrap()));
            let to = format!("{neighbour}:{}", echo.port()).parse().unwrap();
            assert!(site.pod.asks(to));
        }
    });
}

#[test]
fn a_pod_sends_as_itself_only() {
    node("a_pod_sends_as_itself_only", |mut node| async move {
        let site = site(&mut node, firewall()).await;
        let other = Sandbox::new();
        node.apply(AttachPod(pod(&other, 3))).await;
        let inboxes = || [Inbox::at("0.0.0.0:0"), Inbox::at("[::]:0")];
        let arrive = |sources: [&str; 2], patience| {
            let inboxes = inboxes();
            for ((source, [_, node, ..]), inbox) in sources.into_iter().zip(FAMILIES).zip(&inboxes) {
                let (from, to) = (format!("{source}:0"), format!("{node}:{}", inbox.port()));
                site.pod.run(move || send(&from, &to));
            }
            inboxes.map(|inbox| inbox.next(patience).is_some())
        };
        let own = ["10.244.1.2", "[fd00:244:0:1::2]"];
        assert_eq!(arrive(own, PATIENCE), [true, true]);

        let foreign = [
            "10.244.1.3/32",
            "fd00:244:0:1::3/128",
            "192.0.2.77/32",
            "2001:db8::77/128",
        ];
        site.pod
            .netlink(move |conn| async move { add_addresses(&conn, "eth0", &foreign).await });
        assert_eq!(
            arrive(["10.244.1.3", "[fd00:244:0:1::3]"], BRIEFLY),
            [false, false],
            "another pod's address"
        );
        assert_eq!(
            arrive(["192.0.2.77", "[2001:db8::77]"], BRIEFLY),
            [false, false],
            "an address of nobody's"
        );
        assert_eq!(arrive(own, PATIENCE), [true, true]);

        set_mac(&site.pod, MacAddr([2, 0, 0, 0, 2, 3]));
        assert_eq!(arrive(own, BRIEFLY), [false, false], "another pod's MAC");
        set_mac(&site.pod, MacAddr([2, 0, 0, 0, 2, 2]));
        // With the MAC the pod's neighbour entries went: attaching again brings them back.
        node.apply(AttachPod(pod(&site.pod, 2))).await;
        assert_eq!(arrive(own, PATIENCE), [true, true]);

        // A pod that is detached from the table only: its entries are what lets it send.
        let nft = Connection::<Nftables>::new().unwrap();
        for set in ["pods4", "pods6"] {
            flush_set(&nft, set).await;
        }
        assert_eq!(arrive(own, BRIEFLY), [false, false]);
        assert!(!node.observe().await.pod_links["mshp2"].guarded);
    });
}

#[test]
fn the_firewall_is_replaced_as_a_whole_and_keeps_the_pods_entries() {
    node("the_firewall_is_replaced", |mut node| async move {
        let _site = site(&mut node, firewall()).await;
        let entries = pod_entries().await;
        assert_eq!(entries.len(), 2);
        assert_eq!(node.observe().await.firewall, Some(firewall()));

        node.firewall().await;
        assert_eq!(pod_entries().await, entries);

        // Prefixes that touch, and one within another.
        let cidrs = [
            "10.244.0.0/16",
            "10.245.0.0/16",
            "10.244.3.0/24",
            "172.16.0.0/12",
            "fd00:244::/48",
        ];
        let wide = Firewall {
            pod_cidrs: cidrs.map(|c| c.parse().unwrap()).into(),
            device: "wg1".to_owned(),
            mark: Mark {
                value: 0x1000_0000,
                mask: 0x1000_0000,
            },
            outside: Outside {
                masquerade: true,
                refused: [
                    "169.254.169.254/32",
                    "192.168.0.0/16",
                    "fd00:ec2::254/128",
                    "fd01::/64",
                ]
                .map(|c| c.parse().unwrap())
                .into(),
            },
        };
        node.apply(SetFirewall(wide.clone())).await;
        assert_eq!(node.observe().await.firewall, Some(wide));
        assert_eq!(pod_entries().await, entries);
        assert!(node.observe().await.pod_links["mshp2"].guarded);
    });
}

#[test]
fn while_the_table_is_replaced_nothing_leaks_and_nothing_is_lost() {
    node("while_the_table_is_replaced", |mut node| async move {
        let site = site(&mut node, firewall()).await;
        let inbox = Inbox::within(&site.pod, "0.0.0.0:0");
        let to_pod = format!("10.244.1.2:{}", inbox.port());
        let echo = support::spawn_echo(std::net::UdpSocket::bind("10.244.1.1:0").unwrap());
        let done = Arc::new(AtomicBool::new(false));
        let (sent, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (leaks, asking) = (site.neighbour.try_clone(), site.pod.try_clone());
        let (stop, count) = (done.clone(), sent.clone());
        let leaks = std::thread::spawn(move || {
            leaks.run(move || {
                while !stop.load(Relaxed) {
                    send("192.0.2.2:0", &to_pod);
                    count.fetch_add(1, Relaxed);
                }
            });
        });
        let (stop, count) = (done.clone(), asked.clone());
        let asking = std::thread::spawn(move || {
            asking.run(move || {
                let mut answered = 0;
                while !stop.load(Relaxed) {
                    answered += usize::from(support::ask(echo));
                    count.fetch_add(1, Relaxed);
                }
                answered
            })
        });
        let mut replaced = 0;
        while replaced < 50 || sent.load(Relaxed).min(asked.load(Relaxed)) < 100 {
            node.firewall().await;
            replaced += 1;
        }
        done.store(true, Relaxed);
        leaks.join().unwrap();
        let answered = asking.join().unwrap();
        assert_eq!(
            inbox.next(BRIEFLY),
            None,
            "of {} in plaintext",
            sent.load(Relaxed)
        );
        assert_eq!(answered, asked.load(Relaxed));
    });
}

#[test]
fn a_table_that_was_changed_counts_as_none() {
    node("a_table_that_was_changed", |mut node| async move {
        node.apply(SetFirewall(open_firewall())).await;
        let nft = Connection::<Nftables>::new().unwrap();
        assert_eq!(listing(&nft).await, LISTING);
        assert_eq!(node.observe().await.firewall, Some(open_firewall()));

        for n in 0..LISTING.len() {
            // The handles are new ones each time.
            let rule = nft
                .list_rules("meshd", Family::Inet)
                .await
                .unwrap()
                .swap_remove(n);
            nft.del_rule("meshd", &rule.chain, Family::Inet, rule.handle)
                .await
                .unwrap();
            // Without one of what is refused, it is the table of a node that refuses less.
            assert_ne!(
                node.observe().await.firewall,
                Some(open_firewall()),
                "without rule {n}, of chain {}",
                rule.chain
            );
            node.apply(SetFirewall(open_firewall())).await;
        }
        for chain in ["ingress", "quoted", "egress", "from_pod", "forward", "masquerade"] {
            nft.flush_chain("meshd", chain, Family::Inet).await.unwrap();
            assert_ne!(
                node.observe().await.firewall,
                Some(open_firewall()),
                "with chain {chain} flushed"
            );
            node.apply(SetFirewall(open_firewall())).await;
        }
        nft.del_chain("meshd", "egress", Family::Inet).await.unwrap();
        assert_eq!(node.observe().await.firewall, None, "without a chain");
        node.apply(SetFirewall(open_firewall())).await;
        nft.add_chain(Chain::new("meshd", "more").unwrap().family(Family::Inet))
            .await
            .unwrap();
        assert_eq!(node.observe().await.firewall, None, "with a chain more");
        node.apply(SetFirewall(open_firewall())).await;
        nft.add_rule(Rule::new("meshd", "ingress").family(Family::Inet).accept())
            .await
            .unwrap();
        assert_eq!(node.observe().await.firewall, None, "with a rule more");
        nft.flush_ruleset().await.unwrap();
        assert_eq!(node.observe().await.firewall, None);
        node.apply(SetFirewall(open_firewall())).await;
        assert_eq!(node.observe().await.firewall, Some(open_firewall()));
    });
}

/// As `nft -s list table inet meshd` has the rules, chain by chain.
const LISTING: &[&str] = &[
    "egress: oifname \"wg0\" meta mark & 0x00000f00 == 0x00000500 counter drop",
    "egress: oifname \"mshp*\" accept",
    "egress: oifname \"lo\" accept",
    "egress: oifname \"wg0\" accept",
    "egress: ip saddr 10.244.0.0/16 counter drop",
    "egress: ip daddr 10.244.0.0/16 counter drop",
    // An ICMP error that quotes a packet from there, and one that quotes a packet to there.
    "egress: registers",
    "egress: registers",
    "egress: ip6 saddr fd00:244::/48 counter drop",
    "egress: ip6 daddr fd00:244::/48 counter drop",
    "egress: registers",
    "egress: registers",
    "forward: iifname \"mshp*\" tcp flags syn tcp option maxseg size set rt mtu",
    "forward: oifname \"mshp*\" tcp flags syn tcp option maxseg size set rt mtu",
    "forward: iifname \"wg0\" tcp flags syn tcp option maxseg size set rt mtu",
    "forward: oifname \"wg0\" tcp flags syn tcp option maxseg size set rt mtu",
    "forward: oifname \"mshp*\" accept",
    "forward: oifname \"wg0\" accept",
    "forward: iifname \"mshp*\" ct direction original ip daddr 169.254.169.254 counter drop",
    "forward: iifname \"wg0\" ct direction original ip daddr 169.254.169.254 counter drop",
    "forward: iifname \"mshp*\" ct direction original ip daddr 198.51.100.0/24 counter drop",
    "forward: iifname \"wg0\" ct direction original ip daddr 198.51.100.0/24 counter drop",
    "forward: iifname \"mshp*\" ct direction original ip6 daddr fd00:ec2::254 counter drop",
    "forward: iifname \"wg0\" ct direction original ip6 daddr fd00:ec2::254 counter drop",
    "forward: iifname \"wg0\" ct state established,related accept",
    "forward: iifname \"wg0\" ct status dnat accept",
    "forward: iifname \"wg0\" counter drop",
    // iifname . ether saddr . ip saddr @pods4 accept, and the same of pods6: spelled out in registers.
    "from_pod: ip daddr 127.0.0.0/8 counter drop",
    "from_pod: registers",
    "from_pod: registers",
    "from_pod: ip6 saddr fe80::/10 drop",
    "from_pod: ip6 saddr :: drop",
    "from_pod: counter drop",
    "ingress: iifname \"mshp*\" goto from_pod",
    "ingress: iifname \"lo\" accept",
    "ingress: iifname \"wg0\" accept",
    "ingress: ip6 saddr ::ffff:0.0.0.0/96 drop",
    "ingress: ip saddr 10.244.0.0/16 counter drop",
    "ingress: ip daddr 10.244.0.0/16 counter drop",
    "ingress: ip6 saddr fd00:244::/48 counter drop",
    "ingress: ip6 daddr fd00:244::/48 counter drop",
    "masquerade: oifname \"mshp*\" accept",
    "masquerade: oifname \"wg0\" accept",
    "masquerade: ip daddr 10.244.0.0/16 accept",
    "masquerade: ip6 daddr fd00:244::/48 accept",
    "masquerade: iifname \"mshp*\" ip saddr 10.244.0.0/16 counter masquerade fully-random",
    "masquerade: iifname \"mshp*\" ip6 saddr fd00:244::/48 counter masquerade fully-random",
    "quoted: iifname \"mshp*\" accept",
    "quoted: iifname \"lo\" accept",
    "quoted: iifname \"wg0\" accept",
    "quoted: registers",
    "quoted: registers",
    "quoted: registers",
    "quoted: registers",
];

async fn listing(nft: &Connection<Nftables>) -> Vec<String> {
    let rules = nft.list_rules("meshd", Family::Inet).await.unwrap();
    let show = |r: &RuleInfo| {
        let text = r.nft_syntax_stateless();
        format!("{}: {}", r.chain, text.as_deref().unwrap_or("registers"))
    };
    let mut lines: Vec<String> = rules.iter().map(show).collect();
    lines.sort_by_key(|line| line.split(':').next().unwrap().to_owned());
    lines
}

async fn flush_set(nft: &Connection<Nftables>, set: &str) {
    use nlink::netlink::nftables::{NFT_MSG_DELSETELEM, RawMessage};
    let mut attrs = Vec::new();
    // NFTA_SET_ELEM_LIST_TABLE and NFTA_SET_ELEM_LIST_SET, and no elements: all of them.
    for (kind, text) in [(1u16, "meshd"), (2, set)] {
        let length = u16::try_from(4 + text.len() + 1).unwrap();
        attrs.extend(length.to_ne_bytes());
        attrs.extend(kind.to_ne_bytes());
        attrs.extend(text.bytes());
        attrs.push(0);
        attrs.resize(attrs.len().next_multiple_of(4), 0);
    }
    let flush = RawMessage::new(NFT_MSG_DELSETELEM, Family::Inet).attrs(attrs);
    nft.transaction().raw(flush).commit(nft).await.unwrap();
}

fn set_mac(sandbox: &Sandbox, mac: MacAddr) {
    sandbox.netlink(move |conn| async move {
        conn.set_link_address("eth0", mac.0).await.unwrap();
    });
}
