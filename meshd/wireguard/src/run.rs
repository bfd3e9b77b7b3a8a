//! The loop: waits for whatever comes first, hands it to the device, carries out what the device wants.

mod configure;

use crate::args::Args;
use crate::control::Control;
use crate::links::Links;
use crate::tun::{Read, Tun};
use crate::udp::{Family, Sockets};
use crate::{background, clock};
use anyhow::Context;
use meshd_wireguard_proto::{Device, DropReason};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use ring::rand::{SecureRandom, SystemRandom};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use zeroize::Zeroizing;

/// Reads of one source before the others get their turn.
const TURN: usize = 16;

pub(crate) struct Runtime {
    device: Device,
    tun: Tun,
    /// Index of its interface.
    tunnel: u32,
    sockets: Sockets,
    fwmark: u32,
    control: Control,
    signals: SignalFd,
    links: Links,
    ifname: String,
    /// Of packets and datagrams, by reason.
    dropped: BTreeMap<DropReason, u64>,
    reports: bool,
}

/// What there is to do.
#[derive(Default)]
struct Ready {
    tun: bool,
    v4: bool,
    v6: bool,
    listener: bool,
    signal: bool,
    links: bool,
    /// Indices of connections.
    connections: Vec<usize>,
}

impl Runtime {
    /// Opens the interface, then the sockets; the control socket last, so that whoever finds it finds a device that
    /// works.
    pub(crate) fn start(args: &Args) -> anyhow::Result<Self> {
        let signals = block_signals()?;
        let tun = Tun::open(&args.ifname, !args.no_offload)?;
        let tunnel = tun.index()?;
        let sockets = Sockets::bind(0, 0).context("bind a UDP port for WireGuard")?;
        let mut device = Device::new(None, seed()?, clock::now());
        device.set_mtu(tun.mtu()?);
        let links = Links::watch()?;
        let control = Control::listen(&args.socket_dir, &args.ifname)?;
        tracing::info!(ifname = args.ifname, port = sockets.port(), "ready");
        Ok(Self {
            device,
            tun,
            tunnel,
            sockets,
            fwmark: 0,
            control,
            signals,
            links,
            ifname: args.ifname.clone(),
            dropped: BTreeMap::new(),
            reports: args.report,
        })
    }

