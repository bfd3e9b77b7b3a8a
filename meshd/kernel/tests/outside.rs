//! The world outside of the cluster: reached with the node's address, or not at all.

mod support;

use meshd_core::KernelOp::SetFirewall;
use meshd_model::kernel::{Firewall, Outside};
use nix::sys::socket::{setsockopt, sockopt};
use nlink::netlink::link::VethLink;
use nlink::netlink::nftables::{
    BaseChain, Chain, Family, Field, FilterHook, IcmpxCode, Match, NatHook, NatType, Priority, Reject, Rule,
    RuleSpec, Stmt, Value,
};
use nlink::netlink::route::{Ipv4Route, Ipv6Route, RouteMetrics};
use nlink::{Connection, Nftables};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};
use support::{
    BRIEFLY, Inbox, Node, PATIENCE, Sandbox, Site, firewall, icmp, node, open_firewall, send, site,
};

/// The pod's address, one outside, the neighbour's, the node's own.
const FAMILIES: [[&str; 4]; 2] = [
    ["10.244.1.2", "203.0.113.9", "192.0.2.2", "192.0.2.1"],
    ["fd00:244:0:1::2", "2001:db8:9::9", "2001:db8::2", "2001:db8::1"],
];

fn at(address: &str, port: impl std::fmt::Display) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

/// Where a datagram of the pod's seems to come from to the neighbour, if it comes.
fn seen(site: &Site, to: &str, patience: Duration) -> Option<IpAddr> {
    let v6 = to.contains(':');
    let [pod, ..] = FAMILIES[usize::from(v6)];
    let inbox = Inbox::within(&site.neighbour, &at(to, 0));
    let (from, to) = (at(pod, 0), at(to, inbox.port()));
    site.pod.run(move || send(&from, &to));
    inbox.next(patience)
}

fn refusing(refused: &[&str]) -> Firewall {
    Firewall {
        outside: Outside {
            masquerade: true,
            refused: refused.iter().map(|r| r.parse().unwrap()).collect(),
        },
        ..firewall()
    }
}

#[test]
fn pods_reach_the_world_with_the_nodes_address_but_for_what_is_refused() {
    node("pods_reach_the_world", |mut node| async move {
        let site = site(&mut node, open_firewall()).await;
        for [_, outside, neighbour, own] in FAMILIES {
            let own: IpAddr = own.parse().unwrap();
            for to in [outside, neighbour] {
                assert_eq!(seen(&site, to, PATIENCE), Some(own), "{to}");
                let echo = site.neighbour.echo(&at(to, 0));
                assert!(site.pod.asks(echo), "no answer from {to}");
            }
        }
        let refused = ["169.254.169.254", "198.51.100.7", "fd00:ec2::254"];
        for to in refused {
            assert_eq!(seen(&site, to, BRIEFLY), None, "{to}");
        }
        // The control: they are there for a node that refuses nothing.
        node.apply(SetFirewall(refusing(&[]))).await;
        for to in refused {
            let own = FAMILIES[usize::from(to.contains(':'))][3];
            assert_eq!(seen(&site, to, PATIENCE), Some(own.parse().unwrap()), "{to}");
        }
        // A node that does not translate lets nothing out.
        node.apply(SetFirewall(firewall())).await;
        for [_, outside, ..] in FAMILIES {
            assert_eq!(seen(&site, outside, BRIEFLY), None, "{outside}");
        }
    });
}

#[test]
fn strict_reverse_path_filters_of_the_host_stop_no_pod() {
    node("strict_reverse_path_filters", |mut node| async move {
        for scope in ["all", "default"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter"), "1").unwrap();
        }
        let site = site(&mut node, open_firewall()).await;
        for [pod, outside, _, own] in FAMILIES {
            assert_eq!(seen(&site, outside, PATIENCE), Some(own.parse().unwrap()));
            assert!(site.pod.asks(site.neighbour.echo(&at(outside, 0))));
            let echo = site.pod.echo(&at(pod, 0));
            assert!(support::ask(echo), "the node does not reach {pod}");
        }
    });
}

