//! Tells when a network interface changed, such as the MTU of ours.

use anyhow::Context;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Changes taken in at a time.
const TURN: usize = 64;

pub(crate) struct Links(OwnedFd);

impl Links {
    pub(crate) fn watch() -> anyhow::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )
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
