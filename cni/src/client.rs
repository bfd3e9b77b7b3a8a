//! One request to the daemon, and its answer.

use crate::{deadline, error, quoted, reason};
use meshd_model::cni::{Call, CniError, MESSAGE_MAX, REQUEST_MAX, Request, Response, code};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks for a daemon that went away.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);

/// Sends a call to the daemon that listens at `socket` and gives its answer, by `deadline` at the latest. A daemon that
/// goes away before it has answered is waited for, and asked again: every call may be sent twice, ADD by its token.
///
/// Error code 11, try again later, where the daemon is absent, silent, or does not come back; 6 where what answers is no
/// meshd; 5 where the system forbids; else the daemon's own error.
pub fn exchange(socket: &Path, call: &Call, deadline: Instant) -> Result<Response, CniError> {
    let mut cut_off = false;
    loop {
        let over = Instant::now() + PAUSE >= deadline;
        match exchange_once(socket, call, deadline) {
            Ok(Response::Error(error)) if !(cut_off && error.code == code::TRY_AGAIN && !over) => {
                return Err(error);
            }
            // A daemon that has just come back, and does not know its node yet.
            Ok(Response::Error(_)) => {}
            Ok(response) => return Ok(response),
            Err(failure) if over => return Err(failure.at(socket)),
            Err(failure) if failure.is_cut_off() => cut_off = true,
            Err(Failure::Absent(_)) if cut_off => {}
            Err(failure) => return Err(failure.at(socket)),
        }
        thread::sleep(PAUSE);
    }
}

/// The same, for one connection.
pub(crate) fn exchange_once(socket: &Path, call: &Call, deadline: Instant) -> Result<Response, Failure> {
    let left = deadline.saturating_duration_since(Instant::now());
    let request = encode(call, left).map_err(Failure::Own)?;
    let line = talk(socket, &request, deadline)?;
    decode(&line).map_err(Failure::Foreign)
}

/// A request as a line.
fn encode(call: &Call, left: Duration) -> Result<Vec<u8>, CniError> {
    let deadline_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    let mut line = serde_json::to_vec(&Request {
        deadline_ms,
        call: call.clone(),
    })
    .map_err(|reason| error(code::DECODE, "the request does not serialise", reason.to_string()))?;
    line.push(b'\n');
    if line.len() > REQUEST_MAX {
        let details = format!(
            "it has {} bytes of at most {REQUEST_MAX}: is prevResult sound?",
            line.len()
        );
        return Err(error(code::CONFIG, "the request is too long for meshd", details));
    }
    Ok(line)
}

/// A response from its line.
pub fn decode(line: &[u8]) -> Result<Response, String> {
    serde_json::from_slice(line).map_err(|error| {
        let begins = quoted(&String::from_utf8_lossy(&line[..line.len().min(80)]));
        let reason = reason(&error);
        format!("its answer begins with {begins} and is no response: {reason}")
    })
}

/// Sends one line and reads one.
fn talk(socket: &Path, request: &[u8], deadline: Instant) -> Result<Vec<u8>, Failure> {
    let mut stream = deadline::connect_to(socket, deadline).map_err(Failure::connect)?;
    // A daemon that refuses the caller answers before it has read the request, so a failure to write is not the end.
    let written = send(&mut stream, request, deadline);
    match (read_line(&mut stream, deadline), written) {
        (Err(Failure::Closed), Err(error)) => Err(Failure::lost("send the request", error)),
        (answer, _) => answer,
    }
}

fn send(stream: &mut UnixStream, mut request: &[u8], deadline: Instant) -> io::Result<()> {
    while !request.is_empty() {
        stream.set_write_timeout(Some(left(deadline)?))?;
        match stream.write(request) {
            Ok(count) => request = &request[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn read_line(stream: &mut UnixStream, deadline: Instant) -> Result<Vec<u8>, Failure> {
    let lost = |error| Failure::lost("read the answer", error);
    let mut line = Vec::with_capacity(4096);
    let mut part = [0; 4096];
    while line.len() < MESSAGE_MAX {
        let wait = left(deadline).map_err(lost)?;
        stream.set_read_timeout(Some(wait)).map_err(lost)?;
        match stream.read(&mut part) {
            Ok(0) => return Err(Failure::Closed),
            Ok(count) => line.extend_from_slice(&part[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(lost(error)),
        }
        // Nothing follows the line.
        if line.pop_if(|last| *last == b'\n').is_some() {
            return Ok(line);
        }
    }
    Err(Failure::Foreign(format!(
        "its answer is longer than {MESSAGE_MAX} bytes"
    )))
}

/// An error once the deadline is over, so that no number of short waits goes past it.
fn left(deadline: Instant) -> io::Result<Duration> {
    if Instant::now() >= deadline {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok(deadline::left(deadline))
}

/// Why there is no answer.
pub(crate) enum Failure {
    /// Nothing was sent.
    Own(CniError),
    Absent(io::Error),
    Forbidden(io::Error),
    Lost(&'static str, io::Error),
    Closed,
    Silent,
    Foreign(String),
}

impl Failure {
    fn connect(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::Absent(error),
            io::ErrorKind::PermissionDenied => Failure::Forbidden(error),
            _ => Failure::lost("connect", error),
        }
    }

    /// A socket that was waited for until the deadline says that it would block.
    fn lost(tried: &'static str, error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::WouldBlock => Failure::Silent,
            _ => Failure::Lost(tried, error),
        }
    }

    /// Whether a daemon was there and went away, so that nobody knows how far it came.
    pub(crate) fn is_cut_off(&self) -> bool {
        matches!(
            self,
            Failure::Closed | Failure::Lost("send the request" | "read the answer", _)
        )
    }

    pub(crate) fn at(self, socket: &Path) -> CniError {
        let socket = socket.display();
        match self {
            Failure::Own(error) => error,
            Failure::Absent(reason) => error(
                code::TRY_AGAIN,
                format!("meshd does not listen at {socket}: {reason}"),
                "it may be about to start; is the meshd pod of this node running, and does the network \
                 configuration name its socket?",
            ),
            Failure::Forbidden(reason) => error(
                code::IO,
                format!("cannot connect to meshd at {socket}: {reason}"),
                "the plugin runs as root, as the runtime does, and the socket's folder admits root only",
            ),
            Failure::Lost(tried, reason) => error(
                code::TRY_AGAIN,
                format!("talking to meshd at {socket}: cannot {tried}: {reason}"),
                "it may have been restarted",
            ),
            Failure::Closed => error(
                code::TRY_AGAIN,
                format!("meshd at {socket} closed the connection before it answered"),
                "it may have been restarted",
            ),
            Failure::Silent => error(
                code::TRY_AGAIN,
                format!("meshd at {socket} did not answer in time"),
                "it is overloaded or hangs: its log says more; timeoutSeconds of the network configuration is \
                 how long the plugin waits",
            ),
            Failure::Foreign(reason) => error(
                code::DECODE,
                format!("what answers at {socket} does not speak meshd's protocol"),
                format!("{reason}; are meshd and meshd-cni of the same version?"),
            ),
        }
    }
}
