//! AF_PACKET with a ring that the kernel writes into (TPACKET_V2): its size is not bounded by `net.core.rmem_max`,
//! which nobody in a user namespace may exceed.
#![allow(unsafe_code)]

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use socket2::{Domain, Protocol, Socket, Type};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

const FRAME: usize = 2048;
const BLOCK: usize = 1 << 19;
const BLOCKS: usize = 64;
const FRAMES: usize = BLOCK / FRAME * BLOCKS;

/// One packet, cut to what a frame of the ring holds.
pub(super) struct Seen<'a> {
    pub(super) frame: &'a [u8],
    pub(super) ifindex: u32,
    pub(super) outgoing: bool,
    pub(super) loopback: bool,
}

/// The capture's socket and its ring.
pub(super) struct Ring {
    socket: Socket,
    memory: NonNull<u8>,
    next: usize,
}

// SAFETY: the mapping belongs to this value alone and may be used from any one thread.
unsafe impl Send for Ring {}

impl Ring {
    /// Begins to capture on all interfaces of the calling thread's network namespace.
    pub(super) fn open() -> Result<Self> {
        let all = i32::from(u16::try_from(libc::ETH_P_ALL).expect("a protocol number").to_be());
        // Protocol 0 captures nothing: the ring must be there first.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))
            .context("open an AF_PACKET socket")?;
        set(
            &socket,
            libc::PACKET_VERSION,
            &(libc::tpacket_versions::TPACKET_V2 as libc::c_int),
        )?;
        let request = libc::tpacket_req {
            tp_block_size: u32::try_from(BLOCK).expect("fits"),
            tp_block_nr: u32::try_from(BLOCKS).expect("fits"),
            tp_frame_size: u32::try_from(FRAME).expect("fits"),
            tp_frame_nr: u32::try_from(FRAMES).expect("fits"),
        };
        set(&socket, libc::PACKET_RX_RING, &request)?;
        let size = NonZeroUsize::new(BLOCK * BLOCKS).expect("not zero");
        // SAFETY: a new mapping of the socket's ring, unmapped when this value is dropped, before the socket.
        let memory = unsafe {
            mmap(
                None,
                size,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                &socket,
                0,
            )
        }
        .context("map the capture's ring")?;
        let ring = Self {
            socket,
            memory: memory.cast(),
            next: 0,
        };
        ring.bind(all)?;
        Ok(ring)
    }

    fn bind(&self, protocol: i32) -> Result<()> {
        let mut address: libc::sockaddr_ll =
            // SAFETY: all zero is a valid sockaddr_ll.
            unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol as u16;
        // SAFETY: the address is a sockaddr_ll of the length given.
        let outcome = unsafe {
            libc::bind(
                self.socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if outcome == 0 {
            return Ok(());
        }
        Err(std::io::Error::last_os_error()).context("bind the capture to all interfaces")
    }

    /// Waits up to 20 ms for packets.
    pub(super) fn wait(&self) {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::from(20u8));
    }

    /// Hands the next packet to `see`; false if there is none.
    pub(super) fn take(&mut self, see: impl FnOnce(Seen<'_>)) -> bool {
        // SAFETY: `next` is below FRAMES, so the frame lies within the mapping.
        let frame = unsafe { self.memory.add(self.next * FRAME) };
        // SAFETY: a frame begins with a tpacket2_hdr, aligned to 16 bytes, whose first field is the status; the
        // kernel writes it with release semantics.
        let status = unsafe { AtomicU32::from_ptr(frame.cast().as_ptr()) };
        if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return false;
        }
        // SAFETY: while the status says USER the kernel leaves the frame alone; header and address lie in it.
        let (header, address) = unsafe {
            let header = frame.cast::<libc::tpacket2_hdr>().read();
            let offset = size_of::<libc::tpacket2_hdr>().next_multiple_of(libc::TPACKET_ALIGNMENT);
            (header, frame.add(offset).cast::<libc::sockaddr_ll>().read())
        };
        let start = usize::from(header.tp_mac).min(FRAME);
        let length = (header.tp_snaplen as usize).min(FRAME - start);
        // SAFETY: start and length were cut to the frame.
        let bytes = unsafe { std::slice::from_raw_parts(frame.add(start).as_ptr(), length) };
        see(Seen {
            frame: bytes,
            ifindex: u32::try_from(address.sll_ifindex).unwrap_or(0),
            outgoing: address.sll_pkttype == libc::PACKET_OUTGOING,
            loopback: address.sll_hatype == libc::ARPHRD_LOOPBACK,
        });
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % FRAMES;
        true
    }

    /// Packets that the kernel dropped since this was last asked.
    pub(super) fn drops(&self) -> u64 {
        let mut stats = libc::tpacket_stats {
            tp_packets: 0,
            tp_drops: 0,
        };
        let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the buffer is a tpacket_stats of the length given.
        let outcome = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut length,
            )
        };
        // A count that cannot be read proves nothing.
        if outcome == 0 {
            u64::from(stats.tp_drops)
        } else {
            1
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: mapped in `open` with this size; nothing refers to it any more.
        let _ = unsafe { munmap(self.memory.cast(), BLOCK * BLOCKS) };
    }
}

fn set<T>(socket: &Socket, option: libc::c_int, value: &T) -> Result<()> {
    // SAFETY: the value is of the length given; the kernel copies it.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if outcome == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error())
        .with_context(|| format!("set option {option} of the capture's socket"))
}
