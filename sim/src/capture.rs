//! What is seen on the underlay: every packet, as it is put on the wire.

use crate::config;
use crate::packet::{self, Content};
use ipnetwork::IpNetwork;
use meshd_model::net::contains;
use meshd_scenario::{MARKER, UnderlayReport};
use std::net::IpAddr;

/// Offenders that are remembered.
const OFFENDERS: usize = 10;

/// A capture of the underlay, running from the start. It sees every packet, so it drops none.
#[derive(Debug)]
pub(crate) struct Capture {
    pub(crate) seen: UnderlayReport,
    pod_cidrs: [IpNetwork; 2],
    /// The machine outside of the cluster, with which everybody speaks in the clear.
    outside: Vec<IpAddr>,
}

impl Capture {
    pub(crate) fn new(outside: Vec<IpAddr>) -> Capture {
        Capture {
            seen: UnderlayReport::default(),
            pod_cidrs: config::pod_cidrs(),
            outside,
        }
    }

    /// Looks at a packet. `on_purpose`: the neighbour sent it, who belongs to no node. Says what ought not to be.
    pub(crate) fn see(&mut self, bytes: &[u8], wireguard_port: u16, on_purpose: bool) -> Option<String> {
        self.seen.packets += 1;
        let ends = packet::addresses(bytes);
        let pod_address = ends.is_some_and(|(src, dst)| {
            self.pod_cidrs
                .iter()
                .any(|net| contains(*net, src.into()) || contains(*net, dst.into()))
        });
        let mut marker = packet::holds(bytes, MARKER);
        if let Some((src, dst)) = ends.filter(|_| marker) {
            let to_outside = self.outside.contains(&dst);
            if to_outside {
                *self.seen.outside.entry(src).or_default() += 1;
            }
            marker = !to_outside && !self.outside.contains(&src);
        }
        if is_wireguard(bytes, wireguard_port) {
            self.seen.wireguard += 1;
        }
        if on_purpose {
            self.seen.control_markers += u64::from(marker && !pod_address);
            return None;
        }
        self.seen.pod_addresses += u64::from(pod_address);
        self.seen.markers += u64::from(marker);
        let what = match (pod_address, marker) {
            (false, false) => return None,
            (true, true) => "a pod's address and its payload in the clear",
            (true, false) => "a pod's address in the clear",
            (false, true) => "a pod's payload in the clear",
        };
        let offender = format!("{what}: {}", packet::describe(bytes));
        if self.seen.offenders.len() < OFFENDERS {
            self.seen.offenders.push(offender.clone());
        }
        Some(offender)
    }
}

/// UDP to or from the port with a WireGuard message type and its reserved zeros.
fn is_wireguard(bytes: &[u8], port: u16) -> bool {
    let Some(packet) = packet::read(bytes) else {
        return false;
    };
    let Content::Udp {
        src_port,
        dst_port,
        payload,
    } = packet.content
    else {
        return false;
    };
    (src_port == port || dst_port == port) && matches!(payload, [1..=4, 0, 0, 0, ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(src: &str, dst: &str, payload: &[u8]) -> Vec<u8> {
        let at = |ip: &str| (ip.parse::<std::net::IpAddr>().unwrap(), 51820).into();
        packet::udp(at(src), at(dst), payload).unwrap()
    }

    #[test]
    fn plaintext_is_seen_and_ciphertext_is_not() {
        let mut capture = Capture::new(Vec::new());
        assert_eq!(
            capture.see(
                &udp("192.168.0.16", "192.168.0.17", &[1, 0, 0, 0, 9]),
                51820,
                false
            ),
            None
        );
        assert!(
            capture
                .see(&udp("192.168.0.16", "10.128.0.2", b"x"), 51820, false)
                .is_some()
        );
        assert!(
            capture
                .see(&udp("fd00:10:244::2", "fd00:192:168::10", b"x"), 51820, false)
                .is_some()
        );
        assert!(
            capture
                .see(&udp("192.168.0.16", "192.168.0.17", MARKER), 51820, false)
                .is_some()
        );
        assert_eq!(
            capture.see(&udp("192.168.0.99", "192.168.0.17", MARKER), 51820, true),
            None
        );
        let seen = capture.seen;
        assert_eq!((seen.packets, seen.wireguard, seen.control_markers), (5, 1, 1));
        assert_eq!(
            (seen.pod_addresses, seen.markers, seen.offenders.len()),
            (2, 1, 3)
        );
    }

    #[test]
    fn what_is_said_to_the_world_outside_is_no_secret_but_a_pods_address_there_is() {
        let mut capture = Capture::new(vec!["203.0.113.1".parse().unwrap()]);
        let mut see = |src, dst| capture.see(&udp(src, dst, MARKER), 51820, false).is_some();
        assert!(!see("192.168.0.16", "203.0.113.1"));
        assert!(!see("203.0.113.1", "192.168.0.16"));
        assert!(see("10.128.0.2", "203.0.113.1"));
        assert!(see("203.0.113.1", "10.128.0.2"));
        assert!(see("192.168.0.16", "203.0.113.2"));
        let seen = capture.seen;
        assert_eq!((seen.markers, seen.pod_addresses), (1, 2));
        let from = |address: &str| seen.outside.get(&address.parse().unwrap()).copied();
        assert_eq!((from("192.168.0.16"), from("10.128.0.2")), (Some(1), Some(1)));
    }
}
