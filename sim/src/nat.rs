//! Translation of source addresses: that of a NAT in front of a node, as a home router or a cloud's gateway is one, and a
//! node's own, for what its pods send outside of the cluster. A port for each pair of an inner and an outer end (RFC 4787
//! calls it address- and port-dependent), which lasts as long as something passes from inside.

use crate::packet::{self, Content, Packet};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

/// The ports that are given out: none from which hosts send by themselves.
const PORTS: RangeInclusive<u16> = 20_000..=32_767;

/// One NAT.
#[derive(Debug)]
pub(crate) struct Nat {
    public: Vec<IpAddr>,
    /// How long an entry lasts without a packet from inside, in nanoseconds.
    idle: u64,
    next_port: u16,
    entries: BTreeMap<Flow, Entry>,
}

/// What is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flow {
    protocol: Protocol,
    inner: SocketAddr,
    outer: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Protocol {
    Udp,
    /// The identifier is the port of the end that asks; the other end has none.
    Echo,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The public one.
    port: u16,
    /// When a packet last left by it.
    last: u64,
}

impl Nat {
    pub(crate) fn new(public: Vec<IpAddr>, idle: u64) -> Nat {
        Nat {
            public,
            idle,
            next_port: *PORTS.start(),
            entries: BTreeMap::new(),
        }
    }

    pub(crate) fn restart(&mut self) {
        self.entries.clear();
    }

    /// Its public addresses from now on; what passed by others is over.
    pub(crate) fn set_public(&mut self, public: &[IpAddr]) {
        if self.public != public {
            self.public = public.to_vec();
            self.restart();
        }
    }

    /// A packet from inside as it looks outside; none where it neither asks for an echo nor is UDP.
    pub(crate) fn outward(&mut self, now: u64, bytes: &[u8]) -> Option<Vec<u8>> {
        let packet = packet::read(bytes)?;
        if let Content::EchoReply { .. } = packet.content {
            return None;
        }
        let (protocol, inner, outer) = ends(&packet)?;
        let flow = Flow {
            protocol,
            inner,
            outer,
        };
        let mut public = self.public.iter().copied();
        let public = public.find(|a| a.is_ipv4() == inner.is_ipv4())?;
        self.entries.retain(|_, entry| now - entry.last <= self.idle);
        let port = match self.entries.get(&flow) {
            Some(entry) => entry.port,
            None => self.free_port(&flow)?,
        };
        self.entries.insert(flow, Entry { port, last: now });
        packet::readdress(bytes, (public, port).into(), outer)
    }

    /// One that no other flow to the same end has.
    fn free_port(&mut self, flow: &Flow) -> Option<u16> {
        let beside = self
            .entries
            .iter()
            .filter(|(f, _)| (f.protocol, f.outer) == (flow.protocol, flow.outer));
        let taken: BTreeSet<u16> = beside.map(|(_, entry)| entry.port).collect();
        for _ in PORTS {
            let port = self.next_port;
            self.next_port = if port == *PORTS.end() {
                *PORTS.start()
            } else {
                port + 1
            };
            if !taken.contains(&port) {
                return Some(port);
            }
        }
        None
    }

    /// A packet from outside as it looks inside; none where nothing from inside asked for it. An ICMP error is about what
    /// was sent from inside.
    pub(crate) fn inward(&self, now: u64, bytes: &[u8]) -> Option<Vec<u8>> {
        if self.entries.is_empty() {
            return None;
        }
        let packet = packet::read(bytes)?;
        if let Content::Error { why, quoted } = packet.content {
            let (protocol, public, outer) = ends(&packet::read(quoted)?)?;
            let inner = self.inner(now, protocol, public, outer)?;
            return packet::error(packet.src, &packet::readdress(quoted, inner, outer)?, why);
        }
        let (protocol, outer, public) = ends(&packet)?;
        packet::readdress(bytes, outer, self.inner(now, protocol, public, outer)?)
    }

    /// Whose flow with this outer end passes by this public one.
    fn inner(
        &self,
        now: u64,
        protocol: Protocol,
        public: SocketAddr,
        outer: SocketAddr,
    ) -> Option<SocketAddr> {
        let mut entries = self.entries.iter();
        let (flow, _) = entries.find(|(flow, entry)| {
            (flow.protocol, flow.outer, entry.port) == (protocol, outer, public.port())
                && now - entry.last <= self.idle
        })?;
        self.public.contains(&public.ip()).then_some(flow.inner)
    }
}

