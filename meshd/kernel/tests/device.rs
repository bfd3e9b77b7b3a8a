//! The device: addresses, MTU and parameters on the real kernel, WireGuard's own part against a small server that
//! speaks the userspace protocol.

mod support;

use meshd_core::KernelOp::{Greet, RemovePeer, SetDevice, SetPeer};
use meshd_model::kernel::{Device, DeviceKind, DeviceState, Peer, PeerState, UnderlayAddress};
use meshd_model::{KeyHandle, PublicKey, Wall};
use nlink::netlink::addr::Ipv6Address;
use nlink::netlink::link::VethLink;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use support::{DEVICE, Node, add_addresses, node};

fn device() -> Device {
    let secret = x25519_dalek::StaticSecret::from([5; 32]);
    Device {
        name: DEVICE.to_owned(),
        key: KeyHandle(5),
        public_key: PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes()),
        listen_port: 51820,
        fwmark: 0x500,
        mtu: 1420,
        addresses: ["10.244.1.1", "fd00:244:0:1::1"]
            .map(|a| a.parse().unwrap())
            .into(),
    }
}

fn peer() -> Peer {
    Peer {
        public_key: PublicKey([9; 32]),
        endpoint: Some("[2001:db8::2]:51820".parse().unwrap()),
        allowed_ips: ["10.244.2.0/24", "fd00:244:0:2::/64"]
            .map(|a| a.parse().unwrap())
            .into(),
        keepalive: Some(25),
    }
}

/// A server of the userspace protocol that keeps what it is told, by device and by peer.
#[derive(Default)]
struct Store {
    device: BTreeMap<String, String>,
    peers: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    requests: Vec<String>,
    connections: Vec<UnixStream>,
}

impl Store {
    /// What a process does that is killed and started again: it hangs up and knows nothing.
    fn restart(&mut self) {
        for connection in self.connections.drain(..) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        *self = Self::default();
    }

    fn set(&mut self, key: &str, value: &str, peer: &mut Option<String>) {
        match (key, &peer) {
            ("public_key", _) => {
                self.peers.entry(value.to_owned()).or_default();
                *peer = Some(value.to_owned());
            }
            (_, None) => drop(self.device.insert(key.to_owned(), value.to_owned())),
            ("remove", Some(p)) => drop(self.peers.remove(p)),
            ("replace_allowed_ips", Some(p)) => drop(self.peers.get_mut(p).unwrap().remove("allowed_ip")),
            // A peer of which nothing was said before is new: what follows is not for it.
            ("update_only", Some(p)) if self.peers[p].is_empty() => drop(self.peers.remove(p)),
            ("update_only", _) => {}
            (_, Some(p)) => {
                let Some(known) = self.peers.get_mut(p) else {
                    return;
                };
                let values = known.entry(key.to_owned()).or_default();
                if key != "allowed_ip" {
                    values.clear();
                }
                values.push(value.to_owned());
            }
        }
    }

    fn show(&self) -> String {
        let mut text: String = self.device.iter().map(|(k, v)| format!("{k}={v}\n")).collect();
        for (key, lines) in &self.peers {
            text += &format!(
                "public_key={key}\nlast_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\n"
            );
            text += "rx_bytes=7\ntx_bytes=8\nprotocol_version=1\nsomething_new=yes\n";
            for (k, values) in lines {
                values.iter().for_each(|v| text += &format!("{k}={v}\n"));
            }
        }
        text
    }
}

fn serve(node: &Node) -> Arc<Mutex<Store>> {
    let store = Arc::new(Mutex::new(Store::default()));
    let listener = UnixListener::bind(node.dir.path().join(format!("{DEVICE}.sock"))).unwrap();
    let shared = store.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, store) = (stream.unwrap(), shared.clone());
            store
                .lock()
                .unwrap()
                .connections
                .push(stream.try_clone().unwrap());
            std::thread::spawn(move || converse(stream, &store));
        }
    });
    store
}

fn converse(stream: UnixStream, store: &Mutex<Store>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    while let Some(Ok(first)) = lines.next() {
        let body: Vec<String> = lines
            .by_ref()
            .map_while(Result::ok)
            .take_while(|l| !l.is_empty())
            .collect();
        let mut store = store.lock().unwrap();
        store
            .requests
            .push([vec![first.clone()], body.clone()].concat().join(" "));
        let mut answer = String::new();
        if first == "get=1" {
            answer = store.show();
        }
        let mut peer = None;
        let refused = body.iter().any(|l| l == "listen_port=1");
        for line in body.iter().filter(|_| !refused) {
            let (key, value) = line.split_once('=').unwrap();
            store.set(key, value, &mut peer);
        }
        let errno = if refused { -libc::EADDRINUSE } else { 0 };
        if (&stream)
            .write_all(format!("{answer}errno={errno}\n\n").as_bytes())
            .is_err()
        {
            return;
        }
    }
}

