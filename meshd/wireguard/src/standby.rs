//! Whether this node needs a userspace device at all, by the rule that the daemon has where its mode is auto: an
//! interface that is there decides by its kind; where there is none, the kernel's own WireGuard is taken if it has one.

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use std::os::fd::AsRawFd;

/// Largest answer: an interface with all of its attributes.
const ANSWER_MAX: usize = 32 << 10;
/// A netlink header, of a message or of an error.
const HEADER: usize = 16;

/// Why there is nothing to do for us; none if there is.
pub(crate) fn reason(ifname: &str) -> anyhow::Result<Option<&'static str>> {
    match link_kind(ifname)?.as_deref() {
        Some("wireguard") => return Ok(Some("the interface is the kernel's own WireGuard")),
        Some(_) => return Ok(None),
        None => {}
    }
    Ok(has_family("wireguard")?.then_some("the kernel has WireGuard of its own"))
}

/// Waits for a signal that ends us.
pub(crate) fn wait(signals: &SignalFd) -> anyhow::Result<()> {
    let mut fds = [nix::poll::PollFd::new(
        std::os::fd::AsFd::as_fd(signals),
        nix::poll::PollFlags::POLLIN,
    )];
    loop {
        match nix::poll::ppoll(&mut fds, None, None) {
            Ok(1..) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("wait for a signal"),
        }
    }
}

/// Kind of an interface (IFLA_INFO_KIND); none if there is no such interface, empty if it has no kind.
pub(crate) fn link_kind(ifname: &str) -> anyhow::Result<Option<String>> {
    let mut body = vec![0; 16]; // ifinfomsg: any family, any index
    push_text(&mut body, libc::IFLA_IFNAME, ifname);
    let answer = ask(SockProtocol::NetlinkRoute, libc::RTM_GETLINK, &body)
        .with_context(|| format!("look for the interface {ifname}"))?;
    let Some(message) = answer else { return Ok(None) };
    let kind = attribute(
        message.get(HEADER + 16..).unwrap_or_default(),
        libc::IFLA_LINKINFO,
    )
    .and_then(|info| attribute(info, libc::IFLA_INFO_KIND))
    .map(text)
    .unwrap_or_default();
    Ok(Some(kind))
}

/// Asks for a generic netlink family, such as the one that WireGuard is set up by. The kernel loads the module for that,
/// as it does when such an interface is made; no interface is.
fn has_family(family: &str) -> anyhow::Result<bool> {
    // genlmsghdr: command, version, reserved.
    let mut body = vec![u8::try_from(libc::CTRL_CMD_GETFAMILY).expect("3"), 1, 0, 0];
    let name = u16::try_from(libc::CTRL_ATTR_FAMILY_NAME).expect("2");
    push_text(&mut body, name, family);
    let control = u16::try_from(libc::GENL_ID_CTRL).expect("16");
    let answer = ask(SockProtocol::NetlinkGeneric, control, &body);
    Ok(answer
        .with_context(|| format!("ask the kernel for {family}"))?
        .is_some())
}

/// One request, one answer; none if the kernel knows no such thing.
fn ask(protocol: SockProtocol, kind: u16, body: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        protocol,
    )
    .context("open a netlink socket")?;
    let length = u32::try_from(HEADER + body.len()).context("a request of that size")?;
    let mut request = Vec::with_capacity(HEADER + body.len());
    request.extend(length.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(u16::try_from(libc::NLM_F_REQUEST).expect("1").to_ne_bytes());
    request.extend([0; 8]); // sequence and port: one request, one answer
    request.extend(body);
    send(fd.as_raw_fd(), &request, MsgFlags::empty()).context("send a request to the kernel")?;
    let mut answer = vec![0; ANSWER_MAX];
    let length = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty()).context("read the kernel's answer")?;
    answer.truncate(length);
    let Some(kind) = answer.get(4..6).and_then(|b| b.first_chunk()) else {
        bail!("the kernel's answer is too short");
    };
    if i32::from(u16::from_ne_bytes(*kind)) != libc::NLMSG_ERROR {
        return Ok(Some(answer));
    }
    // nlmsgerr begins with a negative error number.
    match answer.get(HEADER..HEADER + 4).and_then(|b| b.first_chunk()) {
        Some(error) => match Errno::from_raw(i32::from_ne_bytes(*error).wrapping_neg()) {
            Errno::ENOENT | Errno::ENODEV => Ok(None),
            errno => Err(errno).context("the kernel refuses"),
        },
        None => bail!("the kernel's error is too short"),
    }
}

/// An attribute with a text, its terminator included, padded to four bytes.
fn push_text(to: &mut Vec<u8>, kind: u16, text: &str) {
    let length = u16::try_from(4 + text.len() + 1).expect("names are short");
    to.extend(length.to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(text.as_bytes());
    to.push(0);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// The attribute of this kind among those in `bytes`.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    // The two upper bits are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
    const KIND: u16 = 0x3fff;
    while let (Some(length), Some(kind)) = (bytes.first_chunk::<2>(), bytes.get(2..4)) {
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = bytes.get(4..length)?;
        if u16::from_ne_bytes(*kind.first_chunk()?) & KIND == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_is_there_is_told_from_one_that_is_not() {
        assert!(has_family("nlctrl").unwrap(), "the family of families");
        assert!(!has_family("no-such-one").unwrap());
    }

    #[test]
    fn attributes_are_found_and_damage_ends_the_search() {
        let mut bytes = Vec::new();
        push_text(&mut bytes, 3, "first");
        push_text(&mut bytes, 1 | 0x8000, "tun");
        assert_eq!(attribute(&bytes, 1).map(text).as_deref(), Some("tun"));
        assert_eq!(attribute(&bytes, 2), None);
        assert_eq!(attribute(&bytes[..bytes.len() - 5], 1), None, "cut short");
        assert_eq!(attribute(&[0; 8], 1), None, "of no length");
    }
}
