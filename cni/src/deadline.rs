//! Reading and writing by a deadline, on the thread that asks: starting another costs a tenth of what a call may take.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// What is left until `deadline`, and never nothing, which the kernel takes for "for ever".
pub(crate) fn left(deadline: Instant) -> Duration {
    deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1))
}

/// The same, as `setsockopt(2)` wants it.
pub(crate) fn left_as_timeval(deadline: Instant) -> TimeVal {
    TimeVal::milliseconds(i64::try_from(left(deadline).as_millis()).unwrap_or(i64::MAX))
}

/// Connects to the Unix socket at `path`, where there may be a queue: [`io::ErrorKind::WouldBlock`] if it did not move by
/// `deadline`.
pub(crate) fn connect_to(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let socket = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // unix(7) has a connection wait for as long as a message may take to send.
    setsockopt(&socket, sockopt::SendTimeout, &left_as_timeval(deadline))?;
    connect(socket.as_raw_fd(), &address)?;
    Ok(socket.into())
}

/// Reads `input` to its end, or to `most` bytes; None if that takes until after `deadline`.
pub fn read_to_end(
    input: &mut (impl Read + AsFd),
    most: usize,
    deadline: Instant,
) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::with_capacity(4096);
    let mut part = [0; 4096];
    while bytes.len() < most {
        if Instant::now() >= deadline {
            return Ok(None);
        }
        let wait = PollTimeout::try_from(left(deadline)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(input.as_fd(), PollFlags::POLLIN)], wait) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let room = part.len().min(most - bytes.len());
        match input.read(&mut part[..room]) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&part[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(bytes))
}
