//! The control socket, IFNAME.sock: who may connect to it may do everything, so it is for root alone.

use crate::lock::Lock;
use crate::uapi::REQUEST_MAX;
use anyhow::{Context, bail};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// Clients at a time; for one more, the one that has been silent for longest has to go.
const CONNECTIONS: usize = 16;
/// How long a client may stay in the middle of a request or of its answer. One in between may stay for ever: it may
/// wait for us to end.
const PATIENCE: Duration = Duration::from_secs(10);
const CHUNK: usize = 64 << 10;
/// Steps of one client before packets get their turn: a step reads or writes once, or answers one request.
const TURN: usize = 64;

/// The socket and its clients.
pub(crate) struct Control {
    listener: UnixListener,
    path: PathBuf,
    connections: Vec<Connection>,
    _lock: Lock,
}

/// One client.
pub(crate) struct Connection {
    stream: UnixStream,
    /// Not yet a whole request. May hold keys.
    request: Zeroizing<Vec<u8>>,
    /// So many bytes of it hold no end of a request.
    searched: usize,
    /// Not yet sent.
    response: Zeroizing<Vec<u8>>,
    sent: usize,
    /// When the client last got something done.
    since: meshd_model::Boot,
    is_finished: bool,
    /// Its turn ended before this was answered.
    has_request: bool,
}

impl Control {
    /// Listens on the socket; one that a killed process left is replaced, one that answers is not.
    pub(crate) fn listen(folder: &Path, ifname: &str) -> anyhow::Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("make the folder {} for the control socket", folder.display()))?;
        let lock = Lock::take(folder.join(format!("{ifname}.lock")))?;
        let path = folder.join(format!("{ifname}.sock"));
        remove_stale(&path)?;
        let listener = bind_private(&path)?;
        listener
            .set_nonblocking(true)
            .with_context(|| format!("make {} non-blocking", path.display()))?;
        Ok(Self {
            listener,
            path,
            connections: Vec::new(),
            _lock: lock,
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    pub(crate) fn connections(&self) -> &[Connection] {
        &self.connections
    }

    /// Takes a client out; [`put_back`](Self::put_back) returns it to its place.
    pub(crate) fn take(&mut self, index: usize) -> Option<Connection> {
        (index < self.connections.len()).then(|| self.connections.swap_remove(index))
    }

    pub(crate) fn put_back(&mut self, index: usize, connection: Connection) {
        self.connections.push(connection);
        let last = self.connections.len() - 1;
        self.connections.swap(index, last);
    }

    pub(crate) fn accept(&mut self, now: meshd_model::Boot) {
        for _ in 0..CONNECTIONS {
            let Ok((stream, _)) = self.listener.accept() else {
                return;
            };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.connections.len() >= CONNECTIONS {
                self.drop_most_silent();
            }
            self.connections.push(Connection::new(stream, now));
        }
    }

    fn drop_most_silent(&mut self) {
        let silent = (0..self.connections.len()).min_by_key(|at| self.connections[*at].since);
        if let Some(at) = silent {
            self.connections.swap_remove(at);
        }
    }

    /// Lets go of clients that are done, or too slow; when to look again.
    pub(crate) fn tidy(&mut self, now: meshd_model::Boot) -> Option<meshd_model::Boot> {
        self.connections.retain(|c| {
            let is_late = c.deadline().is_some_and(|at| at <= now);
            !c.is_finished && !is_late
        });
        self.connections.iter().filter_map(Connection::deadline).min()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, "remove the socket {}", self.path.display());
        }
    }
}

/// Bound under a name of its own with access for nobody else, then moved to its place: nobody can connect before
/// its permissions are set.
fn bind_private(path: &Path) -> anyhow::Result<UnixListener> {
    let temporary = path.with_extension("sock.new");
    let _ = std::fs::remove_file(&temporary);
    let listener =
        UnixListener::bind(&temporary).with_context(|| format!("bind the socket {}", temporary.display()))?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("make {} a socket for root alone", path.display()))?;
    Ok(listener)
}

