//! Generic netlink in buffers that are wiped: what WireGuard is told, and what it answers, holds the private key.
//!
//! The kernel does its work within the call that sends a request, so its answer is there when it is asked for: nothing
//! waits here, and whoever calls has a thread of its own.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;
use nlink::netlink::attr::AttrIter;
use std::os::fd::{AsRawFd, OwnedFd};
use zeroize::Zeroizing;

/// Longest request: a peer with 400 allowed IPs.
const REQUEST_MAX: usize = 16 << 10;
/// Longest datagram of an answer: the kernel makes none longer than this.
const DATAGRAM_MAX: usize = 32 << 10;
/// Longest answer. A peer takes about 200 bytes and 40 for each allowed IP.
const ANSWER_MAX: usize = 16 << 20;
/// After this the kernel does not answer at all.
const TIMEOUT: TimeVal = TimeVal::new(5, 0);

/// Length, type and flags, sequence, port: `nlmsghdr`.
const HEADER: usize = 16;
/// Command, version, two of padding: `genlmsghdr`.
const GENERIC_HEADER: usize = 4;
/// Of both WireGuard's family and the controller's.
const VERSION: u8 = 1;
const ERROR: u16 = libc::NLMSG_ERROR as u16;
const DONE: u16 = libc::NLMSG_DONE as u16;
const INTERRUPTED: u16 = libc::NLM_F_DUMP_INTR as u16;
const NESTED: u16 = libc::NLA_F_NESTED as u16;

/// What a request wants to have answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    /// That it is done, and what comes before that.
    Done = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as isize,
    /// All that there is.
    Dump = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as isize,
}

/// A request, attribute by attribute.
pub(super) struct Request {
    /// Of full capacity from the start: growing would leave copies behind.
    bytes: Zeroizing<Vec<u8>>,
    is_too_long: bool,
}

impl Request {
    fn new(family: u16, command: u8, wants: Wants) -> Self {
        let mut request = Self {
            bytes: Zeroizing::new(Vec::with_capacity(REQUEST_MAX)),
            is_too_long: false,
        };
        // Length and sequence are known when it is sent; the port is the kernel's own.
        request.push(&[0; 4]);
        request.push(&family.to_ne_bytes());
        request.push(&(wants as u16).to_ne_bytes());
        request.push(&[0; 8]);
        request.push(&[command, VERSION, 0, 0]);
        request
    }

    /// Adds an attribute.
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind, |request| request.push(value));
    }

    /// Adds an attribute that consists of attributes.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.attribute(kind | NESTED, fill);
    }

    fn attribute(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.push(&[0; 2]);
        self.push(&kind.to_ne_bytes());
        fill(self);
        let length = self.bytes.len() - start;
        let padding = length.next_multiple_of(4) - length;
        self.write(start, &u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
        self.push(&[0; 3][..padding]);
    }

    fn push(&mut self, bytes: &[u8]) {
        self.is_too_long |= self.bytes.len() + bytes.len() > REQUEST_MAX;
        if !self.is_too_long {
            self.bytes.extend_from_slice(bytes);
        }
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        // What is not there belongs to a request that is too long, and is not sent.
        if let Some(place) = self.bytes.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    /// Its attributes.
    #[cfg(test)]
    pub(super) fn attributes(&self) -> &[u8] {
        &self.bytes[HEADER + GENERIC_HEADER..]
    }
}

/// Speaks with one family.
pub(super) struct Socket {
    fd: OwnedFd,
    family: u16,
    sequence: u32,
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread and asks for the family's number.
    pub(super) fn open(family: &str) -> nix::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )?;
        // With the kernel, so that nobody else can answer.
        connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TIMEOUT)?;
        let mut socket = Self {
            fd,
            family: libc::GENL_ID_CTRL as u16,
            sequence: 0,
        };
        let mut request = socket.request(libc::CTRL_CMD_GETFAMILY as u8, Wants::Done);
        request.attribute(libc::CTRL_ATTR_FAMILY_NAME as u16, |r| {
            r.push(family.as_bytes());
            r.push(&[0]);
        });
        let mut number = None;
        socket.ask(request, |attributes| {
            let wanted = libc::CTRL_ATTR_FAMILY_ID as u16;
            let (_, value) = AttrIter::new(attributes).find(|(kind, _)| *kind == wanted)?;
            number = Some(u16::from_ne_bytes(*value.first_chunk()?));
            Some(())
        })?;
        socket.family = number.ok_or(Errno::ENOENT)?;
        Ok(socket)
    }

    /// Begins a request.
    pub(super) fn request(&self, command: u8, wants: Wants) -> Request {
        Request::new(self.family, command, wants)
    }

    /// Sends the request and hands over the attributes of each message of its answer; None says that a message is not
    /// what it should be. EINTR says that what was asked for changed while the kernel told it.
    pub(super) fn ask(
        &mut self,
        mut request: Request,
        mut message: impl FnMut(&[u8]) -> Option<()>,
    ) -> nix::Result<()> {
        if request.is_too_long {
            return Err(Errno::EMSGSIZE);
        }
        self.sequence += 1;
        let length = u32::try_from(request.bytes.len()).map_err(|_| Errno::EMSGSIZE)?;
        request.write(0, &length.to_ne_bytes());
        request.write(8, &self.sequence.to_ne_bytes());
        send(self.fd.as_raw_fd(), &request.bytes, MsgFlags::empty())?;
        drop(request);

        let mut buffer = Zeroizing::new(vec![0; DATAGRAM_MAX]);
        let mut total = 0;
        let mut is_interrupted = false;
        while total <= ANSWER_MAX {
            let received = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT),
                other => other?,
            };
            total += received;
            let mut rest = buffer.get(..received).ok_or(Errno::EMSGSIZE)?;
            while !rest.is_empty() {
                let (head, body, after) = split(rest).ok_or(Errno::EPROTO)?;
                rest = after;
                if head.sequence != self.sequence {
                    continue;
                }
                is_interrupted |= head.flags & INTERRUPTED != 0;
                if matches!(head.kind, ERROR | DONE) {
                    let errno = i32::from_ne_bytes(*body.first_chunk().ok_or(Errno::EPROTO)?);
                    return match errno {
                        0 if is_interrupted => Err(Errno::EINTR),
                        0 => Ok(()),
                        errno => Err(Errno::from_raw(errno.saturating_neg())),
                    };
                }
                let attributes = body.get(GENERIC_HEADER..).ok_or(Errno::EPROTO)?;
                message(attributes).ok_or(Errno::EPROTO)?;
            }
        }
        Err(Errno::EMSGSIZE)
    }
}

