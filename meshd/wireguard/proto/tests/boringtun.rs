//! Against another implementation: boringtun's `Tunn` answers, asks, and exchanges data with our device.

mod common;

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use common::*;
use meshd_wireguard_proto::{Device, DropReason, PeerConfig};
use std::sync::Arc;

const US: u8 = 1;
const THEM: u8 = 2;

fn secret(n: u8) -> x25519::StaticSecret {
    x25519::StaticSecret::from([n; 32])
}

fn theirs(preshared: Option<u8>, limiter: Option<Arc<RateLimiter>>) -> Tunn {
    let ours = x25519::PublicKey::from(public(US).0);
    Tunn::new(secret(THEM), ours, preshared.map(|n| [n; 32]), None, 7, limiter)
}

fn ours(preshared: Option<u8>) -> Device {
    let mut device = device(US, 1);
    let config = PeerConfig {
        preshared_key: preshared.map(psk),
        ..config(THEM)
    };
    assert!(device.set_peer(START, public(THEM), config));
    device
}

/// What boringtun does with a datagram.
#[derive(Debug, PartialEq)]
enum Reaction {
    Nothing,
    Sends(Vec<u8>),
    Delivers(Vec<u8>),
    Refuses,
}

fn reaction(result: TunnResult<'_>) -> Reaction {
    match result {
        TunnResult::Done => Reaction::Nothing,
        TunnResult::Err(_) => Reaction::Refuses,
        TunnResult::WriteToNetwork(bytes) => Reaction::Sends(bytes.to_vec()),
        TunnResult::WriteToTunnelV4(bytes, _) | TunnResult::WriteToTunnelV6(bytes, _) => {
            Reaction::Delivers(bytes.to_vec())
        }
    }
}

fn receive(tunn: &mut Tunn, datagram: &[u8]) -> Reaction {
    let mut buffer = vec![0; 2048];
    reaction(tunn.decapsulate(Some(endpoint(US).ip()), datagram, &mut buffer))
}

fn send(tunn: &mut Tunn, packet: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; 2048];
    match reaction(tunn.encapsulate(packet, &mut buffer)) {
        Reaction::Sends(bytes) => bytes,
        other => panic!("{other:?}"),
    }
}

/// Packets of many lengths, both families, both ways.
fn exchange(us: &mut Device, them: &mut Tunn) {
    for length in (0..64).chain([1000, 1360, 1380]) {
        let payload = vec![0xab; length];
        for (local, remote) in [(host(US), host(THEM)), (host6(US), host6(THEM))] {
            let there = packet(local, remote, &payload);
            us.handle_packet(START, &there).unwrap();
            let sent = one(us).unwrap();
            assert_eq!(receive(them, &sent), Reaction::Delivers(there));

            let back = packet(remote, local, &payload);
            let mut sent = send(them, &back);
            us.handle_datagram(START, endpoint(THEM), &mut sent).unwrap();
            assert_eq!(us.poll_packet(), Some(back));
        }
    }
    let peer = us.peer(&public(THEM)).unwrap();
    assert_eq!(peer.last_handshake, Some(START.wall));
    assert!(peer.rx_bytes > 0 && peer.tx_bytes > 0);
}

fn we_initiate(preshared: Option<u8>) {
    let (mut us, mut them) = (ours(preshared), theirs(preshared, None));
    let first = packet(host(US), host(THEM), b"first");
    us.handle_packet(START, &first).unwrap();
    let initiation = one(&mut us).unwrap();
    assert_eq!(initiation.len(), 148);
    let Reaction::Sends(mut response) = receive(&mut them, &initiation) else {
        panic!("boringtun does not answer our initiation");
    };
    us.handle_datagram(START, endpoint(THEM), &mut response).unwrap();
    assert_eq!(
        receive(&mut them, &one(&mut us).unwrap()),
        Reaction::Delivers(first)
    );
    exchange(&mut us, &mut them);
}

fn they_initiate(preshared: Option<u8>) {
    let (mut us, mut them) = (ours(preshared), theirs(preshared, None));
    let first = packet(host(THEM), host(US), b"first");
    let mut initiation = send(&mut them, &first);
    us.handle_datagram(START, endpoint(THEM), &mut initiation)
        .unwrap();
    let Reaction::Sends(mut keepalive) = receive(&mut them, &one(&mut us).unwrap()) else {
        panic!("boringtun does not take our response");
    };
    us.handle_datagram(START, endpoint(THEM), &mut keepalive).unwrap();
    let Reaction::Sends(mut data) = receive(&mut them, &[]) else {
        panic!("boringtun does not send what waited");
    };
    us.handle_datagram(START, endpoint(THEM), &mut data).unwrap();
    assert_eq!(us.poll_packet(), Some(first));
    exchange(&mut us, &mut them);
}

