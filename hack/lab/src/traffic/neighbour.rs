//! A machine on the underlay that belongs to nobody: what it sends, it sends in the clear, on purpose.

use crate::netns::Netns;
use crate::plan::{ECHO_PORT, Plan, UPLINK};
use anyhow::{Context, Result};
use etherparse::PacketBuilder;
use meshd_model::attachment::MacAddr;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, socket};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

/// MAC of no machine: the bridge hands such a frame to all ports, and no one takes it.
const NOBODY: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0xff]);

/// The neighbour.
pub struct Neighbour {
    netns: Netns,
}

impl Neighbour {
    /// The machine in this namespace.
    #[must_use]
    pub fn new(netns: Netns) -> Self {
        Self { netns }
    }

    /// Where it is.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Sends UDP to a pod's echo server through the node with this MAC: from its own address, and from one that
    /// a pod of another node could have. Returns the payload.
    pub fn send(&self, to: IpAddr, through: MacAddr) -> Result<Vec<u8>> {
        let payload = super::payload(64);
        let (v4, v6) = Plan::neighbour();
        let frames: Vec<_> = match to {
            IpAddr::V4(to) => [v4, Ipv4Addr::new(10, 244, 199, 9)]
                .iter()
                .map(|from| frame_v4(*from, to, through, &payload))
                .collect(),
            IpAddr::V6(to) => [v6, Ipv6Addr::new(0xfd00, 0x244, 0, 199, 0, 0, 0, 9)]
                .iter()
                .map(|from| frame_v6(*from, to, through, &payload))
                .collect(),
        };
        self.send_frames(frames)
            .with_context(|| format!("send plaintext to {to} through {through}"))?;
        Ok(payload)
    }

    /// Sends the marker to nobody, so that the capture shows that it would have seen it, and nobody quotes it in an
    /// ICMP error.
    pub fn send_marker(&self) -> Result<()> {
        let (from, to) = (Plan::neighbour().0, Plan::bridge().0);
        let frame = frame_v4(from, to, NOBODY, &super::payload(64));
        self.send_frames(vec![frame])
            .context("send the marker in the clear")
    }

    fn send_frames(&self, frames: Vec<Vec<u8>>) -> Result<()> {
        self.netns.run(move || -> Result<()> {
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )
            .context("open an AF_PACKET socket")?;
            bind(&socket)?;
            for frame in frames {
                send(socket.as_raw_fd(), &frame, MsgFlags::empty()).context("send a frame")?;
            }
            Ok(())
        })?
    }
}

#[allow(unsafe_code)]
fn bind(socket: &impl AsRawFd) -> Result<()> {
    let index = nix::net::if_::if_nametoindex(UPLINK).with_context(|| format!("look for {UPLINK}"))?;
    // SAFETY: all zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = i32::try_from(index)?;
    // SAFETY: the address is a sockaddr_ll of the length given.
    let outcome = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if outcome == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error()).with_context(|| format!("bind to {UPLINK}"))
}

fn own_mac() -> [u8; 6] {
    Plan::mac(Plan::neighbour().0).0
}

fn frame_v4(from: Ipv4Addr, to: Ipv4Addr, through: MacAddr, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(own_mac(), through.0)
        .ipv4(from.octets(), to.octets(), 64)
        .udp(40000, ECHO_PORT)
        .write(&mut frame, payload)
        .expect("a Vec takes everything");
    frame
}

fn frame_v6(from: Ipv6Addr, to: Ipv6Addr, through: MacAddr, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(own_mac(), through.0)
        .ipv6(from.octets(), to.octets(), 64)
        .udp(40000, ECHO_PORT)
        .write(&mut frame, payload)
        .expect("a Vec takes everything");
    frame
}
