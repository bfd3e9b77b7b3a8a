//! Traffic that knows what it has sent: streams of numbered datagrams whose bytes are compared, and SCTP.

use anyhow::{Context, Result, bail, ensure};
use meshd_lab::netns::Netns;
use meshd_lab::plan::ECHO_PORT;
use meshd_scenario::MARKER;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long answers may take after the last datagram was sent.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long one read may take, so that a thread hears that it is to end.
const TURN: Duration = Duration::from_millis(50);
/// `IPPROTO_SCTP`
const SCTP: i32 = 132;
/// How long SCTP may take for one message, there and back.
const SCTP_PATIENCE: Duration = Duration::from_secs(30);

/// What came of a stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counted {
    /// Sent.
    pub(crate) sent: u64,
    /// Echoes that came, each number once.
    pub(crate) received: u64,
    /// Echoes whose bytes are not what was sent.
    pub(crate) wrong: u64,
    /// Echoes of a number that had come before.
    pub(crate) twice: u64,
    /// Echoes of a smaller number than one that had come before.
    pub(crate) late: u64,
    /// From the first lost number to the last, both included; 0 if none was lost.
    pub(crate) window: u64,
}

impl Counted {
    pub(crate) fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

/// A stream of numbered datagrams to an echo server, each with other bytes and of another size.
pub(crate) struct Numbered {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<(BTreeSet<u64>, Counted)>,
}

impl Numbered {
    /// Starts one.
    pub(crate) fn start(netns: &Netns, to: IpAddr, interval: Duration) -> Result<Self> {
        let socket = netns
            .run(move || open(to))?
            .with_context(|| format!("open a stream's socket in network namespace {}", netns.name()))?;
        let socket = Arc::new(socket);
        let stop = Arc::new(AtomicBool::new(false));
        let (outgoing, ending) = (socket.clone(), stop.clone());
        let sender = std::thread::spawn(move || send(&outgoing, interval, &ending));
        let ending = stop.clone();
        let receiver = std::thread::spawn(move || receive(&socket, &ending));
        Ok(Self {
            stop,
            sender,
            receiver,
        })
    }

    /// Sends no more, leaves some time for answers.
    pub(crate) fn stop(self) -> Result<Counted> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = || "a thread of a stream panicked";
        let sent = self.sender.join().ok().with_context(ended)?;
        let (numbers, mut counted) = self.receiver.join().ok().with_context(ended)?;
        let lost: Vec<u64> = (1..=sent).filter(|n| !numbers.contains(n)).collect();
        counted.sent = sent;
        counted.received = numbers.len() as u64;
        if let (Some(first), Some(last)) = (lost.first(), lost.last()) {
            counted.window = last - first + 1;
        }
        Ok(counted)
    }
}

fn open(to: IpAddr) -> io::Result<Socket> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_read_timeout(Some(TURN))?;
    socket.connect(&SocketAddr::new(to, ECHO_PORT).into())?;
    Ok(socket)
}

/// Marker, number, and bytes that only this number has; 100 to 1,100 of them.
fn datagram(number: u64) -> Vec<u8> {
    let mut bytes = MARKER.to_vec();
    bytes.extend(number.to_be_bytes());
    let size = 100 + usize::try_from(number * 37 % 1000).unwrap_or_default();
    bytes.extend((0..size as u64).map(|i| (number.wrapping_mul(31) + i * 7) as u8));
    bytes
}

fn send(socket: &Socket, interval: Duration, stop: &AtomicBool) -> u64 {
    let mut number = 0;
    let mut at = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        // What the own kernel refuses is lost like any other.
        let _ = socket.send(&datagram(number));
        at += interval;
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
    }
    number
}

fn receive(socket: &Socket, stop: &AtomicBool) -> (BTreeSet<u64>, Counted) {
    let (mut numbers, mut counted) = (BTreeSet::new(), Counted::default());
    let mut buffer = vec![0; 4096];
    let mut deadline = None;
    loop {
        if let Ok(length) = (&mut &*socket).read(&mut buffer) {
            note(&buffer[..length], &mut numbers, &mut counted);
        }
        if stop.load(Ordering::Relaxed) {
            let end = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
            if Instant::now() > end {
                return (numbers, counted);
            }
        }
    }
}

fn note(bytes: &[u8], numbers: &mut BTreeSet<u64>, counted: &mut Counted) {
    let number = bytes
        .strip_prefix(MARKER.as_slice())
        .and_then(|rest| Some(u64::from_be_bytes(rest.get(..8)?.try_into().ok()?)));
    let Some(number) = number.filter(|n| bytes == datagram(*n)) else {
        counted.wrong += 1;
        return;
    };
    let is_late = numbers.last().is_some_and(|last| number < *last);
    if numbers.insert(number) {
        counted.late += u64::from(is_late);
    } else {
        counted.twice += 1;
    }
}

/// An SCTP echo server (RFC 9260; one-to-one sockets of RFC 6458) for one association.
pub(crate) fn sctp_server(netns: &Netns, is_ipv4: bool, port: u16) -> Result<JoinHandle<io::Result<()>>> {
    let listener = netns
        .run(move || -> io::Result<Socket> {
            let socket = sctp(is_ipv4)?;
            let any: IpAddr = match is_ipv4 {
                true => Ipv4Addr::UNSPECIFIED.into(),
                false => Ipv6Addr::UNSPECIFIED.into(),
            };
            socket.bind(&SocketAddr::new(any, port).into())?;
            socket.listen(8)?;
            Ok(socket)
        })?
        .context("open an SCTP server: is the module sctp loaded?")?;
    Ok(std::thread::spawn(move || {
        let (mut association, _) = listener.accept()?;
        association.set_read_timeout(Some(SCTP_PATIENCE))?;
        let mut buffer = vec![0; 8192];
        loop {
            match association.read(&mut buffer)? {
                0 => return Ok(()),
                length => association.write_all(&buffer[..length])?,
            }
        }
    }))
}

/// Sends numbered messages by SCTP and compares what comes back; gives how many.
pub(crate) fn sctp_messages(netns: &Netns, to: SocketAddr, count: u64) -> Result<u64> {
    let socket = netns.run(move || -> io::Result<Socket> {
        let socket = sctp(to.is_ipv4())?;
        socket.set_read_timeout(Some(SCTP_PATIENCE))?;
        socket.set_write_timeout(Some(SCTP_PATIENCE))?;
        socket.connect_timeout(&SockAddr::from(to), SCTP_PATIENCE)?;
        Ok(socket)
    })?;
    let mut socket = socket.with_context(|| format!("an SCTP association with {to}"))?;
    let mut buffer = vec![0; 8192];
    for number in 1..=count {
        let message = datagram(number);
        socket.write_all(&message).context("send by SCTP")?;
        let length = socket.read(&mut buffer).context("receive by SCTP")?;
        ensure!(
            buffer[..length] == message[..],
            "message {number} of {} bytes came back as other {length} bytes",
            message.len()
        );
    }
    Ok(count)
}

fn sctp(is_ipv4: bool) -> io::Result<Socket> {
    let domain = if is_ipv4 { Domain::IPV4 } else { Domain::IPV6 };
    Socket::new(domain, Type::STREAM, Some(Protocol::from(SCTP)))
}

/// Waits for an SCTP server to see the end of its association.
pub(crate) fn sctp_end(server: JoinHandle<io::Result<()>>) -> Result<()> {
    match server.join() {
        Ok(ended) => ended.context("the SCTP server"),
        Err(_) => bail!("the SCTP server panicked"),
    }
}