/// Source and destination of a packet, with ports.
fn ends(packet: &Packet<'_>) -> Option<(Protocol, SocketAddr, SocketAddr)> {
    let (protocol, from, to) = match packet.content {
        Content::Udp {
            src_port, dst_port, ..
        } => (Protocol::Udp, src_port, dst_port),
        Content::EchoRequest { id, .. } => (Protocol::Echo, id, 0),
        Content::EchoReply { id, .. } => (Protocol::Echo, 0, id),
        Content::Error { .. } | Content::Other => return None,
    };
    Some((protocol, (packet.src, from).into(), (packet.dst, to).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn sent(from: &str, to: &str) -> Vec<u8> {
        packet::udp(at(from), at(to), b"x").unwrap()
    }

    fn ends_of(bytes: &[u8]) -> (SocketAddr, SocketAddr) {
        let (_, from, to) = ends(&packet::read(bytes).unwrap()).unwrap();
        (from, to)
    }

    #[test]
    fn only_answers_come_in_and_only_while_they_are_waited_for() {
        let mut nat = Nat::new(vec![ip("203.0.113.1")], 10);
        let out = nat.outward(0, &sent("10.0.0.1:51820", "10.0.0.2:51820")).unwrap();
        assert_eq!(ends_of(&out), (at("203.0.113.1:20000"), at("10.0.0.2:51820")));
        let answer = sent("10.0.0.2:51820", "203.0.113.1:20000");
        let inside = nat.inward(10, &answer).unwrap();
        assert_eq!(ends_of(&inside).1, at("10.0.0.1:51820"));
        // Of another end, to another port, to another address, too late.
        assert_eq!(nat.inward(10, &sent("10.0.0.3:51820", "203.0.113.1:20000")), None);
        assert_eq!(nat.inward(10, &sent("10.0.0.2:51820", "203.0.113.1:20001")), None);
        assert_eq!(nat.inward(10, &sent("10.0.0.2:51820", "203.0.113.9:20000")), None);
        assert_eq!(nat.inward(11, &answer), None);
        // The next entry has another port.
        let again = nat
            .outward(20, &sent("10.0.0.1:51820", "10.0.0.2:51820"))
            .unwrap();
        assert_eq!(ends_of(&again).0, at("203.0.113.1:20001"));
        nat.set_public(&[ip("203.0.113.2")]);
        assert_eq!(nat.inward(20, &sent("10.0.0.2:51820", "203.0.113.1:20001")), None);
    }

    #[test]
    fn echoes_pass_by_their_identifier_and_come_only_where_they_were_asked_for() {
        let mut nat = Nat::new(vec![ip("203.0.113.1")], 10);
        let echo =
            |from: &str, to: &str, request, id| packet::echo(ip(from), ip(to), request, id, 5, b"x").unwrap();
        let out = nat.outward(0, &echo("10.0.0.1", "10.0.0.9", true, 7)).unwrap();
        assert_eq!(out, echo("203.0.113.1", "10.0.0.9", true, 20_000));
        let inside = nat.inward(0, &echo("10.0.0.9", "203.0.113.1", false, 20_000));
        assert_eq!(inside, Some(echo("10.0.0.9", "10.0.0.1", false, 7)));
        assert_eq!(
            nat.inward(0, &echo("10.0.0.9", "203.0.113.1", true, 20_000)),
            None
        );
        assert_eq!(nat.outward(0, &echo("10.0.0.1", "10.0.0.9", false, 7)), None);
    }

    #[test]
    fn an_error_comes_to_whoever_sent_what_it_is_about() {
        let mut nat = Nat::new(vec![ip("203.0.113.1")], 10);
        let first = sent("10.0.0.1:1000", "10.0.0.9:9999");
        let out = nat.outward(0, &first).unwrap();
        let error = packet::error(ip("10.0.0.9"), &out, packet::Error::Port).unwrap();
        let wanted = packet::error(ip("10.0.0.9"), &first, packet::Error::Port);
        assert_eq!(nat.inward(0, &error), wanted);
        let forged = packet::error(
            ip("10.0.0.9"),
            &sent("203.0.113.1:20001", "10.0.0.9:9999"),
            packet::Error::Port,
        );
        assert_eq!(nat.inward(0, &forged.unwrap()), None);
    }

    #[test]
    fn no_two_flows_to_one_end_share_a_port() {
        let mut nat = Nat::new(vec![ip("203.0.113.1")], 10);
        nat.next_port = *PORTS.end();
        let mut port_of = |from: &str, to: &str| {
            let out = nat.outward(0, &sent(from, to)).unwrap();
            nat.next_port = *PORTS.end();
            ends_of(&out).0.port()
        };
        assert_eq!(port_of("10.0.0.1:1", "10.0.0.9:7"), 32_767);
        assert_eq!(port_of("10.0.0.1:2", "10.0.0.9:7"), 20_000);
        assert_eq!(port_of("10.0.0.2:1", "10.0.0.9:7"), 20_001);
        assert_eq!(port_of("10.0.0.2:1", "10.0.0.8:7"), 32_767);
    }
}
