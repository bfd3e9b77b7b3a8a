//! What a peer, a handshake and a packet cost: `cargo run --release -p meshd-wireguard-proto --example cost`.
#![allow(unsafe_code, clippy::disallowed_methods)] // it counts bytes, and reads the clock

use ipnetwork::IpNetwork;
use meshd_model::{Boot, Now, PublicKey, Wall};
use meshd_wireguard_proto::{Device, PeerConfig, PrivateKey};
use std::alloc::{GlobalAlloc, Layout, System};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

struct Counting;
static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: counts, and leaves the rest to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PEERS: u16 = 1000;
const PACKETS: u32 = 200_000;

fn now() -> Now {
    Now {
        boot: Boot(1_000_000_000_000),
        wall: Wall(1_800_000_000_000_000_000),
    }
}

fn private(n: u16) -> PrivateKey {
    let mut bytes = [7; 32];
    // Not at the ends: clamping would take some of it.
    bytes[8..10].copy_from_slice(&n.to_be_bytes());
    PrivateKey::from_bytes(Zeroizing::new(bytes))
}

fn endpoint(n: u16) -> SocketAddr {
    let [a, b] = n.to_be_bytes();
    (Ipv4Addr::new(192, 168, a, b), 51820).into()
}

/// As a node has them: a pod CIDR and an overlay address in each family, and its own address.
fn config(n: u16) -> PeerConfig {
    let [a, b] = n.to_be_bytes();
    let v4 = |c, d, prefix| IpNetwork::new(Ipv4Addr::new(10, c, d, 0).into(), prefix).unwrap();
    let v6 = Ipv6Addr::new(0xfd00, n, 0, 0, 0, 0, 0, 0);
    PeerConfig {
        endpoint: Some(endpoint(n)),
        allowed_ips: vec![
            v4(a, b, 24),
            IpNetwork::new(v6.into(), 64).unwrap(),
            IpNetwork::from(endpoint(n).ip()),
            IpNetwork::from(std::net::IpAddr::from(Ipv6Addr::new(
                0x2001, 0xdb8, n, 0, 0, 0, 0, 1,
            ))),
        ],
        ..PeerConfig::default()
    }
}

fn packet(from: u16, to: u16, length: usize) -> Vec<u8> {
    let mut packet = vec![0; length];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
    for (at, n) in [(12, from), (16, to)] {
        let [a, b] = n.to_be_bytes();
        packet[at..at + 4].copy_from_slice(&[10, a, b, 5]);
    }
    packet
}

fn report(what: &str, count: usize, time: Duration, bytes: usize) {
    let each = time.as_nanos() as usize / count;
    println!("{what:<44} {each:>9} ns {:>7} bytes each", bytes / count);
}

fn exchange(a: &mut Device, b: &mut Device, from_a: SocketAddr, from_b: SocketAddr) {
    for _ in 0..8 {
        while let Some(mut t) = a.poll_transmit() {
            b.handle_datagram(now(), from_a, &mut t.bytes).unwrap();
        }
        while let Some(mut t) = b.poll_transmit() {
            a.handle_datagram(now(), from_b, &mut t.bytes).unwrap();
        }
    }
    while a.poll_packet().is_some() || b.poll_packet().is_some() {}
}

fn main() {
    let keys: Vec<PublicKey> = (0..=PEERS).map(|n| private(n).public_key()).collect();
    let mut hub = Device::new(Some(private(0)), Zeroizing::new([1; 32]), now());

    let (bytes, start) = (BYTES.load(Ordering::Relaxed), Instant::now());
    for n in 1..=PEERS {
        hub.set_peer(now(), keys[usize::from(n)], config(n));
    }
    let used = BYTES.load(Ordering::Relaxed) - bytes;
    report(
        "an idle peer with 4 allowed IPs",
        PEERS.into(),
        start.elapsed(),
        used,
    );

    let mut spokes: Vec<Device> = (1..=PEERS)
        .map(|n| {
            let mut seed = [2; 32];
            seed[..2].copy_from_slice(&n.to_be_bytes());
            let mut spoke = Device::new(Some(private(n)), Zeroizing::new(seed), now());
            spoke.set_peer(now(), keys[0], config(0));
            spoke
        })
        .collect();
    hub.set_load_threshold(u32::MAX);
    let (bytes, start) = (BYTES.load(Ordering::Relaxed), Instant::now());
    for (spoke, n) in spokes.iter_mut().zip(1..) {
        hub.handle_packet(now(), &packet(0, n, 100)).unwrap();
        exchange(&mut hub, spoke, endpoint(0), endpoint(n));
    }
    let used = (BYTES.load(Ordering::Relaxed) - bytes) / 2;
    report(
        "a handshake, both sides, and a session",
        PEERS.into(),
        start.elapsed(),
        used,
    );

    for length in [64, 1400] {
        let (there, spoke) = (packet(0, 500, length), &mut spokes[499]);
        let start = Instant::now();
        for _ in 0..PACKETS {
            hub.handle_packet(now(), &there).unwrap();
            let mut sent = hub.poll_transmit().unwrap();
            spoke
                .handle_datagram(now(), endpoint(0), &mut sent.bytes)
                .unwrap();
            spoke.poll_packet().unwrap();
        }
        let what = format!("a packet of {length} bytes, sealed and opened");
        report(&what, PACKETS as usize, start.elapsed(), 0);
    }
}