#[test]
fn data_flows_when_we_initiate() {
    we_initiate(None);
    we_initiate(Some(9));
}

#[test]
fn data_flows_when_they_initiate() {
    they_initiate(None);
    they_initiate(Some(9));
}

#[test]
fn another_preshared_key_is_refused_both_ways() {
    let (mut us, mut them) = (ours(Some(1)), theirs(Some(2), None));
    us.handle_packet(START, &packet(host(US), host(THEM), b""))
        .unwrap();
    let Reaction::Sends(mut response) = receive(&mut them, &one(&mut us).unwrap()) else {
        panic!("the preshared key is mixed in with the response only");
    };
    let refused = us.handle_datagram(START, endpoint(THEM), &mut response);
    assert_eq!(refused, Err(DropReason::Unauthentic));

    let (mut us, mut them) = (ours(Some(1)), theirs(Some(2), None));
    let mut initiation = send(&mut them, &packet(host(THEM), host(US), b""));
    us.handle_datagram(START, endpoint(THEM), &mut initiation)
        .unwrap();
    assert_eq!(receive(&mut them, &one(&mut us).unwrap()), Reaction::Refuses);
}

#[test]
fn their_cookie_is_taken_and_its_mac_accepted() {
    // A limit of zero handshakes a second: always under load.
    let limiter = Arc::new(RateLimiter::new(&x25519::PublicKey::from(&secret(THEM)), 0));
    let (mut us, mut them) = (ours(None), theirs(None, Some(limiter)));
    us.handle_packet(START, &packet(host(US), host(THEM), b"first"))
        .unwrap();
    let initiation = one(&mut us).unwrap();
    assert_eq!(initiation[132..], [0; 16], "no cookie, no mac2");
    let Reaction::Sends(mut cookie) = receive(&mut them, &initiation) else {
        panic!("boringtun under load asks for a cookie");
    };
    assert_eq!(cookie.len(), 64);
    us.handle_datagram(START, endpoint(THEM), &mut cookie).unwrap();
    assert_eq!(one(&mut us), None, "the next initiation waits for its time");
    let later = START + secs(6);
    us.handle_timeout(later);
    let initiation = one(&mut us).unwrap();
    assert_ne!(initiation[132..], [0; 16]);
    assert!(matches!(receive(&mut them, &initiation), Reaction::Sends(r) if r.len() == 92));
}

#[test]
fn our_cookie_is_taken_and_its_mac_accepted() {
    let (mut us, mut them) = (ours(None), theirs(None, None));
    us.set_load_threshold(0);
    let mut initiation = send(&mut them, &packet(host(THEM), host(US), b"first"));
    let refused = us.handle_datagram(START, endpoint(THEM), &mut initiation);
    assert_eq!(refused, Err(DropReason::UnderLoad));
    let cookie = one(&mut us).unwrap();
    assert_eq!(receive(&mut them, &cookie), Reaction::Nothing);
    let mut buffer = vec![0; 2048];
    let again = reaction(them.format_handshake_initiation(&mut buffer, true));
    let Reaction::Sends(mut initiation) = again else {
        panic!("{again:?}");
    };
    us.handle_datagram(START, endpoint(THEM), &mut initiation)
        .unwrap();
    assert_eq!(one(&mut us).unwrap().len(), 92);
}

#[test]
fn their_rekey_and_ours_keep_data_flowing() {
    let (mut us, mut them) = (ours(None), theirs(None, None));
    us.handle_packet(START, &packet(host(US), host(THEM), b"first"))
        .unwrap();
    let Reaction::Sends(mut response) = receive(&mut them, &one(&mut us).unwrap()) else {
        panic!("no response");
    };
    us.handle_datagram(START, endpoint(THEM), &mut response).unwrap();
    receive(&mut them, &one(&mut us).unwrap());
    exchange(&mut us, &mut them);

    let mut buffer = vec![0; 2048];
    let Reaction::Sends(mut initiation) = reaction(them.format_handshake_initiation(&mut buffer, true))
    else {
        panic!("no initiation");
    };
    us.handle_datagram(START, endpoint(THEM), &mut initiation)
        .unwrap();
    let Reaction::Sends(mut keepalive) = receive(&mut them, &one(&mut us).unwrap()) else {
        panic!("no keepalive");
    };
    us.handle_datagram(START, endpoint(THEM), &mut keepalive).unwrap();
    exchange(&mut us, &mut them);
}
