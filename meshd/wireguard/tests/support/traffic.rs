//! Small sockets that see whether packets pass.

use super::Node;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Overlay addresses of a node, one a family.
pub fn overlay(n: u8) -> [IpAddr; 2] {
    [
        format!("10.0.0.{n}").parse().unwrap(),
        format!("fd00::{n}").parse().unwrap(),
    ]
}

/// Sends every datagram back, until the test's process ends.
pub fn echo(node: &Node, address: IpAddr) -> SocketAddr {
    node.run(move || {
        let socket = UdpSocket::bind((address, 0)).unwrap();
        let at = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        });
        at
    })
}

/// Whether payloads of several sizes come back from an echo as they went, each within two seconds.
pub fn passes(node: &Node, from: IpAddr, to: SocketAddr) -> bool {
    node.run(move || {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        [1, 64, 1000, 1370]
            .into_iter()
            .map(|length| (0..length).map(|i| (i * 7 + length) as u8).collect())
            .all(|sent: Vec<u8>| comes_back(&socket, to, &sent))
    })
}

/// Whether a payload comes back from an echo over IPv6 that makes the checksum zero, there and back: the sum does not depend
/// on who is the sender.
pub fn passes_with_a_zero(node: &Node, from: IpAddr, to: SocketAddr) -> bool {
    node.run(move || {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let ends = [socket.local_addr().unwrap(), to];
        let words = ends.map(|end| match end.ip() {
            IpAddr::V6(address) => {
                address.segments().into_iter().map(u32::from).sum::<u32>() + u32::from(end.port())
            }
            IpAddr::V4(_) => panic!("zero is right over IPv4"),
        });
        // The payload's length stands in the pseudo header and in the datagram's own.
        let mut sum = words[0] + words[1] + 17 + 2 * (8 + 2);
        while sum > 0xFFFF {
            sum = (sum >> 16) + (sum & 0xFFFF);
        }
        comes_back(&socket, to, &(0xFFFF - sum as u16).to_be_bytes())
    })
}

fn comes_back(socket: &UdpSocket, to: SocketAddr, sent: &[u8]) -> bool {
    let mut buffer = [0; 2048];
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        let _ = socket.send_to(sent, to);
        if let Ok((count, _)) = socket.recv_from(&mut buffer)
            && buffer[..count] == *sent
        {
            return true;
        }
    }
    false
}

/// Sends `length` bytes over TCP and compares what arrives.
pub fn stream(from: &Node, to: &Node, address: IpAddr, length: usize) {
    let byte = |i: usize| (i ^ (i >> 8) ^ (i >> 16)) as u8;
    let (listener, at) = to.run(move || {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let at = listener.local_addr().unwrap();
        (listener, at)
    });
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received
    });
    from.run(move || {
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(10)).unwrap();
        let sent: Vec<u8> = (0..length).map(byte).collect();
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    });
    let received = receiver.join().unwrap();
    assert_eq!(received.len(), length);
    assert!(received.iter().enumerate().all(|(i, b)| *b == byte(i)));
}
