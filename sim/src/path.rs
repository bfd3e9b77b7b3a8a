//! A packet's way through a node:
//!
//! ```text
//! pod ──guard──┐                                          ┌── pod
//! node's own ──┼── own address? ── rules, routes ── MTU ──┼── tunnel ── node's own, marked
//! tunnel ──────┤                        │                 └── masquerade, firewall ── underlay
//! underlay ── firewall, conntrack       └── unreachable: an ICMP error back
//! ```

use crate::kernel::fib::Out;
use crate::packet::{self, Content, Error};
use crate::sim::{Sim, WIREGUARD_PORT, What};
use crate::trace::Kind;
use crate::traffic::Place;
use meshd_wireguard_proto::{Path, Transmit};
use std::net::IpAddr;

/// How long a host takes to hand a packet on inside.
const HOST: u64 = 5_000;

/// Where a packet comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A pod, by the name of the host's end of its link.
    Pod(String),
    /// The tunnel.
    Tunnel,
    /// The underlay.
    Underlay,
}

impl Sim {
    /// A packet comes into a node's network stack from outside of it.
    pub(crate) fn input(&mut self, node: usize, mut bytes: Vec<u8>, from: &Source) {
        let Some((src, dst)) = packet::addresses(&bytes) else {
            return;
        };
        let kernel = &self.nodes[node].kernel;
        let passes = match from {
            Source::Pod(host_ifname) => kernel.may_send(host_ifname, src),
            Source::Underlay => kernel.underlay_allows(src, dst),
            Source::Tunnel => true,
        };
        if !passes {
            return;
        }
        // After the rules that fail closed, as conntrack is.
        if *from == Source::Underlay
            && let Some(home) = kernel.untranslated(self.now, &bytes)
        {
            bytes = home;
        }
        let Some((_, dst)) = packet::addresses(&bytes) else {
            return;
        };
        if kernel.is_own(dst) {
            return self.queue.push(
                self.now + HOST,
                What::Deliver {
                    node,
                    place: Place::Node,
                    bytes,
                },
            );
        }
        if !packet::hop(&mut bytes) {
            return;
        }
        if let Err(why) = self.pass_on(node, &bytes, 0, Some(from)) {
            self.send_error(node, &bytes, why);
        }
    }

    fn send_error(&mut self, node: usize, about: &[u8], why: Error) {
        let Some((src, _)) = packet::addresses(about) else {
            return;
        };
        let Some(own) = self.nodes[node].kernel.error_source(src.is_ipv4()) else {
            return;
        };
        if let Some(bytes) = packet::error(own, about, why) {
            // An error that cannot be sent is not told of.
            let _ = self.output(node, &bytes, 0);
        }
    }

    /// A packet of the node's own leaves the stack. `mark` is that of the socket.
    pub(crate) fn output(&mut self, node: usize, bytes: &[u8], mark: u32) -> Result<(), Error> {
        self.pass_on(node, bytes, mark, None)
    }

    /// The same of one that is forwarded, `from` somewhere else.
    fn pass_on(&mut self, node: usize, bytes: &[u8], mark: u32, from: Option<&Source>) -> Result<(), Error> {
        let (src, dst) = packet::addresses(bytes).ok_or(Error::Unreachable)?;
        let kernel = &self.nodes[node].kernel;
        if kernel.is_own(dst) {
            let what = What::Deliver {
                node,
                place: Place::Node,
                bytes: bytes.to_vec(),
            };
            self.queue.push(self.now + HOST, what);
            return Ok(());
        }
        let hop = kernel.route(Some(src), dst, mark).ok_or(Error::Unreachable)?;
        if bytes.len() > usize::from(hop.mtu) {
            return Err(Error::TooBig { mtu: hop.mtu });
        }
        match hop.out.clone() {
            Out::Unreachable => Err(Error::Unreachable),
            Out::Pod(host_ifname) => {
                self.pass_to_pod(node, &host_ifname, bytes);
                Ok(())
            }
            Out::Device => {
                self.pass_to_tunnel(node, bytes);
                Ok(())
            }
            Out::Underlay(on_link) => {
                if let Some(bytes) = self.nodes[node].kernel.leave(self.now, from, bytes) {
                    // Behind the router is the world outside, and nothing of the underlay.
                    let port = self.underlay.port_of(dst);
                    let outside = self.outside();
                    let port = port.filter(|port| on_link.is_some() != (*port == outside));
                    self.transmit(node, port, bytes);
                }
                Ok(())
            }
        }
    }

    fn pass_to_pod(&mut self, node: usize, host_ifname: &str, bytes: &[u8]) {
        let Some(link) = self.nodes[node].kernel.link(host_ifname) else {
            return;
        };
        let place = Place::Pod(link.netns.clone());
        self.queue.push(
            self.now + HOST,
            What::Deliver {
                node,
                place,
                bytes: bytes.to_vec(),
            },
        );
    }

    fn pass_to_tunnel(&mut self, node: usize, bytes: &[u8]) {
        let stamp = self.stamp();
        // What the device drops it drops in silence, as a userspace device does.
        let _ = self.nodes[node].kernel.tunnel.handle_packet(stamp, bytes);
        self.pump_tunnel(node);
    }

