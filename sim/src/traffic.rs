//! Pods and nodes as hosts: they answer echo requests over ICMP and UDP, and send probes and streams.

use crate::packet::{self, Content, Packet};
use crate::path::Source;
use crate::sim::{Sim, What};
use crate::trace::Kind;
use meshd_scenario::{MARKER, Outcome, ProbeKind, StreamReport};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// UDP port on which every host echoes (RFC 862).
const ECHO: u16 = 7;
/// UDP port on which every host discards (RFC 863).
pub(crate) const DISCARD: u16 = 9;
/// UDP port from which probes are sent.
const PROBER: u16 = 40_000;
/// Marker and token: the shortest payload.
const HEAD: usize = MARKER.len() + 8;

/// A host's network stack on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The node's own.
    Node,
    /// A pod's, by its network namespace.
    Pod(String),
}

/// What hosts have sent and wait for.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    tokens: u64,
    tries: BTreeMap<u64, Try>,
    streams: Vec<Stream>,
    /// Tokens of datagrams that ought to reach no pod, and whether they did.
    unwelcome: BTreeMap<u64, bool>,
}

#[derive(Debug)]
struct Try {
    node: usize,
    place: Place,
    to: IpAddr,
    payload: Vec<u8>,
    sent: u64,
    outcome: Option<Outcome>,
}

#[derive(Debug)]
struct Stream {
    node: usize,
    place: Place,
    to: IpAddr,
    interval: u64,
    running: bool,
    sent: u64,
    received: BTreeSet<u64>,
}

fn payload(token: u64, length: usize) -> Vec<u8> {
    let mut bytes = MARKER.to_vec();
    bytes.extend(token.to_le_bytes());
    // What fills it depends on where, so that a shifted payload is not mistaken for the same.
    bytes.extend((bytes.len()..length).map(|at| u8::try_from(at * 31 % 251).unwrap_or_default()));
    bytes
}

/// The token in a payload, or in a packet that an ICMP error quotes.
fn token(bytes: &[u8]) -> Option<u64> {
    let at = (0..bytes.len().saturating_sub(HEAD - 1)).find(|at| bytes[*at..].starts_with(MARKER))?;
    let token = bytes.get(at + MARKER.len()..at + HEAD)?;
    Some(u64::from_le_bytes(token.try_into().ok()?))
}

/// A stream's tokens: its number from 1 above, the packet's below.
fn stream_token(stream: usize, packet: u64) -> u64 {
    ((stream as u64 + 1) << 40) | packet
}

/// What a host says to a packet that is for it.
fn answer(packet: &Packet<'_>, bytes: &[u8]) -> Option<Vec<u8>> {
    let (src, dst) = (packet.src, packet.dst);
    match packet.content {
        Content::EchoRequest { id, seq, payload } => packet::echo(dst, src, false, id, seq, payload),
        Content::Udp {
            src_port,
            dst_port: ECHO,
            payload,
        } => packet::udp((dst, ECHO).into(), (src, src_port).into(), payload),
        // An answer, or for nobody.
        Content::Udp {
            dst_port: DISCARD, ..
        }
        | Content::Udp {
            src_port: ECHO,
            dst_port: PROBER,
            ..
        } => None,
        Content::Udp { .. } => packet::error(dst, bytes, packet::Error::Port),
        Content::EchoReply { .. } | Content::Error { .. } | Content::Other => None,
    }
}

impl Sim {
    /// Sends one probe; what comes of it is asked for with [`Sim::outcome`].
    pub(crate) fn send_probe(
        &mut self,
        node: usize,
        place: Place,
        to: IpAddr,
        kind: ProbeKind,
        length: usize,
    ) -> u64 {
        self.traffic.tokens += 1;
        let token = self.traffic.tokens;
        let payload = payload(token, length);
        let outcome = self
            .send_payload(node, &place, to, kind, token, &payload)
            .err()
            .map(Outcome::Refused);
        let sent = self.now;
        self.traffic.tries.insert(
            token,
            Try {
                node,
                place,
                to,
                payload,
                sent,
                outcome,
            },
        );
        token
    }

    /// What has come of a probe so far.
    pub(crate) fn outcome(&self, token: u64) -> Option<&Outcome> {
        self.traffic.tries.get(&token)?.outcome.as_ref()
    }

