//! Responses.

use meshd_wireguard_proto::{Device, PeerStats};
use std::fmt::Write;
use zeroize::Zeroizing;

const NANOS: u64 = 1_000_000_000;

/// The answer to `get=1`.
pub(crate) fn get(device: &Device, listen_port: u16, fwmark: u32) -> Zeroizing<String> {
    // Keys are never written into a string that grows: what it left behind would not be wiped.
    let peers: Vec<PeerStats> = device.peers().collect();
    let size = 512
        + peers
            .iter()
            .map(|p| 640 + 64 * p.allowed_ips.len())
            .sum::<usize>();
    let mut out = Zeroizing::new(String::with_capacity(size));
    if let Some(key) = device.private_key() {
        line(&mut out, "private_key", &*hexadecimal(&key.to_bytes()));
    }
    line(&mut out, "listen_port", &listen_port);
    if fwmark != 0 {
        line(&mut out, "fwmark", &fwmark);
    }
    for peer in &peers {
        write_peer(&mut out, peer);
    }
    line(&mut out, "errno", &0);
    out.push('\n');
    out
}

/// The answer to `set=1`, or to what is neither: 0, or an error number.
pub(crate) fn errno(errno: i32) -> Zeroizing<String> {
    Zeroizing::new(format!("errno={}\n\n", -errno))
}

fn write_peer(out: &mut String, peer: &PeerStats) {
    line(out, "public_key", &*hexadecimal(&peer.public_key.0));
    let none = [0; 32];
    let psk = peer.preshared_key.as_ref().map_or(&none, |key| key.as_bytes());
    line(out, "preshared_key", &*hexadecimal(psk));
    line(out, "protocol_version", &1);
    if let Some(endpoint) = peer.endpoint {
        line(out, "endpoint", &endpoint);
    }
    let last = peer.last_handshake.map_or(0, |wall| wall.0);
    line(out, "last_handshake_time_sec", &(last / NANOS));
    line(out, "last_handshake_time_nsec", &(last % NANOS));
    line(out, "tx_bytes", &peer.tx_bytes);
    line(out, "rx_bytes", &peer.rx_bytes);
    line(out, "persistent_keepalive_interval", &peer.keepalive);
    for net in &peer.allowed_ips {
        line(out, "allowed_ip", net);
    }
}

fn line(out: &mut String, key: &str, value: &dyn std::fmt::Display) {
    writeln!(out, "{key}={value}").expect("a string takes everything");
}

fn hexadecimal(bytes: &[u8; 32]) -> Zeroizing<String> {
    Zeroizing::new(hex::encode(bytes))
}
