//! As much of an IP header as cryptokey routing needs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Source, destination and total length of an IP packet.
pub(crate) struct Header {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Never more than the bytes there are.
    pub(crate) length: usize,
}

impl Header {
    /// None if it is no IP packet, or shorter than it says.
    pub(crate) fn parse(packet: &[u8]) -> Option<Header> {
        let header = match packet.first()? >> 4 {
            4 => Self::v4(packet.first_chunk()?),
            6 => Self::v6(packet.first_chunk()?),
            _ => return None,
        };
        let minimum = if header.source.is_ipv4() { 20 } else { 40 };
        (minimum..=packet.len())
            .contains(&header.length)
            .then_some(header)
    }

    fn v4(h: &[u8; 20]) -> Header {
        Header {
            source: Ipv4Addr::new(h[12], h[13], h[14], h[15]).into(),
            destination: Ipv4Addr::new(h[16], h[17], h[18], h[19]).into(),
            length: usize::from(u16::from_be_bytes([h[2], h[3]])),
        }
    }

    fn v6(h: &[u8; 40]) -> Header {
        let address = |at: usize| {
            let bytes: [u8; 16] = h[at..at + 16].try_into().expect("16 bytes");
            Ipv6Addr::from(bytes).into()
        };
        Header {
            source: address(8),
            destination: address(24),
            length: 40 + usize::from(u16::from_be_bytes([h[4], h[5]])),
        }
    }
}
