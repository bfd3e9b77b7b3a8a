//! Single tries: ICMP, UDP and TCP, each there and back with a payload that is compared.

use super::icmp;
use crate::netns::Netns;
use crate::plan::ECHO_PORT;
use meshd_scenario::{Outcome, ProbeKind};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A try that is ready to be made: its socket is open in the sender's namespace.
pub struct Try {
    socket: io::Result<Socket>,
    to: IpAddr,
    kind: ProbeKind,
    payload: Vec<u8>,
    timeout: Duration,
}

impl Try {
    /// Opens the socket.
    pub fn open(netns: &Netns, to: IpAddr, kind: ProbeKind, size: usize, timeout: Duration) -> Self {
        let socket = netns
            .run(move || open(to, kind))
            .unwrap_or_else(|gone| Err(io::Error::other(gone)));
        Self {
            socket,
            to,
            kind,
            payload: super::payload(size),
            timeout,
        }
    }

    /// Makes it.
    pub async fn run(self) -> Outcome {
        let socket = match self.socket {
            Ok(socket) => socket,
            Err(error) => return Outcome::Refused(format!("the sender's socket: {error}")),
        };
        let begun = Instant::now();
        let exchange = async {
            match self.kind {
                ProbeKind::Icmp => ping(socket, self.to, &self.payload).await,
                ProbeKind::Udp => datagram(socket, self.to, &self.payload).await,
                ProbeKind::Tcp => connection(socket, self.to, &self.payload).await,
            }
        };
        match tokio::time::timeout(self.timeout, exchange).await {
            Err(_) => Outcome::Silent,
            Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => Outcome::Silent,
            Ok(Err(error)) => Outcome::Refused(error.to_string()),
            Ok(Ok(answer)) if answer == self.payload => Outcome::Answered(begun.elapsed()),
            Ok(Ok(answer)) => Outcome::Garbled(difference(&self.payload, &answer)),
        }
    }
}

fn open(to: IpAddr, kind: ProbeKind) -> io::Result<Socket> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = match (kind, to.is_ipv4()) {
        (ProbeKind::Icmp, true) => Socket::new(domain, Type::RAW, Some(Protocol::ICMPV4))?,
        (ProbeKind::Icmp, false) => Socket::new(domain, Type::RAW, Some(Protocol::ICMPV6))?,
        (ProbeKind::Udp, _) => Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?,
        (ProbeKind::Tcp, _) => Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?,
    };
    socket.set_nonblocking(true)?;
    if kind == ProbeKind::Icmp {
        // Without it a raw socket hears no ICMP error.
        if to.is_ipv4() {
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv4RecvErr, &true)?;
        } else {
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6RecvErr, &true)?;
        }
    }
    Ok(socket)
}

async fn ping(socket: Socket, to: IpAddr, payload: &[u8]) -> io::Result<Vec<u8>> {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let ident = NEXT.fetch_add(1, Ordering::Relaxed);
    socket.connect(&SocketAddr::new(to, 0).into())?;
    let socket = super::register(socket)?;
    let message = icmp::request(to, ident, 1, payload);
    socket
        .async_io(tokio::io::Interest::WRITABLE, |s| s.send(&message))
        .await?;
    let mut buffer = vec![0; 65536];
    loop {
        let length = socket
            .async_io(tokio::io::Interest::READABLE, |s| {
                use std::io::Read;
                (&mut &*s).read(&mut buffer)
            })
            .await?;
        if let Some(answer) = icmp::reply(to, ident, &buffer[..length]) {
            return Ok(answer.to_vec());
        }
    }
}

async fn datagram(socket: Socket, to: IpAddr, payload: &[u8]) -> io::Result<Vec<u8>> {
    let socket = tokio::net::UdpSocket::from_std(socket.into())?;
    socket.connect(SocketAddr::new(to, ECHO_PORT)).await?;
    socket.send(payload).await?;
    let mut buffer = vec![0; 65536];
    let length = socket.recv(&mut buffer).await?;
    buffer.truncate(length);
    Ok(buffer)
}

async fn connection(socket: Socket, to: IpAddr, payload: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = tcp(socket).connect(SocketAddr::new(to, ECHO_PORT)).await?;
    let (mut reader, mut writer) = stream.split();
    let mut answer = vec![0; payload.len()];
    // Both at once: what does not fit into the buffers on the way would stand still otherwise.
    let (_, ()) = tokio::try_join!(reader.read_exact(&mut answer), writer.write_all(payload))?;
    Ok(answer)
}

#[allow(unsafe_code)]
pub(super) fn tcp(socket: Socket) -> tokio::net::TcpSocket {
    // SAFETY: the descriptor is a TCP socket that nobody else holds.
    unsafe { tokio::net::TcpSocket::from_raw_fd(socket.into_raw_fd()) }
}

fn difference(sent: &[u8], got: &[u8]) -> String {
    let at = sent.iter().zip(got).position(|(a, b)| a != b);
    match at {
        Some(at) => format!(
            "{} bytes sent, {} came back, the first other at {at}",
            sent.len(),
            got.len()
        ),
        None => format!("{} bytes sent, {} came back", sent.len(), got.len()),
    }
}
