//! A NAT in front of a node, as a home router or a cloud's gateway is one: an own port for each pair of an inner and an
//! outer end (RFC 4787 calls it address- and port-dependent), which lasts as long as something passes from inside.

use crate::packet::{self, Content};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// The first port that is given out.
const FIRST_PORT: u16 = 20_000;

/// One NAT.
#[derive(Debug)]
pub(crate) struct Nat {
    public: Vec<IpAddr>,
    /// How long an entry lasts without a packet from inside, in nanoseconds.
    idle: u64,
    next_port: u16,
    /// By inner and outer end: the public port, and when a packet last left by it.
    entries: BTreeMap<(SocketAddr, SocketAddr), (u16, u64)>,
}

impl Nat {
    pub(crate) fn new(public: Vec<IpAddr>, idle: u64) -> Nat {
        Nat {
            public,
            idle,
            next_port: FIRST_PORT,
            entries: BTreeMap::new(),
        }
    }

    pub(crate) fn restart(&mut self) {
        self.entries.clear();
    }

    /// A packet from inside as it looks outside; none where it is no UDP.
    pub(crate) fn outward(&mut self, now: u64, bytes: &[u8]) -> Option<Vec<u8>> {
        let (inner, outer, payload) = ends(bytes)?;
        let public = self
            .public
            .iter()
            .copied()
            .find(|a| a.is_ipv4() == inner.is_ipv4())?;
        self.entries.retain(|_, (_, last)| now - *last <= self.idle);
        let next = self.next_port;
        let (port, last) = self.entries.entry((inner, outer)).or_insert((next, now));
        *last = now;
        if *port == next {
            self.next_port = next.checked_add(1).unwrap_or(FIRST_PORT);
        }
        packet::udp((public, *port).into(), outer, payload)
    }

    /// A packet from outside as it looks inside; none where nothing from inside asked for it.
    pub(crate) fn inward(&self, now: u64, bytes: &[u8]) -> Option<Vec<u8>> {
        let (outer, public, payload) = ends(bytes)?;
        let mut entries = self.entries.iter();
        let ((inner, _), _) = entries.find(|((_, to), (port, last))| {
            *to == outer && *port == public.port() && now - *last <= self.idle
        })?;
        packet::udp(outer, *inner, payload)
    }
}

/// Source, destination and payload of a UDP packet.
fn ends(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr, &[u8])> {
    let packet = packet::read(bytes)?;
    let Content::Udp {
        src_port,
        dst_port,
        payload,
    } = packet.content
    else {
        return None;
    };
    Some((
        (packet.src, src_port).into(),
        (packet.dst, dst_port).into(),
        payload,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn sent(from: &str, to: &str) -> Vec<u8> {
        packet::udp(at(from), at(to), b"x").unwrap()
    }

    #[test]
    fn only_answers_come_in_and_only_while_they_are_waited_for() {
        let mut nat = Nat::new(vec!["203.0.113.1".parse().unwrap()], 10);
        let out = nat.outward(0, &sent("10.0.0.1:51820", "10.0.0.2:51820")).unwrap();
        let (public, outer, _) = ends(&out).unwrap();
        assert_eq!((public, outer), (at("203.0.113.1:20000"), at("10.0.0.2:51820")));
        let answer = sent("10.0.0.2:51820", "203.0.113.1:20000");
        let inside = nat.inward(10, &answer).unwrap();
        assert_eq!(ends(&inside).unwrap().1, at("10.0.0.1:51820"));
        // Of another end, to another port, too late.
        assert_eq!(nat.inward(10, &sent("10.0.0.3:51820", "203.0.113.1:20000")), None);
        assert_eq!(nat.inward(10, &sent("10.0.0.2:51820", "203.0.113.1:20001")), None);
        assert_eq!(nat.inward(11, &answer), None);
        // The next entry has another port.
        let again = nat
            .outward(20, &sent("10.0.0.1:51820", "10.0.0.2:51820"))
            .unwrap();
        assert_eq!(ends(&again).unwrap().0, at("203.0.113.1:20001"));
    }
}
