//! What probes the network: echo servers, single tries, streams of numbered datagrams, connections, and the neighbour.
//! Sockets are made in the namespace they belong to and used from one runtime.

pub mod connection;
pub mod echo;
pub mod icmp;
pub mod neighbour;
pub mod probe;
pub mod stream;

use meshd_scenario::MARKER;
use socket2::Socket;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::unix::AsyncFd;

/// The marker, a number that no other payload has, and a pattern, cut or filled to `size` bytes; never shorter than
/// marker and number.
pub(crate) fn payload(size: usize) -> Vec<u8> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut bytes = MARKER.to_vec();
    bytes.extend(NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    let head = bytes.len();
    bytes.extend((head..size.max(head)).map(|i| (i % 251) as u8));
    bytes
}

/// Hands a socket to the runtime.
#[allow(unsafe_code)]
pub(crate) fn register(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a Socket owns its descriptor, which stays the same and open as long as the AsyncFd holds it.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}
