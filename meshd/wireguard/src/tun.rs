//! The TUN interface: packets between the kernel's routes and the device.

use crate::checksum;
use crate::links;
use crate::standby::link_kind;
use anyhow::{Context, bail};
use meshd_model::kernel::standby_name;
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use tun_rs::{DeviceBuilder, GROTable, SyncDevice, VIRTIO_NET_HDR_LEN};

/// MTU of an interface that we make: what fits WireGuard over IPv6 in 1,500 bytes.
const DEFAULT_MTU: u16 = 1420;
/// Packets that the kernel holds for us.
const QUEUE_LENGTH: u32 = 5000;
/// Most segments that one read is split into.
const SEGMENTS: usize = 256;
const PACKET_MAX: usize = 65_535;

pub(crate) struct Tun {
    device: SyncDevice,
    name: String,
    /// As read: with offload, one packet of up to 64 KiB.
    raw: Vec<u8>,
    /// As split.
    segments: Vec<Vec<u8>>,
    sizes: Vec<usize>,
    /// To be written, each behind room for the header that offload needs; the first `pending` are in use.
    outgoing: Vec<Vec<u8>>,
    pending: usize,
    coalescing: GROTable,
}

/// What a read gave.
pub(crate) enum Read {
    /// So many packets.
    Packets(usize),
    /// Nothing more for now.
    Empty,
    /// The interface is gone.
    Gone,
}

impl Tun {
    /// Makes the interface, or takes over the one that is there. Where the kernel's own WireGuard has the name, it is
    /// made beside it, and meshd lets it take over the name when it is to carry the tunnel.
    pub(crate) fn open(name: &str, offload: bool) -> anyhow::Result<Self> {
        let standby = standby_name(name);
        let name = match link_kind(name)?.as_deref() == Some("wireguard") {
            true => {
                tracing::info!(
                    ifname = name,
                    standby,
                    "the kernel's WireGuard has the interface: standing by"
                );
                standby.as_str()
            }
            false => name,
        };
        let is_new = nix::net::if_::if_nametoindex(name).is_err();
        let device = attach(name, offload)?;
        device
            .persist()
            .with_context(|| format!("make the interface {name} persistent"))?;
        device
            .set_nonblocking(true)
            .with_context(|| format!("make reads of {name} non-blocking"))?;
        if is_new {
            device
                .set_mtu(DEFAULT_MTU)
                .with_context(|| format!("set the MTU of {name}"))?;
        }
        if let Err(error) = set_queue_length(name) {
            tracing::warn!(%error, "the queue of {name} stays as short as it is: bursts may lose packets");
        }
        Ok(Self {
            device,
            name: name.to_owned(),
            raw: vec![0; VIRTIO_NET_HDR_LEN + PACKET_MAX],
            segments: vec![vec![0; PACKET_MAX]; SEGMENTS],
            sizes: vec![0; SEGMENTS],
            // Only what has room for its successors is glued to them. Memory that is not used is not there.
            outgoing: (0..tun_rs::IDEAL_BATCH_SIZE)
                .map(|_| Vec::with_capacity(VIRTIO_NET_HDR_LEN + PACKET_MAX))
                .collect(),
            pending: 0,
            coalescing: GROTable::default(),
        })
    }

    /// Index of the interface, which stays when it is renamed.
    pub(crate) fn index(&self) -> anyhow::Result<u32> {
        self.device
            .if_index()
            .with_context(|| format!("look for the interface {}", self.name))
    }

    pub(crate) fn mtu(&self) -> anyhow::Result<u16> {
        self.device
            .mtu()
            .with_context(|| format!("read the MTU of {}", self.name))
    }

