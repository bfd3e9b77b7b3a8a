//! IP packets as bytes: made and read with real headers, so that what the firewall, the tunnel and the capture see is
//! what they would see on a wire.

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::icmpv6::DestUnreachableCode;
use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Icmpv6Type, IpSlice, PacketBuilder, PacketBuilderStep, SlicedPacket,
    TransportSlice, ip_number,
};
use std::net::{IpAddr, SocketAddr};

/// Hop limit of new packets.
const TTL: u8 = 64;
/// Longest ICMP error, in bytes: what an IPv4 host accepts (RFC 1812, 4.3.2.3); RFC 4443 allows 1280.
const ERROR_MAX: usize = 548;

/// A packet, taken apart as far as hosts need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet<'a> {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) content: Content<'a>,
}

/// What it carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content<'a> {
    EchoRequest {
        id: u16,
        seq: u16,
        payload: &'a [u8],
    },
    EchoReply {
        id: u16,
        seq: u16,
        payload: &'a [u8],
    },
    Udp {
        src_port: u16,
        dst_port: u16,
        payload: &'a [u8],
    },
    /// An ICMP error, and the beginning of the packet that it is about.
    Error {
        why: Error,
        quoted: &'a [u8],
    },
    Other,
}

/// Why a packet goes no further, as told to its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// There is no route to its destination.
    Unreachable,
    /// Nothing listens on its destination port.
    Port,
    /// It is longer than the link takes.
    TooBig { mtu: u16 },
}

/// Source and destination of an IP packet; none of what is none.
pub(crate) fn addresses(bytes: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let ip = IpSlice::from_slice(bytes).ok()?;
    Some((ip.source_addr(), ip.destination_addr()))
}

/// Takes a packet apart; none of what is no IP packet.
pub(crate) fn read(bytes: &[u8]) -> Option<Packet<'_>> {
    let (src, dst) = addresses(bytes)?;
    let content = match SlicedPacket::from_ip(bytes).ok()?.transport {
        Some(TransportSlice::Udp(udp)) => Content::Udp {
            src_port: udp.source_port(),
            dst_port: udp.destination_port(),
            payload: udp.payload(),
        },
        Some(TransportSlice::Icmpv4(icmp)) => icmp_v4(icmp.icmp_type(), icmp.payload()),
        Some(TransportSlice::Icmpv6(icmp)) => icmp_v6(icmp.icmp_type(), icmp.payload()),
        _ => Content::Other,
    };
    Some(Packet { src, dst, content })
}

fn icmp_v4(kind: Icmpv4Type, payload: &[u8]) -> Content<'_> {
    match kind {
        Icmpv4Type::EchoRequest(IcmpEchoHeader { id, seq }) => Content::EchoRequest { id, seq, payload },
        Icmpv4Type::EchoReply(IcmpEchoHeader { id, seq }) => Content::EchoReply { id, seq, payload },
        Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu: mtu,
        }) => Content::Error {
            why: Error::TooBig { mtu },
            quoted: payload,
        },
        Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port) => Content::Error {
            why: Error::Port,
            quoted: payload,
        },
        Icmpv4Type::DestinationUnreachable(_) => Content::Error {
            why: Error::Unreachable,
            quoted: payload,
        },
        _ => Content::Other,
    }
}

fn icmp_v6(kind: Icmpv6Type, payload: &[u8]) -> Content<'_> {
    match kind {
        Icmpv6Type::EchoRequest(IcmpEchoHeader { id, seq }) => Content::EchoRequest { id, seq, payload },
        Icmpv6Type::EchoReply(IcmpEchoHeader { id, seq }) => Content::EchoReply { id, seq, payload },
        Icmpv6Type::PacketTooBig { mtu } => Content::Error {
            why: Error::TooBig {
                mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            },
            quoted: payload,
        },
        Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port) => Content::Error {
            why: Error::Port,
            quoted: payload,
        },
        Icmpv6Type::DestinationUnreachable(_) => Content::Error {
            why: Error::Unreachable,
            quoted: payload,
        },
        _ => Content::Other,
    }
}

/// A builder for this pair; none across families.
fn begin(src: IpAddr, dst: IpAddr) -> Option<PacketBuilderStep<etherparse::IpHeaders>> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => Some(PacketBuilder::ip(etherparse::IpHeaders::Ipv4(
            etherparse::Ipv4Header::new(0, TTL, ip_number::UDP, src.octets(), dst.octets()).ok()?,
            Default::default(),
        ))),
        (IpAddr::V6(src), IpAddr::V6(dst)) => Some(PacketBuilder::ip(etherparse::IpHeaders::Ipv6(
            etherparse::Ipv6Header {
                hop_limit: TTL,
                source: src.octets(),
                destination: dst.octets(),
                ..Default::default()
            },
            Default::default(),
        ))),
        _ => None,
    }
}

