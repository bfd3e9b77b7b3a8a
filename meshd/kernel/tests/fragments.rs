//! Fragments: conntrack joins them by addresses and number alone, whatever interface each came by.

mod support;

use meshd_core::KernelOp::AttachPod;
use nlink::netlink::nftables::Family;
use nlink::{Connection, Nftables};
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{IpAddr, SocketAddr};
use support::{BRIEFLY, Inbox, PATIENCE, Sandbox, firewall, node, pod, site};

const UDP: u8 = 17;
/// `IPPROTO_RAW`: with the header of IP as it is given.
const RAW: i32 = 255;
/// Octets of the datagram in the first fragment: the header and as much again.
const CUT: usize = 16;

/// The source and destination that a datagram claims, and its number.
#[derive(Clone, Copy)]
struct Claim {
    from: IpAddr,
    to: SocketAddr,
    number: u8,
}

impl Claim {
    fn head(self) -> Vec<u8> {
        self.fragment(&self.datagram()[..CUT], 0, true)
    }

    fn tail(self) -> Vec<u8> {
        self.fragment(&self.datagram()[CUT..], CUT, false)
    }

    fn addresses(self) -> Vec<u8> {
        let octets = |address| match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        [octets(self.from), octets(self.to.ip())].concat()
    }

    fn datagram(self) -> Vec<u8> {
        let payload = b"head....tail....";
        let length = u16::try_from(8 + payload.len()).unwrap();
        let mut datagram = [7u16, self.to.port(), length, 0].map(u16::to_be_bytes).concat();
        datagram.extend(payload);
        let pseudo = [
            &self.addresses()[..],
            &[0, UDP],
            &length.to_be_bytes(),
            &datagram[..],
        ]
        .concat();
        let words = pseudo.chunks_exact(2);
        let mut sum: u32 = words.map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let checksum = !u16::try_from(sum).unwrap();
        datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
        datagram
    }

    fn fragment(self, part: &[u8], offset: usize, more: bool) -> Vec<u8> {
        let offset = u16::try_from(offset / 8).unwrap();
        let mut packet;
        if self.from.is_ipv4() {
            let length = u16::try_from(20 + part.len()).unwrap();
            let flags = offset | if more { 0x2000 } else { 0 };
            packet = vec![0x45, 0];
            packet.extend([length, self.number.into(), flags].map(u16::to_be_bytes).concat());
            packet.extend([64, UDP, 0, 0]);
            packet.extend(self.addresses());
        } else {
            let length = u16::try_from(8 + part.len()).unwrap();
            packet = vec![0x60, 0, 0, 0];
            packet.extend(length.to_be_bytes());
            packet.extend([44, 64]);
            packet.extend(self.addresses());
            packet.extend([UDP, 0]);
            packet.extend((offset << 3 | u16::from(more)).to_be_bytes());
            packet.extend([0, 0, 0, self.number]);
        }
        packet.extend(part);
        packet
    }

    /// Sends a fragment of it from inside.
    fn send(self, sandbox: &Sandbox, fragment: Vec<u8>) {
        let domain = Domain::for_address(self.to);
        sandbox.run(move || {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(RAW))).unwrap();
            let to = SocketAddr::new(self.to.ip(), 0);
            socket.send_to(&fragment, &to.into()).unwrap();
        });
    }
}

#[test]
fn no_fragment_of_somebody_elses_joins_a_pods() {
    node("no_fragment_of_somebody_elses", |mut node| async move {
        let site = site(&mut node, firewall()).await;
        let victim = Sandbox::new();
        node.apply(AttachPod(pod(&victim, 3))).await;
        for scope in ["all", "eth0"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter"), "0").unwrap();
        }
        let mut number = 0;
        // Who sends the tail; in which family it was joined.
        let mut joined = |attacker: &Sandbox, patience| {
            [
                ("10.244.1.3", "10.244.1.1"),
                ("fd00:244:0:1::3", "fd00:244:0:1::1"),
            ]
            .map(|(from, to)| {
                let [from, to] = [from, to].map(|a| a.parse::<IpAddr>().unwrap());
                let inbox = Inbox::at(&SocketAddr::new(to, 0).to_string());
                number += 1;
                let to = SocketAddr::new(to, inbox.port().parse().unwrap());
                let claim = Claim { from, to, number };
                claim.send(attacker, claim.tail());
                claim.send(&victim, claim.head());
                inbox.next(patience) == Some(from)
            })
        };
        assert_eq!(joined(&victim, PATIENCE), [true, true], "its own");
        assert_eq!(joined(&site.pod, BRIEFLY), [false, false], "another pod's");
        assert_eq!(
            joined(&site.neighbour, BRIEFLY),
            [false, false],
            "from the underlay"
        );

        // The control: without the table, all are joined.
        let nft = Connection::<Nftables>::new().unwrap();
        nft.del_table("meshd", Family::Inet).await.unwrap();
        assert_eq!(joined(&site.pod, PATIENCE), [true, true]);
        assert_eq!(joined(&site.neighbour, PATIENCE), [true, true]);
    });
}
