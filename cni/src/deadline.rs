//! Work that may block for ever, under a deadline.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Instant;

/// Does `work` on a thread of its own and waits for it until `deadline`; None if it takes longer. The thread is left
/// to itself then: connecting to a Unix socket whose queue is full, for one, cannot be called off.
pub fn within<T: Send + 'static>(
    deadline: Instant,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    let (sender, receiver) = sync_channel(1);
    thread::Builder::new().spawn(move || {
        // Nobody listens any more once the deadline is over.
        let _ = sender.send(work());
    })?;
    match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(result) => Ok(Some(result)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the working thread has panicked")),
    }
}