    /// Reads once; the packets are then at [`packet`](Self::packet).
    pub(crate) fn read(&mut self) -> anyhow::Result<Read> {
        let read = self
            .device
            .recv_multiple(&mut self.raw, &mut self.segments, &mut self.sizes, 0);
        match read {
            Ok(count) => {
                for (packet, size) in self.segments.iter_mut().zip(&self.sizes).take(count) {
                    checksum::mend_udp(&mut packet[..*size]);
                }
                Ok(Read::Packets(count))
            }
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EAGAIN | Errno::EINTR) => Ok(Read::Empty),
                Some(Errno::EBADFD | Errno::ENODEV) => Ok(Read::Gone),
                Some(Errno::ENOMEM | Errno::ENOBUFS) => {
                    tracing::debug!(%error, "a packet from {} is lost", self.name);
                    Ok(Read::Empty)
                }
                Some(_) => Err(error).with_context(|| format!("read from {}", self.name)),
                None => {
                    tracing::debug!(%error, "a packet from {} cannot be split", self.name);
                    Ok(Read::Packets(0))
                }
            },
        }
    }

    pub(crate) fn packet(&self, index: usize) -> &[u8] {
        &self.segments[index][..self.sizes[index]]
    }

    /// Notes a packet to be written with the next [`flush`](Self::flush), or before that when there are many.
    pub(crate) fn push(&mut self, packet: &[u8]) {
        if self.pending == self.outgoing.len() {
            self.flush();
        }
        let buffer = &mut self.outgoing[self.pending];
        buffer.clear();
        buffer.resize(VIRTIO_NET_HDR_LEN, 0);
        buffer.extend_from_slice(packet);
        self.pending += 1;
    }

    /// Writes what was pushed; consecutive segments of one flow go in one write.
    pub(crate) fn flush(&mut self) {
        let batch = &mut self.outgoing[..std::mem::take(&mut self.pending)];
        let written = self
            .device
            .send_multiple(&mut self.coalescing, batch, VIRTIO_NET_HDR_LEN);
        if let Err(error) = written {
            // An interface that is down answers EIO: packets to it are lost, as on any interface.
            tracing::trace!(%error, "write to {}", self.name);
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

fn set_queue_length(name: &str) -> nix::Result<()> {
    let index = nix::net::if_::if_nametoindex(name)?;
    links::set_queue_length(index, QUEUE_LENGTH)
}

/// Removes the interface.
pub(crate) fn delete(name: &str) -> anyhow::Result<()> {
    if nix::net::if_::if_nametoindex(name).is_err() {
        bail!("there is no interface {name} in this network namespace");
    }
    let device = attach(name, false)?;
    forget(&device).with_context(|| format!("make the interface {name} no longer persistent"))
}

fn attach(name: &str, offload: bool) -> anyhow::Result<SyncDevice> {
    DeviceBuilder::new()
        .name(name)
        .offload(offload)
        .inherit_enable_state()
        .build_sync()
        .map_err(|error| explain(name, error))
}

/// What can be done about an interface that cannot be had.
fn explain(name: &str, error: io::Error) -> anyhow::Error {
    let can_open = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    let advice = match (can_open, error.raw_os_error().map(Errno::from_raw)) {
        (Err(open), _) if open.kind() == io::ErrorKind::NotFound => {
            "/dev/net/tun is not there: load the module with `modprobe tun`, and in a container pass the device in \
             (`--device /dev/net/tun`)"
                .to_owned()
        }
        (Err(open), _) => format!(
            "/dev/net/tun cannot be opened ({open}): as root allow it to this user with `chmod 0666 /dev/net/tun`, \
             or in a container pass the device in with read and write permission"
        ),
        (Ok(_), Some(Errno::EPERM | Errno::EACCES)) => {
            "making an interface needs CAP_NET_ADMIN in the user namespace that owns this network namespace".to_owned()
        }
        (Ok(_), Some(Errno::EBUSY)) => {
            "another process has it open: end the other meshd-wg first".to_owned()
        }
        (Ok(_), Some(Errno::EINVAL)) => {
            "an interface of this name is there and is not a TUN interface of ours: choose another name, or delete it \
             with `ip link delete`"
                .to_owned()
        }
        _ => "the kernel said why".to_owned(),
    };
    anyhow::Error::new(error).context(format!("open the TUN interface {name}: {advice}"))
}

/// What tun-rs lacks.
#[allow(unsafe_code)]
fn forget(device: &SyncDevice) -> nix::Result<()> {
    use std::os::fd::AsRawFd;
    nix::ioctl_write_int!(tunsetpersist, b'T', 203);
    // SAFETY: the descriptor is open as long as `device` is borrowed, and TUNSETPERSIST takes its argument by value.
    unsafe { tunsetpersist(device.as_raw_fd(), 0) }.map(|_| ())
}