struct Head {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// The first message, and what comes after it.
fn split(bytes: &[u8]) -> Option<(Head, &[u8], &[u8])> {
    let word = |at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    let half = |at: usize| Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    let length = usize::try_from(word(0)?).ok()?;
    let head = Head {
        kind: half(4)?,
        flags: half(6)?,
        sequence: word(8)?,
    };
    let body = bytes.get(HEADER..length)?;
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((head, body, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The controller of generic netlink, which every kernel has.
    const CONTROLLER: &str = "nlctrl";

    #[test]
    fn the_kernel_understands_a_request_and_its_answer_is_understood() {
        let mut socket = Socket::open(CONTROLLER).unwrap();
        assert_eq!(i32::from(socket.family), libc::GENL_ID_CTRL);

        let request = socket.request(libc::CTRL_CMD_GETFAMILY as u8, Wants::Dump);
        let mut names = Vec::new();
        let asked = socket.ask(request, |attributes| {
            let name = AttrIter::new(attributes).find(|(k, _)| *k == libc::CTRL_ATTR_FAMILY_NAME as u16);
            names.push(name?.1.to_vec());
            Some(())
        });
        assert_eq!(asked, Ok(()));
        assert!(
            names.len() > 1 && names.contains(&b"nlctrl\0".to_vec()),
            "{names:?}"
        );

        // A second answer is not taken for the first.
        let request = socket.request(libc::CTRL_CMD_GETFAMILY as u8, Wants::Dump);
        assert_eq!(socket.ask(request, |_| None), Err(Errno::EPROTO));
        let mut request = socket.request(libc::CTRL_CMD_GETFAMILY as u8, Wants::Done);
        request.put(libc::CTRL_ATTR_FAMILY_NAME as u16, b"nlctrl\0");
        let mut answers = 0;
        let asked = socket.ask(request, |_| {
            answers += 1;
            Some(())
        });
        assert_eq!((asked, answers), (Ok(()), 1));
    }

    #[test]
    fn what_the_kernel_refuses_is_an_error() {
        let unknown = Socket::open("meshd-nothing").map(drop);
        assert_eq!(unknown, Err(Errno::ENOENT));
        let mut socket = Socket::open(CONTROLLER).unwrap();
        let request = socket.request(250, Wants::Done);
        assert_eq!(socket.ask(request, |_| Some(())), Err(Errno::EOPNOTSUPP));
    }

    #[test]
    fn a_request_never_grows_and_is_not_sent_cut_off() {
        let mut socket = Socket::open(CONTROLLER).unwrap();
        let mut request = socket.request(libc::CTRL_CMD_GETFAMILY as u8, Wants::Done);
        let (begin, capacity) = (request.bytes.as_ptr(), request.bytes.capacity());
        for _ in 0..REQUEST_MAX / 32 {
            request.nest(1, |r| r.put(2, &[0; 25]));
        }
        assert_eq!(
            (request.bytes.as_ptr(), request.bytes.capacity()),
            (begin, capacity)
        );
        assert_eq!(socket.ask(request, |_| Some(())), Err(Errno::EMSGSIZE));
    }

    #[test]
    fn messages_that_are_none_are_errors() {
        let mut message = vec![0; 24];
        message[0] = 20;
        let (_, body, after) = split(&message).unwrap();
        assert_eq!((body.len(), after.len()), (4, 4));
        for length in [0, 15, 25, 255] {
            message[0] = length;
            assert!(split(&message).is_none(), "{length}");
        }
        assert!(split(&message[..3]).is_none());
    }
}
