//! The host's end of a pod's veth pair, deleted without a daemon: one message of rtnetlink(7), which takes the other end
//! and all routes to it along.

use crate::deadline::left_as_timeval;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt,
};
use std::os::fd::AsRawFd;
use std::time::Instant;

const RTM_DELLINK: u16 = 17;
/// Request, with an acknowledgement.
const FLAGS: u16 = 1 | 4;
const IFLA_IFNAME: u16 = 3;
const NLMSG_ERROR: u16 = 2;
/// struct nlmsghdr, and behind it struct ifinfomsg.
const HEADER: usize = 16;

/// Deletes the interface of this name by `deadline`; one that is not there is deleted.
pub fn delete(name: &str, deadline: Instant) -> Result<(), Errno> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    setsockopt(&netlink, sockopt::ReceiveTimeout, &left_as_timeval(deadline))?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(netlink.as_raw_fd(), &request(name), &kernel, MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    match errno(&answer[..length]) {
        Some(0) => Ok(()),
        Some(negative) => match Errno::from_raw(-negative) {
            Errno::ENODEV => Ok(()),
            errno => Err(errno),
        },
        None => Err(Errno::EBADMSG),
    }
}

fn request(name: &str) -> Vec<u8> {
    // struct rtattr, then the name and its terminator; both begin at a multiple of four.
    let attribute = 4 + name.len() + 1;
    let length = HEADER + 16 + attribute.next_multiple_of(4);
    let mut message = Vec::with_capacity(length);
    message.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(RTM_DELLINK.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 16]);
    message.extend(u16::try_from(attribute).unwrap_or(u16::MAX).to_ne_bytes());
    message.extend(IFLA_IFNAME.to_ne_bytes());
    message.extend(name.as_bytes());
    message.resize(length, 0);
    message
}

/// Of an acknowledgement: 0, or a negative error number.
fn errno(message: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let number = message.get(HEADER..HEADER + 4)?.try_into().ok()?;
    (kind == NLMSG_ERROR).then(|| i32::from_ne_bytes(number))
}
