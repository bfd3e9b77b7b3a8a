//! The message that makes a veth pair (linux/veth.h).

use super::message::{ACK, CREATE, EXCL, IFLA_IFNAME, NEWLINK, link};
use meshd_model::attachment::MacAddr;
use nlink::netlink::MessageBuilder;
use std::os::fd::{AsRawFd, BorrowedFd};

const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
/// `struct ifinfomsg`
const IFINFOMSG: usize = 16;

/// One end of a pair.
pub(crate) struct End<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: MacAddr,
}

/// Makes a pair of one MTU, in bytes, whose second end is in the network namespace; EEXIST if a name is taken in its
/// namespace.
pub(crate) fn create(host: &End<'_>, pod: &End<'_>, netns: BorrowedFd<'_>, mtu: u16) -> MessageBuilder {
    let mut message = link(NEWLINK, ACK | CREATE | EXCL, 0, false);
    describe(&mut message, host, mtu);
    let info = message.nest_start(IFLA_LINKINFO);
    message.append_attr_str(IFLA_INFO_KIND, "veth");
    let data = message.nest_start(IFLA_INFO_DATA);
    let peer = message.nest_start(VETH_INFO_PEER);
    message.append_bytes(&[0; IFINFOMSG]);
    describe(&mut message, pod, mtu);
    message.append_attr(IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes());
    message.nest_end(peer);
    message.nest_end(data);
    message.nest_end(info);
    message
}

fn describe(message: &mut MessageBuilder, end: &End<'_>, mtu: u16) {
    message.append_attr_str(IFLA_IFNAME, end.name);
    message.append_attr(IFLA_ADDRESS, &end.mac.0);
    message.append_attr_u32(IFLA_MTU, u32::from(mtu));
    // Left to itself the kernel makes one for each CPU that could be there, each with a folder of its own in sysfs, and
    // veth takes no lock that more of them would spare.
    message.append_attr_u32(IFLA_NUM_TX_QUEUES, 1);
    message.append_attr_u32(IFLA_NUM_RX_QUEUES, 1);
}
