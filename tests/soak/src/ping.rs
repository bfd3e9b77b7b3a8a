//! Echo requests from the host (RFC 792, RFC 4443).

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time between two requests.
const PAUSE: Duration = Duration::from_millis(250);

/// Whether the address answers.
pub(crate) fn answers(address: IpAddr) -> Result<bool> {
    let (domain, protocol) = match address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let mut socket = Socket::new(domain, Type::RAW, Some(protocol)).context("open a raw socket")?;
    // Only what comes from there: others are pinged at the same time.
    socket
        .connect(&SocketAddr::new(address, 0).into())
        .with_context(|| format!("there is no route to {address}"))?;
    socket.set_read_timeout(Some(PAUSE))?;
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        match socket.send(&request(address)) {
            // The kernel tells of an earlier request that nobody took.
            Ok(_) | Err(_) => {}
        }
        let mut packet = [0; 256];
        match socket.read(&mut packet) {
            Ok(length) if is_reply(address, &packet[..length]) => return Ok(true),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => std::thread::sleep(PAUSE / 10),
        }
    }
    Ok(false)
}

/// Type, code, checksum, identifier, sequence number; the kernel fills in ICMPv6's checksum.
fn request(to: IpAddr) -> [u8; 8] {
    match to {
        IpAddr::V4(_) => [8, 0, 0xf7, 0xfd, 0, 1, 0, 1],
        IpAddr::V6(_) => [128, 0, 0, 0, 0, 1, 0, 1],
    }
}

fn is_reply(from: IpAddr, packet: &[u8]) -> bool {
    match from {
        // With the IP header.
        IpAddr::V4(_) => packet.len() > 20 && packet[usize::from(packet[0] & 0x0f) * 4..].first() == Some(&0),
        IpAddr::V6(_) => packet.first() == Some(&129),
    }
}
