//! A caller of the local socket, for `meshd ready`.

use meshd_model::cni::{Call, CniError, MESSAGE_MAX, Request, Response, code};
use meshd_model::status::Status;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error("cannot ask the daemon on {path}: {error}; does it run, and with this --socket?")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The daemon says no.
    #[error("the daemon says: {0}")]
    Refused(CniError),
    /// The daemon answers something else.
    #[error("the daemon answers what is no status; is it of another version?")]
    Other,
}

/// Asks for the daemon's status.
pub fn status(path: &Path, wait: Duration) -> Result<Status, ClientError> {
    match ask(path, Call::Status, wait)? {
        Response::Status(status) => Ok(*status),
        Response::Error(error) => Err(ClientError::Refused(error)),
        _ => Err(ClientError::Other),
    }
}

/// Asks whether the daemon is ready; what it lacks if not.
pub fn ready(path: &Path, wait: Duration) -> Result<Result<(), String>, ClientError> {
    match ask(path, Call::Ready, wait)? {
        Response::Done => Ok(Ok(())),
        Response::Error(error) if error.code == code::NOT_AVAILABLE => Ok(Err(error.msg)),
        Response::Error(error) => Err(ClientError::Refused(error)),
        _ => Err(ClientError::Other),
    }
}

fn ask(path: &Path, call: Call, wait: Duration) -> Result<Response, ClientError> {
    exchange(path, call, wait).map_err(|error| ClientError::Io {
        path: path.to_owned(),
        error,
    })
}

fn exchange(path: &Path, call: Call, wait: Duration) -> io::Result<Response> {
    let request = Request {
        deadline_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        call,
    };
    let mut line = serde_json::to_vec(&request)?;
    line.push(b'\n');
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(wait))?;
    stream.set_write_timeout(Some(wait))?;
    stream.write_all(&line)?;
    let mut answer = Vec::new();
    BufReader::new(stream.take(MESSAGE_MAX as u64)).read_until(b'\n', &mut answer)?;
    Ok(serde_json::from_slice(&answer)?)
}
