//! Notices that something changed by another hand: netlink multicast, and the device's process going away.

mod stir;

use crate::config::DriverConfig;
use crate::device::UapiClient;
use crate::error::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

/// Changes come in bursts: how long to wait for the end of one.
const SETTLE: Duration = Duration::from_millis(100);
/// Shortest pause between two looks, however much changes.
const INTERVAL: Duration = Duration::from_millis(250);
/// A look takes longer the more there is: at most one part in so many of the time is spent on looking.
const SHARE: u32 = 20;
/// The same while somebody keeps on changing the firewall's own table.
const SHARE_URGENT: u32 = 2;
/// Pause between tries to reach the device's socket while nobody answers: a try is one system call, and what is sent to
/// the node is lost until its device is set up again.
const RETRY: Duration = Duration::from_millis(200);
/// Longest pause before a server is tried again that ends connections.
const ENDED_MAX: Duration = Duration::from_secs(5);

/// RTNLGRP_* of linux/rtnetlink.h as a mask: links; addresses, routes, rules and parameters of both families.
const ROUTE_GROUPS: u32 =
    group(1) | group(5) | group(7) | group(8) | group(9) | group(11) | group(19) | group(24) | group(25);
/// NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h.
const NFTABLES_GROUPS: u32 = group(7);

const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

/// Tells when to look again.
pub(crate) struct Watcher {
    change: Arc<Notify>,
    /// Of the firewall's own table: while it is away, nothing but routes keeps the node closed.
    urgent: Arc<Notify>,
    not_before: Instant,
    not_before_urgent: Instant,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Watcher {
    /// Starts to listen. What our own sockets asked for is not news: given are their port ids, of rtnetlink and of
    /// netfilter, since a port id names a socket within its protocol only.
    pub(crate) fn start(config: &DriverConfig, own: (Vec<u32>, u32)) -> Result<Self> {
        let change = Arc::new(Notify::new());
        let urgent = Arc::new(Notify::new());
        let notes = |is_route, urgent: &Arc<Notify>| Notes {
            is_route,
            change: change.clone(),
            urgent: urgent.clone(),
        };
        let route = listen(SockProtocol::NetlinkRoute, ROUTE_GROUPS)?;
        let nftables = listen(SockProtocol::NetlinkNetFilter, NFTABLES_GROUPS)?;
        let client = UapiClient::new(config);
        let tasks = vec![
            // Of routes, nothing is urgent.
            tokio::spawn(watch_netlink(route, own.0, notes(true, &change))),
            tokio::spawn(watch_netlink(nftables, vec![own.1], notes(false, &urgent))),
            tokio::spawn(watch_device(client, change.clone())),
        ];
        Ok(Self {
            change,
            urgent,
            not_before: Instant::now(),
            not_before_urgent: Instant::now(),
            tasks,
        })
    }

    /// Waits until something changed and has settled; a change of the firewall's own table is not waited for. Safe to
    /// be dropped and called again: a change that came meanwhile is kept until this returns.
    pub(crate) async fn changed(&mut self) {
        tokio::select! {
            () = after(&self.urgent, Duration::ZERO, self.not_before_urgent) => {}
            () = after(&self.change, SETTLE, self.not_before) => {}
        }
    }

    /// The last look came to nothing: another is due after the pause.
    pub(crate) fn again(&self) {
        self.change.notify_one();
    }

    /// A look was taken, and took so long.
    pub(crate) fn looked(&mut self, took: Duration) {
        self.not_before = Instant::now() + INTERVAL.max(took * SHARE);
        self.not_before_urgent = Instant::now() + took * SHARE_URGENT;
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Waits for a note, then so long, then until that moment.
async fn after(note: &Notify, settle: Duration, moment: Instant) {
    note.notified().await;
    // Dropped from here on, the change would be lost: put it back until it is told.
    let keep = Keep(note);
    sleep(settle).await;
    sleep_until(moment).await;
    std::mem::forget(keep);
}

/// Where changes are noted.
struct Notes {
    /// Whether it is rtnetlink that is listened to.
    is_route: bool,
    change: Arc<Notify>,
    urgent: Arc<Notify>,
}

struct Keep<'a>(&'a Notify);

impl Drop for Keep<'_> {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

fn listen(protocol: SockProtocol, groups: u32) -> Result<AsyncFd<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd =
        socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).doing(|| "open a netlink socket")?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups)).doing(|| "listen for changes of the kernel")?;
    register(fd).doing(|| "listen for changes of the kernel")
}

#[allow(unsafe_code)]
fn register(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open and the same for as long as it lives, and the AsyncFd owns it.
    let registered = unsafe { AsyncFd::register(fd) };
    registered.map_err(std::io::Error::from)
}

