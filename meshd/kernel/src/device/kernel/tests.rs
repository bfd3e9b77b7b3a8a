//! Messages as they are written and read. What the kernel makes of them, `hack/vm` shows.

use super::*;

fn socket() -> Socket {
    // Whose number is that of a family does not matter to the attributes.
    Socket::open("nlctrl").unwrap()
}

fn wanted() -> Peer {
    Peer {
        public_key: PublicKey([9; 32]),
        endpoint: Some("[2001:db8::2]:51820".parse().unwrap()),
        allowed_ips: ["10.244.2.0/24", "fd00:244:0:2::/64", "0.0.0.0/0"]
            .map(|ip| ip.parse().unwrap())
            .into(),
        keepalive: Some(25),
    }
}

/// The peers as a device would have them that was told this.
fn told(peers: &[&Peer]) -> Tunnel {
    let mut tunnel = Tunnel::default();
    for wanted in peers {
        let mut request = request(&socket(), command::SET_DEVICE, Wants::Done, "wg0");
        request.nest(device::PEERS, |peers| peers.nest(0, |r| write_peer(r, wanted)));
        read_device(&mut tunnel, request.attributes()).unwrap();
    }
    tunnel
}

#[test]
fn a_peer_that_is_written_reads_back() {
    let v4 = Peer {
        public_key: PublicKey([8; 32]),
        endpoint: Some("192.0.2.1:65000".parse().unwrap()),
        allowed_ips: std::collections::BTreeSet::new(),
        keepalive: None,
    };
    let silent = Peer {
        public_key: PublicKey([7; 32]),
        endpoint: None,
        ..wanted()
    };
    for peer in [wanted(), v4, silent] {
        let tunnel = told(&[&peer]);
        let read = tunnel.peers.get(&peer.public_key).unwrap();
        assert_eq!(
            (read.endpoint, read.keepalive, &read.allowed_ips),
            (peer.endpoint, peer.keepalive, &peer.allowed_ips)
        );
    }
}

#[test]
fn a_peer_that_takes_two_messages_is_one() {
    let mut tunnel = told(&[&wanted()]);
    let mut rest = request(&socket(), command::GET_DEVICE, Wants::Dump, "wg0");
    rest.nest(device::PEERS, |peers| {
        peers.nest(0, |r| {
            r.put(peer::PUBLIC_KEY, &wanted().public_key.0);
            r.nest(peer::ALLOWED_IPS, |all| {
                all.nest(0, |one| write_allowed_ip(one, "10.9.0.0/16".parse().unwrap()));
            });
        });
    });
    read_device(&mut tunnel, rest.attributes()).unwrap();
    let [state] = &tunnel.peers.values().collect::<Vec<_>>()[..] else {
        panic!("{tunnel:?}");
    };
    assert_eq!(state.allowed_ips.len(), 4);
    assert_eq!(state.endpoint, wanted().endpoint);
    assert_eq!(state.keepalive, Some(25));
}

#[test]
fn the_device_itself_is_read_and_a_key_of_zeros_is_none() {
    let message = |key: [u8; 32]| {
        let mut request = request(&socket(), command::GET_DEVICE, Wants::Dump, "wg0");
        request.put(device::PRIVATE_KEY, &[5; 32]);
        request.put(device::PUBLIC_KEY, &key);
        request.put(device::LISTEN_PORT, &51820u16.to_ne_bytes());
        request.put(device::FWMARK, &0x500u32.to_ne_bytes());
        request
    };
    let mut tunnel = Tunnel::default();
    read_device(&mut tunnel, message([6; 32]).attributes()).unwrap();
    assert_eq!(tunnel.public_key, Some(PublicKey([6; 32])));
    assert_eq!((tunnel.listen_port, tunnel.fwmark), (51820, 0x500));
    read_device(&mut tunnel, message([0; 32]).attributes()).unwrap();
    assert_eq!(tunnel.public_key, None);
}

#[test]
fn times_count_from_the_epoch_which_is_never() {
    let time = |seconds: u64, nanos: u64| [seconds.to_ne_bytes(), nanos.to_ne_bytes()].concat();
    assert_eq!(read_time(&time(0, 0)), Some(None));
    assert_eq!(read_time(&time(2, 3)), Some(Some(Wall(2_000_000_003))));
    assert_eq!(read_time(&time(u64::MAX, 0)), None);
    assert_eq!(read_time(&[0; 15]), None);
}

#[test]
fn what_is_cut_off_is_not_taken_for_a_peer() {
    for (kind, value) in [
        (peer::PUBLIC_KEY, &[1; 31][..]),
        (peer::KEEPALIVE, &[1]),
        (peer::RX_BYTES, &[1; 7]),
        (peer::LAST_HANDSHAKE, &[1; 8]),
    ] {
        let mut cut = request(&socket(), command::GET_DEVICE, Wants::Dump, "wg0");
        cut.nest(device::PEERS, |peers| {
            peers.nest(0, |r| {
                if kind != peer::PUBLIC_KEY {
                    r.put(peer::PUBLIC_KEY, &[1; 32]);
                }
                r.put(kind, value);
            });
        });
        assert_eq!(
            read_device(&mut Tunnel::default(), cut.attributes()),
            None,
            "{kind}"
        );
    }
    let mut nameless = request(&socket(), command::GET_DEVICE, Wants::Dump, "wg0");
    nameless.nest(device::PEERS, |peers| peers.nest(0, |_| {}));
    assert_eq!(read_device(&mut Tunnel::default(), nameless.attributes()), None);
}