#[test]
fn the_device_is_keyed_addressed_and_up() {
    node("the_device_is_keyed", |mut node| async move {
        node.conn.add_link(VethLink::new(DEVICE, "far")).await.unwrap();
        node.conn.set_link_up("far").await.unwrap();
        add_addresses(&node.conn, DEVICE, &["10.9.9.9/24"]).await;
        let store = serve(&node);
        node.apply(SetDevice(device())).await;

        let expected = DeviceState {
            kind: DeviceKind::Userspace,
            public_key: Some(device().public_key),
            listen_port: 51820,
            fwmark: 0x500,
            mtu: 1420,
            addresses: device().addresses,
            up: true,
            forwards: true,
            as_chosen: true,
        };
        assert_eq!(node.observe().await.device, Some(expected));
        for (key, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/far/accept_ra", "2"),
            ("ipv4/conf/wg0/rp_filter", "2"),
        ] {
            let found = std::fs::read_to_string(format!("/proc/sys/net/{key}")).unwrap();
            assert_eq!(found.trim(), value, "net/{key}");
        }

        // What is so already is not written again.
        node.apply(SetDevice(device())).await;
        let sets = |store: &Store| {
            store
                .requests
                .iter()
                .filter(|r| r.starts_with("set=1"))
                .cloned()
                .collect::<Vec<_>>()
        };
        let key = hex::encode([5; 32]);
        assert_eq!(
            sets(&store.lock().unwrap()),
            [format!("set=1 private_key={key} listen_port=51820 fwmark=1280")]
        );

        let moved = Device {
            mtu: 1380,
            listen_port: 51821,
            addresses: ["10.244.1.1".parse().unwrap()].into(),
            ..device()
        };
        // Without an IPv6 address there is nothing of it to forward, and whoever turns it off has it so.
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0").unwrap();
        assert!(!node.observe().await.device.unwrap().forwards);
        node.apply(SetDevice(moved.clone())).await;
        let state = node.observe().await.device.unwrap();
        assert!(state.forwards);
        let ipv6 = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding").unwrap();
        assert_eq!(ipv6.trim(), "0");
        assert_eq!(
            (state.mtu, state.listen_port, state.addresses),
            (1380, 51821, moved.addresses)
        );
        assert_eq!(
            sets(&store.lock().unwrap()).last().unwrap(),
            "set=1 listen_port=51821"
        );
    });
}

#[test]
fn a_device_that_refuses_or_is_not_there_says_why() {
    node("a_device_that_refuses", |mut node| async move {
        let failure = node.try_apply(SetDevice(device())).await.unwrap_err();
        assert_eq!(failure.errno, Some(libc::ENODEV), "{}", failure.message);
        assert!(
            failure.message.contains("start `meshd-wg wg0`"),
            "{}",
            failure.message
        );
        node.apply(RemovePeer(peer().public_key)).await;

        node.conn.add_link(VethLink::new(DEVICE, "far")).await.unwrap();
        let failure = node.try_apply(SetDevice(device())).await.unwrap_err();
        assert_eq!(failure.errno, Some(libc::ENOENT), "{}", failure.message);
        assert_eq!(node.observe().await.device.unwrap().public_key, None);

        let _store = serve(&node);
        let taken = Device {
            listen_port: 1,
            ..device()
        };
        let failure = node.try_apply(SetDevice(taken)).await.unwrap_err();
        assert_eq!(failure.errno, Some(libc::EADDRINUSE), "{}", failure.message);
        let unknown = Device {
            key: KeyHandle(0),
            ..device()
        };
        let failure = node.try_apply(SetDevice(unknown)).await.unwrap_err();
        assert_eq!(failure.errno, Some(libc::ENOKEY), "{}", failure.message);
        assert!(!failure.message.contains(&hex::encode([5; 32])));
    });
}