/// What conntrack holds for invalid is not translated, whatever the rules say.
#[test]
fn what_conntrack_does_not_translate_does_not_leave() {
    node("what_conntrack_does_not_translate", |mut node| async move {
        let site = site(&mut node, open_firewall()).await;
        let nft = Connection::<Nftables>::new().unwrap();
        let heard = |patience| {
            let listener = site.neighbour.run(tcp_listener);
            site.pod.run(|| {
                let raw = raw_tcp();
                let to: SocketAddr = "203.0.113.9:0".parse().unwrap();
                raw.send_to(&INVALID, &to.into()).unwrap();
            });
            hears(&listener, &INVALID, patience)
        };
        assert_eq!(heard(BRIEFLY), None);
        nft.del_table("meshd", Family::Inet).await.unwrap();
        // The control: conntrack is there by another table, and does translate; but not this.
        masquerade_by_another_hand(&nft).await;
        assert_eq!(
            seen(&site, "203.0.113.9", PATIENCE),
            Some("192.0.2.1".parse().unwrap())
        );
        assert_eq!(heard(PATIENCE), Some("10.244.1.2".parse().unwrap()));
    });
}

/// A TCP header that no connection has: SYN, FIN and RST together. Port 1 to port 2, five words, no checksum.
const INVALID: [u8; 20] = [0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x07, 0, 0, 0, 0, 0, 0];

fn raw_tcp() -> socket2::Socket {
    use socket2::{Domain, Protocol, Socket, Type};
    Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap()
}

fn tcp_listener() -> socket2::Socket {
    let socket = raw_tcp();
    socket.set_read_timeout(Some(BRIEFLY / 4)).unwrap();
    socket
}

/// Source of the packet with this header, if it comes.
fn hears(socket: &socket2::Socket, header: &[u8], patience: Duration) -> Option<IpAddr> {
    use std::io::Read as _;
    let until = Instant::now() + patience;
    let mut buffer = [0; 2048];
    while Instant::now() < until {
        let Ok(40) = (&*socket).read(&mut buffer) else {
            continue;
        };
        if buffer[20..40] == *header {
            return Some(IpAddr::from(<[u8; 4]>::try_from(&buffer[12..16]).unwrap()));
        }
    }
    None
}

async fn masquerade_by_another_hand(nft: &Connection<Nftables>) {
    nft.add_table("other", Family::Inet).await.unwrap();
    let chain = Chain::new("other", "postrouting").unwrap().family(Family::Inet);
    nft.add_chain(chain.base(BaseChain::nat(NatHook::Postrouting, Priority::SrcNat)))
        .await
        .unwrap();
    let rule = Rule::new("other", "postrouting").family(Family::Inet);
    nft.add_rule(rule.match_oif("eth0").masquerade()).await.unwrap();
}

/// What kube-proxy and the portmap plugin do: another destination, before routing.
async fn translate(node_side: &[(&str, u16, SocketAddr)]) {
    let nft = Connection::<Nftables>::new().unwrap();
    nft.add_table("services", Family::Inet).await.unwrap();
    let chain = Chain::new("services", "prerouting").unwrap().family(Family::Inet);
    nft.add_chain(chain.base(BaseChain::nat(NatHook::Prerouting, Priority::DstNat)))
        .await
        .unwrap();
    for (address, port, to) in node_side {
        let address: IpAddr = address.parse().unwrap();
        let field = if address.is_ipv4() {
            Field::Ip4Daddr
        } else {
            Field::Ip6Daddr
        };
        let spec = RuleSpec::new()
            .then(Match::eq(field, address))
            .then(Match::eq(Field::UdpDport, *port))
            .then(Stmt::NatTo {
                nat_type: NatType::Dnat,
                addr: to.ip(),
                port: Some(to.port()),
            });
        let rule = Rule::from_spec("services", "prerouting", spec).family(Family::Inet);
        nft.add_rule(rule).await.unwrap();
    }
}

/// A Service address whose endpoint is a host outside, such as the API server; and a port of the node's (hostPort, or
/// NodePort with externalTrafficPolicy Local) whose endpoint is a pod here, which sees who asks.
#[test]
fn translated_destinations_are_reached_both_ways() {
    node("translated_destinations", |mut node| async move {
        let site = site(&mut node, open_firewall()).await;
        let services = ["10.96.0.1", "fd00:96::1"];
        let mut rules = Vec::new();
        let mut pods = Vec::new();
        for ([pod, outside, _, own], service) in FAMILIES.into_iter().zip(services) {
            rules.push((service, 443, site.neighbour.echo(&at(outside, 0))));
            let inside = site.pod.echo(&at(pod, 0));
            pods.push((own, inside));
            rules.push((own, 30080, inside));
        }
        translate(&rules).await;
        for ([pod, _, neighbour, own], service) in FAMILIES.into_iter().zip(services) {
            assert!(site.pod.asks(at(service, 443).parse().unwrap()), "{service}");
            assert!(
                site.neighbour.asks(at(own, 30080).parse().unwrap()),
                "{neighbour} to {pod} through a port of {own}"
            );
        }
        // Refused is what it comes to after the translation, as well.
        node.apply(SetFirewall(refusing(&["203.0.113.0/24", "2001:db8:9::/64"])))
            .await;
        for service in services {
            // A new connection: that of before goes on.
            assert!(
                !asks_within(&site.pod, at(service, 443).parse().unwrap(), BRIEFLY),
                "{service}"
            );
        }
    });
}