    /// Stops waiting for a probe.
    pub(crate) fn forget_probe(&mut self, token: u64) -> Outcome {
        self.traffic
            .tries
            .remove(&token)
            .and_then(|t| t.outcome)
            .unwrap_or(Outcome::Silent)
    }

    fn send_payload(
        &mut self,
        node: usize,
        place: &Place,
        to: IpAddr,
        kind: ProbeKind,
        token: u64,
        payload: &[u8],
    ) -> Result<(), String> {
        let src = self.source(node, place, to).ok_or("no route to host")?;
        let id = u16::try_from(token >> 40).unwrap_or(u16::MAX);
        let seq = u16::try_from(token & 0xffff).unwrap_or_default();
        let bytes = match kind {
            ProbeKind::Icmp => packet::echo(src, to, true, id, seq, payload),
            ProbeKind::Udp => packet::udp((src, PROBER).into(), (to, ECHO).into(), payload),
            ProbeKind::Tcp => return Err("the simulator's hosts have no TCP".to_owned()),
        };
        self.send_from(node, place, bytes.ok_or("the packet cannot be built")?)
    }

    /// The source that a host's packets to this destination carry.
    fn source(&self, node: usize, place: &Place, to: IpAddr) -> Option<IpAddr> {
        match place {
            Place::Node => self.source_for(node, to),
            Place::Pod(netns) => {
                let link = self.nodes[node].kernel.link_of(netns)?;
                link.addresses
                    .iter()
                    .copied()
                    .find(|a| a.is_ipv4() == to.is_ipv4())
            }
        }
    }

    /// A host sends a packet; the error is that of its own socket.
    pub(crate) fn send_from(&mut self, node: usize, place: &Place, bytes: Vec<u8>) -> Result<(), String> {
        let Place::Pod(netns) = place else {
            return self
                .output(node, &bytes, 0)
                .map_err(|why| Sim::errno(why).to_owned());
        };
        let link = self.nodes[node]
            .kernel
            .link_of(netns)
            .ok_or("network is unreachable")?;
        if bytes.len() > usize::from(link.mtu) {
            return Err("message too long".to_owned());
        }
        let from = Source::Pod(link.host_ifname.clone());
        self.input(node, bytes, &from);
        Ok(())
    }

    /// A packet has reached a host.
    pub(crate) fn deliver(&mut self, node: usize, place: &Place, bytes: &[u8]) {
        let Some(packet) = packet::read(bytes) else { return };
        let is_mine = match place {
            Place::Node => self.nodes[node].kernel.is_own(packet.dst),
            Place::Pod(netns) => self.nodes[node]
                .kernel
                .link_of(netns)
                .is_some_and(|link| link.addresses.contains(&packet.dst)),
        };
        if !is_mine {
            return;
        }
        let Packet {
            src,
            dst,
            ref content,
        } = packet;
        if let (
            Place::Node,
            Content::Udp {
                src_port,
                dst_port,
                payload,
            },
        ) = (place, content)
            && *dst_port == self.nodes[node].kernel.listen_port()
        {
            let from = meshd_wireguard_proto::Path {
                remote: (src, *src_port).into(),
                local: Some(dst),
            };
            return self.pass_to_device(node, from, payload);
        }
        self.trace.bytes(self.now, node, Kind::Delivered, bytes);
        match *content {
            Content::EchoReply { payload, .. }
            | Content::Udp {
                src_port: ECHO,
                dst_port: PROBER,
                payload,
            } => self.answered(node, place, src, payload),
            Content::Error { why, quoted } => self.refused(node, place, Sim::errno(why), quoted),
            Content::Udp {
                dst_port: ECHO,
                payload,
                ..
            } => self.note_unwelcome(place, payload),
            _ => {}
        }
        if let Some(answer) = answer(&packet, bytes) {
            // A host whose answer cannot be sent says nothing.
            let _ = self.send_from(node, place, answer);
        }
    }

    /// A packet has reached the machine outside of the cluster.
    pub(crate) fn answer_outside(&mut self, bytes: &[u8]) {
        let Some(packet) = packet::read(bytes) else { return };
        self.trace.bytes(self.now, self.outside(), Kind::Delivered, bytes);
        if let Some(answer) = answer(&packet, bytes) {
            self.transmit(self.outside(), self.underlay.port_of(packet.src), answer);
        }
    }

