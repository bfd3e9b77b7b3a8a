//! Echo requests (RFC 792, RFC 4443) on raw sockets.

use std::net::IpAddr;

const HEADER: usize = 8;

/// An echo request; the kernel fills the checksum of ICMPv6 in, that of ICMP is ours.
pub(super) fn request(to: IpAddr, ident: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let kind = if to.is_ipv4() { 8 } else { 128 };
    let mut message = vec![kind, 0, 0, 0];
    message.extend(ident.to_be_bytes());
    message.extend(sequence.to_be_bytes());
    message.extend(payload);
    if to.is_ipv4() {
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    message
}

/// The payload of an echo reply to `ident`; None for any other packet. A raw IPv4 socket gives the IP header too.
pub(super) fn reply(from: IpAddr, ident: u16, packet: &[u8]) -> Option<&[u8]> {
    let (message, kind) = if from.is_ipv4() {
        let header = usize::from(packet.first()? & 0x0f) * 4;
        (packet.get(header..)?, 0)
    } else {
        (packet, 129)
    };
    let ours = message.len() >= HEADER && message[0] == kind && message[4..6] == ident.to_be_bytes();
    ours.then(|| &message[HEADER..])
}

/// RFC 1071.
fn checksum(message: &[u8]) -> u16 {
    let mut sum: u32 = message
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_carries_a_checksum_that_sums_to_zero() {
        let message = request("10.0.0.1".parse().unwrap(), 7, 1, b"odd");
        assert_eq!(checksum(&message), 0);
    }

    #[test]
    fn only_a_reply_to_the_own_request_counts() {
        let v4: IpAddr = "10.0.0.1".parse().unwrap();
        let mut packet = vec![0x45; 20];
        packet.extend([0, 0, 0, 0, 0, 7, 0, 1]);
        packet.extend(b"body");
        assert_eq!(reply(v4, 7, &packet), Some(&b"body"[..]));
        assert_eq!(reply(v4, 8, &packet), None);
        assert_eq!(reply(v4, 7, &packet[..24]), None);
        assert_eq!(reply(v4, 7, &[]), None);
    }
}