/// What a pod answers to somebody whom it may not ask itself goes back.
#[test]
fn who_is_refused_as_a_destination_may_ask() {
    node("who_is_refused_as_a_destination", |mut node| async move {
        let neighbours = ["192.0.2.0/24", "2001:db8::/64"];
        let site = site(&mut node, refusing(&neighbours)).await;
        let mut rules = Vec::new();
        for [pod, _, _, own] in FAMILIES {
            rules.push((own, 30080, site.pod.echo(&at(pod, 0))));
        }
        translate(&rules).await;
        for [_, _, neighbour, own] in FAMILIES {
            assert!(site.neighbour.asks(at(own, 30080).parse().unwrap()), "{own}");
            assert_eq!(seen(&site, neighbour, BRIEFLY), None, "{neighbour}");
        }
    });
}

/// Another node at the other end of the tunnel: a pod's address there, and an address of its own.
const PEER: [[&str; 2]; 2] = [
    ["10.244.2.2", "172.16.0.9"],
    ["fd00:244:0:2::2", "2001:db8:16::9"],
];

/// Puts it there, in the place of a stand-in that leads nowhere.
async fn peer(node: &Node) -> Sandbox {
    let sandbox = Sandbox::new();
    node.conn.del_link(support::DEVICE).await.unwrap();
    let veth = VethLink::new(support::DEVICE, "wg0").peer_netns_fd(sandbox.file());
    node.conn.add_link(veth).await.unwrap();
    node.conn.set_link_up(support::DEVICE).await.unwrap();
    let own = ["10.244.1.1/32", "fd00:244:0:1::1/128", "fe80::1/64"];
    support::add_addresses(&node.conn, support::DEVICE, &own).await;
    for [pod, own] in PEER {
        for address in [pod, own] {
            let dst = address.parse().unwrap();
            match dst {
                IpAddr::V4(v4) => node.conn.add_route(Ipv4Route::new(v4, 32).dev("wg0")).await,
                IpAddr::V6(v6) => node.conn.add_route(Ipv6Route::new(v6, 128).dev("wg0")).await,
            }
            .unwrap();
        }
    }
    sandbox.netlink(|conn| async move {
        conn.set_link_up("lo").await.unwrap();
        conn.set_link_up("wg0").await.unwrap();
        let prefixes = PEER.as_flattened().iter().map(|a| {
            let length = if a.contains(':') { 128 } else { 32 };
            format!("{a}/{length}")
        });
        let prefixes: Vec<String> = prefixes.collect();
        let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
        support::add_addresses(&conn, "wg0", &prefixes).await;
        let node = Ipv4Route::new([10, 244, 1, 1].into(), 32);
        conn.add_route(node.dev("wg0")).await.unwrap();
        let v4 = Ipv4Route::default_route().gateway([10, 244, 1, 1].into());
        conn.add_route(v4.dev("wg0")).await.unwrap();
        let v6 = Ipv6Route::default_route().gateway("fe80::1".parse().unwrap());
        conn.add_route(v6.dev("wg0")).await.unwrap();
    });
    sandbox
}

/// Sends from the peer until it arrives; where it came from.
fn arrives(site: &Site, peer: &Sandbox, from: &str, to: &str, patience: Duration) -> Option<IpAddr> {
    let inbox = Inbox::within(&site.neighbour, &at(to, 0));
    let (from, to) = (at(from, 0), at(to, inbox.port()));
    let end = Instant::now() + patience;
    while Instant::now() < end {
        let (from, to) = (from.clone(), to.clone());
        peer.run(move || send(&from, &to));
        if let Some(source) = inbox.next(BRIEFLY) {
            return Some(source);
        }
    }
    None
}

fn asks_until(sandbox: &Sandbox, to: SocketAddr) -> bool {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if asks_within(sandbox, to, BRIEFLY) {
            return true;
        }
    }
    false
}

