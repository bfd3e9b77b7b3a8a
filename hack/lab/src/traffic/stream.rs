//! A stream of numbered datagrams to an echo server.

use crate::netns::Netns;
use crate::plan::ECHO_PORT;
use anyhow::{Context, Result};
use meshd_scenario::{MARKER, StreamReport};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long answers may take after the last datagram was sent.
const PATIENCE: Duration = Duration::from_secs(1);

/// A stream that runs.
pub struct Stream {
    stop: watch::Sender<bool>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<u64>,
}

impl Stream {
    /// Starts one. Call it within a tokio runtime.
    pub fn start(netns: &Netns, to: IpAddr, interval: Duration) -> Result<Self> {
        let socket = netns
            .run(move || open(to))?
            .with_context(|| format!("open a stream's socket in network namespace {}", netns.name()))?;
        let socket = Arc::new(UdpSocket::from_std(socket.into()).context("register a stream's socket")?);
        let (stop, stopped) = watch::channel(false);
        let (sent, total) = watch::channel(None);
        Ok(Self {
            stop,
            sender: tokio::spawn(send(socket.clone(), interval, stopped, sent)),
            receiver: tokio::spawn(receive(socket, total)),
        })
    }

    /// Sends no more, leaves a second for answers.
    pub async fn stop(self) -> Result<StreamReport> {
        let _ = self.stop.send(true);
        Ok(StreamReport {
            sent: self.sender.await.context("the stream's sender")?,
            received: self.receiver.await.context("the stream's receiver")?,
        })
    }
}

fn open(to: IpAddr) -> io::Result<Socket> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.connect(&SocketAddr::new(to, ECHO_PORT).into())?;
    Ok(socket)
}

async fn send(
    socket: Arc<UdpSocket>,
    interval: Duration,
    mut stop: watch::Receiver<bool>,
    total: watch::Sender<Option<u64>>,
) -> u64 {
    let mut clock = tokio::time::interval(interval.max(Duration::from_millis(1)));
    let mut number = 0u64;
    loop {
        tokio::select! {
            _ = stop.changed() => break,
            _ = clock.tick() => {}
        }
        number += 1;
        let mut datagram = MARKER.to_vec();
        datagram.extend(number.to_be_bytes());
        // What the own kernel refuses is lost like any other.
        let _ = socket.send(&datagram).await;
    }
    let _ = total.send(Some(number));
    number
}

async fn receive(socket: Arc<UdpSocket>, mut total: watch::Receiver<Option<u64>>) -> u64 {
    let mut numbers = BTreeSet::new();
    let mut buffer = vec![0; 2048];
    loop {
        tokio::select! {
            got = socket.recv(&mut buffer) => note(&mut numbers, got.ok().map(|length| &buffer[..length])),
            _ = total.changed() => break,
        }
    }
    let sent = total.borrow().unwrap_or(0);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while (numbers.len() as u64) < sent {
        let Ok(got) = tokio::time::timeout_at(deadline, socket.recv(&mut buffer)).await else {
            break;
        };
        note(&mut numbers, got.ok().map(|length| &buffer[..length]));
    }
    numbers.len() as u64
}

fn note(numbers: &mut BTreeSet<u64>, datagram: Option<&[u8]>) {
    let number = datagram
        .and_then(|bytes| bytes.strip_prefix(MARKER.as_slice()))
        .and_then(|rest| <[u8; 8]>::try_from(rest).ok());
    if let Some(number) = number {
        numbers.insert(u64::from_be_bytes(number));
    }
}