    /// Until a signal, or until the interface is gone.
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        if self.reports {
            background::report()?;
        }
        loop {
            let ready = self.wait()?;
            if ready.signal && self.take_signal() {
                break;
            }
            if ready.v4 {
                self.network_to_tun(Family::V4);
            }
            if ready.v6 {
                self.network_to_tun(Family::V6);
            }
            if ready.tun && !self.tun_to_network()? {
                tracing::info!(ifname = self.ifname, "the interface was deleted");
                break;
            }
            let now = clock::now();
            if self.device.poll_timeout().is_some_and(|at| at <= now.boot) {
                self.device.handle_timeout(now);
                self.flush();
            }
            if ready.links {
                self.links.drain();
                self.device.set_mtu(self.tun.mtu().unwrap_or(0));
            }
            self.serve(&ready);
        }
        for (reason, count) in &self.dropped {
            tracing::info!(count, "dropped: {reason}");
        }
        Ok(())
    }

    /// Sleeps until there is something to do.
    fn wait(&mut self) -> anyhow::Result<Ready> {
        let now = clock::now().boot;
        let until = [self.device.poll_timeout(), self.control.tidy(now)];
        let timeout = until
            .into_iter()
            .flatten()
            .min()
            .map(|at| TimeSpec::from_duration(at.since(now)));
        let mut fds = vec![
            PollFd::new(self.tun.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.links.as_fd(), PollFlags::POLLIN),
        ];
        let v4 = push(&mut fds, self.sockets.fd(Family::V4), PollFlags::POLLIN);
        let v6 = push(&mut fds, self.sockets.fd(Family::V6), PollFlags::POLLIN);
        let listener = push(&mut fds, Some(self.control.fd()), PollFlags::POLLIN);
        let first = fds.len();
        for connection in self.control.connections() {
            let wanted = if connection.is_sending() {
                PollFlags::POLLOUT
            } else {
                PollFlags::POLLIN
            };
            fds.push(PollFd::new(connection.fd(), wanted));
        }
        match ppoll(&mut fds, timeout, None) {
            Ok(0) | Err(Errno::EINTR) => return Ok(Ready::default()),
            Ok(_) => {}
            Err(errno) => return Err(errno).context("wait for packets"),
        }
        let is = |at: usize| fds[at].any().unwrap_or(false);
        Ok(Ready {
            tun: is(0),
            signal: is(1),
            links: is(2),
            v4: v4.is_some_and(is),
            v6: v6.is_some_and(is),
            listener: listener.is_some_and(is),
            connections: (first..fds.len())
                .filter(|at| is(*at))
                .map(|at| at - first)
                .collect(),
        })
    }

    fn network_to_tun(&mut self, family: Family) {
        for _ in 0..TURN {
            let now = clock::now();
            let (device, dropped, tunnel) = (&mut self.device, &mut self.dropped, self.tunnel);
            let received = self.sockets.receive(family, |from, interface, datagram| {
                // A peer that sent to us through the tunnel would have its endpoint there: each packet to it would
                // come back to be sent once more, larger each time, for ever.
                let handled = if interface == Some(tunnel) {
                    Err(DropReason::Looped)
                } else {
                    device.handle_datagram(now, from, datagram)
                };
                if let Err(reason) = handled {
                    *dropped.entry(reason).or_default() += 1;
                }
            });
            self.flush();
            match received {
                Ok(true) => {}
                Ok(false) => return,
                // Of an earlier send: the peer's host has no such port, and the like.
                Err(error) => tracing::debug!(%error, "receive from the network"),
            }
        }
    }

    /// False when the interface is gone.
    fn tun_to_network(&mut self) -> anyhow::Result<bool> {
        for _ in 0..TURN {
            let count = match self.tun.read()? {
                Read::Packets(count) => count,
                Read::Empty => return Ok(true),
                Read::Gone => return Ok(false),
            };
            let now = clock::now();
            for index in 0..count {
                if let Err(reason) = self.device.handle_packet(now, self.tun.packet(index)) {
                    *self.dropped.entry(reason).or_default() += 1;
                }
            }
            self.flush();
        }
        Ok(true)
    }

    /// Carries out what the device wants.
    fn flush(&mut self) {
        while let Some(packet) = self.device.poll_packet() {
            self.tun.push(&packet);
        }
        self.tun.flush();
        let gone = self.sockets.send(|| self.device.poll_transmit());
        for gone in gone {
            self.device.forget_source(gone.source, gone.to);
        }
    }

    fn serve(&mut self, ready: &Ready) {
        let now = clock::now().boot;
        for index in &ready.connections {
            self.serve_connection(*index, now);
        }
        if ready.listener {
            self.control.accept(now);
        }
    }

    /// Whether it is one that ends us.
    fn take_signal(&mut self) -> bool {
        matches!(self.signals.read_signal(), Ok(Some(_)))
    }
}

fn push<'a>(
    fds: &mut Vec<PollFd<'a>>,
    fd: Option<std::os::fd::BorrowedFd<'a>>,
    wanted: PollFlags,
) -> Option<usize> {
    fds.push(PollFd::new(fd?, wanted));
    Some(fds.len() - 1)
}

pub(crate) fn block_signals() -> anyhow::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.add(Signal::SIGHUP);
    set.thread_block().context("block SIGTERM, SIGINT and SIGHUP")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).context("listen for signals")
}

fn seed() -> anyhow::Result<Zeroizing<[u8; 32]>> {
    let mut seed = Zeroizing::new([0; 32]);
    SystemRandom::new()
        .fill(seed.as_mut_slice())
        .map_err(|_| anyhow::anyhow!("the operating system gives no randomness"))?;
    Ok(seed)
}