/// A peer may use this node's ports, and nothing behind it: neither with its own address, nor where pods are refused.
#[test]
fn nobody_goes_through_this_node_to_somewhere_else() {
    node("nobody_goes_through_this_node", |mut node| async move {
        let site = site(&mut node, open_firewall()).await;
        let peer = peer(&node).await;
        let nft = Connection::<Nftables>::new().unwrap();
        masquerade_by_another_hand(&nft).await;
        let mut rules = Vec::new();
        for ([_, outside, _, own], [pod, _]) in FAMILIES.into_iter().zip(PEER) {
            rules.push((own, 30080, site.neighbour.echo(&at(outside, 0))));
            rules.push((own, 30081, peer.echo(&at(pod, 0))));
        }
        translate(&rules).await;
        for [_, outside, _, own] in FAMILIES {
            let port = |port: u16| at(own, port).parse().unwrap();
            assert!(asks_until(&peer, port(30080)), "{own} leads to {outside}");
            assert!(
                asks_until(&site.neighbour, port(30081)),
                "{own} leads to the peer"
            );
        }
        for ([_, outside, ..], from) in FAMILIES.into_iter().zip(PEER) {
            for from in from {
                assert_eq!(arrives(&site, &peer, from, outside, BRIEFLY), None, "{from}");
            }
        }
        let refused = refusing(&[
            "203.0.113.0/24",
            "2001:db8:9::/64",
            "192.0.2.0/24",
            "2001:db8::/64",
        ]);
        node.apply(SetFirewall(refused)).await;
        for [_, outside, _, own] in FAMILIES {
            let port = |port: u16| at(own, port).parse().unwrap();
            assert!(!asks_within(&peer, port(30080), BRIEFLY), "{outside} is refused");
            assert!(
                asks_until(&site.neighbour, port(30081)),
                "{own} leads to the peer"
            );
        }
        // The control: the way is there.
        nft.del_table("meshd", Family::Inet).await.unwrap();
        for ([_, outside, _, own], [_, from]) in FAMILIES.into_iter().zip(PEER) {
            let seen = arrives(&site, &peer, from, outside, PATIENCE);
            assert_eq!(seen, Some(own.parse().unwrap()), "{from}");
        }
    });
}

/// kube-proxy answers for a Service that has no endpoint: what we drop besides, because nobody has translated it, is
/// asked later, in whichever order both came up.
#[test]
fn a_service_without_endpoints_refuses_at_once() {
    node("a_service_without_endpoints", |mut node| async move {
        let services = ["10.96.0.0/16", "fd00:96::/112"];
        let nft = Connection::<Nftables>::new().unwrap();
        nft.add_table("services", Family::Inet).await.unwrap();
        let chain = Chain::new("services", "forward").unwrap().family(Family::Inet);
        let base = BaseChain::filter(FilterHook::Forward, Priority::Filter);
        nft.add_chain(chain.base(base)).await.unwrap();
        for (field, service) in [Field::Ip4Daddr, Field::Ip6Daddr].into_iter().zip(services) {
            let prefix: ipnetwork::IpNetwork = service.parse().unwrap();
            let spec = RuleSpec::new()
                .then(Match::eq(field, Value::Prefix(prefix.network(), prefix.prefix())))
                .then(Stmt::Reject(Reject::Icmpx(IcmpxCode::PortUnreachable)));
            let rule = Rule::from_spec("services", "forward", spec).family(Family::Inet);
            nft.add_rule(rule).await.unwrap();
        }
        let site = site(&mut node, refusing(&services)).await;
        for service in ["10.96.0.7", "fd00:96::7"] {
            let to = at(service, 443).parse().unwrap();
            let tried = site
                .pod
                .run(move || TcpStream::connect_timeout(&to, PATIENCE).map_err(|e| e.kind()));
            assert_eq!(tried.err(), Some(ErrorKind::ConnectionRefused), "{service}");
        }
    });
}

fn asks_within(sandbox: &Sandbox, to: SocketAddr, patience: Duration) -> bool {
    sandbox.run(move || support::ask_within(to, patience))
}

