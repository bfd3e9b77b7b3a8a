//! The UDP sockets: one for each family, on one port.

use meshd_wireguard_proto::{Path, Transmit};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// What a burst of a fast sender needs while we encrypt.
const BUFFER: usize = 8 << 20;
/// Most of a datagram, or of several that the kernel glued together.
const DATAGRAM_MAX: usize = 65_535;
/// How long a full send buffer is waited for before datagrams are dropped.
const SEND_PATIENCE_MS: u8 = 20;
/// Tries to find a port that is free in both families, where none is asked for.
const PORT_TRIES: usize = 16;

/// Both sockets; IPv6 is missing where the kernel has none.
pub(crate) struct Sockets {
    v4: Endpoint,
    v6: Option<Endpoint>,
    port: u16,
    buffers: Vec<Vec<u8>>,
    metas: Vec<RecvMeta>,
    /// Datagrams to one destination, one after the other, for one send.
    batch: Vec<u8>,
}

struct Endpoint {
    socket: Socket,
    state: UdpSocketState,
}

/// Which socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Sockets {
    /// Binds both families; port 0 for any.
    pub(crate) fn bind(port: u16, fwmark: u32) -> io::Result<Self> {
        let (v4, v6, port) = bind_pair(port)?;
        let sockets = Self {
            v4,
            v6,
            port,
            buffers: vec![vec![0; DATAGRAM_MAX]; BATCH_SIZE],
            metas: vec![RecvMeta::default(); BATCH_SIZE],
            batch: Vec::with_capacity(DATAGRAM_MAX),
        };
        if fwmark != 0 {
            sockets.set_mark(fwmark)?;
        }
        Ok(sockets)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Marks what is sent from now on.
    pub(crate) fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.v4.socket.set_mark(mark)?;
        match &self.v6 {
            Some(v6) => v6.socket.set_mark(mark),
            None => Ok(()),
        }
    }

    pub(crate) fn fd(&self, family: Family) -> Option<BorrowedFd<'_>> {
        self.get(family).map(|endpoint| endpoint.socket.as_fd())
    }

    fn get(&self, family: Family) -> Option<&Endpoint> {
        match family {
            Family::V4 => Some(&self.v4),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// Receives once and gives each datagram to `handle`, with the index of the interface that it came by; whether
    /// there was any.
    pub(crate) fn receive(
        &mut self,
        family: Family,
        mut handle: impl FnMut(Path, Option<u32>, &mut [u8]),
    ) -> io::Result<bool> {
        let endpoint = match family {
            Family::V4 => &self.v4,
            Family::V6 => match &self.v6 {
                Some(endpoint) => endpoint,
                None => return Ok(false),
            },
        };
        let mut slices: Vec<IoSliceMut<'_>> = self.buffers.iter_mut().map(|b| IoSliceMut::new(b)).collect();
        let count = match endpoint
            .state
            .recv((&endpoint.socket).into(), &mut slices, &mut self.metas)
        {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        for (buffer, meta) in self.buffers.iter_mut().zip(&self.metas).take(count) {
            let glued = &mut buffer[..meta.len.min(DATAGRAM_MAX)];
            let from = Path {
                remote: meta.addr,
                local: meta.dst_ip.filter(|own| is_one_nodes(*own)),
            };
            for datagram in glued.chunks_mut(meta.stride.max(1)) {
                handle(from, meta.interface_index, datagram);
            }
        }
        Ok(true)
    }

    /// Sends datagrams; consecutive ones of one length to one destination go in one call. Gives the source addresses that
    /// the node turned out not to have any more, or from which no way leads to a destination.
    pub(crate) fn send(&mut self, mut next: impl FnMut() -> Option<Transmit>) -> Vec<Gone> {
        let mut gone: Vec<Gone> = Vec::new();
        let mut pending = next();
        while let Some(first) = pending {
            let limit = match first.dst {
                SocketAddr::V4(_) => self.v4.state.max_gso_segments(),
                SocketAddr::V6(_) => self.v6.as_ref().map_or(1, |v6| v6.state.max_gso_segments()),
            };
            let (src, dst, segment) = (first.src, first.dst, first.bytes.len());
            let src = src.filter(|src| !gone.iter().any(|gone| gone.concerns(*src, dst)));
            self.batch.clear();
            self.batch.extend_from_slice(&first.bytes);
            let mut count = 1;
            pending = next();
            while let Some(more) = &pending {
                let fits = (more.src, more.dst) == (first.src, dst)
                    && count < limit
                    && more.bytes.len() <= segment
                    && self.batch.len() + more.bytes.len() <= DATAGRAM_MAX - 8
                    // A shorter one ends the batch: its successor would begin at the wrong place.
                    && self.batch.len() == count * segment;
                if !fits {
                    break;
                }
                self.batch.extend_from_slice(&more.bytes);
                count += 1;
                pending = next();
            }
            let Some(failed) = self.send_batch(src, dst, segment) else {
                continue;
            };
            gone.push(failed);
            // It takes this failure for one of segmentation, and would never send a batch again.
            self.renew(dst);
            self.send_batch(None, dst, segment);
        }
        gone
    }

    /// Has quinn-udp find out anew what the socket to that destination can do.
    fn renew(&mut self, dst: SocketAddr) {
        let endpoint = match dst {
            SocketAddr::V4(_) => Some(&mut self.v4),
            SocketAddr::V6(_) => self.v6.as_mut(),
        };
        if let Some(Err(error)) = endpoint.map(|endpoint| endpoint.renew(dst.is_ipv4())) {
            tracing::warn!(%error, "cannot set up a socket anew: batches may be sent one by one from now on");
        }
    }

    /// Sends the batch; what is wrong with the source if nothing can be sent from it.
    fn send_batch(&self, src: Option<IpAddr>, dst: SocketAddr, segment: usize) -> Option<Gone> {
        let family = if dst.is_ipv4() { Family::V4 } else { Family::V6 };
        let Some(endpoint) = self.get(family) else {
            tracing::debug!(%dst, "no IPv6 here: a datagram is dropped");
            return None;
        };
        let is_batch = self.batch.len() > segment;
        if is_batch && endpoint.send(src, dst, &self.batch, segment).is_ok() {
            return None;
        }
        // Not every device takes a batch, and not every path its segments.
        for datagram in self.batch.chunks(segment.max(1)) {
            let Err(error) = endpoint.send(src, dst, datagram, segment) else {
                continue;
            };
            if let Some(gone) = src.and_then(|src| Gone::of(&error, src, dst)) {
                tracing::debug!(?gone, %error, "nothing can be sent from this address any more");
                return Some(gone);
            }
            tracing::debug!(%dst, %error, "a datagram could not be sent");
        }
        None
    }
}

impl Endpoint {
    fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // Beyond the limit of net.core.rmem_max where we may, up to it elsewhere.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
            socket.set_recv_buffer_size(BUFFER)?;
        }
        socket.set_send_buffer_size(BUFFER)?;
        socket.bind(&address.into())?;
        let state = state_of(&socket, address.is_ipv4())?;
        Ok(Self { socket, state })
    }

    fn renew(&mut self, is_v4: bool) -> io::Result<()> {
        self.state = state_of(&self.socket, is_v4)?;
        Ok(())
    }

    fn send(&self, src: Option<IpAddr>, dst: SocketAddr, contents: &[u8], segment: usize) -> io::Result<()> {
        let transmit = quinn_udp::Transmit {
            destination: dst,
            ecn: None,
            contents,
            segment_size: Some(segment),
            src_ip: src,
        };
        match self.state.try_send((&self.socket).into(), &transmit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
                poll(&mut fds, PollTimeout::from(SEND_PATIENCE_MS))?;
                self.state.try_send((&self.socket).into(), &transmit)
            }
            sent => sent,
        }
    }

    fn port(&self) -> io::Result<u16> {
        let address = self.socket.local_addr()?;
        Ok(address.as_socket().map_or(0, |address| address.port()))
    }
}

