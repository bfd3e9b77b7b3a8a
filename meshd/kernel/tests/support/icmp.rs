//! ICMP messages as they are, sent and heard through raw sockets.

use socket2::{Domain, Protocol, Socket, Type};
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_millis(100);
/// Header of an IPv4 packet without options, which a raw socket gives too.
const V4_HEADER: usize = 20;
/// Where the checksum is: the kernel fills it in for IPv6.
const CHECKSUM: std::ops::Range<usize> = 2..4;

/// Hears what comes to one network namespace.
pub struct Listener {
    v4: Socket,
    v6: Socket,
}

impl Listener {
    pub fn new() -> Self {
        let [v4, v6] = [false, true].map(raw);
        Self { v4, v6 }
    }

    /// Whether the message comes.
    pub fn hears(&self, message: &[u8]) -> bool {
        let (mut socket, header) = if is_v6(message) {
            (&self.v6, 0)
        } else {
            (&self.v4, V4_HEADER)
        };
        let until = Instant::now() + PATIENCE;
        let mut buffer = [0; 2048];
        while Instant::now() < until {
            let Ok(count) = socket.read(&mut buffer) else {
                continue;
            };
            let mut heard = buffer[header..count].to_vec();
            heard[CHECKSUM].fill(0);
            if heard == message {
                return true;
            }
        }
        false
    }
}

/// Sends the message to the address of its family.
pub fn send(message: &[u8], v4: &str, v6: &str) {
    let to: IpAddr = if is_v6(message) { v6 } else { v4 }.parse().unwrap();
    // Whether it is let go is not asked.
    let _ = raw(to.is_ipv6()).send_to(message, &SocketAddr::new(to, 0).into());
}

/// By the packet that it quotes.
fn is_v6(message: &[u8]) -> bool {
    message[8] >> 4 == 6
}

fn raw(v6: bool) -> Socket {
    let (domain, protocol) = if v6 {
        (Domain::IPV6, Protocol::ICMPV6)
    } else {
        (Domain::IPV4, Protocol::ICMPV4)
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
    socket.set_read_timeout(Some(PATIENCE / 4)).unwrap();
    socket
}
