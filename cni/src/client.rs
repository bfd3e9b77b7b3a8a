//! One request to the daemon, and its answer.

use crate::{deadline, error, quoted, reason};
use meshd_model::cni::{Call, CniError, MESSAGE_MAX, REQUEST_MAX, Request, Response, code};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Sends a call to the daemon that listens at `socket` and gives its answer, by `deadline` at the latest.
///
/// Error code 11, try again later, where the daemon is absent, silent, or goes away; 6 where what answers is no
/// meshd; 5 where the system forbids; else the daemon's own error.
pub fn exchange(socket: &Path, call: Call, deadline: Instant) -> Result<Response, CniError> {
    let left = deadline.saturating_duration_since(Instant::now());
    let request = encode(call, left)?;
    let path = socket.to_owned();
    let done = deadline::within(deadline, move || talk(&path, &request));
    let line = match done {
        Ok(Some(Ok(line))) => line,
        Ok(Some(Err(failure))) => return Err(failure.at(socket)),
        Ok(None) => return Err(Failure::Silent.at(socket)),
        Err(error) => return Err(Failure::Lost("start a thread", error).at(socket)),
    };
    match decode(&line) {
        Ok(Response::Error(error)) => Err(error),
        Ok(response) => Ok(response),
        Err(reason) => Err(Failure::Foreign(reason).at(socket)),
    }
}

/// A request as a line.
fn encode(call: Call, left: Duration) -> Result<Vec<u8>, CniError> {
    let deadline_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    let mut line = serde_json::to_vec(&Request { deadline_ms, call })
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

/// Blocks for as long as the other side likes.
fn talk(socket: &Path, request: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut stream = UnixStream::connect(socket).map_err(Failure::connect)?;
    // A daemon that refuses the caller answers before it has read the request, so a failure to write is not the end.
    let written = stream.write_all(request);
    let answer = read_line(stream);
    match (answer, written) {
        (Err(Failure::Closed), Err(error)) => Err(Failure::Lost("send the request", error)),
        (answer, _) => answer,
    }
}

fn read_line(stream: UnixStream) -> Result<Vec<u8>, Failure> {
    let mut line = Vec::new();
    BufReader::new(stream)
        .take(MESSAGE_MAX as u64)
        .read_until(b'\n', &mut line)
        .map_err(|error| Failure::Lost("read the answer", error))?;
    if line.pop_if(|last| *last == b'\n').is_some() {
        Ok(line)
    } else if line.len() >= MESSAGE_MAX {
        Err(Failure::Foreign(format!(
            "its answer is longer than {MESSAGE_MAX} bytes"
        )))
    } else {
        Err(Failure::Closed)
    }
}

/// Why there is no answer.
enum Failure {
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
            _ => Failure::Lost("connect", error),
        }
    }

    fn at(self, socket: &Path) -> CniError {
        let socket = socket.display();
        match self {
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