fn bind_pair(port: u16) -> io::Result<(Endpoint, Option<Endpoint>, u16)> {
    let mut tries = if port == 0 { PORT_TRIES } else { 1 };
    loop {
        let v4 = Endpoint::bind((Ipv4Addr::UNSPECIFIED, port).into())?;
        let bound = v4.port()?;
        tries -= 1;
        match Endpoint::bind((Ipv6Addr::UNSPECIFIED, bound).into()) {
            Ok(v6) => return Ok((v4, Some(v6), bound)),
            Err(error) if has_no_v6(&error) => return Ok((v4, None, bound)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => return Err(error),
        }
    }
}

fn has_no_v6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

/// A source address from which nothing can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone {
    pub(crate) source: IpAddr,
    /// To this destination only, or to any.
    pub(crate) to: Option<SocketAddr>,
}

impl Gone {
    /// What Linux says where the source is no address of the node, or no way to the destination begins there.
    fn of(error: &io::Error, source: IpAddr, dst: SocketAddr) -> Option<Self> {
        let to = match error.raw_os_error()? {
            libc::EINVAL | libc::EADDRNOTAVAIL => None,
            libc::ENETUNREACH | libc::EHOSTUNREACH => Some(dst),
            _ => return None,
        };
        Some(Self { source, to })
    }