async fn watch_netlink(socket: AsyncFd<OwnedFd>, own: Vec<u32>, notes: Notes) {
    let mut buffer = vec![0; 32 << 10];
    let is_route = notes.is_route;
    loop {
        let Ok(mut ready) = socket.readable().await else {
            return;
        };
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) if buffer.get(..length).is_some_and(|b| only_from(b, &own)) => {}
            Ok(length) if is_route && buffer.get(..length).is_some_and(stir::is_all) => {}
            Ok(length) if buffer.get(..length).is_some_and(names_our_table) => notes.urgent.notify_one(),
            // Messages that the kernel had to drop are news as well.
            Ok(_) | Err(Errno::ENOBUFS) => notes.change.notify_one(),
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(e) => {
                tracing::warn!("no longer told of changes of the kernel: {e}");
                return;
            }
        }
    }
}

/// Whether every message was caused by one of these sockets (`nlmsg_pid`, the fifth word's second half of a header of
/// length, type and flags, sequence, port id).
pub(crate) fn only_from(mut messages: &[u8], own: &[u32]) -> bool {
    let word = |bytes: &[u8], at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    while !messages.is_empty() {
        let (Some(length), Some(port)) = (word(messages, 0), word(messages, 12)) else {
            return false;
        };
        let aligned = (length as usize).next_multiple_of(4);
        if length < 16 || !own.contains(&port) {
            return false;
        }
        messages = messages.get(aligned..).unwrap_or_default();
    }
    true
}

/// Whether a message of nftables is about the firewall's table: its name is the first attribute of all that are about
/// one. Behind the netlink header there are four bytes of family and version (`nfgenmsg`).
fn names_our_table(mut messages: &[u8]) -> bool {
    const HEADER: usize = 16 + 4;
    const NAME: u16 = 1;
    while let Some(length) = messages
        .first_chunk::<4>()
        .map(|b| u32::from_ne_bytes(*b) as usize)
    {
        let message = messages.get(..length).unwrap_or_default();
        let attribute = message
            .get(HEADER..)
            .and_then(|a| Some((a.first_chunk::<4>()?, a.get(4..)?)));
        if let Some(([low, high, kind @ ..], rest)) = attribute {
            let end = usize::from(u16::from_ne_bytes([*low, *high])).saturating_sub(4);
            let name = rest.get(..end).and_then(|name| name.strip_suffix(&[0]));
            if u16::from_ne_bytes(*kind) == NAME && name == Some(crate::firewall::TABLE.as_bytes()) {
                return true;
            }
        }
        messages = messages
            .get(length.max(16).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    false
}

/// Holds a connection to the device's socket: that it ends says that the process restarted or died, and lost its keys
/// and peers; that there is one again, that it can be given them. A server that ends idle connections is asked less and
/// less often.
async fn watch_device(client: UapiClient, change: Arc<Notify>) {
    let mut pause = RETRY;
    let mut was_away = false;
    loop {
        let began = Instant::now();
        let is_there = || {
            if was_away {
                change.notify_one();
            }
        };
        let ended = client.until_gone(is_there).await.is_ok();
        // Also after an end: the look that follows it may come before the next process does.
        was_away = true;
        if ended {
            change.notify_one();
        }
        pause = if !ended || began.elapsed() > ENDED_MAX {
            RETRY
        } else {
            (pause * 2).min(ENDED_MAX)
        };
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(port: u32) -> Vec<u8> {
        let mut bytes = vec![0; 20];
        bytes[..4].copy_from_slice(&18u32.to_ne_bytes());
        bytes[12..16].copy_from_slice(&port.to_ne_bytes());
        bytes
    }

    #[test]
    fn messages_about_our_table_are_told_from_others() {
        let about = |table: &str| {
            let mut bytes = message(9);
            let length = u16::try_from(4 + table.len() + 1).unwrap();
            bytes.extend(length.to_ne_bytes());
            bytes.extend(1u16.to_ne_bytes());
            bytes.extend(table.bytes());
            bytes.resize((bytes.len() + 1).next_multiple_of(4), 0);
            let length = u32::try_from(bytes.len()).unwrap();
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes
        };
        assert!(names_our_table(&about("meshd")));
        assert!(names_our_table(&[about("kube-proxy"), about("meshd")].concat()));
        assert!(!names_our_table(&about("meshd2")));
        assert!(!names_our_table(&about("filter")));
        assert!(!names_our_table(&message(9)));
        assert!(!names_our_table(&[0; 64]));
        assert!(!names_our_table(&[1, 2]));
    }

    #[test]
    fn own_messages_are_told_from_others() {
        assert!(only_from(&message(7), &[7]));
        assert!(!only_from(&message(9), &[7]));
        assert!(!only_from(&[message(7), message(0)].concat(), &[7]));
        assert!(only_from(&[message(7), message(8)].concat(), &[7, 8]));
        assert!(!only_from(&[1, 2, 3], &[7]));
    }
}
