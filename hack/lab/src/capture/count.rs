//! What each packet of the underlay counts as.

use crate::plan::{LISTEN_PORT, Plan};
use etherparse::TransportSlice;
use ipnetwork::IpNetwork;
use meshd_model::attachment::MacAddr;
use meshd_scenario::{MARKER, UnderlayReport};
use std::net::IpAddr;

/// Offenders that are described.
const OFFENDERS_MAX: usize = 10;

/// Counts frames.
pub(super) struct Counter {
    pod_cidrs: Vec<IpNetwork>,
    /// Whoever sends in the clear on purpose.
    on_purpose: MacAddr,
    /// The machine outside of the cluster, with which everybody speaks in the clear.
    outside: Vec<IpAddr>,
    report: UnderlayReport,
}

impl Counter {
    pub(super) fn new(pod_cidrs: &[IpNetwork]) -> Self {
        Self {
            pod_cidrs: pod_cidrs.to_vec(),
            on_purpose: Plan::mac(Plan::neighbour().0),
            outside: [Plan::outside(), Plan::excepted(), Plan::metadata()].concat(),
            report: UnderlayReport::default(),
        }
    }

    pub(super) fn report(&self) -> &UnderlayReport {
        &self.report
    }

    pub(super) fn dropped(&mut self, packets: u64) {
        self.report.drops += packets;
    }

    pub(super) fn see(&mut self, frame: &[u8]) {
        self.report.packets += 1;
        let mut marked = contains(frame, MARKER);
        if frame.get(6..12) == Some(&self.on_purpose.0) {
            self.report.control_markers += u64::from(marked);
            return;
        }
        let packet = Packet::of(frame);
        self.report.wireguard += u64::from(packet.as_ref().is_some_and(|p| p.wireguard));
        let pod = packet.as_ref().is_some_and(|p| {
            let is_pod = |address| self.pod_cidrs.iter().any(|cidr| cidr.contains(address));
            is_pod(p.from) || is_pod(p.to)
        });
        if let Some(packet) = packet.as_ref().filter(|_| marked) {
            let to_outside = self.outside.contains(&packet.to);
            if to_outside {
                *self.report.outside.entry(packet.from).or_default() += 1;
            }
            marked = !to_outside && !self.outside.contains(&packet.from);
        }
        self.report.pod_addresses += u64::from(pod);
        self.report.markers += u64::from(marked);
        if (pod || marked) && self.report.offenders.len() < OFFENDERS_MAX {
            let what = packet.map_or_else(|| "not IP".to_owned(), |p| format!("{} to {}", p.from, p.to));
            let marker = if marked { ", with the marker" } else { "" };
            self.report
                .offenders
                .push(format!("{what}, {} bytes{marker}", frame.len()));
        }
    }
}

struct Packet {
    from: IpAddr,
    to: IpAddr,
    wireguard: bool,
}

impl Packet {
    fn of(frame: &[u8]) -> Option<Self> {
        // Frames of the ring may be cut short; headers are whole all the same.
        let sliced = etherparse::LaxSlicedPacket::from_ethernet(frame).ok()?;
        let (from, to) = match &sliced.net {
            Some(etherparse::LaxNetSlice::Ipv4(ip)) => (
                IpAddr::V4(ip.header().source_addr()),
                IpAddr::V4(ip.header().destination_addr()),
            ),
            Some(etherparse::LaxNetSlice::Ipv6(ip)) => (
                IpAddr::V6(ip.header().source_addr()),
                IpAddr::V6(ip.header().destination_addr()),
            ),
            _ => return None,
        };
        let wireguard = match &sliced.transport {
            Some(TransportSlice::Udp(udp)) => {
                (udp.source_port() == LISTEN_PORT || udp.destination_port() == LISTEN_PORT)
                    && matches!(udp.payload(), [1..=4, 0, 0, 0, ..])
            }
            _ => false,
        };
        Some(Self { from, to, wireguard })
    }
}

fn contains(frame: &[u8], marker: &[u8]) -> bool {
    let first = marker[0];
    let mut rest = frame;
    while let Some(at) = rest.iter().position(|b| *b == first) {
        if rest[at..].starts_with(marker) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn udp(mac: MacAddr, from: [u8; 4], to: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(mac.0, [2; 6])
            .ipv4(from, to, 64)
            .udp(port, port)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    const NODE: MacAddr = MacAddr([2, 0, 0, 0, 0, 11]);

    #[test]
    fn wireguard_counts_as_such_and_offends_nobody() {
        let mut counter = Counter::new(&Plan::cluster_pod_cidrs());
        counter.see(&udp(
            NODE,
            [10, 200, 0, 11],
            [10, 200, 0, 12],
            LISTEN_PORT,
            &[4, 0, 0, 0, 9],
        ));
        counter.see(&udp(
            NODE,
            [10, 200, 0, 11],
            [10, 200, 0, 12],
            53,
            &[4, 0, 0, 0, 9],
        ));
        let report = counter.report();
        assert_eq!(
            (report.packets, report.wireguard, report.offenders.len()),
            (2, 1, 0)
        );
    }

    #[test]
    fn a_pod_address_or_the_marker_in_clear_is_an_offence() {
        let mut counter = Counter::new(&Plan::cluster_pod_cidrs());
        counter.see(&udp(NODE, [10, 244, 1, 2], [10, 200, 0, 12], 53, b"x"));
        counter.see(&udp(NODE, [10, 200, 0, 11], [10, 244, 9, 9], 53, b"x"));
        counter.see(&udp(NODE, [10, 200, 0, 11], [10, 200, 0, 12], 53, MARKER));
        let report = counter.report();
        assert_eq!(
            (report.pod_addresses, report.markers, report.offenders.len()),
            (2, 1, 3)
        );
    }

    #[test]
    fn what_is_said_to_the_world_outside_is_no_secret_but_a_pods_address_there_is() {
        let mut counter = Counter::new(&Plan::cluster_pod_cidrs());
        let mut see = |from, to| counter.see(&udp(NODE, from, to, 53, MARKER));
        see([10, 200, 0, 11], [10, 200, 0, 251]);
        see([10, 200, 0, 251], [10, 200, 0, 11]);
        see([10, 200, 0, 11], [169, 254, 169, 254]);
        let report = counter.report();
        assert_eq!((report.markers, report.pod_addresses), (0, 0));
        let node = IpAddr::from([10, 200, 0, 11]);
        assert_eq!(report.outside.get(&node).copied(), Some(2));
        let mut see = |from, to| counter.see(&udp(NODE, from, to, 53, MARKER));
        see([10, 244, 1, 2], [10, 200, 0, 251]);
        see([10, 200, 0, 11], [10, 200, 0, 12]);
        let report = counter.report();
        assert_eq!((report.markers, report.pod_addresses), (1, 1));
    }

    #[test]
    fn the_neighbour_sends_on_purpose() {
        let mut counter = Counter::new(&Plan::cluster_pod_cidrs());
        let neighbour = Plan::mac(Plan::neighbour().0);
        counter.see(&udp(neighbour, [10, 200, 0, 250], [10, 244, 1, 2], 53, MARKER));
        let report = counter.report();
        assert_eq!(
            (report.control_markers, report.markers, report.pod_addresses),
            (1, 0, 0)
        );
    }

    #[test]
    fn a_marker_is_found_wherever_it_begins() {
        assert!(contains(b"mmeshd-payload-marker", MARKER));
        assert!(!contains(b"meshd-payload-marke", MARKER));
    }
}
