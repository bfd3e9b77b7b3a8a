//! Talks to a daemon's local socket, as `meshctl status` does.

use anyhow::{Context, Result, bail};
use meshd_model::cni::{Call, MESSAGE_MAX, Request, Response};
use meshd_model::status::Status;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Asks the daemon for its status.
pub fn status(socket: &Path, within: Duration) -> Result<Status> {
    match exchange(socket, Call::Status, within)? {
        Response::Status(status) => Ok(*status),
        Response::Error(error) => bail!("meshd at {}: {error}", socket.display()),
        _ => bail!(
            "meshd at {} answered something else than its status",
            socket.display()
        ),
    }
}

/// Sends one request and reads its answer.
pub fn exchange(socket: &Path, call: Call, within: Duration) -> Result<Response> {
    let shown = socket.display();
    let request = Request {
        deadline_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
        call,
    };
    let mut text = serde_json::to_string(&request).context("the request does not serialise")?;
    text.push('\n');
    let answer = raw(socket, text.as_bytes(), within)?;
    serde_json::from_slice(&answer)
        .with_context(|| format!("what answers at {shown} does not speak meshd's protocol"))
}

/// Sends bytes and reads one line: whatever they are.
pub fn raw(socket: &Path, bytes: &[u8], within: Duration) -> Result<Vec<u8>> {
    let shown = socket.display();
    let mut stream = UnixStream::connect(socket).with_context(|| format!("connect to meshd at {shown}"))?;
    stream.set_read_timeout(Some(within)).context("set a timeout")?;
    stream.set_write_timeout(Some(within)).context("set a timeout")?;
    // A daemon that refuses may close before all is written; its answer counts.
    let sent = stream.write_all(bytes);
    let mut line = Vec::new();
    BufReader::new(stream.take(MESSAGE_MAX as u64))
        .read_until(b'\n', &mut line)
        .with_context(|| format!("read the answer of meshd at {shown}"))?;
    if line.is_empty() {
        sent.with_context(|| format!("write to meshd at {shown}"))?;
        bail!("meshd at {shown} closed the connection without an answer");
    }
    Ok(line)
}
