//! Client of the cross-platform userspace protocol (<https://www.wireguard.com/xplatform/>): one request on a
//! connection, lines of `key=value`, an empty line at the end. Bounded in time and size; what may hold the private key
//! lies in buffers that are wiped and never grow.

use super::{Change, EMPTY, Tunnel};
use crate::config::DriverConfig;
use crate::error::{Context, OpError, Result};
use ipnetwork::IpNetwork;
use meshd_model::kernel::{Peer, PeerState};
use meshd_model::{PublicKey, Wall};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use zeroize::{Zeroize, Zeroizing};

/// The device answers from memory; after this it hangs.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest line: a key and a value of at most 64 hexadecimal digits, or an endpoint.
const LINE_MAX: usize = 1024;
/// Longest reply. A peer takes about 400 bytes and 60 for each allowed IP.
const REPLY_MAX: usize = 16 << 20;

/// Speaks to the device's socket.
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(crate) fn new(config: &DriverConfig) -> Self {
        Self {
            socket: config.uapi_socket(),
        }
    }

    /// Reads the whole configuration.
    pub(crate) async fn get(&self) -> Result<Tunnel> {
        let mut reader = Reader::default();
        self.ask(b"get=1\n\n", |key, value| reader.line(key, value))
            .await?;
        reader.end_of_peer();
        Ok(reader.tunnel)
    }

    pub(super) async fn set_device(&self, change: &Change) -> Result<()> {
        let mut request = Zeroizing::new(String::with_capacity(LINE_MAX));
        request.push_str("set=1\n");
        if let Some(key) = &change.private_key {
            let mut hex = Zeroizing::new([0; 64]);
            hex::encode_to_slice(key.as_slice(), hex.as_mut_slice())
                .map_err(|_| OpError::plain("cannot write the private key as hexadecimal digits"))?;
            request.push_str("private_key=");
            request.extend(hex.iter().map(|digit| char::from(*digit)));
            request.push('\n');
        }
        if let Some(port) = change.listen_port {
            let _ = writeln!(request, "listen_port={port}");
        }
        if let Some(mark) = change.fwmark {
            let _ = writeln!(request, "fwmark={mark}");
        }
        request.push('\n');
        self.ask(request.as_bytes(), |_, _| Ok(())).await
    }

    /// Takes everything: key, mark, peers.
    pub(super) async fn clear(&self) -> Result<()> {
        let request = format!(
            "set=1\nprivate_key={}\nfwmark=0\nreplace_peers=true\n\n",
            "0".repeat(64)
        );
        let cleared = self.ask(request.as_bytes(), |_, _| Ok(())).await;
        cleared.map_err(|e| e.within("clear the device"))
    }

    pub(super) async fn set_peer(&self, peer: &Peer) -> Result<()> {
        let mut request = format!(
            "set=1\npublic_key={}\npersistent_keepalive_interval={}\nreplace_allowed_ips=true\n",
            hex::encode(peer.public_key.0),
            peer.keepalive.unwrap_or(0),
        );
        if let Some(endpoint) = peer.endpoint {
            let _ = writeln!(request, "endpoint={endpoint}");
        }
        for ip in &peer.allowed_ips {
            let _ = writeln!(request, "allowed_ip={ip}");
        }
        request.push('\n');
        let set = self.ask(request.as_bytes(), |_, _| Ok(())).await;
        set.map_err(|e| e.within(format_args!("set peer {}", peer.public_key)))
    }

    /// One after the other; nothing without the peer.
    pub(super) async fn set_keepalive(&self, peer: PublicKey, steps: [u16; 2]) -> Result<()> {
        let key = hex::encode(peer.0);
        let mut request = "set=1\n".to_owned();
        for seconds in steps {
            let _ = writeln!(
                request,
                "public_key={key}\nupdate_only=true\npersistent_keepalive_interval={seconds}"
            );
        }
        request.push('\n');
        let set = self.ask(request.as_bytes(), |_, _| Ok(())).await;
        set.map_err(|e| e.within(format_args!("greet peer {peer}")))
    }

    pub(super) async fn remove_peer(&self, peer: PublicKey) -> Result<()> {
        let request = format!("set=1\npublic_key={}\nremove=true\n\n", hex::encode(peer.0));
        let removed = self.ask(request.as_bytes(), |_, _| Ok(())).await;
        removed.map_err(|e| e.within(format_args!("remove peer {peer}")))
    }

    /// Connects, says so, and waits until the device goes away.
    pub(crate) async fn until_gone(&self, connected: impl FnOnce()) -> Result<()> {
        let mut stream = self.connect().await?;
        connected();
        let read = stream.read(&mut [0; 1]).await;
        read.map(drop)
            .doing(|| format!("wait on {}", self.socket.display()))
    }

    async fn ask(&self, request: &[u8], line: impl FnMut(&str, &str) -> Result<()>) -> Result<()> {
        let answer = tokio::time::timeout(TIMEOUT, self.exchange(request, line)).await;
        let late = || {
            format!(
                "no answer from {} in {TIMEOUT:?}: restart meshd-wg",
                self.socket.display()
            )
        };
        answer.unwrap_or_else(|_| Err(OpError::new(libc::ETIMEDOUT, late())))
    }

    async fn connect(&self) -> Result<UnixStream> {
        let show = || format!("connect to the device's socket {}", self.socket.display());
        let stream = UnixStream::connect(&self.socket).await.doing(show);
        let stream = stream.map_err(|e| e.remedy("start meshd-wg"))?;
        let peer = stream.peer_cred().doing(show)?.uid();
        let own = nix::unistd::geteuid().as_raw();
        if peer == own || peer == 0 {
            return Ok(stream);
        }
        let message = format!(
            "{} belongs to user {peer}, who gets no private key",
            self.socket.display()
        );
        Err(OpError::new(libc::EPERM, message))
    }

    async fn exchange(&self, request: &[u8], mut line: impl FnMut(&str, &str) -> Result<()>) -> Result<()> {
        let mut stream = self.connect().await?;
        let show = || format!("ask {}", self.socket.display());
        stream.write_all(request).await.doing(show)?;
        let mut reply = Lines::new(stream);
        while let Some(text) = reply.next().await.doing(show)? {
            let (key, value) = text.split_once('=').ok_or_else(|| {
                OpError::new(
                    libc::EPROTO,
                    format!("{} sent a line without =", self.socket.display()),
                )
            })?;
            if key != "errno" {
                line(key, value)?;
                continue;
            }
            return match value.parse::<i32>() {
                Ok(0) => Ok(()),
                Ok(errno) => Err(OpError::new(
                    errno.abs(),
                    format!(
                        "{} refused: {}",
                        self.socket.display(),
                        std::io::Error::from_raw_os_error(errno.abs())
                    ),
                )),
                Err(_) => Err(OpError::new(libc::EPROTO, format!("errno={value} is no number"))),
            };
        }
        let message = format!("{} ended its answer without errno", self.socket.display());
        Err(OpError::new(libc::EPROTO, message))
    }
}

