//! The kernel's own WireGuard: the messages of `linux/wireguard.h`. Kept thin: few machines that run the tests have the
//! module. `hack/vm` has it.

use super::genetlink::{Request, Socket, Wants};
use super::{Change, EMPTY, Tunnel};
use crate::error::{Context, Result};
use ipnetwork::IpNetwork;
use meshd_model::kernel::{Peer, PeerState};
use meshd_model::{PublicKey, Wall};
use nix::errno::Errno;
use nlink::netlink::attr::AttrIter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

const FAMILY: &str = "wireguard";
/// How often a device is read anew that somebody changes meanwhile.
const TRIES: u32 = 5;

/// `wg_cmd`
mod command {
    pub(super) const GET_DEVICE: u8 = 0;
    pub(super) const SET_DEVICE: u8 = 1;
}

/// `wgdevice_attribute`
mod device {
    pub(super) const IFNAME: u16 = 2;
    pub(super) const PRIVATE_KEY: u16 = 3;
    pub(super) const PUBLIC_KEY: u16 = 4;
    pub(super) const LISTEN_PORT: u16 = 6;
    pub(super) const FWMARK: u16 = 7;
    pub(super) const PEERS: u16 = 8;
}

/// `wgpeer_attribute` and `wgpeer_flag`
mod peer {
    pub(super) const PUBLIC_KEY: u16 = 1;
    pub(super) const FLAGS: u16 = 3;
    pub(super) const ENDPOINT: u16 = 4;
    pub(super) const KEEPALIVE: u16 = 5;
    pub(super) const LAST_HANDSHAKE: u16 = 6;
    pub(super) const RX_BYTES: u16 = 7;
    pub(super) const TX_BYTES: u16 = 8;
    pub(super) const ALLOWED_IPS: u16 = 9;

    pub(super) const REMOVE: u32 = 1;
    pub(super) const REPLACE_ALLOWED_IPS: u32 = 2;
    pub(super) const UPDATE_ONLY: u32 = 4;
}

/// `wgallowedip_attribute`
mod allowed_ip {
    pub(super) const FAMILY: u16 = 1;
    pub(super) const ADDRESS: u16 = 2;
    pub(super) const PREFIX: u16 = 3;
}

fn open() -> Result<Socket> {
    Socket::open(FAMILY).doing(|| "talk to the kernel's WireGuard: is its module loaded?")
}

/// Asks for all but the private key, which the kernel tells as well: it stays in the buffer that is wiped.
pub(super) fn get(name: &str) -> Result<Tunnel> {
    let mut socket = open()?;
    let mut tries = 0;
    loop {
        let mut tunnel = Tunnel::default();
        let request = request(&socket, command::GET_DEVICE, Wants::Dump, name);
        tries += 1;
        match socket.ask(request, |message| read_device(&mut tunnel, message)) {
            Err(Errno::EINTR) if tries < TRIES => {}
            done => {
                return done
                    .map(|()| tunnel)
                    .doing(|| format!("read WireGuard interface {name}"));
            }
        }
    }
}

pub(super) fn set_device(name: &str, change: &Change) -> Result<()> {
    let mut socket = open()?;
    let mut request = request(&socket, command::SET_DEVICE, Wants::Done, name);
    if let Some(key) = &change.private_key {
        request.put(device::PRIVATE_KEY, key.as_slice());
    }
    if let Some(port) = change.listen_port {
        request.put(device::LISTEN_PORT, &port.to_ne_bytes());
    }
    if let Some(mark) = change.fwmark {
        request.put(device::FWMARK, &mark.to_ne_bytes());
    }
    let set = socket.ask(request, |_| Some(()));
    set.doing(|| format!("configure WireGuard interface {name}"))
}

pub(super) fn set_peer(name: &str, peer: &Peer) -> Result<()> {
    let set = change_peer(&mut open()?, name, |request| write_peer(request, peer));
    set.doing(|| format!("set peer {} of {name}", peer.public_key))
}

