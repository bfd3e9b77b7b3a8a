//! Asks the daemon of this node.

use anyhow::{Context, Result, bail};
use meshd_model::cni::{Call, MESSAGE_MAX, Request, Response};
use meshd_model::status::Status;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Asks the daemon for its status.
pub(crate) fn status(socket: &Path, within: Duration) -> Result<Status> {
    let shown = socket.display();
    let request = Request {
        deadline_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
        call: Call::Status,
    };
    let mut text = serde_json::to_vec(&request).context("the request does not serialise")?;
    text.push(b'\n');
    let mut stream = UnixStream::connect(socket).with_context(|| format!("connect to meshd at {shown}"))?;
    stream.set_read_timeout(Some(within)).context("set a timeout")?;
    stream.set_write_timeout(Some(within)).context("set a timeout")?;
    // A daemon that refuses may close before all is written; its answer counts.
    let sent = stream.write_all(&text);
    let mut line = Vec::new();
    BufReader::new(stream.take(MESSAGE_MAX as u64))
        .read_until(b'\n', &mut line)
        .with_context(|| format!("read the answer of meshd at {shown}"))?;
    if line.is_empty() {
        sent.with_context(|| format!("write to meshd at {shown}"))?;
        bail!("meshd at {shown} closed the connection without an answer");
    }
    let answer: Response = serde_json::from_slice(&line)
        .with_context(|| format!("what answers at {shown} does not speak meshd's protocol"))?;
    match answer {
        Response::Status(status) => Ok(*status),
        Response::Error(error) => bail!("meshd at {shown}: {error}"),
        _ => bail!("meshd at {shown} answered something else than its status"),
    }
}