/// Reads lines into one buffer of fixed size.
struct Lines {
    stream: UnixStream,
    buffer: Zeroizing<[u8; 4 * LINE_MAX]>,
    start: usize,
    end: usize,
    total: usize,
}

impl Lines {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            buffer: Zeroizing::new([0; 4 * LINE_MAX]),
            start: 0,
            end: 0,
            total: 0,
        }
    }

    /// The next line; None at the empty one, or at the end of the stream.
    async fn next(&mut self) -> std::io::Result<Option<&str>> {
        loop {
            let unread = self.start..self.end;
            if let Some(length) = self.buffer[unread.clone()].iter().position(|b| *b == b'\n') {
                let line = self.start..self.start + length;
                self.start = line.end + 1;
                let text =
                    std::str::from_utf8(&self.buffer[line]).map_err(|_| invalid("a line is not UTF-8"))?;
                return Ok(Some(text).filter(|text| !text.is_empty()));
            }
            if unread.len() >= LINE_MAX || self.total >= REPLY_MAX {
                return Err(invalid("the answer is too long"));
            }
            self.buffer.copy_within(unread.clone(), 0);
            (self.start, self.end) = (0, unread.len());
            let read = self.stream.read(&mut self.buffer[self.end..]).await?;
            if read == 0 {
                return Ok(None);
            }
            self.end += read;
            self.total += read;
        }
    }
}

