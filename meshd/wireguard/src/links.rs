//! Network interfaces over rtnetlink: when one changed, such as the MTU of ours, and the length of a queue.

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Changes taken in at a time.
const TURN: usize = 64;

pub(crate) struct Links(OwnedFd);

impl Links {
    pub(crate) fn watch() -> anyhow::Result<Self> {
        let fd = open(SockFlag::SOCK_NONBLOCK)
            .context("open a netlink socket, to follow the MTU of the interface")?;
        let groups = u32::try_from(libc::RTMGRP_LINK).expect("1");
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups)).context("follow changes of interfaces")?;
        Ok(Self(fd))
    }

    /// What changed does not matter: it is looked up.
    pub(crate) fn drain(&self) {
        let mut buffer = [0; 8192];
        for _ in 0..TURN {
            if recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()).is_err() {
                return;
            }
        }
    }
}

impl AsFd for Links {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn open(flags: SockFlag) -> nix::Result<OwnedFd> {
    socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | flags,
        SockProtocol::NetlinkRoute,
    )
}

/// Sets how many packets an interface holds for its reader. Over netlink, because the ioctl for it asks for
/// CAP_NET_ADMIN in the first user namespace.
pub(crate) fn set_queue_length(index: u32, packets: u32) -> nix::Result<()> {
    let fd = open(SockFlag::empty())?;
    send(fd.as_raw_fd(), &set_link(index, packets), MsgFlags::empty())?;
    let mut answer = [0; 4096];
    let length = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // nlmsghdr, then nlmsgerr, which begins with a negative error number, or 0.
    match answer[..length].get(16..20).and_then(|e| e.first_chunk()) {
        Some(error) => match i32::from_ne_bytes(*error) {
            0 => Ok(()),
            errno => Err(Errno::from_raw(-errno)),
        },
        None => Err(Errno::EPROTO),
    }
}

/// RTM_SETLINK with IFLA_TXQLEN: nlmsghdr, ifinfomsg, one attribute.
fn set_link(index: u32, packets: u32) -> Vec<u8> {
    const LENGTH: u32 = 16 + 16 + 8;
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).expect("5");
    let mut message = Vec::with_capacity(LENGTH as usize);
    message.extend(LENGTH.to_ne_bytes());
    message.extend(libc::RTM_SETLINK.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]); // sequence and port: one request, one answer
    message.extend([0; 4]); // family and type
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]); // flags, and which of them to change
    message.extend(8u16.to_ne_bytes());
    message.extend(libc::IFLA_TXQLEN.to_ne_bytes());
    message.extend(packets.to_ne_bytes());
    message
}
