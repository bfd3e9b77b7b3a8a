//! Many rtnetlink messages in one system call. The kernel carries them out one after another within `sendmsg` and has
//! every answer ready when that returns: for a pod that is attached, three calls instead of thirty.
//!
//! The messages are written by hand or by nlink's builders; nlink's own batches can neither change nor look at a link, and
//! belong to its async connection, which a thread that has entered a pod's namespace would need a runtime for.

pub(crate) mod message;
pub(crate) mod veth;

use crate::error::{Context, OpError, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use nlink::netlink::MessageBuilder;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

/// What the kernel has not answered by then, it does not answer. Another's long work under the kernel's lock is waited for
/// within `sendmsg`, not here.
const PATIENCE: TimeVal = TimeVal::new(5, 0);
/// Longer than any answer to a message of a batch; those of dumps are cut to fit.
const ANSWER_MAX: usize = 32 << 10;
const HEADER: usize = 16;
/// Where a header has the sequence number.
const SEQUENCE: usize = 8;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// A socket in the network namespace that its maker was in; it can be used from any thread.
pub(crate) struct Socket {
    fd: OwnedFd,
    /// Sequence number of the next message. None is used again: what was left unread when a receive failed is told from
    /// the answer to another message.
    next: AtomicU32,
}

/// Messages that are to be sent together, each with what it tries, for errors.
#[derive(Default)]
pub(crate) struct Batch {
    messages: Vec<Vec<u8>>,
    tries: Vec<String>,
}

impl Batch {
    /// Adds a message; `what` reads like "set eth0 up".
    pub(crate) fn push(&mut self, message: MessageBuilder, what: impl Into<String>) {
        self.messages.push(message.finish());
        self.tries.push(what.into());
    }

    /// The messages, numbered from here on.
    fn numbered(&self, first: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (message, number) in self.messages.iter().zip((0..).map(|n| first.wrapping_add(n))) {
            let start = bytes.len();
            bytes.extend(message);
            if let Some(seq) = bytes.get_mut(start + SEQUENCE..start + HEADER - 4) {
                seq.copy_from_slice(&number.to_ne_bytes());
            }
        }
        bytes
    }
}

/// What came of each message of a batch: nothing or the object that it asked for.
pub(crate) struct Answers {
    answers: Vec<Answer>,
}

type Answer = Result<Option<Vec<u8>>>;

impl Answers {
    /// The first failure, in order.
    pub(crate) fn all(&mut self) -> Result<()> {
        let failed = self.answers.iter_mut().find(|a| a.is_err());
        failed.map_or(Ok(()), |a| std::mem::replace(a, Ok(None)).map(drop))
    }

    /// What the message of this place was answered with.
    pub(crate) fn take(&mut self, place: usize) -> Answer {
        let answer = self.answers.get_mut(place);
        answer.map_or(Ok(None), |a| std::mem::replace(a, Ok(None)))
    }
}

impl Socket {
    /// Opens one in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Self> {
        let what = || "open a netlink socket";
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            flags,
            SockProtocol::NetlinkRoute,
        );
        let fd = fd.doing(what)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).doing(what)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &PATIENCE).doing(what)?;
        let next = AtomicU32::new(1);
        Ok(Self { fd, next })
    }

    /// By what the kernel names it in what it tells others.
    pub(crate) fn port(&self) -> Result<u32> {
        let name = getsockname::<NetlinkAddr>(self.fd.as_raw_fd());
        Ok(name.doing(|| "look at a netlink socket")?.pid())
    }

    /// Has every message carried out, also those after one that fails. An error is the socket's own.
    pub(crate) fn execute(&self, batch: &Batch) -> Result<Answers> {
        let what = || batch.tries.first().cloned().unwrap_or_default();
        let first = self.send(batch).doing(what)?;
        let mut answers: Vec<Option<Answer>> = batch.tries.iter().map(|_| None).collect();
        let mut buffer = vec![0; ANSWER_MAX];
        while answers.iter().any(Option::is_none) {
            let length = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other.doing(what)?,
            };
            for (kind, number, body) in messages(buffer.get(..length).unwrap_or_default()) {
                let place = number.wrapping_sub(first) as usize;
                let tried = batch.tries.get(place);
                if let (Some(slot), Some(tried)) = (answers.get_mut(place), tried) {
                    *slot = Some(answer(kind, body, tried));
                }
            }
        }
        Ok(Answers {
            answers: answers.into_iter().flatten().collect(),
        })
    }

    /// Sends the batch; the number of its first message.
    fn send(&self, batch: &Batch) -> nix::Result<u32> {
        let count = u32::try_from(batch.messages.len()).unwrap_or(u32::MAX);
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        send(self.fd.as_raw_fd(), &batch.numbered(first), MsgFlags::empty())?;
        Ok(first)
    }

    /// Every object of a dump; `look` is given each body.
    pub(crate) fn dump(
        &self,
        message: MessageBuilder,
        what: &str,
        mut look: impl FnMut(&[u8]),
    ) -> Result<()> {
        let mut batch = Batch::default();
        batch.push(message, what);
        let asked = self.send(&batch).doing(|| what)?;
        let mut buffer = vec![0; ANSWER_MAX];
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other.doing(|| what)?,
            };
            let messages = messages(buffer.get(..length).unwrap_or_default());
            for (kind, _, body) in messages.filter(|(_, number, _)| *number == asked) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return answer(kind, body, what).map(drop),
                    _ => look(body),
                }
            }
        }
    }
}

fn answer(kind: u16, body: &[u8], tried: &str) -> Answer {
    if kind != NLMSG_ERROR {
        return Ok(Some(body.to_vec()));
    }
    match body.first_chunk::<4>().map(|e| i32::from_ne_bytes(*e)) {
        Some(0) => Ok(None),
        Some(error) => Err(Errno::from_raw(-error)).doing(|| tried),
        None => Err(OpError::plain(format!(
            "cannot {tried}: the kernel's answer is cut short"
        ))),
    }
}

/// Type, sequence number and body of each message.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<HEADER>()?;
        let [a, b, c, d, kind_low, kind_high, _, _, e, f, g, h, ..] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let number = u32::from_ne_bytes([e, f, g, h]);
        Some((u16::from_ne_bytes([kind_low, kind_high]), number, body))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As after a receive that failed: the answer comes all the same, and is found by the next who asks.
    #[test]
    fn an_answer_that_was_left_unread_is_nobody_elses() {
        let socket = Socket::open().unwrap();
        let look = |name: &str| {
            let mut batch = Batch::default();
            batch.push(message::look(name), format!("look for {name}"));
            batch
        };
        socket.send(&look("lo")).unwrap();
        let other = socket.execute(&look("not-there")).unwrap().take(0);
        assert_eq!(other.unwrap_err().errno, Some(Errno::ENODEV as i32));
        socket.send(&look("not-there")).unwrap();
        let mut bodies = Vec::new();
        let dumped = socket.dump(message::dump_links(), "list interfaces", |body| {
            bodies.push(message::Link::read(body).unwrap().name);
        });
        dumped.unwrap();
        assert!(bodies.contains(&"lo".to_owned()), "{bodies:?}");
        assert!(socket.execute(&look("lo")).unwrap().take(0).unwrap().is_some());
    }
}