fn remove_stale(path: &Path) -> anyhow::Result<()> {
    match UnixStream::connect(path) {
        Ok(_) => bail!(
            "a device already answers on {}: end its process first, or choose another --socket-dir",
            path.display()
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).with_context(|| format!("remove the stale socket {}", path.display()))
        }
        Err(error) => {
            Err(error).with_context(|| format!("see whether a device answers on {}", path.display()))
        }
    }
}

impl Connection {
    fn new(stream: UnixStream, now: meshd_model::Boot) -> Self {
        Self {
            stream,
            request: Zeroizing::new(Vec::with_capacity(CHUNK)),
            searched: 0,
            response: Zeroizing::new(Vec::new()),
            sent: 0,
            since: now,
            is_finished: false,
            has_request: false,
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether it waits to send; else it waits to receive. A request that waits for its turn will be answered.
    pub(crate) fn is_sending(&self) -> bool {
        self.has_response() || self.has_request
    }

    /// When it has taken too long; None between a whole answer and the next request.
    fn deadline(&self) -> Option<meshd_model::Boot> {
        let is_between = self.request.is_empty() && !self.has_response();
        (!is_between).then(|| self.since + PATIENCE)
    }

    fn has_response(&self) -> bool {
        self.sent < self.response.len()
    }

    /// Goes on with what it waits for. `answer` is called for each whole request.
    pub(crate) fn proceed(
        &mut self,
        now: meshd_model::Boot,
        mut answer: impl FnMut(&str) -> Zeroizing<String>,
    ) {
        for _ in 0..TURN {
            let went_on = if self.has_response() {
                self.send()
            } else if let Some(end) = self.end_of_request() {
                self.take_request(end, &mut answer);
                Ok(true)
            } else {
                self.receive()
            };
            match went_on {
                Ok(true) => self.since = now,
                Ok(false) => return,
                Err(_) => {
                    self.is_finished = true;
                    return;
                }
            }
        }
        self.has_request = self.end_of_request().is_some();
    }

    fn end_of_request(&mut self) -> Option<usize> {
        let found = self.request[self.searched..]
            .windows(2)
            .position(|two| two == b"\n\n");
        let at = found.map(|at| self.searched + at);
        self.searched = self.request.len().saturating_sub(1);
        at
    }

    fn take_request(&mut self, end: usize, answer: &mut impl FnMut(&str) -> Zeroizing<String>) {
        let response = match std::str::from_utf8(&self.request[..=end]) {
            Ok(text) => answer(text),
            Err(_) => crate::uapi::errno(libc::EINVAL),
        };
        let rest = Zeroizing::new(self.request[end + 2..].to_vec());
        self.request = rest;
        self.searched = 0;
        self.has_request = false;
        self.response = Zeroizing::new(response.as_bytes().to_vec());
        self.sent = 0;
    }

    /// Whether something came; an error ends the connection.
    fn receive(&mut self) -> io::Result<bool> {
        let mut chunk = Zeroizing::new([0; CHUNK]);
        let count = match self.stream.read(chunk.as_mut_slice()) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        if self.request.len() + count > REQUEST_MAX {
            tracing::warn!(
                "a request on the control socket is longer than {REQUEST_MAX} bytes: its connection is closed"
            );
            return Err(io::ErrorKind::InvalidData.into());
        }
        if self.request.capacity() - self.request.len() < count {
            // Grown by hand, so that what is left behind is wiped.
            let mut grown = Zeroizing::new(Vec::with_capacity(2 * (self.request.len() + count)));
            grown.extend_from_slice(&self.request);
            self.request = grown;
        }
        self.request.extend_from_slice(&chunk[..count]);
        Ok(true)
    }

    fn send(&mut self) -> io::Result<bool> {
        match self.stream.write(&self.response[self.sent..]) {
            Ok(count) => {
                self.sent += count;
                if !self.has_response() {
                    self.response = Zeroizing::new(Vec::new());
                    self.sent = 0;
                }
                Ok(count > 0)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}
