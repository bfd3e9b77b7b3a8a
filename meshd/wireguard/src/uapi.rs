//! The cross-platform userspace protocol that `wg` speaks (<https://www.wireguard.com/xplatform/>): texts in, texts
//! out. A request is `get=1` or `set=1`, lines `key=value`, and an empty line.

mod request;
mod response;

pub(crate) use request::{PeerChange, Request, SetDevice, parse};
pub(crate) use response::{errno, get};

/// Longest request: 10,000 peers with 10 allowed IPs each take half of it.
pub(crate) const REQUEST_MAX: usize = 8 << 20;

/// Why a request is refused; nothing of it was done.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("line {line:?}: {reason}")]
    Line {
        /// Its key; values may be secret.
        line: String,
        reason: &'static str,
    },
    #[error("a request begins with get=1 or set=1")]
    Operation,
}