fn invalid(why: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, why)
}

/// Puts the lines of `get=1` together.
#[derive(Default)]
struct Reader {
    tunnel: Tunnel,
    peer: Option<(PublicKey, PeerState)>,
    handshake: (u64, u64),
}

impl Reader {
    fn line(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "private_key" => self.tunnel.public_key = public_half(value)?,
            "listen_port" => self.tunnel.listen_port = number(key, value)?,
            "fwmark" => self.tunnel.fwmark = number(key, value)?,
            "public_key" => {
                self.end_of_peer();
                self.peer = Some((PublicKey(key_bytes(value)?), EMPTY));
            }
            _ => self.peer_line(key, value)?,
        }
        Ok(())
    }

    /// A line that belongs to the peer named last. Keys that are not known are left out, as the protocol asks.
    fn peer_line(&mut self, key: &str, value: &str) -> Result<()> {
        let Some((_, peer)) = &mut self.peer else {
            return Ok(());
        };
        match key {
            "endpoint" => peer.endpoint = Some(parse(key, value)?),
            "allowed_ip" => {
                let ip: IpNetwork = parse(key, value)?;
                peer.allowed_ips.insert(ip);
            }
            "persistent_keepalive_interval" => peer.keepalive = Some(number(key, value)?).filter(|s| *s != 0),
            "last_handshake_time_sec" => self.handshake.0 = number(key, value)?,
            "last_handshake_time_nsec" => self.handshake.1 = number(key, value)?,
            "rx_bytes" => peer.rx_bytes = number(key, value)?,
            "tx_bytes" => peer.tx_bytes = number(key, value)?,
            _ => {}
        }
        Ok(())
    }

    fn end_of_peer(&mut self) {
        let (seconds, nanos) = std::mem::take(&mut self.handshake);
        let Some((key, mut peer)) = self.peer.take() else {
            return;
        };
        let wall = seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        peer.last_handshake = (wall != 0).then_some(Wall(wall));
        self.tunnel.peers.insert(key, peer);
    }
}

fn key_bytes(value: &str) -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let bad = |_| {
        OpError::new(
            libc::EPROTO,
            "the device names a key that is not 64 hexadecimal digits",
        )
    };
    hex::decode_to_slice(value, &mut bytes).map_err(bad)?;
    Ok(bytes)
}

fn public_half(value: &str) -> Result<Option<PublicKey>> {
    let mut bytes = key_bytes(value)?;
    if bytes == [0; 32] {
        return Ok(None);
    }
    let secret = x25519_dalek::StaticSecret::from(bytes);
    bytes.zeroize();
    Ok(Some(PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())))
}

fn number<T: TryFrom<u64>>(key: &str, value: &str) -> Result<T> {
    let parsed = match value.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => value.parse().ok(),
    };
    parsed
        .and_then(|n| T::try_from(n).ok())
        .ok_or_else(|| OpError::new(libc::EPROTO, format!("the device says {key}={value}")))
}

fn parse<T: std::str::FromStr>(key: &str, value: &str) -> Result<T> {
    value
        .parse()
        .map_err(|_| OpError::new(libc::EPROTO, format!("the device says {key}={value}")))
}

#[cfg(test)]
mod tests;