    fn answered(&mut self, node: usize, place: &Place, from: IpAddr, payload: &[u8]) {
        let Some(token) = token(payload) else { return };
        if let Some(stream) = (token >> 40).checked_sub(1) {
            let stream = usize::try_from(stream)
                .ok()
                .and_then(|s| self.traffic.streams.get_mut(s));
            if let Some(stream) = stream.filter(|s| s.node == node && s.place == *place && s.to == from) {
                stream.received.insert(token);
            }
            return;
        }
        let now = self.now;
        let Some(it) = self.traffic.tries.get_mut(&token) else {
            return;
        };
        if it.node != node || it.place != *place {
            let what = format!("the answer to a probe of {:?} reached {place:?}", it.place);
            return self.violate(Some(node), what);
        }
        let outcome = if it.to != from {
            Outcome::Garbled(format!("the answer came from {from}"))
        } else if it.payload != payload {
            Outcome::Garbled("the answer is not what was sent".to_owned())
        } else {
            Outcome::Answered(Duration::from_nanos(now - it.sent))
        };
        it.outcome.get_or_insert(outcome);
    }

    fn refused(&mut self, node: usize, place: &Place, why: &str, quoted: &[u8]) {
        let Some(it) = token(quoted).and_then(|token| self.traffic.tries.get_mut(&token)) else {
            return;
        };
        if it.node == node && it.place == *place {
            it.outcome.get_or_insert(Outcome::Refused(why.to_owned()));
        }
    }

    /// Starts a stream of numbered datagrams; its number.
    pub(crate) fn start_stream(
        &mut self,
        node: usize,
        place: Place,
        to: IpAddr,
        interval: Duration,
    ) -> usize {
        let stream = self.traffic.streams.len();
        let interval = Sim::nanos(interval).max(1_000);
        let received = BTreeSet::new();
        self.traffic.streams.push(Stream {
            node,
            place,
            to,
            interval,
            running: true,
            sent: 0,
            received,
        });
        self.queue.push(self.now, What::Stream { stream });
        stream
    }

    pub(crate) fn on_stream(&mut self, stream: usize) {
        let it = &mut self.traffic.streams[stream];
        if !it.running {
            return;
        }
        it.sent += 1;
        let token = stream_token(stream, it.sent);
        let (node, place, to, interval) = (it.node, it.place.clone(), it.to, it.interval);
        // A packet that its own host refuses is a packet lost: it counts as sent.
        let _ = self.send_payload(node, &place, to, ProbeKind::Udp, token, &payload(token, 64));
        self.queue.push(self.now + interval, What::Stream { stream });
    }

    /// No more is sent; what was received so far is still counted until it is asked for.
    pub(crate) fn stop_stream(&mut self, stream: usize) {
        if let Some(it) = self.traffic.streams.get_mut(stream) {
            it.running = false;
        }
    }

    pub(crate) fn stream(&self, stream: usize) -> Option<StreamReport> {
        let it = self.traffic.streams.get(stream)?;
        Some(StreamReport {
            sent: it.sent,
            received: it.received.len() as u64,
        })
    }

    /// The neighbour on the underlay, who belongs to no node, sends UDP in plaintext to a port of an address, through
    /// a node; the token of it.
    pub(crate) fn neighbour_sends(&mut self, through: usize, to: IpAddr, port: u16) -> Option<u64> {
        let neighbour = self.neighbour();
        let own = self.config.underlay_addresses(neighbour, 0);
        let src = own.into_iter().find(|a| a.is_ipv4() == to.is_ipv4())?;
        self.traffic.tokens += 1;
        let token = self.traffic.tokens;
        self.traffic.unwelcome.insert(token, false);
        let bytes = packet::udp((src, PROBER).into(), (to, port).into(), &payload(token, 64))?;
        self.transmit(neighbour, Some(through), bytes);
        Some(token)
    }

    fn note_unwelcome(&mut self, place: &Place, payload: &[u8]) {
        let token = token(payload).and_then(|token| self.traffic.unwelcome.get_mut(&token));
        if let (Place::Pod(_), Some(arrived)) = (place, token) {
            *arrived = true;
        }
    }

    /// Whether the neighbour's datagram reached a pod.
    pub(crate) fn arrived(&self, token: u64) -> bool {
        self.traffic.unwelcome.get(&token).copied().unwrap_or_default()
    }
}