#[test]
fn peers_are_set_read_and_removed() {
    node("peers_are_set", |mut node| async move {
        node.conn.add_link(VethLink::new(DEVICE, "far")).await.unwrap();
        let _store = serve(&node);
        node.apply(SetDevice(device())).await;
        node.apply(SetPeer(peer())).await;
        let mut wanted = peer();
        wanted.allowed_ips = ["10.244.3.0/24".parse().unwrap()].into();
        wanted.keepalive = None;
        node.apply(SetPeer(wanted.clone())).await;
        let expected = PeerState {
            endpoint: wanted.endpoint,
            allowed_ips: wanted.allowed_ips.clone(),
            keepalive: None,
            last_handshake: Some(Wall(1_700_000_000_000_000_005)),
            rx_bytes: 7,
            tx_bytes: 8,
        };
        assert_eq!(
            node.observe().await.peers,
            [(wanted.public_key, expected.clone())].into()
        );
        // Where it is stays, whatever else is set; and a greeting changes nothing that lasts.
        let elsewhere = Peer {
            endpoint: None,
            ..wanted.clone()
        };
        node.apply(SetPeer(elsewhere)).await;
        for peer in [wanted.public_key, PublicKey([77; 32])] {
            let greet = Greet {
                peer,
                keepalive: None,
            };
            node.apply(greet).await;
        }
        assert_eq!(node.observe().await.peers, [(wanted.public_key, expected)].into());
        node.apply(RemovePeer(wanted.public_key)).await;
        node.apply(RemovePeer(wanted.public_key)).await;
        assert!(node.observe().await.peers.is_empty());
    });
}

#[test]
fn what_another_hand_changes_is_told_unasked() {
    node("what_another_hand_changes", |mut node| async move {
        node.conn.add_link(VethLink::new(DEVICE, "far")).await.unwrap();
        let store = serve(&node);
        node.firewall().await;
        node.apply(SetDevice(device())).await;
        node.apply(SetPeer(peer())).await;
        node.settle().await;
        let before = node.observe().await;

        // A counter is no news.
        node.conn.set_link_alias("far", "another name").await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        assert!(node.driver.events.try_recv().is_err());

        node.conn.set_link_mtu(DEVICE, 1300).await.unwrap();
        assert_eq!(node.unasked().await.device.unwrap().mtu, 1300);

        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{key}"), "0").unwrap();
            assert!(!node.unasked().await.device.unwrap().forwards, "{key}");
            std::fs::write(format!("/proc/sys/net/{key}"), "1").unwrap();
            assert!(node.unasked().await.device.unwrap().forwards, "{key}");
        }

        let nft = nlink::Connection::<nlink::Nftables>::new().unwrap();
        nft.del_table("meshd", nlink::netlink::nftables::Family::Inet)
            .await
            .unwrap();
        assert_eq!(node.unasked().await.firewall, None);

        assert_eq!(before.peers.len(), 1);
        store.lock().unwrap().restart();
        let after = node.unasked().await;
        assert_eq!((after.device.unwrap().public_key, after.peers.len()), (None, 0));
    });
}

#[test]
fn addresses_that_come_and_go_are_told_apart() {
    node("addresses_that_come_and_go", |mut node| async move {
        // Without a carrier, duplicate detection never ends.
        node.conn.add_link(VethLink::new("eth1", "far")).await.unwrap();
        node.conn.set_link_up("eth1").await.unwrap();
        let link = node.conn.get_link_by_name("eth1").await.unwrap().unwrap();
        let six = |address: &str| Ipv6Address::with_index(link.ifindex(), address.parse().unwrap(), 64);
        // The second IPv4 address of a network has the bit that means temporary in IPv6.
        let lasting = ["192.0.2.5/24", "192.0.2.6/24", "fd00:9::1/64"];
        add_addresses(&node.conn, "eth1", &lasting).await;
        let deprecated = six("fd00:9::3")
            .nodad()
            .preferred_lifetime(0)
            .valid_lifetime(3600);
        for address in [six("fd00:9::2"), deprecated] {
            node.conn.add_address(address).await.unwrap();
        }
        let of = |seen: &[UnderlayAddress], passing: bool| -> Vec<_> {
            let those = seen.iter().filter(|u| u.passing == passing);
            let mut those: Vec<_> = those.map(|u| u.address.to_string()).collect();
            those.sort();
            those
        };
        let seen = node.observe().await.underlay;
        assert_eq!(
            of(&seen, false),
            ["192.0.2.5", "192.0.2.6", "fd00:9::1"],
            "{seen:?}"
        );
        assert_eq!(of(&seen, true), ["fd00:9::2", "fd00:9::3"], "{seen:?}");

        // The kernel makes a temporary address up beside this one, in the background.
        std::fs::write("/proc/sys/net/ipv6/conf/eth1/accept_dad", "0").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/eth1/use_tempaddr", "2").unwrap();
        let beside = six("fd00:a::1").nodad().mngtmpaddr();
        node.conn.add_address(beside).await.unwrap();
        for _ in 0..200 {
            let seen = node.observe().await.underlay;
            // fd00:9::2 may have become a lasting one meanwhile, as nothing detects duplicates any more.
            assert!(of(&seen, false).contains(&"fd00:a::1".to_owned()), "{seen:?}");
            if of(&seen, true).iter().any(|a| a.starts_with("fd00:a:")) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("there is no temporary address beside fd00:a::1");
    });
}
