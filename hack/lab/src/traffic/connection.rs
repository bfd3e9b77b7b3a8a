//! A TCP connection to an echo server that is kept busy: each message must come back before the next is sent.

use crate::netns::Netns;
use crate::plan::ECHO_PORT;
use anyhow::{Context, Result};
use meshd_scenario::MARKER;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long one message may take: what TCP sends again after a loss comes within it.
const PATIENCE: Duration = Duration::from_secs(15);

/// A connection that runs.
pub struct Connection {
    stop: watch::Sender<bool>,
    task: JoinHandle<Messages>,
}

/// What came of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    /// Messages that went there and came back.
    pub exchanged: u64,
    /// The longest that one took.
    pub slowest: Duration,
    /// Why the connection ended before its time.
    pub broken: Option<String>,
}

impl Connection {
    /// Connects, and begins once that is done. Call it within a tokio runtime.
    pub async fn start(netns: &Netns, to: IpAddr, interval: Duration) -> Result<Self> {
        let shown = || format!("connect to {to} from network namespace {}", netns.name());
        let socket = netns.run(move || open(to))?.with_context(shown)?;
        let connected = super::probe::tcp(socket).connect(SocketAddr::new(to, ECHO_PORT));
        let connected = tokio::time::timeout(PATIENCE, connected).await;
        let stream = connected.with_context(shown)?.with_context(shown)?;
        let (stop, stopped) = watch::channel(false);
        Ok(Self {
            stop,
            task: tokio::spawn(exchange(stream, interval, stopped)),
        })
    }

    /// Ends it after the message that is under way.
    pub async fn stop(self) -> Result<Messages> {
        let _ = self.stop.send(true);
        self.task.await.context("the connection's task")
    }
}

fn open(to: IpAddr) -> io::Result<Socket> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

async fn exchange(mut stream: TcpStream, interval: Duration, mut stop: watch::Receiver<bool>) -> Messages {
    let mut clock = tokio::time::interval(interval.max(Duration::from_millis(1)));
    let mut messages = Messages::default();
    loop {
        tokio::select! {
            _ = stop.changed() => return messages,
            _ = clock.tick() => {}
        }
        let begun = tokio::time::Instant::now();
        let one = message(&mut stream, messages.exchanged);
        let outcome = tokio::time::timeout(PATIENCE, one).await;
        messages.slowest = messages.slowest.max(begun.elapsed());
        messages.broken = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {PATIENCE:?}")),
        };
        if messages.broken.is_some() {
            return messages;
        }
        messages.exchanged += 1;
    }
}

async fn message(stream: &mut TcpStream, number: u64) -> io::Result<()> {
    let mut bytes = MARKER.to_vec();
    bytes.extend(number.to_be_bytes());
    stream.write_all(&bytes).await?;
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer).await?;
    if answer == bytes {
        return Ok(());
    }
    Err(io::Error::other("what came back is not what was sent"))
}