/// A UDP datagram; none across families or of more than a packet holds.
pub(crate) fn udp(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let builder = begin(src.ip(), dst.ip())?.udp(src.port(), dst.port());
    let mut bytes = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut bytes, payload).ok()?;
    Some(bytes)
}

/// An ICMP echo request or its reply.
pub(crate) fn echo(
    src: IpAddr,
    dst: IpAddr,
    request: bool,
    id: u16,
    seq: u16,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let builder = begin(src, dst)?;
    let builder = match (dst.is_ipv4(), request) {
        (true, true) => return finish(builder.icmpv4_echo_request(id, seq), payload),
        (true, false) => return finish(builder.icmpv4_echo_reply(id, seq), payload),
        (false, true) => builder.icmpv6_echo_request(id, seq),
        (false, false) => builder.icmpv6_echo_reply(id, seq),
    };
    let mut bytes = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut bytes, payload).ok()?;
    Some(bytes)
}

fn finish(builder: PacketBuilderStep<etherparse::Icmpv4Header>, payload: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut bytes, payload).ok()?;
    Some(bytes)
}

/// The ICMP error from `src` about a packet, to its sender. None about an ICMP error (RFC 1122, 3.2.2).
pub(crate) fn error(src: IpAddr, about: &[u8], why: Error) -> Option<Vec<u8>> {
    let packet = read(about)?;
    if matches!(packet.content, Content::Error { .. }) {
        return None;
    }
    let quoted = &about[..about.len().min(ERROR_MAX - 48)];
    let builder = begin(src, packet.src)?;
    if packet.src.is_ipv4() {
        let kind = match why {
            Error::Unreachable => DestUnreachableHeader::Host,
            Error::Port => DestUnreachableHeader::Port,
            Error::TooBig { mtu } => DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu },
        };
        return finish(builder.icmpv4(Icmpv4Type::DestinationUnreachable(kind)), quoted);
    }
    let kind = match why {
        Error::Unreachable => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::NoRoute),
        Error::Port => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port),
        Error::TooBig { mtu } => Icmpv6Type::PacketTooBig { mtu: mtu.into() },
    };
    let builder = builder.icmpv6(kind);
    let mut bytes = Vec::with_capacity(builder.size(quoted.len()));
    builder.write(&mut bytes, quoted).ok()?;
    Some(bytes)
}

/// The same packet between other ends, with as many hops left. An echo has its identifier in place of a port, at the end
/// that asked. None of what has no ports.
pub(crate) fn readdress(bytes: &[u8], src: SocketAddr, dst: SocketAddr) -> Option<Vec<u8>> {
    let made = match read(bytes)?.content {
        Content::Udp { payload, .. } => udp(src, dst, payload),
        Content::EchoRequest { seq, payload, .. } => echo(src.ip(), dst.ip(), true, src.port(), seq, payload),
        Content::EchoReply { seq, payload, .. } => echo(src.ip(), dst.ip(), false, dst.port(), seq, payload),
        Content::Error { .. } | Content::Other => None,
    };
    let mut made = made?;
    set_hops(&mut made, hops(bytes)?).then_some(made)
}

/// One hop less; false where the packet's life ends here.
pub(crate) fn hop(bytes: &mut [u8]) -> bool {
    hops(bytes).is_some_and(|left| left > 1 && set_hops(bytes, left - 1))
}

fn hops(bytes: &[u8]) -> Option<u8> {
    match bytes.first()? >> 4 {
        4 => bytes.get(8).copied(),
        6 => bytes.get(7).copied(),
        _ => None,
    }
}

/// False where there is no whole header.
fn set_hops(bytes: &mut [u8], left: u8) -> bool {
    match bytes.first().map(|b| b >> 4) {
        Some(4) if bytes.len() >= 20 => {
            bytes[8] = left;
            let sum =
                etherparse::Ipv4HeaderSlice::from_slice(bytes).map(|h| h.to_header().calc_header_checksum());
            let Ok(sum) = sum else { return false };
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            true
        }
        Some(6) if bytes.len() >= 40 => {
            bytes[7] = left;
            true
        }
        _ => false,
    }
}

