//! Echo servers (RFC 862) over UDP and TCP, one of each in every pod and node.

use crate::netns::Netns;
use crate::plan::ECHO_PORT;
use anyhow::{Context, Result};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

/// The last payloads that are remembered, so that whoever expects none can ask.
const REMEMBERED: usize = 256;
/// Connections that are served at a time.
const CONNECTIONS_MAX: usize = 64;

/// The servers of one namespace; they end when this is dropped.
pub struct Echo {
    tasks: Vec<JoinHandle<()>>,
    heard: Arc<Mutex<VecDeque<Vec<u8>>>>,
}

impl Echo {
    /// Starts them. Call it within a tokio runtime.
    pub fn start(netns: &Netns) -> Result<Self> {
        let (udp, tcp) = netns
            .run(|| -> io::Result<_> { Ok((udp_socket()?, tcp_socket()?)) })?
            .with_context(|| format!("open echo servers in network namespace {}", netns.name()))?;
        let heard = Arc::new(Mutex::new(VecDeque::new()));
        let udp = super::register(udp).context("register the UDP echo server")?;
        let tcp = tokio::net::TcpListener::from_std(tcp.into()).context("register the TCP echo server")?;
        Ok(Self {
            tasks: vec![
                tokio::spawn(serve_udp(udp, heard.clone())),
                tokio::spawn(serve_tcp(tcp)),
            ],
            heard,
        })
    }

    /// Whether this payload arrived by UDP.
    #[must_use]
    pub fn heard(&self, payload: &[u8]) -> bool {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.iter().any(|p| p == payload)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn udp_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(false)?;
    socket.set_nonblocking(true)?;
    // The answer must come from the address that was asked.
    setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, ECHO_PORT)).into())?;
    Ok(socket)
}

fn tcp_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, ECHO_PORT)).into())?;
    socket.listen(128)?;
    Ok(socket)
}

async fn serve_udp(socket: AsyncFd<Socket>, heard: Arc<Mutex<VecDeque<Vec<u8>>>>) {
    let mut buffer = vec![0; 65536];
    loop {
        let Ok(mut ready) = socket.readable().await else {
            return;
        };
        // An ICMP error of an earlier answer, or no room: the prober notices.
        let Ok(Ok(length)) = ready.try_io(|socket| answer(socket.get_ref(), &mut buffer)) else {
            continue;
        };
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.len() == REMEMBERED {
            heard.pop_front();
        }
        heard.push_back(buffer[..length].to_vec());
    }
}

/// Sends one datagram back where it came from, from the address it was sent to.
fn answer(socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    let mut space = nix::cmsg_space!(libc::in6_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrIn6>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::empty(),
    )?;
    let (from, length) = (message.address, message.bytes);
    let info = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(info),
        _ => None,
    });
    let control: Vec<_> = info.iter().map(ControlMessage::Ipv6PacketInfo).collect();
    let parts = [IoSlice::new(&buffer[..length])];
    sendmsg(
        socket.as_raw_fd(),
        &parts,
        &control,
        MsgFlags::empty(),
        from.as_ref(),
    )?;
    Ok(length)
}

async fn serve_tcp(listener: tokio::net::TcpListener) {
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let Ok((mut stream, _)) = listener.accept().await else {
            continue;
        };
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            let mut buffer = vec![0; 16384];
            while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                if stream.write_all(&buffer[..length]).await.is_err() {
                    break;
                }
            }
            drop(place);
        });
    }
}