/// An ICMP error about a translated packet reaches the pod: its path's MTU is found.
#[test]
fn errors_about_translated_packets_come_back() {
    node("errors_about_translated_packets", |mut node| async move {
        let site = site(&mut node, open_firewall()).await;
        let socket = site.pod.run(|| {
            let socket = UdpSocket::bind("10.244.1.2:0").unwrap();
            set_do_not_fragment(&socket);
            socket
        });
        let inbox = site.neighbour.run(|| UdpSocket::bind("203.0.113.9:0").unwrap());
        inbox.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(inbox.local_addr().unwrap()).unwrap();
        socket.send(&[7; 1300]).unwrap();
        let mut buffer = [0; 2048];
        let (length, from) = inbox.recv_from(&mut buffer).unwrap();
        assert_eq!((length, from.ip()), (1300, "192.0.2.1".parse().unwrap()));

        // Fragmentation needed, a link of 1000 bytes: quotes what was seen on the way.
        let mut error = vec![3, 4, 0, 0, 0, 0, 0x03, 0xe8];
        error.extend([0x45, 0, 0x05, 0x30, 0, 0, 0x40, 0, 63, 17, 0, 0]);
        error.extend([192, 0, 2, 1, 203, 0, 113, 9]);
        error.extend(from.port().to_be_bytes());
        error.extend(inbox.local_addr().unwrap().port().to_be_bytes());
        error.extend([0x05, 0x1c, 0, 0]);
        let sum = checksum(&error);
        error[2..4].copy_from_slice(&sum);
        site.neighbour
            .run(move || icmp::send(&error, "192.0.2.1", "2001:db8::1"));
        let end = Instant::now() + PATIENCE;
        while socket.send(&[7; 1300]).is_ok() {
            assert!(Instant::now() < end, "the pod never hears of the narrow link");
            std::thread::sleep(Duration::from_millis(5));
        }
        // The error itself is told to one call more.
        assert!((0..2).any(|_| socket.send(&[7; 900]).is_ok()));
    });
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes
        .chunks(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!u16::try_from(folded).unwrap()).to_be_bytes()
}

#[allow(unsafe_code)]
fn set_do_not_fragment(socket: &UdpSocket) {
    use std::os::fd::AsRawFd;
    let value = libc::IP_PMTUDISC_DO;
    // SAFETY: the option takes an int, whose address and length are given.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// A route that is narrower than the pod's interface shortens the segments of both ends.
#[test]
fn segments_fit_the_route() {
    node("segments_fit_the_route", |mut node| async move {
        let site = site(&mut node, open_firewall()).await;
        let connect = |to: &str| {
            let to = at(to, 0);
            let listener = site.neighbour.run(move || TcpListener::bind(to).unwrap());
            let to = listener.local_addr().unwrap();
            let near = site
                .pod
                .run(move || TcpStream::connect_timeout(&to, PATIENCE).unwrap());
            let (far, _) = listener.accept().unwrap();
            [near, far].map(|s| setting(&s))
        };
        for ([_, outside, ..], headers) in FAMILIES.into_iter().zip([40, 60]) {
            // 12 bytes of each segment are timestamps.
            let wide = 1420 - headers - 12;
            assert_eq!(connect(outside), [wide, wide], "{outside}");
        }
        let narrow = RouteMetrics::new().mtu(1300);
        let v4 = Ipv4Route::new([203, 0, 113, 9].into(), 32).gateway([192, 0, 2, 2].into());
        node.conn
            .add_route(v4.dev("eth0").metrics(narrow.clone()))
            .await
            .unwrap();
        let v6 =
            Ipv6Route::new("2001:db8:9::9".parse().unwrap(), 128).gateway("2001:db8::2".parse().unwrap());
        node.conn.add_route(v6.dev("eth0").metrics(narrow)).await.unwrap();
        for ([_, outside, ..], headers) in FAMILIES.into_iter().zip([40, 60]) {
            let narrow = 1300 - headers - 12;
            assert_eq!(connect(outside), [narrow, narrow], "{outside}");
        }
    });
}

/// The largest segment that the connection sends (TCP_MAXSEG).
fn setting(stream: &TcpStream) -> u32 {
    nix::sys::socket::getsockopt(stream, sockopt::TcpMaxSeg).unwrap()
}

#[test]
fn the_devices_own_packets_do_not_enter_it_again() {
    node("the_devices_own_packets", |mut node| async move {
        let _site = site(&mut node, open_firewall()).await;
        let route = Ipv4Route::new([10, 244, 2, 0].into(), 24).dev(support::DEVICE);
        node.conn.add_route(route).await.unwrap();
        for (mark, passes) in [(0x500, false), (0x4500, false), (0x100, true), (0, true)] {
            let socket = UdpSocket::bind("10.244.1.1:0").unwrap();
            setsockopt(&socket, sockopt::Mark, &mark).unwrap();
            let sent = socket.send_to(b"sealed", "10.244.2.2:51820");
            let refused = matches!(&sent, Err(e) if e.kind() == ErrorKind::PermissionDenied);
            assert_eq!(
                (sent.is_ok(), refused),
                (passes, !passes),
                "mark {mark:#x}: {sent:?}"
            );
        }
    });
}