/// Whether the bytes hold the marker.
pub(crate) fn holds(bytes: &[u8], marker: &[u8]) -> bool {
    let Some((first, _)) = marker.split_first() else {
        return true;
    };
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|b| b == first) {
        if rest[at..].starts_with(marker) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

/// A packet in a line, for people.
pub(crate) fn describe(bytes: &[u8]) -> String {
    let Some(Packet { src, dst, content }) = read(bytes) else {
        return format!("{} bytes that are no IP packet", bytes.len());
    };
    let what = match content {
        Content::EchoRequest { seq, .. } => format!("ICMP echo request {seq}"),
        Content::EchoReply { .. } => "ICMP echo reply".to_owned(),
        Content::Udp {
            src_port, dst_port, ..
        } => format!("UDP {src_port} > {dst_port}"),
        Content::Error { why, .. } => format!("ICMP error {why:?}"),
        Content::Other => "neither ICMP nor UDP".to_owned(),
    };
    format!("{src} > {dst} {what}, {} bytes", bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIRS: [(&str, &str); 2] = [("10.244.1.2", "10.244.2.2"), ("fd00::1:2", "fd00::2:2")];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_made_can_be_read() {
        for (src, dst) in PAIRS.map(|(a, b)| (ip(a), ip(b))) {
            let bytes = echo(src, dst, true, 7, 9, b"payload").unwrap();
            let content = Content::EchoRequest {
                id: 7,
                seq: 9,
                payload: b"payload",
            };
            assert_eq!(read(&bytes), Some(Packet { src, dst, content }));
            let bytes = udp((src, 1).into(), (dst, 2).into(), b"x").unwrap();
            let content = Content::Udp {
                src_port: 1,
                dst_port: 2,
                payload: b"x",
            };
            assert_eq!(read(&bytes).unwrap().content, content);
            assert_eq!(addresses(&bytes), Some((src, dst)));
        }
        assert_eq!(
            udp((ip("10.0.0.1"), 1).into(), (ip("fd00::1"), 2).into(), b""),
            None
        );
        assert_eq!(read(b""), None);
        assert_eq!(read(&[0x45; 10]), None);
        assert_eq!(read(&[0x60; 39]), None);
    }

    #[test]
    fn errors_quote_the_packet_and_are_not_answered_with_errors() {
        for (src, dst) in PAIRS.map(|(a, b)| (ip(a), ip(b))) {
            let about = udp((src, 1).into(), (dst, 2).into(), &[b'm'; 1000]).unwrap();
            for why in [Error::Unreachable, Error::Port, Error::TooBig { mtu: 1280 }] {
                let bytes = error(dst, &about, why).unwrap();
                assert!(bytes.len() <= ERROR_MAX);
                let Content::Error {
                    why: read_why,
                    quoted,
                } = read(&bytes).unwrap().content
                else {
                    panic!()
                };
                assert_eq!(read_why, why);
                assert!(about.starts_with(quoted));
                assert_eq!(error(src, &bytes, why), None);
            }
        }
    }

    #[test]
    fn a_packet_lives_as_many_hops_as_it_says() {
        for (src, dst) in PAIRS.map(|(a, b)| (ip(a), ip(b))) {
            let mut bytes = echo(src, dst, true, 1, 1, b"").unwrap();
            let hops = (0..100).take_while(|_| hop(&mut bytes)).count();
            assert_eq!(hops, usize::from(TTL) - 1);
            assert!(read(&bytes).is_some());
        }
    }

    #[test]
    fn other_ends_leave_the_rest_as_it_was() {
        for (src, dst) in PAIRS.map(|(a, b)| (ip(a), ip(b))) {
            let mut sent = udp((src, 1).into(), (dst, 2).into(), b"x").unwrap();
            assert!(hop(&mut sent));
            let mut wanted = udp((dst, 3).into(), (src, 4).into(), b"x").unwrap();
            assert!(hop(&mut wanted));
            assert_eq!(readdress(&sent, (dst, 3).into(), (src, 4).into()), Some(wanted));
            for (request, id) in [(true, 3), (false, 4)] {
                let sent = echo(src, dst, request, 1, 9, b"x").unwrap();
                let wanted = echo(dst, src, request, id, 9, b"x");
                assert_eq!(readdress(&sent, (dst, 3).into(), (src, 4).into()), wanted);
            }
        }
    }

    #[test]
    fn the_marker_is_found_wherever_it_is() {
        assert!(holds(b"..mamarker", b"marker"));
        assert!(holds(b"marker", b"marker"));
        assert!(!holds(b"marke", b"marker"));
        assert!(!holds(b"", b"marker"));
    }
}