    /// Takes what the tunnel has to send and to deliver, and sets its timer.
    pub(crate) fn pump_tunnel(&mut self, node: usize) {
        while let Some(transmit) = self.nodes[node].kernel.tunnel.poll_transmit() {
            self.send_datagram(node, &transmit);
        }
        while let Some(bytes) = self.nodes[node].kernel.tunnel.poll_packet() {
            self.input(node, bytes, &Source::Tunnel);
        }
        let it = &mut self.nodes[node];
        let Some(due) = it.kernel.tunnel.poll_timeout() else {
            return;
        };
        let at = due.0.saturating_sub(crate::sim::BOOT).max(self.now);
        if it.tunnel_timer.is_none_or(|timer| at < timer) {
            it.tunnel_timer = Some(at);
            self.queue.push(at, What::TunnelTimer { node });
        }
    }

    pub(crate) fn on_tunnel_timer(&mut self, node: usize) {
        let stamp = self.stamp();
        let it = &mut self.nodes[node];
        it.tunnel_timer = None;
        if it
            .kernel
            .tunnel
            .poll_timeout()
            .is_some_and(|due| due <= stamp.boot)
        {
            it.kernel.tunnel.handle_timeout(stamp);
        }
        self.pump_tunnel(node);
    }

    fn send_datagram(&mut self, node: usize, transmit: &Transmit) {
        let kernel = &mut self.nodes[node].kernel;
        let (port, mark) = (kernel.listen_port(), kernel.fwmark());
        if let Some(gone) = transmit.src.filter(|src| !kernel.is_own(*src)) {
            kernel.tunnel.forget_source(gone, None);
        }
        let kept = transmit.src.filter(|src| kernel.is_own(*src));
        let routed = || kernel.route(None, transmit.dst.ip(), mark)?.src;
        let Some(src) = kept.or_else(routed) else { return };
        if let Some(bytes) = packet::udp((src, port).into(), transmit.dst, &transmit.bytes) {
            // WireGuard tries again by itself.
            let _ = self.output(node, &bytes, mark);
        }
    }

    /// Puts a packet on the underlay; to no port, where its next hop is the router.
    pub(crate) fn transmit(&mut self, from: usize, to: Option<usize>, bytes: Vec<u8>) {
        // As it leaves the node: a NAT in front of it would hide whose it is, or drop it.
        let offender = self.capture.see(&bytes, WIREGUARD_PORT, from == self.neighbour());
        if from < self.nodes.len() {
            self.check(from, offender);
        } else if let Some(offender) = offender {
            self.violate(None, offender);
        }
        if is_handshake_response(&bytes) {
            self.handshakes += 1;
        }
        let bytes = match self.nats.get_mut(&from) {
            None => bytes,
            Some(nat) => match nat.outward(self.now, &bytes) {
                None => return,
                Some(translated) => translated,
            },
        };
        self.trace.bytes(self.now, from, Kind::Underlay, &bytes);
        let Some(to) = to else { return };
        for delay in self.underlay.carry(from, to) {
            self.queue.push(
                self.now + delay,
                What::Arrive {
                    port: to,
                    bytes: bytes.clone(),
                },
            );
        }
    }

    pub(crate) fn arrive(&mut self, port: usize, bytes: Vec<u8>) {
        if port == self.outside() {
            return self.answer_outside(&bytes);
        }
        // The wire to the neighbour ends here; a link takes nothing longer than its MTU.
        let takes = |node: &crate::node::Node| bytes.len() <= usize::from(node.kernel.underlay_mtu);
        if !self.nodes.get(port).is_some_and(takes) {
            return;
        }
        let bytes = match self.nats.get(&port) {
            None => Some(bytes),
            Some(nat) => nat.inward(self.now, &bytes),
        };
        if let Some(bytes) = bytes {
            self.input(port, bytes, &Source::Underlay);
        }
    }

    /// A datagram for the tunnel.
    pub(crate) fn pass_to_device(&mut self, node: usize, from: Path, payload: &[u8]) {
        let stamp = self.stamp();
        // Why it was dropped is for counters, which the simulated device does not show.
        let _ = self.nodes[node]
            .kernel
            .tunnel
            .handle_datagram(stamp, from, &mut payload.to_vec());
        self.pump_tunnel(node);
    }

    /// The address that a node's own packets to this destination come from.
    pub(crate) fn source_for(&self, node: usize, dst: IpAddr) -> Option<IpAddr> {
        let kernel = &self.nodes[node].kernel;
        if kernel.is_own(dst) {
            return Some(dst);
        }
        let hop = kernel.route(None, dst, 0)?;
        hop.src.or_else(|| kernel.error_source(dst.is_ipv4()))
    }
}

/// WireGuard message type 2: each is one handshake that its sender completed.
fn is_handshake_response(bytes: &[u8]) -> bool {
    let packet = packet::read(bytes);
    matches!(
        packet.map(|p| p.content),
        Some(Content::Udp {
            src_port: WIREGUARD_PORT,
            payload: [2, 0, 0, 0, ..],
            ..
        })
    )
}
