//! What the tests share: devices with known keys, packets, and simulated time.
#![allow(dead_code, unreachable_pub)] // each test uses its part

pub mod world;

use ipnetwork::IpNetwork;
use meshd_model::{Boot, Now, PublicKey, Wall};
use meshd_wireguard_proto::{Device, PeerConfig, PresharedKey, PrivateKey};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use zeroize::Zeroizing;

pub const START: Now = Now {
    boot: Boot(1_000_000_000_000),
    wall: Wall(1_800_000_000_000_000_000),
};

pub fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub fn private(n: u8) -> PrivateKey {
    PrivateKey::from_bytes(Zeroizing::new([n; 32]))
}

pub fn public(n: u8) -> PublicKey {
    private(n).public_key()
}

pub fn psk(n: u8) -> PresharedKey {
    PresharedKey::from_bytes(Zeroizing::new([n; 32]))
}

pub fn device(n: u8, seed: u8) -> Device {
    Device::new(Some(private(n)), Zeroizing::new([seed; 32]), START)
}

pub fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

/// Underlay address of device `n`.
pub fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::from([192, 0, 2, n]), 51820)
}

/// A peer `n` with 10.0.n.0/24 and fd00:n::/64.
pub fn config(n: u8) -> PeerConfig {
    PeerConfig {
        endpoint: Some(endpoint(n)),
        allowed_ips: vec![net(&format!("10.0.{n}.0/24")), net(&format!("fd00:{n}::/64"))],
        ..PeerConfig::default()
    }
}

/// Address of a host behind device `n`.
pub fn host(n: u8) -> IpAddr {
    IpAddr::from([10, 0, n, 1])
}

pub fn host6(n: u8) -> IpAddr {
    format!("fd00:{n}::1").parse().unwrap()
}

/// An IP packet with a payload, as much of it as a device looks at.
pub fn packet(from: IpAddr, to: IpAddr, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes.extend([0x45, 0]);
            bytes.extend(u16::try_from(20 + payload.len()).unwrap().to_be_bytes());
            bytes.extend([0; 8]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
            bytes.extend([17, 64]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        _ => panic!("one family"),
    }
    bytes.extend(payload);
    bytes
}

/// One transmit at most, and its bytes.
pub fn one(device: &mut Device) -> Option<Vec<u8>> {
    let sent = device.poll_transmit().map(|t| t.bytes);
    assert_eq!(device.poll_transmit(), None, "more than one datagram");
    sent
}