/// One after the other; nothing without the peer.
pub(super) fn set_keepalive(name: &str, peer: PublicKey, steps: [u16; 2]) -> Result<()> {
    let mut socket = open()?;
    for seconds in steps {
        let set = change_peer(&mut socket, name, |request| {
            request.put(peer::PUBLIC_KEY, &peer.0);
            request.put(peer::FLAGS, &peer::UPDATE_ONLY.to_ne_bytes());
            request.put(peer::KEEPALIVE, &seconds.to_ne_bytes());
        });
        set.doing(|| format!("set the keepalive of peer {peer} of {name} to {seconds}"))?;
    }
    Ok(())
}

/// No peer, no error: so the kernel has it.
pub(super) fn remove_peer(name: &str, peer: PublicKey) -> Result<()> {
    let removed = change_peer(&mut open()?, name, |request| {
        request.put(peer::PUBLIC_KEY, &peer.0);
        request.put(peer::FLAGS, &peer::REMOVE.to_ne_bytes());
    });
    match removed {
        Err(Errno::ENODEV) => Ok(()),
        other => other.doing(|| format!("remove peer {peer} of {name}")),
    }
}

/// A request about the interface.
fn request(socket: &Socket, command: u8, wants: Wants, name: &str) -> Request {
    let mut request = socket.request(command, wants);
    request.put(device::IFNAME, &[name.as_bytes(), &[0]].concat());
    request
}

fn change_peer(socket: &mut Socket, name: &str, fill: impl FnOnce(&mut Request)) -> nix::Result<()> {
    let mut request = request(socket, command::SET_DEVICE, Wants::Done, name);
    request.nest(device::PEERS, |peers| peers.nest(0, fill));
    socket.ask(request, |_| Some(()))
}

fn write_peer(request: &mut Request, wanted: &Peer) {
    request.put(peer::PUBLIC_KEY, &wanted.public_key.0);
    request.put(peer::FLAGS, &peer::REPLACE_ALLOWED_IPS.to_ne_bytes());
    if let Some(endpoint) = wanted.endpoint {
        request.put(peer::ENDPOINT, &write_endpoint(endpoint));
    }
    request.put(peer::KEEPALIVE, &wanted.keepalive.unwrap_or(0).to_ne_bytes());
    request.nest(peer::ALLOWED_IPS, |all| {
        for ip in &wanted.allowed_ips {
            all.nest(0, |one| write_allowed_ip(one, *ip));
        }
    });
}

fn write_allowed_ip(request: &mut Request, ip: IpNetwork) {
    let family = match ip {
        IpNetwork::V4(_) => libc::AF_INET,
        IpNetwork::V6(_) => libc::AF_INET6,
    };
    request.put(allowed_ip::FAMILY, &(family as u16).to_ne_bytes());
    match ip.network() {
        IpAddr::V4(v4) => request.put(allowed_ip::ADDRESS, &v4.octets()),
        IpAddr::V6(v6) => request.put(allowed_ip::ADDRESS, &v6.octets()),
    }
    request.put(allowed_ip::PREFIX, &[ip.prefix()]);
}

/// `sockaddr_in` or `sockaddr_in6`.
fn write_endpoint(endpoint: SocketAddr) -> Vec<u8> {
    let port = endpoint.port().to_be_bytes();
    match endpoint {
        SocketAddr::V4(v4) => {
            let family = (libc::AF_INET as u16).to_ne_bytes();
            [&family[..], &port, &v4.ip().octets(), &[0; 8]].concat()
        }
        SocketAddr::V6(v6) => {
            let family = (libc::AF_INET6 as u16).to_ne_bytes();
            let (flow, scope) = (v6.flowinfo().to_ne_bytes(), v6.scope_id().to_ne_bytes());
            [&family[..], &port, &flow, &v6.ip().octets(), &scope].concat()
        }
    }
}

