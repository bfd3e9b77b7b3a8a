//! Why an operation on the kernel failed: the error number, and a line that says what was tried, on what, and what to
//! do.

use meshd_core::Failure;
use std::fmt::Display;

/// The failure of one operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct OpError {
    pub(crate) errno: Option<i32>,
    pub(crate) message: String,
}

pub(crate) type Result<T> = std::result::Result<T, OpError>;

impl OpError {
    pub(crate) fn new(errno: i32, message: impl Into<String>) -> Self {
        Self {
            errno: Some(errno),
            message: message.into(),
        }
    }

    pub(crate) fn plain(message: impl Into<String>) -> Self {
        Self {
            errno: None,
            message: message.into(),
        }
    }

    /// The same failure, with what to do about it.
    pub(crate) fn remedy(mut self, remedy: impl Display) -> Self {
        self.message = format!("{}: {remedy}", self.message);
        self
    }

    /// The same failure within something larger.
    pub(crate) fn within(mut self, what: impl Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl From<OpError> for Failure {
    fn from(e: OpError) -> Self {
        Failure {
            errno: e.errno,
            message: e.message,
        }
    }
}

/// Errors that may carry an error number.
pub(crate) trait HasErrno: Display {
    fn errno_of(&self) -> Option<i32>;
}

impl HasErrno for nlink::Error {
    fn errno_of(&self) -> Option<i32> {
        match self.errno() {
            None if self.is_no_device() || self.is_not_found() => Some(libc::ENODEV),
            errno => errno,
        }
    }
}

impl HasErrno for OpError {
    fn errno_of(&self) -> Option<i32> {
        self.errno
    }
}

impl HasErrno for std::io::Error {
    fn errno_of(&self) -> Option<i32> {
        self.raw_os_error()
    }
}

impl HasErrno for nix::Error {
    fn errno_of(&self) -> Option<i32> {
        Some(*self as i32)
    }
}

/// Says what was tried when it failed.
pub(crate) trait Context<T> {
    /// `what` reads like "set the MTU of eth0 to 1420".
    fn doing<W: Display>(self, what: impl FnOnce() -> W) -> Result<T>;
}

impl<T, E: HasErrno> Context<T> for std::result::Result<T, E> {
    fn doing<W: Display>(self, what: impl FnOnce() -> W) -> Result<T> {
        self.map_err(|e| OpError {
            errno: e.errno_of(),
            message: format!("cannot {}: {e}", what()),
        })
    }
}

/// Takes "it is not there" for success.
pub(crate) fn gone_is_done<E: HasErrno>(result: std::result::Result<(), E>) -> std::result::Result<(), E> {
    match result {
        Err(e) if is_gone(e.errno_of()) => Ok(()),
        other => other,
    }
}

/// What the kernel says of a link, an address, a route, a rule, a table or an element that is not there.
pub(crate) fn is_gone(errno: Option<i32>) -> bool {
    matches!(
        errno,
        Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENXIO)
    )
}
