//! Checksums that the kernel leaves to whoever reads from the TUN interface with offload.

/// Lengths of the headers, in bytes, and where in a packet its fields are (RFC 8200, section 3; RFC 768).
const IPV6: usize = 40;
const UDP: usize = 8;
const NEXT_HEADER: usize = 6;
const ADDRESSES: std::ops::Range<usize> = 8..40;
const CHECKSUM: std::ops::Range<usize> = 46..48;

/// Mends the UDP checksum of an IPv6 packet, where it was completed to zero: that is sent as 0xFFFF, because zero says
/// that there is none, which IPv6 does not take (RFC 8200, section 8.1). tun-rs writes the zero, and one packet in 65,536
/// was lost. A zero that the sender has meant (RFC 6935) stays. To IPv4 both are right.
pub(crate) fn mend_udp(packet: &mut [u8]) {
    let is_udp = packet.len() >= IPV6 + UDP
        && packet[0] >> 4 == 6
        && i32::from(packet[NEXT_HEADER]) == libc::IPPROTO_UDP;
    if is_udp && packet[CHECKSUM] == [0, 0] && is_complete(packet) {
        packet[CHECKSUM].fill(0xFF);
    }
}

/// Whether zero is what the sum over the pseudo header and the datagram asks for.
fn is_complete(packet: &[u8]) -> bool {
    let datagram = &packet[IPV6..];
    let pseudo = datagram.len() as u64 + libc::IPPROTO_UDP as u64;
    let pseudo = tun_rs::checksum_no_fold(&packet[ADDRESSES], pseudo);
    tun_rs::checksum(datagram, pseudo) == 0xFFFF
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A datagram whose last two bytes make the sum what it is.
    fn packet(last: u16) -> Vec<u8> {
        let mut packet = vec![0; IPV6 + UDP + 6];
        packet[0] = 0x60;
        packet[5] = (UDP + 6) as u8;
        packet[NEXT_HEADER] = 17;
        packet[8..24].copy_from_slice(&"fd00:244::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        packet[24..40].copy_from_slice(&"fd00:244:0:1::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        packet[40..46].copy_from_slice(&[0x9c, 0x40, 0x1b, 0x58, 0, (UDP + 6) as u8]);
        packet[48..52].copy_from_slice(b"abcd");
        packet[52..].copy_from_slice(&last.to_be_bytes());
        packet
    }

    /// What tun-rs does with a checksum that the kernel has left.
    fn completed(last: u16) -> Vec<u8> {
        let mut packet = packet(last);
        let mut summed = packet[ADDRESSES].to_vec();
        summed.extend([0, (UDP + 6) as u8, 0, 17]);
        summed.extend(&packet[IPV6..]);
        let words = summed
            .chunks(2)
            .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
        let mut sum: u32 = words.sum();
        while sum > 0xFFFF {
            sum = (sum >> 16) + (sum & 0xFFFF);
        }
        packet[CHECKSUM].copy_from_slice(&(!sum as u16).to_be_bytes());
        packet
    }

    #[test]
    fn one_checksum_of_all_is_completed_to_zero_and_mended() {
        let zero: Vec<u16> = (0..=u16::MAX)
            .filter(|last| completed(*last)[CHECKSUM] == [0, 0])
            .collect();
        assert_eq!(zero.len(), 1, "{zero:?}");
        for last in [zero[0], zero[0].wrapping_add(1)] {
            let mut packet = completed(last);
            let before = packet.clone();
            mend_udp(&mut packet);
            if last == zero[0] {
                assert_eq!(packet[CHECKSUM], [0xFF, 0xFF]);
                packet[CHECKSUM].fill(0);
            }
            assert_eq!(packet, before);
        }
    }

    #[test]
    fn a_zero_that_was_meant_stays_and_short_packets_are_left_alone() {
        let zero = (0..=u16::MAX)
            .find(|last| completed(*last)[CHECKSUM] == [0, 0])
            .unwrap();
        let mut meant = packet(zero.wrapping_add(1));
        mend_udp(&mut meant);
        assert_eq!(meant[CHECKSUM], [0, 0]);
        for length in 0..IPV6 + UDP {
            mend_udp(&mut packet(zero)[..length]);
        }
    }
}