/// Takes a message of an answer in. A device with many peers takes several, and so may a peer with many allowed IPs: it
/// goes on in the next with its key and the rest of them.
fn read_device(tunnel: &mut Tunnel, message: &[u8]) -> Option<()> {
    for (kind, value) in AttrIter::new(message) {
        match kind {
            device::PUBLIC_KEY => {
                tunnel.public_key = Some(PublicKey(*value.first_chunk()?)).filter(|key| key.0 != [0; 32]);
            }
            device::LISTEN_PORT => tunnel.listen_port = u16::from_ne_bytes(*value.first_chunk()?),
            device::FWMARK => tunnel.fwmark = u32::from_ne_bytes(*value.first_chunk()?),
            device::PEERS => {
                for (_, peer) in AttrIter::new(value) {
                    let (_, key) = AttrIter::new(peer).find(|(kind, _)| *kind == peer::PUBLIC_KEY)?;
                    let key = PublicKey(*key.first_chunk()?);
                    read_peer(tunnel.peers.entry(key).or_insert(EMPTY), peer)?;
                }
            }
            _ => {}
        }
    }
    Some(())
}

fn read_peer(state: &mut PeerState, attributes: &[u8]) -> Option<()> {
    for (kind, value) in AttrIter::new(attributes) {
        match kind {
            peer::ENDPOINT => state.endpoint = read_endpoint(value),
            peer::KEEPALIVE => {
                let seconds = u16::from_ne_bytes(*value.first_chunk()?);
                state.keepalive = Some(seconds).filter(|seconds| *seconds != 0);
            }
            peer::LAST_HANDSHAKE => state.last_handshake = read_time(value)?,
            peer::RX_BYTES => state.rx_bytes = u64::from_ne_bytes(*value.first_chunk()?),
            peer::TX_BYTES => state.tx_bytes = u64::from_ne_bytes(*value.first_chunk()?),
            peer::ALLOWED_IPS => {
                for (_, ip) in AttrIter::new(value) {
                    state.allowed_ips.insert(read_allowed_ip(ip)?);
                }
            }
            _ => {}
        }
    }
    Some(())
}

fn read_allowed_ip(attributes: &[u8]) -> Option<IpNetwork> {
    let of = |wanted: u16| AttrIter::new(attributes).find_map(|(kind, v)| (kind == wanted).then_some(v));
    let address = of(allowed_ip::ADDRESS)?;
    let address = match i32::from(u16::from_ne_bytes(*of(allowed_ip::FAMILY)?.first_chunk()?)) {
        libc::AF_INET => IpAddr::from(*address.first_chunk::<4>()?),
        libc::AF_INET6 => IpAddr::from(*address.first_chunk::<16>()?),
        _ => return None,
    };
    IpNetwork::new(address, *of(allowed_ip::PREFIX)?.first()?).ok()
}

/// Seconds and nanoseconds, 64 bits each (`__kernel_timespec`). No handshake yet is the epoch itself.
fn read_time(value: &[u8]) -> Option<Option<Wall>> {
    let seconds = u64::from_ne_bytes(*value.first_chunk()?);
    let nanos = u64::from_ne_bytes(*value.get(8..)?.first_chunk()?);
    let nanos = seconds.checked_mul(1_000_000_000)?.checked_add(nanos)?;
    Some((nanos != 0).then_some(Wall(nanos)))
}

fn read_endpoint(value: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(*value.get(2..)?.first_chunk()?);
    match i32::from(u16::from_ne_bytes(*value.first_chunk()?)) {
        libc::AF_INET => Some((Ipv4Addr::from(*value.get(4..)?.first_chunk::<4>()?), port).into()),
        libc::AF_INET6 => {
            let address = Ipv6Addr::from(*value.get(8..)?.first_chunk::<16>()?);
            let scope = u32::from_ne_bytes(*value.get(24..)?.first_chunk()?);
            Some(SocketAddrV6::new(address, port, 0, scope).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