    fn concerns(self, source: IpAddr, dst: SocketAddr) -> bool {
        self.source == source && self.to.is_none_or(|to| to == dst)
    }
}

/// Whether one can answer from the address that a datagram came to: not from that of a group.
fn is_one_nodes(address: IpAddr) -> bool {
    !address.is_multicast() && address != IpAddr::V4(Ipv4Addr::BROADCAST)
}

fn state_of(socket: &Socket, is_v4: bool) -> io::Result<UdpSocketState> {
    let state = UdpSocketState::new(socket.into())?;
    allow_fragments(socket, is_v4)?;
    Ok(state)
}

/// quinn-udp forbids fragmentation, as QUIC wants it. WireGuard allows it, so that an MTU set too large costs speed
/// and not packets (as in Linux's own device).
#[allow(unsafe_code)]
fn allow_fragments(socket: &Socket, is_v4: bool) -> io::Result<()> {
    let options: &[(libc::c_int, libc::c_int, libc::c_int)] = if is_v4 {
        &[(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)]
    } else {
        &[
            (
                libc::IPPROTO_IPV6,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_DONT,
            ),
            (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0),
        ]
    };
    for (level, name, value) in options {
        // SAFETY: the descriptor is open, and the option's value is an int that outlives the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                *level,
                *name,
                std::ptr::from_ref(value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    /// Sends two datagrams of one length from there; both arrive, whatever the source.
    fn send_two(sockets: &mut Sockets, to: &UdpSocket, src: Option<IpAddr>) -> Vec<Gone> {
        let dst = to.local_addr().unwrap();
        let mut datagrams = [b"one", b"two"].into_iter();
        let gone = sockets.send(|| {
            let bytes = datagrams.next()?.to_vec();
            Some(Transmit { src, dst, bytes })
        });
        for expected in [b"one", b"two"] {
            let mut buffer = [0; 16];
            let (length, _) = to.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer.get(..length), Some(expected.as_slice()));
        }
        gone
    }

    #[test]
    fn a_source_that_is_gone_costs_no_segmentation() {
        let mut sockets = Sockets::bind(0, 0).unwrap();
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        to.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(send_two(&mut sockets, &to, None), []);
        let segments = sockets.v4.state.max_gso_segments();
        let here = to.local_addr().ok();
        // Of an address that is no node's, Linux says EINVAL; of one that is not this node's, ENETUNREACH in IPv4.
        for (absent, to_which) in [("203.0.113.77", here), ("255.255.255.255", None)] {
            let source = absent.parse().unwrap();
            let gone = send_two(&mut sockets, &to, Some(source));
            let expected = Gone { source, to: to_which };
            assert_eq!(gone, [expected]);
            assert_eq!(sockets.v4.state.max_gso_segments(), segments, "{absent}");
        }
        let own = "127.0.0.1".parse().unwrap();
        assert_eq!(send_two(&mut sockets, &to, Some(own)), []);
    }

    #[test]
    fn what_came_to_a_group_is_not_answered_from_its_address() {
        for (address, answers) in [
            ("192.0.2.1", true),
            ("2001:db8::1", true),
            ("255.255.255.255", false),
            ("224.0.0.1", false),
            ("ff02::1", false),
        ] {
            assert_eq!(is_one_nodes(address.parse().unwrap()), answers, "{address}");
        }
    }
}
