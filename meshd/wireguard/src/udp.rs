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
                local: meta.dst_ip,
            };
            for datagram in glued.chunks_mut(meta.stride.max(1)) {
                handle(from, meta.interface_index, datagram);
            }
        }
        Ok(true)
    }

    /// Sends datagrams; consecutive ones of one length to one destination go in one call. Gives the source addresses that
    /// the node turned out not to have any more.
    pub(crate) fn send(&mut self, mut next: impl FnMut() -> Option<Transmit>) -> Vec<IpAddr> {
        let mut gone = Vec::new();
        let mut pending = next();
        while let Some(first) = pending {
            let limit = match first.dst {
                SocketAddr::V4(_) => self.v4.state.max_gso_segments(),
                SocketAddr::V6(_) => self.v6.as_ref().map_or(1, |v6| v6.state.max_gso_segments()),
            };
            let (src, dst, segment) = (first.src, first.dst, first.bytes.len());
            let src = src.filter(|src| !gone.contains(src));
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
            match src {
                Some(src) if !self.send_batch(Some(src), dst, segment) => gone.push(src),
                Some(_) => continue,
                None => {}
            }
            self.send_batch(None, dst, segment);
        }
        gone
    }

    /// Sends the batch; false if nothing can be sent from the source.
    fn send_batch(&self, src: Option<IpAddr>, dst: SocketAddr, segment: usize) -> bool {
        let family = if dst.is_ipv4() { Family::V4 } else { Family::V6 };
        let Some(endpoint) = self.get(family) else {
            tracing::debug!(%dst, "no IPv6 here: a datagram is dropped");
            return true;
        };
        let is_batch = self.batch.len() > segment;
        if is_batch && endpoint.send(src, dst, &self.batch, segment).is_ok() {
            return true;
        }
        // Not every device takes a batch, and not every path its segments.
        for datagram in self.batch.chunks(segment.max(1)) {
            let Err(error) = endpoint.send(src, dst, datagram, segment) else {
                continue;
            };
            if let Some(src) = src.filter(|_| is_of_source(&error)) {
                tracing::debug!(%src, %dst, %error, "nothing can be sent from this address any more");
                return false;
            }
            tracing::debug!(%dst, %error, "a datagram could not be sent");
        }
        true
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
        let state = UdpSocketState::new((&socket).into())?;
        allow_fragments(&socket, address.is_ipv4())?;
        Ok(Self { socket, state })
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

/// What Linux says where the source is no address of the node, or no way to the destination begins there.
fn is_of_source(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EHOSTUNREACH)
    )
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
